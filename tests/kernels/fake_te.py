"""A transformer_engine that needs no GPU: what kernels.te and kernels.te_linear call, as in 2.16.1.

It rounds to e4m3 as the real one does, insists on what that insists on, and moves scales where that does. It
stands in sys.modules for as long as a test wants it.
"""

import importlib.machinery
import math
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
import torch

VERSION = "2.16.1"
LARGEST = 448.0


@dataclass
class Recipe:
    """Any of TE's; its class's name says which."""

    kind: str
    settings: dict[str, object]


@dataclass
class Scaling:
    """scale: [3], amax_history: [length, 3]; input, weight, output."""

    scale: torch.Tensor
    amax_history: torch.Tensor


@dataclass
class State:
    """Of the process: the recipe under which modules are made, and that of the autocast, if any."""

    initial: Recipe | None = None
    current: Recipe | None = None
    modules: list["Linear"] = field(default_factory=list)
    unable: dict[str, str] = field(default_factory=dict)  # name of a check -> why not
    calls: list[torch.Size] = field(default_factory=list)  # of inputs


def to_eight(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return (x.float() * scale).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)


class Quantised:
    def __init__(self, module: "Linear", full: torch.Tensor) -> None:
        self.module, self.shape, self.dtype = module, full.shape, full.dtype
        self.quantize_(full)

    def quantize_(self, tensor: torch.Tensor) -> "Quantised":
        assert tensor.shape == self.shape
        scale = LARGEST / tensor.abs().amax().float()
        if self.module.delayed:
            scale = self.module.fp8_meta["scaling_fwd"].scale[1].clone()
        self.scale_inv = 1 / scale
        self.data = to_eight(tensor, scale).view(torch.uint8)
        return self

    def dequantize(self) -> torch.Tensor:
        return (self.data.view(torch.float8_e4m3fn).float() * self.scale_inv).to(self.dtype)

    def get_metadata(self) -> dict[str, object]:
        return {"data": self.data, "fp8_scale_inv": self.scale_inv, "data_transpose": None}


class Linear:
    """quantised where it is made under quantized_model_init."""

    def __init__(
        self,
        state: State,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        params_dtype: torch.dtype | None = None,
        device: torch.device | str = "cuda",
        init_method: Callable[[torch.Tensor], None] | None = None,
    ) -> None:
        assert not bias and params_dtype is not None and init_method is not None
        assert not torch.is_grad_enabled(), "it would keep a transposed copy"
        self.state, self.recipe = state, state.initial
        scaling = Scaling(torch.ones(3), torch.zeros(1, 3))
        self.fp8_meta = {"scaling_fwd": scaling} if self.delayed else {}
        full = torch.empty(out_features, in_features, dtype=params_dtype, device=device)
        init_method(full)
        self.weight = full if self.recipe is None else Quantised(self, full)
        state.modules.append(self)

    @property
    def delayed(self) -> bool:
        return self.recipe is not None and self.recipe.kind == "DelayedScaling"

    def eval(self) -> "Linear":
        return self

    def requires_grad_(self, requires_grad: bool = True) -> "Linear":
        assert not requires_grad
        return self

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.state.calls.append(x.shape)
        assert x.is_contiguous()
        if self.recipe is None:
            assert isinstance(self.weight, torch.Tensor)
            return x @ self.weight.t()
        assert self.state.current is self.recipe, "quantised weights outside of their autocast"
        assert isinstance(self.weight, Quantised)
        for shape in (x.shape, self.weight.shape):
            if math.prod(shape[:-1]) % 8 or shape[-1] % 16:
                raise ValueError(f"FP8 execution requires multiples of 8 and 16, but got {list(shape)}")
        largest = x.abs().amax().float()
        scale = LARGEST / largest
        if self.delayed:
            scaling = self.fp8_meta["scaling_fwd"]
            scale = scaling.scale[0].clone()
            scaling.amax_history[0, 0] = torch.maximum(scaling.amax_history[0, 0], largest)
        rounded = to_eight(x, scale).float() / scale
        return (rounded @ self.weight.dequantize().float().t()).to(x.dtype)


def _modules(state: State) -> dict[str, types.ModuleType]:
    @contextmanager
    def quantized_model_init(enabled: bool = True, recipe: Recipe | None = None) -> Iterator[None]:
        before, state.initial = state.initial, recipe if enabled else None
        yield
        state.initial = before

    @contextmanager
    def autocast(
        enabled: bool = True, calibrating: bool = False, recipe: Recipe | None = None
    ) -> Iterator[None]:
        before, state.current = state.current, recipe if enabled else None
        yield
        state.current = before
        if enabled and torch.is_grad_enabled():  # as in training
            for module in state.modules:
                if module.delayed:
                    scaling = module.fp8_meta["scaling_fwd"]
                    largest = scaling.amax_history.amax(dim=0)
                    scaling.scale.copy_(torch.where(largest > 0, LARGEST / largest, scaling.scale))

    def check(name: str) -> Callable[..., tuple[bool, str]]:
        return lambda return_reason=False: (name not in state.unable, state.unable.get(name, ""))

    def recipe(kind: str) -> Callable[..., Recipe]:
        return lambda **settings: Recipe(kind, settings)

    package, pytorch = types.ModuleType("transformer_engine"), types.ModuleType("transformer_engine.pytorch")
    common = types.ModuleType("transformer_engine.common")
    recipes = types.ModuleType("transformer_engine.common.recipe")
    parts: dict[types.ModuleType, dict[str, object]] = {
        package: {"__version__": VERSION, "pytorch": pytorch, "common": common},
        common: {"recipe": recipes},
        pytorch: {
            "Linear": lambda *args, **more: Linear(state, *args, **more),
            "autocast": autocast,
            "quantized_model_init": quantized_model_init,
            **{f"is_{name}_available": check(f"is_{name}_available") for name in CHECKS},
        },
        recipes: {name: recipe(name) for name in RECIPES},
    }
    for module, values in parts.items():
        module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, None)
        vars(module).update(values)
    return {module.__name__: module for module in parts}


CHECKS = ("fp8", "mxfp8", "fp8_block_scaling", "nvfp4")
RECIPES = (
    "DelayedScaling",
    "Float8CurrentScaling",
    "Float8BlockScaling",
    "MXFP8BlockScaling",
    "NVFP4BlockScaling",
)


def install(monkeypatch: pytest.MonkeyPatch) -> State:
    """Until the test ends `import transformer_engine` finds this one."""
    state = State()
    for name, module in _modules(state).items():
        monkeypatch.setitem(sys.modules, name, module)
    return state
