"""Products with packed weights, shared by the team in blocks of 32 outputs."""

from kernels.cpu.isa import OUTPUTS, host
from kernels.cpu.layers import compiled
from kernels.cpu.machine import fetch_add
from kernels.cpu.program import TICKET, TILE_ROWS
from kernels.cpu.tiles import STEP_BYTES, tile
from kernels.spec import CompiledKind

PORTIONS = 4  # of each thread: enough that one who is late holds up little
_HOST = host()
_MOST = _HOST.rows


def _rows(kind: CompiledKind):
    """A function that multiplies as many rows as a tile takes, at most `count`, and returns how many."""
    one, two, four, eight = (tile(kind, min(rows, _MOST), _HOST) for rows in (1, 2, 4, 8))

    @compiled
    def multiply_rows(weights, scales, rows, stride, steps, stats, mode, a, b, x0, out, out_stride, count):
        if count >= 8 and _MOST >= 8:
            eight(weights, scales, rows, stride, steps, stats, mode, a, b, x0, out, out_stride)
            return 8
        if count >= 4 and _MOST >= 4:
            four(weights, scales, rows, stride, steps, stats, mode, a, b, x0, out, out_stride)
            return 4
        if count >= 2:
            two(weights, scales, rows, stride, steps, stats, mode, a, b, x0, out, out_stride)
            return 2
        one(weights, scales, rows, stride, steps, stats, mode, a, b, x0, out, out_stride)
        return 1

    return multiply_rows


_int8, _bf16 = _rows("int8"), _rows("bf16")


@compiled
def _block(int8, weights, scales, steps, rows, stride, stats, first, last, mode, a, b, x0, out, out_stride):
    """One block of outputs for rows first..last."""
    row = first
    while row < last:
        at, own, to = rows + row * stride, stats + 16 * row, out + row * out_stride
        old = x0 + row * out_stride if x0 != 0 else 0
        if int8:
            row += _int8(weights, scales, at, stride, steps, own, mode, a, b, old, to, out_stride, last - row)
        else:
            row += _bf16(weights, scales, at, stride, steps, own, mode, a, b, old, to, out_stride, last - row)


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
    mode,
    a,
    b,
    x0,
    out,
    out_stride,
):
    """This thread's part of out = f(rows x weights), in portions that the team takes one after the other.

    rows: [count] of `inputs` activations, int8 or float32, `stride` bytes apart; stats: 4 float32 each. out:
    float32, `out_stride` bytes apart.
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
                    first, last, mode, a, b, x0 + offset if x0 != 0 else 0, out + offset, out_stride,
                )  # fmt: skip
