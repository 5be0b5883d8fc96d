"""Row state before and after a step, block tables, sampled rows, and nanochat's extras."""

import random

import pytest
import torch

from engine.config import GPTConfig
from engine.model import GPT
from kernels import fused
from kernels.activation import sigmoid
from kernels.norm import rms_norm
from kernels.triton.nanochat import embed_smear, value_gate
from kernels.triton.step import (
    LOST,
    apply_updates,
    finish_step,
    gather_rows,
    prepare_step,
    scale_add,
)
from tests.kernels.triton.device import DEVICE, DTYPES, assert_near, ints, poisoned, randn, strided

EPS = 1e-6
bits = pytest.mark.parametrize("dtype", DTYPES, ids=["bf16", "fp32"])


class Rows:
    """State of eight rows with tables of six blocks of four positions."""

    def __init__(self) -> None:
        self.last = ints([100 + row for row in range(8)])
        self.previous = ints([50, -1, 52, 53, 54, 55, 56, 57])
        self.length = ints([0, 3, 4, 23, 24, 7, 8, 9])
        self.tables = (1 + torch.arange(48, dtype=torch.int32)).view(8, 6).to(DEVICE)

    def prepare(
        self, rows: list[int], ids: list[int], places: list[int], before: list[int]
    ) -> list[list[int]]:
        """[ids, previous, positions, slots] of a step."""
        outs = [poisoned(len(rows), dtype=torch.int32) for _ in range(4)]
        inputs = [ints(values) for values in (rows, ids, places, before)]
        prepare_step(*inputs, self.last, self.previous, self.length, self.tables, 4, *outs)
        return [out.tolist() for out in outs]


def test_prepare_takes_from_rows_what_is_not_given() -> None:
    ids, previous, positions, slots = Rows().prepare(
        rows=[2, -1, 1, 5, 5, 3, 4, 0],
        ids=[-1, 9, -1, 31, 32, -1, -1, 7],
        places=[-1, 9, -1, 7, 8, -1, -1, 0],
        before=[-1, 9, 9, 30, 31, -1, -1, -1],
    )
    # Row 4 is full: its next position has no block. Row 1 knows of no token before its last.
    assert ids == [102, 0, 101, 31, 32, 103, 104, 7]
    assert previous == [52, 0, 0, 30, 31, 53, 54, 0]
    assert positions == [4, 0, 3, 7, 8, 23, 24, 0]
    assert slots == [14 * 4, -1, 7 * 4 + 3, 32 * 4 + 3, 33 * 4, 24 * 4 + 3, -1, 1 * 4]


@pytest.mark.parametrize("tokens", [1, 127, 300])
def test_prepare_any_number_of_tokens(tokens: int) -> None:
    rows = [index % 9 - 1 for index in range(tokens)]
    places = [index % 24 for index in range(tokens)]
    given = list(range(tokens))
    ids, previous, positions, slots = Rows().prepare(rows, given, places, given)
    for index, (row, place) in enumerate(zip(rows, places, strict=True)):
        expected = (
            (index, index, place, (1 + row * 6 + place // 4) * 4 + place % 4) if row >= 0 else (0, 0, 0, -1)
        )
        assert (ids[index], previous[index], positions[index], slots[index]) == expected


@pytest.mark.parametrize("entries", [1, 5, 256])
def test_finish_feeds_rows_and_fills_the_ring(entries: int) -> None:
    generator = random.Random(entries)
    count, tokens = 300, entries + 3
    last, previous, length = (poisoned(count, dtype=torch.int32) for _ in range(3))
    rows = generator.sample(range(count), entries)
    rows = [-1 if index % 4 == 3 else row for index, row in enumerate(rows)]
    after = [generator.randrange(tokens) if row >= 0 else -1 for row in rows]
    places, ids = [generator.randrange(900) for _ in range(tokens)], list(range(1000, 1000 + tokens))
    ring = poisoned(4, 2, 260, dtype=torch.int32)
    counter = ints([3])
    for step in range(3):
        failed = ints([[0], [0], [7]][step])
        sampled = [step * 10_000 + index for index in range(entries)]
        valid = torch.tensor([index % 3 > 0 for index in range(entries)], device=DEVICE)
        finish_step(
            ints(rows),
            ints(after),
            ints(places),
            ints(ids),
            ints(sampled),
            last,
            previous,
            length,
            ring[:, 0],
            valid if step else valid.int(),
            ring[:, 1],
            counter,
            failed=failed if step else None,
        )
        slot = (3 + step) % 4
        assert ring[slot, 0, :entries].tolist() == sampled
        lost = LOST.value if step == 2 else 0
        assert ring[slot, 1, :entries].tolist() == (valid.int() + lost).tolist()
        assert (ring[:, :, entries:] == -(2**30)).all() and counter.item() == 4 + step
        live = {row: index for index, row in enumerate(rows) if row >= 0}
        for row in range(count):
            state = [last[row].item(), previous[row].item(), length[row].item()]
            if row in live:
                index = live[row]
                assert state == [sampled[index], ids[after[index]], places[after[index]] + 1]
            else:
                assert state == [-(2**30)] * 3
    assert (ring[2] == -(2**30)).all()


def test_a_step_feeds_the_next() -> None:
    """prepare after finish: the sampled token stands behind the one it was sampled from."""
    state = Rows()
    finish_step(
        ints([2, 6]),
        ints([1, 0]),
        ints([8, 4]),
        ints([66, 22]),
        ints([7, 8]),
        state.last,
        state.previous,
        state.length,
        poisoned(2, 2, dtype=torch.int32),
        ints([1, 1]),
        poisoned(2, 2, dtype=torch.int32),
        ints([0]),
    )
    ids, previous, positions, _ = state.prepare([2, 6], [-1, -1], [-1, -1], [-1, -1])
    assert (ids, previous, positions) == ([7, 8], [22, 66], [5, 9])


@pytest.mark.parametrize(("size", "count"), [(1, None), (1, 0), (5, 3), (300, None), (300, 257)])
def test_apply_updates(size: int, count: int | None) -> None:
    tables = torch.full((40, 16), 7, dtype=torch.int32, device=DEVICE)
    view = tables[:, :10]
    places = random.Random(size).sample([(row, index) for row in range(40) for index in range(10)], size)
    updates = [(row, index, 1000 + number) for number, (row, index) in enumerate(places)]
    expected = view.clone()
    for row, index, block in updates[:count]:
        expected[row, index] = block
    packed = torch.tensor(updates, dtype=torch.int32, device=DEVICE)
    apply_updates(packed, None if count is None else ints([count]), view)
    assert torch.equal(view, expected) and (tables[:, 10:] == 7).all()


def test_updates_outside_the_table_are_ignored() -> None:
    tables = torch.zeros(3, 4, dtype=torch.int32, device=DEVICE)
    outside = [(-1, 0, 9), (3, 0, 9), (0, -1, 9), (0, 4, 9), (1, 2, 5)]
    apply_updates(torch.tensor(outside, dtype=torch.int32, device=DEVICE), None, tables)
    assert tables[1, 2] == 5 and tables.sum() == 5


@bits
def test_gather_rows(dtype: torch.dtype) -> None:
    x, middle = strided(randn(9, 384, dtype=dtype), 128), randn(9, 384, dtype=dtype, seed=1)
    weight, index = randn(384, dtype=dtype, seed=2), ints([8, -1, 0, 8, 3])
    out = poisoned(5, 384, dtype=dtype)
    gather_rows(x, index, out)
    assert torch.equal(out, fused.gather_norm(x, index, None, None))
    places, after = ints([40, 41, 42, 43, 44, 45, 46, 47, 48]), poisoned(5, dtype=torch.int32)
    gather_rows(x, index, out, eps=EPS, weight=weight, positions=(places, after))
    assert after.tolist() == [49, 0, 41, 49, 44]
    ulps = 1 if dtype == torch.bfloat16 else 4
    assert_near(out, fused.gather_norm(x, index, weight, EPS), ulps)
    factor = torch.tensor([0.2], device=DEVICE)
    gather_rows(x, index, out, eps=EPS, backout=(middle, factor))
    less = x - factor.to(dtype) * middle
    assert_near(
        out, fused.gather_norm(less, index, None, EPS), 1 if dtype == torch.bfloat16 else 8, floor=0.1
    )
    gather_rows(x, index, out, backout=(middle, factor))
    assert_near(out, fused.gather_norm(less, index, None, None), floor=0.1)


@bits
def test_scale_add(dtype: torch.dtype) -> None:
    x, x0 = strided(randn(5, 1500, dtype=dtype), 36), randn(5, 1500, dtype=dtype, seed=1)
    scalars = torch.tensor([1.0371, 0.1234], device=DEVICE)  # float32, as the loaders keep them
    expected, before = fused.scale_add(x, x0, scalars[0], scalars[1]), x.clone()
    keep = poisoned(5, 1500, dtype=dtype)
    scale_add(x, x0, scalars[:1], scalars[1:], keep=keep)
    assert torch.equal(keep, before)
    if dtype == torch.bfloat16 or DEVICE == "cpu":
        assert torch.equal(x, expected)
    else:
        assert_near(x, expected, floor=1.0)


# -- nanochat: the formulas are the model's own


def model_of(generation: str, dtype: torch.dtype) -> GPT:
    config = GPTConfig.for_generation(  # type: ignore[arg-type]
        generation, n_layer=2, n_head=3, n_kv_head=3, n_embd=96, vocab_size=40, sequence_len=32
    )
    model = GPT(config)
    model.randomize(5)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data = parameter.data.to(dtype)
    return model.to(DEVICE)


@bits
@pytest.mark.parametrize("generation", ["G3", "G4"])
def test_value_gate(dtype: torch.dtype, generation: str) -> None:
    model = model_of(generation, dtype)
    weight = model.transformer["h"][1].attn.ve_gate.weight.detach()
    scale = model.config.value_gate_scale
    x, x0 = randn(5, 96, dtype=dtype, scale=3.0), randn(5, 96, dtype=dtype, seed=1)

    def expected(normed: torch.Tensor) -> torch.Tensor:
        return scale * sigmoid((normed[:, None, : weight.size(1)] * weight.to(dtype)).sum(-1))

    ulps = 1 if dtype == torch.bfloat16 else 16
    out = poisoned(5, 3, dtype=dtype)
    value_gate(x, weight, out, scale=scale, eps=None)
    assert_near(out, expected(x), ulps, floor=1.0)
    value_gate(x, weight, out, scale=scale, eps=EPS)
    # A rounding that falls the other way moves the sum by a unit of its terms.
    slack = 4 if dtype == torch.bfloat16 else 32
    assert_near(out, expected(rms_norm(x, EPS)), slack, floor=1.0)
    scalars = torch.tensor([1.0371, 0.1234], device=DEVICE)
    mixed, again, keep, before = (
        x.clone(),
        poisoned(5, 3, dtype=dtype),
        poisoned(5, 96, dtype=dtype),
        x.clone(),
    )
    scale_add(mixed, x0, scalars[:1], scalars[1:])
    value_gate(mixed, weight, out, scale=scale, eps=EPS)
    value_gate(x, weight, again, scale=scale, eps=EPS, mix=(x0, scalars[:1], scalars[1:]), keep=keep)
    assert torch.equal(keep, before) and torch.equal(x, mixed)
    # On a GPU the compiler may contract the mix into the product behind it.
    assert_near(again, out, 2, floor=1.0)
    with pytest.raises(ValueError, match="give eps"):
        value_gate(x, weight, out, scale=scale, eps=None, mix=(x0, scalars[:1], scalars[1:]))


@bits
def test_embed_smear(dtype: torch.dtype) -> None:
    model = model_of("G5", dtype)
    table, eps = model.transformer["wte"].weight.detach(), model.config.rms_eps
    ids, previous, positions = (
        ints([3, 4, 4, 39, 0, -1]),
        ints([7, 3, 3, 38, 5, 4]),
        ints([0, 1, 2, 9, 30, 1]),
    )
    with torch.no_grad():
        known = ids[:5].long()
        x = rms_norm(model._embed(known), eps)
        expected = model._smear(x, previous[:5].long(), positions[:5].long())
    out, copy = poisoned(6, 96, dtype=dtype), poisoned(6, 96, dtype=dtype)
    weight, factor = model.smear_gate.weight.detach(), model.smear_lambda.detach()
    embed_smear(ids, previous, positions, table, weight, factor, out, eps=eps, copy=copy)
    assert_near(out[:5], expected, 2 if dtype == torch.bfloat16 else 32, floor=1.0)
    assert torch.equal(out, copy) and torch.equal(out[1], out[2])
    assert (out[0] == x[0]).all() or dtype == torch.float32
    single = poisoned(1, 96, dtype=dtype)
    embed_smear(
        ids[3:4].clone(),
        previous[3:4].clone(),
        positions[3:4].clone(),
        table,
        weight,
        factor,
        single,
        eps=eps,
    )
    assert torch.equal(single[0], out[3])
