"""Matrices as the tensor memory accelerator of a Hopper and newer knows them (CUtensorMap of cuda.h)."""

import ctypes
import functools

import torch

from kernels.cuda_driver import load_driver

BYTES, ALIGNMENT = 128, 64
TILE = 64  # numbers of a row in a tile: 128 bytes, as one swizzle has
MOST_ROWS = 256  # of a tile
# Numbers of cuda.h: a kind of number, how words lie in memory and in shared memory, what is fetched beside
# what is asked for, and what stands for what is outside.
_BFLOAT16, _NO_INTERLEAVE, _SWIZZLE_128, _PROMOTE_256, _ZEROS = 9, 0, 3, 3, 0
_KEPT = 8192  # maps, a kilobyte each at most; a network has one for each projection


def tensor_map(matrix: torch.Tensor, rows: int) -> bytes:
    """The map of a bf16 matrix on a device for tiles of `rows` rows and TILE columns: a kernel's parameter.

    matrix: [any, columns], unit stride inside a row, rows 16-byte aligned. Raises DriverError.
    """
    assert matrix.dtype == torch.bfloat16 and matrix.dim() == 2 and 1 <= rows <= MOST_ROWS
    height, width = matrix.shape
    return _encoded(matrix.data_ptr(), height, width, matrix.stride(0) * 2, rows)


@functools.lru_cache(_KEPT)
def _encoded(address: int, height: int, width: int, pitch: int, rows: int) -> bytes:
    """pitch: bytes from row to row."""
    driver = load_driver()
    room = ctypes.create_string_buffer(BYTES + ALIGNMENT)
    start = ctypes.addressof(room) + -ctypes.addressof(room) % ALIGNMENT
    sizes, pitches = (ctypes.c_uint64 * 2)(width, height), (ctypes.c_uint64 * 1)(pitch)
    tile, steps = (ctypes.c_uint32 * 2)(TILE, rows), (ctypes.c_uint32 * 2)(1, 1)
    encode = driver.library.cuTensorMapEncodeTiled
    status: int = encode(
        ctypes.c_void_p(start),
        _BFLOAT16,
        2,
        ctypes.c_void_p(address),
        sizes,
        pitches,
        tile,
        steps,
        _NO_INTERLEAVE,
        _SWIZZLE_128,
        _PROMOTE_256,
        _ZEROS,
    )
    driver.check(status, f"a map of {height} x {width} numbers in tiles of {rows} x {TILE}")
    return ctypes.string_at(start, BYTES)
