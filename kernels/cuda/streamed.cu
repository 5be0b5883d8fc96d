// y = x W^T for up to 64 rows of x: bf16 x[m, K] and W[n, K], sums in fp32, of which W streams from memory.
//
// A cluster of S blocks has TILES * 64 outputs, each block a part of K for all of them. A warp brings W and x into a ring in
// shared memory, through the tensor memory accelerator, TILE channels a slot; four warps multiply what lies there, W as
// the left operand, x as the right one, whose width is the number of rows. The ring is small enough that two blocks
// share a multiprocessor: the weights of the next kernel come while this one adds up what its blocks have.
//
// When all is multiplied each block sends its sums to the other blocks of its cluster that finish these outputs, which add
// up what all have found. So each output is summed in the order of K in a block and in that of the blocks: a row's bits depend
// on S, but on neither TILES nor the other rows nor their number.
//
// Compile-time: K, a multiple of TILE; TILES, 1 to 4; S; ROWS of x in a slot, 8 to 64; STAGES of the ring; BLOCKS that
// shall fit on a multiprocessor.

constexpr int TILE = 64;                      // channels: 128 bytes of a row, in the order of one swizzle
constexpr int ROW_BYTES = TILE * 2;
constexpr int OUTPUTS = 64 * TILES, SHARE = OUTPUTS / S;
constexpr int W_BYTES = OUTPUTS * ROW_BYTES, SLOT_BYTES = W_BYTES + ROWS * ROW_BYTES;
constexpr int MULTIPLYING = 128, THREADS = MULTIPLYING + 32;
constexpr int PITCH = ROWS + 4;               // of an output's sums, which takes two banks as often as none
constexpr int SHARE_BYTES = SHARE * PITCH * 4, SQUARE_BYTES = ROWS * 4;
constexpr int RING_BYTES = STAGES * SLOT_BYTES;
constexpr int LAG = STAGES > 5 ? 3 : STAGES > 3 ? 2 : 1;  // slots whose products are under way beside the newest

enum Flags { NORM = 1, RELU2 = 2, SWIGLU = 4, ACCUMULATE = 8, DEPENDENT = 16 };

struct Memory {
    unsigned char* ring;  // [STAGES][OUTPUTS of W, ROWS of x][TILE]; in the end this block's sums, [OUTPUTS][PITCH]
    float* sums;          // [S][SHARE][PITCH], that the other blocks have sent; nothing of this one
    float* own_squares;   // [ROWS], of this block's part of K
    float* squares;       // [S][ROWS], likewise
    Barrier *full, *empty, *sent;
};

DEVICE Memory memory_of(unsigned char* shared) {
    float* const sums = (float*)(shared + RING_BYTES), * const own_squares = sums + (S > 1 ? OUTPUTS * PITCH : 0);
    float* const squares = own_squares + (S > 1 ? ROWS : 0);
    Barrier* const full = (Barrier*)(squares + S * ROWS);
    return Memory{shared, S > 1 ? sums : (float*)shared, own_squares, squares, full, full + STAGES, full + 2 * STAGES};
}

struct Part { int first, count; };  // of K, in tiles
DEVICE Part part_of(int rank) {
    const int first = K / TILE * rank / S;
    return Part{first, K / TILE * (rank + 1) / S - first};
}

// Weights are never written during a step: as many as the ring takes are under way before the kernel in front has ended.
// The next kernel's shall come while this one ends, not while it reads: it is let go when the last are on their way.
DEVICE void bring(const TensorMap& weights, const TensorMap& inputs, const Memory& m, Part part, int first_output,
                  bool dependent) {
    const u64 once = read_once_policy();
    const int early = min(part.count, STAGES), near_end = max(part.count - 3, 0);
    const auto weight_tile = [&](int i) {
        const int slot = i % STAGES;
        expect_bytes(m.full + slot, SLOT_BYTES);
        copy_tile(m.ring + slot * SLOT_BYTES, weights, (part.first + i) * TILE, first_output, m.full + slot, once);
        if (dependent && i == near_end) launch_dependents();
    };
    const auto input_tile = [&](int i) {
        const int slot = i % STAGES;
        copy_tile(m.ring + slot * SLOT_BYTES + W_BYTES, inputs, (part.first + i) * TILE, 0, m.full + slot);
    };
    fetch_map(weights);
    fetch_map(inputs);
#pragma unroll 1
    for (int i = 0; i < early; i++) weight_tile(i);
    wait_for_previous();
#pragma unroll 1
    for (int i = 0; i < early; i++) input_tile(i);
#pragma unroll 1
    for (int i = early; i < part.count; i++) {
        wait_for_barrier(m.empty + i % STAGES, (i / STAGES - 1) & 1);
        weight_tile(i);
        input_tile(i);
    }
}

// Sums of squares of rows of x, of which a warp has a quarter, and four at one time, eight lanes each. A warp with two rows
// does both twice: what some lanes leave out would keep the compiler from having several products under way.
constexpr int ROWS_OF_WARP = ROWS / 4, PASSES = (ROWS_OF_WARP + 3) / 4;

DEVICE int row_of(int pass) { return warp_index() * ROWS_OF_WARP + (pass * 4 + lane_index() / 8) % ROWS_OF_WARP; }

DEVICE void add_squares(float (&sums)[PASSES], const unsigned char* tile) {
#pragma unroll
    for (int pass = 0; pass < PASSES; pass++) {
        const int row = row_of(pass);
        const uint4 v = *(const uint4*)(tile + row * ROW_BYTES + (lane_index() % 8 ^ row % 8) * 16);
        const u32 pairs[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            sums[pass] = fmaf(low_half(pairs[i]), low_half(pairs[i]), sums[pass]);
            sums[pass] = fmaf(high_half(pairs[i]), high_half(pairs[i]), sums[pass]);
        }
    }
}

DEVICE void keep_squares(float* to, float (&sums)[PASSES]) {
#pragma unroll
    for (int pass = 0; pass < PASSES; pass++) {
        float sum = sums[pass];
        for (int mask = 1; mask < 8; mask *= 2) sum += warp_xor(sum, mask);
        if (lane_index() % 8 == 0) to[row_of(pass)] = sum;
    }
}

// A warp's 16 outputs of each 64, of all rows, two rows at one time.
DEVICE void keep_sums(float* to, const float (&sums)[TILES][ROWS / 2]) {
    const int g = lane_index() / 4, c = lane_index() % 4;
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float* const at = to + (t * 64 + warp_index() * 16 + half * 8 + g) * PITCH + 2 * c;
#pragma unroll
            for (int j = 0; j < ROWS / 8; j++)
                *(float2*)(at + 8 * j) = float2{sums[t][4 * j + 2 * half], sums[t][4 * j + 2 * half + 1]};
        }
}

// Each block gets the sums of its outputs, and all squares. (Such a copy is for another block's memory.)
DEVICE void send(const Memory& m, int rank, bool norm) {
    const int peer = thread_index();
    if (peer >= S || peer == rank) return;
    copy_to_peer(m.sums + rank * SHARE * PITCH, peer, (float*)m.ring + peer * SHARE * PITCH, SHARE_BYTES, m.sent);
    if (norm) copy_to_peer(m.squares + rank * ROWS, peer, m.own_squares, SQUARE_BYTES, m.sent);
}

template <bool NORMED> DEVICE void multiply(const Memory& m, int count, int rank) {
    float sums[TILES][ROWS / 2];  // set by the first products: nothing else may write them while any are under way
    float squares[PASSES];
#pragma unroll
    for (int pass = 0; pass < PASSES; pass++) squares[pass] = 0.0f;
#pragma unroll 1
    for (int i = 0; i < count; i++) {
        const int slot = i % STAGES;
        const unsigned char* const w = m.ring + slot * SLOT_BYTES;
        wait_for_barrier(m.full + slot, i / STAGES & 1);
        const Tile weights = tile_at(w), inputs = tile_at(w + W_BYTES);
        begin_products();
#pragma unroll
        for (int k = 0; k < TILE / 16; k++)
#pragma unroll
            for (int t = 0; t < TILES; t++)
                multiply_tiles(sums[t], described(weights, t * 64, k), described(inputs, 0, k), i + k > 0);
        commit_products();
        if (NORMED) add_squares(squares, w + W_BYTES);
        // The products of an older slot have ended; its reader for the norm, too.
        wait_for_products<LAG>();
        warp_barrier();
        if (i >= LAG && lane_index() == 0) arrive(m.empty + (i - LAG) % STAGES);
    }
    wait_for_products<0>();
    group_barrier(1, MULTIPLYING);  // nobody reads the ring any more
    keep_sums((float*)m.ring, sums);
    if (NORMED) keep_squares(m.own_squares, squares);
    if (S == 1) return;
    order_before_copies();
    group_barrier(1, MULTIPLYING);
    cluster_wait();  // all blocks run and have their barriers
    send(m, rank, NORMED);
}

struct Output { u16* out; int m, n, stride, first, rank, flags; float eps; };

// Of a row: its factor, from the squares that all blocks have.
DEVICE float factor_of(const Memory& m, const Output& o, int row) {
    float sum = 0.0f;
#pragma unroll
    for (int block = 0; block < S; block++) sum += (block == o.rank ? m.own_squares : m.squares + block * ROWS)[row];
    return inverse_root(sum / K + o.eps);
}

// Where a block's sums of this one's share are: what has been sent, or this block's own.
DEVICE const float* sums_of(const Memory& m, int block, int rank) {
    return (block == rank ? (const float*)m.ring : m.sums) + block * SHARE * PITCH;
}

// Four outputs of a row, from `output` of this block's share on.
DEVICE float4 added(const Memory& m, int rank, int row, int output, float factor) {
    const int at = output * PITCH + row;
    float v[4] = {};
#pragma unroll
    for (int block = 0; block < S; block++) {
        const float* const from = sums_of(m, block, rank) + at;
#pragma unroll
        for (int i = 0; i < 4; i++) v[i] = block ? v[i] + from[i * PITCH] : from[i * PITCH];
    }
#pragma unroll
    for (int i = 0; i < 4; i++) v[i] = times(v[i], factor);
    return float4{v[0], v[1], v[2], v[3]};
}

DEVICE float relu2(float v) { return v < 0.0f ? 0.0f : v * v; }  // keeps NaN
DEVICE float gated(float gate, float up) { return gate / (1.0f + exponential(-gate)) * up; }

DEVICE void store_four(const Output& o, int row, int column, float4 v, uint2 before) {
    if (o.flags & RELU2) v = float4{relu2(v.x), relu2(v.y), relu2(v.z), relu2(v.w)};
    if (o.flags & ACCUMULATE)
        v = float4{v.x + low_half(before.x), v.y + high_half(before.x), v.z + low_half(before.y), v.w + high_half(before.y)};
    *(uint2*)(o.out + (long long)row * o.stride + column) = uint2{to_bf16_pair(v.x, v.y), to_bf16_pair(v.z, v.w)};
}

// What a thread finishes: four outputs of a row; lanes next to each other have rows next to each other, then quads.
struct Item { int row, quad; };
DEVICE Item item_of(int at, int quads) {
    const int group = at / 32, lane = at % 32;  // of 8 rows and 4 quads
    const int across = (quads + 3) / 4;
    return Item{group / across * 8 + lane % 8, group % across * 4 + lane / 8};
}

// This block's share of the cluster's outputs, four by four; for a swiglu eight gates lie in front of their eight factors.
// Most threads have a few; what is there already is fetched long before it is needed.
constexpr int QUADS = SHARE / 4, ITEMS = (QUADS + 3) / 4 * (ROWS / 8) * 32, EACH = (ITEMS + MULTIPLYING - 1) / MULTIPLYING;

DEVICE void fetch(const Output& o, uint2 (&before)[EACH]) {
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        const Item item = item_of(thread_index() + i * MULTIPLYING, QUADS);
        const int column = o.first + o.rank * SHARE + item.quad * 4;
        const bool adds = o.flags & ACCUMULATE && item.row < o.m && item.quad < QUADS && column < o.n;
        before[i] = adds ? *(const uint2*)(o.out + (long long)item.row * o.stride + column) : uint2{0, 0};
    }
}

DEVICE void finish(const Memory& m, const Output& o, const uint2 (&before)[EACH]) {
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        const Item item = item_of(thread_index() + i * MULTIPLYING, QUADS);
        const int column = o.first + o.rank * SHARE + item.quad * 4;
        if (item.row >= o.m || item.quad >= QUADS || column >= o.n) continue;
        const float factor = o.flags & NORM ? factor_of(m, o, item.row) : 1.0f;
        store_four(o, item.row, column, added(m, o.rank, item.row, item.quad * 4, factor), before[i]);
    }
}

DEVICE void finish_gated(const Memory& m, const Output& o) {
#pragma unroll 1
    for (int at = thread_index(); at < ITEMS; at += MULTIPLYING) {
        const Item item = item_of(at, QUADS);
        const int output = item.quad / 2 * 16 + item.quad % 2 * 4;
        if (item.row >= o.m || item.quad >= QUADS / 2 || o.first + o.rank * SHARE + output >= o.n) continue;
        const float factor = o.flags & NORM ? factor_of(m, o, item.row) : 1.0f;
        const float4 gate = added(m, o.rank, item.row, output, factor), up = added(m, o.rank, item.row, output + 8, factor);
        const float4 v = {gated(gate.x, up.x), gated(gate.y, up.y), gated(gate.z, up.z), gated(gate.w, up.w)};
        store_four(o, item.row, (o.first + o.rank * SHARE) / 2 + item.quad * 4, v, uint2{0, 0});
    }
}

template <bool NORMED> DEVICE void compute(const Memory& m, const Output& o, int count) {
    uint2 before[EACH];
    wait_for_previous();
    fetch(o, before);
    multiply<NORMED>(m, count, o.rank);
    if (S > 1) wait_for_barrier(m.sent, 0), cluster_arrive_relaxed();
    else group_barrier(1, MULTIPLYING);
    if (o.flags & SWIGLU) finish_gated(m, o);
    else finish(m, o, before);
}

KERNEL void __launch_bounds__(THREADS, BLOCKS) streamed(const GRID_CONSTANT TensorMap weights,
                                                        const GRID_CONSTANT TensorMap inputs, u16* out, int m, int n,
                                                        int out_stride, float eps, int flags) {
    SHARED_TILES(shared);
    const Memory memory = memory_of(shared);
    const int rank = block_index() % S, first = block_index() / S * OUTPUTS;
    const Part part = part_of(rank);
    if (thread_index() == 0) {
        for (int i = 0; i < STAGES; i++) {
            init_barrier(memory.full + i);
            init_barrier(memory.empty + i, MULTIPLYING / 32);
        }
        init_barrier(memory.sent);
        order_before_copies();
        order_barriers();
        expect_bytes(memory.sent, (S - 1) * (SHARE_BYTES + (flags & NORM ? SQUARE_BYTES : 0)));
    }
    block_barrier();
    if (S > 1) cluster_arrive_relaxed();
    const Output output = {out, m, n, out_stride, first, rank, flags, eps};
    if (warp_index() == MULTIPLYING / 32) {
        if (lane_index() == 0) bring(weights, inputs, memory, part, first, flags & DEPENDENT);
        warp_barrier();
        wait_for_previous();
        if (S > 1) cluster_wait(), cluster_arrive_relaxed();
    } else if (flags & NORM) compute<true>(memory, output, part.count);
    else compute<false>(memory, output, part.count);
    if (S > 1) cluster_wait();  // what this block has sent is there
}
