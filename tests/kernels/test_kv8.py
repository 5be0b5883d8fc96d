"""Keys and values of eight bits in plain torch, and who reads them."""

import math
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.backends import AttentionSpec, Unavailable, select_backend
from kernels.backends.clustered import ClusteredBackend, ClusterRule
from kernels.backends.flash import FlashBackend
from kernels.backends.reference import TorchBackend
from kernels.backends.sdpa import SdpaBackend
from kernels.backends.selftest import fault
from kernels.cluster import Shape, Variant, mismatch
from kernels.kv8 import FORMAT, LARGEST, SCALE_FORMAT, SMALLEST_SCALE, Scales, dequantize_kv, quantize_kv
from kernels.registry import select
from tests.kernels.test_backends import H200, SHAPE, SPEC, with_packages

KV8 = replace(SPEC, fp8_kv=True)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), size=st.integers(-30, 30), length=st.sampled_from([1, 16, 128]))
def test_numbers_come_back_within_a_step_of_three_bits(seed: int, size: int, length: int) -> None:
    """Of every size: three bits behind the point, and at the small end a step of the smallest number."""
    generator = torch.Generator().manual_seed(seed)
    x = (torch.randn(7, length, generator=generator) * 2.0**size).bfloat16()
    x[0] = 0.0
    values, scales = quantize_kv(x)
    assert values.dtype == FORMAT and scales.dtype == SCALE_FORMAT and scales.shape == x.shape[:-1]
    back = dequantize_kv(values, scales)
    step = torch.maximum(x.float().abs() * 2.0**-4, scales.float().unsqueeze(-1) * 2.0**-10)
    # The largest may lie beyond the format by what its scale was rounded down.
    assert ((back - x.float()).abs() <= step * 1.001).all()
    assert not back[0].any() and scales[0] == SMALLEST_SCALE
    assert (values.float().abs().amax(dim=-1)[1:] >= LARGEST * (1 - 2.0**-4)).all()


def test_what_is_kept_of_a_vector_depends_on_it_alone_and_not_on_its_size() -> None:
    x = torch.randn(5, 3, 64)
    values, scales = quantize_kv(x)
    alone, scale = quantize_kv(x[2, 1])
    assert torch.equal(alone.view(torch.uint8), values[2, 1].view(torch.uint8)) and scale == scales[2, 1]
    larger, scale = quantize_kv(x * 2.0**20)
    assert torch.equal(larger.view(torch.uint8), values.view(torch.uint8))
    assert torch.equal(scale.float(), scales.float() * 2.0**20)


def test_the_largest_numbers_there_are_stay_finite() -> None:
    x = torch.full((2, 16), torch.finfo(torch.bfloat16).max, dtype=torch.bfloat16)
    assert torch.isfinite(dequantize_kv(*quantize_kv(x)).bfloat16()).all()
    tiny = torch.full((2, 16), 2.0**-133)
    assert (dequantize_kv(*quantize_kv(tiny)) - tiny).abs().max() <= SMALLEST_SCALE * 2.0**-9


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_a_vector_that_is_not_finite_is_no_number_when_it_is_read(wrong: float) -> None:
    x = torch.randn(3, 32)
    x[1, 7] = wrong
    back = dequantize_kv(*quantize_kv(x))
    assert back[1].isnan().all() and torch.isfinite(back[[0, 2]]).all()


def test_flash_attention_is_left_out_and_an_error_where_it_is_asked_for() -> None:
    found = with_packages(H200, flash_attn_interface="3.0.0")
    choice = select("attention.prefill", found, KV8)
    assert choice.name == "triton"
    (reason,) = (why for name, why in choice.rejected if name == "fa3")
    assert "kv_dtype fp8" in reason
    asked = SHAPE | {"caps": found, "fp8_kv": True}
    with pytest.raises(Unavailable, match=r"--attention-backend fa3: .*kv_dtype fp8"):
        select_backend("fa3", **asked)
    with pytest.raises(Unavailable, match=r"--use-flash3: .*kv_dtype fp8"):
        select_backend("auto", **asked, flash="required")


def test_flash_attention_takes_no_scales() -> None:
    backend = FlashBackend("fa3", SPEC, lambda call: call.out, "")
    pages, ints = torch.zeros(2, 16, 2, 32), torch.zeros(1, dtype=torch.int32)
    scales: Scales = (torch.zeros(2, 16, 2), torch.zeros(2, 16, 2))
    q, out, tables = torch.zeros(1, 4, 32), torch.zeros(1, 128), torch.ones(1, 1, dtype=torch.int32)
    how = {"scale": 1.0, "window": None, "scales": scales}
    with pytest.raises(ValueError, match="a scale for each token"):
        backend.decode(q, pages, pages, tables, ints, ints, out, **how)
    with pytest.raises(ValueError, match="a scale for each token"):
        backend.prefill(q, pages, pages, tables, ints, torch.tensor([0, 1]), ints + 1, out, **how)


class Unscaled(TorchBackend):
    """Takes all scales of values for one."""

    def decode(self, *given: torch.Tensor, scales: Scales | None = None, **how: object) -> None:
        assert scales is not None
        super().decode(*given, scales=(scales[0], torch.ones_like(scales[1])), **how)  # type: ignore[arg-type]


def test_the_self_test_reads_scales() -> None:
    assert fault(TorchBackend(KV8), KV8) is None
    assert fault(SdpaBackend(KV8), KV8) is None
    assert "decode with window None is off" in (fault(Unscaled(KV8), KV8) or "")


class Clusters(TorchBackend):
    """In the place of `ClusterDecode`: what it is made for, and whether it is given what it needs."""

    made: ClassVar[list[Shape]] = []

    def __init__(self, shape: Shape, max_context: int, device: torch.device, **others: object) -> None:
        self.shape = shape
        self.made.append(shape)

    def prepare(self, max_entries: int) -> None:
        pass

    def served(self, max_entries: int) -> dict[int, Variant]:
        return {1: Variant(2, 8, 1)}

    def serves(self, entries: int) -> bool:
        return True

    def decode(self, q: torch.Tensor, *given: torch.Tensor, scales: Scales | None = None, **how: Any) -> None:
        k_pages, v_pages, tables, rows, positions, out = given
        assert mismatch(self.shape, q, k_pages, v_pages, tables, rows, positions, out, scales) is None
        super().decode(q, *given, scales=scales, **how)


def test_clusters_read_them_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernels.backends.clustered.ClusterDecode", Clusters)
    shape = SHAPE | {"head_dim": 128, "caps": H200, "fp8_kv": True}
    backend, rows = select_backend("auto", **shape, clusters=ClusterRule(2, 64, required=True))
    assert isinstance(backend, ClusteredBackend) and "clusters of 2 for 1 row" in rows[0][3]
    asked, _ = select_backend("triton-rotating", **shape, clusters=ClusterRule(2, 64, required=True))
    assert asked.name == backend.name == "clusters, triton-rotating"
    assert Clusters.made and all(made.fp8_kv for made in Clusters.made)


def test_the_reference_reads_what_pages_stand_for() -> None:
    """A row's own scales, whatever order its blocks lie in: the same as over the numbers in full."""
    spec = AttentionSpec(4, 2, 32, 16, torch.bfloat16, 2, 64, torch.device("cpu"))
    k_pages, v_pages = torch.randn(5, 16, 2, 32), torch.randn(5, 16, 2, 32)
    (k8, k_scales), (v8, v_scales) = quantize_kv(k_pages), quantize_kv(v_pages)
    tables = torch.tensor([[4, 2, 1]], dtype=torch.int32)
    q, row = torch.randn(1, 4, 32), torch.zeros(1, dtype=torch.int32)
    ours, theirs = torch.zeros(1, 128), torch.zeros(1, 128)
    backend, position = TorchBackend(spec), torch.tensor([37], dtype=torch.int32)
    how = {"scale": 0.2, "window": None}
    backend.decode(q, k8, v8, tables, row, position, ours, scales=(k_scales, v_scales), **how)
    whole = dequantize_kv(k8, k_scales), dequantize_kv(v8, v_scales)
    backend.decode(q, *whole, tables, row, position, theirs, **how)
    assert torch.equal(ours, theirs)
