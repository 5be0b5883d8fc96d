// A warp's tiles of one row's keys (attention_tile.cu), brought STAGES ahead by copies that each lane makes for itself: bulk
// copies, five to seven for a tile, would hold the warp up longer than it takes to multiply it.
//
// Compile-time, beside attention_tile.cu's: BLOCK_SIZE, keys of a page, a multiple of 16; WARPS
// of a block, 1 to 16; STAGES, tiles in flight of a warp.

constexpr int TILES_OF_PAGE = BLOCK_SIZE / TILE;
constexpr int THREADS = WARPS * 32;
constexpr int QUADS = GROUP * D / 4;                                   // results, four channels each
constexpr int ROOM = STAGES * Woven::STAGE > QUADS ? STAGES * Woven::STAGE : QUADS;  // of a warp: tiles, afterwards its sums

// Every WARPS-th tile from `first` on, `count` of them.
struct Tiles {
    Pages keys, values;
    const int* table;
    int first, count;
    unsigned char* stages;   // [STAGES] of STAGE_BYTES
    int pages, upcoming;     // a lane knows the page of one of the next 32 tiles, and of one of the 32 after those
    Targets to;
};
constexpr int STAGE_BYTES = Woven::STAGE * 16;

DEVICE int page_of(const Tiles& t, int i) { return i < t.count ? t.table[(t.first + i * WARPS) / TILES_OF_PAGE] : 0; }

// Tiles are fetched in order.
DEVICE void fetch(Tiles& t, int i, unsigned char* stage) {
    if (i % 32 == 0 && i > 0) {
        t.pages = t.upcoming;
        t.upcoming = page_of(t, i + 32 + lane_index());
    }
    const int page = warp_from(t.pages, i % 32), start = (t.first + i * WARPS) % TILES_OF_PAGE * TILE;
    if (i < t.count) copy_tile(stage, t.to, t.keys, t.values, page, start);
    commit_copies();
}

DEVICE void fetch_first(Tiles& t) {
    t.pages = page_of(t, lane_index());
    t.upcoming = page_of(t, lane_index() + 32);
    t.to = targets_of_lane();
#pragma unroll
    for (int i = 0; i < STAGES; i++) fetch(t, i, t.stages + i * STAGE_BYTES);
}

// Attention to keys `seen` to `last` of the row, as far as they lie in these tiles. What has been found takes the place of
// the tiles, and the heads' maxima and sums go to `stats`.
DEVICE void attend_tiles(Tiles& t, const Query& query, int seen, int last, float scale, float2* stats) {
    const int lane = lane_index();
    Found found;
    const Places<Woven> places = places_of_lane<Woven>();
    int turn = 0;
    unsigned char* stage = t.stages;
#pragma unroll 1
    for (int i = 0; i < t.count; i++) {
        const int tile = t.first + i * WARPS, low = seen - tile * TILE, high = last - tile * TILE;
        wait_for_groups<STAGES - 1>();
        warp_barrier();  // what other lanes have brought is there, too
        if (low > 0 || high < TILE - 1) clear_unseen<Woven>(stage, low, high, lane);
        attend_tile<Woven>(stage, places, query, low, high, scale, lane, found);
        warp_barrier();  // all lanes have read this tile
        fetch(t, i + STAGES, stage);
        const bool again = ++turn == STAGES;
        stage = again ? t.stages : stage + STAGE_BYTES;
        if (again) turn = 0;
    }
    keep_found<GROUP>((float4*)t.stages, stats, found, lane);
}

DEVICE void store(u16* out, const Part& part) {
    const float scale = 1.0f / part.total;  // every entry sees a key
    uint2 v;
    v.x = to_bf16_pair(part.sum.x * scale, part.sum.y * scale);
    v.y = to_bf16_pair(part.sum.z * scale, part.sum.w * scale);
    *(uint2*)out = v;
}
