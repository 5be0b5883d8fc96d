// Attention of one query per entry over the keys of its row, which the blocks of a cluster share.
//
// Work: a cluster has one entry and one kv head, the GROUP query heads of which are the columns of all products
// (unused ones are zero). Keys form tiles of 16; the tiles that hold visible keys are cut into CLUSTER stretches of
// one length, of which the last ones may be short or empty. In a block, warp w takes tiles w, w + WARPS, ... of its
// stretch. Tiles lie in one piece in memory, and bulk copies bring them into the warp's shared memory, STAGES ahead:
// loads by lanes would be cut into so many requests that the multiprocessor, not the memory, set the pace.
//
// Products: S^T[16 keys, 8 heads] = K Q^T with skinny.cu's order of channels, in which a lane's 16 bytes are four
// operands. O^T[channels, 8 heads] += V^T P^T: a lane holds the same 8 channels of keys 2c, 2c+1, 2c+8 and 2c+9,
// whose halves, paired, are V^T's operands, and ends up with those 8 channels of heads 2c and 2c+1.
//
// Merges: warps leave (maximum, sum, accumulator) in shared memory; of what the block makes of them, block r of the
// cluster gets the r-th part of the channels written into its own shared memory, and finishes those. Nobody reads
// another block's memory, so a block may leave without waiting for the others once everything has arrived.
// The order of additions depends on the lengths alone.
//
// Compile-time: D, channels of a head (64, 128); GROUP (1..8); CLUSTER (1, 2, 4, 8); WARPS of a block (1, 2, 4, 8, 16);
// BLOCK_SIZE, keys of a page, a multiple of 16; STAGES tiles in flight per warp; BLOCKS that shall fit on
// a multiprocessor; KV_FP8 for keys and values in e4m3, with a scale for each key of a kv head (kernels/kv8.py). Words
// of four channels then become bf16 in the registers, and scores and weights are multiplied by the scales.

#define DEPENDENT 1  // launched with programmatic stream serialization

constexpr int TILE = 16;
constexpr int TILES_OF_PAGE = BLOCK_SIZE / TILE;
constexpr int THREADS = WARPS * 32;
constexpr int QUADS = GROUP * D / 4;    // results, four channels each
constexpr int SHARE = QUADS / CLUSTER;  // that a block of the cluster finishes
#ifdef KV_FP8
constexpr int NUMBER = 1;  // bytes
constexpr int SCALE_PIECES = 2 * TILE * 2 / 16;
#else
constexpr int NUMBER = 2, SCALE_PIECES = 0;
#endif
// In pieces of 16 bytes. Two pieces between groups of four values keep lanes of one phase on different banks.
constexpr int ROW = D * NUMBER / 16;
constexpr int KEY_PIECES = TILE * ROW, VALUE_PIECES = 4 * ROW + 2;
constexpr int SCALES_AT = KEY_PIECES + TILE / 4 * VALUE_PIECES;  // the keys', then the values'
constexpr int STAGE = SCALES_AT + SCALE_PIECES;
constexpr int ROOM = STAGES * STAGE > QUADS ? STAGES * STAGE : QUADS;  // of a warp: tiles, afterwards its sums
// Stands for "no key yet": unlike -inf it can be subtracted from itself.
constexpr float LOWEST = -3.0e38f;

// One kv head's keys or values, and their scales. block, scale_block: bytes and scales from page to page.
struct Pages {
    const unsigned char* base;
    long long block;
    const u16* scales;
    long long scale_block;
};

// One lane brings a tile: keys in one piece, values in four.
DEVICE void copy_tile(uint4* stage, Barrier* barrier, const Pages& keys, const Pages& values, int page, int start) {
    constexpr int BYTES = D * NUMBER;  // of a key
    const unsigned char* const from = values.base + page * values.block + start * BYTES;
    expect_bytes(barrier, 2 * TILE * BYTES + SCALE_PIECES * 16);
    copy_bulk(stage, (const u16*)(keys.base + page * keys.block + start * BYTES), TILE * BYTES, barrier);
#pragma unroll
    for (int i = 0; i < TILE / 4; i++)
        copy_bulk(stage + KEY_PIECES + i * VALUE_PIECES, (const u16*)(from + i * 4 * BYTES), 4 * BYTES, barrier);
#ifdef KV_FP8
    copy_bulk(stage + SCALES_AT, keys.scales + page * keys.scale_block + start, TILE * 2, barrier);
    copy_bulk(stage + SCALES_AT + 2, values.scales + page * values.scale_block + start, TILE * 2, barrier);
#endif
}

DEVICE uint4* value_row(uint4* stage, int key) {
    return stage + KEY_PIECES + key / 4 * VALUE_PIECES + key % 4 * ROW;
}

#ifdef KV_FP8
// Two e4m3 as bf16, each in the high byte of a half of `signs`, and four bits lower in `magnitudes`. Shifted into
// bf16's place the exponent, whose bias is 7 where bf16's is 127, is too small by 120.
DEVICE u32 to_pair(u32 signs, u32 magnitudes) {
    return multiply_add_pair(and_or(signs, 0x80008000u, magnitudes & 0x07f007f0u), 0x7b807b80u, 0x80008000u);
}
// Of a word's four: the first and the third, and the second and the fourth.
DEVICE u32 even_bytes(u32 word) { return to_pair(word << 8, word << 4); }
DEVICE u32 odd_bytes(u32 word) { return to_pair(word, word >> 4); }

DEVICE float scale_of(const uint4* stage, int values, int key) {
    return low_half(((const u16*)(stage + SCALES_AT))[values * TILE + key]);
}
#endif

// Values that cannot be seen may be anything, and have weight zero, which would not silence what is not finite. (In
// eight bits none is taken for anything else than a number.)
DEVICE void clear_unseen(uint4* stage, int low, int high, int lane) {
    for (int key = 0; key < TILE; key++)
        if ((key < low || key > high) && lane < ROW) value_row(stage, key)[lane] = uint4{0, 0, 0, 0};
    order_before_copies();  // the next tile comes to the same place
    warp_barrier();
}

// Sixteen keys' values times their weights b0, b1, for the channels whose pairs are x, y (keys 2c, 2c+1), z, w.
DEVICE void add_values(float (&o)[4], u32 x, u32 y, u32 z, u32 w, u32 b0, u32 b1) {
    multiply_add(o, low_halves(x, y), high_halves(x, y), low_halves(z, w), high_halves(z, w), b0, b1);
}

#ifdef KV_FP8
// The same for two channels, of which each half of x has one key's (2c, then 2c+1), and z those of the other two.
DEVICE void add_bytes(float (&o)[4], u32 x, u32 z, u32 b0, u32 b1) {
    multiply_add(o, even_bytes(x), odd_bytes(x), even_bytes(z), odd_bytes(z), b0, b1);
}
#endif

struct Part {
    float4 sum;
    float most, total;
};

// COUNT parts of one quad, put together in their order. stats: (maximum, sum of weights).
template <int COUNT> DEVICE Part merge(const float4* sums, int sum_step, const float2* stats, int stat_step) {
    Part part = {{0.0f, 0.0f, 0.0f, 0.0f}, LOWEST, 0.0f};
#pragma unroll
    for (int i = 0; i < COUNT; i++) part.most = fmaxf(part.most, stats[i * stat_step].x);
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        const float2 stat = stats[i * stat_step];
        const float4 sum = sums[i * sum_step];
        const float weight = power_of_two(stat.x - part.most);
        part.total += weight * stat.y;
        part.sum.x += weight * sum.x;
        part.sum.y += weight * sum.y;
        part.sum.z += weight * sum.z;
        part.sum.w += weight * sum.w;
    }
    return part;
}

DEVICE void store(u16* out, const Part& part) {
    const float scale = 1.0f / part.total;  // every entry sees a key
    uint2 v;
    v.x = to_bf16_pair(part.sum.x * scale, part.sum.y * scale);
    v.y = to_bf16_pair(part.sum.z * scale, part.sum.w * scale);
    *(uint2*)out = v;
}

KERNEL void __launch_bounds__(WARPS * 32, BLOCKS) cluster_decode(
    const u16* q, const u16* k_pages, const u16* v_pages, const int* block_tables, const int* rows,
    const int* positions, u16* out, const u16* k_scales, const u16* v_scales, long long q_stride, long long q_head,
    long long k_block, long long k_head, long long v_block, long long v_head, long long table_stride,
    long long out_stride, long long s_block, long long s_head, int kv_heads, int window, float scale, int flags) {
    SHARED_BYTES(shared);
    float4* const sums = (float4*)shared;                  // [WARPS][ROOM], of which QUADS are sums in the end
    float4* const inbox = sums + WARPS * ROOM;             // [CLUSTER][SHARE], where there is a cluster
    float2* const inbox_stats = (float2*)(inbox + (CLUSTER > 1 ? QUADS : 0));  // [CLUSTER][SHARE], likewise
    float2* const stats = inbox_stats + (CLUSTER > 1 ? QUADS : 0);             // [WARPS][GROUP]
    Barrier* const barriers = (Barrier*)(stats + WARPS * GROUP);               // [WARPS][STAGES]

    const int lane = thread_index() & 31, warp = thread_index() >> 5, g = lane >> 2, c = lane & 3;
    const int rank = block_index() % CLUSTER, entry = block_index() / CLUSTER / kv_heads;
    const int kv_head = block_index() / CLUSTER % kv_heads;
    if (CLUSTER > 1) cluster_arrive_relaxed();
    uint4* const stages = (uint4*)(sums + warp * ROOM);
    Barrier* const full = barriers + warp * STAGES;
    if (lane == 0)
        for (int i = 0; i < STAGES; i++) init_barrier(full + i);
    order_before_copies();
    warp_barrier();
    if (flags & DEPENDENT) {
        launch_dependents();
        wait_for_previous();
    }

    const int row = rows[entry], position = positions[entry], end = position + 1;
#ifdef KV_FP8
    // A lane's 16 bytes of a key are 16 channels: 8 of query[b], then 8 of query[b + 1], paired as bytes are.
    constexpr int LANE = 16;
    const auto place = [&](int b) { return b / 2 * 64 + b % 2 * 8; };
#else
    constexpr int LANE = 8;
    const auto place = [&](int b) { return b * 32; };
#endif
    const u16* const heads = q + entry * q_stride + kv_head * GROUP * q_head + c * LANE;
    uint4 query[D / 32];
#pragma unroll
    for (int b = 0; b < D / 32; b++) {
        query[b] = uint4{0, 0, 0, 0};
        if (g < GROUP) query[b] = *(const uint4*)(heads + g * q_head + place(b));
#ifdef KV_FP8
        const uint4 natural = query[b];
        query[b] = uint4{low_halves(natural.x, natural.y), high_halves(natural.x, natural.y),
                         low_halves(natural.z, natural.w), high_halves(natural.z, natural.w)};
#endif
    }
    // Padding, which is the whole cluster's. Either being negative counts, for so both are loaded at once.
    if ((row | position) < 0) {
        if (CLUSTER > 1) cluster_wait();
        return;
    }

    const int seen = window < 0 ? 0 : max(position - window, 0);
    const int first = seen / TILE, last = (end + TILE - 1) / TILE, length = (last - first + CLUSTER - 1) / CLUSTER;
    const int mine = first + rank * length + warp, stop = min(first + rank * length + length, last);
    const int count = max(0, (stop - mine + WARPS - 1) / WARPS);
    const int* const table = block_tables + row * table_stride;
    const Pages keys = {(const unsigned char*)k_pages + kv_head * k_head * NUMBER, k_block * NUMBER,
                        k_scales + kv_head * s_head, s_block};
    const Pages values = {(const unsigned char*)v_pages + kv_head * v_head * NUMBER, v_block * NUMBER,
                          v_scales + kv_head * s_head, s_block};
    // A lane knows the page of one of the next 32 tiles, and of one of the 32 after those.
    auto page_of = [&](int i) { return i < count ? table[(mine + i * WARPS) / TILES_OF_PAGE] : 0; };
    int pages = page_of(lane), upcoming = page_of(lane + 32);
    // Tiles are fetched in order.
    auto fetch = [&](int i, int stage) {
        if (i % 32 == 0 && i > 0) {
            pages = upcoming;
            upcoming = page_of(i + 32 + lane);
        }
        const int page = warp_from(pages, i % 32), start = (mine + i * WARPS) % TILES_OF_PAGE * TILE;
        if (i < count && lane == 0) copy_tile(stages + stage * STAGE, full + stage, keys, values, page, start);
    };
#pragma unroll
    for (int i = 0; i < STAGES; i++) fetch(i, i);

    float o[D / 64][4][4] = {};
    float most[2] = {LOWEST, LOWEST}, total[2] = {0.0f, 0.0f};  // of heads 2c and 2c+1; the sum is this lane's
    int turn = 0, phase = 0;
#pragma unroll 1
    for (int i = 0; i < count; i++) {
        uint4* const stage = stages + turn * STAGE;
        const int tile = mine + i * WARPS, low = seen - tile * TILE, high = position - tile * TILE;
        wait_for_barrier(full + turn, phase);
        if (NUMBER > 1 && (low > 0 || high < TILE - 1)) clear_unseen(stage, low, high, lane);
        float even[4] = {}, odd[4] = {};
#ifdef KV_FP8
#pragma unroll
        for (int b = 0; b < D / 64; b++) {
            const uint4 k0 = stage[g * ROW + b * 4 + c], k1 = stage[(g + 8) * ROW + b * 4 + c];
            const uint4 q0 = query[2 * b], q1 = query[2 * b + 1];
            multiply_add(even, even_bytes(k0.x), even_bytes(k1.x), odd_bytes(k0.x), odd_bytes(k1.x), q0.x, q0.y);
            multiply_add(odd, even_bytes(k0.y), even_bytes(k1.y), odd_bytes(k0.y), odd_bytes(k1.y), q0.z, q0.w);
            multiply_add(even, even_bytes(k0.z), even_bytes(k1.z), odd_bytes(k0.z), odd_bytes(k1.z), q1.x, q1.y);
            multiply_add(odd, even_bytes(k0.w), even_bytes(k1.w), odd_bytes(k0.w), odd_bytes(k1.w), q1.z, q1.w);
        }
        const float upper_scale = scale * scale_of(stage, 0, g), lower_scale = scale * scale_of(stage, 0, g + 8);
#else
        const float upper_scale = scale, lower_scale = scale;
#pragma unroll
        for (int b = 0; b < D / 32; b++) {
            const uint4 k0 = stage[g * ROW + b * 4 + c], k1 = stage[(g + 8) * ROW + b * 4 + c];
            multiply_add(even, k0.x, k1.x, k0.y, k1.y, query[b].x, query[b].y);
            multiply_add(odd, k0.z, k1.z, k0.w, k1.w, query[b].z, query[b].w);
        }
#endif

        // Scores in powers of two of keys g and g + 8, and the weights of both.
        const bool upper = g >= low && g <= high, lower = g + 8 >= low && g + 8 <= high;
        float fade[2], weight[2][2];
#pragma unroll
        for (int j = 0; j < 2; j++) {
            const float a = upper ? (even[j] + odd[j]) * upper_scale : LOWEST;
            const float b = lower ? (even[j + 2] + odd[j + 2]) * lower_scale : LOWEST;
            float peak = fmaxf(a, b);
            peak = fmaxf(peak, warp_xor(peak, 4));
            peak = fmaxf(peak, warp_xor(peak, 8));
            peak = fmaxf(peak, warp_xor(peak, 16));
            peak = fmaxf(peak, most[j]);
            fade[j] = power_of_two(most[j] - peak);
            weight[0][j] = power_of_two(a - peak);
            weight[1][j] = power_of_two(b - peak);
            most[j] = peak;
        }
#ifdef KV_FP8
        // Scales of unseen keys may be anything.
        const float upper_value = upper ? scale_of(stage, 1, g) : 0.0f;
        const float lower_value = lower ? scale_of(stage, 1, g + 8) : 0.0f;
#pragma unroll
        for (int j = 0; j < 2; j++) {
            total[j] = total[j] * fade[j] + (weight[0][j] + weight[1][j]);
            weight[0][j] *= upper_value;
            weight[1][j] *= lower_value;
        }
#endif
        const u32 w0 = to_bf16_pair(weight[0][0], weight[0][1]), w1 = to_bf16_pair(weight[1][0], weight[1][1]);
#ifndef KV_FP8
        // The sum is that of the rounded weights, so that what values are multiplied by adds up to one.
        total[0] = total[0] * fade[0] + (low_half(w0) + low_half(w1));
        total[1] = total[1] * fade[1] + (high_half(w0) + high_half(w1));
#endif
        const u32 b0 = transpose(w0), b1 = transpose(w1);
#pragma unroll
        for (int h = 0; h < D / 64; h++) {
#pragma unroll
            for (int r = 0; r < 4; r++)
#pragma unroll
                for (int j = 0; j < 4; j++) o[h][r][j] *= fade[j % 2];
            const int at = g + h * 8;
#ifdef KV_FP8
            const auto eight = [&](int key) { return ((const uint2*)value_row(stage, key))[at]; };
            const uint2 v0 = eight(2 * c), v1 = eight(2 * c + 1), v2 = eight(2 * c + 8), v3 = eight(2 * c + 9);
            add_bytes(o[h][0], low_halves(v0.x, v1.x), low_halves(v2.x, v3.x), b0, b1);
            add_bytes(o[h][1], high_halves(v0.x, v1.x), high_halves(v2.x, v3.x), b0, b1);
            add_bytes(o[h][2], low_halves(v0.y, v1.y), low_halves(v2.y, v3.y), b0, b1);
            add_bytes(o[h][3], high_halves(v0.y, v1.y), high_halves(v2.y, v3.y), b0, b1);
#else
            const uint4 v0 = value_row(stage, 2 * c)[at], v1 = value_row(stage, 2 * c + 1)[at];
            const uint4 v2 = value_row(stage, 2 * c + 8)[at], v3 = value_row(stage, 2 * c + 9)[at];
            add_values(o[h][0], v0.x, v1.x, v2.x, v3.x, b0, b1);
            add_values(o[h][1], v0.y, v1.y, v2.y, v3.y, b0, b1);
            add_values(o[h][2], v0.z, v1.z, v2.z, v3.z, b0, b1);
            add_values(o[h][3], v0.w, v1.w, v2.w, v3.w, b0, b1);
#endif
        }
        warp_barrier();  // all lanes have read this tile
        fetch(i + STAGES, turn);
        if (++turn == STAGES) {
            turn = 0;
            phase ^= 1;
        }
    }

    // What follows takes the place of the tiles.
#pragma unroll
    for (int j = 0; j < 2; j++) {
        total[j] += warp_xor(total[j], 4);
        total[j] += warp_xor(total[j], 8);
        total[j] += warp_xor(total[j], 16);
        const int head = 2 * c + j;
        if (head < GROUP) {
            float4* const to = sums + warp * ROOM + head * (D / 4) + g * 2;
#pragma unroll
            for (int h = 0; h < D / 64; h++) {
                to[h * 16] = float4{o[h][0][j], o[h][0][j + 2], o[h][1][j], o[h][1][j + 2]};
                to[h * 16 + 1] = float4{o[h][2][j], o[h][2][j + 2], o[h][3][j], o[h][3][j + 2]};
            }
            if (g == 0) stats[warp * GROUP + head] = float2{most[j], total[j]};
        }
    }
    block_barrier();
    if (CLUSTER > 1) cluster_wait();  // every block of the cluster runs, so its memory can be written
    u16* const result = out + entry * out_stride + kv_head * GROUP * D;
    for (int quad = thread_index(); quad < QUADS; quad += THREADS) {
        const Part part = merge<WARPS>(sums + quad, ROOM, stats + quad / (D / 4), GROUP);
        if (CLUSTER == 1) store(result + quad * 4, part);
        else {
            const int owner = quad / SHARE, place = rank * SHARE + quad % SHARE;
            store_to_peer(inbox + place, owner, part.sum);
            store_to_peer(inbox_stats + place, owner, float2{part.most, part.total});
        }
    }
    if (CLUSTER == 1) return;
    cluster_arrive();
    cluster_wait();
    for (int i = thread_index(); i < SHARE; i += THREADS)
        store(result + (rank * SHARE + i) * 4, merge<CLUSTER>(inbox + i, SHARE, inbox_stats + i, SHARE));
}
