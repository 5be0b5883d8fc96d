"""The ways in which the layers and the head of a pure decode step can run, and which bucket goes which way.

"graph" is the network's own kernels, several for each layer. Beside it stand kernels that run all of them for
few rows: "chained" and "persistent" (kernels.step_spec). What comes before and behind is the same for all.
"""

import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from engine.backend import short
from engine.gpu.cache import PagedKV
from engine.gpu.weights import LayerWeights, NetworkWeights
from kernels.kv8 import FORMAT, Scales
from kernels.quantize import Weight, Weight8, kind_of
from kernels.step_spec import StepLayer, StepPath, StepSpec
from kernels.te_linear import TeWeight

LIBRARY = "kernels.decode_step"


class StepKernels(Protocol):
    """Kernels that run a network's layers and head.

    failed: [1] int32 on the device. Not 0 once a wait inside a kernel has taken too long: what was computed
    since is worthless, and later launches run through without waiting. max_rows: most rows that a path
    serves.
    """

    failed: torch.Tensor
    max_rows: dict[StepPath, int]

    def prepare(self, path: StepPath, rows: int) -> None:
        """Compiles and loads what steps of so many rows need, before any capture. Raises CompileError or
        DriverError.
        """
        ...

    def bind(
        self, pages: Sequence[tuple[torch.Tensor, torch.Tensor]], scales: Sequence[Scales | None] = ()
    ) -> None:
        """Each layer's keys and values, as PagedKV.layers and PagedKV.scales have them; again whenever they
        have moved.
        """
        ...

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
        """Queues layers and head on the current stream.

        x: [rows, width] bfloat16, the embedded tokens, only read. ids_rows: [rows] int32, the row of each
        token, -1 for padding. positions: [rows] int32. block_tables: [rows of the pool, entries] int32.
        logits: [rows, rows of the head] bfloat16, written, not capped. entry_tokens: [rows] int32, each
        entry's own number or -1. entry_positions: [rows] int32, written: positions + 1, 0 for an entry of -1.
        """
        ...


@dataclass(frozen=True, slots=True)
class Library:
    """unsupported: why a network cannot be served on a device of that compute capability, or None. make: the
    kernels for a description, the layers, the head, the last norm's weight, both
    halves of the rotary table, the device.
    """

    unsupported: Callable[[StepSpec, tuple[int, int]], str | None]
    make: Callable[
        [
            StepSpec,
            list[StepLayer],
            Weight,
            torch.Tensor | None,
            torch.Tensor,
            torch.Tensor,
            torch.device,
        ],
        StepKernels,
    ]


def installed() -> Library | None:
    """Our own kernels; None where they are not there."""
    if importlib.util.find_spec(LIBRARY) is None:
        return None
    module = importlib.import_module(LIBRARY)
    return Library(module.unsupported, module.StepKernels)


@dataclass(slots=True)
class Paths:
    """failed: the kernels' own, a zero without any. table: the path of each decode bucket that the network's
    own kernels do not serve, by its rows. lost: the kernels have failed and are not used any more.
    """

    failed: torch.Tensor
    kernels: StepKernels | None = None
    table: dict[int, StepPath] = field(default_factory=dict)
    lost: bool = False
    _bound: tuple[PagedKV, int] | None = None

    @classmethod
    def none(cls, device: torch.device) -> "Paths":
        """Every bucket goes through the network's own kernels."""
        return cls(torch.zeros(1, dtype=torch.int32, device=device))

    def open(self, kernels: StepKernels) -> None:
        self.kernels, self.failed, self._bound = kernels, kernels.failed, None

    def close(self) -> None:
        """Without kernels again, as in the beginning."""
        self.kernels, self.table, self._bound = None, {}, None
        self.failed = torch.zeros_like(self.failed)

    def bind(self, cache: PagedKV) -> None:
        """For a cache that is new or has moved; no step may be on its way."""
        if self.kernels is not None:
            with torch.inference_mode(False):  # what they make of it, they may change in any mode
                self.kernels.bind(cache.layers, cache.scales)
            self._bound = cache, cache.moves

    def step(
        self,
        cache: PagedKV,
        *,
        x: torch.Tensor,
        ids_rows: torch.Tensor,
        positions: torch.Tensor,
        block_tables: torch.Tensor,
        logits: torch.Tensor,
        entry_tokens: torch.Tensor,
        entry_positions: torch.Tensor,
    ) -> None:
        """See StepKernels; by the path that `table` has for so many rows."""
        kernels = self.kernels
        assert kernels is not None and self._bound == (cache, cache.moves), "the kernels know another cache"
        kernels.step(
            self.table[x.size(0)],
            x=x,
            ids_rows=ids_rows,
            positions=positions,
            block_tables=block_tables,
            logits=logits,
            entry_tokens=entry_tokens,
            entry_positions=entry_positions,
        )

    def leave(self) -> bool:
        """After a failure, for good: nothing goes by the kernels any more, and steps that are queued from now
        on, on the current stream, count as good. False where that has been done before.
        """
        if self.lost:
            return False
        self.lost, self.table = True, {}
        self.failed.zero_()
        return True


# -- which networks can be described


def spec_of(weights: NetworkWeights, cache: PagedKV) -> StepSpec | str:
    """A network for its kernels, or why it cannot be told to them."""
    matrices = [*weights.matrices, weights.head]
    if any(isinstance(matrix, TeWeight) for matrix in matrices):
        return "Transformer Engine's projections bring their own kernels"
    kinds = sorted({kind_of(matrix) for matrix in matrices if not isinstance(matrix, TeWeight)})
    if len(kinds) > 1:
        return f"projections are of several kinds: {', '.join(kinds)}"
    dtype, kept = weights.embedding.dtype, cache.layers[0][0].dtype
    if dtype != torch.bfloat16:
        return f"the model is in {short(dtype)}, not in bfloat16"
    if kept not in (dtype, FORMAT):
        return f"keys and values are kept in {short(kept)}"
    reason = _extras(weights) or _layers(weights)
    if reason is not None:
        return reason
    first = weights.layers[0]
    return StepSpec(
        width=weights.width,
        inner=weights.inner,
        padded_inner=first.mlp_out.size(1),
        heads=first.rotary.heads,
        kv_heads=first.rotary.kv_heads,
        head_dim=first.rotary.head_dim,
        head_rows=weights.head.size(0),
        layers=len(weights.layers),
        eps=weights.eps,
        activation=weights.activation,
        order=first.rotary.order,
        qk_scale=first.rotary.qk_scale,
        kind=kinds[0],
        block_size=cache.block_size,
        biased=first.qkv_bias is not None,
        fp8_kv=kept == FORMAT,
    )


def _extras(weights: NetworkWeights) -> str | None:
    extras = weights.extras
    parts: Mapping[str, object] = {
        "residual lambdas": extras.residual,
        "a smeared embedding": extras.smear,
        "a backout": extras.backout,
    }
    found = [name for name, part in parts.items() if part is not None]
    return f"the network has {' and '.join(found)}" if found else None


def _layers(weights: NetworkWeights) -> str | None:
    """What some layer has that a description has no words for."""
    first = weights.layers[0]
    for index, layer in enumerate(weights.layers):
        if layer.window is not None:
            return f"layer {index} sees a window of {layer.window} keys"
        if not layer.rotated:
            return f"layer {index} does not rotate"
        parts: Mapping[str, object] = {
            "a bias behind a product other than q, k and v": _bias(layer),
            "value embeddings": layer.value_embedding,
        }
        for name, part in parts.items():
            if part is not None:
                return f"layer {index} has {name}"
        weighted = layer.q_norm is not None and layer.k_norm is not None
        if weighted != (layer.rotary.order == "norm_rope"):
            return f"layer {index} has a query-key norm of another order than its weights"
        if layer.rotary != first.rotary or _shapes(layer) != _shapes(first):
            return f"layer {index} differs from the first in its shape"
    if first.rotary.order != "rope" and first.rotary.eps != weights.eps:
        return "the query-key norm has an epsilon of its own"
    return None


def _bias(layer: LayerWeights) -> torch.Tensor | None:
    biases = (layer.o_bias, layer.mlp_in_bias, layer.mlp_out_bias)
    return next((bias for bias in biases if bias is not None), None)


def _shapes(layer: LayerWeights) -> list[tuple[int, ...]]:
    matrices = [tuple(matrix.shape) for matrix in (layer.qkv, layer.o, layer.mlp_in, layer.mlp_out)]
    return [*matrices, () if layer.qkv_bias is None else tuple(layer.qkv_bias.shape)]


def make_kernels(library: Library, spec: StepSpec, weights: NetworkWeights) -> StepKernels:
    """Raises what making them raises."""
    layers = [
        StepLayer(
            _own(layer.qkv),
            _own(layer.o),
            _own(layer.mlp_in),
            _own(layer.mlp_out),
            layer.qkv_bias,
            layer.q_norm,
            layer.k_norm,
        )
        for layer in weights.layers
    ]
    return library.make(
        spec,
        layers,
        _own(weights.head),
        weights.final_norm,
        weights.own,
        weights.other,
        weights.embedding.device,
    )


def _own(matrix: object) -> Weight:
    assert isinstance(matrix, torch.Tensor | Weight8)
    return matrix
