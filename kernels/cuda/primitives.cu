// Single instructions that the kernels of this folder are made of. Compiled by NVRTC in front of each kernel, with
// no headers at all; tests/kernels/emulation.h holds the same names for a host compiler.

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define KERNEL extern "C" __global__
#define DEVICE __device__ __forceinline__
#define SHARED_CODE __device__ __noinline__  // is there once, however often it is called
#define SHARED_BYTES(name) extern __shared__ __align__(128) unsigned char name[]
#define SHARED_TILES(name) extern __shared__ __align__(1024) unsigned char name[]
#define GRID_CONSTANT __grid_constant__

DEVICE int thread_index() { return (int)threadIdx.x; }
DEVICE int lane_index() { return thread_index() & 31; }
DEVICE int warp_index() { return thread_index() >> 5; }
DEVICE int block_index() { return (int)blockIdx.x; }
DEVICE int grid_size() { return (int)gridDim.x; }
DEVICE void block_barrier() { __syncthreads(); }
// Of some warps of a block, `threads` in all, that call it with the same id, 1 to 15.
DEVICE void group_barrier(int id, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
DEVICE void warp_barrier() { __syncwarp(); }
DEVICE float warp_xor(float value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }
DEVICE u32 warp_max(u32 value) { return __reduce_max_sync(0xffffffffu, value); }
DEVICE int warp_from(int value, int lane) { return __shfl_sync(0xffffffffu, value, lane); }

// Programmatic dependent launch. The first lets the next kernel of the stream start, the second waits until the
// previous ones are complete and what they wrote can be read.
DEVICE void launch_dependents() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }
DEVICE void wait_for_previous() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

// 16 bytes that are read once: they shall not push anything out of the caches.
DEVICE uint4 load_once(const u16* address) {
    uint4 v;
#ifdef LOAD_256
    asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(address));
#else
    asm volatile("ld.global.cs.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(address));
#endif
    return v;
}

DEVICE void prefetch_line(const u16* address) { asm volatile("prefetch.global.L2 [%0];" ::"l"(address)); }

DEVICE u32 shared_address(const void* pointer) { return (u32)__cvta_generic_to_shared(pointer); }

// 16 bytes from global to shared memory in the background, past the L1 cache.
DEVICE void copy_in_background(void* shared, const u16* global) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)), "l"(global) : "memory");
}
// Those since the last call make a group; waits until all of them but the last LEFT groups have landed.
DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int LEFT> DEVICE void wait_for_groups() { asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory"); }
DEVICE void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// Bulk copies by the hardware beside the multiprocessor's own loads, 16 bytes or multiples, from and to multiples of
// 16. A barrier in shared memory says when they have landed: a phase is over when all `arrivals` are in, of which some
// announce bytes, and these have landed. Who waits for a parity waits for the end of the phase that has it; of the
// phase before the first, whose parity is 1, that is always past. A place may be overwritten once all lanes have
// read it.
typedef unsigned long long Barrier;
DEVICE void init_barrier(Barrier* barrier, int arrivals = 1) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
// Of a lane's own writes to shared memory: bulk copies see them, and do not overtake them.
DEVICE void order_before_copies() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
// Of barriers that this lane has initialised: all blocks of the cluster may use them once they have met.
DEVICE void order_barriers() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
DEVICE void arrive(Barrier* barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
DEVICE void expect_bytes(Barrier* barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
                 : "memory");
}
DEVICE void copy_bulk(void* shared, const void* global, int bytes, Barrier* barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                 ::"r"(shared_address(shared)), "l"(global), "r"(bytes), "r"(shared_address(barrier)) : "memory");
}
// The same for what is read once and shall be the first to leave the L2 cache.
DEVICE u64 read_once_policy() {
    u64 policy;
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}
DEVICE void copy_bulk(void* shared, const void* global, int bytes, Barrier* barrier, u64 policy) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, "
                 "[%3], %4;" ::"r"(shared_address(shared)), "l"(global), "r"(bytes), "r"(shared_address(barrier)),
                 "l"(policy) : "memory");
}
// A matrix of 16-bit numbers in memory, as the tensor memory accelerator knows it (kernels/tensor_map.py), and a tile of
// it, some rows of 64 numbers, on its way to shared memory, where it begins at a multiple of 1,024 bytes: rows behind one
// another, the 16 bytes i of row r in the place i ^ r % 8. What lies outside of the matrix becomes zeros and counts among
// the bytes that land.
struct alignas(64) TensorMap { unsigned char bytes[128]; };
DEVICE void copy_tile(void* shared, const TensorMap& map, int column, int row, Barrier* barrier) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];"
                 ::"r"(shared_address(shared)), "l"(&map), "r"(column), "r"(row), "r"(shared_address(barrier)) : "memory");
}
DEVICE void copy_tile(void* shared, const TensorMap& map, int column, int row, Barrier* barrier, u64 policy) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], "
                 "[%1, {%2, %3}], [%4], %5;" ::"r"(shared_address(shared)), "l"(&map), "r"(column), "r"(row),
                 "r"(shared_address(barrier)), "l"(policy) : "memory");
}
DEVICE void fetch_map(const TensorMap& map) { asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory"); }
// One look, or a short wait: whether the phase with this parity is over.
DEVICE bool try_barrier(Barrier* barrier, int parity) {
    u32 over;
    asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
                 : "=r"(over) : "r"(shared_address(barrier)), "r"(parity) : "memory");
    return over;
}
// One look that never waits.
DEVICE bool test_barrier(Barrier* barrier, int parity) {
    u32 over;
    asm volatile("{\n.reg .pred p;\nmbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
                 : "=r"(over) : "r"(shared_address(barrier)), "r"(parity) : "memory");
    return over;
}
DEVICE void wait_for_barrier(Barrier* barrier, int parity) {
    asm volatile("{\n.reg .pred landed;\nagain:\nmbarrier.try_wait.parity.shared::cta.b64 landed, [%0], %1;\n"
                 "@!landed bra again;\n}" ::"r"(shared_address(barrier)), "r"(parity) : "memory");
}

// d[16x8] += a[16x16] b[16x8], bf16 inputs. With g = lane / 4 and c = lane % 4 a lane holds a0: row g, k 2c and 2c+1;
// a1: row g+8, the same k; a2: row g, k 2c+8 and 2c+9; a3: row g+8; b0: k 2c and 2c+1 of column g; b1: k 2c+8 and
// 2c+9; d0, d1: row g, columns 2c and 2c+1; d2, d3: row g+8.
DEVICE void multiply_add(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// The same with f16 inputs.
DEVICE void multiply_add_f16(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// d[16x8] += a[16x32] b[32x8] of e4m3, with four numbers where the other has two: a0 is row g, k 4c to 4c+3, a2 k 4c+16 on.
DEVICE void multiply_add_e4m3(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// The same by four warps and out of shared memory, in the background: d[64 x N] (+)= a[64 x 16] b[N x 16]^T, for N = 8,
// 16, 32 and 64; what d had counts if it `adds`. a and b say where 16 channels lie, k steps behind the first, of 64 or N rows of a tile, from row `row`, a
// multiple of 8, on; all tiles of a block together begin in the first 256 KB of its shared memory. Of
// d a lane of warp w has for each 8 columns what it has of multiply_add's, of the rows 16w to 16w + 15. Between
// begin_products and the end of the wait for them sums belong to nobody else; the last LEFT groups need not have ended.
typedef u32 Tile;
DEVICE Tile tile_at(const void* shared) { return shared_address(shared) >> 4 & 0x3fff | 1u << 16; }
DEVICE u64 described(Tile tile, int row, int k) {
    const u64 swizzle_128 = 1ull << 62, eight_rows = 1024 >> 4;
    return swizzle_128 | eight_rows << 32 | (tile + row * 8 + k * 2);
}
DEVICE void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int LEFT> DEVICE void wait_for_products() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory");
}
#if __CUDA_ARCH_FEAT_SM90_ALL
DEVICE void multiply_tiles(float (&d)[4], u64 a, u64 b, bool adds) {
    asm volatile("{\n.reg .pred adds;\nsetp.ne.b32 adds, %6, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {"
                 "%0, %1, %2, %3"
                 "}, %4, %5, adds, 1, 1, 0, 0;\n}"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "l"(a), "l"(b), "r"((int)adds));
}
DEVICE void multiply_tiles(float (&d)[8], u64 a, u64 b, bool adds) {
    asm volatile("{\n.reg .pred adds;\nsetp.ne.b32 adds, %10, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {"
                 "%0, %1, %2, %3, %4, %5, %6, %7"
                 "}, %8, %9, adds, 1, 1, 0, 0;\n}"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7])
                 : "l"(a), "l"(b), "r"((int)adds));
}
DEVICE void multiply_tiles(float (&d)[16], u64 a, u64 b, bool adds) {
    asm volatile("{\n.reg .pred adds;\nsetp.ne.b32 adds, %18, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {"
                 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
                 "}, %16, %17, adds, 1, 1, 0, 0;\n}"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
                   "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15])
                 : "l"(a), "l"(b), "r"((int)adds));
}
DEVICE void multiply_tiles(float (&d)[32], u64 a, u64 b, bool adds) {
    asm volatile("{\n.reg .pred adds;\nsetp.ne.b32 adds, %34, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
                 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
                 "}, %32, %33, adds, 1, 1, 0, 0;\n}"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
                   "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),
                   "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
                   "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
                 : "l"(a), "l"(b), "r"((int)adds));
}
#endif

// An 8 x 8 matrix of 16-bit numbers, of which a lane holds row g, columns 2c (low half) and 2c+1: its transpose.
DEVICE u32 transpose(u32 pair) {
    u32 transposed;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(transposed) : "r"(pair));
    return transposed;
}

// Thread block clusters: a barrier in two halves, and stores into another block's shared memory. Relaxed: tells
// only that this block runs; nothing that it wrote need be visible. Lanes that have gone different ways meet first, for the
// instruction is one of whole warps, and illegal otherwise.
DEVICE void cluster_arrive_relaxed() {
    warp_barrier();
    asm volatile("barrier.cluster.arrive.relaxed.aligned;");
}
DEVICE void cluster_arrive() {
    warp_barrier();
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
DEVICE void cluster_wait() {
    warp_barrier();
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
DEVICE u32 peer_address(const void* pointer, int peer) {
    u32 address;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(pointer)), "r"(peer));
    return address;
}
DEVICE void store_to_peer(float4* pointer, int peer, float4 v) {
    asm volatile("st.shared::cluster.v4.f32 [%0], {%1,%2,%3,%4};" ::"r"(peer_address(pointer, peer)), "f"(v.x),
                 "f"(v.y), "f"(v.z), "f"(v.w) : "memory");
}
DEVICE void store_to_peer(float2* pointer, int peer, float2 v) {
    asm volatile("st.shared::cluster.v2.f32 [%0], {%1,%2};" ::"r"(peer_address(pointer, peer)), "f"(v.x),
                 "f"(v.y) : "memory");
}
DEVICE void store_to_peer(float* pointer, int peer, float v) {
    asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(peer_address(pointer, peer)), "f"(v) : "memory");
}

// A bulk copy out of this block's shared memory to the place in a peer's that `to` is in this one; what has landed counts
// among the bytes that the peer's barrier waits for. It may still read here when this block has done everything else.
DEVICE void copy_to_peer(void* to, int peer, const void* from, int bytes, Barrier* barrier) {
    asm volatile("cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                 ::"r"(peer_address(to, peer)), "r"(shared_address(from)), "r"(bytes), "r"(peer_address(barrier, peer))
                 : "memory");
}

// Words that others wait for: a value and, say, the number of the round that it belongs to. Eight bytes become visible
// at one time; nothing orders one word before another, or before what else a thread writes.
struct alignas(8) Word { u32 low, high; };
DEVICE u64 joined(u32 low, u32 high) { return (u64)high << 32 | low; }
DEVICE Word parted(u64 bits) { return Word{(u32)bits, (u32)(bits >> 32)}; }
DEVICE void put(Word* address, u32 low, u32 high) {
    asm volatile("st.relaxed.gpu.global.b64 [%0], %1;" ::"l"(address), "l"(joined(low, high)) : "memory");
}
DEVICE Word get(const Word* address) {
    u64 bits;
    asm volatile("ld.relaxed.gpu.global.b64 %0, [%1];" : "=l"(bits) : "l"(address) : "memory");
    return parted(bits);
}
// Two words with the same upper half, by one store of 16 bytes.
DEVICE void put2(Word* address, u32 first, u32 second, u32 high) {
    asm volatile("st.relaxed.gpu.global.v2.b64 [%0], {%1, %2};" ::"l"(address), "l"(joined(first, high)),
                 "l"(joined(second, high)) : "memory");
}
DEVICE void split_two(u32 (&w)[4], u64 first, u64 second) {
    w[0] = (u32)first, w[1] = (u32)(first >> 32), w[2] = (u32)second, w[3] = (u32)(second >> 32);
}
// Two words by one load of 16 bytes, each of them whole, but not of one time.
DEVICE void get2(const Word* address, u32 (&w)[4]) {
    u64 first, second;
    asm volatile("ld.relaxed.gpu.global.v2.b64 {%0, %1}, [%2];" : "=l"(first), "=l"(second) : "l"(address) : "memory");
    split_two(w, first, second);
}
// The same in shared memory: into another block's of the cluster, at the place that `own` is in this one; out of one's
// own.
DEVICE void put_to_peer(Word* own, int peer, u32 low, u32 high) {
    asm volatile("st.relaxed.cluster.shared::cluster.b64 [%0], %1;" ::"r"(peer_address(own, peer)),
                 "l"(joined(low, high)) : "memory");
}
DEVICE Word get_shared(const Word* address) {
    u64 bits;
    asm volatile("ld.relaxed.cluster.shared::cta.b64 %0, [%1];" : "=l"(bits) : "r"(shared_address(address)) : "memory");
    return parted(bits);
}
DEVICE void get2_shared(const Word* address, u32 (&w)[4]) {
    u64 first, second;
    asm volatile("ld.relaxed.cluster.shared::cta.v2.b64 {%0, %1}, [%2];"
                 : "=l"(first), "=l"(second) : "r"(shared_address(address)) : "memory");
    split_two(w, first, second);
}
DEVICE u32 load_volatile(const u32* address) { return *(const volatile u32*)address; }
DEVICE void store_volatile(u32* address, u32 value) { *(volatile u32*)address = value; }
// What this thread has written, and read, comes before what it does next, for the whole device.
DEVICE void device_fence() { __threadfence(); }
DEVICE int atomic_add(int* address, int value) { return atomicAdd(address, value); }

DEVICE u64 nanoseconds() {
    u64 time;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(time));
    return time;
}
DEVICE u32 cycles() {
    u32 time;
    asm volatile("mov.u32 %0, %%clock;" : "=r"(time));
    return time;
}
DEVICE void sleep_ns(int time) { asm volatile("nanosleep.u32 %0;" ::"r"(time)); }

DEVICE float low_half(u32 pair) { return __uint_as_float(pair << 16); }
DEVICE float high_half(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }
DEVICE u16 to_bf16(float value) {
    u16 bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}
DEVICE u32 to_bf16_pair(float low, float high) {
    u32 pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}
DEVICE float rounded(float value) { return low_half(to_bf16(value)); }
// Two e4m3 in the low half, to the nearest, what is too large as the largest.
DEVICE u32 to_e4m3_pair(float low, float high) {
    unsigned short pair;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(high), "f"(low));
    return pair;
}
DEVICE u32 to_f16_pair(float low, float high) {
    u32 pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}
// Of two e4m3, in the low half, the same numbers.
DEVICE u32 f16_of_e4m3(u32 bytes) {
    u32 pair;
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(pair) : "h"((unsigned short)bytes));
    return pair;
}
DEVICE u32 low_halves(u32 low, u32 high) { return __byte_perm(low, high, 0x5410); }
DEVICE u32 high_halves(u32 low, u32 high) { return __byte_perm(low, high, 0x7632); }
// The bytes of both words' low halves, in turn; of their high halves.
DEVICE u32 low_bytes(u32 first, u32 second) { return __byte_perm(first, second, 0x5140); }
DEVICE u32 high_bytes(u32 first, u32 second) { return __byte_perm(first, second, 0x7362); }
// bits & mask | more, in one instruction, which the compiler makes two of where both are constants.
DEVICE u32 and_or(u32 bits, u32 mask, u32 more) {
    u32 d;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(d) : "r"(bits), "r"(mask), "r"(more));
    return d;
}
// a b + c of two bf16 each, rounded once; numbers below the normal ones count.
DEVICE u32 multiply_add_pair(u32 a, u32 b, u32 c) {
    u32 d;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}
DEVICE float float_of(u32 bits) { return __uint_as_float(bits); }
DEVICE u32 bits_of(float value) { return __float_as_uint(value); }
// A product that is rounded by itself, whatever is added to it: the compiler might make one of both in one kernel and not in
// another.
DEVICE float times(float a, float b) { return __fmul_rn(a, b); }
DEVICE float inverse_root(float value) { return rsqrtf(value); }
DEVICE float exponential(float value) { return __expf(value); }
DEVICE float power_of_two(float value) {
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(value));
    return power;
}
