// Attention of one query per entry over the keys of its row, cut into units by kernels/triton/decode.py's plan.
//
// Work: a block has one unit, a stretch of an entry's keys, and one kv head, the GROUP query heads of which are the
// columns of all products (attention_tile.cu). Warp w takes tiles w, w + WARPS, ... of the stretch
// (attention_stream.cu). What warps have found is put together in shared memory, and what units have, by the block that
// is done last, in memory; both in an order that depends on the lengths alone.
//
// Queries come rotated, their keys in the pages; or FRESH, as the projection made them (new_token.cu). Then the block
// turns what it needs, and the entry's last unit has the new key and value, which no tile has: they are one more find, and
// go to their page when nothing of it is on its way any more.
//
// AHEAD: the work list, the tables and the keys in the pages are there before the kernel in front has ended, and are read
// that early. So it is if some kernel between this one and those that wrote them has let its dependents start only when it
// had waited for all in front of itself, as this one does without AHEAD: that one's dependents, and all that come later,
// begin behind what it waited for.
//
// Compile-time, beside attention_stream.cu's: BLOCKS that shall fit on a multiprocessor.

enum Flags { DEPENDENT = 1, AHEAD = 2, FRESH = 4 };  // DEPENDENT: launched with programmatic stream serialization

// Strides count numbers. See kernels/paged_decode.py.
struct Launch {
    const u16 *q, *k_pages, *v_pages, *k_scales, *v_scales;
    const int* block_tables;
    u16* out;
    const uint4* items;  // [units][2]
    const int* live;     // how many units there are
    float4* partials;    // [units, heads, D / 4]
    float2* stats;       // [units, heads]
    int* counters;       // [entries, kv heads], units that have arrived
    const float *own, *other;
    const u16 *bias, *q_weight, *k_weight;
    const int* slots;
    long long q_stride, q_head, k_block, k_head, v_block, v_head, s_block, s_head, table_stride, out_stride;
    long long own_stride, other_stride;
    int kv_heads, flags, order;
    float scale, eps, qk_scale;
};

// A stretch of an entry's keys, start..end - 1, of which those from `seen` on are visible; the entry's first unit, and how
// many it has.
struct Item { int entry, row, start, end, seen, base, units, position; };

DEVICE Item item_of(const Launch& a, int unit) {
    const uint4 first = a.items[2 * unit], second = a.items[2 * unit + 1];
    return Item{(int)first.x, (int)first.y, (int)first.z, (int)first.w,
                (int)second.x, (int)second.y, (int)second.z, (int)second.w};
}

constexpr int NEW_BYTES = D * NUMBER;
constexpr int SPARE = THREADS / QUADS;
constexpr int SLOTS = SPARE < 1 ? 1 : SPARE > WARPS ? WARPS : SPARE;  // threads that share a quad of the last merge

struct Memory {
    float4* sums;           // [WARPS + 1][ROOM], at first the warps' tiles; QUADS of them are sums in the end
    u16* queries;           // [GROUP][D]
    unsigned char* fresh;   // [2][NEW_BYTES], the new key and value
    float2* stats;          // [WARPS + 1][GROUP]
    u16* fresh_scales;      // [2]
    int* last;              // whether this block is its entry's last
};

DEVICE Memory memory_of(unsigned char* shared) {
    Memory m;
    m.sums = (float4*)shared;
    m.queries = (u16*)(m.sums + WARPS * ROOM + QUADS);
    m.fresh = (unsigned char*)(m.queries + GROUP * D);
    m.stats = (float2*)(m.fresh + 2 * NEW_BYTES);
    m.fresh_scales = (u16*)(m.stats + (WARPS + 1) * GROUP);
    m.last = (int*)(m.fresh_scales + 2);
    return m;
}

DEVICE void meet() {
    if (WARPS > 1) block_barrier();
    else warp_barrier();
}

// A head of the projection's row with its bias, rounded as torch rounds it.
DEVICE Halves head_of(const Launch& a, const u16* row, int head) {
    const int at = head * D + lane_index() % (D / 4) * 2;
    Halves x = halves_of(*(const u32*)(row + at), *(const u32*)(row + at + D / 2));
    if (a.bias) {
        const Halves bias = halves_of(*(const u32*)(a.bias + at), *(const u32*)(a.bias + at + D / 2));
#pragma unroll
        for (int i = 0; i < 2; i++) {
            x.left[i] = rounded(x.left[i] + bias.left[i]);
            x.right[i] = rounded(x.right[i] + bias.right[i]);
        }
    }
    return x;
}

#ifdef KV_FP8
DEVICE Halves keep_new(const Memory& m, int part, const Halves& x) {
    return quantized(m.fresh + part * NEW_BYTES, m.fresh_scales + part, x);
}
#else
DEVICE Halves keep_new(const Memory& m, int part, const Halves& x) {
    store_halves((u16*)(m.fresh + part * NEW_BYTES), x);
    return x;
}
#endif

// Queries as attention wants them, by all warps; and by the last one, which has the fewest tiles, the new token.
DEVICE void take_fresh(const Launch& a, const Memory& m, const Item& item, int kv_head, bool has_new) {
    const int warp = warp_index(), heads = a.kv_heads * GROUP;
    const u16* const row = a.q + item.entry * a.q_stride;
    const Rotary rotary = {a.own, a.other, a.own_stride, a.other_stride, a.eps, a.qk_scale};
    const bool adds = has_new && warp == WARPS - 1;
    Halves key, value;
    if (adds) key = head_of(a, row, heads + kv_head), value = head_of(a, row, heads + a.kv_heads + kv_head);
    const Turn turn = turn_of(rotary, item.position);
    const Halves weights = weights_of(a.q_weight);
#pragma unroll 1
    for (int head = warp; head < GROUP; head += WARPS)
        store_halves(m.queries + head * D,
                     rotated(head_of(a, row, kv_head * GROUP + head), turn, weights, rotary, a.order));
    if (adds) {
#pragma unroll
        for (int i = 0; i < 2; i++) value.left[i] = or_zero(value.left[i]), value.right[i] = or_zero(value.right[i]);
        key = keep_new(m, 0, rotated(key, turn, weights_of(a.k_weight), rotary, a.order));
        value = keep_new(m, 1, value);
    }
    meet();
    if (adds) attend_new<GROUP>(m.queries, key, value, a.scale, m.sums + WARPS * ROOM, m.stats + WARPS * GROUP);
}

// The new key and value go to their page, 16 bytes a thread.
DEVICE void store_fresh(const Launch& a, const Memory& m, const Item& item, int kv_head) {
    constexpr int EACH = NEW_BYTES / 16;
    const int slot = a.slots[item.entry], page = slot / BLOCK_SIZE, offset = slot % BLOCK_SIZE;
    if (slot < 0) return;
    for (int i = thread_index(); i < 2 * EACH; i += THREADS) {
        const bool key = i < EACH;
        unsigned char* const pages = (unsigned char*)(key ? a.k_pages : a.v_pages);
        const long long at = key ? page * a.k_block + kv_head * a.k_head : page * a.v_block + kv_head * a.v_head;
        *(uint4*)(pages + (at + offset * D) * NUMBER + i % EACH * 16) = ((const uint4*)m.fresh)[i];
        if (NUMBER == 1 && i % EACH == 0)
            ((u16*)(key ? a.k_scales : a.v_scales))[page * a.s_block + kv_head * a.s_head + offset] =
                m.fresh_scales[key ? 0 : 1];
    }
}

// An entry's units put together in their order, by SLOTS threads for each quad, of which each takes every SLOTS-th.
DEVICE void merge_units(const Launch& a, const Memory& m, const Item& item, int kv_head, u16* result) {
    constexpr int TOGETHER = 4;  // units that a thread loads at one time
    for (int i = thread_index(); i < QUADS * SLOTS; i += THREADS) {
        const int quad = i % QUADS, slot = i / QUADS, head = quad / (D / 4);
        Part part = {{0.0f, 0.0f, 0.0f, 0.0f}, LOWEST, 0.0f};
#pragma unroll 1
        for (int first = slot; first < item.units; first += TOGETHER * SLOTS) {
            float4 sums[TOGETHER];
            float2 stats[TOGETHER];
#pragma unroll
            for (int j = 0; j < TOGETHER; j++) {
                const int unit = first + j * SLOTS;
                stats[j] = float2{LOWEST, 0.0f}, sums[j] = float4{0.0f, 0.0f, 0.0f, 0.0f};
                if (unit >= item.units) continue;
                const long long at = ((item.base + unit) * a.kv_heads + kv_head) * GROUP + head;
                stats[j] = a.stats[at], sums[j] = a.partials[at * (D / 4) + quad % (D / 4)];
            }
            const float before = part.most;
#pragma unroll
            for (int j = 0; j < TOGETHER; j++) part.most = fmaxf(part.most, stats[j].x);
            const float fade = power_of_two(before - part.most);
            part.total *= fade;
            part.sum.x *= fade, part.sum.y *= fade, part.sum.z *= fade, part.sum.w *= fade;
#pragma unroll
            for (int j = 0; j < TOGETHER; j++) {
                const float weight = power_of_two(stats[j].x - part.most);
                part.total += weight * stats[j].y;
                part.sum.x += weight * sums[j].x, part.sum.y += weight * sums[j].y;
                part.sum.z += weight * sums[j].z, part.sum.w += weight * sums[j].w;
            }
        }
        if (SLOTS == 1) store(result + quad * 4, part);
        else {
            m.sums[slot * ROOM + quad] = part.sum;
            if (quad % (D / 4) == 0) m.stats[slot * GROUP + head] = float2{part.most, part.total};
        }
    }
    if (SLOTS == 1) return;
    meet();
    for (int quad = thread_index(); quad < QUADS; quad += THREADS)
        store(result + quad * 4, merge<SLOTS>(m.sums + quad, ROOM, m.stats + quad / (D / 4), GROUP));
}

KERNEL void __launch_bounds__(WARPS * 32, BLOCKS) paged_decode(const Launch a) {
    SHARED_BYTES(shared);
    const Memory m = memory_of(shared);
    const int warp = warp_index();
    const int unit = block_index() / a.kv_heads, kv_head = block_index() % a.kv_heads;
    const bool ahead = a.flags & AHEAD, dependent = a.flags & DEPENDENT, fresh = a.flags & FRESH;
    if (dependent && !ahead) wait_for_previous();
    if (dependent) launch_dependents();  // not sooner, for AHEAD's sake
    // Loaded before it is known whether there is such a unit, so that one wait covers both.
    const Item item = item_of(a, unit);
    if (unit >= *a.live) {
        // As long as one block waits, the whole kernel ends behind the one in front.
        if (ahead && block_index() == 0) wait_for_previous();
        return;
    }

    const bool has_new = fresh && item.end > item.position;
    const int last = has_new ? item.position - 1 : item.end - 1;  // key in the pages
    const int first = item.start / TILE + warp, beyond = last / TILE + (last >= 0);
    Tiles tiles = {{a.k_pages + kv_head * a.k_head * NUMBER / 2, (int)(a.k_block * NUMBER / 2),
                    a.k_scales + kv_head * a.s_head, (int)a.s_block},
                   {a.v_pages + kv_head * a.v_head * NUMBER / 2, (int)(a.v_block * NUMBER / 2),
                    a.v_scales + kv_head * a.s_head, (int)a.s_block},
                   a.block_tables + item.row * a.table_stride, first, max(0, (beyond - first + WARPS - 1) / WARPS),
                   (unsigned char*)(m.sums + warp * ROOM), 0, 0, {}};
    fetch_first(tiles);
    if (ahead) wait_for_previous();

    if (fresh) take_fresh(a, m, item, kv_head, has_new);
    const Query query = fresh ? query_of(m.queries, D)
                              : query_of(a.q + item.entry * a.q_stride + kv_head * GROUP * a.q_head, a.q_head);
    attend_tiles(tiles, query, item.seen, last, a.scale, m.stats + warp * GROUP);
    meet();
    if (has_new) store_fresh(a, m, item, kv_head);

    u16* const result = a.out + item.entry * a.out_stride + kv_head * GROUP * D;
    for (int quad = thread_index(); quad < QUADS; quad += THREADS) {
        const float2* const stats = m.stats + quad / (D / 4);
        const Part part = has_new ? merge<WARPS + 1>(m.sums + quad, ROOM, stats, GROUP)
                                  : merge<WARPS>(m.sums + quad, ROOM, stats, GROUP);
        if (item.units == 1) {
            store(result + quad * 4, part);
            continue;
        }
        const long long at = (unit * a.kv_heads + kv_head) * GROUP + quad / (D / 4);
        a.partials[at * (D / 4) + quad % (D / 4)] = part.sum;
        if (quad % (D / 4) == 0) a.stats[at] = float2{part.most, part.total};
    }
    if (item.units == 1) return;
    device_fence();
    meet();
    int* const counter = a.counters + item.entry * a.kv_heads + kv_head;
    if (thread_index() == 0) *m.last = atomic_add(counter, 1) == item.units - 1;
    meet();
    if (!*m.last) return;
    device_fence();
    if (thread_index() == 0) *counter = 0;
    merge_units(a, m, item, kv_head, result);
}
