"""Norms, rotation, activations and embeddings against float64 and against their torch references."""

from itertools import product

import pytest
import torch

from kernels import fused
from kernels.kv8 import Scales, dequantize_kv, quantize_kv
from kernels.rope import rope_table
from kernels.triton.activation import relu_squared, swiglu
from kernels.triton.embed import embed_norm
from kernels.triton.norm import MAX_WIDTH, rms_norm
from kernels.triton.rope import Order, RotarySpec, rotate_and_store
from tests.kernels.triton.device import (
    DEVICE,
    DTYPES,
    assert_exact,
    assert_near,
    ints,
    poisoned,
    randn,
    strided,
)

EPS = 1e-6
bits = pytest.mark.parametrize("dtype", DTYPES, ids=["bf16", "fp32"])


def exact_norm(x: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
    x = x.double()
    x = x / (x.square().mean(-1, keepdim=True) + EPS).sqrt()
    return x if weight is None else x * weight.double()


# -- norm


@bits
@pytest.mark.parametrize(("tokens", "width"), [(1, 512), (7, 96), (3, 2048), (2, 8192)])
@pytest.mark.parametrize("weighted", [False, True])
def test_rms_norm(dtype: torch.dtype, tokens: int, width: int, weighted: bool) -> None:
    x = randn(tokens, width, dtype=dtype)
    weight = randn(width, dtype=dtype, seed=1) if weighted else None
    out = poisoned(tokens, width, dtype=dtype)
    rms_norm(x, weight, EPS, out)
    assert_exact(out, exact_norm(x, weight), ulps=1 if dtype == torch.bfloat16 else 4)
    assert_near(out, fused.norm_weighted(x, weight, EPS), ulps=1 if dtype == torch.bfloat16 else 4)


@bits
def test_rms_norm_adds_the_residual_in_place(dtype: torch.dtype) -> None:
    x, residual = randn(5, 512, dtype=dtype), randn(5, 512, dtype=dtype, seed=1)
    weight = randn(512, dtype=dtype, seed=2)
    total, normed = fused.add_norm(x, residual, weight, EPS)
    out = poisoned(5, 512, dtype=dtype)
    rms_norm(x, weight, EPS, out, residual=residual)
    assert torch.equal(residual, total)
    assert_exact(out, exact_norm(total, weight), ulps=1 if dtype == torch.bfloat16 else 4)
    assert_near(out, normed, ulps=1 if dtype == torch.bfloat16 else 4)


@bits
def test_rms_norm_of_strided_rows_and_in_place(dtype: torch.dtype) -> None:
    x = randn(3, 256, dtype=dtype)
    expected = poisoned(3, 256, dtype=dtype)
    rms_norm(x, None, EPS, expected)
    view, out = strided(x, 64), strided(poisoned(3, 256, dtype=dtype), 128)
    rms_norm(view, None, EPS, out)
    assert torch.equal(out, expected)
    rms_norm(view, None, EPS, view)
    assert torch.equal(view, expected)
    wide = view.as_strided((3, 320), (320, 1))
    assert wide[:, 256:].isnan().all()


@bits
def test_a_row_does_not_depend_on_its_company(dtype: torch.dtype) -> None:
    x = randn(9, 768, dtype=dtype)
    whole = poisoned(9, 768, dtype=dtype)
    rms_norm(x, None, EPS, whole)
    for row in (0, 4, 8):
        alone = poisoned(1, 768, dtype=dtype)
        rms_norm(x[row : row + 1].clone(), None, EPS, alone)
        assert torch.equal(alone[0], whole[row])


def test_rms_norm_passes_faults_on_and_refuses_what_does_not_fit() -> None:
    x = randn(2, 64, dtype=torch.float32)
    x[0, 3] = float("nan")
    out = poisoned(2, 64, dtype=torch.float32)
    rms_norm(x, None, EPS, out)
    assert out[0].isnan().all() and torch.isfinite(out[1]).all()
    wide = torch.zeros(1, MAX_WIDTH + 1, device=DEVICE)
    with pytest.raises(ValueError, match="do not fit"):
        rms_norm(wide, None, EPS, wide)


# -- activations


@bits
@pytest.mark.parametrize(("tokens", "width"), [(1, 2048), (3, 1000), (7, 24)])
def test_relu_squared(dtype: torch.dtype, tokens: int, width: int) -> None:
    x = strided(randn(tokens, width, dtype=dtype), 8)
    out = poisoned(tokens, width, dtype=dtype)
    relu_squared(x, out)
    assert_exact(out, x.double().clamp_min(0).square())
    assert torch.equal(out, fused.relu_squared(x))


def test_relu_squared_keeps_nan() -> None:
    x = torch.tensor([[float("nan"), -1.0, 2.0, -0.0]], device=DEVICE)
    relu_squared(x, x)
    assert x[0, 0].isnan() and x[0, 1:].tolist() == [0.0, 4.0, 0.0]


@bits
@pytest.mark.parametrize(("tokens", "width"), [(1, 1376), (3, 8), (5, 512)])
def test_swiglu(dtype: torch.dtype, tokens: int, width: int) -> None:
    gate, up = randn(tokens, width, dtype=dtype), randn(tokens, width, dtype=dtype, seed=1)
    groups = [part.view(tokens, -1, 8) for part in (gate, up)]
    x = strided(torch.stack(groups, dim=2).view(tokens, 2 * width), 16)
    out = poisoned(tokens, width, dtype=dtype)
    swiglu(x, out)
    exact = gate.double() * gate.double().sigmoid() * up.double()
    assert_exact(out, exact, ulps=1 if dtype == torch.bfloat16 else 4)
    assert_near(out, fused.swiglu(x), ulps=1 if dtype == torch.bfloat16 else 4)
    with pytest.raises(ValueError, match="interleaved"):
        swiglu(x[:, 8:], out)


# -- embedding


@bits
@pytest.mark.parametrize("normalised", [False, True])
def test_embed_norm(dtype: torch.dtype, normalised: bool) -> None:
    table = strided(randn(11, 320, dtype=dtype), 64)
    weight = randn(320, dtype=dtype, seed=1) if normalised else None
    eps = EPS if normalised else None
    ids = ints([3, -1, 0, 10, 11, 2**31 - 1, 3])
    out, copy = poisoned(7, 320, dtype=dtype), poisoned(7, 320, dtype=dtype)
    embed_norm(ids, table, out, eps=eps, weight=weight, copy=copy)
    reference = fused.gather_norm(table, ids, weight, eps)
    if normalised:
        assert_near(out, reference, ulps=1 if dtype == torch.bfloat16 else 4)
        assert_exact(out[:1], exact_norm(table[3:4], weight), ulps=1 if dtype == torch.bfloat16 else 4)
    else:
        assert torch.equal(out, reference)
    assert torch.equal(out[[1, 4, 5]], torch.zeros_like(out[:3]))
    assert torch.equal(out, copy) and torch.equal(out[0], out[6])
    with pytest.raises(ValueError, match="without a norm"):
        embed_norm(ids, table, out, eps=None, weight=table[0])


# -- rotation, norm and cache


class Step:
    """Tokens of a step with their places in a cache of poisoned pages."""

    def __init__(
        self,
        spec: RotarySpec,
        dtype: torch.dtype,
        slots: list[int],
        *,
        block_size: int = 4,
        blocks: int = 5,
        heads_first: bool = False,
        padding: int = 0,
        eight_bits: bool = False,
    ) -> None:
        tokens, dim = len(slots), spec.head_dim
        width = (spec.heads + 2 * spec.kv_heads) * dim
        self.spec = spec
        self.qkv = (
            strided(randn(tokens, width, dtype=dtype), padding)
            if padding
            else randn(tokens, width, dtype=dtype)
        )
        self.positions = ints([(7 * t + 1) % 64 for t in range(tokens)])
        self.slots = ints(slots)
        own, other = rope_table(64, dim, 1e4, torch.float32)
        self.own, self.other = own.to(DEVICE), other.to(DEVICE)
        order = (
            (blocks, spec.kv_heads, block_size, dim)
            if heads_first
            else (blocks, block_size, spec.kv_heads, dim)
        )
        kept = torch.float8_e4m3fn if eight_bits else dtype
        pages = [poisoned(*order, dtype=kept) for _ in range(2)]
        self.k_pages, self.v_pages = (page.transpose(1, 2) if heads_first else page for page in pages)
        self.scales: Scales | None = None
        if eight_bits:
            k_scales, v_scales = (poisoned(*order[:-1], dtype=torch.bfloat16) for _ in range(2))
            if heads_first:
                k_scales, v_scales = k_scales.transpose(1, 2), v_scales.transpose(1, 2)
            self.scales = k_scales, v_scales

    def run(self, **extra: torch.Tensor | None) -> torch.Tensor:
        """Queries after the kernel, [tokens, heads, head_dim]."""
        spec = self.spec
        rotate_and_store(
            self.qkv,
            self.positions,
            self.slots,
            self.own,
            self.other,
            self.k_pages,
            self.v_pages,
            spec,
            scales=self.scales,
            **extra,
        )
        return self.qkv[:, : spec.heads * spec.head_dim].unflatten(-1, (spec.heads, -1))

    def reference(self, **extra: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries and pages from plain torch; call it before `run`."""
        k_pages, v_pages = self.k_pages.clone(), self.v_pages.clone()
        q = fused.rotate_and_store(
            self.qkv, self.positions, self.slots, self.own, self.other, k_pages, v_pages, self.spec, **extra
        )
        return q.clone(), k_pages, v_pages

    def exact(
        self,
        bias: torch.Tensor | None = None,
        q_weight: torch.Tensor | None = None,
        k_weight: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values of all tokens in float64."""
        spec = self.spec
        x = self.qkv.double() if bias is None else self.qkv.double() + bias.double()
        q, k, v = x.unflatten(-1, (-1, spec.head_dim)).split(
            [spec.heads, spec.kv_heads, spec.kv_heads], dim=1
        )
        return self._turn(q, q_weight), self._turn(k, k_weight), v

    def _turn(self, x: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
        spec, half = self.spec, self.spec.head_dim // 2
        if spec.order == "norm_rope":
            x = exact_norm(x, weight)
        own, other = (table[self.positions.long()].double().unsqueeze(1) for table in (self.own, self.other))
        x = x * own + x.roll(half, dims=-1) * other
        if spec.order == "rope_norm":
            x = exact_norm(x, weight)
        return x * spec.qk_scale

    def cached(self, pages: torch.Tensor) -> torch.Tensor:
        """What pages hold for the live tokens, [live, kv_heads, head_dim]."""
        live = self.slots[self.slots >= 0].long()
        return pages[live // pages.size(1), live % pages.size(1)]

    def untouched(self, pages: torch.Tensor) -> bool:
        """Whether nothing but the live slots was written."""
        free = pages.clone()
        live = self.slots[self.slots >= 0].long()
        free[live // pages.size(1), live % pages.size(1)] = float("nan")
        return bool(free.isnan().all())


def spec_of(
    order: Order, heads: int = 4, kv_heads: int = 2, head_dim: int = 64, scale: float = 1.0
) -> RotarySpec:
    return RotarySpec(heads, kv_heads, head_dim, order, EPS, scale)


@bits
@pytest.mark.parametrize("order", ["rope", "rope_norm", "norm_rope"])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "heads_first"),
    [(16, 16, 128, False), (4, 1, 64, True), (5, 5, 32, False), (6, 3, 256, True), (32, 8, 128, True)],
)
def test_rotate_and_store(
    dtype: torch.dtype, order: Order, heads: int, kv_heads: int, head_dim: int, heads_first: bool
) -> None:
    spec = spec_of(order, heads, kv_heads, head_dim, scale=1.2 if order == "rope_norm" else 1.0)
    step = Step(spec, dtype, [17, -1, 6], heads_first=heads_first, padding=32)
    weights: dict[str, torch.Tensor | None] = {}
    if order == "norm_rope":
        weights = {
            name: randn(head_dim, dtype=dtype, seed=3 + i) for i, name in enumerate(["q_weight", "k_weight"])
        }
    untouched = step.qkv[1].clone()
    q, k_pages, v_pages = step.reference(**weights)
    exact_q, exact_k, exact_v = step.exact(**weights)
    result = step.run(**weights)
    live = torch.tensor([0, 2], device=DEVICE)
    assert torch.equal(step.qkv[1], untouched)
    assert step.untouched(step.k_pages) and step.untouched(step.v_pages)
    ulps = 1.0 if dtype == torch.bfloat16 else 8.0
    assert_exact(result[live], exact_q[live], q[live])
    assert_exact(step.cached(step.k_pages), exact_k[live], step.cached(k_pages))
    assert_near(result[live], q[live], ulps, floor=1.0)
    assert_near(step.cached(step.k_pages), step.cached(k_pages), ulps, floor=1.0)
    assert torch.equal(step.cached(step.v_pages), step.cached(v_pages))
    assert torch.equal(step.cached(step.v_pages), exact_v[live].to(dtype))


@bits
def test_bias_and_value_embedding(dtype: torch.dtype) -> None:
    spec = spec_of("rope")
    step = Step(spec, dtype, [5, 9, 14])
    bias = randn(step.qkv.size(1), dtype=dtype, seed=1)
    embedding, gate = randn(3, 128, dtype=dtype, seed=2), randn(3, 2, dtype=dtype, seed=3).abs()
    q, k_pages, v_pages = step.reference(bias=bias, value_embedding=embedding, gate=gate)
    exact_q, exact_k, v = step.exact(bias)
    again = Step(spec, dtype, [5, 9, 14])
    result = step.run(bias=bias, value_embedding=embedding, gate=gate)
    exact_v = v + gate.double().unsqueeze(-1) * embedding.double().view(3, 2, 64)
    assert_exact(result, exact_q, q)
    assert_exact(step.cached(step.k_pages), exact_k, step.cached(k_pages))
    assert_exact(step.cached(step.v_pages), exact_v, step.cached(v_pages))
    # On a GPU a product and a sum may become one operation where no rounding stands between them.
    assert_near(step.cached(step.v_pages), step.cached(v_pages), floor=1.0)
    # The same from the table of embeddings and ids, with a gate in float32.
    table = randn(9, 128, dtype=dtype, seed=5)
    table[torch.tensor([4, 8, 0], device=DEVICE)] = embedding
    again.run(bias=bias, value_embedding=table, value_ids=ints([4, 8, 0]), gate=gate.float())
    assert torch.equal(again.cached(again.v_pages), step.cached(step.v_pages))
    with pytest.raises(ValueError, match="come together"):
        again.run(value_embedding=embedding)


@bits
def test_values_that_are_not_finite_become_zero(dtype: torch.dtype) -> None:
    spec = spec_of("rope_norm", 2, 2, 32)
    step = Step(spec, dtype, [5])
    for column, value in enumerate([float("nan"), float("inf"), float("-inf")]):
        step.qkv[0, -1 - column] = value
    step.run()
    cached = step.cached(step.v_pages)[0, -1]
    assert cached[-3:].tolist() == [0.0, 0.0, 0.0] and torch.isfinite(cached).all() and cached[:-3].all()


@bits
@pytest.mark.parametrize("order", ["rope", "rope_norm", "norm_rope"])
def test_a_token_does_not_depend_on_its_company(dtype: torch.dtype, order: Order) -> None:
    spec = spec_of(order, 3, 3, 128)
    whole = Step(spec, dtype, [5, 9, 14, 18, 2])
    alone = Step(spec, dtype, [14])
    alone.qkv.copy_(whole.qkv[2:3])
    alone.positions.copy_(whole.positions[2:3])
    q = whole.run()
    assert torch.equal(alone.run()[0], q[2])
    for ours, theirs in ((alone.k_pages, whole.k_pages), (alone.v_pages, whole.v_pages)):
        assert torch.equal(alone.cached(ours)[0], whole.cached(theirs)[2])


def codes(x: torch.Tensor) -> torch.Tensor:
    """Numbers of eight bits on one line: neighbours differ by one."""
    bits = x.view(torch.int8).int()
    return torch.where(bits < 0, -(bits & 0x7F), bits)


SHAPES8 = [(16, 16, 128, True), (5, 5, 32, False), (4, 1, 64, True)]


# Each order and each shape once in each run.
@pytest.mark.parametrize(
    ("order", "heads", "kv_heads", "head_dim", "heads_first"),
    [
        pytest.param(order, *shape, marks=[pytest.mark.slow] if index % 4 else [])
        for index, (order, shape) in enumerate(product(("rope", "rope_norm", "norm_rope"), SHAPES8))
    ],
)
def test_keys_and_values_of_eight_bits(
    order: Order, heads: int, kv_heads: int, head_dim: int, heads_first: bool
) -> None:
    """Those of what is kept otherwise, token for token, whatever their size."""
    spec, slots = spec_of(order, heads, kv_heads, head_dim), [17, -1, 6, 3]
    whole = Step(spec, torch.bfloat16, slots, heads_first=heads_first)
    kept = Step(spec, torch.bfloat16, slots, heads_first=heads_first, eight_bits=True)
    for step in (whole, kept):
        step.qkv[2].mul_(1e-4)
        step.qkv[3].mul_(1e6)
        step.qkv[3, -head_dim:] = 0.0
    assert torch.equal(kept.run(), whole.run())
    assert kept.scales is not None
    for pages, scales, own in zip(
        (kept.k_pages, kept.v_pages), kept.scales, (whole.k_pages, whole.v_pages), strict=True
    ):
        values, expected = quantize_kv(whole.cached(own))
        assert torch.equal(kept.cached(scales), expected)
        assert (codes(kept.cached(pages)) - codes(values)).abs().max() <= (0 if DEVICE == "cpu" else 1)
        back = dequantize_kv(kept.cached(pages), kept.cached(scales))
        assert (back - whole.cached(own).float()).abs().max() <= 2**-4 * whole.cached(own).float().abs().max()
        assert kept.untouched(scales) and (pages.float().isnan() == ~_live(kept, pages)).all()
    assert not dequantize_kv(kept.cached(kept.v_pages), kept.cached(kept.scales[1]))[-1, -1].any()


def _live(step: Step, pages: torch.Tensor) -> torch.Tensor:
    """Which numbers of pages belong to live slots."""
    live = torch.zeros(pages.shape, dtype=torch.bool, device=pages.device)
    slots = step.slots[step.slots >= 0].long()
    live[slots // pages.size(1), slots % pages.size(1)] = True
    return live


def test_what_is_not_finite_among_eight_bits() -> None:
    """A value counts as zero, as ever; a key spoils what is read of it, for its row must not go unnoticed."""
    spec = spec_of("rope", 2, 2, 32)
    step = Step(spec, torch.bfloat16, [5, 6], eight_bits=True)
    for column, value in enumerate([float("nan"), float("inf"), float("-inf")]):
        step.qkv[0, -1 - column] = value
    step.qkv[1, 2 * 32] = float("inf")  # of the first key
    step.run()
    assert step.scales is not None
    keys = dequantize_kv(step.cached(step.k_pages), step.cached(step.scales[0]))
    values = dequantize_kv(step.cached(step.v_pages), step.cached(step.scales[1]))
    assert values[0, -1, -3:].tolist() == [0.0, 0.0, 0.0] and torch.isfinite(values).all()
    assert values[0, -1, :-3].all()
    assert keys[1, 0].isnan().all() and torch.isfinite(keys[1, 1]).all() and torch.isfinite(keys[0]).all()


def test_a_token_of_eight_bits_does_not_depend_on_its_company() -> None:
    spec = spec_of("norm_rope", 3, 3, 128)
    whole = Step(spec, torch.bfloat16, [5, 9, 14, 18, 2], eight_bits=True)
    alone = Step(spec, torch.bfloat16, [14], eight_bits=True)
    alone.qkv.copy_(whole.qkv[2:3])
    alone.positions.copy_(whole.positions[2:3])
    for step in (whole, alone):
        step.run()
    assert whole.scales is not None and alone.scales is not None
    for ours, theirs in ((alone.k_pages, whole.k_pages), (alone.v_pages, whole.v_pages)):
        assert torch.equal(codes(alone.cached(ours)[0]), codes(whole.cached(theirs)[2]))
    for ours, theirs in zip(alone.scales, whole.scales, strict=True):
        assert torch.equal(alone.cached(ours)[0], whole.cached(theirs)[2])


def test_refuses_odd_sizes() -> None:
    step = Step(spec_of("rope", 1, 1, 48), torch.float32, [1])
    with pytest.raises(ValueError, match="powers of two"):
        step.run()
