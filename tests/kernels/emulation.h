// The names of kernels/cuda/primitives.cu for a host compiler: every CUDA thread is a fiber (fibers.h), and warps,
// blocks and clusters meet as they do on the device. Tensor-core products are computed from the fragment layout that
// the instruction set documents, not from what a kernel assumes.
#include "fibers.h"

#include <cmath>
#include <map>

struct alignas(16) uint4 { u32 x, y, z, w; };
struct alignas(8) uint2 { u32 x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) float2 { float x, y; };

#define KERNEL
#define DEVICE static inline
#define SHARED_CODE static
#define __restrict__
#define __launch_bounds__(...)
#define SHARED_BYTES(name) unsigned char* const name = (unsigned char*)me->home->shared

using std::max;
using std::min;

static int thread_index() { return me->thread; }
static int lane_index() { return me->thread & 31; }
static int warp_index() { return me->thread >> 5; }
static int block_index() { return me->block; }
static int grid_size() { return (int)world.grid; }
static void block_barrier() { meet(me->home->all, world.threads); }
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
static u32 warp_max(u32 value) {
    u32 most = 0;
    for (int lane = 0; lane < 32; lane++) most = max(most, (u32)warp_from((int)value, lane));
    return most;
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
    if ((uintptr_t)address % 16) fail("a load of 16 bytes from between them");
    uint4 v;
    memcpy(&v, address, 16);
    return v;
}
static void prefetch_line(const u16* address) { (void)*(const volatile u16*)address; }

// Copies. The device may read the source and write the destination at any time from the call to the end of the wait:
// until then the destination is poisoned, must not be touched, and the source must not change. They land when they
// are waited for, with a seed some rounds later, so a missing wait is seen.
static Copy copy_of(void* to, const void* from, int bytes) {
    const unsigned char* const source = (const unsigned char*)from;
    Copy copy = {to, from, {source, source + bytes}, LONG_MAX};
    memset(to, 0xff, bytes);
    return copy;
}
static std::string land(const Copy& copy) {
    world.changes++;
    for (size_t i = 0; i < copy.bytes.size(); i++)
        if (((unsigned char*)copy.to)[i] != 0xff) return "somebody wrote where a copy was about to land";
    if (memcmp(copy.from, copy.bytes.data(), copy.bytes.size())) return "a copy's source was written meanwhile";
    memcpy(copy.to, copy.bytes.data(), copy.bytes.size());
    return "";
}
static void copy_in_background(void* shared, const void* global) {
    if ((uintptr_t)global % 16 || (uintptr_t)shared % 16) fail("a copy of 16 bytes from or to between them");
    me->copies.push_back(copy_of(shared, global, 16));
    me->copies.back().group = me->group;
}
static void land_before(long group) {
    std::vector<Copy> left;
    for (const Copy& copy : me->copies) {
        if (copy.group >= group) { left.push_back(copy); continue; }
        const std::string wrong = land(copy);
        if (!wrong.empty()) fail(wrong);
    }
    me->copies = left;
}
static void commit_copies() { me->group++; }
template <int LEFT> static void wait_for_groups() { land_before(me->group - LEFT); }
static void wait_for_copies() { land_before(LONG_MAX); }

// A phase is over when all arrivals are in and all announced bytes have landed.
typedef unsigned long long Barrier;
struct Phases {
    int arrivals = 1, missing = 1;
    long bytes = 0, done = 0;
    bool awaited = false;  // somebody waits for the end of this one
    std::vector<Copy> copies;
};
static std::map<Barrier*, Phases> barriers_of;
static void init_barrier(Barrier* barrier, int arrivals = 1) {
    if ((uintptr_t)barrier % 8) fail("a barrier between multiples of 8 bytes");
    Phases& p = barriers_of[barrier] = Phases();
    p.arrivals = p.missing = arrivals;
}
static void order_before_copies() {}
static Phases& phases(Barrier* barrier) {
    if (!barriers_of.count(barrier)) fail("a barrier that nobody has initialised");
    return barriers_of[barrier];
}
static void complete(Phases& p) {
    if (p.missing || p.bytes) return;
    p.missing = p.arrivals, p.awaited = false;
    p.done++, world.changes++;
}
static void arrive_with(Barrier* barrier, int bytes) {
    Phases& p = phases(barrier);
    if (!p.missing) fail("more arrivals than the barrier's phase takes");
    p.missing--, p.bytes += bytes, world.changes++;
    if (p.bytes >= 1 << 20) fail("more bytes than a barrier can count");
    complete(p);
}
static void arrive(Barrier* barrier) { arrive_with(barrier, 0); }
static void expect_bytes(Barrier* barrier, int bytes) { arrive_with(barrier, bytes); }
static u64 read_once_policy() { return 0; }
static void copy_bulk(void* shared, const void* global, int bytes, Barrier* barrier) {
    if ((uintptr_t)global % 16 || (uintptr_t)shared % 16 || bytes % 16) fail("a bulk copy from or to between 16 bytes");
    phases(barrier).copies.push_back(copy_of(shared, global, bytes));
}
static void copy_bulk(void* shared, const void* global, int bytes, Barrier* barrier, u64 policy) {
    copy_bulk(shared, global, bytes, barrier);
}
static void land_due(Phases& p) {
    for (Copy& copy : p.copies)
        if (p.awaited && copy.due == LONG_MAX) copy.due = world.round + (world.options.seed ? draw(8) : 0);
    size_t kept = 0;
    for (size_t i = 0; i < p.copies.size(); i++) {
        if (p.copies[i].due > world.round) { std::swap(p.copies[kept++], p.copies[i]); continue; }
        const std::string wrong = land(p.copies[i]);
        if (!wrong.empty()) world.failure = wrong;
        p.bytes -= p.copies[i].bytes.size();
    }
    p.copies.resize(kept);
    complete(p);
}
static bool test_barrier(Barrier* barrier, int parity) { return phases(barrier).done % 2 != parity; }
static bool try_barrier(Barrier* barrier, int parity) {
    Phases& p = phases(barrier);
    if (p.done % 2 != parity) return true;
    p.awaited = true;
    land_due(p);
    if (p.done % 2 == parity) yield();
    return p.done % 2 != parity;
}
static void wait_for_barrier(Barrier* barrier, int parity) {
    Phases& p = phases(barrier);
    while (p.done % 2 == parity) {
        const long done = p.done;
        p.awaited = true;
        land_due(p);
        if (p.done == done) pause_until_not(p.done, done);
    }
}

static float float_of(u32 bits) { float f; memcpy(&f, &bits, 4); return f; }
static u32 bits_of(float value) { u32 bits; memcpy(&bits, &value, 4); return bits; }
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

static float from_e4m3(u32 byte) {
    const int exponent = byte >> 3 & 15, mantissa = byte & 7;
    if ((byte & 127) == 127) return NAN;
    const float size = exponent ? ldexpf(8 + mantissa, exponent - 10) : ldexpf(mantissa, -9);
    return byte & 128 ? -size : size;
}
static void multiply_add_e4m3(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    Warp& w = *me->warp;
    const int lane = me->thread & 31, g = lane / 4, c = lane % 4;
    const u32 a[4] = {a0, a1, a2, a3}, b[2] = {b0, b1};
    memcpy(w.a[lane], a, 16);
    memcpy(w.b[lane], b, 8);
    meet(w.meeting, 32);
    const auto number = [](u32 four, int which) { return from_e4m3(four >> which * 8 & 255); };
    for (int i = 0; i < 4; i++) {
        const int row = g + (i / 2) * 8, column = 2 * c + i % 2;
        for (int k = 0; k < 32; k++)
            d[i] += number(w.a[row % 8 * 4 + k % 16 / 4][row / 8 + k / 16 * 2], k % 4) *
                    number(w.b[column * 4 + k % 16 / 4][k / 16], k % 4);
    }
    meet(w.meeting, 32);
}

static void group_barrier(int id, int threads) {
    if (id < 1 || id > 15 || threads % 32 || threads > world.threads) fail("a named barrier that there is not");
    meet(me->home->named[id], threads);
    // With a seed a warp may lag behind the others now, which do as much in the meantime as they can without it.
    if (!world.options.seed || me->thread % 32 || draw(16)) return;
    me->warp->resumes = world.round + draw(LONGEST_LAG);
    yield();
}

static void cluster_arrive() {
    Meeting& m = *me->home->cluster;
    me->cluster_generation = m.generation;
    if (++m.arrived == world.cluster * world.threads) m.arrived = 0, m.generation++, world.changes++;
}
static void cluster_arrive_relaxed() { cluster_arrive(); }
static void cluster_wait() {
    const long& generation = me->home->cluster->generation;
    while (generation == me->cluster_generation) pause_until_not(generation, me->cluster_generation);
}
template <class T> static T* of_peer(T* pointer, int peer) {
    if (peer < 0 || peer >= world.cluster) fail("a block that the cluster does not have");
    const int own = me->block - world.first;
    const Block& block = world.blocks[own / world.cluster * world.cluster + peer];
    if (!block.running) fail("stores into a block that has not begun or has ended");
    return (T*)(block.shared + ((unsigned char*)pointer - me->home->shared));
}
template <class T> static void store_to_peer(T* pointer, int peer, T v) { *of_peer(pointer, peer) = v; }

// Words that others wait for. With a seed a store becomes visible some rounds later, and later stores of other words
// may overtake it; to one word they keep their order.
struct alignas(8) Word { u32 low, high; };
struct Store { Word* to; Word value; long due; };
static std::vector<Store> stores;
static void put_word(Word* to, Word value) {
    if ((uintptr_t)to % 8) fail("a word between multiples of 8 bytes");
    long due = world.options.seed ? world.round + draw(8) : world.round;
    for (const Store& store : stores)
        if (store.to == to) due = max(due, store.due);
    if (due > world.round) stores.push_back({to, value, due});
    else *to = value;
    world.changes++;
}
static Word get_word(const Word* from) {
    if ((uintptr_t)from % 8) fail("a word between multiples of 8 bytes");
    return *from;
}
static void put(Word* address, u32 low, u32 high) { put_word(address, {low, high}); }
static void put2(Word* address, u32 first, u32 second, u32 high) {
    if ((uintptr_t)address % 16) fail("two words to between 16 bytes");
    put(address, first, high);
    put(address + 1, second, high);
}
static void put_to_peer(Word* own, int peer, u32 low, u32 high) { put_word(of_peer(own, peer), {low, high}); }
static Word get(const Word* address) { yield(); return get_word(address); }
static void get2(const Word* address, u32 (&w)[4]) {
    if ((uintptr_t)address % 16) fail("two words from between 16 bytes");
    yield();
    const Word first = get_word(address), second = get_word(address + 1);
    w[0] = first.low, w[1] = first.high, w[2] = second.low, w[3] = second.high;
}
static Word get_shared(const Word* address) { return get(address); }
static void get2_shared(const Word* address, u32 (&w)[4]) { get2(address, w); }
static u32 load_volatile(const u32* address) { yield(); return *address; }
static void store_volatile(u32* address, u32 value) { *address = value; world.changes++; }
static void device_fence() { yield(); }
static int atomic_add(int* address, int value) {
    const int before = *address;
    *address += value, world.changes++;
    return before;
}
static u32 to_e4m3(float value) {
    if (value != value) return 0x7f;
    const u32 sign = std::signbit(value) ? 0x80 : 0;
    const float size = std::fabs(value);
    if (size >= 448.0f) return sign | 0x7e;
    if (size < 0.015625f) return sign | (u32)std::nearbyint(size * 512.0f);  // below the normal ones; 8 is the first of them
    int exponent;
    std::frexp(size, &exponent);  // size = 0.5..1 * 2^exponent
    const u32 eighths = (u32)std::nearbyint(std::ldexp(size, 4 - exponent));  // 8 to 16
    return sign | ((u32)(exponent - 1 + 7) * 8 + eighths - 8);
}
static u32 to_e4m3_pair(float low, float high) { return to_e4m3(low) | to_e4m3(high) << 8; }
static u64 nanoseconds() { return world.round * world.options.round_nanoseconds; }
static u32 cycles() { yield(); return (u32)nanoseconds(); }  // what waits for a time lets the others go on
static void sleep_ns(int) { yield(); }

static void settle() {
    for (auto& entry : barriers_of) land_due(entry.second);
    size_t kept = 0;
    for (size_t i = 0; i < stores.size(); i++) {
        if (stores[i].due > world.round) stores[kept++] = stores[i];
        else *stores[i].to = stores[i].value, world.changes++;
    }
    stores.resize(kept);
}
static const char* unsettled() {
    for (auto& entry : barriers_of)
        if (!entry.second.copies.empty()) return "a block ended before its copies had landed";
    return nullptr;
}
static void forget() {
    for (const Store& store : stores) *store.to = store.value;
    stores.clear(), barriers_of.clear();
}

static u16 to_bf16(float value) {
    u32 bits;
    memcpy(&bits, &value, 4);
    if (value != value) return 0x7fff;
    return (u16)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
static u32 to_bf16_pair(float low, float high) { return to_bf16(low) | (u32)to_bf16(high) << 16; }
static float rounded(float value) { return low_half(to_bf16(value)); }
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
