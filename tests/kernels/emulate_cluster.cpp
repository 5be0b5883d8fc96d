// kernels/cuda/cluster_decode.cu as a function of the host (see emulation.h). Built with the same -D options as on a
// device.
#include "emulation.h"

#include "../../kernels/cuda/attention_tile.cu"
#include "../../kernels/cuda/attention_stream.cu"
#include "../../kernels/cuda/cluster_decode.cu"

extern "C" int emulate(int grid, int shared_bytes, const u16* q, const u16* k_pages, const u16* v_pages,
                       const int* block_tables, const int* rows, const int* positions, u16* out, const u16* k_scales,
                       const u16* v_scales, const long long* strides, int kv_heads, int window, float scale, int flags) {
    return launch(grid, CLUSTER, THREADS, shared_bytes, [=] {
        cluster_decode(q, k_pages, v_pages, block_tables, rows, positions, out, k_scales, v_scales, strides[0], strides[1],
                       strides[2], strides[3], strides[4], strides[5], strides[6], strides[7], strides[8], strides[9],
                       kv_heads, window, scale, flags);
        if (flags & DEPENDENT && !me->waited) fail("no wait for the kernel before");
    });
}
