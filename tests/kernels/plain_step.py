"""Layers and head of a decode step in plain torch: what the kernels of a decode path are to compute.

It reads rows and positions on the host. Faults can be put in, for tests of what must notice them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from engine.gpu.paths import Library
from kernels import fused
from kernels.backends.base import AttentionSpec
from kernels.backends.reference import read_row
from kernels.kv8 import Scales
from kernels.nvrtc import CompileError
from kernels.quantize import Weight, Weight8, dequantize
from kernels.step_spec import StepLayer, StepPath, StepSpec
from kernels.triton.rope import RotarySpec
from tests.kernels.quick_network import ExactBackend, exact


def full(weight: Weight) -> torch.Tensor:
    return dequantize(weight) if isinstance(weight, Weight8) else weight


@dataclass
class PlainStep:
    """See engine.gpu.paths.StepKernels. prepared, bound: what was asked for. fault: called at the end of each
    step. broken: paths that cannot be compiled.
    """

    spec: StepSpec
    layers: list[StepLayer]
    head: Weight
    final_norm: torch.Tensor | None
    own: torch.Tensor
    other: torch.Tensor
    device: torch.device
    max_rows: dict[StepPath, int] = field(default_factory=lambda: {"chained": 16, "persistent": 4})
    broken: frozenset[StepPath] = frozenset()
    fault: "Callable[[Done], None] | None" = None
    prepared: set[tuple[StepPath, int]] = field(default_factory=set)
    pages: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    scales: list[Scales | None] = field(default_factory=list)
    binds: int = 0
    steps: list[tuple[StepPath, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        spec = self.spec
        self.failed = torch.zeros(1, dtype=torch.int32, device=self.device)
        self._attention = ExactBackend(
            AttentionSpec(
                *(spec.heads, spec.kv_heads, spec.head_dim, spec.block_size),
                *(torch.bfloat16, max(self.max_rows.values()), self.own.size(0), self.device),
            )
        )

    def prepare(self, path: StepPath, rows: int) -> None:
        if path in self.broken:
            raise CompileError(f"{path} does not compile")
        self.prepared.add((path, rows))

    def bind(
        self, pages: Sequence[tuple[torch.Tensor, torch.Tensor]], scales: Sequence[Scales | None] = ()
    ) -> None:
        self.pages, self.scales = list(pages), list(scales)
        self.binds += 1

    def step(
        self,
        path: StepPath,
        *,
        x: torch.Tensor,
        ids_rows: torch.Tensor,
        positions: torch.Tensor,
        block_tables: torch.Tensor,
        logits: torch.Tensor,
        entry_tokens: torch.Tensor,
        entry_positions: torch.Tensor,
    ) -> None:
        rows = x.size(0)
        assert (path, rows) in self.prepared and rows <= self.max_rows[path]
        live = entry_tokens >= 0
        assert torch.equal(live, ids_rows >= 0)
        assert entry_tokens[live].tolist() == list(range(int(live.sum())))
        self.steps.append((path, rows))
        if int(self.failed):
            return
        table, size = block_tables[ids_rows.long().clamp_min(0)], self.spec.block_size
        blocks = table.gather(1, (positions.long() // size).unsqueeze(1))[:, 0]
        slots = torch.where(live, blocks * size + positions % size, -1)
        x = x.clone()
        for layer, pages, scales in zip(self.layers, self.pages, self.scales, strict=True):
            x = self._layer(x, layer, pages, scales, table, positions, slots)
        x = fused.norm_weighted(x, self.final_norm, self.spec.eps)
        logits.copy_(torch.where(live.unsqueeze(1), exact(x, full(self.head)).to(x.dtype), logits))
        entry_positions.copy_(torch.where(live, positions + 1, 0))
        if self.fault is not None:
            self.fault(Done(self, path, logits, slots, entry_positions))

    def _layer(
        self,
        x: torch.Tensor,
        layer: StepLayer,
        pages: tuple[torch.Tensor, torch.Tensor],
        scales: Scales | None,
        table: torch.Tensor,
        positions: torch.Tensor,
        slots: torch.Tensor,
    ) -> torch.Tensor:
        spec = self.spec
        qkv, o, mlp_in, mlp_out = map(full, layer[:4])
        rotary = RotarySpec(spec.heads, spec.kv_heads, spec.head_dim, spec.order, spec.eps, spec.qk_scale)
        normed = fused.norm_weighted(x, None, spec.eps)
        query = fused.rotate_and_store(
            *(exact(normed, qkv).to(x.dtype), positions, slots, self.own, self.other, *pages, rotary),
            scales=scales,
            bias=layer.qkv_bias,
            q_weight=layer.q_norm,
            k_weight=layer.k_norm,
        )
        attended = torch.zeros(x.size(0), o.size(1), dtype=x.dtype, device=x.device)
        for row in range(x.size(0)):
            if int(slots[row]) >= 0:
                keys, values = read_row(*pages, scales, table[row], int(positions[row]) + 1)
                scale = spec.head_dim**-0.5
                attended[row] = self._attention.attend(query[row : row + 1], keys, values, scale, None)[0]
        x = (x.double() + exact(attended, o)).to(x.dtype)
        inner = exact(fused.norm_weighted(x, None, spec.eps), mlp_in).to(x.dtype)
        inner = fused.relu_squared(inner) if spec.activation == "relu2" else fused.swiglu(inner)
        padded = torch.zeros(x.size(0), spec.padded_inner, dtype=x.dtype, device=x.device)
        padded[:, : spec.inner] = inner
        return (x.double() + exact(padded, mlp_out)).to(x.dtype)


@dataclass
class Done:
    """A step's results, for a fault to spoil. slots: where each token's keys and values are, -1 for none."""

    by: PlainStep
    path: StepPath
    logits: torch.Tensor
    slots: torch.Tensor
    entry_positions: torch.Tensor

    def page(self, token: int, shift: int = 0) -> torch.Tensor:
        """The values of the last layer where a token's are, or some places behind."""
        slot, size = int(self.slots[token]) + shift, self.by.spec.block_size
        return self.by.pages[-1][1][slot // size, slot % size]


def library(reason: str | None = None, **options: object) -> tuple[Library, list[PlainStep]]:
    """One that makes `PlainStep`, and a list of all that it has made. reason: why it supports nothing."""
    made: list[PlainStep] = []

    def make(*parts: object) -> PlainStep:
        made.append(PlainStep(*parts, **options))  # type: ignore[arg-type]
        return made[-1]

    return Library(lambda spec, capability: reason, make), made
