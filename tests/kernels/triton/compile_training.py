"""Compiles the operators of training for an H200 that is not there, at a d32's sizes; prints how many. Run by
test_training.py in a process of its own: Triton's driver is the process's.
"""

import torch
import triton

from kernels.triton import training
from kernels.triton.precompile import compile_all, missing
from tests.kernels.triton.precompile_without_a_device import Device


def main() -> None:
    triton.runtime.driver.set_active(Device())
    for dtype in (torch.bfloat16, torch.float32):
        with missing() as found:
            x, heads = torch.zeros(2, 2048, dtype=dtype), torch.zeros(2, 16, 128, dtype=dtype)
            table = torch.zeros(2, 1, 128)
            raw, rows = torch.zeros(2, 8192, dtype=dtype), torch.zeros(2)
            targets = torch.zeros(2, dtype=torch.int64)
            training.rms_norm_backward(x, x, 1e-6, x)
            training.rotate_norm(heads, table, table, 1e-6, 1.0, heads)
            training.rotate_norm(heads, table, table, 1e-6, 1.2, heads)
            training.rotate_norm_backward(heads, table, table, heads, 1e-6, 1.0, heads)
            training.relu_squared_backward(x, x, x)
            training.losses(raw, targets, 15.0, 8192, rows, rows)
            training.losses_backward(raw, targets, rows, rows, 15.0, 8192, raw)
        print(len(found), compile_all(found, torch.device("cpu")))


if __name__ == "__main__":
    main()
