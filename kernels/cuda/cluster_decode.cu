// Attention of one query per entry over the keys of its row, which the blocks of a cluster share.
//
// Work: a cluster has one entry and one kv head, the GROUP query heads of which are the columns of all products
// (attention_tile.cu; unused ones are zero). Keys form tiles of 16; the tiles that hold visible keys are cut into
// CLUSTER stretches of one length, of which the last ones may be short or empty. In a block, warp w takes tiles w,
// w + WARPS, ... of its stretch (attention_stream.cu).
//
// Merges: warps leave (maximum, sum, accumulator) in shared memory; of what the block makes of them, block r of the
// cluster gets the r-th part of the channels written into its own shared memory, and finishes those. Nobody reads
// another block's memory, so a block may leave without waiting for the others once everything has arrived.
// The order of additions depends on the lengths alone.
//
// Compile-time, beside attention_stream.cu's: CLUSTER (1, 2, 4, 8); BLOCKS that shall fit on a multiprocessor.

#define DEPENDENT 1  // launched with programmatic stream serialization

constexpr int SHARE = QUADS / CLUSTER;  // results that a block of the cluster finishes

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

    const int warp = warp_index();
    const int rank = block_index() % CLUSTER, entry = block_index() / CLUSTER / kv_heads;
    const int kv_head = block_index() / CLUSTER % kv_heads;
    if (CLUSTER > 1) cluster_arrive_relaxed();
    if (flags & DEPENDENT) {
        launch_dependents();
        wait_for_previous();
    }

    const int row = rows[entry], position = positions[entry], end = position + 1;
    const Query query = query_of(q + entry * q_stride + kv_head * GROUP * q_head, q_head);
    // Padding, which is the whole cluster's. Either being negative counts, for so both are loaded at once.
    if ((row | position) < 0) {
        if (CLUSTER > 1) cluster_wait();
        return;
    }

    const int seen = window < 0 ? 0 : max(position - window, 0);
    const int first = seen / TILE, last = (end + TILE - 1) / TILE, length = (last - first + CLUSTER - 1) / CLUSTER;
    const int mine = first + rank * length + warp, stop = min(first + rank * length + length, last);
    const u16* const key_scales = k_scales + kv_head * s_head;
    const u16* const value_scales = v_scales + kv_head * s_head;
    Tiles tiles = {{k_pages + kv_head * k_head * NUMBER / 2, (int)(k_block * NUMBER / 2), key_scales, (int)s_block},
                   {v_pages + kv_head * v_head * NUMBER / 2, (int)(v_block * NUMBER / 2), value_scales, (int)s_block},
                   block_tables + row * table_stride, mine, max(0, (stop - mine + WARPS - 1) / WARPS),
                   (unsigned char*)(sums + warp * ROOM), 0, 0, {}};
    fetch_first(tiles);
    attend_tiles(tiles, query, seen, position, scale, stats + warp * GROUP);
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
