"""What Triton's interpreter does otherwise than the GPU.

It cuts float32 off where bfloat16 or e4m3 is nearest, takes e4m3's NaN for a number, multiplies matrices of
bfloat16 as the 16-bit integers that it keeps them as, knows no assembly and no launch before the end of the
kernel in front, and with today's numpy cannot take a loop's bound from a tensor.
"""

import functools
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter


@functools.cache
def mend_interpreter() -> None:
    """Once a process, where TRITON_INTERPRET was 1 when Triton was imported; before the first launch."""
    convert, patch_tensor = interpreter._convert_float, interpreter._patch_lang_tensor

    def nearest(values: Any, source: Any, target: Any, mode: Any) -> Any:
        numbers = np.array(values)
        if source.name == "fp8e4nv":
            exact = torch.from_numpy(numbers.view(np.uint8)).view(torch.float8_e4m3fn).float()
            if target.name == "fp32":
                return exact.numpy().view(np.uint32)
        elif source.name == "fp32":
            exact = torch.from_numpy(numbers.view(np.float32))
        else:
            return convert(values, source, target, mode)
        if target.name == "bf16":
            return exact.bfloat16().view(torch.int16).numpy().view(np.uint16)
        if target.name == "fp8e4nv":
            return exact.to(torch.float8_e4m3fn).view(torch.uint8).numpy()
        return convert(values, source, target, mode)

    def with_index(tensor: Any, scope: Any) -> None:
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    def assembled(self: Any, text: str, constraints: str, values: Any, *about: Any) -> Any:
        """What `kernels.triton.parts.four_channels` writes in PTX, the only assembly there is."""
        assert text.count("cvt.rn.f16x2.e4m3x2") == 2 and constraints == "=f,=f,=f,=f,r"
        words = np.ascontiguousarray(values[0].data)
        numbers = torch.from_numpy(words.view(np.uint8)).view(torch.float8_e4m3fn).float().numpy()
        parts = numbers.reshape(*words.shape, 4)
        return SimpleNamespace(
            get_result=lambda i: interpreter.TensorHandle(parts[..., i].copy(), tl.float32)
        )

    multiply = interpreter.InterpreterBuilder.create_dot

    def widened(handle: Any) -> Any:
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        data = interpreter._convert_float(handle.data, tl.bfloat16, tl.float32, None)
        return interpreter.TensorHandle(data.view("float32"), tl.float32)

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return multiply(self, widened(a), widened(b), *rest)

    def nothing() -> None:
        """Kernels run one behind the other."""

    interpreter.InterpreterBuilder.create_dot = create_dot
    interpreter.InterpreterBuilder.create_inline_asm = assembled
    interpreter._convert_float = nearest
    interpreter._patch_lang_tensor = with_index
    tl.extra.cuda.gdc_wait = tl.extra.cuda.gdc_launch_dependents = nothing
