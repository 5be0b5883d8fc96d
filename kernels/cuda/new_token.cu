// Heads of a new token between its projection and attention: norm, rotation, and what becomes of a key and a value in
// their pages. A warp has a head; as kernels/triton/rope.py does it.
//
// Compile-time: D, channels of a head; KV_FP8 (attention_tile.cu).

enum Order { ROPE, ROPE_NORM, NORM_ROPE };  // of norms and rotation

// The tables [positions, D], with their rows' distances; the norm's epsilon; a factor on queries and keys.
struct Rotary {
    const float *own, *other;
    long long own_step, other_step;
    float eps, qk_scale;
};

struct Halves { float left[2], right[2]; };  // channels 2l, 2l+1 of a head, and those D / 2 behind them

DEVICE Halves halves_of(u32 left, u32 right) {
    return Halves{{low_half(left), high_half(left)}, {low_half(right), high_half(right)}};
}
DEVICE float or_zero(float value) { return fabsf(value) < float_of(0x7f800000u) ? value : 0.0f; }

DEVICE float head_sum(float value) {
#pragma unroll
    for (int mask = D / 8; mask > 0; mask /= 2) value += warp_xor(value, mask);
    return value;
}

// A position's rows of the rotary table, as far as this lane needs them. Lanes from D / 4 on repeat others.
struct Turn { float own_left[2], own_right[2], other_left[2], other_right[2]; };

DEVICE Turn turn_of(const Rotary& r, int position) {
    const int at = lane_index() % (D / 4) * 2;
    const float* const own = r.own + position * r.own_step + at;
    const float* const other = r.other + position * r.other_step + at;
    const float2 a = *(const float2*)own, b = *(const float2*)(own + D / 2);
    const float2 c = *(const float2*)other, d = *(const float2*)(other + D / 2);
    return Turn{{a.x, a.y}, {b.x, b.y}, {c.x, c.y}, {d.x, d.y}};
}

// The weights of a query-key norm, as far as this lane needs them; null where there are none.
DEVICE Halves weights_of(const u16* weights) {
    if (!weights) return Halves{{1.0f, 1.0f}, {1.0f, 1.0f}};
    const int at = lane_index() % (D / 4) * 2;
    return halves_of(*(const u32*)(weights + at), *(const u32*)(weights + D / 2 + at));
}

// Norm of a head, times the weights, rounded once.
DEVICE Halves normed(const Halves& x, const Halves& weights, float eps) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 2; i++) sum += x.left[i] * x.left[i] + x.right[i] * x.right[i];
    const float factor = inverse_root(head_sum(sum) / D + eps);
    Halves y;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        y.left[i] = rounded(x.left[i] * factor * weights.left[i]);
        y.right[i] = rounded(x.right[i] * factor * weights.right[i]);
    }
    return y;
}

// What kernels/triton/rope.py does to a query or key, rounded where torch would.
DEVICE Halves rotated(Halves x, const Turn& t, const Halves& weights, const Rotary& r, int order) {
    Halves y;
    if (order == NORM_ROPE) x = normed(x, weights, r.eps);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        y.left[i] = rounded(times(x.left[i], t.own_left[i]) + times(x.right[i], t.other_left[i]));
        y.right[i] = rounded(times(x.right[i], t.own_right[i]) + times(x.left[i], t.other_right[i]));
    }
    if (order == ROPE_NORM) y = normed(y, weights, r.eps);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        y.left[i] = rounded(y.left[i] * r.qk_scale);
        y.right[i] = rounded(y.right[i] * r.qk_scale);
    }
    return y;
}

DEVICE void store_halves(u16* head, const Halves& v) {
    const int lane = lane_index();
    if (lane >= D / 4) return;
    *(u32*)(head + lane * 2) = to_bf16_pair(v.left[0], v.left[1]);
    *(u32*)(head + D / 2 + lane * 2) = to_bf16_pair(v.right[0], v.right[1]);
}

// The new token itself, which no tile has, as a find of COUNT heads (attention_tile.cu). queries: [COUNT][D].
template <int COUNT>
DEVICE void attend_new(const u16* queries, const Halves& key, const Halves& value, float score_scale, float4* all_sums,
                       float2* stats) {
    const int lane = lane_index(), at = lane % (D / 4) * 2;
#pragma unroll 1
    for (int head = 0; head < COUNT; head++) {
        const u16* const query = queries + head * D;
        const Halves q = halves_of(*(const u32*)(query + at), *(const u32*)(query + D / 2 + at));
        float score = 0.0f;
#pragma unroll
        for (int i = 0; i < 2; i++) score += times(q.left[i], key.left[i]) + times(q.right[i], key.right[i]);
        score = head_sum(score);
        float* const sums = (float*)(all_sums + head * (D / 4));
        if (lane < D / 4) {
            *(float2*)(sums + at) = float2{value.left[0], value.left[1]};
            *(float2*)(sums + D / 2 + at) = float2{value.right[0], value.right[1]};
        }
        if (lane == 0) stats[head] = float2{score * score_scale, 1.0f};
    }
}

#ifdef KV_FP8
DEVICE float head_max(float value) {
#pragma unroll
    for (int mask = D / 8; mask > 0; mask /= 2) value = fmaxf(value, warp_xor(value, mask));
    return value;
}

// Two e4m3 as bf16. Shifted into bf16's place the exponent, whose bias is 7 where bf16's is 127, is too small by 120;
// the product mends that, also for numbers below the normal ones.
DEVICE u32 from_e4m3(u32 pair) {
    const u32 apart = (pair & 0xffu) | (pair & 0xff00u) << 8;  // a byte in each half
    return multiply_add_pair(and_or(apart << 8, 0x80008000u, apart << 4 & 0x07f007f0u), 0x7b807b80u, 0x80008000u);
}

// A head in bytes, with its scale (kernels/kv8.py). Returns what these stand for.
DEVICE Halves quantized(unsigned char* bytes, u16* scale_to, const Halves& x) {
    const Halves finite = {{or_zero(x.left[0]), or_zero(x.left[1])}, {or_zero(x.right[0]), or_zero(x.right[1])}};
    float largest = 0.0f, spoilt = 0.0f;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        largest = fmaxf(largest, fmaxf(fabsf(finite.left[i]), fabsf(finite.right[i])));
        spoilt += finite.left[i] != x.left[i] || finite.right[i] != x.right[i] ? 1.0f : 0.0f;
    }
    float scale = rounded(fminf(fmaxf(head_max(largest) / 448.0f, float_of(0x00800000u)), float_of(0x7b000000u)));
    const float inverse = 1.0f / scale;
    const u32 left = to_e4m3_pair(finite.left[0] * inverse, finite.left[1] * inverse);
    const u32 right = to_e4m3_pair(finite.right[0] * inverse, finite.right[1] * inverse);
    if (head_max(spoilt) > 0.0f) scale = float_of(0x7fc00000u);
    const int lane = lane_index();
    if (lane < D / 4) {
        *(u16*)(bytes + lane * 2) = (u16)left;
        *(u16*)(bytes + D / 2 + lane * 2) = (u16)right;
    }
    if (lane == 0) *scale_to = to_bf16(scale);
    const auto first = [&](u32 pair) { return low_half(from_e4m3(pair)) * scale; };
    const auto second = [&](u32 pair) { return high_half(from_e4m3(pair)) * scale; };
    return Halves{{first(left), second(left)}, {first(right), second(right)}};
}
#endif
