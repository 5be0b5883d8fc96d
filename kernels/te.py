"""Transformer Engine: how it is found, and what each of its precisions asks of a product.

Nothing here is imported unless it is asked for: the package is an extra (`te` in pyproject.toml). What is
said of it was read in the sources of 2.16.1.
"""

import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

# One product's scale and history of largest numbers, by tensor: TE numbers them input, weight, output.
INPUT, WEIGHT = 0, 1
BLACKWELL = 10, 0


class ScalingState(Protocol):
    """Of delayed scaling. scale: [3] float32, by tensor; what a number is multiplied with before it is
    rounded to eight bits."""

    scale: torch.Tensor


class TeModule(Protocol):
    """A `te.Linear` without a bias. x: [rows, inputs], a new [rows, outputs] comes back. fp8_meta: under
    "scaling_fwd" what a recipe keeps from call to call.
    """

    weight: torch.Tensor
    fp8_meta: dict[str, ScalingState]

    def __call__(self, x: torch.Tensor, /) -> torch.Tensor: ...
    def eval(self) -> object: ...
    def requires_grad_(self, requires_grad: bool = True) -> object: ...


class Quantised(Protocol):
    """A weight that TE keeps in few bits: a tensor that stands for full numbers."""

    def quantize_(self, tensor: torch.Tensor) -> object: ...
    def dequantize(self) -> torch.Tensor: ...


Recipe = object  # TE's own description of a precision


@dataclass(frozen=True, slots=True)
class TransformerEngine:
    """The parts of the package that are used. recipe: makes one by the name of its class and its settings.
    available: asks the package by the name of one of its checks; (whether, why not).
    """

    version: str
    linear: Callable[..., TeModule]
    autocast: Callable[..., AbstractContextManager[object]]
    quantized_model_init: Callable[..., AbstractContextManager[object]]
    recipe: Callable[[str, dict[str, object]], Recipe]
    available: Callable[[str], tuple[bool, str]]


def load() -> TransformerEngine:
    """Raises ImportError, with its cause, for a package that is there and broken, or too old."""
    try:
        # `import transformer_engine` alone hides why its torch part cannot be loaded.
        pytorch = importlib.import_module("transformer_engine.pytorch")
        recipes = importlib.import_module("transformer_engine.common.recipe")
        package = importlib.import_module("transformer_engine")
        return TransformerEngine(
            version=str(package.__version__),
            linear=pytorch.Linear,
            autocast=pytorch.autocast,
            quantized_model_init=pytorch.quantized_model_init,
            recipe=lambda name, settings: getattr(recipes, name)(**settings),
            available=lambda name: getattr(pytorch, name)(return_reason=True),
        )
    except Exception as error:  # it asserts, and loads libraries that may lack symbols
        raise ImportError(f"{type(error).__name__}: {error}") from error


Name = Literal["fp8", "fp8_current", "fp8_block", "mxfp8", "nvfp4", "bf16", "fp16"]


@dataclass(frozen=True, slots=True)
class Precision:
    """What te.Linear computes in.

    recipe: the class of TE's recipe, None without quantisation. check: what to ask TE first. rows, outputs,
    inputs: multiples that it takes. calibrated: its scales are ours to set, once, and stay. neighbours:
    whether a row's scale comes from other rows of the step, too.
    """

    name: Name
    words: str
    recipe: str | None = None
    settings: tuple[tuple[str, object], ...] = ()
    check: str = ""
    rows: int = 1
    outputs: int = 1
    inputs: int = 1
    least: tuple[int, int] = (8, 0)
    calibrated: bool = False
    neighbours: bool = False

    def __str__(self) -> str:
        padded = f", rows padded to {self.rows}" if self.rows > 1 else ""
        return self.words + padded

    @property
    def primary(self) -> str:
        """What is kept of the weights."""
        return f"{self.name.partition('_')[0]} primary weights" if self.recipe else f"{self.name} weights"


PRECISIONS: dict[Name, Precision] = {
    "fp8": Precision(
        "fp8",
        "W8A8, delayed scaling",
        "DelayedScaling",
        # The history of largest numbers is written by every step and read by none: scales are set once.
        (("amax_history_len", 1), ("reduce_amax", False)),
        "is_fp8_available",
        *(8, 16, 16),
        least=(8, 9),
        calibrated=True,
    ),
    "fp8_current": Precision(
        "fp8_current",
        "W8A8, current scaling",
        "Float8CurrentScaling",
        (),
        "is_fp8_available",
        *(8, 16, 16),
        least=(8, 9),
        neighbours=True,
    ),
    "fp8_block": Precision(
        "fp8_block",
        "W8A8, scales of 128 numbers",
        "Float8BlockScaling",
        (),
        "is_fp8_block_scaling_available",
        *(8, 16, 16),
        least=(9, 0),
    ),
    "mxfp8": Precision(
        "mxfp8",
        "W8A8, scales of 32 numbers",
        "MXFP8BlockScaling",
        (),
        "is_mxfp8_available",
        *(32, 32, 32),
        least=BLACKWELL,
    ),
    "nvfp4": Precision(
        "nvfp4",
        "W4A4, scales of 16 numbers and one of all",
        "NVFP4BlockScaling",
        (),
        "is_nvfp4_available",
        *(32, 32, 32),
        least=BLACKWELL,
        neighbours=True,
    ),
    "bf16": Precision("bf16", "not quantised"),
    "fp16": Precision("fp16", "not quantised"),
}
FULL: dict[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}


def precision(asked: str, capability: tuple[int, int], dtype: torch.dtype) -> Precision:
    """What a te_weight_dtype stands for on a device of this compute capability, for a model in this dtype.

    Raises ValueError, naming te_weight_dtype, for what the device cannot do and for a dtype that is not the
    model's.
    """
    if asked == "int4":
        raise ValueError("te_weight_dtype is int4, which Transformer Engine has not")
    if asked in FULL and FULL[asked] != dtype:
        raise ValueError(
            f"te_weight_dtype is {asked}, but the model is in {str(dtype).removeprefix('torch.')}"
        )
    name = "nvfp4" if asked == "fp4" else asked
    if asked == "fp8" and capability[0] in (10, 11):
        name = "mxfp8"  # TE's own default there
    found = next((one for one in PRECISIONS.values() if one.name == name), None)
    if found is None:
        raise ValueError(f"te_weight_dtype is {asked!r}, none of {', '.join(PRECISIONS)}")
    if capability < found.least:
        need, have = (".".join(map(str, numbers)) for numbers in (found.least, capability))
        raise ValueError(
            f"te_weight_dtype {asked} needs a device of compute capability {need}, and this one has {have}"
        )
    return found
