// One decode step of a network for up to ROWS entries: RESIDENT, one kernel that stays on the device for the whole
// step; otherwise one kernel for a layer's attention, for each of its other products, and for the head, launched so
// that each may start, and fetch its first weights, while those in front of it still run. The phases are the same
// (decode_phases.cu), and so are the words through which they meet: even between kernels nothing else is waited for.

constexpr int PER_STEP = LAYERS * EXCHANGES + EXCHANGES;  // tags of a step
constexpr int ALL_THREADS = THREADS + PRODUCERS * 32;
#ifdef RESIDENT
constexpr bool WHOLE = true;
#else
constexpr bool WHOLE = false;
#endif

// A producer warp: brings every other chunk to the ring, at its pace. Every lane has one.
struct Producer {
    int chunk, issued, own, pace;  // issued: behind this warp's last one; own: chunk modulo PRODUCERS
    u32 next;    // cycle before which nothing is copied
    u64 policy;
    bool over;   // nobody takes anything any more
};

// Whether the next chunk is another warp's, which then has been counted.
DEVICE bool skipped(Producer& p) {
    const bool others = p.chunk % PRODUCERS != p.own;
    p.chunk += others;
    return others;
}

// The next slot, once it is free and its time has come, for so many bytes; -1 when it is over.
DEVICE int open_slot(Producer& p, int bytes) {
    const int slot = p.chunk % SLOTS, turn = p.chunk / SLOTS;
    if (lane_index() == 0 && !p.over) {
        const u32 begun = watch();
        Wait wait;
        while (turn > 0 && !p.over && !try_barrier(empty_of(slot), (turn - 1) & 1)) p.over = !goes_on(wait);
        spent(ON_SLOTS, begun);
        if (!p.over) {
            const u32 free = watch();
            while ((int)(cycles() - p.next) < 0) {}
            spent(ON_PACE, free);
            p.next = cycles() + (u32)(p.pace * (bytes / 64) / (CHUNK_BYTES / 64));
            set_number(slot, p.chunk);
            expect_bytes(full_of(slot), bytes);
        }
    }
    warp_barrier();  // the slot is free for copies by all lanes
    p.over = warp_from(p.over, 0);
    p.chunk++;
    if (p.over) return -1;
    p.issued = p.chunk;
    return slot;
}

// 16 rows of a weight, of each the channels that are cut as C says, from `from` on.
template <class C> DEVICE void stream_rows(Producer& p, const Weight* from, int stride) {
    using P = Piece<C::blocks>;
    constexpr int AT_ONCE = C::paired ? 2 : 1;  // halves
    constexpr int EACH = 4 / AT_ONCE;           // chunks of a piece
    const int lane = lane_index();
#pragma unroll 1
    for (int i = 0; i < C::chunks; i++) {
        if (skipped(p)) continue;
        const int slot = open_slot(p, AT_ONCE * HALF * P::bytes);
        if (slot < 0) return;
        unsigned char* const to = slot_of(slot);
        const Weight* const rows = from + i % EACH * AT_ONCE * HALF * (long long)stride + i / EACH * P::channels;
        if (C::pieces == 1 && stride == C::inputs) {
            if (lane < AT_ONCE)
                copy_bulk(to + lane * P::second, rows + lane * HALF * C::inputs, HALF * P::bytes, full_of(slot), p.policy);
        }
        else if (lane < AT_ONCE * HALF)
            copy_bulk(to + lane / HALF * P::second + lane % HALF * P::bytes, rows + lane * (long long)stride, P::bytes,
                      full_of(slot), p.policy);
    }
}

// The units of a phase whose weights have K inputs, in the order in which they are multiplied: one loop for all.
template <int K> DEVICE void stream_phase(Producer& p, const Weight* weights, int phase) {
    const int start = first_unit(block_index(), phase == LAST ? HEAD_UNITS : IN_UNITS);
    const int end = first_unit(block_index() + 1, phase == LAST ? HEAD_UNITS : IN_UNITS);
    const int units = phase == ATTENTION ? QKV_UNITS : phase == OUTPUT ? owned_units() : end - start;
#pragma unroll 1
    for (int unit = 0; unit < units; unit++) {
        const int row = phase == ATTENTION ? qkv_row(unit) : phase == OUTPUT ? owned_row(unit) : (start + unit) * UNIT;
        stream_rows<Cut<K>>(p, weights + row * (long long)K, K);
    }
}

// Keys and values of every entry: two tiles of 16 keys a chunk, of each five copies, and two of scales.
DEVICE void stream_keys(Producer& p, const Step& s, const Layer& layer) {
    const int tile = lane_index() / 8, copy = lane_index() % 8, rank = rank_index();
#pragma unroll 1
    for (int entry = 0; entry < ROWS; entry++) {
        const int row = row_of(s, entry);
        if (row < 0) continue;
        const int position = s.positions[entry], count = key_chunks(position, rank);
        const int* const table = s.tables + row * s.table_stride;
#pragma unroll 1
        for (int j = 0; j < count; j++) {
            if (skipped(p)) continue;
            const int first = (rank + j * TEAM) * 2, tiles = min(2, (position - first * TILE + TILE - 1) / TILE);
            const int start = (first + min(tile, tiles - 1)) * TILE, page = table[start / BLOCK_SIZE];
            const int slot = open_slot(p, tiles * (2 * TILE * D * NUMBER + SCALE_PIECES * 16));
            if (slot < 0) return;
            constexpr int FOUR = 4 * D * NUMBER;  // keys or values, in bytes
            const int offset = start % BLOCK_SIZE;
            const long long at = (page * s.page + team_index() * s.page_head + offset * D) * NUMBER;
            const long long scale_at = page * s.scale_page + team_index() * s.scale_head + offset;
            uint4* const stage = (uint4*)slot_of(slot) + tile * Bulk::STAGE;
            if (tile >= tiles || copy > (NUMBER == 1 ? 6 : 4)) continue;
            if (copy == 0) copy_bulk(stage, layer.keys + at, 4 * FOUR, full_of(slot));
            else if (copy <= 4) copy_bulk(stage + value_at<Bulk>(4 * (copy - 1), 0), layer.values + at + (copy - 1) * FOUR,
                                          FOUR, full_of(slot));
            else copy_bulk(stage + Bulk::SCALES_AT + (copy - 5) * 2, (copy == 5 ? layer.key_scales : layer.value_scales) + scale_at,
                           TILE * 2, full_of(slot));
        }
    }
}

DEVICE void stream_down(Producer& p, const Layer& layer) {
#ifdef MLP_OUT_WHOLE
#pragma unroll 1
    for (int unit = 0; unit < owned_units(); unit++)
        stream_rows<Cut<PADDED, TEAM>>(p, layer.mlp_out + (long long)owned_row(unit) * PADDED, PADDED);
#else
#pragma unroll 1
    for (int unit = 0; unit < TEAM_UNITS; unit++) {
        const long long row = (team_index() * TEAM_UNITS + unit) * UNIT;
        stream_rows<Cut<SHARE>>(p, layer.mlp_out + row * PADDED + rank_index() * SHARE, PADDED);
    }
#endif
}

// A phase's weights, but for the keys and values.
DEVICE void stream_weights(Producer& p, const Step& s, const Layer& layer, int phase) {
    if (WHOLE) give_trace(s, phase == ATTENTION ? DOWN : phase - 1, ON_SLOTS, SPENT);
    if (phase == DOWN) return stream_down(p, layer);
    const Weight* const weights = phase == ATTENTION ? layer.qkv : phase == OUTPUT ? layer.o
                                  : phase == INNER_PRODUCT ? layer.mlp_in : s.head;
    if (phase == OUTPUT && HEADS * D != WIDTH) stream_phase<HEADS * D>(p, weights, phase);
    else stream_phase<WIDTH>(p, weights, phase);
}

// What is on its way comes to this block's memory, which must be there for it; it takes microseconds. When nobody takes
// anything any more, the other producer may have used a slot once more, and a barrier cannot tell: a while is enough.
DEVICE void drain(const Producer& p) {
    const u64 begun = nanoseconds();
    for (int chunk = max(0, p.issued - SLOTS); chunk < p.issued; chunk++)
        while (chunk % PRODUCERS == p.own && !try_barrier(full_of(chunk % SLOTS), chunk / SLOTS & 1))
            if (p.over && nanoseconds() - begun > 1000000) break;
}

// When block 0 has ended a phase: in cycles, or in nanoseconds where its next phase may be on another multiprocessor.
// In nanoseconds, the begin and the end of a step.
DEVICE void mark(const Step& s, int index) {
    if (block_index() == 0 && thread_index() == 0) s.timeline[index] = WHOLE ? cycles() : nanoseconds();
}
DEVICE void mark_time(const Step& s, int which) {
    if (block_index() == 0 && thread_index() == 0) s.timeline[LAYERS * EXCHANGES + 2 + which] = nanoseconds();
}

// For tests: some blocks come late.
DEVICE void dawdle(u32 tag) {
#ifdef DELAY
    u32 noise = (block_index() * 0x9e3779b9u) ^ (tag * 0x85ebca6bu);
    noise = (noise ^ (noise >> 15)) * 0x2c1b3c6du;
    sleep_ns((int)((noise >> 8) % DELAY));
#endif
}

DEVICE void run_phase(const Step& s, int index, int phase, int& chunk, u32 tag) {
    const Layer* const layer = s.layers + index;
    const u32 begun = watch();
    begin_laps();
    dawdle(tag + phase);
    if (phase == ATTENTION) attention_phase(s, layer, index, chunk, tag);
    if (phase == OUTPUT) output_phase(s, layer, index, chunk, tag + 1);
    if (phase == INNER_PRODUCT) inner_phase(s, layer, chunk, tag + 2);
    if (phase == DOWN) down_phase(s, layer, chunk, tag + 3);
    if (phase == LAST) head_phase(s, chunk, tag);
    spent(IN_ALL, begun);
    give_trace(s, phase, ON_WORDS, ON_SLOTS);
    mark(s, index * EXCHANGES + (phase == LAST ? 1 : phase + 1));
}

#ifdef RESIDENT
DEVICE void produce(Producer& p, const Step& s, int, int, u32) {
    Layer next = s.layers[0];
#pragma unroll 1
    for (int index = 0; index <= LAYERS; index++) {
        const Layer layer = next;
        if (index + 1 < LAYERS) next = s.layers[index + 1];
#pragma unroll 1
        for (int phase = index < LAYERS ? ATTENTION : LAST; phase < (index < LAYERS ? LAST : LAST + 1); phase++) {
            stream_weights(p, s, layer, phase);
            if (phase != ATTENTION) continue;
            if (index == 0) wait_for_previous();
            stream_keys(p, s, layer);
        }
    }
}

DEVICE void consume(const Step& s, int, int, u32 base) {
    int chunk = 0;
    mark(s, 0);
    mark_time(s, 0);
#pragma unroll 1
    for (int index = 0; index < LAYERS; index++)
#pragma unroll 1
        for (int phase = ATTENTION; phase < LAST; phase++)
            run_phase(s, index, phase, chunk, base + index * EXCHANGES);
    run_phase(s, LAYERS, LAST, chunk, base + LAYERS * EXCHANGES);
    mark_time(s, 1);
}
#else
DEVICE void produce(Producer& p, const Step& s, int index, int phase, u32 base) {
    const Layer layer = s.layers[phase == LAST ? 0 : index];
    stream_weights(p, s, layer, phase);
    if (phase == ATTENTION) {
        // Which keys there are is known once what was in front of the step has ended.
        if (index == 0) wait_for_previous();
        else await_past(s.stream, base + index * EXCHANGES);
        warp_barrier();
        stream_keys(p, s, layer);
    }
}

DEVICE void consume(const Step& s, int index, int phase, u32 base) {
    int chunk = 0;
    if (index == 0 && phase == ATTENTION) {
        mark(s, 0);
        mark_time(s, 0);
    }
    run_phase(s, index, phase, chunk, base + index * EXCHANGES);
    if (phase == LAST) mark_time(s, 1);
}
#endif

KERNEL void __launch_bounds__(ALL_THREADS, 1) decode_step(const Step s, int index, int phase) {
    const int thread = thread_index();
    if (thread < SLOTS) {
        init_barrier(full_of(thread), 1);
        init_barrier(empty_of(thread), SUBS);
        set_number(thread, -1);
    }
    if (thread < SPENT) memory<u32>(AT_TRACE)[thread] = 0;
    if (thread == 0) *memory<Clock>(AT_CLOCK) = Clock{nanoseconds(), (u32*)s.failed};
    order_before_copies();
    // The last kernel of a step counts it, so the number is read before anything behind may start; a step's first kernel
    // may itself have started before the last step has ended.
    const bool first = index == 0 && phase == ATTENTION;
    u32 epoch = first ? 0 : load_volatile((const u32*)s.epoch);
    block_barrier();
    if (!first) launch_dependents();
#ifdef CLUSTERED
    for (int i = thread; i < MAIL; i += ALL_THREADS) memory<Word>(AT_MAIL)[i] = Word{0, 0};
    cluster_arrive();
    cluster_wait();
#endif

    if (thread >= THREADS) {
        Producer p = {0, 0, warp_index() - WARPS, s.pace * PRODUCERS, cycles(), read_once_policy(), false};
        produce(p, s, index, phase, epoch * PER_STEP);
        give_trace(s, WHOLE ? LAST : phase, ON_SLOTS, SPENT);
        drain(p);
    }
    else {
        if (first) {
            wait_for_previous();
            epoch = load_volatile((const u32*)s.epoch);
            consumers_meet();
            launch_dependents();
        }
        consume(s, index, phase, epoch * PER_STEP);
        if (!first) wait_for_previous();  // so that the end of the step is the end of all its kernels
        consumers_meet();
        if (thread == 0 && (phase == LAST || WHOLE) && atomic_add(s.arrived, 1) == CTAS - 1) {
            *s.arrived = 0;
            store_volatile((u32*)s.epoch, epoch + 1);
        }
    }
#ifdef CLUSTERED
    cluster_arrive();  // nobody writes into a block that has gone
    cluster_wait();
#endif
}
