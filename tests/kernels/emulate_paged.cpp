// kernels/cuda/paged_decode.cu as a function of the host (see emulation.h). Built with the same -D options as on a device.
#include "emulation.h"

#include "../../kernels/cuda/attention_tile.cu"
#include "../../kernels/cuda/new_token.cu"
#include "../../kernels/cuda/attention_stream.cu"
#include "../../kernels/cuda/paged_decode.cu"

extern "C" int emulate(int grid, int shared_bytes, const Launch* given) {
    const Launch a = *given;
    return launch_together(grid, 1, THREADS, shared_bytes, [=] {
        paged_decode(a);
        const bool works = block_index() / a.kv_heads < *a.live || block_index() == 0;
        if (works && a.flags & DEPENDENT && !me->waited) fail("no wait for the kernel before");
    });
}
