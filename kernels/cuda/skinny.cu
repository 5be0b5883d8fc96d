// y = x W^T for few rows of x: bf16 x[m, K] and W[n, K], sums in fp32, at the pace at which W can be read.
//
// W goes straight from memory into registers, as the A operand of tensor-core products; x is the B operand. Inside
// each block of 32 input channels the channels are renumbered so that a lane's operands are 16 consecutive bytes:
// lane (g, c) holds channels 8c..8c+7 of row g. x lies in shared memory in exactly that order.
//
// W may have eight bits with a factor for each row (kernels/quantize.py). Then 16 bytes are 16 channels, a block has
// 64 of them, lane (g, c) holds channels 16c..16c+15, and x lies in two halves: channels 16c..16c+7 of every lane,
// then the others. Registers turn into bf16, exactly, just before they are used, and the row's factor comes last.
//
// Work: W's rows form tiles of 16. K is cut into PARTS = 8 parts, whatever the variant: a warp sums R tiles over one
// part, and the parts are added in order at the end. So an output's value depends on neither the variant, nor m, nor
// the other rows. S blocks of a cluster share S * R tiles: block `rank` holds the channels of its 8 / S parts for
// all of them, which divides by S what each block must read of x, and sends its sums to the block that owns the tile.
//
// Compile-time: K; R tiles a warp; MT groups of 8 rows of x; S blocks a cluster (1, 2, 4, 8); DEPTH channel blocks
// in flight per warp; BLOCKS blocks that shall fit on a multiprocessor; and what eight_bits.cu knows.

#define PARTS 8
#define NORM 1        // times 1 / sqrt(mean(x_row^2) + eps)
#define RELU_SQUARED 2
#define SWIGLU 4      // a tile is 8 gate rows and the 8 up rows of the same channels
#define ACCUMULATE 8  // out += y
#define DEPENDENT 16  // launched with programmatic stream serialization

constexpr int CHANNEL_BLOCKS = K / CHANNELS;
constexpr int TILE_WARPS = S;                // warps of a block that hold different tiles
constexpr int PART_WARPS = PARTS / S;        // warps of a block that hold different parts of K
constexpr int X_BLOCKS = (CHANNEL_BLOCKS + S - 1) / S * HALVES;
constexpr int FRAGMENTS = R * MT;            // 16 x 8 results of one group of tiles
constexpr int FINISHED = (FRAGMENTS + PARTS - 1) / PARTS;  // most of them that a warp finishes
constexpr bool EVEN = CHANNEL_BLOCKS % PARTS == 0 && CHANNEL_BLOCKS / PARTS % DEPTH == 0;

DEVICE int part_start(int part) { return part * CHANNEL_BLOCKS / PARTS; }

struct Output {
    u16* out;
    int m, stride, flags;
    float eps;
};

DEVICE float squares(float sum, uint4 v) {
    const u32 pairs[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        sum += low_half(pairs[i]) * low_half(pairs[i]);
        sum += high_half(pairs[i]) * high_half(pairs[i]);
    }
    return sum;
}

DEVICE void load_weights(uint4 (&w)[R][2], const Weight* address) {
#pragma unroll
    for (int r = 0; r < R; r++) {
        w[r][0] = load_once((const u16*)(address + (long long)r * 16 * K));
        w[r][1] = load_once((const u16*)(address + (long long)r * 16 * K + 8 * K));
    }
}

DEVICE float scale_of(const float* sums, int row, float eps) {
    float sum = 0.0f;
#pragma unroll
    for (int part = 0; part < PARTS; part++) sum += sums[part * MT * 8 + row];
    return inverse_root(sum / K + eps);
}

// One output: y after the activation, added to what was there.
DEVICE void store(const Output& o, int row, int column, float y, u16 before) {
    if (o.flags & ACCUMULATE) y += low_half(before);
    o.out[(long long)row * o.stride + column] = to_bf16(y);
}

// A lane's four results of a fragment: d0, d1 of row g of the tile, d2, d3 of row g + 8; for x's rows `row`, `row`+1.
DEVICE void finish(const Output& o, int tile, int row, int g, float4 d, float s0, float s1, const u16 (&before)[4]) {
    const bool both = row + 1 < o.m;
    if (o.flags & NORM) { d.x *= s0; d.y *= s1; d.z *= s0; d.w *= s1; }
    if (o.flags & SWIGLU) {
        store(o, row, tile * 8 + g, d.x / (1.0f + exponential(-d.x)) * d.z, before[0]);
        if (both) store(o, row + 1, tile * 8 + g, d.y / (1.0f + exponential(-d.y)) * d.w, before[1]);
        return;
    }
    if (o.flags & RELU_SQUARED) {
        d.x = fmaxf(d.x, 0.0f); d.y = fmaxf(d.y, 0.0f); d.z = fmaxf(d.z, 0.0f); d.w = fmaxf(d.w, 0.0f);
        d.x *= d.x; d.y *= d.y; d.z *= d.z; d.w *= d.w;
    }
    store(o, row, tile * 16 + g, d.x, before[0]);
    store(o, row, tile * 16 + g + 8, d.z, before[2]);
    if (both) {
        store(o, row + 1, tile * 16 + g, d.y, before[1]);
        store(o, row + 1, tile * 16 + g + 8, d.w, before[3]);
    }
}

KERNEL void __launch_bounds__(PARTS * 32, BLOCKS) skinny(
    const u16* __restrict__ x, const Weight* __restrict__ weight, u16* out, int m, int n, int x_stride, int out_stride,
    float eps, int flags, int prefetch
#if SCALED
    , const float* __restrict__ factors
#endif
) {
    SHARED_BYTES(shared);
    uint4* const fragments_of_x = (uint4*)shared;                       // [X_BLOCKS][MT][32]
    float4* const partial = (float4*)(fragments_of_x + X_BLOCKS * MT * 32);  // [PARTS][FRAGMENTS][32]
    float* const square_sums = (float*)(partial + PARTS * FRAGMENTS * 32);   // [PARTS][MT * 8]

    const int lane = thread_index() & 31, warp = thread_index() >> 5, g = lane >> 2, c = lane & 3;
    const int rank = block_index() % S, tile_warp = warp / PART_WARPS, part_warp = warp % PART_WARPS;
    const int part = rank * PART_WARPS + part_warp, start = part_start(part), count = part_start(part + 1) - start;
    const int x_start = part_start(rank * PART_WARPS);
    const int tiles = n / 16, groups = (tiles + S * R - 1) / (S * R), step = grid_size() / S;
    int group = block_index() / S;
    if (flags & DEPENDENT) launch_dependents();
    if (S > 1) cluster_arrive();

    // The last group starts earlier when tiles do not divide evenly; what another group owns is not stored twice.
    auto weights_of = [&](int of) {
        const int tile = min((of * S + tile_warp) * R, tiles - R);
        return weight + (long long)(tile * 16 + g) * K + start * CHANNELS + c * RUN;
    };
    const Weight* address = weights_of(group);
    uint4 w[DEPTH][R][2];
#pragma unroll
    for (int i = 0; i < DEPTH; i++)
        if (EVEN || i < count) load_weights(w[i], address + i * CHANNELS);
    for (int i = DEPTH + 2 * c; i < min(count, DEPTH + prefetch); i += 8)
        for (int r = 0; r < 2 * R; r++) prefetch_line((const u16*)(address + i * CHANNELS + (long long)r * 8 * K));

    if (flags & DEPENDENT) wait_for_previous();
    for (int i = tile_warp; i < count * HALVES * MT; i += TILE_WARPS) {
        const int half = start * HALVES + i / MT, row = i % MT * 8 + g, own = c * RUN + half % HALVES * 8;
        uint4* const to = fragments_of_x + ((half - x_start * HALVES) * MT + i % MT) * 32 + lane;
        if (row < m) copy_in_background(to, x + (long long)row * x_stride + half / HALVES * CHANNELS + own);
        else *to = uint4{0, 0, 0, 0};
    }

    const Output output = {out, m, out_stride, flags, eps};
    const uint4* const my_x = fragments_of_x + (start - x_start) * HALVES * MT * 32 + lane;
    float square_sum[MT];
#pragma unroll
    for (int t = 0; t < MT; t++) square_sum[t] = 0.0f;
    bool first = true;
    for (;;) {
        const int owned = (group * S + rank) * R, base = min(owned, tiles - R);
        u16 before[FINISHED][4];
#if SCALED
        float2 factor[FINISHED];  // of rows g and g + 8
#pragma unroll
        for (int j = 0; j < FINISHED; j++) {
            const int f = warp + j * PARTS, at = (base + f / MT) * 16 + g;
            factor[j] = f < FRAGMENTS ? float2{factors[at], factors[at + 8]} : float2{0.0f, 0.0f};
        }
#endif
        if (flags & ACCUMULATE) {
#pragma unroll
            for (int j = 0; j < FINISHED; j++) {
                const int f = warp + j * PARTS, row = f % MT * 8 + 2 * c;
                const u16* const at = out + (long long)row * out_stride + (base + f / MT) * 16 + g;
                const bool here = f < FRAGMENTS && row < m, both = f < FRAGMENTS && row + 1 < m;
                before[j][0] = here ? at[0] : 0;
                before[j][2] = here ? at[8] : 0;
                before[j][1] = both ? at[out_stride] : 0;
                before[j][3] = both ? at[out_stride + 8] : 0;
            }
        }
        if (first) {
            wait_for_copies();
            if (TILE_WARPS > 1) block_barrier();
            else warp_barrier();
        }

        const int next = group + step;
        const Weight* const next_address = next < groups ? weights_of(next) : address;
        float sums[R][MT][4];
#pragma unroll
        for (int r = 0; r < R; r++)
#pragma unroll
            for (int t = 0; t < MT; t++)
#pragma unroll
                for (int i = 0; i < 4; i++) sums[r][t][i] = 0.0f;
#pragma unroll 1
        for (int block = 0; block < count; block += DEPTH) {
            const bool last = block + DEPTH >= count;
            const Weight* const refill = last ? next_address : address + (block + DEPTH) * CHANNELS;
            const int refills = last ? (next < groups ? count : 0) : count - block - DEPTH;
#pragma unroll
            for (int i = 0; i < DEPTH; i++) {
                if (EVEN || block + i < count) {
#pragma unroll
                    for (int half = 0; half < HALVES; half++) {
                        uint4 bf16[R][2];
#pragma unroll
                        for (int r = 0; r < R; r++) {
                            bf16[r][0] = half_of(w[i][r][0], half);
                            bf16[r][1] = half_of(w[i][r][1], half);
                        }
#pragma unroll
                        for (int t = 0; t < MT; t++) {
                            const uint4 v = my_x[(((block + i) * HALVES + half) * MT + t) * 32];
                            if ((flags & NORM) && first && t % TILE_WARPS == tile_warp)
                                square_sum[t] = squares(square_sum[t], v);
#pragma unroll
                            for (int r = 0; r < R; r++) {
                                const uint4 a = bf16[r][0], b = bf16[r][1];
                                multiply_add(sums[r][t], a.x, b.x, a.y, b.y, v.x, v.y);
                                multiply_add(sums[r][t], a.z, b.z, a.w, b.w, v.z, v.w);
                            }
                        }
                    }
                }
                if (EVEN ? refills > 0 : i < refills) load_weights(w[i], refill + i * CHANNELS);
            }
        }

        // Everyone has read the previous group's sums (and, the first time, every block of the cluster runs).
        if (S > 1) cluster_wait();
        else if (!first) block_barrier();
#pragma unroll
        for (int r = 0; r < R; r++)
#pragma unroll
            for (int t = 0; t < MT; t++) {
                float4* const to = partial + (part * FRAGMENTS + r * MT + t) * 32 + lane;
                const float4 v = {sums[r][t][0], sums[r][t][1], sums[r][t][2], sums[r][t][3]};
                if (S > 1) store_to_peer(to, tile_warp, v);
                else *to = v;
            }
        if ((flags & NORM) && first) {
#pragma unroll
            for (int t = 0; t < MT; t++) {
                float sum = square_sum[t];
                sum += warp_xor(sum, 1);
                sum += warp_xor(sum, 2);
                if (c == 0 && t % TILE_WARPS == tile_warp) {
                    float* const to = square_sums + part * MT * 8 + t * 8 + g;
                    if (S == 1) *to = sum;
                    else for (int peer = 0; peer < S; peer++) store_to_peer(to, peer, sum);
                }
            }
        }
        if (S > 1) { cluster_arrive(); cluster_wait(); }
        else block_barrier();

#pragma unroll
        for (int j = 0; j < FINISHED; j++) {
            const int f = warp + j * PARTS, row = f % MT * 8 + 2 * c, tile = base + f / MT;
            if (f < FRAGMENTS && row < m && tile >= owned) {
                float4 d = partial[f * 32 + lane];
#pragma unroll
                for (int p = 1; p < PARTS; p++) {
                    const float4 v = partial[(p * FRAGMENTS + f) * 32 + lane];
                    d.x += v.x; d.y += v.y; d.z += v.z; d.w += v.w;
                }
#if SCALED
                d.x *= factor[j].x; d.y *= factor[j].x; d.z *= factor[j].y; d.w *= factor[j].y;
#endif
                const float s0 = flags & NORM ? scale_of(square_sums, row, eps) : 1.0f;
                const float s1 = flags & NORM ? scale_of(square_sums, row + 1, eps) : 1.0f;
                finish(output, tile, row, g, d, s0, s1, before[j]);
            }
        }
        if (next >= groups) break;
        if (S > 1) cluster_arrive();
        group = next;
        address = next_address;
        first = false;
    }
}
