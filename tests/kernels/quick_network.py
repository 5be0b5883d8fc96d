"""The GPU's network in plain torch: Triton's interpreter takes a second for a step of it.

Its kernels are tested by themselves; what is about the steps of whole networks may have them quick. Sums are
in float64, so that a row's result does not depend on its company.
"""

import pytest
import torch

from engine.gpu import network
from kernels import device_linear, fused
from kernels.backends.reference import TorchBackend
from kernels.device_linear import DeviceLinear
from kernels.kv8 import Scales
from kernels.quantize import Weight8, dequantize
from kernels.triton.rope import RotarySpec
from kernels.triton.step import LOST


def quicken(monkeypatch: pytest.MonkeyPatch, *, samples: bool = True) -> None:
    """samples False: nothing is sampled, and rows stay as they are."""
    for function in (prepare_step, embed_norm, rotate_and_store, gather_rows, finish_step):
        monkeypatch.setattr(network, function.__name__, function)
    for function in (rms_norm, swiglu, relu_squared):
        monkeypatch.setattr(device_linear, function.__name__, function)
    monkeypatch.setattr(device_linear, "dequantize", full)
    monkeypatch.setattr(DeviceLinear, "_product", product)
    monkeypatch.setattr(DeviceLinear, "linear_residual", residual)
    if not samples:
        monkeypatch.setattr(network, "sample", lambda *args, **options: None)
        monkeypatch.setattr(network, "finish_step", lambda *args, **options: None)


def prepare_step(
    token_rows: torch.Tensor,
    token_ids: torch.Tensor,
    token_positions: torch.Tensor,
    token_previous: torch.Tensor,
    last_token: torch.Tensor,
    previous_token: torch.Tensor,
    seq_len: torch.Tensor,
    block_tables: torch.Tensor,
    block_size: int,
    out_ids: torch.Tensor,
    out_previous: torch.Tensor,
    out_positions: torch.Tensor,
    out_slots: torch.Tensor,
    *,
    pdl: bool = False,
) -> None:
    live, rows = token_rows >= 0, token_rows.long().clamp_min(0)
    ids = torch.where(token_ids < 0, last_token[rows], token_ids)
    positions = torch.where(token_positions < 0, seq_len[rows], token_positions)
    positions = torch.where(live, positions, 0)
    blocks = block_tables[rows].gather(1, (positions.long() // block_size).unsqueeze(1))[:, 0]
    out_ids.copy_(torch.where(live, ids, 0))
    out_previous.zero_()
    out_positions.copy_(positions)
    out_slots.copy_(torch.where(live, blocks * block_size + positions % block_size, -1))


def finish_step(
    entry_rows: torch.Tensor,
    entry_tokens: torch.Tensor,
    positions: torch.Tensor,
    ids: torch.Tensor,
    sampled: torch.Tensor,
    last_token: torch.Tensor,
    previous_token: torch.Tensor,
    seq_len: torch.Tensor,
    out_ring: torch.Tensor,
    valid: torch.Tensor,
    valid_ring: torch.Tensor,
    step_counter: torch.Tensor,
    *,
    failed: torch.Tensor,
    pdl: bool = False,
) -> None:
    live = entry_rows >= 0
    rows, tokens = entry_rows[live].long(), entry_tokens[live].long()
    last_token[rows] = sampled[live].int()
    previous_token[rows], seq_len[rows] = ids[tokens], positions[tokens] + 1
    slot, entries = int(step_counter) % out_ring.size(0), len(entry_rows)
    out_ring[slot, :entries] = sampled.int()
    valid_ring[slot, :entries] = valid.int() + LOST.value * (failed != 0)
    step_counter.add_(1)


def embed_norm(
    ids: torch.Tensor,
    table: torch.Tensor,
    out: torch.Tensor,
    *,
    eps: float | None,
    weight: torch.Tensor | None = None,
    copy: torch.Tensor | None = None,
    pdl: bool = False,
) -> None:
    assert copy is None
    out.copy_(fused.gather_norm(table, ids, weight, eps))


def rotate_and_store(
    qkv: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    own: torch.Tensor,
    other: torch.Tensor,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    spec: RotarySpec,
    *,
    scales: Scales | None = None,
    bias: torch.Tensor | None = None,
    q_weight: torch.Tensor | None = None,
    k_weight: torch.Tensor | None = None,
    pdl: bool = False,
    **nothing: None,
) -> None:
    assert not any(part is not None for part in nothing.values())
    query = fused.rotate_and_store(
        *(qkv, positions, slots, own, other, k_pages, v_pages, spec),
        scales=scales,
        bias=bias,
        q_weight=q_weight,
        k_weight=k_weight,
    )
    qkv[:, : spec.heads * spec.head_dim] = query.flatten(1)


def gather_rows(
    x: torch.Tensor,
    index: torch.Tensor,
    out: torch.Tensor,
    *,
    eps: float | None = None,
    weight: torch.Tensor | None = None,
    backout: None = None,
    positions: tuple[torch.Tensor, torch.Tensor],
    pdl: bool = False,
) -> None:
    places, after = positions
    out.copy_(fused.gather_norm(x, index, weight, eps))
    after.copy_(torch.where(index >= 0, places[index.long().clamp_min(0)] + 1, 0))


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor | None, eps: float, out: torch.Tensor, pdl: bool = False
) -> None:
    out.copy_(fused.norm_weighted(x, weight, eps))


def swiglu(x: torch.Tensor, out: torch.Tensor, *, pdl: bool = False) -> None:
    out.copy_(fused.swiglu(x))


def relu_squared(x: torch.Tensor, out: torch.Tensor, pdl: bool = False) -> None:
    out.copy_(fused.relu_squared(x))


def full(weight: Weight8, out: torch.Tensor, pdl: bool = False) -> None:
    out.copy_(dequantize(weight))


def exact(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x W^T in float64."""
    return x.double() @ weight.double().t()


def product(self: DeviceLinear, x: torch.Tensor, out: torch.Tensor) -> None:
    out.copy_(exact(x, self._full()))


def residual(self: DeviceLinear, x: torch.Tensor, residual: torch.Tensor) -> None:
    residual.copy_(residual.double() + exact(x, self._full()))


class ExactBackend(TorchBackend):
    """Attention in float64."""

    def attend(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float, window: int | None
    ) -> torch.Tensor:
        assert window is None
        count, context = query.size(0), keys.size(0)
        group = query.size(1) // keys.size(1)
        keys, values = (x.double().repeat_interleave(group, dim=1) for x in (keys, values))
        scores = torch.einsum("qhd,khd->hqk", query.double(), keys) * scale
        at = torch.arange(context, device=query.device)
        hidden = at > at[context - count :].unsqueeze(1)
        weights = torch.softmax(scores.masked_fill(hidden, float("-inf")), dim=-1)
        return torch.einsum("hqk,khd->qhd", weights, values).flatten(1).to(query.dtype)
