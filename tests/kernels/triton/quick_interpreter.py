"""Triton's interpreter without what takes it most of its time and changes nothing.

It replaces the language's functions by its own at each launch and once more at each call of a function of a
kernel's, and searches all of the language for them each time; it computes every sum of whole numbers a
second time in 64 bits, for a check that it then leaves out; and it makes types and shapes anew for each
number.
"""

import inspect
from typing import Any

import triton.language as tl
from triton.runtime import interpreter


def quicken_interpreter() -> None:
    """Before the first launch of this process."""
    interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)
    _find_builtins_once()
    _replace_once_a_launch()
    _keep_types()


def _find_builtins_once() -> None:
    def found(place: Any) -> list[str]:
        return [name for name, member in inspect.getmembers(place) if tl.core.is_builtin(member)]

    places = (tl, tl.core, tl.math, tl.tensor, tl.core.tensor_descriptor_base)
    builtins = [(place, found(place)) for place in places]
    assert all(names for _, names in builtins), "the interpreter has replaced them already"

    def replace(place: Any, builder: Any, scope: Any) -> None:
        (names,) = (names for known, names in builtins if known is place)
        for name in names:
            member = getattr(place, name)
            if tl.core.is_builtin(member):
                interpreter._patch_attr(place, name, member, builder, scope)

    interpreter._patch_builtin = replace


def _replace_once_a_launch() -> None:
    """For each module that kernels or their functions come from."""
    replace, replaced = interpreter._patch_lang, set[int]()

    class Scope(interpreter._LangPatchScope):  # type: ignore[misc]
        def restore(self) -> None:
            replaced.clear()
            super().restore()

    def replace_once(function: Any) -> Any:
        module = id(function.__globals__)
        if module in replaced:
            return Scope()
        scope = replace(function)
        replaced.add(module)
        return scope

    interpreter._LangPatchScope = Scope
    interpreter._patch_lang = replace_once


def _keep_types() -> None:
    find = interpreter._get_np_dtype
    names = (*tl.dtype.SINT_TYPES, *tl.dtype.UINT_TYPES, *tl.dtype.FP_TYPES)
    scalars = {name: find(tl.dtype(name)) for name in names}
    pointer = find(tl.pointer_type(tl.int8))

    def numpy_type(kind: Any) -> Any:
        scalar = kind.scalar
        return pointer if isinstance(scalar, tl.pointer_type) else scalars[scalar.name]

    interpreter._get_np_dtype = numpy_type
    _keep_shapes()


def _keep_shapes() -> None:
    blocks: dict[tuple[str, tuple[int, ...]], tuple[Any, int, str]] = {}
    shapes: dict[tuple[int, ...], tuple[Any, Any]] = {}
    make_block, make_tensor = tl.block_type.__init__, tl.tensor.__init__
    compare, same = tl.tuple.__eq__, tl.constexpr(True)

    def block(self: Any, scalar: Any, shape: Any) -> None:
        sizes = tuple(size.value if isinstance(size, tl.constexpr) else size for size in shape)
        key = scalar.name, sizes
        if key not in blocks:
            make_block(self, scalar, shape)
            blocks[key] = self.shape, self.numel, self.name
            return
        self.element_ty = scalar
        self.shape, self.numel, self.name = blocks[key]

    def tensor(self: Any, handle: Any, kind: Any) -> None:
        sizes = tuple(kind.shape.values) if kind.is_block() else ()
        if sizes not in shapes:
            make_tensor(self, handle, kind)
            shapes[sizes] = self.shape, self.numel
            return
        self.handle, self.type, self.dtype = handle, kind, kind.scalar
        self.shape, self.numel = shapes[sizes]

    def equal(self: Any, other: Any) -> Any:
        return same if self is other else compare(self, other)

    tl.block_type.__init__, tl.tensor.__init__, tl.tuple.__eq__ = block, tensor, equal
