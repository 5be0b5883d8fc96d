// Tiny kernels, right ones and wrong ones, that show what the emulation notices (test_emulation.py).
#include "emulation.h"

static Options options(u32 seed) {
    Options o;
    o.seed = seed, o.patience = 300, o.round_nanoseconds = 1000;
    return o;
}

// out[32]: 4 bytes a lane of what one lane has copied, in bulk or in the background, and, or not, waited for.
extern "C" int copied(int bulk, int waits, int late_write, u32* data, u32* out, u32 seed) {
    return launch(1, 1, 32, 1024, [=] {
        SHARED_BYTES(shared);
        Barrier* const full = (Barrier*)(shared + 512);
        const int lane = thread_index();
        if (lane == 0) {
            init_barrier(full);
            if (bulk) expect_bytes(full, 128), copy_bulk(shared, data, 128, full);
        }
        if (!bulk && lane % 4 == 0) copy_in_background(shared + lane * 4, (const u16*)(data + lane));
        warp_barrier();
        if (late_write && lane == 5) data[5] = 0;
        warp_barrier();
        if (bulk && waits) wait_for_barrier(full, 0);
        if (!bulk && waits) wait_for_copies();
        warp_barrier();
        out[lane] = ((u32*)shared)[lane];
        warp_barrier();
        if (bulk && !waits) wait_for_barrier(full, 0);
    }, options(seed));
}

// Lane 0 arrives `arrivals` times at a barrier that takes `count`, lane 32 then waits for `parity`.
extern "C" int waited(int count, int arrivals, int parity, u32 seed) {
    return launch(1, 1, 64, 64, [=] {
        SHARED_BYTES(shared);
        Barrier* const barrier = (Barrier*)shared;
        if (thread_index() == 0) init_barrier(barrier, count);
        block_barrier();
        if (thread_index() == 0)
            for (int i = 0; i < arrivals; i++) arrive(barrier);
        block_barrier();
        if (thread_index() == 32) wait_for_barrier(barrier, parity);
    }, options(seed));
}

// One warp copies `tiles` tiles of 128 bytes through a ring of three, the other warps add them up. `empty`: whether
// the copying warp waits until a place has been read.
extern "C" int ring(int warps, int tiles, int empty, const u32* data, u32* out, u32 seed) {
    return launch(1, 1, warps * 32, 1024, [=] {
        SHARED_BYTES(shared);
        Barrier* const full = (Barrier*)(shared + 512), * const read = full + 3;
        const int lane = thread_index() % 32, warp = thread_index() / 32;
        if (thread_index() == 0)
            for (int i = 0; i < 3; i++) init_barrier(full + i), init_barrier(read + i, warps - 1);
        block_barrier();
        u32 sum = 0;
        for (int i = 0; i < tiles; i++) {
            const int turn = i % 3, phase = i / 3 % 2;
            if (warp == 0 && lane == 0) {
                if (empty) wait_for_barrier(read + turn, phase ^ 1);
                expect_bytes(full + turn, 128);
                copy_bulk(shared + turn * 128, data + i * 32, 128, full + turn);
            }
            if (warp > 0) {
                wait_for_barrier(full + turn, phase);
                sum += ((u32*)(shared + turn * 128))[lane];
                warp_barrier();
                if (lane == 0) arrive(read + turn);
            }
        }
        if (warp > 0) out[(warp - 1) * 32 + lane] = sum;
    }, options(seed));
}

// Each round every block adds up what all blocks have left in the one before. words: [buffers][grid], out: [grid].
extern "C" int exchange(int together, int grid, int cluster, int threads, int rounds, int buffers, Word* words,
                        u32* out, u32 seed) {
    const auto kernel = [=] {
        SHARED_BYTES(shared);
        u32* const sums = (u32*)shared;
        u32 mine = block_index() + 1;
        for (int round = 1; round <= rounds; round++) {
            Word* const row = words + round % buffers * grid;
            if (thread_index() == 0) put(row + block_index(), mine, round);
            u32 sum = 0;
            for (int i = 2 * thread_index(); i < grid; i += 2 * threads) {
                u32 w[4];
                do get2(row + i, w);
                while ((int)w[1] != round || (int)w[3] != round);
                sum += w[0] + w[2];
            }
            sums[thread_index()] = sum;
            block_barrier();
            mine = block_index() + 1;
            for (int i = 0; i < threads; i++) mine += sums[i];
            block_barrier();
        }
        if (thread_index() == 0) out[block_index()] = mine;
    };
    return launch(grid, cluster, threads, threads * 4, kernel, options(seed), together);
}

// A value and then a flag, as two words, or as one.
extern "C" int flagged(int one, Word* words, u32* out, u32 seed) {
    return launch_together(2, 1, 32, 0, [=] {
        if (thread_index()) return;
        if (block_index() == 0) {
            put(words, 41, one);
            if (!one) put(words + 1, 0, 1);
        } else {
            while (get(words + 1 - one).high != 1) {}
            *out = get(words).low;
        }
    }, options(seed));
}

// Each block sends its number to the next one of the cluster, the last one to the first. waits: for the cluster.
extern "C" int passed_on(int grid, int cluster, int waits, u32* out, u32 seed) {
    return launch_together(grid, cluster, 32, 64, [=] {
        SHARED_BYTES(shared);
        Word* const inbox = (Word*)shared;
        if (thread_index() == 0) *inbox = Word{0, 0};
        if (waits) cluster_arrive(), cluster_wait();
        if (thread_index() == 0) put_to_peer(inbox, (block_index() + 1) % cluster, block_index(), 9);
        Word word;
        do word = get_shared(inbox);
        while (word.high != 9);
        if (thread_index() == 0) out[block_index()] = word.low;
    }, options(seed));
}

// Warps 0 and 1 turn a counter of theirs `rounds` times, warp 2 leaves at once. count: what they say they are.
extern "C" int named(int rounds, int count, int groups, u32* out, u32 seed) {
    return launch(1, 1, 96, 256, [=] {
        SHARED_BYTES(shared);
        u32* const counters = (u32*)shared;
        const int t = thread_index();
        if (t >= 64) return;
        counters[t] = t;
        for (int i = 0; i < rounds; i++) {
            if (groups) group_barrier(1, count + t / 32 * (64 - count));
            const u32 next = counters[(t + 33) % 64];
            if (groups) group_barrier(2, 64);
            counters[t] = next;
        }
        out[t] = counters[t];
    }, options(seed));
}

// order: [blocks * 32], the threads in the order in which they counted.
extern "C" int counted(int blocks, int* counter, u32* order, u32 seed) {
    return launch_together(blocks, 1, 32, 0, [=] {
        order[atomic_add(counter, 1)] = block_index() * 32 + thread_index();
    }, options(seed));
}

// wrong: 1 a warp misses the block's barrier, 2 a thread writes past shared memory, 3 somebody leaves while a copy is
// on its way, 4 an arrival too many, 5 a lane of a warp is missing, 6 nobody initialised the barrier. 0: none.
extern "C" int wrong(int what, const u32* data, u32 seed) {
    return launch(1, 1, 64, 128, [=] {
        SHARED_BYTES(shared);
        const int t = thread_index();
        Barrier* const barrier = (Barrier*)(shared + 64);
        if (t == 0 && what != 6) init_barrier(barrier, 2);
        if (t < 32 || what != 1) block_barrier();
        if (t == 3 && what == 2) shared[128] = 1;
        if (t == 0 && what == 3) copy_bulk(shared, data, 16, barrier);
        if (t == 0 && what == 4) expect_bytes(barrier, 16), arrive(barrier), arrive(barrier);
        if (t == 0 && what == 6) arrive(barrier);
        if (t != 40 || what != 5) warp_xor(1.0f, 1);
    }, options(seed));
}

// Waits for a word that nobody writes, for so many nanoseconds at most; out: how many there were.
extern "C" int gives_up(u32* flag, u32 limit, u32* out, u32 seed) {
    return launch(1, 1, 32, 0, [=] {
        const u64 start = nanoseconds();
        while (!load_volatile(flag) && nanoseconds() - start < limit) sleep_ns(100);
        if (thread_index() == 0) *out = (u32)(nanoseconds() - start);
    }, options(seed));
}
