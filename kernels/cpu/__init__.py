"""A decode step on a CPU as one compiled function: numba's kernels, shared by a team of threads.

`packing` lays weights out, `tiles` and `machine` are the inner loops in LLVM's own vectors, `layers` what is
between products, `program` and `step` the whole network, `team` the threads that run it.
"""
