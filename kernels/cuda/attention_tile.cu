// Attention of up to eight query heads over one tile of sixteen keys, by a warp; how tiles come into shared memory, and
// how what several warps or blocks have found is put together.
//
// Products: S^T[16 keys, 8 heads] = K Q^T with skinny.cu's order of channels, in which a lane's 16 bytes are four
// operands. O^T[channels, 8 heads] += V^T P^T: a lane holds the same 8 channels of keys 2c, 2c+1, 2c+8 and 2c+9,
// whose halves, paired, are V^T's operands, and ends up with those 8 channels of its heads: 2c and 2c+1, or, of up to
// four heads, which are every second column, c; what is done to scores and weights is then done once.
//
// Compile-time: D, channels of a head (64, 128); GROUP, heads of queries for a head of keys (1 to 8); KV_FP8 for keys and
// values in e4m3, with a scale for each key of a kv head (kernels/kv8.py), by which scores and weights are multiplied. Two
// numbers of them become two f16, which have all e4m3, by one instruction; so the other operands are f16, too.

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

// Where a lane's pieces of a tile lie, in bytes: computed once, for a compiler that would do it for every tile.
template <class At> struct Places {
    int key[2];    // of key g, the pieces c and c + 4; 8 pieces further comes the next of each, 8 rows further key g + 8
    int value[2];  // of value 2c, the channels 8g on, and 64 channels further
    static constexpr int KEYS_ON = 8 * ROW * 16, VALUES_ON = 2 * At::VALUE_PIECES * 16;  // to the keys 8 further
};
DEVICE int kept(int value) { return warp_from(value, lane_index()); }  // and not computed again
template <class At> DEVICE Places<At> places_of_lane() {
    const int g = lane_index() >> 2, c = lane_index() & 3;
    Places<At> places;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        places.key[i] = kept(key_at<At>(g, (i * 4 + c) % ROW) * 16);
        places.value[i] = kept(value_at<At>(2 * c, (g + i * 8) % (D / 8) * NUMBER / 2) * 16 + (NUMBER == 1 ? g % 2 * 8 : 0));
    }
    return places;
}

// Stands for "no key yet": unlike -inf it can be subtracted from itself.
constexpr float LOWEST = -3.0e38f;

// One kv head's keys or values, and their scales. block: two bytes each from page to page, whatever the numbers have;
// scale_block: scales. Both have 31 bits, which kernels/cluster.py sees to.
struct Pages {
    const u16* base;
    int block;
    const u16* scales = nullptr;
    int scale_block = 0;
};

// Where a lane's copies of a Woven tile go, in bytes. It has the same pieces of a row in every second row, or fourth.
struct Targets {
    static constexpr int COPIES = KEY_PIECES / 32, TURNS = ROW / 4;  // of keys, as many of values; whose order takes turns
    int key, value[TURNS], scale;
};
DEVICE Targets targets_of_lane() {
    const int lane = lane_index();
    Targets to;
    to.key = kept(key_at<Woven>(lane / ROW, lane % ROW) * 16);
#pragma unroll
    for (int i = 0; i < Targets::TURNS; i++) to.value[i] = kept(value_at<Woven>((i * 32 + lane) / ROW, lane % ROW) * 16);
    to.scale = (Woven::SCALES_AT + lane) * 16;
    return to;
}

// All lanes bring a tile, for Woven.
DEVICE void copy_tile(unsigned char* stage, const Targets& to, const Pages& keys, const Pages& values, int page, int start) {
    constexpr int KEY = D * NUMBER / 2;  // two bytes each
    const int at = start * KEY + lane_index() * 8;
    const u16* const key = keys.base + ((long long)page * keys.block + at);
    const u16* const value = values.base + ((long long)page * values.block + at);
#pragma unroll
    for (int i = 0; i < Targets::COPIES; i++) {
        copy_in_background(stage + to.key + i * 512, key + i * 256);
        copy_in_background(stage + to.value[i % Targets::TURNS] + i / Targets::TURNS * Targets::TURNS * 512, value + i * 256);
    }
#ifdef KV_FP8
    const int lane = lane_index();
    const u16* const scales = lane < 2 ? keys.scales : values.scales;
    const int block = lane < 2 ? keys.scale_block : values.scale_block;
    if (lane < SCALE_PIECES) copy_in_background(stage + to.scale, scales + ((long long)page * block + start + lane % 2 * 8));
#endif
}

// Values that cannot be seen may be anything, and have weight zero, which would not silence what is not finite.
template <class At> DEVICE void clear_unseen(unsigned char* stage, int low, int high, int lane) {
#pragma unroll 1
    for (int key = 0; key < TILE; key++)
        if ((key < low || key > high) && lane < ROW) ((uint4*)stage)[value_at<At>(key, lane)] = uint4{0, 0, 0, 0};
    order_before_copies();  // the next tile comes to the same place
    warp_barrier();
}

// Sixteen keys' values times their weights b0, b1, for the channels whose pairs are x, y (keys 2c, 2c+1), z, w.
DEVICE void add_values(float (&o)[4], u32 x, u32 y, u32 z, u32 w, u32 b0, u32 b1) {
    multiply_add(o, low_halves(x, y), high_halves(x, y), low_halves(z, w), high_halves(z, w), b0, b1);
}

// SPREAD: each head has two columns of the products. A lane's 16 bytes of a key are four operands as they lie there, of
// which the second and the fourth stand in rows of their own: the other column has what they meet.
constexpr bool SPREAD = GROUP <= 4;
constexpr int HEADS_OF_LANE = SPREAD ? 1 : 2;  // the head c, or 2c and 2c + 1
DEVICE int column_of(int head) { return SPREAD ? 2 * head : head; }

// Queries as attend_tile takes them: what column g has of a lane's channels of a key, 16 bytes of which are 8 or 16. KV_FP8:
// times a power of two that makes f16 of bf16 without a rounding that counts; `inverse` undoes that for this lane's heads.
struct Query {
    static constexpr int PAIRS = SPREAD ? 2 : 4;  // of each 8 channels
    u32 of[D / 32][PAIRS];
#ifdef KV_FP8
    float inverse[HEADS_OF_LANE];
#endif
};

#ifdef KV_FP8
template <class At> DEVICE float scale_of(const unsigned char* stage, int values, int key) {
    return low_half(((const u16*)(stage + At::SCALES_AT * 16))[values * TILE + key]);
}

// As add_values for two channels, whose numbers of keys 2c and 2c+1 are the halves of x, those of the other two of z.
DEVICE void add_bytes(float (&o)[4], u32 x, u32 z, u32 b0, u32 b1) {
    multiply_add_f16(o, f16_of_e4m3(x), f16_of_e4m3(x >> 16), f16_of_e4m3(z), f16_of_e4m3(z >> 16), b0, b1);
}

DEVICE u32 larger_magnitude(u32 most, u32 pair) { return max(most, max(pair & 0x7fffu, pair >> 16 & 0x7fffu)); }

// The largest of a head's numbers then has the exponent 14.
DEVICE void make_f16(uint4 (&own)[D / 32], float (&inverses)[HEADS_OF_LANE]) {
    u32 most = 0;
#pragma unroll
    for (int b = 0; b < D / 32; b++)
        for (const u32 pair : {own[b].x, own[b].y, own[b].z, own[b].w}) most = larger_magnitude(most, pair);
    most = max(most, (u32)bits_of(warp_xor(float_of(most), 1)));
    most = max(most, (u32)bits_of(warp_xor(float_of(most), 2)));
    const u32 exponent = max(most >> 7, 15u);
    const float scale = float_of((268u - exponent) << 23);
    const u32 inverse = most < 0x7f80u ? (exponent - 14) << 23 : 0x7fc00000u;  // what is not finite spoils all
#pragma unroll
    for (int j = 0; j < HEADS_OF_LANE; j++)
        inverses[j] = float_of((u32)warp_from((int)inverse, 4 * column_of(HEADS_OF_LANE * (lane_index() & 3) + j)));
    const auto scaled = [&](u32 pair) { return to_f16_pair(low_half(pair) * scale, high_half(pair) * scale); };
#pragma unroll
    for (int b = 0; b < D / 32; b++)
        own[b] = uint4{scaled(own[b].x), scaled(own[b].y), scaled(own[b].z), scaled(own[b].w)};
}
#endif

// first: the heads' [D], `step` numbers apart.
DEVICE Query query_of(const u16* first, long long step) {
    const int g = lane_index() >> 2, c = lane_index() & 3, head = SPREAD ? g / 2 : g;
    const u16* const from = first + head * step;
    uint4 own[D / 32];
#pragma unroll
    for (int b = 0; b < D / 32; b++) {
        own[b] = uint4{0, 0, 0, 0};
        if (head < GROUP) own[b] = *(const uint4*)(from + (NUMBER == 1 ? b / 2 * 64 + c * 16 + b % 2 * 8 : b * 32 + c * 8));
    }
    Query query;
#ifdef KV_FP8
    make_f16(own, query.inverse);
#endif
#pragma unroll
    for (int b = 0; b < D / 32; b++) {
        const u32 pairs[4] = {own[b].x, own[b].y, own[b].z, own[b].w};
#pragma unroll
        for (int i = 0; i < Query::PAIRS; i++) query.of[b][i] = SPREAD ? (g % 2 ? pairs[2 * i + 1] : pairs[2 * i]) : pairs[i];
    }
    return query;
}

// A lane's 16 bytes of a key as operands of products, eight channels at a time.
#ifdef KV_FP8
constexpr int PARTS = 2;
DEVICE uint4 operands(uint4 key, int part) {
    const u32 low = part ? key.z : key.x, high = part ? key.w : key.y;
    return uint4{f16_of_e4m3(low), f16_of_e4m3(low >> 16), f16_of_e4m3(high), f16_of_e4m3(high >> 16)};
}
DEVICE void multiply_keys(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    multiply_add_f16(d, a0, a1, a2, a3, b0, b1);
}
#else
constexpr int PARTS = 1;
DEVICE uint4 operands(uint4 key, int) { return key; }
DEVICE void multiply_keys(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    multiply_add(d, a0, a1, a2, a3, b0, b1);
}
#endif

// Products of keys g, and of keys g + 8, with what a column has of queries; or, of both, those of the first four channels
// and of the others. In the end the scores of this lane's heads are the sums that `scores_of` makes of them.
DEVICE void add_scores(float (&first)[4], float (&second)[4], uint4 k0, uint4 k1, const u32 (&q)[Query::PAIRS]) {
    if constexpr (SPREAD) {
        multiply_keys(first, k0.x, k0.y, k0.z, k0.w, q[0], q[1]);
        multiply_keys(second, k1.x, k1.y, k1.z, k1.w, q[0], q[1]);
    }
    else {
        multiply_keys(first, k0.x, k1.x, k0.y, k1.y, q[0], q[1]);
        multiply_keys(second, k0.z, k1.z, k0.w, k1.w, q[2], q[3]);
    }
}
template <class At>
DEVICE void score_tile(const unsigned char* stage, const Places<At>& places, const Query& query, float (&first)[4],
                       float (&second)[4]) {
#pragma unroll
    for (int b = 0; b < ROW / 4; b++) {
        const unsigned char* const at = stage + places.key[b % 2] + b / 2 * 128;
        const uint4 k0 = *(const uint4*)at, k1 = *(const uint4*)(at + Places<At>::KEYS_ON);
#pragma unroll
        for (int part = 0; part < PARTS; part++)
            add_scores(first, second, operands(k0, part), operands(k1, part), query.of[b * PARTS + part]);
    }
}
// Of the lane's head j: keys g and g + 8.
DEVICE float2 scores_of(const float (&first)[4], const float (&second)[4], int j) {
    return SPREAD ? float2{first[0] + first[3], second[0] + second[3]}
                  : float2{first[j] + second[j], first[j + 2] + second[j + 2]};
}

// A tile's values times weights, in the tensor cores' order.
template <class At>
DEVICE void add_tile(const unsigned char* stage, const Places<At>& places, u32 b0, u32 b1, float (&o)[D / 64][4][4]) {
#pragma unroll
    for (int h = 0; h < D / 64; h++) {
        const unsigned char* const early = stage + (NUMBER == 1 ? places.value[h] : places.value[0] + h * 128);
        const unsigned char* const late = early + Places<At>::VALUES_ON;
#ifdef KV_FP8
        const auto eight = [](const unsigned char* at) { return *(const uint2*)at; };
        const uint2 v0 = eight(early), v1 = eight(early + ROW * 16), v2 = eight(late), v3 = eight(late + ROW * 16);
        add_bytes(o[h][0], low_bytes(v0.x, v1.x), low_bytes(v2.x, v3.x), b0, b1);
        add_bytes(o[h][1], high_bytes(v0.x, v1.x), high_bytes(v2.x, v3.x), b0, b1);
        add_bytes(o[h][2], low_bytes(v0.y, v1.y), low_bytes(v2.y, v3.y), b0, b1);
        add_bytes(o[h][3], high_bytes(v0.y, v1.y), high_bytes(v2.y, v3.y), b0, b1);
#else
        const auto sixteen = [](const unsigned char* at) { return *(const uint4*)at; };
        const uint4 v0 = sixteen(early), v1 = sixteen(early + ROW * 16), v2 = sixteen(late), v3 = sixteen(late + ROW * 16);
        add_values(o[h][0], v0.x, v1.x, v2.x, v3.x, b0, b1);
        add_values(o[h][1], v0.y, v1.y, v2.y, v3.y, b0, b1);
        add_values(o[h][2], v0.z, v1.z, v2.z, v3.z, b0, b1);
        add_values(o[h][3], v0.w, v1.w, v2.w, v3.w, b0, b1);
#endif
    }
}

// What a warp has found of its tiles: of this lane's heads the running maximum of scores (in powers of two), the sum of
// weights, which is of keys g and g + 8 alone, and the values' weighted sum.
struct Found {
    float o[D / 64][4][4] = {};
    float most[2] = {LOWEST, LOWEST}, total[2] = {0.0f, 0.0f};
#ifdef KV_FP8
    // Of the largest scale of values (positive or no number) plus 127: `o` is 2^141 / 2^exponent as much, so that f16 has
    // weights times scales: no coarser than bf16 down to 2^-28 of the largest scale, and lost from 2^-38 on.
    int exponent = 15;
#endif
};

// A tile's keys low..high.
template <class At>
DEVICE void attend_tile(const unsigned char* stage, const Places<At>& places, const Query& query, int low, int high,
                        float scale, int lane, Found& found) {
    const int g = lane >> 2;
    float first[4] = {}, second[4] = {};
    score_tile(stage, places, query, first, second);
#ifdef KV_FP8
    const float upper_scale = scale_of<At>(stage, 0, g), lower_scale = scale_of<At>(stage, 0, g + 8);
#else
    const float upper_scale = 1.0f, lower_scale = 1.0f;
#endif

    // Scores in powers of two of keys g and g + 8, and the weights of both.
    const bool upper = g >= low && g <= high, lower = g + 8 >= low && g + 8 <= high;
    float fade[2] = {1.0f, 1.0f}, weight[2][2] = {};
#pragma unroll
    for (int j = 0; j < HEADS_OF_LANE; j++) {
#ifdef KV_FP8
        const float own = scale * query.inverse[j];
#else
        const float own = scale;
#endif
        const float2 score = scores_of(first, second, j);
        const float a = upper ? score.x * (own * upper_scale) : LOWEST, b = lower ? score.y * (own * lower_scale) : LOWEST;
        float peak = fmaxf(a, b);
        peak = fmaxf(peak, warp_xor(peak, 4));
        peak = fmaxf(peak, warp_xor(peak, 8));
        peak = fmaxf(peak, warp_xor(peak, 16));
        peak = fmaxf(peak, found.most[j]);
        fade[j] = power_of_two(found.most[j] - peak);
        weight[0][j] = power_of_two(a - peak);
        weight[1][j] = power_of_two(b - peak);
        found.most[j] = peak;
    }
#ifdef KV_FP8
    // Scales of unseen keys may be anything.
    const float upper_value = upper ? scale_of<At>(stage, 1, g) : 0.0f;
    const float lower_value = lower ? scale_of<At>(stage, 1, g + 8) : 0.0f;
    const int before = found.exponent;
    found.exponent = max(before, (int)(warp_max(max(bits_of(upper_value), bits_of(lower_value))) >> 23));
    const float scaled = float_of((u32)(268 - found.exponent) << 23);
    const float again = float_of((u32)max(127 + before - found.exponent, 0) << 23);
#pragma unroll
    for (int j = 0; j < HEADS_OF_LANE; j++) {
        found.total[j] = found.total[j] * fade[j] + (weight[0][j] + weight[1][j]);
        fade[j] *= again;
        weight[0][j] *= upper_value * scaled;
        weight[1][j] *= lower_value * scaled;
    }
    const u32 w0 = to_f16_pair(weight[0][0], weight[0][1]), w1 = to_f16_pair(weight[1][0], weight[1][1]);
#else
    const u32 w0 = to_bf16_pair(weight[0][0], weight[0][1]), w1 = to_bf16_pair(weight[1][0], weight[1][1]);
    // The sum is that of the rounded weights, so that what values are multiplied by adds up to one.
    found.total[0] = found.total[0] * fade[0] + (low_half(w0) + low_half(w1));
    if (!SPREAD) found.total[1] = found.total[1] * fade[1] + (high_half(w0) + high_half(w1));
#endif
#pragma unroll
    for (int h = 0; h < D / 64; h++)
#pragma unroll
        for (int r = 0; r < 4; r++)
#pragma unroll
            for (int j = 0; j < 4; j++)
                if (j % 2 < HEADS_OF_LANE) found.o[h][r][j] *= fade[j % 2];
    add_tile(stage, places, transpose(w0), transpose(w1), found.o);
}

// What a warp has found of COUNT heads goes where others can read it: sums [COUNT][D / 4], stats [COUNT] (maximum, sum of
// weights).
template <int COUNT> DEVICE void keep_found(float4* sums, float2* stats, const Found& found, int lane) {
    const int g = lane >> 2, c = lane & 3;
#ifdef KV_FP8
    const float unscaled = float_of((u32)(found.exponent - 14) << 23);
#else
    const float unscaled = 1.0f;
#endif
#pragma unroll
    for (int j = 0; j < HEADS_OF_LANE; j++) {
        float total = found.total[j];
        total += warp_xor(total, 4);
        total += warp_xor(total, 8);
        total += warp_xor(total, 16);
        const int head = HEADS_OF_LANE * c + j;
        if (head < COUNT) {
            float4* const to = sums + head * (D / 4) + g * 2;
#pragma unroll
            for (int h = 0; h < D / 64; h++)
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    const float (&x)[4] = found.o[h][2 * i], (&y)[4] = found.o[h][2 * i + 1];
                    to[h * 16 + i] = float4{x[j] * unscaled, x[j + 2] * unscaled, y[j] * unscaled, y[j + 2] * unscaled};
                }
            if (g == 0) stats[head] = float2{found.most[j], total};
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
