// What kernels/cuda/primitives.cu does, on fibers of the host: the larger part of emulation.h, compiled once.
#include "emulation.h"

#include "fibers.h"

#include <cmath>
#include <map>

int grid_size() { return (int)world.grid; }
void block_barrier() { meet(self().home->all, world.threads); }
void warp_barrier() { meet(self().warp->meeting, 32); }
// What `lane` of this warp has put in; all lanes put in something.
static u32 exchanged(u32 value, int lane) {
    Warp& w = *self().warp;
    w.values[me->thread & 31] = value;
    meet(w.meeting, 32);
    const u32 other = w.values[lane];
    meet(w.meeting, 32);
    return other;
}
float warp_xor(float value, int mask) { return float_of(exchanged(bits_of(value), (me->thread & 31) ^ mask)); }
int warp_from(int value, int lane) { return (int)exchanged((u32)value, lane); }
u32 warp_max(u32 value) {
    Warp& w = *self().warp;
    w.values[me->thread & 31] = value;
    meet(w.meeting, 32);
    const u32 most = *std::max_element(w.values, w.values + 32);
    meet(w.meeting, 32);
    return most;
}
u32 transpose(u32 pair) {
    Warp& w = *self().warp;
    const int lane = me->thread & 31, g = lane / 4, c = lane % 4;
    w.values[lane] = pair;
    meet(w.meeting, 32);
    const auto number = [&](int row, int column) { return w.values[row * 4 + column / 2] >> column % 2 * 16 & 0xffff; };
    const u32 transposed = number(2 * c, g) | number(2 * c + 1, g) << 16;
    meet(w.meeting, 32);
    return transposed;
}

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
    if (copy.from && memcmp(copy.from, copy.bytes.data(), copy.bytes.size())) return "a copy's source was written meanwhile";
    memcpy(copy.to, copy.bytes.data(), copy.bytes.size());
    return "";
}
void copy_in_background(void* shared, const void* global) {
    if ((uintptr_t)global % 16 || (uintptr_t)shared % 16) fail("a copy of 16 bytes from or to between them");
    self().copies.push_back(copy_of(shared, global, 16));
    self().copies.back().group = self().group;
}
static void land_before(long group) {
    std::vector<Copy> left;
    for (const Copy& copy : self().copies) {
        if (copy.group >= group) { left.push_back(copy); continue; }
        const std::string wrong = land(copy);
        if (!wrong.empty()) fail_with(wrong);
    }
    self().copies = left;
}
void commit_copies() { self().group++; }
void wait_for_all_groups_but(int left) { land_before(self().group - left); }
void wait_for_copies() { land_before(LONG_MAX); }

// A phase is over when all arrivals are in and all announced bytes have landed.
struct Phases {
    int arrivals = 1, missing = 1;
    long bytes = 0, done = 0;
    bool awaited = false;  // somebody waits for the end of this one
    std::vector<Copy> copies;
};
static std::map<Barrier*, Phases> barriers_of;
void init_barrier(Barrier* barrier, int arrivals) {
    if ((uintptr_t)barrier % 8) fail("a barrier between multiples of 8 bytes");
    Phases& p = barriers_of[barrier] = Phases();
    p.arrivals = p.missing = arrivals;
}
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
void arrive(Barrier* barrier) { arrive_with(barrier, 0); }
void expect_bytes(Barrier* barrier, int bytes) { arrive_with(barrier, bytes); }
void copy_bulk(void* shared, const void* global, int bytes, Barrier* barrier) {
    if ((uintptr_t)global % 16 || (uintptr_t)shared % 16 || bytes % 16) fail("a bulk copy from or to between 16 bytes");
    phases(barrier).copies.push_back(copy_of(shared, global, bytes));
}
// Zeros outside of the matrix count, too. The 16 bytes i of row r lie in the place i ^ r % 8.
void copy_tile(void* shared, const TensorMap& map, int column, int row, Barrier* barrier) {
    if ((uintptr_t)shared % 1024 || (uintptr_t)map.numbers % 16 || map.pitch % 8) fail("a tile that is not aligned");
    if (map.rows < 1 || map.rows > 256 || column < 0 || row < 0) fail("a tile that there is not");
    Copy copy = copy_of(shared, shared, map.rows * 128);
    copy.from = nullptr;
    for (int r = 0; r < map.rows; r++)
        for (int c = 0; c < 64; c++) {
            const bool inside = row + r < map.height && column + c < map.width;
            const u16 number = inside ? map.numbers[(row + r) * map.pitch + column + c] : 0;
            memcpy(copy.bytes.data() + r * 128 + (c / 8 ^ r % 8) * 16 + c % 8 * 2, &number, 2);
        }
    phases(barrier).copies.push_back(copy);
}
void copy_to_peer(void* to, int peer, const void* from, int bytes, Barrier* barrier) {
    Barrier* const theirs = (Barrier*)place_in_peer(barrier, peer);
    copy_bulk(place_in_peer(to, peer), from, bytes, theirs);
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
bool test_barrier(Barrier* barrier, int parity) { return phases(barrier).done % 2 != parity; }
bool try_barrier(Barrier* barrier, int parity) {
    Phases& p = phases(barrier);
    if (p.done % 2 != parity) return true;
    p.awaited = true;
    land_due(p);
    if (p.done % 2 == parity) yield();
    return p.done % 2 != parity;
}
void wait_for_barrier(Barrier* barrier, int parity) {
    Phases& p = phases(barrier);
    while (p.done % 2 == parity) {
        const long done = p.done;
        p.awaited = true;
        land_due(p);
        if (p.done == done) pause_until_not(p.done, done);
    }
}

// d[16x8] += a[16x K] b[K x8], of which a lane has put in its numbers.
template <int K> static void multiply(Warp& w, float (&d)[4]) {
    const int lane = me->thread & 31, g = lane / 4, c = lane % 4;
    meet(w.meeting, 32);
    for (int i = 0; i < 4; i++) {
        const float* const row = w.a[g + i / 2 * 8], * const column = w.b[2 * c + i % 2];
        for (int k = 0; k < K; k++) d[i] += row[k] * column[k];
    }
    meet(w.meeting, 32);
}
template <float (&LOW)(u32), float (&HIGH)(u32)>
static void multiply_pairs(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    Warp& w = *self().warp;
    const int lane = me->thread & 31, g = lane / 4, c = lane % 4;
    const auto put_in = [c](float* numbers, u32 pair) { numbers[2 * c] = LOW(pair), numbers[2 * c + 1] = HIGH(pair); };
    put_in(w.a[g], a0), put_in(w.a[g + 8], a1), put_in(w.a[g] + 8, a2), put_in(w.a[g + 8] + 8, a3);
    put_in(w.b[g], b0), put_in(w.b[g] + 8, b1);
    multiply<16>(w, d);
}
void multiply_add(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    multiply_pairs<low_half, high_half>(d, a0, a1, a2, a3, b0, b1);
}
static float from_f16(u32 bits) {
    const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
    float size = exponent ? ldexpf(1024 + mantissa, exponent - 25) : ldexpf(mantissa, -24);
    if (exponent == 31) size = mantissa ? NAN : INFINITY;
    return bits & 0x8000 ? -size : size;
}
static float low_f16(u32 pair) { return from_f16(pair & 0xffff); }
static float high_f16(u32 pair) { return from_f16(pair >> 16); }
void multiply_add_f16(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    multiply_pairs<low_f16, high_f16>(d, a0, a1, a2, a3, b0, b1);
}

void begin_products() {
    if (self().multiplies) fail("products that have begun already");
    self().multiplies = true;
}
void commit_products() { self().multiplies = false, self().product_group++; }
void add_product(float* d, int columns, TilePlace a, TilePlace b, bool adds) {
    if (!self().multiplies) fail("a product that has not begun");
    if (((uintptr_t)a.tile | (uintptr_t)b.tile) % 1024 || (a.row | b.row) % 8 || a.k < 0 || a.k > 3 || b.k != a.k)
        fail("products of places that there are not");
    self().products.push_back({d, columns, a.tile, b.tile, a.row, b.row, a.k, adds, self().product_group});
}
static float number_of(const unsigned char* tile, int row, int column) {
    u16 bits;
    memcpy(&bits, tile + row * 128 + (column / 8 ^ row % 8) * 16 + column % 8 * 2, 2);
    return low_half(bits);
}
static void finish_product(const TileProduct& p) {
    const int lane = me->thread & 31, warp = me->thread / 32 % 4, g = lane / 4, c = lane % 4;
    for (int j = 0; j < p.columns / 8; j++)
        for (int i = 0; i < 4; i++) {
            const int row = p.a_row + warp * 16 + i / 2 * 8 + g, column = p.b_row + 8 * j + 2 * c + i % 2;
            float sum = p.adds ? p.d[4 * j + i] : 0.0f;
            for (int k = 16 * p.k; k < 16 * p.k + 16; k++) sum += number_of(p.a, row, k) * number_of(p.b, column, k);
            p.d[4 * j + i] = sum;
        }
}
void wait_for_all_products_but(int left) {
    Fiber& f = self();
    if (f.multiplies) fail("a wait for products that are not committed");
    size_t done = 0;
    while (done < f.products.size() && f.products[done].group < f.product_group - left) finish_product(f.products[done++]);
    f.products.erase(f.products.begin(), f.products.begin() + done);
}

static float from_e4m3(u32 byte) {
    const int exponent = byte >> 3 & 15, mantissa = byte & 7;
    if ((byte & 127) == 127) return NAN;
    const float size = exponent ? ldexpf(8 + mantissa, exponent - 10) : ldexpf(mantissa, -9);
    return byte & 128 ? -size : size;
}
void multiply_add_e4m3(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    Warp& w = *self().warp;
    const int lane = me->thread & 31, g = lane / 4, c = lane % 4;
    const auto put_in = [c](float* numbers, u32 four) {
        for (int i = 0; i < 4; i++) numbers[4 * c + i] = from_e4m3(four >> i * 8 & 255);
    };
    put_in(w.a[g], a0), put_in(w.a[g + 8], a1), put_in(w.a[g] + 16, a2), put_in(w.a[g + 8] + 16, a3);
    put_in(w.b[g], b0), put_in(w.b[g] + 16, b1);
    multiply<32>(w, d);
}

void group_barrier(int id, int threads) {
    if (id < 1 || id > 15 || threads % 32 || threads > world.threads) fail("a named barrier that there is not");
    meet(self().home->named[id], threads);
    // With a seed a warp may lag behind the others now, which do as much in the meantime as they can without it.
    if (!world.options.seed || me->thread % 32 || draw(16)) return;
    self().warp->resumes = world.round + draw(LONGEST_LAG);
    yield();
}

void cluster_arrive() {
    Meeting& m = *self().home->cluster;
    self().cluster_generation = m.generation;
    if (++m.arrived == world.cluster * world.threads) m.arrived = 0, m.generation++, world.changes++;
}
void cluster_wait() {
    const long& generation = self().home->cluster->generation;
    while (generation == self().cluster_generation) pause_until_not(generation, self().cluster_generation);
}
void* place_in_peer(void* pointer, int peer) {
    if (peer < 0 || peer >= world.cluster) fail("a block that the cluster does not have");
    const int own = me->block - world.first;
    const Block& block = world.blocks[own / world.cluster * world.cluster + peer];
    if (!block.running) fail("stores into a block that has not begun or has ended");
    return block.shared + ((unsigned char*)pointer - me->shared);
}

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
void put(Word* address, u32 low, u32 high) { put_word(address, {low, high}); }
void put2(Word* address, u32 first, u32 second, u32 high) {
    if ((uintptr_t)address % 16) fail("two words to between 16 bytes");
    put(address, first, high);
    put(address + 1, second, high);
}
void put_to_peer(Word* own, int peer, u32 low, u32 high) { put_word((Word*)place_in_peer(own, peer), {low, high}); }
Word get(const Word* address) { yield(); return get_word(address); }
void get2(const Word* address, u32 (&w)[4]) {
    if ((uintptr_t)address % 16) fail("two words from between 16 bytes");
    yield();
    const Word first = get_word(address), second = get_word(address + 1);
    w[0] = first.low, w[1] = first.high, w[2] = second.low, w[3] = second.high;
}
u32 load_volatile(const u32* address) { yield(); return *address; }
void store_volatile(u32* address, u32 value) { *address = value; world.changes++; }
void device_fence() { yield(); }
int atomic_add(int* address, int value) {
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
static u32 to_f16(float value) {
    const u32 sign = bits_of(value) >> 16 & 0x8000;
    if (value != value) return 0x7fff;
    const float size = std::fabs(value);
    if (size >= 65520.0f) return sign | 0x7c00;
    const int exponent = size < 0x1p-14f ? -14 : std::ilogb(size);
    const u32 bits = (u32)std::nearbyint(std::ldexp(size, 10 - exponent));  // 1024 of them are one of the exponent
    return sign | (bits + ((exponent + 14) << 10));
}
u32 to_f16_pair(float low, float high) { return to_f16(low) | to_f16(high) << 16; }
u32 f16_of_e4m3(u32 bytes) { return to_f16_pair(from_e4m3(bytes & 255), from_e4m3(bytes >> 8 & 255)); }
u32 to_e4m3_pair(float low, float high) { return to_e4m3(low) | to_e4m3(high) << 8; }
u64 nanoseconds() { return world.round * world.options.round_nanoseconds; }
u32 cycles() { yield(); return (u32)nanoseconds(); }  // what waits for a time lets the others go on
void sleep_ns(int) { yield(); }

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
static bool copies_touch(const Block& block) {
    const auto inside = [&](const void* at) {
        return at >= (const void*)block.shared && at < (const void*)(block.shared + world.shared_bytes);
    };
    for (auto& entry : barriers_of)
        for (const Copy& copy : entry.second.copies)
            if (inside(copy.from) || inside(copy.to)) return true;
    return false;
}
static void forget() {
    for (const Store& store : stores) *store.to = store.value;
    stores.clear(), barriers_of.clear();
}

float inverse_root(float value) { return 1.0f / std::sqrt(value); }
float exponential(float value) { return std::exp(value); }
float power_of_two(float value) { return std::exp2(value); }
