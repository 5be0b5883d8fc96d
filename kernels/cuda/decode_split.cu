// Rows of x for weights of e4m3, which tensor cores multiply as they are, with e4m3. A row is therefore split in two:
// s x = high + low / 16 with a power of two s for the channels that a warp multiplies of a piece, so that the largest is
// below 256. e4m3 has four bits, the two terms eight, as bf16; what is small beside the largest is off by no more than
// 2^-22 of that.

constexpr int ROW_BYTES = X_ROW * 2;

#ifdef WEIGHT_FP8
constexpr float LOW_SCALE = 16.0f;

// Four channels in the order in which weights have them (in_pairs of kernels/quantize.py).
DEVICE u32 four_bytes(const float (&x)[8], int first) {
    return to_e4m3_pair(x[first], x[first + 2]) | to_e4m3_pair(x[first + 1], x[first + 3]) << 16;
}

// A piece's high terms, then its low ones, whose halves of 128 bytes are the other way round where there are such: so
// lanes that load both at one time find them on different banks.
template <int OWN> DEVICE constexpr int crosswise() { return OWN % 128 ? 0 : 64; }

// A lane's eight channels of each of some parts of x; nothing where it has none.
template <int EACH> struct Eights { uint4 of[EACH]; };

// The largest magnitude of the channels of all lanes, or of each half of them, as the bits of a bf16 number.
template <int EACH, int LANES> DEVICE int largest(const Eights<EACH>& x) {
    u32 most = 0;
#pragma unroll
    for (int i = 0; i < EACH; i++)
        for (const u32 pair : {x.of[i].x, x.of[i].y, x.of[i].z, x.of[i].w})
            most = max(most, max(pair & 0x7fffu, pair >> 16 & 0x7fffu));
    if (LANES == 32) return (int)warp_max(most);
    const bool second = lane_index() >= LANES;
    const u32 of_first = warp_max(second ? 0 : most), of_second = warp_max(second ? most : 0);
    return (int)(second ? of_second : of_first);
}

template <int OWN, int LANES, int EACH> DEVICE void store_terms(unsigned char* to, const Eights<EACH>& x, float scale) {
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        const int item = lane_index() % LANES + i * LANES;
        const uint4 own = x.of[i];
        float v[8] = {low_half(own.x), high_half(own.x), low_half(own.y), high_half(own.y),
                      low_half(own.z), high_half(own.z), low_half(own.w), high_half(own.w)};
#pragma unroll
        for (int k = 0; k < 8; k++) v[k] *= scale;
#pragma unroll
        for (int k = 0; k < 2; k++) {
            const u32 high = four_bytes(v, 4 * k), first = first_two(high), last = last_two(high);
            v[4 * k] = (v[4 * k] - low_half(first)) * LOW_SCALE;
            v[4 * k + 1] = (v[4 * k + 1] - high_half(first)) * LOW_SCALE;
            v[4 * k + 2] = (v[4 * k + 2] - low_half(last)) * LOW_SCALE;
            v[4 * k + 3] = (v[4 * k + 3] - high_half(last)) * LOW_SCALE;
            const int place = crossed(item * 2 + k) * 4;
            if (item >= OWN / 8) continue;
            *(u32*)(to + place) = high;
            *(u32*)(to + OWN + (place ^ crosswise<OWN>())) = four_bytes(v, 4 * k);
        }
    }
}

// In place, by the warps that multiply these channels: PIECES times OWN of each row, STEP behind each other. A few parts
// at a time, none of which waits for another; where half a warp is enough for one, it is.
template <int OWN, int STEP, int PIECES> DEVICE void split() {
    constexpr int PARTS = ROWS * PIECES, LANES = OWN / 8 <= 16 && PARTS > 1 ? 16 : 32, TOGETHER = 32 / LANES;
    constexpr int EACH = (OWN / 8 + LANES - 1) / LANES, TURNS = (PARTS + GROUPS * TOGETHER - 1) / (GROUPS * TOGETHER);
    constexpr int AT_ONCE = TURNS < 4 ? TURNS : 4;
    const int sub = warp_index() % SUBS, lane = lane_index() % LANES, half = lane_index() / LANES;
#pragma unroll 1
    for (int turn = warp_index() / SUBS; turn < TURNS * GROUPS; turn += AT_ONCE * GROUPS) {
        const int first = turn * TOGETHER + half;
        Eights<EACH> x[AT_ONCE];
        int most[AT_ONCE];
        unsigned char* to[AT_ONCE];
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) {
            const int part = min(first + j * GROUPS * TOGETHER, PARTS - 1);
            to[j] = memory<unsigned char>(AT_X) + part / PIECES * ROW_BYTES + (part % PIECES * STEP + sub * OWN) * 2;
#pragma unroll
            for (int i = 0; i < EACH; i++)
                x[j].of[i] = lane + i * LANES < OWN / 8 ? ((const uint4*)to[j])[lane + i * LANES] : uint4{0, 0, 0, 0};
        }
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) most[j] = largest<EACH, LANES>(x[j]);  // by then all have read
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) {
            const int part = first + j * GROUPS * TOGETHER, exponent = max(most[j] >> 7, 8);
            if (part >= PARTS) continue;
            store_terms<OWN, LANES>(to[j], x[j], float_of((u32)(261 - exponent) << 23));
            if (lane > 0) continue;
            const u32 inverse = most[j] < 0x7f80 ? (u32)(exponent - 7) << 23 : 0x7fc00000u;  // what is not finite spoils all
            memory<u32>(AT_INVERSE)[part / PIECES * MOST_PARTS + part % PIECES * SUBS + sub] = inverse;
        }
    }
    if (GROUPS == 1) warp_barrier();
    else group_barrier(2 + sub, GROUPS * 32);
}
#else
template <int OWN, int STEP, int PIECES> DEVICE void split() {}
#endif
