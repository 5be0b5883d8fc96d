// Attention of one query per entry over the keys of its row, which the blocks of a cluster share.
//
// Work: a cluster has one entry and one kv head, the GROUP query heads of which are the columns of all products
// (attention_tile.cu; unused ones are zero). Keys form tiles of 16; the tiles that hold visible keys are cut into
// CLUSTER stretches of one length, of which the last ones may be short or empty. In a block, warp w takes tiles w,
// w + WARPS, ... of its stretch. Tiles lie in one piece in memory, and bulk copies bring them into the warp's shared
// memory, STAGES ahead: loads by lanes would be cut into so many requests that the multiprocessor, not the memory, set
// the pace.
//
// Merges: warps leave (maximum, sum, accumulator) in shared memory; of what the block makes of them, block r of the
// cluster gets the r-th part of the channels written into its own shared memory, and finishes those. Nobody reads
// another block's memory, so a block may leave without waiting for the others once everything has arrived.
// The order of additions depends on the lengths alone.
//
// Compile-time: D, channels of a head (64, 128); GROUP (1..8); CLUSTER (1, 2, 4, 8); WARPS of a block (1, 2, 4, 8, 16);
// BLOCK_SIZE, keys of a page, a multiple of 16; STAGES tiles in flight per warp; BLOCKS that shall fit on
// a multiprocessor.

#define DEPENDENT 1  // launched with programmatic stream serialization

constexpr int TILES_OF_PAGE = BLOCK_SIZE / TILE;
constexpr int THREADS = WARPS * 32;
constexpr int QUADS = GROUP * D / 4;    // results, four channels each
constexpr int SHARE = QUADS / CLUSTER;  // that a block of the cluster finishes
constexpr int ROOM = STAGES * STAGE > QUADS ? STAGES * STAGE : QUADS;  // of a warp: tiles, afterwards its sums

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
    uint4 query[D / 32];
    query_for_tile(query, q + entry * q_stride + (kv_head * GROUP + g) * q_head, g < GROUP, c);
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
    const u16* const key_scales = k_scales + kv_head * s_head;
    const u16* const value_scales = v_scales + kv_head * s_head;
    const Pages keys = {k_pages + kv_head * k_head * NUMBER / 2, k_block * NUMBER / 2, key_scales, s_block};
    const Pages values = {v_pages + kv_head * v_head * NUMBER / 2, v_block * NUMBER / 2, value_scales, s_block};
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
        attend_tile(stage, query, low, high, scale, lane, o, most, total);
        warp_barrier();  // all lanes have read this tile
        fetch(i + STAGES, turn);
        if (++turn == STAGES) {
            turn = 0;
            phase ^= 1;
        }
    }

    // What follows takes the place of the tiles.
    keep_found<GROUP>(sums + warp * ROOM, stats + warp * GROUP, o, most, total, lane);
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
