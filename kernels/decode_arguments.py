"""What the kernels of a whole decode step are given (struct Step of kernels/cuda/decode_network.cu).

That is a network's addresses, the memory through which blocks meet, and a step's own inputs.
"""

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kernels.decode_shape import EXCHANGES, Cut, mail_words
from kernels.kv8 import Scales
from kernels.quantize import Weight, Weight8
from kernels.step_spec import StepLayer, StepSpec

PHASES = ("attention", "o", "mlp in", "mlp out", "head")
# What a block's first warp waits for, all of its time, that by stages, and what its first producer waits for.
STAGES = ("gathering", "multiplying", "giving", "receiving", "attending", "meeting", "sending", "finishing")
SPENT = ("words", "team", "weights", "all", *STAGES, "slots", "pace")
LOG2_E = math.log2(math.e)


class _Layer(ctypes.Structure):
    """struct Layer of decode_network.cu."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("qkv", "o", "mlp_in", "mlp_out")),
        *((name, ctypes.c_void_p) for name in ("qkv_factors", "o_factors", "in_factors", "out_factors")),
        *((name, ctypes.c_void_p) for name in ("qkv_bias", "q_norm", "k_norm")),
        *((name, ctypes.c_void_p) for name in ("keys", "values", "key_scales", "value_scales")),
    )


class StepArguments(ctypes.Structure):
    """struct Step of decode_network.cu. Strides count numbers."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("layers", "head", "head_factors", "final_norm")),
        *((name, ctypes.c_void_p) for name in ("own", "other", "x")),
        *((name, ctypes.c_void_p) for name in ("rows", "positions", "tables", "entry_tokens")),
        *((name, ctypes.c_void_p) for name in ("logits", "entry_positions")),
        *((name, ctypes.c_void_p) for name in ("stream", "attended", "middle", "inner", "mail")),
        *((name, ctypes.c_void_p) for name in ("failed", "epoch", "arrived", "timeline", "trace")),
        *((name, ctypes.c_longlong) for name in ("x_stride", "table_stride", "logits_stride")),
        *((name, ctypes.c_longlong) for name in ("page", "page_head", "scale_page", "scale_head")),
        *((name, ctypes.c_float) for name in ("eps", "qk_scale", "score_scale")),
        *((name, ctypes.c_int) for name in ("count", "pace")),
    )


@dataclass(frozen=True, slots=True)
class StepNetwork:
    """What a step reads of a network. own, other: rotary table [positions, head_dim] float32."""

    spec: StepSpec
    layers: Sequence[StepLayer]
    head: Weight
    final_norm: torch.Tensor | None
    own: torch.Tensor
    other: torch.Tensor


@dataclass(slots=True)
class StepMemory:
    """What all kernels of one network share on one device.

    layers: [layers, 15] int64, addresses; table: the same on the host. exchange: words of 8 bytes, through
    which blocks meet. failed, epoch, arrived: [1] int32. timeline: [layers * 4 + 4] int64, when one block
    ended each phase. trace: [blocks, PHASES, SPENT] int64, cycles that traced steps have added.
    """

    layers: torch.Tensor
    table: torch.Tensor
    exchange: dict[str, torch.Tensor]
    failed: torch.Tensor
    epoch: torch.Tensor
    arrived: torch.Tensor
    timeline: torch.Tensor
    trace: torch.Tensor

    @classmethod
    def allocate(cls, network: StepNetwork, team: int, rows: int, device: torch.device) -> "StepMemory":
        """rows: most entries of a step."""
        spec = network.spec

        def words(count: int) -> torch.Tensor:
            return torch.zeros(count, dtype=torch.int64, device=device)

        mail = team * spec.kv_heads * mail_words(spec, Cut(rows, team, 16, 4))
        exchange = {
            "stream": words(rows * spec.width // 2),
            "attended": words(rows * spec.heads * spec.head_dim // 2),
            "middle": words(rows * spec.width // 2),
            "inner": words(rows * spec.inner // 2),
            "mail": words(mail),
        }
        failed, epoch, arrived = (torch.full((1,), n, dtype=torch.int32, device=device) for n in (0, 1, 0))
        table = torch.zeros(spec.layers, len(_Layer._fields_), dtype=torch.int64)
        for row, layer in zip(table, network.layers, strict=True):
            parts = (layer.qkv_bias, layer.q_norm, layer.k_norm)
            row[:4] = torch.tensor([_values(weight).data_ptr() for weight in layer[:4]])
            row[4:8] = torch.tensor([_factors(weight) for weight in layer[:4]])
            row[8:11] = torch.tensor([0 if part is None else part.data_ptr() for part in parts])
        timeline = words(spec.layers * EXCHANGES + 4)
        trace = words(team * spec.kv_heads * len(PHASES) * len(SPENT)).view(-1, len(PHASES), len(SPENT))
        return cls(table.to(device), table, exchange, failed, epoch, arrived, timeline, trace)

    def bind(
        self, pages: Sequence[tuple[torch.Tensor, torch.Tensor]], scales: Sequence[Scales | None] = ()
    ) -> None:
        """Each layer's keys and values, [blocks, block_size, kv_heads, head_dim] views, are here now, and
        their scales where they have some.
        """
        kept = [own or () for own in scales] or [()] * len(pages)
        where = [[part.data_ptr() for part in (*own, *more)] for own, more in zip(pages, kept, strict=True)]
        self.table[:, 11 : 11 + len(where[0])] = torch.tensor(where, dtype=torch.int64)
        # In one piece: to copy a part a kernel would run, and a step may start before it has ended.
        self.layers.copy_(self.table)


def _values(weight: Weight) -> torch.Tensor:
    return weight.values if isinstance(weight, Weight8) else weight


def _factors(weight: Weight) -> int:
    return weight.scales.data_ptr() if isinstance(weight, Weight8) else 0


def arguments(
    network: StepNetwork,
    memory: StepMemory,
    page: torch.Tensor,
    scale: torch.Tensor | None = None,
    *,
    x: torch.Tensor,
    rows: torch.Tensor,
    positions: torch.Tensor,
    tables: torch.Tensor,
    logits: torch.Tensor,
    entry_tokens: torch.Tensor,
    entry_positions: torch.Tensor,
    pace: int,
) -> StepArguments:
    """A launch's parameters. page, scale: keys of any layer and their scales, for the strides."""
    spec, head = network.spec, network.head
    norm = network.final_norm
    return StepArguments(
        layers=memory.layers.data_ptr(),
        head=_values(head).data_ptr(),
        head_factors=_factors(head),
        final_norm=0 if norm is None else norm.data_ptr(),
        own=network.own.data_ptr(),
        other=network.other.data_ptr(),
        x=x.data_ptr(),
        rows=rows.data_ptr(),
        positions=positions.data_ptr(),
        tables=tables.data_ptr(),
        entry_tokens=entry_tokens.data_ptr(),
        logits=logits.data_ptr(),
        entry_positions=entry_positions.data_ptr(),
        **{name: words.data_ptr() for name, words in memory.exchange.items()},
        failed=memory.failed.data_ptr(),
        epoch=memory.epoch.data_ptr(),
        arrived=memory.arrived.data_ptr(),
        timeline=memory.timeline.data_ptr(),
        trace=memory.trace.data_ptr(),
        x_stride=x.stride(0),
        table_stride=tables.stride(0),
        logits_stride=logits.stride(0),
        page=page.stride(0),
        page_head=page.stride(2),
        scale_page=0 if scale is None else scale.stride(0),
        scale_head=0 if scale is None else scale.stride(2),
        eps=spec.eps,
        qk_scale=spec.qk_scale,
        score_scale=spec.head_dim**-0.5 * LOG2_E,
        count=x.size(0),
        pace=pace,
    )
