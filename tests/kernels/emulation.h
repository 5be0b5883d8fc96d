// The names of kernels/cuda/primitives.cu for a host compiler: every CUDA thread is a fiber, and warps, blocks and
// clusters meet as they do on the device. Blocks of a cluster run at once, clusters one after the other. Tensor-core
// products are computed from the fragment layout that the instruction set documents, not from what a kernel assumes.
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <vector>

typedef unsigned short u16;
typedef unsigned int u32;
struct alignas(16) uint4 { u32 x, y, z, w; };
struct alignas(8) uint2 { u32 x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) float2 { float x, y; };

#define KERNEL
#define DEVICE static inline
#define __restrict__
#define __launch_bounds__(...)
#define SHARED_BYTES(name) unsigned char* const name = (unsigned char*)me->shared

using std::max;
using std::min;

struct Meeting { int arrived = 0; long generation = 0; };
struct Warp { Meeting meeting; float values[32]; u32 a[32][4], b[32][2]; };
struct Fiber {
    ucontext_t context;
    std::vector<char> stack;
    int thread, block;
    bool done = false, waited = false;
    long cluster_generation = 0;
    unsigned char* shared;
    Warp* warp;
    Meeting* block_meeting;
    struct { uint4* to; const u16* from; } copies[4096];
    int copy_count = 0;
};
struct Pending { ucontext_t scheduler; int threads, cluster; Meeting cluster_meeting; long grid; size_t shared_bytes; };
static const size_t GUARD = 4096;
static Fiber* me;
static Pending world;
static std::vector<Fiber*> fibers;

static void yield() { Fiber* self = me; swapcontext(&self->context, &world.scheduler); }
static void meet(Meeting& m, int count) {
    const long generation = m.generation;
    if (++m.arrived == count) { m.arrived = 0; m.generation++; return; }
    while (m.generation == generation) yield();
}

static int thread_index() { return me->thread; }
static int block_index() { return me->block; }
static int grid_size() { return (int)world.grid; }
static void block_barrier() { meet(*me->block_meeting, world.threads); }
static void warp_barrier() { meet(me->warp->meeting, 32); }
static float warp_xor(float value, int mask) {
    Warp& w = *me->warp;
    w.values[me->thread & 31] = value;
    meet(w.meeting, 32);
    const float other = w.values[(me->thread & 31) ^ mask];
    meet(w.meeting, 32);
    return other;
}
static int warp_from(int value, int lane) {
    Warp& w = *me->warp;
    w.a[me->thread & 31][0] = (u32)value;
    meet(w.meeting, 32);
    const int other = (int)w.a[lane][0];
    meet(w.meeting, 32);
    return other;
}
static u32 transpose(u32 pair) {
    Warp& w = *me->warp;
    const int lane = me->thread & 31, g = lane / 4, c = lane % 4;
    w.a[lane][0] = pair;
    meet(w.meeting, 32);
    const auto number = [&](int row, int column) { return w.a[row * 4 + column / 2][0] >> column % 2 * 16 & 0xffff; };
    const u32 transposed = number(2 * c, g) | number(2 * c + 1, g) << 16;
    meet(w.meeting, 32);
    return transposed;
}
static void launch_dependents() {}
static void wait_for_previous() { me->waited = true; }
static uint4 load_once(const u16* address) {
    if ((uintptr_t)address % 16) abort();
    uint4 v;
    memcpy(&v, address, 16);
    return v;
}
static void prefetch_line(const u16* address) { (void)*(const volatile u16*)address; }
// Copies land only when they are waited for, so a missing wait is seen.
static void copy_in_background(void* shared, const u16* global) {
    if ((uintptr_t)global % 16 || (uintptr_t)shared % 16 || me->copy_count == 4096) abort();
    me->copies[me->copy_count++] = {(uint4*)shared, global};
}
static void wait_for_copies() {
    for (int i = 0; i < me->copy_count; i++) memcpy(me->copies[i].to, me->copies[i].from, 16);
    me->copy_count = 0;
}
// Bulk copies land when their barrier is first waited for; then all bytes that were announced must be there.
typedef unsigned long long Barrier;
struct Bulk { void* to; const u16* from; int bytes; };
struct Phases { int done = 0; long expected = -1; std::vector<Bulk> pending; };
static std::map<Barrier*, Phases> barriers_of;
static void init_barrier(Barrier* barrier) { barriers_of[barrier] = Phases(); }
static void order_before_copies() {}
static Phases& phases(Barrier* barrier) {
    if (!barriers_of.count(barrier)) abort();
    return barriers_of[barrier];
}
static void expect_bytes(Barrier* barrier, int bytes) {
    Phases& p = phases(barrier);
    if (p.expected >= 0) abort();  // of a phase that nobody has waited for
    p.expected = bytes;
}
static void copy_bulk(void* shared, const u16* global, int bytes, Barrier* barrier) {
    if ((uintptr_t)global % 16 || (uintptr_t)shared % 16 || bytes % 16) abort();
    phases(barrier).pending.push_back({shared, global, bytes});
}
static void wait_for_barrier(Barrier* barrier, int parity) {
    Phases& p = phases(barrier);
    if (p.done % 2 != parity) return;  // this phase is over
    for (const Bulk& copy : p.pending) {
        memcpy(copy.to, copy.from, copy.bytes);
        p.expected -= copy.bytes;
    }
    if (p.expected) abort();
    p.pending.clear();
    p.expected = -1;
    p.done++;
}
static float low_half(u32 pair) { pair <<= 16; float f; memcpy(&f, &pair, 4); return f; }
static float high_half(u32 pair) { pair &= 0xffff0000u; float f; memcpy(&f, &pair, 4); return f; }

static void multiply_add(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    Warp& w = *me->warp;
    const int lane = me->thread & 31, g = lane / 4, c = lane % 4;
    const u32 a[4] = {a0, a1, a2, a3}, b[2] = {b0, b1};
    memcpy(w.a[lane], a, 16);
    memcpy(w.b[lane], b, 8);
    meet(w.meeting, 32);
    const auto half = [](u32 pair, int odd) { return odd ? high_half(pair) : low_half(pair); };
    for (int i = 0; i < 4; i++) {
        const int row = g + (i / 2) * 8, column = 2 * c + i % 2;
        for (int k = 0; k < 16; k++) {
            const float left = half(w.a[row % 8 * 4 + k % 8 / 2][row / 8 + k / 8 * 2], k % 2);
            const float right = half(w.b[column * 4 + k % 8 / 2][k / 8], k % 2);
            d[i] += left * right;
        }
    }
    meet(w.meeting, 32);
}

static void cluster_arrive() {
    me->cluster_generation = world.cluster_meeting.generation;
    if (++world.cluster_meeting.arrived == world.cluster * world.threads) {
        world.cluster_meeting.arrived = 0;
        world.cluster_meeting.generation++;
    }
}
static void cluster_arrive_relaxed() { cluster_arrive(); }
static void cluster_wait() { while (world.cluster_meeting.generation == me->cluster_generation) yield(); }
template <class T> static void store_to_peer(T* pointer, int peer, T v) {
    for (Fiber* f : fibers)
        if (f->block % world.cluster == peer) {
            memcpy(f->shared + ((unsigned char*)pointer - me->shared), &v, sizeof v);
            return;
        }
    abort();
}
static u16 to_bf16(float value) {
    u32 bits;
    memcpy(&bits, &value, 4);
    return (u16)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
static u32 to_bf16_pair(float low, float high) { return to_bf16(low) | (u32)to_bf16(high) << 16; }
static u32 low_halves(u32 low, u32 high) { return (low & 0xffff) | high << 16; }
static u32 high_halves(u32 low, u32 high) { return low >> 16 | (high & 0xffff0000u); }
static u32 and_or(u32 bits, u32 mask, u32 more) { return (bits & mask) | more; }
static u32 multiply_add_pair(u32 a, u32 b, u32 c) {
    const auto exact = [](float x, float y, float z) { return (float)((double)x * y + z); };
    return to_bf16_pair(exact(low_half(a), low_half(b), low_half(c)), exact(high_half(a), high_half(b), high_half(c)));
}
static float inverse_root(float value) { return 1.0f / std::sqrt(value); }
static float exponential(float value) { return std::exp(value); }
static float power_of_two(float value) { return std::exp2(value); }

static std::function<void()> body;
static void run_fiber() {
    body();
    me->done = true;
    swapcontext(&me->context, &world.scheduler);
}

// Runs `kernel` on grid / cluster clusters; shared memory starts as NaNs. 0, or 1 when threads wait for each other
// for ever or write past their shared memory.
static int launch(int grid, int cluster, int threads, size_t shared_bytes, std::function<void()> kernel) {
    body = kernel;
    for (int first = 0; first < grid; first += cluster) {
        world = Pending{};
        world.threads = threads, world.cluster = cluster, world.grid = grid, world.shared_bytes = shared_bytes;
        std::vector<unsigned char*> memory(cluster);
        std::vector<Meeting> meetings(cluster);
        std::vector<Warp> warps(cluster * threads / 32);
        for (auto& m : memory) {
            m = (unsigned char*)aligned_alloc(128, (shared_bytes + GUARD + 127) / 128 * 128);
            memset(m, 0xff, shared_bytes);
            memset(m + shared_bytes, 0x5a, GUARD);
        }
        for (int i = 0; i < cluster * threads; i++) {
            Fiber* f = new Fiber;
            f->stack.resize(1 << 16);
            f->thread = i % threads, f->block = first + i / threads;
            f->shared = memory[i / threads], f->block_meeting = &meetings[i / threads], f->warp = &warps[i / 32];
            getcontext(&f->context);
            f->context.uc_stack.ss_sp = f->stack.data(), f->context.uc_stack.ss_size = f->stack.size();
            f->context.uc_link = nullptr;
            makecontext(&f->context, run_fiber, 0);
            fibers.push_back(f);
        }
        size_t left = fibers.size();
        long rounds = 0;
        while (left && ++rounds < 1000000)
            for (Fiber* f : fibers)
                if (!f->done) {
                    me = f;
                    swapcontext(&world.scheduler, &f->context);
                    left -= f->done;
                }
        for (Fiber* f : fibers) delete f;
        fibers.clear();
        for (auto m : memory) {
            for (size_t i = 0; i < GUARD; i++) left += m[shared_bytes + i] != 0x5a;
            free(m);
        }
        if (left) return 1;
    }
    return 0;
}
