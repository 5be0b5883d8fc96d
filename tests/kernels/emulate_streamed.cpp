// kernels/cuda/streamed.cu as a function of the host (see emulation.h). Built with the same -D options as on a device.
#include "emulation.h"

#include "../../kernels/cuda/streamed.cu"

extern "C" int emulate(int grid, int shared_bytes, const u16* x, const u16* weight, u16* out, int m, int n, int x_stride,
                       int out_stride, float eps, int flags) {
    const TensorMap weights = {weight, n, K, K, OUTPUTS}, inputs = {x, m, K, x_stride, ROWS};
    return launch(grid, S, THREADS, shared_bytes, [=] {
        streamed(weights, inputs, out, m, n, out_stride, eps, flags);
        if (flags & DEPENDENT && !me->waited) fail("no wait for the kernel before");
    });
}
