"""Triton kernels: what the GPU engine runs where no library is faster. Wrappers write into tensors that are
given."""
