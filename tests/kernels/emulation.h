// The names of kernels/cuda/primitives.cu for a host compiler: every CUDA thread is a fiber (fibers.h), and warps,
// blocks and clusters meet as they do on the device. What takes a compiler long is in emulation.cpp, which is compiled
// once for all kernels; for the same reason this includes next to nothing of C++'s library.
#include <stdint.h>
#include <string.h>

#include <initializer_list>

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

struct alignas(16) uint4 { u32 x, y, z, w; };
struct alignas(8) uint2 { u32 x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) float2 { float x, y; };
typedef unsigned long long Barrier;
struct alignas(8) Word { u32 low, high; };  // that others wait for

// The thread that runs. waited: for the kernel before.
struct Thread { int thread, block; unsigned char* shared; bool waited = false; };
extern u32 common_seed __attribute__((visibility("hidden")));
struct Options {
    u32 seed = common_seed;     // of the threads' order and delays, and of how long copies and stores take; 0: none
    long patience = 20000;      // rounds in which nothing happens, until the threads are said to wait for ever
    long round_nanoseconds = 1;
};

// A library of each kernel has its own of all that follows.
#pragma GCC visibility push(hidden)

extern Thread* me;
// Ends the run with an error; the thread goes no further.
void fail(const char* reason);

#define KERNEL
#define DEVICE static inline
#define SHARED_CODE static
#define __restrict__
#define __launch_bounds__(...)
#define SHARED_BYTES(name) unsigned char* const name = me->shared
#define SHARED_TILES(name) SHARED_BYTES(name)
#define GRID_CONSTANT

template <class T> static constexpr T max(T a, T b) { return a < b ? b : a; }
template <class T> static constexpr T min(T a, T b) { return b < a ? b : a; }
extern "C" float fabsf(float) noexcept, fmaxf(float, float) noexcept, fminf(float, float) noexcept;
extern "C" float fmaf(float, float, float) noexcept;

static inline int thread_index() { return me->thread; }
static inline int lane_index() { return me->thread & 31; }
static inline int warp_index() { return me->thread >> 5; }
static inline int block_index() { return me->block; }
int grid_size();
void block_barrier();
void group_barrier(int id, int threads);
void warp_barrier();
float warp_xor(float value, int mask);
int warp_from(int value, int lane);
u32 warp_max(u32 value);
u32 transpose(u32 pair);
static inline void launch_dependents() {}
static inline void wait_for_previous() { me->waited = true; }
static inline uint4 load_once(const u16* address) {
    if ((uintptr_t)address % 16) fail("a load of 16 bytes from between them");
    uint4 v;
    memcpy(&v, address, 16);
    return v;
}
static inline void prefetch_line(const u16* address) { (void)*(const volatile u16*)address; }

void copy_in_background(void* shared, const void* global);
void commit_copies();
void wait_for_all_groups_but(int left);
template <int LEFT> static void wait_for_groups() { wait_for_all_groups_but(LEFT); }
void wait_for_copies();

void init_barrier(Barrier* barrier, int arrivals = 1);
static inline void order_before_copies() {}
void arrive(Barrier* barrier);
void expect_bytes(Barrier* barrier, int bytes);
static inline u64 read_once_policy() { return 0; }
void copy_bulk(void* shared, const void* global, int bytes, Barrier* barrier);
static inline void copy_bulk(void* shared, const void* global, int bytes, Barrier* barrier, u64) {
    copy_bulk(shared, global, bytes, barrier);
}
static inline void order_barriers() {}
// A matrix as kernels/tensor_map.py describes it, and tiles of it in the order in which they lie in shared memory.
struct TensorMap { const u16* numbers; int height, width; long pitch; int rows; };
void copy_tile(void* shared, const TensorMap& map, int column, int row, Barrier* barrier);
static inline void copy_tile(void* shared, const TensorMap& map, int column, int row, Barrier* barrier, u64) {
    copy_tile(shared, map, column, row, barrier);
}
static inline void fetch_map(const TensorMap&) {}
bool test_barrier(Barrier* barrier, int parity);
bool try_barrier(Barrier* barrier, int parity);
void wait_for_barrier(Barrier* barrier, int parity);

// Tensor-core products are computed from the fragment layout that the instruction set documents, not from what a
// kernel assumes.
void multiply_add(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1);
void multiply_add_f16(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1);
void multiply_add_e4m3(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1);

// Products out of shared memory, which is read when they are waited for: not before, as the device might, but never
// later than it.
typedef const unsigned char* Tile;
static inline Tile tile_at(const void* shared) { return (Tile)shared; }
struct TilePlace { Tile tile; int row, k; };
static inline TilePlace described(Tile tile, int row, int k) { return {tile, row, k}; }
void begin_products();
void commit_products();
void add_product(float* d, int columns, TilePlace a, TilePlace b, bool adds);
void wait_for_all_products_but(int left);
template <int HALF> static void multiply_tiles(float (&d)[HALF], TilePlace a, TilePlace b, bool adds) {
    add_product(d, 2 * HALF, a, b, adds);
}
template <int LEFT> static void wait_for_products() { wait_for_all_products_but(LEFT); }

void cluster_arrive();
static inline void cluster_arrive_relaxed() { cluster_arrive(); }
void cluster_wait();
void* place_in_peer(void* pointer, int peer);
void copy_to_peer(void* to, int peer, const void* from, int bytes, Barrier* barrier);
template <class T> static void store_to_peer(T* pointer, int peer, T v) { *(T*)place_in_peer(pointer, peer) = v; }

// With a seed a store becomes visible some rounds later, and later stores of other words may overtake it; to one word
// they keep their order.
void put(Word* address, u32 low, u32 high);
void put2(Word* address, u32 first, u32 second, u32 high);
void put_to_peer(Word* own, int peer, u32 low, u32 high);
Word get(const Word* address);
void get2(const Word* address, u32 (&w)[4]);
static inline Word get_shared(const Word* address) { return get(address); }
static inline void get2_shared(const Word* address, u32 (&w)[4]) { get2(address, w); }
u32 load_volatile(const u32* address);
void store_volatile(u32* address, u32 value);
void device_fence();
int atomic_add(int* address, int value);
u64 nanoseconds();
u32 cycles();
void sleep_ns(int time);

static inline float float_of(u32 bits) { float f; memcpy(&f, &bits, 4); return f; }
static inline u32 bits_of(float value) { u32 bits; memcpy(&bits, &value, 4); return bits; }
static inline float low_half(u32 pair) { return float_of(pair << 16); }
static inline float high_half(u32 pair) { return float_of(pair & 0xffff0000u); }
static inline u16 to_bf16(float value) {
    const u32 bits = bits_of(value);
    if (value != value) return 0x7fff;
    return (u16)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
static inline u32 to_bf16_pair(float low, float high) { return to_bf16(low) | (u32)to_bf16(high) << 16; }
static inline float times(float a, float b) { return a * b; }
static inline float rounded(float value) { return low_half(to_bf16(value)); }
u32 to_e4m3_pair(float low, float high);
u32 to_f16_pair(float low, float high);
u32 f16_of_e4m3(u32 bytes);
static inline u32 low_halves(u32 low, u32 high) { return (low & 0xffff) | high << 16; }
static inline u32 high_halves(u32 low, u32 high) { return low >> 16 | (high & 0xffff0000u); }
static inline u32 low_bytes(u32 first, u32 second) {
    return (first & 0xff) | (second & 0xff) << 8 | (first & 0xff00) << 8 | (second & 0xff00) << 16;
}
static inline u32 high_bytes(u32 first, u32 second) { return low_bytes(first >> 16, second >> 16); }
static inline u32 and_or(u32 bits, u32 mask, u32 more) { return (bits & mask) | more; }
static inline u32 multiply_add_pair(u32 a, u32 b, u32 c) {
    const auto exact = [](float x, float y, float z) { return (float)((double)x * y + z); };
    return to_bf16_pair(exact(low_half(a), low_half(b), low_half(c)), exact(high_half(a), high_half(b), high_half(c)));
}
float inverse_root(float value);
float exponential(float value);
float power_of_two(float value);

// together: all blocks of the grid at once, as in a resident grid, whose blocks may wait for each other; else cluster
// by cluster. body(kernel) is what a thread runs.
int run_grid(bool together, int grid, int cluster, int threads, unsigned long shared_bytes,
             void (*body)(const void*), const void* kernel, Options options);

// Runs `kernel` cluster by cluster, as for a grid whose clusters know nothing of each other. 0, or 1 with a reason,
// which `failure` returns, when threads wait for each other for ever or do what the device would not forgive.
template <class Kernel>
static int launch(int grid, int cluster, int threads, unsigned long shared_bytes, const Kernel& kernel,
                  Options options = Options(), bool together = false) {
    const auto body = [](const void* kernel) { (*(const Kernel*)kernel)(); };
    return run_grid(together, grid, cluster, threads, shared_bytes, body, &kernel, options);
}
template <class Kernel>
static int launch_together(int grid, int cluster, int threads, unsigned long shared_bytes, const Kernel& kernel,
                           Options options = Options()) {
    return launch(grid, cluster, threads, shared_bytes, kernel, options, true);
}

#pragma GCC visibility pop
