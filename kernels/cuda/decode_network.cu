// One decode step of a whole network, for few rows, cut into phases (decode_phases.cu) that two kernels share
// (decode_step.cu): all of them in one resident kernel, or each in a kernel of its own. What a phase computes does
// not depend on who calls it, so both give the same bits. This file: what the network is, and a block's memory.
//
// Teams: CTAS = KV_HEADS * TEAM blocks, a team for each kv head. A team computes the queries, key and value of its
// head, and attention over its keys. Other products are shared by all blocks. Of the MLP's second product each rank
// of a team takes its share of the inputs, for the outputs that the team owns, and the ranks exchange what they have
// summed; or, MLP_OUT_WHOLE, a block takes all inputs for its own outputs, and adds in the same order.
//
// Weights: producer warps bring them through a ring of slots in shared memory, by bulk copies, in the order in which
// the phases use them and without waiting for any phase: only slots hold it up, and its pace. A burst would stand in
// front of the few bytes that the phases wait for (docs/decode.md has the measurements). Keys and values come
// through the same ring. A chunk is 4 or 8 rows of a weight, or 32 keys and values; 4 rows lie in one piece in memory, if
// a product takes all their channels, and come by one copy: each copy costs a producer some 100 cycles, so two share
// the work.
//
// Products: 8 rows of a weight are the first operand of tensor-core products, 4 rows of x the second (2 where rows of x are
// split, decode_split.cu). A lane's 16 bytes of a weight's row are four pairs of channels, and go into a product as they are, though the second and the fourth stand
// for another row there: these meet columns of their own, with the other pairs of the same x. Nothing moves between
// registers. SUBS warps share the channels; their sums are kept apart and added in order, so a result depends on neither
// the number of rows, nor the other rows, nor how many warps there are.
//
// Exchange: what one block computes and others read travels in words of 8 bytes, two bf16 (or one float) and a tag
// that counts steps and phases. Readers poll until they see the tag that they expect; there is no other barrier
// between blocks. A buffer can be used again in the next layer: by then its readers have given what the writer needed.
//
// Compile-time: WIDTH; HEADS, KV_HEADS, GROUP of the first for one of the others, D; TEAM; INNER, and PADDED, the inputs that the second product of the MLP has;
// HEAD_ROWS; LAYERS; SWIGLU, else relu squared; ORDER of what queries and keys go through; BIASED, with a bias behind q, k
// and v; BLOCK_SIZE of a page. ROWS (1, 2, 4, 8, 16); WARPS, the consumers, and SUBS of them that share a product's
// channels; SLOTS of the ring. RESIDENT, the whole step in one kernel; MLP_OUT_WHOLE, see above; CLUSTERED, a team is a
// cluster and meets through distributed shared memory; DELAY, most nanoseconds that a block waits in front of a phase, for tests; TRACED, where its
// time goes is counted.
//
// Code: instructions are fetched through the same memory that the weights stream from. What phases have in common is
// therefore there once, as functions that are called; inlined everywhere the step was 160 KB of code and took half as
// long again.

constexpr int CTAS = KV_HEADS * TEAM;
constexpr int THREADS = WARPS * 32;
constexpr int GROUPS = WARPS / SUBS;
constexpr int PRODUCERS = 2;                  // warps
static_assert(SLOTS >= 4 && SLOTS % PRODUCERS == 0, "a slot is one producer's, or at the end nobody could tell whose copy fills it");
constexpr int READERS = 2;                    // warps that attend for a row: of each chunk, two tiles, each takes one
#ifdef WEIGHT_FP8
constexpr int TERMS = 2;                      // vectors that stand for a row of x, see decode_split.cu
#else
constexpr int TERMS = 1;
#endif
constexpr int COLUMNS = (ROWS * TERMS + 3) / 4;  // groups of 4 vectors
constexpr int CREWS = WARPS / READERS;        // rows that are attended for at a time
constexpr int UNIT = 16;                      // rows of a weight that belong together
constexpr int CHUNK_BYTES = 16384;
constexpr int HALF = 4;                       // rows that are copied together, half of eight
constexpr int MOST_CHANNELS = CHUNK_BYTES / HALF / (int)sizeof(Weight);
constexpr int SKEW = 64;                      // bytes, so that the halves of eight rows are on different banks
constexpr int KEY_SLOT = 2 * Bulk::STAGE * 16;
constexpr int SLOT_BYTES = ((KEY_SLOT > CHUNK_BYTES ? KEY_SLOT : CHUNK_BYTES) + 127) / 128 * 128 + SKEW;
constexpr int PARTIALS = ROWS > 4 ? 32 : 64;  // warps' sums of a unit that wait to be added
#ifdef RESIDENT
constexpr int PRODUCTS = 2;                   // whose sums have room: a warp may be one ahead of others
#else
constexpr int PRODUCTS = 1;                   // of a kernel
#endif
#ifdef MLP_OUT_WHOLE
constexpr bool DOWN_WHOLE = true;
#else
constexpr bool DOWN_WHOLE = false;
#endif
constexpr int MOST_PARTS = DOWN_WHOLE ? PARTIALS : 32;  // of a row of x: runs, times the warps that share their channels
constexpr int SQUARED = 128;                  // channels whose sum of squares is one number
constexpr int SHARE = PADDED / TEAM;          // inputs of the MLP's second product for each rank
DEVICE constexpr int larger(int a, int b) { return a > b ? a : b; }
constexpr int LONGEST = larger(larger(WIDTH, HEADS * D), DOWN_WHOLE ? PADDED : SHARE);
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
constexpr int SHARE_MAIL = DOWN_WHOLE ? 0 : TEAM * OWNED * ROWS * UNIT;
constexpr int MAIL = QKV_MAIL + FOUND_MAIL + SHARE_MAIL;
constexpr int EXCHANGES = 4;                  // tags of a layer: x, attended, middle, inner
constexpr u64 PATIENCE = 2000000000;          // nanoseconds that a step may wait

struct Layer {
    const Weight *qkv, *o, *mlp_in, *mlp_out;
    const float *qkv_factors, *o_factors, *in_factors, *out_factors;
    const u16 *qkv_bias, *q_norm, *k_norm;  // [rows of qkv], [D], [D]; null where there is none
    unsigned char *keys, *values;
    u16 *key_scales, *value_scales;         // where KV_FP8
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
    long long* trace;                    // [CTAS, LAST + 1, SPENT], cycles, where TRACED
    long long x_stride, table_stride, logits_stride;
    long long page, page_head, scale_page, scale_head;  // in numbers, and in scales
    float eps, qk_scale, score_scale;    // score_scale makes powers of two of products
    int count;                           // entries; what ROWS has more is padding
    int pace;                            // cycles between copies of CHUNK_BYTES
};

// The memory of a block.
DEVICE constexpr int rounded_up(int bytes) { return (bytes + 15) / 16 * 16; }
constexpr int AT_X = SLOTS * SLOT_BYTES;                                    // [ROWS][X_ROW], what a product multiplies: `placed`
constexpr int AT_SUMS = AT_X + ROWS * X_ROW * 2;                            // [ROWS][READERS + 1][QUADS], of attention
constexpr int AT_PARTIAL = AT_SUMS + ROWS * (READERS + 1) * QUADS * 16;     // [PRODUCTS][PARTIALS][ROWS][UNIT]
constexpr int AT_SQUARES = AT_PARTIAL + PRODUCTS * PARTIALS * ROWS * UNIT * 4;        // [ROWS][WIDTH / SQUARED]
constexpr int AT_INVERSE = AT_SQUARES + rounded_up(ROWS * (WIDTH / SQUARED) * 4);  // [ROWS][MOST_PARTS], see `split`
constexpr int AT_STATS = AT_INVERSE + (TERMS == 1 ? 0 : ROWS * MOST_PARTS * 4);  // [ROWS][READERS + 1][GROUP]
constexpr int AT_QUERY = AT_STATS + rounded_up(ROWS * (READERS + 1) * GROUP * 8);  // [CREWS * READERS][GROUP][D]
constexpr int AT_NEW = AT_QUERY + CREWS * READERS * GROUP * D * 2;          // [ROWS][2][D], new keys and values as they are kept
constexpr int AT_NEW_SCALES = AT_NEW + ROWS * 2 * D * NUMBER;               // [ROWS][2], where KV_FP8
constexpr int AT_FULL = AT_NEW_SCALES + (NUMBER == 1 ? rounded_up(ROWS * 4) : 0);  // [SLOTS], barriers
constexpr int AT_EMPTY = AT_FULL + SLOTS * 8;                               // likewise
constexpr int AT_NUMBER = AT_EMPTY + SLOTS * 8;                             // [SLOTS], of the chunk in a slot
constexpr int AT_CLOCK = AT_NUMBER + rounded_up(SLOTS * 4);
constexpr int AT_TRACE = AT_CLOCK + 16;                                     // [SPENT + 1], see `spent`
constexpr int AT_MAIL = AT_TRACE + 64;                                      // [MAIL], where CLUSTERED

template <class T> DEVICE T* memory(int place) {
    SHARED_BYTES(shared);
    return (T*)(shared + place);
}
DEVICE unsigned char* slot_of(int slot) { return memory<unsigned char>(slot * SLOT_BYTES); }
DEVICE Barrier* full_of(int slot) { return memory<Barrier>(AT_FULL) + slot; }
DEVICE Barrier* empty_of(int slot) { return memory<Barrier>(AT_EMPTY) + slot; }
// The number of the chunk in a slot. Consumers look at it whenever they like, also while it is written: the barrier, which
// they look at next, decides. (tests/gpu/sanitize.py knows these two by name.)
DEVICE int number_in(int slot) { return memory<const volatile int>(AT_NUMBER)[slot]; }
DEVICE void set_number(int slot, int chunk) { memory<volatile int>(AT_NUMBER)[slot] = chunk; }

// Where a word of x, two channels, is in shared memory: of each four the first and the third, then the others, so that a
// lane loads those of its column at one time. (What is split is placed only then.)
DEVICE constexpr int crossed(int word) { return (word & ~3) | (word & 1) << 1 | (word >> 1 & 1); }
DEVICE constexpr int placed(int word) { return TERMS == 1 ? crossed(word) : word; }

DEVICE int team_index() { return block_index() / TEAM; }
DEVICE int rank_index() { return block_index() % TEAM; }

DEVICE void consumers_meet() { group_barrier(1, THREADS); }

enum Phase { ATTENTION, OUTPUT, INNER_PRODUCT, DOWN, LAST };
// Where a block's time goes: what its first warp waits for, what that takes in all, and by stages; what its first producer
// waits for.
enum Spent {
    ON_WORDS, ON_TEAM, ON_WEIGHTS, IN_ALL,
    GATHERING, MULTIPLYING, GIVING, RECEIVING, ATTENDING, MEETING, SENDING, FINISHING,  // stages of a phase, see `lap`
    ON_SLOTS, ON_PACE, SPENT
};
#ifdef TRACED
DEVICE u32 watch() { return cycles(); }
// Adds what has passed since; by the first thread of a warp that counts.
DEVICE void spent(int what, u32 begun) {
    if (thread_index() == (what < ON_SLOTS ? 0 : THREADS)) memory<u32>(AT_TRACE)[what] += cycles() - begun;
}
// The time since the last lap was this stage's.
DEVICE void lap(int stage) {
    if (thread_index() != 0) return;
    const u32 now = cycles();
    memory<u32>(AT_TRACE)[stage] += now - memory<u32>(AT_TRACE)[SPENT];
    memory<u32>(AT_TRACE)[SPENT] = now;
}
DEVICE void begin_laps() {
    if (thread_index() == 0) memory<u32>(AT_TRACE)[SPENT] = cycles();
}
// Gives what was counted in a phase to who reads it.
DEVICE void give_trace(const Step& s, int phase, int from, int to) {
    if (thread_index() != (from < ON_SLOTS ? 0 : THREADS)) return;
    for (int what = from; what < to; what++) {
        s.trace[(block_index() * (LAST + 1) + phase) * SPENT + what] += memory<u32>(AT_TRACE)[what];
        memory<u32>(AT_TRACE)[what] = 0;
    }
}
#else
DEVICE u32 watch() { return 0; }
DEVICE void spent(int, u32) {}
DEVICE void lap(int) {}
DEVICE void begin_laps() {}
DEVICE void give_trace(const Step&, int, int, int) {}
#endif
