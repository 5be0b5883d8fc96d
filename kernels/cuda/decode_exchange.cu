// What the blocks of a decode step (decode_network.cu) give to each other, and how they wait for it.

struct Clock {
    u64 begun;
    u32* failed;
};

// Whether to stop waiting: this block, or another one, has waited for too long.
SHARED_CODE bool impatient() {
    const Clock clock = *memory<Clock>(AT_CLOCK);
    if (load_volatile(clock.failed)) return true;
    if (nanoseconds() - clock.begun < PATIENCE) return false;
    store_volatile(clock.failed, 1u);
    return true;
}

struct Wait { int looks = 0; };
DEVICE bool goes_on(Wait& wait) { return ++wait.looks % 64 || !impatient(); }

// Where a chunk is: its slot, and how often the ring has gone round before. One division for those that come together.
struct Place { int chunk, slot, turn; };
DEVICE Place place_of(int chunk) { return Place{chunk, chunk % SLOTS, chunk / SLOTS}; }
DEVICE Place behind(const Place& first, int count) {
    const int slot = first.slot + count, again = slot >= SLOTS;
    return Place{first.chunk + count, slot - again * SLOTS, first.turn + again};
}

// Whether a chunk has come. Parity alone would let a warp pass that is a round early: the number says whether the slot is
// this chunk's already, and is looked at first, for it changes before the barrier does.
DEVICE bool landed(const Place& place) {
    return number_in(place.slot) == place.chunk && try_barrier(full_of(place.slot), place.turn & 1);
}
// The same without a branch and without waiting, for several to be looked at together.
DEVICE bool has_landed(const Place& place) {
    const bool own = number_in(place.slot) == place.chunk;
    return test_barrier(full_of(place.slot), place.turn & 1) & own;
}

// False where they have not come: then their slots are not this block's to give back.
template <int COUNT> DEVICE bool wait_for_chunks(const Place& first) {
    const u32 begun = watch();
    bool ready[COUNT], all = true;
#pragma unroll
    for (int i = 0; i < COUNT; i++) ready[i] = has_landed(behind(first, i));
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        Wait wait;
        while (!ready[i] && goes_on(wait)) ready[i] = landed(behind(first, i));
        all &= ready[i];
    }
    spent(ON_WEIGHTS, begun);
    return all;
}

DEVICE void post(const Step& s, int place, int peer, u32 value, u32 tag) {
#ifdef CLUSTERED
    put_to_peer(memory<Word>(AT_MAIL) + place, peer, value, tag);
#else
    put(s.mail + (team_index() * TEAM + peer) * (long long)MAIL + place, value, tag);
#endif
}

// Two neighbouring words, the first of which has an even place.
DEVICE void post2(const Step& s, int place, int peer, float first, float second, u32 tag) {
#ifdef CLUSTERED
    put_to_peer(memory<Word>(AT_MAIL) + place, peer, bits_of(first), tag);
    put_to_peer(memory<Word>(AT_MAIL) + place + 1, peer, bits_of(second), tag);
#else
    put2(s.mail + (team_index() * TEAM + peer) * (long long)MAIL + place, bits_of(first), bits_of(second), tag);
#endif
}

DEVICE Word look(const Step& s, int place) {
#ifdef CLUSTERED
    return get_shared(memory<Word>(AT_MAIL) + place);
#else
    return get(s.mail + block_index() * (long long)MAIL + place);
#endif
}

DEVICE void look2(const Step& s, int place, u32 (&w)[4]) {
#ifdef CLUSTERED
    get2_shared(memory<Word>(AT_MAIL) + place, w);
#else
    get2(s.mail + block_index() * (long long)MAIL + place, w);
#endif
}

DEVICE bool has(const u32 (&w)[4], u32 tag) { return w[1] == tag && w[3] == tag; }

// Two words of the mail, as floats.
DEVICE float2 collect(const Step& s, int place, u32 tag) {
    const u32 begun = watch();
    u32 w[4];
    Wait wait;
    do look2(s, place, w);
    while (!has(w, tag) && goes_on(wait));
    spent(ON_TEAM, begun);
    return float2{float_of(w[0]), float_of(w[2])};
}

DEVICE u32 await(const Word* address, u32 tag) {
    Word word;
    Wait wait;
    do word = get(address);
    while (word.high != tag && goes_on(wait));
    return word.low;
}

// Until this word has that tag or a later one.
DEVICE void await_past(const Word* address, u32 tag) {
    Wait wait;
    while ((int)(get(address).high - tag) < 0 && goes_on(wait)) {}
}

DEVICE float warp_sum(float value) {
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) value += warp_xor(value, mask);
    return value;
}

// Of four channels, rounded in an order that is not the compiler's choice (see scaled_and_added).
DEVICE float squares_of(u32 first, u32 second) {
    const float a = low_half(first), b = high_half(first), c = low_half(second), d = high_half(second);
    return fmaf(a, a, fmaf(b, b, fmaf(c, c, d * d)));
}

// An even word of a row and the next.
DEVICE void store_inputs(int row, int word, u32 first, u32 second) {
    u32* const x = (u32*)(memory<u16>(AT_X) + row * X_ROW);
    x[placed(word)] = first;
    x[placed(word + 1)] = second;
}

// Words of an exchange, or zeros for what is not there. All are asked for together, and again until they have come.
template <int COUNT> DEVICE void await_words(const Word* const (&from)[COUNT], const bool (&there)[COUNT], u32 tag, u32 (&w)[COUNT][4]) {
#pragma unroll
    for (int j = 0; j < COUNT; j++) {
        w[j][0] = w[j][2] = 0;
        w[j][1] = w[j][3] = there[j] ? tag - 1 : tag;
    }
    const u32 begun = watch();
    bool missing;
    Wait wait;
    do {
        missing = false;
#pragma unroll
        for (int j = 0; j < COUNT; j++)
            if (!has(w[j], tag)) get2(from[j], w[j]);
#pragma unroll
        for (int j = 0; j < COUNT; j++) missing |= !has(w[j], tag);
    } while (missing && goes_on(wait));
    spent(ON_WORDS, begun);
}

// The sum of squares of SQUARED channels, of which each lane of a warp has two words.
DEVICE void keep_squares(int which, u32 first, u32 second) {
    const float sum = warp_sum(squares_of(first, second));
    if (lane_index() == 0) memory<float>(AT_SQUARES)[which] = sum;
}

// K channels of every row into shared memory, with sums of squares where these are wanted. words: [ROWS][stride]; channels
// from `limit` on are zero. Ends with all consumers having written.
template <int K> DEVICE void gather(const Word* words, int stride, int limit, u32 tag, bool squared) {
    constexpr int QUAD_ROW = K / 4, ITEMS = ROWS * QUAD_ROW, EACH = (ITEMS + THREADS - 1) / THREADS;
    constexpr int AT_ONCE = EACH < 8 ? EACH : 8;
#pragma unroll 1
    for (int first = thread_index(); first < EACH * THREADS; first += AT_ONCE * THREADS) {
        u32 w[AT_ONCE][4];
        const Word* from[AT_ONCE];
        bool there[AT_ONCE];
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) {
            const int item = first + j * THREADS, at = item % QUAD_ROW;
            there[j] = item < ITEMS && at * 4 < limit;
            from[j] = words + (there[j] ? item / QUAD_ROW * stride + at * 2 : 0);
        }
        await_words(from, there, tag, w);
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) {
            const int item = first + j * THREADS;
            if (item >= ITEMS) continue;
            store_inputs(item / QUAD_ROW, item % QUAD_ROW * 2, w[j][0], w[j][2]);
            if (squared) keep_squares(item / (SQUARED / 4), w[j][0], w[j][2]);
        }
    }
    consumers_meet();
}

DEVICE constexpr int power_above(int count) {
    int power = 1;
    while (power < count) power *= 2;
    return power;
}

// COUNT sums over a warp, as warp_sum gives them, with as many exchanges as one takes and COUNT more. Which of them a lane
// has is in its highest bits.
template <int COUNT> DEVICE float warp_sums(const float (&values)[COUNT]) {
    constexpr int ALL = power_above(COUNT);
    float v[ALL];
#pragma unroll
    for (int i = 0; i < ALL; i++) v[i] = i < COUNT ? values[i] : 0.0f;
    const int lane = lane_index();
#pragma unroll
    for (int mask = 16, count = ALL / 2; mask > 0; mask /= 2, count /= 2) {
        if (count == 0) v[0] += warp_xor(v[0], mask);
#pragma unroll
        for (int i = 0; i < ALL / 2; i++) {
            if (i >= count) continue;
            const bool high = lane & mask;
            v[i] = (high ? v[i + count] : v[i]) + warp_xor(high ? v[i] : v[i + count], mask);
        }
    }
    return v[0];
}

// The same where each warp brings the channels that it multiplies, and waits for no others: `pieces` times OWN of every
// row, STEP behind each other.
template <int OWN, int STEP, int PIECES> DEVICE void gather_own(const Word* words, int stride, int limit, u32 tag, bool squared) {
    constexpr int RUNS = OWN / SQUARED, OF_ROW = PIECES * RUNS, ITEMS = ROWS * OF_ROW;
    constexpr int EACH = (ITEMS + GROUPS - 1) / GROUPS, AT_ONCE = EACH < 8 ? EACH : 8;
    const int sub = warp_index() % SUBS, group = warp_index() / SUBS, lane = lane_index();
#pragma unroll 1
    for (int first = group; first < ITEMS; first += AT_ONCE * GROUPS) {
        u32 w[AT_ONCE][4];
        const Word* from[AT_ONCE];
        bool there[AT_ONCE];
        int channel[AT_ONCE];
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) {
            const int item = first + j * GROUPS, run = item % OF_ROW;
            channel[j] = run / RUNS * STEP + sub * OWN + run % RUNS * SQUARED;
            there[j] = item < ITEMS && channel[j] + lane * 4 < limit;
            from[j] = words + (there[j] ? item / OF_ROW * stride + channel[j] / 2 + lane * 2 : 0);
        }
        await_words(from, there, tag, w);
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) {
            const int item = first + j * GROUPS, row = item / OF_ROW;
            if (item >= ITEMS) continue;
            store_inputs(row, channel[j] / 2 + lane * 2, w[j][0], w[j][2]);
        }
        if (!squared) continue;
        float squares[AT_ONCE];
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) squares[j] = squares_of(w[j][0], w[j][2]);
        constexpr int LANES = 32 / power_above(AT_ONCE);  // that have the same sum
        const float sum = warp_sums(squares);
        const int item = first + lane / LANES * GROUPS, run = item % OF_ROW;
        if (lane % LANES == 0 && lane / LANES < AT_ONCE && item < ITEMS)
            memory<float>(AT_SQUARES)[(item / OF_ROW * STEP * PIECES + run / RUNS * STEP + sub * OWN) / SQUARED + run % RUNS] = sum;
    }
    if (GROUPS == 1) warp_barrier();
    else group_barrier(2 + sub, GROUPS * 32);
}

// The same without sums of squares, for runs of any length.
template <int OWN, int STEP, int RUNS> DEVICE void gather_runs(const Word* words, int stride, int limit, u32 tag) {
    constexpr int OF_RUN = OWN / 4, OF_ROW = RUNS * OF_RUN, ITEMS = ROWS * OF_ROW, LANES = GROUPS * 32;
    constexpr int EACH = (ITEMS + LANES - 1) / LANES, AT_ONCE = EACH < 8 ? EACH : 8;
    const int sub = warp_index() % SUBS, group = GROUPS == 1 ? 0 : warp_index() / SUBS;
#pragma unroll 1
    for (int first = group * 32 + lane_index(); first < EACH * LANES; first += AT_ONCE * LANES) {
        u32 w[AT_ONCE][4];
        const Word* from[AT_ONCE];
        bool there[AT_ONCE];
        auto channel_of = [&](int item) { return item % OF_ROW / OF_RUN * STEP + sub * OWN + item % OF_RUN * 4; };
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) {
            const int item = first + j * LANES, channel = channel_of(item);
            there[j] = item < ITEMS && channel < limit;
            from[j] = words + (there[j] ? item / OF_ROW * stride + channel / 2 : 0);
        }
        await_words(from, there, tag, w);
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) {
            const int item = first + j * LANES;
            if (item < ITEMS) store_inputs(item / OF_ROW, channel_of(item) / 2, w[j][0], w[j][2]);
        }
    }
    if (GROUPS == 1) warp_barrier();
    else group_barrier(2 + sub, GROUPS * 32);
}

// All channels of the rows that the step begins with.
DEVICE void gather_first(const u16* x, long long stride, int count) {
#pragma unroll 1
    for (int item = thread_index(); item < ROWS * WIDTH / 4; item += THREADS) {
        const int row = item / (WIDTH / 4), at = item % (WIDTH / 4) * 4;
        const uint2 v = row < count ? *(const uint2*)(x + row * stride + at) : uint2{0, 0};
        store_inputs(row, at / 2, v.x, v.y);
        keep_squares(item / (SQUARED / 4), v.x, v.y);
    }
    consumers_meet();
}

// 1 / the root of the mean of squares of a row of WIDTH channels, which has been gathered.
DEVICE float norm_factor(int row, float eps) {
    const float* const squares = memory<float>(AT_SQUARES) + row * (WIDTH / SQUARED);
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < WIDTH / SQUARED; i++) sum += squares[i];
    return inverse_root(sum / WIDTH + eps);
}

// Two neighbouring channels of the residual stream, as they were before this layer: asked for early, and waited for when
// they are needed. What the step begins with can be read only then: a kernel of a chain may start before it is there.
DEVICE Word residual(const Step& s, int index, int place) { return index > 0 ? get(s.stream + place) : Word{0, 0}; }
DEVICE u32 arrived(Word asked, const Word* address, u32 tag) { return asked.high == tag ? asked.low : await(address, tag); }
DEVICE u32 residual_arrived(const Step& s, Word asked, int index, int row, int channel, u32 tag) {
    if (index > 0) return arrived(asked, s.stream + (row * WIDTH + channel) / 2, tag);
    return row < s.count ? *(const u32*)(s.x + row * s.x_stride + channel) : 0;
}
