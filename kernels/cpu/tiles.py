"""The inner loop of products: a tile of 32 outputs by a few rows, kept in registers over all inputs.

Weights lie as `packing` puts them: for every group of inputs (four of int8, two of bf16) 32 outputs of 32
bits each, 128 bytes. A lane of a vector is an output, an activation is spread over all lanes, and nothing is
ever added across lanes, so a row's sums are in the same order in every tile, whatever its rows and whatever
the vectors' length.
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from kernels.cpu.isa import OUTPUTS, Isa
from kernels.spec import CompiledKind

STEP_BYTES = 4 * OUTPUTS
AHEAD = 4096  # bytes of weights that are asked for before they are needed
_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_F32 = ir.FloatType()


# What becomes of a sum: it is kept; max(0, sum)^2; a * out + b * x0 + sum, without x0 where its address is 0.
STORE, SQUARE, ADD = 0, 1, 2


def tile(kind: CompiledKind, rows: int, isa: Isa):
    """The function tile(weights, scales, activations, stride, steps, stats, mode, a, b, x0, out, out_stride).

    All but a and b, float32, are int64. weights, scales: of one packed block. activations: the first row,
    int8 or float32, `stride` bytes from the next. steps: groups of inputs. stats: 16 bytes for each row, of
    int8 its scale, float32, and 128 times the sum of its activations, int32: by so much is a sum too high,
    for the stored weights are 128 too high. x0, out: the block's first column of the first row, float32, rows
    out_stride bytes apart.
    """

    @intrinsic
    def run(context, weights, scales, activations, stride, steps, stats, mode, a, b, x0, out, out_stride):
        def codegen(context, builder, signature, args):
            _Tile(builder, kind, rows, isa).emit(*args)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 7, *[types.float32] * 2, *[types.int64] * 3), codegen

    return run


class _Tile:
    """Writes one tile's code."""

    def __init__(self, builder, kind: CompiledKind, rows: int, isa: Isa) -> None:
        self.builder, self.kind, self.rows, self.isa = builder, kind, rows, isa
        self.vectors = range(OUTPUTS // isa.lanes)
        self.floats = ir.VectorType(_F32, isa.lanes)

    def emit(
        self, weights, scales, activations, stride, steps, stats, mode, a, b, x0, out, out_stride
    ) -> None:
        starts = [self._row(activations, stride, row) for row in range(self.rows)]
        sums = self._sums(weights, starts, steps)
        values = sums if self.kind == "bf16" else self._scaled(sums, scales, stats)
        outs = [self._row(out, out_stride, row) for row in range(self.rows)]
        olds = [self._row(x0, out_stride, row) for row in range(self.rows)]
        builder = self.builder
        a, b = (_spread(builder, factor, self.isa.lanes) for factor in (a, b))
        after = builder.append_basic_block("stored")
        blocks = {name: builder.append_basic_block(name) for name in ("keep", "square", "add", "mix")}
        mixes = builder.select(builder.icmp_signed("==", x0, _i64(0)), _i64(ADD), _i64(ADD + 1))
        choice = builder.select(builder.icmp_signed("==", mode, _i64(ADD)), mixes, mode)
        switch = builder.switch(choice, blocks["keep"])
        for number, name in ((SQUARE, "square"), (ADD, "add"), (ADD + 1, "mix")):
            switch.add_case(_i64(number), blocks[name])
        for name, block in blocks.items():
            builder.position_at_end(block)
            for row, own in enumerate(values):
                for i, value in enumerate(own):
                    place, old = self._place(outs[row], i), self._place(olds[row], i)
                    builder.store(self._became(name, value, place, old, a, b), place, align=4)
            builder.branch(after)
        builder.position_at_end(after)

    def _became(self, name: str, value, place, old, a, b):
        builder = self.builder
        if name == "square":
            positive = builder.fcmp_ordered("<", value, ir.Constant(self.floats, None))
            value = builder.select(positive, ir.Constant(self.floats, None), value)  # a NaN stays one
            return builder.fmul(value, value)
        if name in ("add", "mix"):
            value = builder.fadd(value, builder.fmul(a, builder.load(place, align=4)))
        if name == "mix":
            value = builder.fadd(value, builder.fmul(b, builder.load(old, align=4)))
        return value

    def _row(self, first, stride, row: int):
        return self.builder.add(first, self.builder.mul(stride, _i64(row))) if row else first

    def _place(self, row, i: int):
        address = self.builder.add(row, _i64(4 * self.isa.lanes * i))
        return self.builder.inttoptr(address, self.floats.as_pointer())

    def _scaled(self, sums, scales, stats):
        builder, lanes = self.builder, self.isa.lanes
        columns = [builder.load(self._place(scales, i), align=4) for i in self.vectors]
        values = []
        for row, own in enumerate(sums):
            scale = _spread(builder, _load(builder, _F32, stats, 16 * row, 4), lanes)
            extra = _spread(builder, _load(builder, _I32, stats, 16 * row + 4, 4), lanes)
            whole = [builder.sitofp(builder.sub(total, extra), self.floats) for total in own]
            values.append(
                [
                    builder.fmul(number, builder.fmul(scale, column))
                    for number, column in zip(whole, columns, strict=True)
                ]
            )
        return values

    def _sums(self, weights, starts, steps):
        builder, isa = self.builder, self.isa
        vector = ir.VectorType(_I32, isa.lanes) if self.kind == "int8" else self.floats
        entry = builder.block
        loop, done = builder.append_basic_block("inputs"), builder.append_basic_block("done")
        builder.branch(loop)
        builder.position_at_end(loop)
        step = builder.phi(_I64)
        step.add_incoming(_i64(0), entry)
        sums = [[builder.phi(vector) for _ in self.vectors] for _ in starts]
        for phi in (phi for row in sums for phi in row):
            phi.add_incoming(ir.Constant(vector, None), entry)
        at = builder.add(weights, builder.mul(step, _i64(STEP_BYTES)))
        whole = ir.VectorType(_I32, isa.lanes)
        loaded = [_load(builder, whole, at, 4 * isa.lanes * i, 4 * isa.lanes) for i in self.vectors]
        for line in range(0, STEP_BYTES, 64):
            _prefetch(builder, builder.add(at, _i64(AHEAD + line)))
        one = _int8_step if self.kind == "int8" else _bf16_step
        new = one(builder, isa, starts, step, loaded, sums)
        following = builder.add(step, _i64(1))
        step.add_incoming(following, builder.block)
        for phis, values in zip(sums, new, strict=True):
            for phi, value in zip(phis, values, strict=True):
                phi.add_incoming(value, builder.block)
        builder.cbranch(builder.icmp_signed("<", following, steps), loop, done)
        builder.position_at_end(done)
        return new


def _int8_step(builder, isa: Isa, starts, step, loaded, sums):
    offset = builder.mul(step, _i64(4))
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
    offset = builder.mul(step, _i64(8))
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


def _i64(value: int):
    return ir.Constant(_I64, value)


def _load(builder, kind, address, offset: int, align: int):
    place = builder.add(address, _i64(offset)) if offset else address
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
