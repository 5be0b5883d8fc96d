// Attention of a decode step's rows: what a team makes of its head's query, key and value.

// The row of a step's entry, or -1 for padding.
DEVICE int row_of(const Step& s, int entry) { return entry < s.count ? s.rows[entry] : -1; }

DEVICE int key_chunks(int position, int rank) {
    const int pairs = (position + 2 * TILE - 1) / (2 * TILE);
    return pairs > rank ? (pairs - rank + TEAM - 1) / TEAM : 0;
}

// Heads of the new token, as the team has sent them: part GROUP is the key, GROUP + 1 the value. All are asked for
// before any is waited for.
template <int COUNT> DEVICE void receive(const Step& s, int row, const int (&parts)[COUNT], Halves (&heads)[COUNT], u32 tag) {
    const u32 begun = watch();
    Word left[COUNT], right[COUNT];
    bool missing;
    Wait wait;
    do {
        missing = false;
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            const int place = (row * (GROUP + 2) + parts[i]) * (D / 2) + lane_index() % (D / 4);
            left[i] = look(s, place), right[i] = look(s, place + D / 4);
        }
#pragma unroll
        for (int i = 0; i < COUNT; i++) missing |= left[i].high != tag || right[i].high != tag;
    } while (missing && goes_on(wait));
    spent(ON_TEAM, begun);
#pragma unroll
    for (int i = 0; i < COUNT; i++) heads[i] = halves_of(left[i].low, right[i].low);
}

#ifdef KV_FP8
// A head of the new token, as it goes to its page. Returns what that stands for.
DEVICE Halves keep_new(int row, int part, const Halves& x) {
    return quantized(memory<unsigned char>(AT_NEW) + (row * 2 + part) * D, memory<u16>(AT_NEW_SCALES) + row * 2 + part, x);
}
#else
DEVICE Halves keep_new(int row, int part, const Halves& x) {
    store_halves(memory<u16>(AT_NEW) + (row * 2 + part) * D, x);
    return x;
}
#endif

DEVICE float4* sums_of(int row, int reader) { return memory<float4>(AT_SUMS) + (row * (READERS + 1) + reader) * QUADS; }
DEVICE float2* stats_of(int row, int reader) { return memory<float2>(AT_STATS) + (row * (READERS + 1) + reader) * GROUP; }
DEVICE u16* own_queries() { return memory<u16>(AT_QUERY) + warp_index() * GROUP * D; }

DEVICE Halves norm_weights(const u16* weights) { return weights_of(ORDER == NORM_ROPE ? weights : nullptr); }

// A row's tiles that are this reader's, of the keys in front of the new token. count: chunks of this rank.
DEVICE void attend_tiles(const Step& s, int row, int position, int chunk, int count) {
    const int lane = lane_index(), reader = warp_index() % READERS;
    const Query query = query_of(own_queries(), D);
    const Places<Bulk> places = places_of_lane<Bulk>();
    Found found;
#pragma unroll 1
    for (int j = 0; j < count; j++) {
        const int tile = (rank_index() + j * TEAM) * READERS + reader;
        const Place place = place_of(chunk + j);
        const bool landed = wait_for_chunks<1>(place);
        unsigned char* const stage = slot_of(place.slot) + reader * Bulk::STAGE * 16;
        const int high = position - 1 - tile * TILE;
        if (high >= 0) {
            if (high < TILE - 1) clear_unseen<Bulk>(stage, 0, high, lane);
            attend_tile<Bulk>(stage, places, query, 0, high, s.score_scale, lane, found);
        }
        warp_barrier();
        if (lane < SUBS / READERS && landed) arrive(empty_of(place.slot));  // as often as the barrier counts
    }
    keep_found<GROUP>(sums_of(row, reader), stats_of(row, reader), found, lane);
}

// The rank that would read the new token's tile has the new token; it writes it when nothing of that tile is on its way
// any more.
DEVICE bool has_new(int position) { return rank_index() == position / (2 * TILE) % TEAM; }

// A warp's part of a row. The new token is a reader's, or, where there are enough, a warp's that reads nothing.
DEVICE void attend(const Step& s, const Layer* layer, int row, int position, int chunk, int count, u32 tag) {
    constexpr bool APART = ROWS * (READERS + 1) <= WARPS;
    const int warp = warp_index();
    const bool reads = row % CREWS == warp / READERS;
    const bool adds = has_new(position) && (APART ? warp == WARPS - 1 - row : reads && warp % READERS == READERS - 1);
    if (!reads && !adds) return;
    const Rotary rotary = {s.own, s.other, D, D, s.eps, s.qk_scale};
    const Turn turn = turn_of(rotary, position);
    const Halves query_weights = norm_weights(layer->q_norm);
    Halves key, value;
    int told = 0;  // queries that are there
    if (adds) {
        const Halves key_weights = norm_weights(layer->k_norm);
        Halves got[3];
        receive(s, row, {0, GROUP, GROUP + 1}, got, tag);
        store_halves(own_queries(), rotated(got[0], turn, query_weights, rotary, ORDER));
        told = 1;
        value = got[2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            value.left[i] = or_zero(value.left[i]);
            value.right[i] = or_zero(value.right[i]);
        }
        key = keep_new(row, 0, rotated(got[1], turn, key_weights, rotary, ORDER));
        value = keep_new(row, 1, value);
    }
#pragma unroll 1
    for (int head = told; head < GROUP; head++) {
        Halves got[1];
        receive(s, row, {head}, got, tag);
        store_halves(own_queries() + head * D, rotated(got[0], turn, query_weights, rotary, ORDER));
    }
    warp_barrier();
    lap(RECEIVING);
    if (adds)
        attend_new<GROUP>(own_queries(), key, value, s.score_scale, sums_of(row, READERS), stats_of(row, READERS));
    if (reads) attend_tiles(s, row, position, chunk, count);
}

// New keys and values go to their pages: 16 bytes a lane.
DEVICE void store_new(const Step& s, const Layer* layer) {
    constexpr int EACH = D * NUMBER / 16;
    for (int item = thread_index(); item < ROWS * 2 * EACH; item += THREADS) {
        const int entry = item / (2 * EACH), row = row_of(s, entry), position = row < 0 ? 0 : s.positions[entry];
        if (row < 0 || !has_new(position)) continue;
        const int page = s.tables[row * s.table_stride + position / BLOCK_SIZE];
        const int part = item / EACH % 2, offset = position % BLOCK_SIZE;
        unsigned char* const to = (part ? layer->values : layer->keys) +
                                  (page * s.page + team_index() * s.page_head + offset * D) * NUMBER;
        *(uint4*)(to + item % EACH * 16) = memory<const uint4>(AT_NEW)[item];
        if (NUMBER > 1 || item % EACH > 0) continue;
        u16* const scales = part ? layer->value_scales : layer->key_scales;
        scales[page * s.scale_page + team_index() * s.scale_head + offset] =
            memory<u16>(AT_NEW_SCALES)[entry * 2 + part];
    }
}

// What this block has found of every row goes to the ranks that finish it.
DEVICE void send_found(const Step& s, u32 tag) {
    constexpr int PAIRS = GROUP * D / 2;
    const int rank = rank_index();
#pragma unroll 1
    for (int item = thread_index(); item < ROWS * PAIRS; item += THREADS) {
        const int row = item / PAIRS, pair = item % PAIRS, head = pair / (D / 2);
        const int channel = pair % (D / 2) * 2, owner = channel / SLICE;
        if (row_of(s, row) < 0) continue;
        const int readers = READERS + has_new(s.positions[row]);
        const float2* const sums = (const float2*)sums_of(row, 0) + pair;
        const float2* const stats = stats_of(row, 0) + head;
        float most = LOWEST, total = 0.0f;
        float2 v = {0.0f, 0.0f};
#pragma unroll
        for (int i = 0; i <= READERS; i++)
            if (i < readers) most = fmaxf(most, stats[i * GROUP].x);
#pragma unroll
        for (int i = 0; i <= READERS; i++)
            if (i < readers) {
                const float2 stat = stats[i * GROUP], sum = sums[i * QUADS * 2];
                const float weight = power_of_two(stat.x - most);
                total = fmaf(weight, stat.y, total);
                v.x = fmaf(weight, sum.x, v.x);
                v.y = fmaf(weight, sum.y, v.y);
            }
        const int place = QKV_MAIL + ((row * TEAM + rank) * GROUP + head) * FOUND;
        post2(s, place + channel % SLICE, owner, v.x, v.y, tag);
        if (channel % SLICE == 0) post2(s, place + SLICE, owner, most, total, tag);
    }
}

DEVICE float team_sum(float value) {
#pragma unroll
    for (int mask = TEAM / 2; mask > 0; mask /= 2) value += warp_xor(value, mask);
    return value;
}

// The ranks' finds of this block's slice of every row, put together: a lane for each rank and two channels.
DEVICE void finish_attention(const Step& s, u32 tag) {
    constexpr int ITEMS = ROWS * GROUP * SLICE / 2 * TEAM;
    static_assert(ITEMS % 32 == 0, "lanes of a warp go together");
#pragma unroll 1
    for (int item = thread_index(); item < ITEMS; item += THREADS) {
        const int rank = item % TEAM, pair = item / TEAM % (SLICE / 2), head = item / (TEAM * SLICE / 2) % GROUP;
        const int row = item / (TEAM * SLICE / 2 * GROUP);
        const int place = QKV_MAIL + ((row * TEAM + rank) * GROUP + head) * FOUND;
        const bool live = row_of(s, row) >= 0;
        float2 stat = {0.0f, 1.0f}, v = {0.0f, 0.0f};
        if (live) {
            const u32 begun = watch();
            u32 a[4], b[4];
            Wait wait;
            do look2(s, place + SLICE, a), look2(s, place + 2 * pair, b);
            while ((!has(a, tag) || !has(b, tag)) && goes_on(wait));
            spent(ON_TEAM, begun);
            stat = float2{float_of(a[0]), float_of(a[2])};
            v = float2{float_of(b[0]), float_of(b[2])};
        }
        float most = stat.x;
#pragma unroll
        for (int mask = TEAM / 2; mask > 0; mask /= 2) most = fmaxf(most, warp_xor(most, mask));
        const float weight = power_of_two(stat.x - most), scale = 1.0f / team_sum(weight * stat.y);
        const float low = team_sum(weight * v.x) * scale, high = team_sum(weight * v.y) * scale;
        const int channel = (team_index() * GROUP + head) * D + rank_index() * SLICE + pair * 2;
        if (rank == 0) put(s.attended + (row * HEADS * D + channel) / 2, to_bf16_pair(low, high), tag);
    }
}
