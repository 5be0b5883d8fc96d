"""Where the device's time goes in a decode step, phase by phase, whatever path it runs by.

The kernels that run are told apart by their names, and products also by where they stand: the network's own
path uses one kernel for several projections, in the order of the network.
"""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

_PRODUCT = "product"
# What a kernel's name has in it, first match first.
_NAMES: tuple[tuple[str, str], ...] = (
    (r"_prepare_kernel|_finish_kernel|_updates_kernel", "state"),
    (r"groups_kernel|adjust_kernel|finish_kernel|logprobs_kernel", "sample"),
    (r"_rotate_and_store", "rotate"),
    (r"_gather_kernel|_embed_smear|_scale_add|_value_gate", "embed"),
    (r"_plan_kernel", "plan"),
    (r"decode_kernel|cluster_decode|flash|attn|attention|fmha|prefill", "attention"),
    (r"skinny|gemm|gemv|nvjet|cublas|cutlass|splitk|_rms_norm|_relu_squared|_swiglu|_dequantize", _PRODUCT),
)


class Ran(NamedTuple):
    """A kernel that has run: when it began, and microseconds that it took."""

    name: str
    start: float
    us: float


def kind_of(name: str) -> str:
    """A phase, "product" for any of the projections, or what the kernel calls itself."""
    for pattern, phase in _NAMES:
        if re.search(pattern, name, re.IGNORECASE):
            return phase
    own = re.search(r"decode_(\w+)", name)
    return own.group(1).replace("_", " ") if own else name.split("(")[0].split("<")[0][:40]


def by_phase(kernels: Iterable[Ran], steps: int) -> dict[str, float]:
    """Microseconds a step by phase, longest first. What cannot be told apart is called "products"; kernels
    that start before the one in front of them has ended count their waiting, too.
    """
    total: dict[str, float] = {}
    run: list[Ran] = []
    before = ""

    def close(behind: str) -> None:
        for phase, ran in zip(_told_apart(run, before, behind), run, strict=True):
            total[phase] = total.get(phase, 0.0) + ran.us
        run.clear()

    for kernel in sorted(kernels, key=lambda kernel: kernel.start):
        kind = kind_of(kernel.name)
        if kind == _PRODUCT:
            run.append(kernel)
            continue
        close(kind)
        before = kind
        total[kind] = total.get(kind, 0.0) + kernel.us
    close("")
    return dict(sorted(((name, us / steps) for name, us in total.items()), key=lambda item: -item[1]))


def _told_apart(run: Sequence[Ran], before: str, behind: str) -> list[str]:
    """The phases of products that stand between two other kernels."""
    expected: tuple[str, ...] = ()
    rotation = ("rotate", "attention")  # which may rotate for itself
    if before == "attention" and behind in rotation:
        expected = ("o", "mlp in", "mlp out", "qkv")
    elif before == "attention":
        expected = ("o", "mlp in", "mlp out")  # of the last layer
    elif behind in rotation:
        expected = ("qkv",)  # of the first
    elif behind == "sample":
        expected = ("head",)
    if len(run) == len(expected):
        return list(expected)
    return [expected[0] if len(expected) == 1 else "products"] * len(run)
