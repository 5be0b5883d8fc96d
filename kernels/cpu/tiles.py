"""The inner loop of products: a tile of 32 outputs by a few rows, kept in registers over all inputs.

Weights lie as `packing` puts them: for every group of inputs (four of int8, two of bf16) 32 outputs of 32
bits each, 128 bytes. A lane of a vector is an output, an activation is spread over all lanes, and nothing is
ever added across lanes, so a row's sums are in the same order in every tile, whatever its rows and whatever
the vectors' length.
"""

from typing import Literal

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from kernels.cpu.isa import OUTPUTS, Isa

Kind = Literal["int8", "bf16"]
STEP_BYTES = 4 * OUTPUTS
AHEAD = 2048  # bytes of weights that are asked for before they are needed
_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_F32 = ir.FloatType()


def tile(kind: Kind, rows: int, isa: Isa):
    """The function tile(weights, activations, stride, steps, out): addresses of one packed block, of the
    first activation row and of [rows, 32] results (int32 sums, or float32); stride: bytes between rows;
    steps: groups of inputs. int8: the stored weights are 128 too high, so a sum is too, by 128 times the sum
    of its row's activations.
    """

    @intrinsic
    def run(context, weights, activations, stride, steps, out):
        def codegen(context, builder, signature, args):
            _emit(builder, kind, rows, isa, *args)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 5), codegen

    return run


def _emit(builder, kind: Kind, rows: int, isa: Isa, weights, activations, stride, steps, out) -> None:
    lanes, count = isa.lanes, OUTPUTS // isa.lanes
    number = _I32 if kind == "int8" else _F32
    vector = ir.VectorType(number, lanes)
    zero = ir.Constant(_I64, 0)
    starts = [builder.add(activations, builder.mul(stride, ir.Constant(_I64, row))) for row in range(rows)]
    entry = builder.block
    loop, done = builder.append_basic_block("inputs"), builder.append_basic_block("done")
    builder.branch(loop)
    builder.position_at_end(loop)
    step = builder.phi(_I64)
    step.add_incoming(zero, entry)
    sums = [[builder.phi(vector) for _ in range(count)] for _ in range(rows)]
    for phi in (phi for row in sums for phi in row):
        phi.add_incoming(ir.Constant(vector, None), entry)
    at = builder.add(weights, builder.mul(step, ir.Constant(_I64, STEP_BYTES)))
    loaded = [_load(builder, ir.VectorType(_I32, lanes), at, 4 * lanes * i, 4 * lanes) for i in range(count)]
    for line in range(0, STEP_BYTES, 64):
        _prefetch(builder, builder.add(at, ir.Constant(_I64, AHEAD + line)))
    if kind == "int8":
        new = _int8_step(builder, isa, starts, step, loaded, sums)
    else:
        new = _bf16_step(builder, isa, starts, step, loaded, sums)
    following = builder.add(step, ir.Constant(_I64, 1))
    step.add_incoming(following, builder.block)
    for phis, values in zip(sums, new, strict=True):
        for phi, value in zip(phis, values, strict=True):
            phi.add_incoming(value, builder.block)
    builder.cbranch(builder.icmp_signed("<", following, steps), loop, done)
    builder.position_at_end(done)
    for row, values in enumerate(new):
        for i, value in enumerate(values):
            place = builder.add(out, ir.Constant(_I64, 4 * (row * OUTPUTS + i * lanes)))
            builder.store(value, builder.inttoptr(place, vector.as_pointer()), align=4)


def _int8_step(builder, isa: Isa, starts, step, loaded, sums):
    offset = builder.mul(step, ir.Constant(_I64, 4))
    dots = _Dots(builder, isa, loaded)
    new = []
    for start, row in zip(starts, sums, strict=True):
        four = _load(builder, _I32, builder.add(start, offset), 0, 1)
        new.append(dots.add(row, _spread(builder, four, isa.lanes)))
    return new


def _bf16_step(builder, isa: Isa, starts, step, loaded, sums):
    """Weights are widened to float32, which is exact; activations are float32."""
    kind = ir.VectorType(_F32, isa.lanes)
    whole = loaded[0].type
    high = ir.Constant(whole, [0xFFFF0000 - (1 << 32)] * isa.lanes)
    shift = ir.Constant(whole, [16] * isa.lanes)
    pairs = [
        (builder.bitcast(builder.shl(v, shift), kind), builder.bitcast(builder.and_(v, high), kind))
        for v in loaded
    ]
    fma = builder.module.declare_intrinsic(f"llvm.fma.v{isa.lanes}f32", (), ir.FunctionType(kind, [kind] * 3))
    offset = builder.mul(step, ir.Constant(_I64, 8))
    new = []
    for start, row in zip(starts, sums, strict=True):
        at = builder.add(start, offset)
        first, second = (_spread(builder, _load(builder, _F32, at, place, 4), isa.lanes) for place in (0, 4))
        row = [builder.call(fma, [w, first, total]) for (w, _), total in zip(pairs, row, strict=True)]
        new.append([builder.call(fma, [w, second, total]) for (_, w), total in zip(pairs, row, strict=True)])
    return new


class _Dots:
    """Adds four products of unsigned weights and signed activations to each lane, exactly."""

    def __init__(self, builder, isa: Isa, loaded) -> None:
        self.builder, self.isa, self.loaded = builder, isa, loaded
        if isa.dot in ("madd", "plain"):
            # Every second byte as 16 bits: channels 0 and 2, and channels 1 and 3.
            kind = ir.VectorType(_I16, 2 * isa.lanes)
            eight, low = (ir.Constant(kind, [n] * (2 * isa.lanes)) for n in (8, 255))
            halves = [builder.bitcast(v, kind) for v in loaded]
            self.pairs = [(builder.and_(v, low), builder.lshr(v, eight)) for v in halves]

    def add(self, sums, spread):
        builder, isa = self.builder, self.isa
        if isa.dot.startswith("vnni"):
            kind = spread.type
            name = f"llvm.x86.avx512.vpdpbusd.{isa.dot.removeprefix('vnni')}"
            call = builder.module.declare_intrinsic(name, (), ir.FunctionType(kind, [kind] * 3))
            return [
                builder.call(call, [total, w, spread]) for total, w in zip(sums, self.loaded, strict=True)
            ]
        kind = ir.VectorType(_I16, 2 * isa.lanes)
        eight = ir.Constant(kind, [8] * (2 * isa.lanes))
        halves = builder.bitcast(spread, kind)
        parts = builder.ashr(builder.shl(halves, eight), eight), builder.ashr(halves, eight)
        new = []
        for total, pair in zip(sums, self.pairs, strict=True):
            for weight, part in zip(pair, parts, strict=True):
                total = builder.add(total, self._paired(weight, part, spread.type))
            new.append(total)
        return new

    def _paired(self, a, b, kind):
        """Sums of two neighbouring products of 16 bits."""
        builder, isa = self.builder, self.isa
        if isa.dot == "madd":
            name = "llvm.x86.avx512.pmaddw.d.512" if isa.lanes == 16 else "llvm.x86.avx2.pmadd.wd"
            call = builder.module.declare_intrinsic(name, (), ir.FunctionType(kind, [a.type] * 2))
            return builder.call(call, [a, b])
        sixteen = ir.Constant(kind, [16] * isa.lanes)
        a, b = builder.bitcast(a, kind), builder.bitcast(b, kind)
        low = builder.mul(*(builder.ashr(builder.shl(v, sixteen), sixteen) for v in (a, b)))
        return builder.add(low, builder.mul(*(builder.ashr(v, sixteen) for v in (a, b))))


def _load(builder, kind, address, offset: int, align: int):
    place = builder.add(address, ir.Constant(_I64, offset)) if offset else address
    return builder.load(builder.inttoptr(place, kind.as_pointer()), align=align)


def _spread(builder, value, lanes: int):
    vector = ir.VectorType(value.type, lanes)
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(_I32, 0))
    return builder.shuffle_vector(
        one, ir.Constant(vector, ir.Undefined), ir.Constant(ir.VectorType(_I32, lanes), None)
    )


def _prefetch(builder, address) -> None:
    pointer = builder.inttoptr(address, _I8.as_pointer())
    kind = ir.FunctionType(ir.VoidType(), [pointer.type, _I32, _I32, _I32])
    function = builder.module.declare_intrinsic("llvm.prefetch", [pointer.type], kind)
    builder.call(function, [pointer, *(ir.Constant(_I32, n) for n in (0, 3, 1))])
