"""What stands against cuBLAS: the one place that lists the families of kernels."""

from kernels.device_linear import LinearScratch
from kernels.product import Family
from kernels.skinny_family import Skinny
from kernels.streamed_family import Streamed
from kernels.triton.gemm_family import TritonGemm


def families(scratch: LinearScratch, pdl: bool = False) -> list[Family]:
    """All that there are, for one network's projections on scratch's device. pdl: kernels may start before
    the one in front of them has ended.

    Triton's comes last: it compiles in this process, and what other processes compile has begun by then.
    """
    device = scratch.normed.device
    return [Skinny(device, pdl), Streamed(device, pdl), TritonGemm(scratch, pdl)]
