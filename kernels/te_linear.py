"""A projection through Transformer Engine's te.Linear, with what a decoder puts around it.

TE rounds a product's input to eight bits as it does the weight (W8A8) and multiplies those; it takes rows in
multiples of eight, and gives a new tensor back. So around each product there is a copy of few rows into a
padded buffer, a kernel of TE's that quantises, and one of ours that adds or stores. All of it can be
captured in a CUDA graph once it has run outside of one.

Delayed scaling multiplies every input with one scale per projection, which TE means to follow the largest
numbers of past training steps. Serving sets it once (`TeLinear.settle`), from what `calibrate` has seen, and
it stays: TE moves scales only where an autocast ends with gradients enabled, and steps run in inference mode.
Each step does note its largest number on the device, which nothing reads. So a row's result depends on that
row alone, in a graph's replay as outside. TE's own calibration (`autocast(enabled=False, calibrating=True)`)
is not used: te.Linear 2.16.1 makes no quantiser without fp8, so that nothing would be calibrated.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import cast

import torch

from kernels.skinny import Activation
from kernels.te import INPUT, WEIGHT, Precision, Quantised, Recipe, TeModule, TransformerEngine
from kernels.triton.activation import relu_squared, swiglu
from kernels.triton.norm import rms_norm

LARGEST = 448.0  # of e4m3
# Inputs may be twice what was seen before they are cut off; the format's exponent has room for that.
MARGIN = 1


@dataclass(frozen=True, slots=True, eq=False)
class TeWeight:
    """A projection [outputs, inputs] that a te.Linear keeps. module: may have more outputs, whose weights are
    zero. stored_bytes: what it takes in memory.
    """

    module: TeModule
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    stored_bytes: int

    def size(self, dimension: int) -> int:
        return self.shape[dimension]

    def numel(self) -> int:
        return self.shape.numel()


@dataclass(frozen=True, slots=True)
class TeMaker:
    """Makes te.Linear modules of one precision."""

    engine: TransformerEngine
    precision: Precision
    recipe: Recipe | None

    @classmethod
    def of(cls, engine: TransformerEngine, precision: Precision) -> "TeMaker":
        """Raises ValueError for a precision that TE itself finds this machine unable to do."""
        if precision.recipe is None:
            return cls(engine, precision, None)
        able, reason = engine.available(precision.check)
        if not able:
            raise ValueError(f"te_weight_dtype {precision.name}: {reason}")
        return cls(engine, precision, engine.recipe(precision.recipe, dict(precision.settings)))

    def autocast(self) -> AbstractContextManager[object]:
        """Around each call of a module."""
        if self.recipe is None:
            return nullcontext()
        return self.engine.autocast(enabled=True, recipe=self.recipe)

    @torch.no_grad()  # with gradients TE would keep a transposed copy, too
    def make(self, weight: torch.Tensor, name: str) -> TeWeight:
        """weight: [outputs, inputs] on the device, which must be the current one; it is copied. name: for
        errors.

        Raises ValueError where its inputs are no multiple of what TE takes, or numbers are not finite.
        """
        precision = self.precision
        outputs, inputs = weight.shape
        if inputs % precision.inputs:
            raise ValueError(
                f"use_te_weight_only: {name} has {inputs} inputs, and {precision.name} takes multiples of "
                f"{precision.inputs}"
            )
        largest = weight.abs().amax().float()
        if not bool(torch.isfinite(largest)):
            raise ValueError(f"{name}: numbers are not finite, so that there is no {precision.name} of it")
        padding = -outputs % precision.outputs
        full = torch.nn.functional.pad(weight, (0, 0, 0, padding)) if padding else weight.contiguous()
        module = self._empty(full)
        if self.recipe is None:
            module.weight.copy_(full)
        else:
            if precision.calibrated:
                _set_scale(module, WEIGHT, largest, 0)
            cast(Quantised, module.weight).quantize_(full)
        return TeWeight(module, weight.shape, weight.dtype, weight.device, _bytes(module.weight))

    def _empty(self, full: torch.Tensor) -> TeModule:
        """A module for a weight of this shape, with any numbers in it."""
        primary: AbstractContextManager[object] = nullcontext()
        if self.recipe is not None:
            primary = self.engine.quantized_model_init(enabled=True, recipe=self.recipe)
        with primary:
            module = self.engine.linear(
                full.size(1),
                full.size(0),
                bias=False,
                params_dtype=full.dtype,
                device=full.device,
                init_method=_zero,  # TE's own draws random numbers
            )
        module.requires_grad_(False)
        module.eval()
        return module


@dataclass(slots=True)
class TeScratch:
    """Inputs as TE takes them, shared by all projections of a network.

    rows: what their number must be a multiple of. normed: room for normalised inputs, flat. calibrating:
    see `TeLinear.settle`. rooms: padded inputs by the rows that are wanted and their width; what is behind
    those stays zero. Steps run in buckets, so that there are few, and each is made before its first capture.
    """

    rows: int
    normed: torch.Tensor
    calibrating: bool = False
    rooms: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)

    def fits(self, x: torch.Tensor) -> bool:
        return x.size(0) % self.rows == 0 and x.is_contiguous()

    def room(self, rows: int, width: int) -> torch.Tensor:
        """At least `rows` rows to be written before the next call: [rows rounded up, width]."""
        if rows % self.rows == 0 and rows * width <= self.normed.numel():
            return self.normed[: rows * width].view(rows, width)
        found = self.rooms.get((rows, width))
        if found is None:
            found = self.normed.new_zeros(-(-rows // self.rows) * self.rows, width)
            self.rooms[rows, width] = found
        return found


class TeLinear:
    """y = x W^T + b through a te.Linear; see kernels.fused_linear."""

    def __init__(
        self,
        weight: TeWeight,
        bias: torch.Tensor | None = None,
        *,
        maker: TeMaker,
        scratch: TeScratch,
        pdl: bool = False,
    ) -> None:
        """bias: [outputs]. pdl: kernels of ours may start before the previous one has ended."""
        self.weight, self.bias = weight, bias
        self.out_features, self.in_features = weight.shape
        self.maker, self.scratch, self.pdl = maker, scratch, pdl
        self.largest: torch.Tensor | None = None  # [] float32, of the inputs seen while calibrating

    def linear(self, x: torch.Tensor, out: torch.Tensor) -> None:
        """out = x W^T + b."""
        self._store(self._product(self._taken(x), x.size(0)), out)

    def norm_linear(self, x: torch.Tensor, out: torch.Tensor, eps: float) -> None:
        """out = norm(x) W^T + b, the norm an RMS norm without weight."""
        self._store(self._product(self._normed(x, eps), x.size(0)), out)

    def norm_linear_activation(
        self, x: torch.Tensor, out: torch.Tensor, eps: float, activation: Activation
    ) -> None:
        """out = activation(norm(x) W^T + b). swiglu: W interleaved in groups of 8, out half as wide."""
        y = self._product(self._normed(x, eps), x.size(0))
        if activation == "none":
            self._store(y, out)
            return
        if self.bias is not None:
            y.add_(self.bias)
        if activation == "swiglu":
            swiglu(y, out, pdl=self.pdl)
        else:
            relu_squared(y, out, pdl=self.pdl)

    def linear_residual(self, x: torch.Tensor, residual: torch.Tensor) -> None:
        """residual += x W^T + b, in place."""
        residual.add_(self._product(self._taken(x), x.size(0)))
        if self.bias is not None:
            residual.add_(self.bias)

    def settle(self) -> None:
        """Sets the scale of inputs, for good, from those that were seen while calibrating; does nothing where
        the precision has no such scale. Raises RuntimeError where none were seen.
        """
        if not self.maker.precision.calibrated:
            return
        if self.largest is None:
            raise RuntimeError("a projection through Transformer Engine was not reached by its calibration")
        _set_scale(self.weight.module, INPUT, self.largest, MARGIN)
        self.largest = None

    def _taken(self, x: torch.Tensor) -> torch.Tensor:
        """x with rows of zeros behind it, where TE needs them."""
        if self.scratch.fits(x):
            return x
        room = self.scratch.room(x.size(0), x.size(1))
        room[: x.size(0)].copy_(x)
        return room

    def _normed(self, x: torch.Tensor, eps: float) -> torch.Tensor:
        room = self.scratch.room(x.size(0), x.size(1))
        rms_norm(x, None, eps, room[: x.size(0)], pdl=self.pdl)
        return room

    def _product(self, x: torch.Tensor, rows: int) -> torch.Tensor:
        """x: padded. [rows, outputs], of which a row's columns lie together."""
        if self.scratch.calibrating:
            y = self._observed(x)
        else:
            with self.maker.autocast():
                y = self.weight.module(x)
        return y[:rows, : self.out_features]

    def _observed(self, x: torch.Tensor) -> torch.Tensor:
        """The product without rounding x, whose largest number is noted."""
        largest = x.abs().amax().float()
        self.largest = largest if self.largest is None else torch.maximum(self.largest, largest)
        weight = self.weight.module.weight
        full = weight if self.maker.recipe is None else cast(Quantised, weight).dequantize()
        return x @ full.t()

    def _store(self, y: torch.Tensor, out: torch.Tensor) -> None:
        if self.bias is None:
            out.copy_(y)
        else:
            torch.add(y, self.bias, out=out)


def _set_scale(module: TeModule, tensor: int, largest: torch.Tensor, margin: int) -> None:
    """As TE's own rule: the largest number becomes e4m3's, `margin` powers of two below it. Of nothing but
    zeros the scale stays as it is.
    """
    scales = module.fp8_meta["scaling_fwd"].scale
    wanted = (LARGEST / largest / 2**margin).clamp(max=torch.finfo(torch.float32).max)
    scales[tensor].copy_(torch.where(largest > 0, wanted, scales[tensor]))


def _bytes(weight: torch.Tensor) -> int:
    """What a weight takes, scales included."""
    described = getattr(weight, "get_metadata", None)
    parts = described().values() if described is not None else (weight,)
    return sum(part.numel() * part.element_size() for part in parts if isinstance(part, torch.Tensor))


def _zero(weight: torch.Tensor) -> None:
    weight.zero_()
