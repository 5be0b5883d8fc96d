"""Compiles decode attention for an H200 that is not there, with and without rotation inside; prints for each
the registers of a thread and the bytes that it spills. Run by test_decode_fresh.py in a process of its own:
Triton's driver is the process's.
"""

from dataclasses import dataclass

import torch
import triton

from kernels.kv8 import FORMAT
from kernels.triton.decode import DecodeWorkspace, Fresh, paged_decode
from kernels.triton.decode_kernel import decode_kernel
from kernels.triton.precompile import compile_all, missing
from kernels.triton.rope import Order, RotarySpec
from tests.kernels.cubin import resources
from tests.kernels.triton.precompile_without_a_device import Device

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Form:
    """As a model of 128 channels a head has it: nanochat's d32, or Qwen3's with weights in its norm."""

    name: str
    heads: int
    kv_heads: int
    entries: int
    order: Order = "rope_norm"
    eight_bits: bool = False
    window: int | None = None


FORMS = [
    Form("one row", 16, 16, 1),
    Form("few rows", 16, 16, 16),
    Form("many rows", 16, 16, 256),
    Form("a window", 16, 16, 64, window=512),
    Form("fp8", 16, 16, 64, eight_bits=True),
    Form("groups", 32, 8, 64, "norm_rope"),
    Form("groups, fp8", 32, 8, 64, "norm_rope", eight_bits=True),
]


def launch(form: Form, inside: bool) -> None:
    heads, kv_heads, entries, dim = form.heads, form.kv_heads, form.entries, 128
    kept = FORMAT if form.eight_bits else torch.bfloat16
    space = DecodeWorkspace.allocate(
        entries, heads, kv_heads, dim, 2048, CPU, dtype=kept, multiprocessors=132
    )
    pages = [torch.zeros(2, kv_heads, 16, dim).to(kept).transpose(1, 2) for _ in range(2)]
    scales = [torch.zeros(2, kv_heads, 16).bfloat16().transpose(1, 2) for _ in range(2)]
    ints, table = torch.zeros(entries, dtype=torch.int32), torch.zeros(2, dim)
    qkv = torch.zeros(entries, (heads + 2 * kv_heads) * dim, dtype=torch.bfloat16)
    weight = torch.zeros(dim, dtype=torch.bfloat16) if form.order == "norm_rope" else None
    spec = RotarySpec(heads, kv_heads, dim, form.order, 1e-6, 1.2)
    fresh = Fresh(qkv, ints, table, table, spec, q_weight=weight, k_weight=weight)
    out = torch.zeros(entries, heads * dim, dtype=torch.bfloat16)
    paged_decode(
        *(fresh.query, *pages, torch.zeros(entries, 128, dtype=torch.int32), ints, ints, out, space),
        scale=0.1,
        window=form.window,
        scales=(scales[0], scales[1]) if form.eight_bits else None,
        fresh=fresh if inside else None,
        pdl=True,
    )


def compiled(form: Form, inside: bool) -> tuple[int, int, bool]:
    """Registers, bytes of local memory, and whether it waits for the kernel in front of it."""
    for caches in decode_kernel.device_caches.values():
        caches[0].clear()
    with missing() as found:
        launch(form, inside)
    assert compile_all(found, CPU) == 1
    (kernel,) = (kernel for caches in decode_kernel.device_caches.values() for kernel in caches[0].values())
    of = resources(kernel.asm["cubin"]).values()
    waits = "griddepcontrol.wait" in kernel.asm["ptx"]
    return max(one.registers for one in of), max(one.frame for one in of), waits


def main() -> None:
    triton.runtime.driver.set_active(Device())
    for form in FORMS:
        for inside in (False, True):
            registers, frame, waits = compiled(form, inside)
            print(
                f"{form.name}: {'inside' if inside else 'in front'}: {registers} {frame} {waits}", flush=True
            )


if __name__ == "__main__":
    main()
