// Products of a decode step's rows with a weight that comes through the ring.

DEVICE constexpr int pieces_of(int k) {
    int pieces = 1;
    while (k % pieces || k / pieces > MOST_CHANNELS || k / pieces % (SUBS * CHANNELS)) pieces++;
    return pieces;
}

// Runs of channels that are copied together: as many as a slot has room for, of eight bits in pairs of halves, for these
// take more instructions.
DEVICE constexpr int span_of(int run, int runs) {
    int span = larger(MOST_CHANNELS / (SCALED ? 2 : 1) / run, 1);
    while (runs % span) span--;
    return span;
}

// How rows of K channels are cut into chunks: `pieces` of each row; of a piece eight rows in one slot, where there is
// room, or in two. All warps share a run of channels. That is a piece; where a row is cut into SHARES, whose sums are kept
// apart, each of them has the runs that it would have as a row of its own, and a piece is a few.
template <int K, int SHARES = 1> struct Cut {
    static constexpr int inputs = K, shares = SHARES;
    static constexpr int run = K / SHARES / pieces_of(K / SHARES), runs = K / run;
    static constexpr int span = SHARES == 1 ? 1 : span_of(run, runs);
    static constexpr int pieces = runs / span, channels = K / pieces, blocks = channels / SUBS / CHANNELS;
    static constexpr bool paired = 2 * HALF * channels * (int)sizeof(Weight) <= CHUNK_BYTES;
    static constexpr int chunks = pieces * (paired ? 2 : 4);  // of a unit
    static constexpr int parts = runs * SUBS;                 // sums of a unit
    static constexpr int round = PARTIALS / parts;            // units whose sums have room
    static constexpr int own = run / SUBS;                    // channels of a run that a warp multiplies
    static_assert(round > 0, "the sums of a unit have no room");
};
// Pieces of rows that have so many blocks of channels for each warp.
template <int BLOCKS_> struct Piece {
    static constexpr int channels = BLOCKS_ * SUBS * CHANNELS, bytes = channels * (int)sizeof(Weight);
    static constexpr int second = HALF * bytes + SKEW;        // of two halves, where they share a slot
};

// A lane's share of the weights of a piece: of its row of the first eight and of the others.
template <int BLOCKS_> struct Held { uint4 upper[BLOCKS_], lower[BLOCKS_]; };

DEVICE constexpr int chunks_of_piece(bool paired) { return paired ? 2 : 4; }

// Where a lane's rows of a piece are that begins with this chunk. Of rows 0..3 and 4..7 in turn: neighbours come from
// different halves.
struct Rows { const unsigned char* at[2]; };

template <int BLOCKS_, bool PAIRED, int SPAN> DEVICE Rows rows_of(const Place& first) {
    using P = Piece<BLOCKS_>;
    const int lane = lane_index(), g = lane >> 2, c = lane & 3, sub = warp_index() % SUBS;
    const int own = (g >> 1) * P::bytes + (sub * (BLOCKS_ / SPAN) * 4 + c) * 16 + (PAIRED && g & 1 ? P::second : 0);
    Rows rows;
#pragma unroll
    for (int i = 0; i < 2; i++) rows.at[i] = slot_of(behind(first, PAIRED ? i : 2 * i + (g & 1)).slot) + own;
    return rows;
}

// Where a warp's blocks are in its rows: so many of each run.
template <int BLOCKS_, int SPAN> DEVICE constexpr int place_of_block(int block) {
    constexpr int EACH = BLOCKS_ / SPAN;
    return block / EACH * (Piece<BLOCKS_>::bytes / SPAN) + block % EACH * 64;
}

DEVICE void release(const Place& first, int count, bool landed) {
    warp_barrier();
    if (lane_index() < count && landed) arrive(empty_of(behind(first, lane_index()).slot));
}

template <int BLOCKS_, bool PAIRED> DEVICE void hold(Held<BLOCKS_>& held, int chunk) {
    constexpr int EACH = chunks_of_piece(PAIRED);
    const Place first = place_of(chunk);
    const bool landed = wait_for_chunks<EACH>(first);
    const Rows rows = rows_of<BLOCKS_, PAIRED, 1>(first);
#pragma unroll
    for (int j = 0; j < BLOCKS_; j++) {
        held.upper[j] = *(const uint4*)(rows.at[0] + j * 64);
        held.lower[j] = *(const uint4*)(rows.at[1] + j * 64);
    }
    release(first, EACH, landed);
}

// Sums of products of a lane's two rows of the weight. Of four numbers the first and the last count: the row with vector c
// of each four, its first and third runs of channels, and its second and fourth.
struct Sums { float upper[COLUMNS][4], lower[COLUMNS][4]; };

// Where products with this tag leave their sums. The next product's tag is another modulo two; where a block has no outputs
// of attention it is not, but then attention itself, in which all warps meet, lies between the two.
DEVICE float* partials(u32 tag) { return memory<float>(AT_PARTIAL) + tag % PRODUCTS * PARTIALS * ROWS * UNIT; }

// Where shares are summed, lanes read the same place of eight runs at one time: they are turned to different banks.
template <bool TURNED> DEVICE int turn_of_run(int run) { return TURNED ? (run & 7) * 4 : 0; }

#ifdef WEIGHT_FP8
// Where this lane's channels of x are: of the vector of its column, each second run of four.
template <int OWN> DEVICE const unsigned char* own_inputs() {
    const int g = lane_index() >> 2, c = lane_index() & 3, sub = warp_index() % SUBS, vector = g / 2;
    const int row = vector / 2 < ROWS ? vector / 2 : 0;
    return memory<unsigned char>(AT_X) + row * ROW_BYTES + sub * OWN * 2 + vector % 2 * OWN + c * RUN + g % 2 * 8;
}

template <int OWN> DEVICE void add_block(Sums& sums, int block, uint4 upper, uint4 lower, const unsigned char* x) {
    const int turned = (lane_index() >> 3 & 1) * crosswise<OWN>();
#pragma unroll
    for (int t = 0; t < COLUMNS; t++) {
        const uint2 v = *(const uint2*)(x + t * 2 * ROW_BYTES + (block * 64 + (block % 2 ? -turned : turned)));
        multiply_add_e4m3(sums.upper[t], upper.x, upper.y, upper.z, upper.w, v.x, v.y);
        multiply_add_e4m3(sums.lower[t], lower.x, lower.y, lower.z, lower.w, v.x, v.y);
    }
}

DEVICE void store_sums(const Sums& sums, int part, int piece, u32 tag, int turn) {
    const int lane = lane_index(), g = lane >> 2, c = lane & 3, row = (g >> 1) + (g & 1) * HALF, sub = warp_index() % SUBS;
    float* const to = partials(tag);
    const int at = (part * SUBS + sub) * ROWS * UNIT + row;
#pragma unroll
    for (int t = 0; t < COLUMNS; t++) {
        const int entry = t * 2 + c / 2;
        const float upper = sums.upper[t][0] + sums.upper[t][3], lower = sums.lower[t][0] + sums.lower[t][3];
        const float upper_low = warp_xor(upper, 1), lower_low = warp_xor(lower, 1);
        if (entry >= ROWS || c % 2) continue;
        const float inverse = memory<float>(AT_INVERSE)[entry * MOST_PARTS + piece * SUBS + sub];
        to[(at + entry * UNIT) ^ turn] = (upper + upper_low / LOW_SCALE) * inverse;
        to[(at + entry * UNIT + 8) ^ turn] = (lower + lower_low / LOW_SCALE) * inverse;
    }
}
#else
// Where this lane's channels of x are: of row g / 2 of each four, the words of its column. What columns of rows that there
// are not give is left.
template <int OWN> DEVICE const unsigned char* own_inputs() {
    const int g = lane_index() >> 2, c = lane_index() & 3, sub = warp_index() % SUBS, row = g / 2 < ROWS ? g / 2 : 0;
    return memory<unsigned char>(AT_X) + row * ROW_BYTES + (sub * OWN + c * RUN + g % 2 * 4) * 2;
}

template <int OWN> DEVICE void add_block(Sums& sums, int block, uint4 upper, uint4 lower, const unsigned char* x) {
#pragma unroll
    for (int half = 0; half < HALVES; half++) {
        const uint4 a = half_of(upper, half), b = half_of(lower, half);
#pragma unroll
        for (int t = 0; t < COLUMNS; t++) {
            const uint2 v = *(const uint2*)(x + t * 4 * ROW_BYTES + (block * CHANNELS + half * 8) * 2);
            multiply_add(sums.upper[t], a.x, a.y, a.z, a.w, v.x, v.y);
            multiply_add(sums.lower[t], b.x, b.y, b.z, b.w, v.x, v.y);
        }
    }
}

DEVICE void store_sums(const Sums& sums, int part, int, u32 tag, int turn) {
    const int lane = lane_index(), g = lane >> 2, c = lane & 3, row = (g >> 1) + (g & 1) * HALF;
    float* const to = partials(tag);
    const int at = (part * SUBS + warp_index() % SUBS) * ROWS * UNIT + row;
#pragma unroll
    for (int t = 0; t < COLUMNS; t++) {
        const int entry = t * 4 + c;
        if (entry >= ROWS) continue;
        to[(at + entry * UNIT) ^ turn] = sums.upper[t][0] + sums.upper[t][3];
        to[(at + entry * UNIT + 8) ^ turn] = sums.lower[t][0] + sums.lower[t][3];
    }
}
#endif

// Each warp's shares of the pieces that are its group's, from the `done`th on, times the rows of x, into AT_PARTIAL.
template <int BLOCKS_, bool PAIRED, int SPAN, bool TURNED>
DEVICE void multiply(int chunk, int units, int pieces, int done, u32 tag) {
    constexpr int EACH = chunks_of_piece(PAIRED), RUN_BLOCKS = BLOCKS_ / SPAN, OWN = RUN_BLOCKS * CHANNELS;
    const unsigned char* const x = own_inputs<OWN>();
#pragma unroll 1
    for (int part = done + warp_index() / SUBS, piece = part; part < units * pieces; part += GROUPS, piece += GROUPS) {
        while (piece >= pieces) piece -= pieces;  // of its unit
        const Place first = place_of(chunk + part * EACH);
        const bool landed = wait_for_chunks<EACH>(first);
        const Rows rows = rows_of<BLOCKS_, PAIRED, SPAN>(first);
        Sums sums[SPAN] = {};
#pragma unroll
        for (int j = 0; j < BLOCKS_; j++) {
            const int run = j / RUN_BLOCKS, place = place_of_block<BLOCKS_, SPAN>(j);
            add_block<OWN>(sums[run], j % RUN_BLOCKS, *(const uint4*)(rows.at[0] + place), *(const uint4*)(rows.at[1] + place),
                           x + (piece * SPAN + run) * Piece<BLOCKS_>::channels / SPAN * 2);
        }
        release(first, EACH, landed);
#pragma unroll
        for (int i = 0; i < SPAN; i++) {
            const int run = part * SPAN + i;
            store_sums(sums[i], run, piece * SPAN + i, tag, turn_of_run<TURNED>(run));
        }
    }
    consumers_meet();
}
template <int BLOCKS_, bool PAIRED, int SPAN, bool TURNED>
SHARED_CODE void multiply_more(int chunk, int units, int pieces, u32 tag) {
    multiply<BLOCKS_, PAIRED, SPAN, TURNED>(chunk, units, pieces, 0, tag);
}

// Where a product's inputs come from: words of an exchange, or the rows that the step begins with.
struct Inputs {
    const Word* words;
    int stride, limit;  // channels from `limit` on are zero
    u32 tag;
    bool squared;       // with sums of squares
    const u16* x;       // instead of words
    long long x_stride;
    int count;
    const u16* norm;    // the last norm's weight
    bool last;          // inputs are normalised
    float eps;
};
DEVICE void normalise(const u16* weight, float eps);

// The same with all that a product waits for in front. While inputs are on their way, registers hold the first piece, so
// that its slots are filled again.
template <class C> SHARED_CODE void gather_and_multiply(const Inputs in, int chunk, int units) {
    // More rows need the registers for themselves, and so do more words of each; of eight bits half as much streams: a slot
    // more is then worth less than the instructions.
    constexpr bool HOLDS = ROWS <= 4 && GROUPS == 1 && C::blocks <= 8 && C::shares == 1 && !SCALED;
    Held<C::blocks> held;
    if (HOLDS && units > 0) hold<C::blocks, C::paired>(held, chunk);
    if constexpr (C::shares > 1) gather_runs<C::own, C::run, C::runs>(in.words, in.stride, in.limit, in.tag);
    else {
        if (in.x) gather_first(in.x, in.x_stride, in.count);
        else if constexpr (C::own % SQUARED) gather<C::inputs>(in.words, in.stride, in.limit, in.tag, in.squared);
        else {
            gather_own<C::own, C::run, C::runs>(in.words, in.stride, in.limit, in.tag, in.squared);
            if (in.last) consumers_meet();
        }
        if (in.last) normalise(in.norm, in.eps);
    }
    split<C::own, C::run, C::runs>();
    lap(GATHERING);
    if (HOLDS && units > 0) {
        const unsigned char* const x = own_inputs<C::own>();
        Sums sums = {};
#pragma unroll
        for (int j = 0; j < C::blocks; j++) add_block<C::own>(sums, j, held.upper[j], held.lower[j], x);
        store_sums(sums, 0, 0, in.tag, 0);
    }
    multiply<C::blocks, C::paired, C::span, (C::shares > 1)>(chunk, units, C::pieces, HOLDS, in.tag);
}

// Two neighbouring outputs of a unit, or of one of its shares: the warps' sums, in their order.
template <int PARTS, bool TURNED> DEVICE float2 total_of(int share, int row, int column, u32 tag) {
    const float* const from = partials(tag);
    const int at = (share * PARTS * ROWS + row) * UNIT + column, first = share * (PARTS / SUBS);
    float2 sum = {0.0f, 0.0f};
#pragma unroll
    for (int part = 0; part < PARTS; part++) {
        const float2 v = *(const float2*)(from + ((at + part * ROWS * UNIT) ^ turn_of_run<TURNED>(first + part / SUBS)));
        sum.x += v.x;
        sum.y += v.y;
    }
    return sum;
}

// What a thread that finishes two outputs can load before the inputs are there.
struct Early {
    Word before;           // of the residual stream, or two biases
    float2 factor, other;  // of weights of eight bits
};

template <int COUNT> DEVICE Early picked(const Early (&kept)[COUNT], int which) {
    Early one = kept[0];
#pragma unroll
    for (int i = 1; i < COUNT; i++)
        if (which == i) one = kept[i];
    return one;
}

// Sums of `units` units of 16 outputs with inputs that are cut as C says. early(unit, row, pair) comes before, done(unit,
// row, pair, copy, early, v, other) after the inputs are there: outputs 2 pair and 2 pair + 1 of the unit, finished by one
// thread for each copy; where GATED the four pairs of the first eight, with `other` those of the second. Where there are
// shares each copy has the sums of one; then all lanes of a warp go together, and some may have the last copy again. chunk:
// the ring's next, which this moves on.
template <class C, bool GATED, int COPIES, class Prepare, class Done>
DEVICE void product(int& chunk, int units, const Inputs& in, Prepare early, Done done) {
    static_assert(C::shares == 1 || C::shares == COPIES, "a copy for each share");
    constexpr int PARTS = C::parts / C::shares;
    auto total = [&](int share, int row, int column) { return total_of<PARTS, (C::shares > 1)>(share, row, column, in.tag); };
    constexpr int PAIRS = GATED ? 4 : 8, ITEMS = PAIRS * ROWS * COPIES;  // of a unit
    auto pair_of = [](int item) { return item / COPIES % PAIRS; };
    auto row_of_item = [](int item) { return item / COPIES / PAIRS % ROWS; };
    constexpr int EACH = (C::round * ITEMS + THREADS - 1) / THREADS, KEPT = EACH < 3 ? EACH : 3;
#pragma unroll 1
    for (int first = 0; first < units || first == 0; first += C::round) {
        const int count = max(min(C::round, units - first), 0), items = count * ITEMS, thread = thread_index();
        Early kept[KEPT] = {};
#pragma unroll
        for (int i = 0; i < KEPT; i++) {
            const int item = thread + i * THREADS;
            if (item < items) kept[i] = early(first + item / ITEMS, row_of_item(item), pair_of(item));
        }
        if (first == 0) gather_and_multiply<C>(in, chunk, count);
        else {
            consumers_meet();  // the sums before have been taken
            multiply_more<C::blocks, C::paired, C::span, (C::shares > 1)>(chunk, count, C::pieces, in.tag);
        }
        chunk += count * C::chunks;
        lap(MULTIPLYING);
        const int lanes = C::shares > 1 ? (items + 31) / 32 * 32 : items;
#pragma unroll 1
        for (int at = thread, i = 0; at < lanes; at += THREADS, i++) {
            const int item = C::shares > 1 ? min(at, items - 1) : at, copy = item % COPIES;
            const int pair = pair_of(item), row = row_of_item(item), unit = item / ITEMS;
            const int share = C::shares > 1 ? unit * C::shares + copy : unit;
            const Early extra = i < KEPT ? picked(kept, i) : early(first + unit, row, pair);
            const float2 other = GATED ? total(share, row, pair * 2 + 8) : float2{0.0f, 0.0f};
            done(first + unit, row, pair, copy, extra, total(share, row, pair * 2), other);
        }
        lap(GIVING);
    }
}

// The factors of two outputs of a weight of eight bits, and what makes the outputs of their sums.
DEVICE float2 factors_of(const float* factors, int row) {
#if SCALED
    return *(const float2*)(factors + row);
#else
    return float2{1.0f, 1.0f};
#endif
}
DEVICE float2 scaled(float2 v, float2 factor) {
#if SCALED
    v.x *= factor.x;
    v.y *= factor.y;
#endif
    return v;
}
// The same on top of the residual stream. Whether a product and a sum are rounded once or twice the compiler may choose, and
// chooses by the branches around them, so that forms of the step would give other bits: here it is always once.
DEVICE u32 scaled_and_added(float2 v, float2 factor, u32 before) {
    return to_bf16_pair(fmaf(v.x, factor.x, low_half(before)), fmaf(v.y, factor.y, high_half(before)));
}

// Which rows of a weight a block computes, in units of 16, one after the other.
DEVICE int qkv_row(int unit) {
    const int part = unit / PART_UNITS, head = part < GROUP ? team_index() * GROUP + part
                                                             : HEADS + (part - GROUP) * KV_HEADS + team_index();
    return head * D + rank_index() * SLICE + unit % PART_UNITS * UNIT;
}
DEVICE int owned_units() { return TEAM_UNITS % TEAM ? (TEAM_UNITS - rank_index() + TEAM - 1) / TEAM : OWNED; }
DEVICE int owned_row(int unit) { return (team_index() * TEAM_UNITS + unit * TEAM + rank_index()) * UNIT; }
DEVICE int first_unit(int cta, int units) { return (int)((long long)cta * units / CTAS); }

constexpr int QKV_UNITS = (GROUP + 2) * PART_UNITS;
constexpr int IN_UNITS = INNER * (SWIGLU ? 2 : 1) / UNIT, HEAD_UNITS = HEAD_ROWS / UNIT;

// Rows in shared memory = their norm times the last norm's weight, rounded after each
DEVICE void normalise(const u16* weights, float eps) {
#pragma unroll 1
    for (int row = warp_index(); row < ROWS; row += WARPS) {
        u32* const x = (u32*)(memory<u16>(AT_X) + row * X_ROW);
        const float factor = norm_factor(row, eps);
        for (int i = lane_index(); i < WIDTH / 2; i += 32) {
            float low = rounded(low_half(x[i]) * factor), high = rounded(high_half(x[i]) * factor);
            if (weights) {
                const u32 weight = ((const u32*)weights)[placed(i)];
                low *= low_half(weight);
                high *= high_half(weight);
            }
            x[i] = to_bf16_pair(low, high);
        }
    }
    consumers_meet();
}
