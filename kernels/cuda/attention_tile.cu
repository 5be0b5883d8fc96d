// Attention of up to eight query heads over one tile of sixteen keys, by a warp; how tiles come into shared memory, and
// how what several warps or blocks have found is put together.
//
// Products: S^T[16 keys, 8 heads] = K Q^T with skinny.cu's order of channels, in which a lane's 16 bytes are four
// operands. O^T[channels, 8 heads] += V^T P^T: a lane holds the same 8 channels of keys 2c, 2c+1, 2c+8 and 2c+9,
// whose halves, paired, are V^T's operands, and ends up with those 8 channels of heads 2c and 2c+1.
//
// Compile-time: D, channels of a head (64, 128); GROUP, heads of queries for a head of keys (1 to 8); KV_FP8 for keys and
// values in e4m3, with a scale for each key of a kv head (kernels/kv8.py), by which scores and weights are multiplied. Words
// of four channels then become bf16 in the registers, but for keys of up to four heads of queries.

constexpr int TILE = 16;  // keys
#ifdef KV_FP8
constexpr int NUMBER = 1;  // bytes
constexpr int SCALE_PIECES = 2 * TILE * 2 / 16;
#else
constexpr int NUMBER = 2, SCALE_PIECES = 0;
#endif
// In pieces of 16 bytes.
constexpr int ROW = D * NUMBER / 16;
constexpr int KEY_PIECES = TILE * ROW;

// Where a tile's pieces lie in shared memory: its keys, values, and their scales (the keys', then the values'). Lanes that
// read at one time shall find different banks.
//
// As bulk copies bring them, keys in one piece and values in four, with two pieces between groups of four values.
struct Bulk {
    static constexpr bool WOVEN = false;
    static constexpr int VALUE_PIECES = 4 * ROW + 2, SCALES_AT = KEY_PIECES + TILE / 4 * VALUE_PIECES;
    static constexpr int STAGE = SCALES_AT + SCALE_PIECES;
};
// As copies by lanes can put them: without room between them, a row's pieces in an order of its own.
struct Woven {
    static constexpr bool WOVEN = true;
    static constexpr int VALUE_PIECES = 4 * ROW, SCALES_AT = 2 * KEY_PIECES, STAGE = SCALES_AT + SCALE_PIECES;
};
template <class At> DEVICE int key_at(int key, int piece) {
    return key * ROW + (At::WOVEN ? piece ^ key % 2 * 4 % ROW : piece);
}
template <class At> DEVICE int value_at(int key, int piece) {
    const int at = At::WOVEN ? piece ^ key / 2 % 4 * 2 % ROW : piece;
    return KEY_PIECES + key / 4 * At::VALUE_PIECES + key % 4 * ROW + at;
}
// Stands for "no key yet": unlike -inf it can be subtracted from itself.
constexpr float LOWEST = -3.0e38f;

// One kv head's keys or values, and their scales. block: two bytes each from page to page, whatever the numbers have;
// scale_block: scales.
struct Pages {
    const u16* base;
    long long block;
    const u16* scales = nullptr;
    long long scale_block = 0;
};

// All lanes bring a tile, for Woven: a lane has the same pieces of a row in every second row, or fourth.
DEVICE void copy_tile(uint4* stage, const Pages& keys, const Pages& values, int page, int start) {
    constexpr int KEY = D * NUMBER / 2;  // two bytes each
    const u16* const key = keys.base + page * keys.block + start * KEY + lane_index() * 8;
    const u16* const value = values.base + page * values.block + start * KEY + lane_index() * 8;
#pragma unroll
    for (int i = 0; i < KEY_PIECES / 32; i++) {
        const int at = i * 32 + lane_index();
        copy_in_background(stage + key_at<Woven>(at / ROW, at % ROW), key + i * 256);
        copy_in_background(stage + value_at<Woven>(at / ROW, at % ROW), value + i * 256);
    }
#ifdef KV_FP8
    const int lane = lane_index();
    const u16* const scales = lane < 2 ? keys.scales : values.scales;
    const long long block = lane < 2 ? keys.scale_block : values.scale_block;
    if (lane < SCALE_PIECES)
        copy_in_background(stage + Woven::SCALES_AT + lane, scales + page * block + start + lane % 2 * 8);
#endif
}

// Values that cannot be seen may be anything, and have weight zero, which would not silence what is not finite. (Every
// byte of eight bits is read as a number.)
template <class At> DEVICE void clear_unseen(uint4* stage, int low, int high, int lane) {
    for (int key = 0; key < TILE; key++)
        if ((key < low || key > high) && lane < ROW) stage[value_at<At>(key, lane)] = uint4{0, 0, 0, 0};
    order_before_copies();  // the next tile comes to the same place
    warp_barrier();
}

// Sixteen keys' values times their weights b0, b1, for the channels whose pairs are x, y (keys 2c, 2c+1), z, w.
DEVICE void add_values(float (&o)[4], u32 x, u32 y, u32 z, u32 w, u32 b0, u32 b1) {
    multiply_add(o, low_halves(x, y), high_halves(x, y), low_halves(z, w), high_halves(z, w), b0, b1);
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

template <class At> DEVICE float scale_of(const uint4* stage, int values, int key) {
    return low_half(((const u16*)(stage + At::SCALES_AT))[values * TILE + key]);
}

// As add_values for two channels, of which each half of x has one key's (2c, then 2c+1), and z those of the other two.
DEVICE void add_bytes(float (&o)[4], u32 x, u32 z, u32 b0, u32 b1) {
    multiply_add(o, even_bytes(x), odd_bytes(x), even_bytes(z), odd_bytes(z), b0, b1);
}
#endif

// Queries as attend_tile takes them: a lane's channels of a key, 16 bytes of which are 8 channels or 16, of column g. A
// column is a head; TWO_TERMS: two columns are, for then keys in e4m3 are multiplied as they are, and a query is
// s q = high + low / 16 in e4m3 with a power of two s (decode_split.cu). `inverse` undoes that for the head c.
#ifdef KV_FP8
constexpr bool TWO_TERMS = GROUP <= 4;
#else
constexpr bool TWO_TERMS = false;
#endif
constexpr int HEADS_OF_LANE = TWO_TERMS ? 1 : 2;  // the head c, or 2c and 2c + 1
struct Query {
    uint4 of[TWO_TERMS ? D / 64 : D / 32];
    float inverse = 1.0f;
};

#ifdef KV_FP8
DEVICE u32 larger_magnitude(u32 most, u32 pair) { return max(most, max(pair & 0x7fffu, pair >> 16 & 0x7fffu)); }

// Four channels' high terms; of what is left, the low ones.
DEVICE u32 term_of(u32 first, u32 second, float scale, bool low) {
    const float v[4] = {low_half(first) * scale, high_half(first) * scale, low_half(second) * scale, high_half(second) * scale};
    const u32 high = to_e4m3_pair(v[0], v[1]) | to_e4m3_pair(v[2], v[3]) << 16;
    if (!low) return high;
    const u32 even = even_bytes(high), odd = odd_bytes(high);
    return to_e4m3_pair((v[0] - low_half(even)) * 16.0f, (v[1] - low_half(odd)) * 16.0f) |
           to_e4m3_pair((v[2] - high_half(even)) * 16.0f, (v[3] - high_half(odd)) * 16.0f) << 16;
}
#endif

#ifdef KV_FP8
// A column's term of what a lane has of its head.
DEVICE Query terms_of(const uint4 (&own)[D / 32]) {
    const int c = lane_index() & 3;
    const bool low = lane_index() >> 2 & 1;
    u32 most = 0;
#pragma unroll
    for (int b = 0; b < D / 32; b++)
        for (const u32 pair : {own[b].x, own[b].y, own[b].z, own[b].w}) most = larger_magnitude(most, pair);
    most = max(most, (u32)bits_of(warp_xor(float_of(most), 1)));
    most = max(most, (u32)bits_of(warp_xor(float_of(most), 2)));
    const u32 exponent = max(most >> 7, 8u);
    const float scale = float_of((261u - exponent) << 23);
    const u32 inverse = most < 0x7f80u ? (exponent - 7) << 23 : 0x7fc00000u;  // what is not finite spoils all
    Query query;
    query.inverse = float_of((u32)warp_from((int)inverse, 8 * c));
#pragma unroll
    for (int b = 0; b < D / 64; b++) {
        const uint4 x = own[2 * b], y = own[2 * b + 1];
        query.of[b] = uint4{term_of(x.x, x.y, scale, low), term_of(x.z, x.w, scale, low),
                            term_of(y.x, y.y, scale, low), term_of(y.z, y.w, scale, low)};
    }
    return query;
}
#endif

// first: the heads' [D], `step` numbers apart.
DEVICE Query query_of(const u16* first, long long step) {
    const int g = lane_index() >> 2, c = lane_index() & 3, head = TWO_TERMS ? g / 2 : g;
    const u16* const from = first + head * step;
    uint4 own[D / 32];
#pragma unroll
    for (int b = 0; b < D / 32; b++) {
        own[b] = uint4{0, 0, 0, 0};
        if (head < GROUP) own[b] = *(const uint4*)(from + (NUMBER == 1 ? b / 2 * 64 + c * 16 + b % 2 * 8 : b * 32 + c * 8));
    }
#ifdef KV_FP8
    if constexpr (TWO_TERMS) return terms_of(own);
    else
#endif
    {
        Query query;
#pragma unroll
        for (int b = 0; b < D / 32; b++) {
            const uint4 x = own[b];
            query.of[b] = x;
            if (NUMBER == 1)  // paired as even_bytes and odd_bytes pair keys
                query.of[b] = uint4{low_halves(x.x, x.y), high_halves(x.x, x.y), low_halves(x.z, x.w), high_halves(x.z, x.w)};
        }
        return query;
    }
}

// A tile's keys low..high: the running maximum (in powers of two) and sum of weights of heads 2c and 2c+1, and the
// values' weighted sum; TWO_TERMS: of the head c. The sum of weights is this lane's own, of keys g and g + 8.
template <class At>
DEVICE void attend_tile(const uint4* stage, const Query& query, int low, int high, float scale, int lane,
                        float (&o)[D / 64][4][4], float (&most)[2], float (&total)[2]) {
    const int g = lane >> 2, c = lane & 3;
    float even[4] = {}, odd[4] = {};
#ifdef KV_FP8
#pragma unroll
    for (int b = 0; b < D / 64; b++) {
        const uint4 k0 = stage[key_at<At>(g, b * 4 + c)], k1 = stage[key_at<At>(g + 8, b * 4 + c)];
        if constexpr (TWO_TERMS) {
            const uint4 q = query.of[b];
            multiply_add_e4m3(even, k0.x, k1.x, k0.y, k1.y, q.x, q.y);
            multiply_add_e4m3(odd, k0.z, k1.z, k0.w, k1.w, q.z, q.w);
        }
        else {
            const uint4 q0 = query.of[2 * b], q1 = query.of[2 * b + 1];
            multiply_add(even, even_bytes(k0.x), even_bytes(k1.x), odd_bytes(k0.x), odd_bytes(k1.x), q0.x, q0.y);
            multiply_add(odd, even_bytes(k0.y), even_bytes(k1.y), odd_bytes(k0.y), odd_bytes(k1.y), q0.z, q0.w);
            multiply_add(even, even_bytes(k0.z), even_bytes(k1.z), odd_bytes(k0.z), odd_bytes(k1.z), q1.x, q1.y);
            multiply_add(odd, even_bytes(k0.w), even_bytes(k1.w), odd_bytes(k0.w), odd_bytes(k1.w), q1.z, q1.w);
        }
    }
    if (TWO_TERMS) {  // of one head
        scale *= query.inverse;
#pragma unroll
        for (int i = 0; i < 4; i += 2) even[i] += even[i + 1] * 0.0625f, odd[i] += odd[i + 1] * 0.0625f;
    }
    const float upper_scale = scale * scale_of<At>(stage, 0, g), lower_scale = scale * scale_of<At>(stage, 0, g + 8);
#else
    const float upper_scale = scale, lower_scale = scale;
#pragma unroll
    for (int b = 0; b < D / 32; b++) {
        const uint4 k0 = stage[key_at<At>(g, b * 4 + c)], k1 = stage[key_at<At>(g + 8, b * 4 + c)];
        multiply_add(even, k0.x, k1.x, k0.y, k1.y, query.of[b].x, query.of[b].y);
        multiply_add(odd, k0.z, k1.z, k0.w, k1.w, query.of[b].z, query.of[b].w);
    }
#endif

    // Scores in powers of two of keys g and g + 8, and the weights of both.
    const bool upper = g >= low && g <= high, lower = g + 8 >= low && g + 8 <= high;
    float fade[2] = {1.0f, 1.0f}, weight[2][2] = {};
#pragma unroll
    for (int j = 0; j < HEADS_OF_LANE; j++) {
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
    const float upper_value = upper ? scale_of<At>(stage, 1, g) : 0.0f;
    const float lower_value = lower ? scale_of<At>(stage, 1, g + 8) : 0.0f;
#pragma unroll
    for (int j = 0; j < HEADS_OF_LANE; j++) {
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
            for (int j = 0; j < 4; j++)
                if (j % 2 < HEADS_OF_LANE) o[h][r][j] *= fade[j % 2];
        const int at = g + h * 8;
#ifdef KV_FP8
        const auto eight = [&](int key) { return ((const uint2*)(stage + value_at<At>(key, at / 2)))[at % 2]; };
        const uint2 v0 = eight(2 * c), v1 = eight(2 * c + 1), v2 = eight(2 * c + 8), v3 = eight(2 * c + 9);
        add_bytes(o[h][0], low_halves(v0.x, v1.x), low_halves(v2.x, v3.x), b0, b1);
        add_bytes(o[h][1], high_halves(v0.x, v1.x), high_halves(v2.x, v3.x), b0, b1);
        add_bytes(o[h][2], low_halves(v0.y, v1.y), low_halves(v2.y, v3.y), b0, b1);
        add_bytes(o[h][3], high_halves(v0.y, v1.y), high_halves(v2.y, v3.y), b0, b1);
#else
        const uint4 v0 = stage[value_at<At>(2 * c, at)], v1 = stage[value_at<At>(2 * c + 1, at)];
        const uint4 v2 = stage[value_at<At>(2 * c + 8, at)], v3 = stage[value_at<At>(2 * c + 9, at)];
        add_values(o[h][0], v0.x, v1.x, v2.x, v3.x, b0, b1);
        add_values(o[h][1], v0.y, v1.y, v2.y, v3.y, b0, b1);
        add_values(o[h][2], v0.z, v1.z, v2.z, v3.z, b0, b1);
        add_values(o[h][3], v0.w, v1.w, v2.w, v3.w, b0, b1);
#endif
    }
}

// What a warp has found of COUNT heads goes where others can read it: sums [COUNT][D / 4], stats [COUNT] (maximum, sum of
// weights).
template <int COUNT>
DEVICE void keep_found(float4* sums, float2* stats, const float (&o)[D / 64][4][4], const float (&most)[2],
                       float (&total)[2], int lane) {
    const int g = lane >> 2, c = lane & 3;
#pragma unroll
    for (int j = 0; j < HEADS_OF_LANE; j++) {
        total[j] += warp_xor(total[j], 4);
        total[j] += warp_xor(total[j], 8);
        total[j] += warp_xor(total[j], 16);
        const int head = HEADS_OF_LANE * c + j;
        if (head < COUNT) {
            float4* const to = sums + head * (D / 4) + g * 2;
#pragma unroll
            for (int h = 0; h < D / 64; h++) {
                to[h * 16] = float4{o[h][0][j], o[h][0][j + 2], o[h][1][j], o[h][1][j + 2]};
                to[h * 16 + 1] = float4{o[h][2][j], o[h][2][j + 2], o[h][3][j], o[h][3][j + 2]};
            }
            if (g == 0) stats[head] = float2{most[j], total[j]};
        }
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
