"""Numerical kernels: one torch reference for each operation, fast versions beside it.

Knows tensors only: nothing of requests, sequences or checkpoints.
"""
