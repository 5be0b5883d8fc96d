// kernels/cuda/skinny.cu as a function of the host (see emulation.h). Built with the same -D options as on a device.
#include "emulation.h"

#include "../../kernels/cuda/eight_bits.cu"
#include "../../kernels/cuda/skinny.cu"

extern "C" int emulate(int grid, int shared_bytes, const u16* x, const Weight* weight, u16* out, int m, int n,
                       int x_stride, int out_stride, float eps, int flags, int prefetch, const float* factors) {
    return launch(grid, S, PARTS * 32, shared_bytes, [=] {
#if SCALED
        skinny(x, weight, out, m, n, x_stride, out_stride, eps, flags, prefetch, factors);
#else
        skinny(x, weight, out, m, n, x_stride, out_stride, eps, flags, prefetch);
#endif
        if (flags & DEPENDENT && !me->waited) fail("no wait for the kernel before");
    });
}
