"""Attention's two inner loops over a run of cached keys or values in bfloat16, in LLVM's own vectors.

A key's score and a value's share are computed alike whatever lies beside them, and values are added one key
after the other, so a query's result depends neither on the block size nor on how many queries share a call.
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from kernels.cpu.isa import Isa

_I16, _I32, _I64 = (ir.IntType(bits) for bits in (16, 32, 64))
_F32 = ir.FloatType()


def scores(isa: Isa):
    """scores(keys, stride, count, query, head_dim, out): the product of a query with each of `count` keys,
    `stride` bytes apart. query: [head_dim] float32, out: [count] float32.
    """

    @intrinsic
    def run(context, keys, stride, count, query, head_dim, out):
        def codegen(context, builder, signature, args):
            keys, stride, count, query, head_dim, out = args
            steps = builder.sdiv(head_dim, ir.Constant(_I64, isa.lanes))

            def one(key):
                row = builder.add(keys, builder.mul(key, stride))

                def channels(step, sums):
                    (total,) = sums
                    q = _load(builder, _F32, isa.lanes, query, step, 4)
                    return [_fma(builder, isa, q, _widened(builder, isa, row, step), total)]

                vector = ir.VectorType(_F32, isa.lanes)
                (total,) = _loop(builder, steps, channels, [ir.Constant(vector, None)])
                place = builder.inttoptr(builder.add(out, builder.mul(key, _i64(4))), _F32.as_pointer())
                builder.store(_across(builder, total, isa.lanes), place, align=4)

            _loop(builder, count, lambda key, sums: one(key) or [], [])
            return context.get_dummy_value()

        return types.void(*[types.int64] * 6), codegen

    return run


def shares(isa: Isa):
    """shares(values, stride, count, weights, head_dim, out): adds weights[i] * values[i], one i after the
    other, to out, [head_dim] float32.
    """

    @intrinsic
    def run(context, values, stride, count, weights, head_dim, out):
        def codegen(context, builder, signature, args):
            values, stride, count, weights, head_dim, out = args
            vectors = builder.sdiv(head_dim, ir.Constant(_I64, isa.lanes))

            def columns(wide: int):
                """Channels of `wide` vectors at a time."""

                def group(index, sums):
                    first = builder.mul(index, _i64(wide))
                    places = [builder.add(first, _i64(i)) for i in range(wide)]

                    def key(i, totals):
                        row = builder.add(values, builder.mul(i, stride))
                        at = builder.inttoptr(
                            builder.add(weights, builder.mul(i, _i64(4))), _F32.as_pointer()
                        )
                        share = _spread(builder, builder.load(at, align=4), isa.lanes)
                        return [
                            _fma(builder, isa, share, _widened(builder, isa, row, place), total)
                            for place, total in zip(places, totals, strict=True)
                        ]

                    before = [_load(builder, _F32, isa.lanes, out, place, 4) for place in places]
                    for place, total in zip(places, _loop(builder, count, key, before), strict=True):
                        _store(builder, total, out, place, 4 * isa.lanes)
                    return []

                _loop(builder, builder.sdiv(vectors, _i64(wide)), group, [])

            divides = builder.icmp_signed("==", builder.srem(vectors, _i64(4)), _i64(0))
            with builder.if_else(divides) as (four, single):
                with four:
                    columns(4)
                with single:
                    columns(1)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 6), codegen

    return run


def _i64(value: int):
    return ir.Constant(_I64, value)


def _loop(builder, count, body, values):
    """Runs body(index, values) -> values `count` times, at least once; returns the last values."""
    entry = builder.block
    block, done = builder.append_basic_block("loop"), builder.append_basic_block("after")
    builder.branch(block)
    builder.position_at_end(block)
    index = builder.phi(_I64)
    index.add_incoming(_i64(0), entry)
    phis = [builder.phi(value.type) for value in values]
    for phi, value in zip(phis, values, strict=True):
        phi.add_incoming(value, entry)
    new = body(index, phis)
    following = builder.add(index, _i64(1))
    index.add_incoming(following, builder.block)
    for phi, value in zip(phis, new, strict=True):
        phi.add_incoming(value, builder.block)
    builder.cbranch(builder.icmp_signed("<", following, count), block, done)
    builder.position_at_end(done)
    return new


def _load(builder, kind, lanes: int, address, index, size: int):
    place = builder.add(address, builder.mul(index, _i64(size * lanes)))
    return builder.load(builder.inttoptr(place, ir.VectorType(kind, lanes).as_pointer()), align=size)


def _store(builder, value, address, index, size: int) -> None:
    place = builder.add(address, builder.mul(index, _i64(size)))
    builder.store(value, builder.inttoptr(place, value.type.as_pointer()), align=4)


def _widened(builder, isa: Isa, row, index):
    """A vector of bfloat16 as float32."""
    whole = ir.VectorType(_I32, isa.lanes)
    bits = builder.zext(_load(builder, _I16, isa.lanes, row, index, 2), whole)
    shift = ir.Constant(whole, [16] * isa.lanes)
    return builder.bitcast(builder.shl(bits, shift), ir.VectorType(_F32, isa.lanes))


def _fma(builder, isa: Isa, a, b, c):
    kind = a.type
    name = f"llvm.fma.v{isa.lanes}f32"
    return builder.call(
        builder.module.declare_intrinsic(name, (), ir.FunctionType(kind, [kind] * 3)), [a, b, c]
    )


def _spread(builder, value, lanes: int):
    vector = ir.VectorType(value.type, lanes)
    undefined = ir.Constant(vector, ir.Undefined)
    one = builder.insert_element(undefined, value, ir.Constant(_I32, 0))
    return builder.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(_I32, lanes), None))


def _across(builder, value, lanes: int):
    """The sum of all lanes, halves first."""
    undefined = ir.Constant(value.type, ir.Undefined)
    half = lanes // 2
    while half:
        order = [(i + half) % lanes for i in range(lanes)]
        moved = builder.shuffle_vector(value, undefined, ir.Constant(ir.VectorType(_I32, lanes), order))
        value = builder.fadd(value, moved)
        half //= 2
    return builder.extract_element(value, ir.Constant(_I32, 0))
