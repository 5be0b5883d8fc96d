"""Products of models, and what they should give."""

from dataclasses import dataclass

import torch

from kernels.skinny import Activation

EPS = 1e-5


@dataclass(frozen=True, slots=True)
class Shape:
    """One product of a model; weight [n, k]."""

    name: str
    n: int
    k: int
    eps: float | None = None
    activation: Activation = "none"
    accumulate: bool = False

    @property
    def bytes(self) -> int:
        return self.n * self.k * 2

    @property
    def columns(self) -> int:
        return self.n // 2 if self.activation == "swiglu" else self.n


D32 = [
    Shape("d32 qkv", 6144, 2048, EPS),
    Shape("d32 o", 2048, 2048, accumulate=True),
    Shape("d32 fc", 8192, 2048, EPS, "relu2"),
    Shape("d32 proj", 2048, 8192, accumulate=True),
]
D32_HEAD = Shape("d32 lm_head", 65536, 2048, EPS)
OTHERS = [
    Shape("llama gate_up", 11008, 2048, EPS, "swiglu"),
    Shape("llama down", 2048, 5504, accumulate=True),
    Shape("qwen qkv", 4096, 1024, EPS),
    Shape("qwen o", 1024, 2048, accumulate=True),
    Shape("qwen gate_up", 6144, 1024, EPS, "swiglu"),
    Shape("qwen down", 1024, 3072, accumulate=True),
    Shape("qwen lm_head", 151936, 1024, EPS),
]


def random_weight(shape: Shape, device: torch.device) -> torch.Tensor:
    weight = torch.empty(shape.n, shape.k, dtype=torch.bfloat16, device=device)
    return weight.normal_(std=0.5 / shape.k**0.5)


def reference(shape: Shape, x: torch.Tensor, weight: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """In float64 for the first rows' outputs; the rest of `shape` as the kernel computes it."""
    y = x.double() @ weight.double().T
    if shape.eps is not None:
        y *= (x.double().square().mean(1, keepdim=True) + shape.eps).rsqrt()
    if shape.activation == "relu2":
        y = y.relu().square()
    if shape.activation == "swiglu":
        pairs = y.view(y.size(0), -1, 2, 8)
        y = (torch.nn.functional.silu(pairs[:, :, 0]) * pairs[:, :, 1]).flatten(1)
    return before.double() + y if shape.accumulate else y
