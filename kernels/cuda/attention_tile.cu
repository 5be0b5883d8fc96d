// Attention of up to eight query heads over one tile of sixteen keys, by a warp; how tiles come into shared memory, and
// how what several warps or blocks have found is put together.
//
// Products: S^T[16 keys, 8 heads] = K Q^T with skinny.cu's order of channels, in which a lane's 16 bytes are four
// operands. O^T[channels, 8 heads] += V^T P^T: a lane holds the same 8 channels of keys 2c, 2c+1, 2c+8 and 2c+9,
// whose halves, paired, are V^T's operands, and ends up with those 8 channels of heads 2c and 2c+1.
//
// Compile-time: D, channels of a head (64, 128).

constexpr int TILE = 16;  // keys
// In pieces of 16 bytes. Two pieces between groups of four values keep lanes of one phase on different banks.
constexpr int ROW = D / 8;
constexpr int KEY_PIECES = TILE * ROW, VALUE_PIECES = 4 * ROW + 2;
constexpr int STAGE = KEY_PIECES + TILE / 4 * VALUE_PIECES;
// Stands for "no key yet": unlike -inf it can be subtracted from itself.
constexpr float LOWEST = -3.0e38f;

// One kv head's keys or values. block: numbers from page to page.
struct Pages {
    const u16* base;
    long long block;
};

// One lane brings a tile: keys in one piece, values in four.
DEVICE void copy_tile(uint4* stage, Barrier* barrier, const Pages& keys, const Pages& values, int page, int start) {
    const u16* const from = values.base + page * values.block + start * D;
    expect_bytes(barrier, 2 * TILE * D * 2);
    copy_bulk(stage, keys.base + page * keys.block + start * D, TILE * D * 2, barrier);
#pragma unroll
    for (int i = 0; i < TILE / 4; i++)
        copy_bulk(stage + KEY_PIECES + i * VALUE_PIECES, from + i * 4 * D, 4 * D * 2, barrier);
}

template <class Piece> DEVICE Piece* value_row(Piece* stage, int key) {
    return stage + KEY_PIECES + key / 4 * VALUE_PIECES + key % 4 * ROW;
}

// Values that cannot be seen may be anything, and have weight zero, which would not silence what is not finite.
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

// A tile's keys low..high: the running maximum (in powers of two) and sum of weights of heads 2c and 2c+1, and the
// values' weighted sum. The sum of weights is this lane's own, of keys g and g + 8. query: pieces b * 4 + c of head g.
DEVICE void attend_tile(const uint4* stage, const uint4 (&query)[D / 32], int low, int high, float scale, int lane,
                        float (&o)[D / 64][4][4], float (&most)[2], float (&total)[2]) {
    const int g = lane >> 2, c = lane & 3;
    float even[4] = {}, odd[4] = {};
#pragma unroll
    for (int b = 0; b < D / 32; b++) {
        const uint4 k0 = stage[g * ROW + b * 4 + c], k1 = stage[(g + 8) * ROW + b * 4 + c];
        multiply_add(even, k0.x, k1.x, k0.y, k1.y, query[b].x, query[b].y);
        multiply_add(odd, k0.z, k1.z, k0.w, k1.w, query[b].z, query[b].w);
    }

    // Scores in powers of two of keys g and g + 8, and the weights of both.
    const bool upper = g >= low && g <= high, lower = g + 8 >= low && g + 8 <= high;
    float fade[2], weight[2][2];
#pragma unroll
    for (int j = 0; j < 2; j++) {
        const float a = upper ? (even[j] + odd[j]) * scale : LOWEST;
        const float b = lower ? (even[j + 2] + odd[j + 2]) * scale : LOWEST;
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
    // The sum is that of the rounded weights, so that what values are multiplied by adds up to one.
    const u32 w0 = to_bf16_pair(weight[0][0], weight[0][1]), w1 = to_bf16_pair(weight[1][0], weight[1][1]);
    total[0] = total[0] * fade[0] + (low_half(w0) + low_half(w1));
    total[1] = total[1] * fade[1] + (high_half(w0) + high_half(w1));
    const u32 b0 = transpose(w0), b1 = transpose(w1);
#pragma unroll
    for (int h = 0; h < D / 64; h++) {
#pragma unroll
        for (int r = 0; r < 4; r++)
#pragma unroll
            for (int j = 0; j < 4; j++) o[h][r][j] *= fade[j % 2];
        const int at = g + h * 8;
        const uint4 v0 = value_row(stage, 2 * c)[at], v1 = value_row(stage, 2 * c + 1)[at];
        const uint4 v2 = value_row(stage, 2 * c + 8)[at], v3 = value_row(stage, 2 * c + 9)[at];
        add_values(o[h][0], v0.x, v1.x, v2.x, v3.x, b0, b1);
        add_values(o[h][1], v0.y, v1.y, v2.y, v3.y, b0, b1);
        add_values(o[h][2], v0.z, v1.z, v2.z, v3.z, b0, b1);
        add_values(o[h][3], v0.w, v1.w, v2.w, v3.w, b0, b1);
    }
}

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
