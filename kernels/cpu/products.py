"""Products with packed weights, shared by the team in blocks of 32 outputs."""

import numpy as np

from kernels.cpu.isa import OUTPUTS, host
from kernels.cpu.layers import ZERO, compiled
from kernels.cpu.machine import fetch_add, load_f32, load_i32, store_f32
from kernels.cpu.program import TICKET, TILE_ROWS
from kernels.cpu.tiles import STEP_BYTES, tile

# What a product does with its sums.
STORE, SQUARE, ADD = 0, 1, 2  # keep; max(0, sum)^2; a * x + b * x0 + sum
PORTIONS = 4  # of each thread: enough that one who is late holds up little
_HOST = host()
_MOST = _HOST.rows
_int8_1, _int8_2 = tile("int8", 1, _HOST), tile("int8", 2, _HOST)
_bf16_1, _bf16_2 = tile("bf16", 1, _HOST), tile("bf16", 2, _HOST)
_int8_4, _int8_8 = tile("int8", min(4, _MOST), _HOST), tile("int8", _MOST, _HOST)
_bf16_4, _bf16_8 = tile("bf16", min(4, _MOST), _HOST), tile("bf16", _MOST, _HOST)


@compiled
def _int8(weights, rows, stride, steps, out, count):
    """Rows done, at most `count`."""
    if count >= 8 and _MOST >= 8:
        _int8_8(weights, rows, stride, steps, out)
        return 8
    if count >= 4 and _MOST >= 4:
        _int8_4(weights, rows, stride, steps, out)
        return 4
    if count >= 2:
        _int8_2(weights, rows, stride, steps, out)
        return 2
    _int8_1(weights, rows, stride, steps, out)
    return 1


@compiled
def _bf16(weights, rows, stride, steps, out, count):
    if count >= 8 and _MOST >= 8:
        _bf16_8(weights, rows, stride, steps, out)
        return 8
    if count >= 4 and _MOST >= 4:
        _bf16_4(weights, rows, stride, steps, out)
        return 4
    if count >= 2:
        _bf16_2(weights, rows, stride, steps, out)
        return 2
    _bf16_1(weights, rows, stride, steps, out)
    return 1


@compiled
def _value(sums, i, int8, scale, own, extra):
    """A product's value: sums of int8 times both scales, less what the weights' offset adds."""
    if int8:
        return (np.float32(load_i32(sums, i)) - extra) * (own * scale)
    return load_f32(sums, i)


@compiled
def _finish(sums, int8, scales, own, extra, mode, a, b, x0, out):
    """32 sums of one row to their place. scales, x0, out: addresses of the block's first output."""
    for i in range(OUTPUTS):
        value = _value(sums, i, int8, load_f32(scales, i), own, extra)
        if mode == SQUARE:
            value = max(value, ZERO)
            value = value * value
        elif mode == ADD:
            value += a * load_f32(out, i) + (b * load_f32(x0, i) if x0 != 0 else ZERO)
        store_f32(out, i, value)


@compiled
def _block(
    int8, weights, scales, steps, rows, stride, stats, first, last, sums, mode, a, b, x0, out, out_stride
):
    """One block of outputs for rows first..last."""
    row = first
    while row < last:
        at = rows + row * stride
        if int8:
            done = _int8(weights, at, stride, steps, sums, last - row)
        else:
            done = _bf16(weights, at, stride, steps, sums, last - row)
        for i in range(done):
            own, extra = load_f32(stats, 4 * (row + i)), load_f32(stats, 4 * (row + i) + 1)
            offset = (row + i) * out_stride
            _finish(
                sums + 4 * OUTPUTS * i, int8, scales, own, extra, mode, a, b,
                x0 + offset if x0 != 0 else 0, out + offset,
            )  # fmt: skip
        row += done


@compiled
def multiply(
    sync,
    threads,
    int8,
    weights,
    scales,
    inputs,
    outputs,
    rows,
    stride,
    stats,
    count,
    sums,
    mode,
    a,
    b,
    x0,
    out,
    out_stride,
):
    """This thread's part of out = f(rows x weights), in portions that the team takes one after the other.

    rows: [count] of `inputs` activations, int8 or float32, `stride` bytes apart; stats: 4 float32 each. out:
    float32, `out_stride` bytes apart. sums: this thread's room for 8 x 32 numbers.
    """
    group = 4 if int8 else 2
    steps = inputs // group
    blocks = (outputs + OUTPUTS - 1) // OUTPUTS
    parts = 1
    if count >= 4 * TILE_ROWS and blocks < PORTIONS * threads:
        parts = min(count // (2 * TILE_ROWS), (PORTIONS * threads + blocks - 1) // blocks)
    size = (count + parts - 1) // parts
    size = (size + TILE_ROWS - 1) // TILE_ROWS * TILE_ROWS if parts > 1 else size
    items = blocks * parts
    portion = max(1, items // (PORTIONS * threads))
    while True:
        item = fetch_add(sync + 8 * TICKET, portion)
        if item >= items:
            return
        for index in range(item, min(item + portion, items)):
            block, part = index // parts, index % parts
            first, last = part * size, min(count, (part + 1) * size)
            if first < last:
                offset = block * OUTPUTS * 4
                _block(
                    int8, weights + block * steps * STEP_BYTES, scales + offset, steps, rows, stride, stats,
                    first, last, sums, mode, a, b, x0 + offset if x0 != 0 else 0, out + offset, out_stride,
                )  # fmt: skip
