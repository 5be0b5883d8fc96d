// What a weight is made of, and how a load of it, 16 bytes a lane, becomes bf16: a block of channels is four lanes'
// loads. Compile-time: WEIGHT_INT8 or WEIGHT_FP8 for eight bits (kernels/quantize.py).

#if defined(WEIGHT_INT8) || defined(WEIGHT_FP8)
#define SCALED 1
typedef unsigned char Weight;
#else
#define SCALED 0
typedef u16 Weight;
#endif

constexpr int RUN = 16 / sizeof(Weight);     // channels of a load
constexpr int CHANNELS = 4 * RUN;            // of a block
constexpr int HALVES = RUN / 8;              // of a block's share of x, eight channels of every lane

#ifdef WEIGHT_INT8
// Two whole numbers as bf16, each in the low byte of a half. Of 128 + x the lowest seven bits of bf16 are x; the
// eighth bit of a negative number stands for 256 less, and in the other term it makes 256 of 128.
DEVICE u32 two_numbers(u32 low_bytes) {
    const u32 one = 0x43004300u;
    return multiply_add_pair(and_or(low_bytes, 0x00800080u, one), 0xbf80bf80u, and_or(low_bytes, 0x007f007fu, one));
}
DEVICE u32 first_two(u32 four) { return two_numbers(four); }
DEVICE u32 last_two(u32 four) { return two_numbers(four >> 8); }
#endif

#ifdef WEIGHT_FP8
// Two e4m3 as bf16, each in the high byte of a half. Shifted into bf16's place the exponent, whose bias is 7 where
// bf16's is 127, is too small by 120; the product mends that, also for numbers below the normal ones.
DEVICE u32 two_numbers(u32 magnitudes, u32 signs) {
    return multiply_add_pair(and_or(signs, 0x80008000u, magnitudes & 0x07f007f0u), 0x7b807b80u, 0x80008000u);
}
DEVICE u32 first_two(u32 four) { return two_numbers(four << 4, four << 8); }
DEVICE u32 last_two(u32 four) { return two_numbers(four >> 4, four); }
#endif

// A load's channels of one half, eight bf16.
DEVICE uint4 half_of(uint4 w, int half) {
#if SCALED
    const u32 low = half ? w.z : w.x, high = half ? w.w : w.y;
    return uint4{first_two(low), last_two(low), first_two(high), last_two(high)};
#else
    return w;
#endif
}
