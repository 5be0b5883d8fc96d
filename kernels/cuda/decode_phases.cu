// The phases of one decode step of a whole network, for few rows, as device functions that two kernels share
// (decode_step.cu): all of them in one resident kernel, or each in a kernel of its own. What a phase computes does
// not depend on who calls it, so both give the same bits.
//
// Teams: CTAS = KV_HEADS * TEAM blocks, a team for each kv head. A team computes the queries, key and value of its
// head, and attention over its keys. Other products are shared by all blocks; of the MLP's second product each rank
// of a team takes its share of the inputs, for the outputs that the team owns.
//
// Weights: a producer warp brings them through a ring of slots in shared memory, by bulk copies, in the order in which
// the phases use them and without waiting for any phase: only slots hold it up, and its pace. A burst would stand in
// front of the few bytes that the phases wait for (docs/architecture.md has the measurement). Keys and values come
// through the same ring. A chunk is 4 or 8 rows of a weight, or 32 keys and values; 4 rows lie in one piece in memory, if
// a product takes all their channels, and come by one copy: each copy costs a producer some 100 cycles, so two share
// the work.
//
// Products: 16 rows of a weight are the first operand of tensor-core products, up to 8 rows of x the second. SUBS warps
// share the channels; their sums are kept apart and added in order, so a result depends on neither the number of rows,
// nor the other rows, nor how many warps there are.
//
// Exchange: what one block computes and others read travels in words of 8 bytes, two bf16 (or one float) and a tag
// that counts steps and phases. Readers poll until they see the tag that they expect; there is no other barrier
// between blocks. A buffer can be used again in the next layer: by then its readers have given what the writer needed.
//
// Compile-time: WIDTH; HEADS, KV_HEADS, D; TEAM; INNER, and PADDED, the inputs that the second product of the MLP has;
// HEAD_ROWS; LAYERS; ROWS (1, 2, 4, 8, 16); WARPS, the consumers, and SUBS of them that share a
// product's channels; SLOTS of the ring; SWIGLU, else relu
// squared; NORMED, heads are normalised after their rotation; BLOCK_SIZE of a page; CLUSTERED, a team is a cluster and
// meets through distributed shared memory; DELAY, random nanoseconds in front of each phase, for tests.
//
// Code: instructions are fetched through the same memory that the weights stream from. What phases have in common is
// therefore there once, as functions that are called; inlined everywhere the step was 160 KB of code and took half as
// long again.

constexpr int GROUP = HEADS / KV_HEADS;
constexpr int CTAS = KV_HEADS * TEAM;
constexpr int THREADS = WARPS * 32;
constexpr int GROUPS = WARPS / SUBS;
constexpr int PRODUCERS = 2;                  // warps
constexpr int COLUMNS = (ROWS + 7) / 8;       // groups of 8 rows of x
constexpr int READERS = 4, CREWS = WARPS / READERS;  // warps that attend for a row, a tile of 16 keys each
constexpr int UNIT = 16;                      // rows of a weight that belong together
constexpr int CHUNK_BYTES = 16384;
constexpr int HALF = 4;                       // rows that are copied together, half of eight
constexpr int MOST_CHANNELS = CHUNK_BYTES / HALF / (int)sizeof(Weight);
constexpr int SKEW = 64;                      // bytes, so that the halves of eight rows are on different banks
constexpr int KEY_SLOT = 2 * STAGE * 16;
constexpr int SLOT_BYTES = ((KEY_SLOT > CHUNK_BYTES ? KEY_SLOT : CHUNK_BYTES) + 127) / 128 * 128 + SKEW;
constexpr int PARTIALS = ROWS > 4 ? 32 : 64;  // warps' sums of a unit that wait to be added
constexpr int SQUARED = 128;                  // channels whose sum of squares is one number
constexpr int SHARE = PADDED / TEAM;          // inputs of the MLP's second product for each rank
constexpr int LONGEST = WIDTH > HEADS * D ? (WIDTH > SHARE ? WIDTH : SHARE) : (HEADS * D > SHARE ? HEADS * D : SHARE);
constexpr int X_ROW = LONGEST + (RUN == 8 ? 32 : 8);
constexpr int TEAM_UNITS = WIDTH / UNIT / KV_HEADS;
constexpr int OWNED = (TEAM_UNITS + TEAM - 1) / TEAM;
constexpr int PART_UNITS = D / TEAM / UNIT;   // of a head, for each rank
constexpr int SLICE = D / TEAM;               // channels of a head that a rank finishes
constexpr int QUADS = GROUP * D / 4;
// A team's mail for one of its blocks, in words: queries, key and value of the new token; what the ranks found of
// each head's slice, with maximum and sum; and their shares of the outputs that the block owns.
constexpr int QKV_MAIL = ROWS * (GROUP + 2) * D / 2;
constexpr int FOUND = SLICE + 2, FOUND_MAIL = ROWS * TEAM * GROUP * FOUND;
constexpr int SHARE_MAIL = TEAM * OWNED * ROWS * UNIT;
constexpr int MAIL = QKV_MAIL + FOUND_MAIL + SHARE_MAIL;
constexpr int EXCHANGES = 4;                  // tags of a layer: x, attended, middle, inner
constexpr u64 PATIENCE = 2000000000;          // nanoseconds that a step may wait

struct Layer {
    const Weight *qkv, *o, *mlp_in, *mlp_out;
    const float *qkv_factors, *o_factors, *in_factors, *out_factors;
    u16 *keys, *values;
};

struct Step {
    const Layer* layers;
    const Weight* head;
    const float* head_factors;
    const u16* final_norm;               // [WIDTH] or null
    const float *own, *other;            // [positions, D], see kernels/rope.py
    const u16* x;                        // [count, x_stride], the embedded tokens
    const int *rows, *positions, *tables, *entry_tokens;
    u16* logits;                         // [count, logits_stride]
    int* entry_positions;
    Word *stream, *attended, *middle, *inner;  // exchanged rows: WIDTH, HEADS * D, WIDTH and INNER channels
    Word* mail;                          // [CTAS, MAIL], unless CLUSTERED
    int *failed, *epoch, *arrived;
    long long* timeline;                 // [LAYERS * EXCHANGES + 4], see `mark`
    long long x_stride, table_stride, logits_stride, page, page_head;
    float eps, qk_scale, score_scale;    // score_scale makes powers of two of products
    int count;                           // entries; what ROWS has more is padding
    int pace;                            // cycles between copies of CHUNK_BYTES
};

// ------------------------------------------------------------------------------------------ memory of a block

DEVICE constexpr int rounded_up(int bytes) { return (bytes + 15) / 16 * 16; }
constexpr int AT_X = SLOTS * SLOT_BYTES;                                    // [ROWS][X_ROW], what a product multiplies
constexpr int AT_SUMS = AT_X + ROWS * X_ROW * 2;                            // [ROWS][READERS + 1][QUADS], of attention
constexpr int AT_PARTIAL = AT_SUMS + ROWS * (READERS + 1) * QUADS * 16;     // [PARTIALS][ROWS][UNIT]
constexpr int AT_SQUARES = AT_PARTIAL + PARTIALS * ROWS * UNIT * 4;            // [ROWS][WIDTH / SQUARED]
constexpr int AT_STATS = AT_SQUARES + rounded_up(ROWS * (WIDTH / SQUARED) * 4);  // [ROWS][READERS + 1][GROUP]
constexpr int AT_QUERY = AT_STATS + rounded_up(ROWS * (READERS + 1) * GROUP * 8);  // [CREWS * READERS][GROUP][D]
constexpr int AT_NEW = AT_QUERY + CREWS * READERS * GROUP * D * 2;          // [ROWS][2][D], new keys and values
constexpr int AT_FULL = AT_NEW + ROWS * 2 * D * 2;                 // [SLOTS], barriers
constexpr int AT_EMPTY = AT_FULL + SLOTS * 8;                               // likewise
constexpr int AT_NUMBER = AT_EMPTY + SLOTS * 8;                             // [SLOTS], of the chunk in a slot
constexpr int AT_CLOCK = AT_NUMBER + rounded_up(SLOTS * 4);
constexpr int AT_MAIL = AT_CLOCK + 16;                                      // [MAIL], where CLUSTERED

template <class T> DEVICE T* memory(int place) {
    SHARED_BYTES(shared);
    return (T*)(shared + place);
}
DEVICE unsigned char* slot_of(int slot) { return memory<unsigned char>(slot * SLOT_BYTES); }
DEVICE Barrier* full_of(int slot) { return memory<Barrier>(AT_FULL) + slot; }
DEVICE Barrier* empty_of(int slot) { return memory<Barrier>(AT_EMPTY) + slot; }
DEVICE volatile int* number_of(int slot) { return memory<volatile int>(AT_NUMBER) + slot; }

DEVICE int lane_index() { return thread_index() & 31; }
DEVICE int warp_index() { return thread_index() >> 5; }
DEVICE int team_index() { return block_index() / TEAM; }
DEVICE int rank_index() { return block_index() % TEAM; }

DEVICE void consumers_meet() { group_barrier(1, THREADS); }

// ------------------------------------------------------------------------------------------ waiting

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

// Whether a chunk has come. Parity alone would let a warp pass that is two rounds early.
DEVICE bool landed(int chunk) {
    return try_barrier(full_of(chunk % SLOTS), chunk / SLOTS & 1) && *number_of(chunk % SLOTS) == chunk;
}

template <int COUNT> DEVICE void wait_for_chunks(int chunk) {
    bool ready[COUNT];
#pragma unroll
    for (int i = 0; i < COUNT; i++) ready[i] = landed(chunk + i);
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        Wait wait;
        while (!ready[i] && goes_on(wait)) ready[i] = landed(chunk + i);
    }
}

// ------------------------------------------------------------------------------------------ exchange

DEVICE void post(const Step& s, int place, int peer, u32 value, u32 tag) {
#ifdef CLUSTERED
    put_to_peer(memory<Word>(AT_MAIL) + place, peer, value, tag);
#else
    put(s.mail + (team_index() * TEAM + peer) * (long long)MAIL + place, value, tag);
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
    u32 w[4];
    Wait wait;
    do look2(s, place, w);
    while (!has(w, tag) && goes_on(wait));
    return float2{float_of(w[0]), float_of(w[2])};
}

DEVICE u32 await(const Word* address, u32 tag) {
    Word word;
    Wait wait;
    do word = get(address);
    while (word.high != tag && goes_on(wait));
    return word.low;
}

DEVICE float warp_sum(float value) {
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) value += warp_xor(value, mask);
    return value;
}

DEVICE float rounded(float value) { return low_half(to_bf16(value)); }
DEVICE float squares_of(u32 pair) { return low_half(pair) * low_half(pair) + high_half(pair) * high_half(pair); }

// K channels of every row into shared memory, with sums of squares of SQUARED of them each where these are wanted.
// words: [ROWS][stride]; channels from `limit` on are zero. Ends with all consumers having written.
template <int K> DEVICE void gather(const Word* words, int stride, int limit, u32 tag, bool squared) {
    constexpr int QUAD_ROW = K / 4, ITEMS = ROWS * QUAD_ROW, EACH = (ITEMS + THREADS - 1) / THREADS;
    constexpr int AT_ONCE = EACH < 4 ? EACH : 4;
#pragma unroll 1
    for (int first = thread_index(); first < EACH * THREADS; first += AT_ONCE * THREADS) {
        u32 w[AT_ONCE][4];
        const Word* from[AT_ONCE];
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) {
            const int item = first + j * THREADS, at = item % QUAD_ROW;
            const bool there = item < ITEMS && at * 4 < limit;
            from[j] = words + (there ? item / QUAD_ROW * stride + at * 2 : 0);
            w[j][0] = w[j][2] = 0;
            w[j][1] = w[j][3] = there ? tag - 1 : tag;
        }
        bool missing;
        Wait wait;
        do {
            missing = false;
#pragma unroll
            for (int j = 0; j < AT_ONCE; j++)
                if (!has(w[j], tag)) get2(from[j], w[j]);
#pragma unroll
            for (int j = 0; j < AT_ONCE; j++) missing |= !has(w[j], tag);
        } while (missing && goes_on(wait));
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) {
            const int item = first + j * THREADS;
            if (item >= ITEMS) continue;
            *(uint2*)(memory<u16>(AT_X) + item / QUAD_ROW * X_ROW + item % QUAD_ROW * 4) = uint2{w[j][0], w[j][2]};
            if (!squared) continue;
            const float sum = warp_sum(squares_of(w[j][0]) + squares_of(w[j][2]));
            if (lane_index() == 0) memory<float>(AT_SQUARES)[item / (SQUARED / 4)] = sum;
        }
    }
    consumers_meet();
}

// The same of the rows that the step begins with.
DEVICE void gather_first(const u16* x, long long stride, int count) {
#pragma unroll 1
    for (int item = thread_index(); item < ROWS * WIDTH / 4; item += THREADS) {
        const int row = item / (WIDTH / 4), at = item % (WIDTH / 4) * 4;
        const uint2 v = row < count ? *(const uint2*)(x + row * stride + at) : uint2{0, 0};
        *(uint2*)(memory<u16>(AT_X) + row * X_ROW + at) = v;
        const float sum = warp_sum(squares_of(v.x) + squares_of(v.y));
        if (lane_index() == 0) memory<float>(AT_SQUARES)[item / (SQUARED / 4)] = sum;
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
// they are needed.
DEVICE Word residual(const Step& s, int index, int row, int channel, u32 tag) {
    if (index > 0) return get(s.stream + (row * WIDTH + channel) / 2);
    return Word{row < s.count ? *(const u32*)(s.x + row * s.x_stride + channel) : 0, tag};
}
DEVICE u32 arrived(Word asked, const Word* address, u32 tag) { return asked.high == tag ? asked.low : await(address, tag); }

// ------------------------------------------------------------------------------------------ products

DEVICE constexpr int pieces_of(int k) {
    int pieces = 1;
    while (k % pieces || k / pieces > MOST_CHANNELS || k / pieces % (SUBS * CHANNELS)) pieces++;
    return pieces;
}

// How rows of K channels are cut into chunks: `pieces` of each row; of a piece eight rows in one slot, where there is
// room, or in two.
template <int K> struct Cut {
    static constexpr int pieces = pieces_of(K), channels = K / pieces, blocks = channels / SUBS / CHANNELS;
    static constexpr bool paired = 2 * HALF * channels * (int)sizeof(Weight) <= CHUNK_BYTES;
    static constexpr int chunks = pieces * (paired ? 2 : 4);  // of a unit
    static constexpr int parts = pieces * SUBS;               // sums of a unit
    static constexpr int round = PARTIALS / parts;            // units whose sums have room
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

template <int BLOCKS_, bool PAIRED> DEVICE Rows rows_of(int chunk) {
    using P = Piece<BLOCKS_>;
    const int lane = lane_index(), g = lane >> 2, c = lane & 3, sub = warp_index() % SUBS;
    const int own = (g >> 1) * P::bytes + (sub * BLOCKS_ * 4 + c) * 16 + (PAIRED && g & 1 ? P::second : 0);
    Rows rows;
#pragma unroll
    for (int i = 0; i < 2; i++) rows.at[i] = slot_of((chunk + (PAIRED ? i : 2 * i + (g & 1))) % SLOTS) + own;
    return rows;
}

DEVICE void release(int chunk, int count) {
    warp_barrier();
    if (lane_index() < count) arrive(empty_of((chunk + lane_index()) % SLOTS));
}

template <int BLOCKS_, bool PAIRED> DEVICE void hold(Held<BLOCKS_>& held, int chunk) {
    constexpr int EACH = chunks_of_piece(PAIRED);
    wait_for_chunks<EACH>(chunk);
    const Rows rows = rows_of<BLOCKS_, PAIRED>(chunk);
#pragma unroll
    for (int j = 0; j < BLOCKS_; j++) {
        held.upper[j] = *(const uint4*)(rows.at[0] + j * 64);
        held.lower[j] = *(const uint4*)(rows.at[1] + j * 64);
    }
    release(chunk, EACH);
}

// Sums of products, of the weight's row `row` with x's rows 2c and 2c+1, then of the one eight behind it.
struct Sums { float even[COLUMNS][4], odd[COLUMNS][4]; };

DEVICE void add_block(Sums& sums, uint4 upper, uint4 lower, const u16* x) {
#pragma unroll
    for (int half = 0; half < HALVES; half++) {
        const uint4 a = half_of(upper, half), b = half_of(lower, half);
#pragma unroll
        for (int t = 0; t < COLUMNS; t++) {
            const uint4 v = *(const uint4*)(x + t * 8 * X_ROW + half * 8);
            multiply_add(sums.even[t], a.x, b.x, a.y, b.y, v.x, v.y);
            multiply_add(sums.odd[t], a.z, b.z, a.w, b.w, v.z, v.w);
        }
    }
}

DEVICE void store_sums(const Sums& sums, int part) {
    const int lane = lane_index(), g = lane >> 2, c = lane & 3, row = (g >> 1) + (g & 1) * HALF;
    float* const to = memory<float>(AT_PARTIAL) + (part * SUBS + warp_index() % SUBS) * ROWS * UNIT + row;
#pragma unroll
    for (int t = 0; t < COLUMNS; t++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int entry = t * 8 + 2 * c + i % 2;
            if (entry < ROWS) to[entry * UNIT + i / 2 * 8] = sums.even[t][i] + sums.odd[t][i];
        }
}

// Where this lane's channels of x are. What columns of rows that there are not give is left.
template <int BLOCKS_> DEVICE const u16* own_inputs() {
    const int g = lane_index() >> 2, c = lane_index() & 3, sub = warp_index() % SUBS;
    return memory<u16>(AT_X) + (g < ROWS ? g : 0) * X_ROW + sub * BLOCKS_ * CHANNELS + c * RUN;
}

// Each warp's shares of the units that are its group's, from the `done`th piece on, times the rows of x, into AT_PARTIAL.
template <int BLOCKS_, bool PAIRED> DEVICE void multiply(int chunk, int units, int pieces, int done) {
    constexpr int EACH = chunks_of_piece(PAIRED);
    const u16* const x = own_inputs<BLOCKS_>();
#pragma unroll 1
    for (int unit = warp_index() / SUBS; unit < units; unit += GROUPS)
#pragma unroll 1
        for (int piece = 0; piece < pieces; piece++) {
            const int part = unit * pieces + piece, number = chunk + part * EACH;
            if (part < done) continue;
            wait_for_chunks<EACH>(number);
            const Rows rows = rows_of<BLOCKS_, PAIRED>(number);
            Sums sums = {};
#pragma unroll
            for (int j = 0; j < BLOCKS_; j++)
                add_block(sums, *(const uint4*)(rows.at[0] + j * 64), *(const uint4*)(rows.at[1] + j * 64),
                          x + piece * Piece<BLOCKS_>::channels + j * CHANNELS);
            release(number, EACH);
            store_sums(sums, part);
        }
    consumers_meet();
}
template <int BLOCKS_, bool PAIRED> SHARED_CODE void multiply_more(int chunk, int units, int pieces) {
    multiply<BLOCKS_, PAIRED>(chunk, units, pieces, 0);
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
template <int K> SHARED_CODE void gather_and_multiply(const Inputs in, int chunk, int units) {
    using C = Cut<K>;
    // Two kernels of a chain share a multiprocessor's registers, and one row gains nothing by it.
    constexpr bool HOLDS = BLOCKS == 1 && ROWS > 1 && GROUPS == 1 && C::blocks <= 8 && COLUMNS == 1;
    Held<C::blocks> held;
    if (HOLDS && units > 0) hold<C::blocks, C::paired>(held, chunk);
    if (in.x) gather_first(in.x, in.x_stride, in.count);
    else gather<K>(in.words, in.stride, in.limit, in.tag, in.squared);
    if (in.last) normalise(in.norm, in.eps);
    if (HOLDS && units > 0) {
        const u16* const x = own_inputs<C::blocks>();
        Sums sums = {};
#pragma unroll
        for (int j = 0; j < C::blocks; j++) add_block(sums, held.upper[j], held.lower[j], x + j * CHANNELS);
        store_sums(sums, 0);
    }
    multiply<C::blocks, C::paired>(chunk, units, C::pieces, HOLDS);
}

// Two neighbouring outputs of a unit: the warps' sums, in their order.
template <int PARTS> DEVICE float2 total_of(int unit, int row, int column) {
    const float* const from = memory<float>(AT_PARTIAL) + (unit * PARTS * ROWS + row) * UNIT + column;
    float2 sum = {0.0f, 0.0f};
#pragma unroll
    for (int part = 0; part < PARTS; part++) {
        const float2 v = *(const float2*)(from + part * ROWS * UNIT);
        sum.x += v.x;
        sum.y += v.y;
    }
    return sum;
}

// What a thread that finishes two outputs can load before the inputs are there.
struct Early {
    Word before;           // of the residual stream
    float2 factor, other;  // of weights of eight bits
};

// Sums of `units` units of 16 outputs with K channels of inputs. early(unit, row, pair) comes before, done(unit, row,
// pair, copy, early, v, other) after the inputs are there: outputs 2 pair and 2 pair + 1 of the unit, finished by one
// thread for each copy; where GATED the four pairs of the first eight, with `other` those of the second. chunk: the
// ring's next, which this moves on.
template <int K, bool GATED, int COPIES, class Prepare, class Done>
DEVICE void product(int& chunk, int units, const Inputs& in, Prepare early, Done done) {
    using C = Cut<K>;
    constexpr int PAIRS = GATED ? 4 : 8, ITEMS = PAIRS * ROWS * COPIES;  // of a unit
    auto pair_of = [](int item) { return item / COPIES % PAIRS; };
    auto row_of_item = [](int item) { return item / COPIES / PAIRS % ROWS; };
#pragma unroll 1
    for (int first = 0; first < units || first == 0; first += C::round) {
        const int count = max(min(C::round, units - first), 0), items = count * ITEMS, thread = thread_index();
        Early extra = {};
        if (thread < items) extra = early(first + thread / ITEMS, row_of_item(thread), pair_of(thread));
        if (first == 0) gather_and_multiply<K>(in, chunk, count);
        else {
            consumers_meet();  // the sums before have been taken
            multiply_more<C::blocks, C::paired>(chunk, count, C::pieces);
        }
        chunk += count * C::chunks;
#pragma unroll 1
        for (int item = thread; item < items; item += THREADS) {
            const int pair = pair_of(item), row = row_of_item(item), unit = item / ITEMS;
            if (item != thread) extra = early(first + unit, row, pair);
            const float2 other = GATED ? total_of<C::parts>(unit, row, pair * 2 + 8) : float2{0.0f, 0.0f};
            done(first + unit, row, pair, item % COPIES, extra, total_of<C::parts>(unit, row, pair * 2), other);
        }
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

// Which rows of a weight a block computes, in units of 16, one after the other.
DEVICE int qkv_row(int unit) {
    const int part = unit / PART_UNITS, head = part < GROUP ? team_index() * GROUP + part
                                                             : HEADS + (part - GROUP) * KV_HEADS + team_index();
    return head * D + rank_index() * SLICE + unit % PART_UNITS * UNIT;
}
DEVICE int owned_units() { return (TEAM_UNITS - rank_index() + TEAM - 1) / TEAM; }
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
                const u32 weight = ((const u32*)weights)[i];
                low *= low_half(weight);
                high *= high_half(weight);
            }
            x[i] = to_bf16_pair(low, high);
        }
    }
    consumers_meet();
}

// ------------------------------------------------------------------------------------------ attention

// The row of a step's entry, or -1 for padding.
DEVICE int row_of(const Step& s, int entry) { return entry < s.count ? s.rows[entry] : -1; }

DEVICE int key_chunks(int position, int rank) {
    const int pairs = (position + 2 * TILE - 1) / (2 * TILE);
    return pairs > rank ? (pairs - rank + TEAM - 1) / TEAM : 0;
}

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

DEVICE Turn turn_of(const Step& s, int position) {
    const long long at = (long long)position * D + lane_index() % (D / 4) * 2;
    const float2 a = *(const float2*)(s.own + at), b = *(const float2*)(s.own + at + D / 2);
    const float2 c = *(const float2*)(s.other + at), d = *(const float2*)(s.other + at + D / 2);
    return Turn{{a.x, a.y}, {b.x, b.y}, {c.x, c.y}, {d.x, d.y}};
}

// What kernels/triton/rope.py does to a query or key, rounded where torch would.
DEVICE Halves rotated(const Halves& x, const Turn& t, const Step& s) {
    Halves y;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        y.left[i] = rounded(x.left[i] * t.own_left[i] + x.right[i] * t.other_left[i]);
        y.right[i] = rounded(x.right[i] * t.own_right[i] + x.left[i] * t.other_right[i]);
    }
#if NORMED
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 2; i++) sum += y.left[i] * y.left[i] + y.right[i] * y.right[i];
    const float factor = inverse_root(head_sum(sum) / D + s.eps);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        y.left[i] = rounded(y.left[i] * factor);
        y.right[i] = rounded(y.right[i] * factor);
    }
#endif
#pragma unroll
    for (int i = 0; i < 2; i++) {
        y.left[i] = rounded(y.left[i] * s.qk_scale);
        y.right[i] = rounded(y.right[i] * s.qk_scale);
    }
    return y;
}

DEVICE void store_halves(u16* head, const Halves& v) {
    const int lane = lane_index();
    if (lane >= D / 4) return;
    *(u32*)(head + lane * 2) = to_bf16_pair(v.left[0], v.left[1]);
    *(u32*)(head + D / 2 + lane * 2) = to_bf16_pair(v.right[0], v.right[1]);
}

// Heads of the new token, as the team has sent them: part GROUP is the key, GROUP + 1 the value. All are asked for
// before any is waited for.
template <int COUNT> DEVICE void receive(const Step& s, int row, const int (&parts)[COUNT], Halves (&heads)[COUNT], u32 tag) {
    Word left[COUNT], right[COUNT];
    bool missing;
    Wait wait;
    do {
        missing = false;
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            const int place = (row * (GROUP + 2) + parts[i]) * (D / 2) + lane_index() % (D / 4);
            left[i] = look(s, place), right[i] = look(s, place + D / 4);
        }
#pragma unroll
        for (int i = 0; i < COUNT; i++) missing |= left[i].high != tag || right[i].high != tag;
    } while (missing && goes_on(wait));
#pragma unroll
    for (int i = 0; i < COUNT; i++) heads[i] = halves_of(left[i].low, right[i].low);
}

DEVICE float4* sums_of(int row, int reader) { return memory<float4>(AT_SUMS) + (row * (READERS + 1) + reader) * QUADS; }
DEVICE float2* stats_of(int row, int reader) { return memory<float2>(AT_STATS) + (row * (READERS + 1) + reader) * GROUP; }
DEVICE u16* own_queries() { return memory<u16>(AT_QUERY) + warp_index() * GROUP * D; }

// The new token itself, which no tile has: one more reader's find.
DEVICE void attend_new(const Step& s, int row, const Halves& key, const Halves& value) {
    const int lane = lane_index(), at = lane % (D / 4) * 2;
#pragma unroll 1
    for (int head = 0; head < GROUP; head++) {
        const u16* const query = own_queries() + head * D;
        const Halves q = halves_of(*(const u32*)(query + at), *(const u32*)(query + D / 2 + at));
        float score = 0.0f;
#pragma unroll
        for (int i = 0; i < 2; i++) score += q.left[i] * key.left[i] + q.right[i] * key.right[i];
        score = head_sum(score);
        float* const sums = (float*)(sums_of(row, READERS) + head * (D / 4));
        if (lane < D / 4) {
            *(float2*)(sums + at) = float2{value.left[0], value.left[1]};
            *(float2*)(sums + D / 2 + at) = float2{value.right[0], value.right[1]};
        }
        if (lane == 0) stats_of(row, READERS)[head] = float2{score * s.score_scale, 1.0f};
    }
}

// A row's tiles that are this reader's, of the keys in front of the new token. count: chunks of this rank.
DEVICE void attend_tiles(const Step& s, int row, int position, int chunk, int count) {
    const int lane = lane_index(), g = lane >> 2, c = lane & 3, reader = warp_index() % READERS, which = reader % 2;
    const u16* const queries = own_queries();
    uint4 query[D / 32];
#pragma unroll
    for (int i = 0; i < D / 32; i++)
        query[i] = g < GROUP ? *(const uint4*)(queries + g * D + c * 8 + i * 32) : uint4{0, 0, 0, 0};
    float o[D / 64][4][4] = {};
    float most[2] = {LOWEST, LOWEST}, total[2] = {0.0f, 0.0f};
#pragma unroll 1
    for (int j = reader / 2; j < count; j += READERS / 2) {
        const int slot = (chunk + j) % SLOTS, tile = (rank_index() + j * TEAM) * 2 + which;
        wait_for_chunks<1>(chunk + j);
        uint4* const stage = (uint4*)slot_of(slot) + which * STAGE;
        const int high = position - 1 - tile * TILE;
        if (high >= 0) {
            if (high < TILE - 1) clear_unseen(stage, 0, high, lane);
            attend_tile(stage, query, 0, high, s.score_scale, lane, o, most, total);
        }
        warp_barrier();
        if (lane < SUBS / 2) arrive(empty_of(slot));  // two warps for all that the barrier counts
    }
#pragma unroll
    for (int j = 0; j < 2; j++) {
        total[j] += warp_xor(total[j], 4);
        total[j] += warp_xor(total[j], 8);
        total[j] += warp_xor(total[j], 16);
        const int head = 2 * c + j;
        if (head < GROUP) {
            float4* const to = sums_of(row, reader) + head * (D / 4) + g * 2;
#pragma unroll
            for (int h = 0; h < D / 64; h++) {
                to[h * 16] = float4{o[h][0][j], o[h][0][j + 2], o[h][1][j], o[h][1][j + 2]};
                to[h * 16 + 1] = float4{o[h][2][j], o[h][2][j + 2], o[h][3][j], o[h][3][j + 2]};
            }
            if (g == 0) stats_of(row, reader)[head] = float2{most[j], total[j]};
        }
    }
}

// The rank that would read the new token's tile has the new token; it writes it when nothing of that tile is on its way
// any more.
DEVICE bool has_new(int position) { return rank_index() == position / (2 * TILE) % TEAM; }

// One reader's part of a row.
DEVICE void attend(const Step& s, int row, int position, int chunk, int count, u32 tag) {
    const Turn turn = turn_of(s, position);
    const bool adds = has_new(position) && warp_index() % READERS == READERS - 1;
    Halves key, value;
    int told = 0;  // queries that are there
    if (adds) {
        Halves got[3];
        receive(s, row, {0, GROUP, GROUP + 1}, got, tag);
        store_halves(own_queries(), rotated(got[0], turn, s));
        told = 1;
        key = rotated(got[1], turn, s);
        value = got[2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            value.left[i] = or_zero(value.left[i]);
            value.right[i] = or_zero(value.right[i]);
        }
        store_halves(memory<u16>(AT_NEW) + row * 2 * D, key);
        store_halves(memory<u16>(AT_NEW) + row * 2 * D + D, value);
    }
#pragma unroll 1
    for (int head = told; head < GROUP; head++) {
        Halves got[1];
        receive(s, row, {head}, got, tag);
        store_halves(own_queries() + head * D, rotated(got[0], turn, s));
    }
    warp_barrier();
    if (adds) attend_new(s, row, key, value);
    attend_tiles(s, row, position, chunk, count);
}

// New keys and values go to their pages: 16 bytes a lane.
DEVICE void store_new(const Step& s, const Layer* layer) {
    constexpr int EACH = D / 8;
    for (int item = thread_index(); item < ROWS * 2 * EACH; item += THREADS) {
        const int entry = item / (2 * EACH), row = row_of(s, entry), position = row < 0 ? 0 : s.positions[entry];
        if (row < 0 || !has_new(position)) continue;
        const int page = s.tables[row * s.table_stride + position / BLOCK_SIZE];
        u16* const pages = item / EACH % 2 ? layer->values : layer->keys;
        u16* const to = pages + page * s.page + team_index() * s.page_head + position % BLOCK_SIZE * D;
        *(uint4*)(to + item % EACH * 8) = *(const uint4*)(memory<u16>(AT_NEW) + item * 8);
    }
}

// What this block has found of every row goes to the ranks that finish it.
DEVICE void send_found(const Step& s, u32 tag) {
    const int rank = rank_index();
#pragma unroll 1
    for (int item = thread_index(); item < ROWS * QUADS; item += THREADS) {
        const int row = item / QUADS, quad = item % QUADS, head = quad / (D / 4);
        const int channel = quad % (D / 4) * 4, owner = channel / SLICE;
        if (row_of(s, row) < 0) continue;
        const int readers = READERS + has_new(s.positions[row]);
        const float4* const sums = sums_of(row, 0) + quad;
        const float2* const stats = stats_of(row, 0) + head;
        float most = LOWEST, total = 0.0f, v[4] = {};
#pragma unroll
        for (int i = 0; i <= READERS; i++)
            if (i < readers) most = fmaxf(most, stats[i * GROUP].x);
#pragma unroll
        for (int i = 0; i <= READERS; i++)
            if (i < readers) {
                const float2 stat = stats[i * GROUP];
                const float4 sum = sums[i * QUADS];
                const float weight = power_of_two(stat.x - most);
                total += weight * stat.y;
                v[0] += weight * sum.x;
                v[1] += weight * sum.y;
                v[2] += weight * sum.z;
                v[3] += weight * sum.w;
            }
        const int place = QKV_MAIL + ((row * TEAM + rank) * GROUP + head) * FOUND;
#pragma unroll
        for (int i = 0; i < 4; i++) post(s, place + channel % SLICE + i, owner, bits_of(v[i]), tag);
        if (channel % SLICE == 0) {
            post(s, place + SLICE, owner, bits_of(most), tag);
            post(s, place + SLICE + 1, owner, bits_of(total), tag);
        }
    }
}

DEVICE float team_sum(float value) {
#pragma unroll
    for (int mask = TEAM / 2; mask > 0; mask /= 2) value += warp_xor(value, mask);
    return value;
}

// The ranks' finds of this block's slice of every row, put together: a lane for each rank and two channels.
DEVICE void finish_attention(const Step& s, u32 tag) {
    constexpr int ITEMS = ROWS * GROUP * SLICE / 2 * TEAM;
    static_assert(ITEMS % 32 == 0, "lanes of a warp go together");
#pragma unroll 1
    for (int item = thread_index(); item < ITEMS; item += THREADS) {
        const int rank = item % TEAM, pair = item / TEAM % (SLICE / 2), head = item / (TEAM * SLICE / 2) % GROUP;
        const int row = item / (TEAM * SLICE / 2 * GROUP);
        const int place = QKV_MAIL + ((row * TEAM + rank) * GROUP + head) * FOUND;
        const bool live = row_of(s, row) >= 0;
        float2 stat = {0.0f, 1.0f}, v = {0.0f, 0.0f};
        if (live) {
            u32 a[4], b[4];
            Wait wait;
            do look2(s, place + SLICE, a), look2(s, place + 2 * pair, b);
            while ((!has(a, tag) || !has(b, tag)) && goes_on(wait));
            stat = float2{float_of(a[0]), float_of(a[2])};
            v = float2{float_of(b[0]), float_of(b[2])};
        }
        float most = stat.x;
#pragma unroll
        for (int mask = TEAM / 2; mask > 0; mask /= 2) most = fmaxf(most, warp_xor(most, mask));
        const float weight = power_of_two(stat.x - most), scale = 1.0f / team_sum(weight * stat.y);
        const float low = team_sum(weight * v.x) * scale, high = team_sum(weight * v.y) * scale;
        const int channel = (team_index() * GROUP + head) * D + rank_index() * SLICE + pair * 2;
        if (rank == 0) put(s.attended + (row * HEADS * D + channel) / 2, to_bf16_pair(low, high), tag);
    }
}

// ------------------------------------------------------------------------------------------ phases
// tag: of what a phase reads; what it gives to others has the next one.

DEVICE void attention_phase(const Step& s, const Layer* layer, int index, int& chunk, u32 tag) {
    product<WIDTH, false, TEAM>(
        chunk, QKV_UNITS,
        Inputs{s.stream, WIDTH / 2, WIDTH, tag, true, index == 0 ? s.x : nullptr, s.x_stride, s.count},
        [&](int unit, int, int pair) {
            return Early{{}, factors_of(layer->qkv_factors, qkv_row(unit) + pair * 2), {}};
        },
        [&](int unit, int row, int pair, int peer, const Early& early, float2 v, float2) {
            const float factor = norm_factor(row, s.eps);
            const int part = unit / PART_UNITS, channel = rank_index() * SLICE + unit % PART_UNITS * UNIT + pair * 2;
            v = scaled(v, early.factor);
            const u32 both = to_bf16_pair(v.x * factor, v.y * factor);
            post(s, (row * (GROUP + 2) + part) * (D / 2) + channel / 2, peer, both, tag + 1);
        });
#pragma unroll 1
    for (int row = 0; row < ROWS; row++) {
        if (row_of(s, row) < 0) continue;
        const int position = s.positions[row], count = key_chunks(position, rank_index());
        if (row % CREWS == warp_index() / READERS) attend(s, row, position, chunk, count, tag + 1);
        chunk += count;
    }
    consumers_meet();
    send_found(s, tag + 1);
    store_new(s, layer);
    finish_attention(s, tag + 1);
}

// middle = x + attended Wo^T
DEVICE void output_phase(const Step& s, const Layer* layer, int index, int& chunk, u32 tag) {
    product<HEADS * D, false, 1>(
        chunk, owned_units(), Inputs{s.attended, HEADS * D / 2, HEADS * D, tag},
        [&](int unit, int row, int pair) {
            const int channel = owned_row(unit) + pair * 2;
            return Early{residual(s, index, row, channel, tag - 1), factors_of(layer->o_factors, channel), {}};
        },
        [&](int unit, int row, int pair, int, const Early& early, float2 v, float2) {
            const int place = (row * WIDTH + owned_row(unit)) / 2 + pair;
            const u32 before = arrived(early.before, s.stream + place, tag - 1);
            v = scaled(v, early.factor);
            put(s.middle + place, to_bf16_pair(v.x + low_half(before), v.y + high_half(before)), tag + 1);
        });
}

// inner = activation(norm(middle) Win^T)
DEVICE void inner_phase(const Step& s, const Layer* layer, int& chunk, u32 tag) {
    const int start = first_unit(block_index(), IN_UNITS), units = first_unit(block_index() + 1, IN_UNITS) - start;
    product<WIDTH, SWIGLU, 1>(
        chunk, units, Inputs{s.middle, WIDTH / 2, WIDTH, tag, true},
        [&](int unit, int, int pair) {
            const int row = (start + unit) * UNIT + pair * 2;
            return Early{{}, factors_of(layer->in_factors, row), factors_of(layer->in_factors, SWIGLU ? row + 8 : row)};
        },
        [&](int unit, int row, int pair, int, const Early& early, float2 v, float2 up) {
            const float factor = norm_factor(row, s.eps);
            int channel = (start + unit) * UNIT + pair * 2;
            v = scaled(v, early.factor);
            v.x *= factor;
            v.y *= factor;
            if (SWIGLU) {
                up = scaled(up, early.other);
                v.x = v.x / (1.0f + exponential(-v.x)) * (up.x * factor);
                v.y = v.y / (1.0f + exponential(-v.y)) * (up.y * factor);
                channel = (start + unit) * 8 + pair * 2;
            }
            else {
                v.x = fmaxf(v.x, 0.0f);
                v.y = fmaxf(v.y, 0.0f);
                v.x *= v.x;
                v.y *= v.y;
            }
            put(s.inner + (row * INNER + channel) / 2, to_bf16_pair(v.x, v.y), tag + 1);
        });
}

// x = middle + inner Wout^T, of which each rank of a team has a share of the inputs
DEVICE void down_phase(const Step& s, const Layer* layer, int& chunk, u32 tag) {
    constexpr int PLACES = QKV_MAIL + FOUND_MAIL;
    const int start = rank_index() * SHARE, items = owned_units() * ROWS * 8 * TEAM;
    product<SHARE, false, 1>(
        chunk, TEAM_UNITS, Inputs{s.inner + start / 2, INNER / 2, INNER - start, tag},
        [&](int, int, int) { return Early{}; },
        [&](int unit, int row, int pair, int, const Early&, float2 v, float2) {
            const int place = PLACES + ((rank_index() * OWNED + unit / TEAM) * ROWS + row) * UNIT + pair * 2;
            post(s, place, unit % TEAM, bits_of(v.x), tag + 1);
            post(s, place + 1, unit % TEAM, bits_of(v.y), tag + 1);
        });
    // A lane for each rank and two channels; all lanes of a warp go together.
#pragma unroll 1
    for (int first = warp_index() * 32; first < items; first += THREADS) {
        const int item = min(first + lane_index(), items - 1), rank = item % TEAM, pair = item / TEAM % 8;
        const int row = item / (TEAM * 8) % ROWS, unit = item / (TEAM * 8 * ROWS), channel = owned_row(unit) + pair * 2;
        const Word* const own = s.middle + (row * WIDTH + channel) / 2;
        const int place = PLACES + ((rank * OWNED + unit) * ROWS + row) * UNIT + pair * 2;
        const float2 factor = factors_of(layer->out_factors, channel);
        const Word asked = get(own);
        const float2 share = collect(s, place, tag + 1);
        const u32 before = arrived(asked, own, tag - 1);
        const float2 v = scaled(float2{team_sum(share.x), team_sum(share.y)}, factor);
        const u32 both = to_bf16_pair(v.x + low_half(before), v.y + high_half(before));
        if (rank == 0 && first + lane_index() < items) put(s.stream + (row * WIDTH + channel) / 2, both, tag + 1);
    }
}

DEVICE void head_phase(const Step& s, int& chunk, u32 tag) {
    const int start = first_unit(block_index(), HEAD_UNITS), units = first_unit(block_index() + 1, HEAD_UNITS) - start;
    product<WIDTH, false, 1>(
        chunk, units, Inputs{s.stream, WIDTH / 2, WIDTH, tag, true, nullptr, 0, 0, s.final_norm, true, s.eps},
        [&](int unit, int, int pair) {
            return Early{{}, factors_of(s.head_factors, (start + unit) * UNIT + pair * 2), {}};
        },
        [&](int unit, int row, int pair, int, const Early& early, float2 v, float2) {
            v = scaled(v, early.factor);
            u16* const to = s.logits + row * s.logits_stride + (start + unit) * UNIT + pair * 2;
            if (row < s.count) *(u32*)to = to_bf16_pair(v.x, v.y);
        });
    if (block_index() == 0 && thread_index() < min(s.count, ROWS))
        s.entry_positions[thread_index()] =
            s.entry_tokens[thread_index()] < 0 ? 0 : s.positions[thread_index()] + 1;
}
