"""Memory, atomics and bits for numba's functions: addresses are int64, indices count elements.

Plain loads and stores without bounds, so that LLVM can turn the loops around them into vectors.
"""

import platform
import sys

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_F32, _F64 = ir.FloatType(), ir.DoubleType()
_SIZES = {_I8: 1, _I16: 2, _I32: 4, _I64: 8, _F32: 4, _F64: 8}
CACHE_LINE = 64


def _place(builder, kind, address, index):
    return builder.gep(builder.inttoptr(address, kind.as_pointer()), [index])


def _loader(kind, result, widen=None):
    @intrinsic
    def load(context, address, index):
        def codegen(context, builder, signature, args):
            value = builder.load(_place(builder, kind, *args), align=_SIZES[kind])
            return value if widen is None else widen(builder, value)

        return result(types.int64, types.int64), codegen

    return load


def _storer(kind, taken, narrow=None):
    @intrinsic
    def store(context, address, index, value):
        def codegen(context, builder, signature, args):
            address, index, value = args
            if narrow is not None:
                value = narrow(builder, value)
            builder.store(value, _place(builder, kind, address, index), align=_SIZES[kind])
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, taken), codegen

    return store


def _bf16_to_f32(builder, value):
    return builder.bitcast(builder.shl(builder.zext(value, _I32), ir.Constant(_I32, 16)), _F32)


def _f32_to_bf16(builder, value):
    """To the nearest, ties to even; a NaN becomes one that rounding cannot carry over into a number."""
    bits = builder.bitcast(value, _I32)
    odd = builder.and_(builder.lshr(bits, ir.Constant(_I32, 16)), ir.Constant(_I32, 1))
    rounded = builder.add(bits, builder.add(odd, ir.Constant(_I32, 0x7FFF)))
    short = builder.trunc(builder.lshr(rounded, ir.Constant(_I32, 16)), _I16)
    magnitude = builder.and_(bits, ir.Constant(_I32, 0x7FFFFFFF))
    no_number = builder.icmp_unsigned(">", magnitude, ir.Constant(_I32, 0x7F800000))
    return builder.select(no_number, ir.Constant(_I16, 0x7FC0), short)


def _f32_to_i8(builder, value):
    return builder.trunc(builder.fptosi(value, _I32), _I8)


load_f32 = _loader(_F32, types.float32)
load_bf16 = _loader(_I16, types.float32, _bf16_to_f32)
load_f64 = _loader(_F64, types.float64)
load_u8 = _loader(_I8, types.uint8)
load_i32 = _loader(_I32, types.int32)
load_i64 = _loader(_I64, types.int64)
store_f32 = _storer(_F32, types.float32)
store_f64 = _storer(_F64, types.float64)
store_bf16 = _storer(_I16, types.float32, _f32_to_bf16)
store_i8 = _storer(_I8, types.float32, _f32_to_i8)  # a whole number within -128..127
store_i32 = _storer(_I32, types.int32)
store_i64 = _storer(_I64, types.int64)


@intrinsic
def as_f32(context, bits):
    """The float32 that these 32 bits are."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], _F32)

    return types.float32(types.int32), codegen


@intrinsic
def as_i32(context, value):
    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], _I32)

    return types.int32(types.float32), codegen


# -- between threads; all of these order what is around them


@intrinsic
def fetch_add(context, address, value):
    """Adds to an int64 and returns what was there before."""

    def codegen(context, builder, signature, args):
        pointer = builder.inttoptr(args[0], _I64.as_pointer())
        return builder.atomic_rmw("add", pointer, args[1], "acq_rel")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def peek(context, address):
    """Reads an int64 that another thread writes."""
    return types.int64(types.int64), _reads("acquire")


@intrinsic
def look(context, address):
    """`peek`, and not before an earlier `poke` of this thread is seen by all: of two threads that each poke
    and then look, one sees the other.
    """
    return types.int64(types.int64), _reads("seq_cst")


def _reads(order):
    def codegen(context, builder, signature, args):
        return builder.load_atomic(builder.inttoptr(args[0], _I64.as_pointer()), order, 8)

    return codegen


@intrinsic
def poke(context, address, value):
    """Writes an int64 that another thread reads."""

    def codegen(context, builder, signature, args):
        pointer = builder.inttoptr(args[0], _I64.as_pointer())
        builder.store_atomic(args[1], pointer, "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def relax(context):
    """A moment's rest in a loop that waits."""

    def codegen(context, builder, signature, args):
        machine = platform.machine().lower()
        if machine in ("x86_64", "amd64"):
            name, arguments = "llvm.x86.sse2.pause", []
        elif machine in ("aarch64", "arm64"):
            name, arguments = "llvm.aarch64.hint", [ir.Constant(_I32, 1)]
        else:
            return context.get_dummy_value()
        kind = ir.FunctionType(ir.VoidType(), [argument.type for argument in arguments])
        builder.call(builder.module.declare_intrinsic(name, (), kind), arguments)
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def give_way(context):
    """Lets another thread have the core; for a wait that takes long."""

    def codegen(context, builder, signature, args):
        if sys.platform == "win32":
            return context.get_dummy_value()
        kind = ir.FunctionType(_I32, [])
        function = builder.module.globals.get("sched_yield") or ir.Function(
            builder.module, kind, "sched_yield"
        )
        builder.call(function, [])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def prefetch(context, address):
    """Asks for the cache line at an address; any address will do."""

    def codegen(context, builder, signature, args):
        pointer = builder.inttoptr(args[0], _I8.as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, _I32, _I32, _I32])
        function = builder.module.declare_intrinsic("llvm.prefetch", [pointer.type], kind)
        builder.call(function, [pointer, *(ir.Constant(_I32, n) for n in (0, 3, 1))])
        return context.get_dummy_value()

    return types.void(types.int64), codegen
