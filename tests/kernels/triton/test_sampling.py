"""The device sampler against the torch reference, row by row, with all parameters mixed in one batch."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from kernels import philox
from kernels.sampling import SamplingBatch
from kernels.sampling import _threshold as reference_threshold
from kernels.triton.sampling_filters import (
    mass_threshold,
    philox_uniform,
    rank_threshold,
    row_threshold,
    weights_of,
)
from kernels.triton.sampling_groups import soft_capped
from tests.kernels.triton.device import DEVICE, ints, poisoned, randn, strided
from tests.kernels.triton.sampling_cases import (
    Step,
    assert_tokens,
    batch_of,
    capped,
    draws,
    expected,
    new_step,
    randomise,
)

ON_GPU = DEVICE == "cuda"
ENTRIES = 200 if ON_GPU else 8
VOCABS = (503, 1000, 5003, 65536, 151936) if ON_GPU else (503, 1000, 5003)


@pytest.mark.parametrize("vocab", VOCABS)
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_tokens_are_the_references(vocab: int, scale: float) -> None:
    step = new_step(strided(randn(ENTRIES, vocab, dtype=torch.float32, scale=scale), 13), vocab)
    randomise(step, vocab)
    step.run(full=False)
    assert_tokens(step, expected(step, full=False))


def test_soft_cap_and_bfloat16() -> None:
    """bfloat16 logits tie often. The cap's rounding moves a border by more than the draw's own 1e-6."""
    vocab = 1000
    step = new_step(randn(ENTRIES, vocab, dtype=torch.bfloat16, scale=12), vocab, softcap=15.0)
    randomise(step, 3)
    step.run(full=False)
    assert_tokens(step, expected(step, full=False))


def fill_extras(step: Step, seed: int) -> None:
    """Penalties, biases, bans, masks, in about half of the rows each."""
    generator = torch.Generator().manual_seed(seed)
    rows, count, vocab = step.rows, step.rows.temperature.size(0), step.vocab
    rows.ensure_penalties()
    rows.penalised.copy_(torch.randint(0, 2, (count,), generator=generator))
    rows.repetition.copy_(torch.rand(count, generator=generator) + 0.6)
    rows.presence.copy_(torch.randn(count, generator=generator))
    rows.frequency.copy_(torch.randn(count, generator=generator))
    for row in range(count):
        prompt = torch.randint(0, vocab, (40,), generator=generator)
        output = torch.randint(0, max(vocab // 9, 2), (150,), generator=generator)
        rows.reset_counts(row, prompt.int().to(DEVICE), output.int().to(DEVICE))
        if row % 2:
            biases = 1024 if row == 1 and vocab >= 1024 else 7
            rows.bias_ids[row, :biases] = torch.randperm(vocab, generator=generator)[:biases].int().to(DEVICE)
            rows.bias_values[row, :biases] = (torch.randn(biases, generator=generator) * 5).to(DEVICE)
            rows.bias_count[row] = biases
        if row % 3:
            best = step.logits[:, :vocab].float().amax(0).argsort(descending=True)[:60]
            rows.stop_ids[row, :70] = torch.cat((best, best[:10])).int().to(DEVICE)  # some of them twice
            rows.stop_count[row] = 70
            rows.min_position[row] = 17 + 5 * row
        if row % 5 in (1, 3, 4):
            few = torch.randperm(vocab, generator=generator)[: (3, vocab // 2, 60)[row % 3]]
            rows.masks[row] = mask_of(few, vocab).to(DEVICE)
            rows.masked[row] = 1


def mask_of(ids: torch.Tensor, vocab: int) -> torch.Tensor:
    """The ids as bits, int32; the bits behind the vocabulary are set, and may not matter."""
    bits = torch.zeros(-(-vocab // 32) * 32, dtype=torch.bool)
    bits[ids], bits[vocab:] = True, True
    packed = np.packbits(bits.numpy(), bitorder="little").view(np.int32)
    return torch.from_numpy(packed)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("top_k", [0, 5])
def test_a_grammar_wins_over_bans(temperature: float, top_k: int) -> None:
    """The best ids are not allowed, and of two allowed ones one is banned, or both."""
    vocab = 5003
    step = new_step(randn(2, vocab, dtype=torch.float32), vocab)
    rows, (one, both) = step.rows, step.entry_rows
    rows.temperature.fill_(temperature)
    rows.top_k.fill_(top_k)
    rows.masks.copy_(mask_of(torch.tensor([31, 4999]), vocab).to(DEVICE).expand_as(rows.masks))
    rows.masked.fill_(1)
    rows.stop_ids[:, 0], rows.stop_ids[:, 1] = 31, 4999
    rows.stop_count[one], rows.stop_count[both] = 1, 2
    rows.min_position.fill_(1000)
    step.run(full=True)
    assert_tokens(step, expected(step, full=True))
    assert step.tokens[0] == 4999 and step.tokens[1] in (31, 4999) and step.valid == [1, 1]


@pytest.mark.parametrize("vocab", VOCABS)
def test_everything_at_once(vocab: int) -> None:
    step = new_step(randn(ENTRIES, vocab, dtype=torch.float32, scale=3, seed=5), vocab)
    randomise(step, 5)
    fill_extras(step, 5)
    wanted = [-1, 0, 1, 20]
    step.rows.logprobs.copy_(ints([wanted[row % 4] for row in range(step.rows.logprobs.size(0))]))
    results = expected(step, full=True)
    step.run(full=True)
    assert_tokens(step, results)
    raw = capped(step).double().log_softmax(-1)
    for entry, row in enumerate(step.entry_rows):
        count = wanted[row % 4]
        if count >= 0:
            own = step.out.logprobs[entry].cpu().double()
            torch.testing.assert_close(own, raw[entry, step.tokens[entry]], rtol=0, atol=1e-5)
            best, ids = raw[entry].topk(count)
            assert step.out.top_ids[entry, :count].tolist() == ids.tolist()
            top = step.out.top_logprobs[entry, :count].cpu().double()
            torch.testing.assert_close(top, best, rtol=0, atol=1e-5)


def test_logprobs_of_ties_come_by_id() -> None:
    logits = torch.zeros(1, 1000)
    logits[0, [700, 5, 6, 64]] = 2.0
    step = new_step(logits, 1000)
    step.rows.logprobs.fill_(7)
    step.run(full=True)
    assert step.out.top_ids[0, :7].tolist() == [5, 6, 64, 700, 0, 1, 2]


@pytest.mark.parametrize("full", [False, True])
def test_greedy_takes_the_lowest_of_tied_ids(full: bool) -> None:
    logits = torch.zeros(3, 5003)
    logits[0, [4100, 127, 63 + 64, 2049]] = 4.0
    logits[1] = -0.0
    logits[1, 3000] = 0.0  # equal to minus zero
    logits[2, [5002, 5001]] = 1e-30
    step = new_step(logits, 5003)
    step.run(full=full)
    assert step.tokens == [127, 0, 5001]


def test_ties_at_the_border_stay_or_go_together() -> None:
    """Thousands of equal logits: no list holds them, and every filter must keep all of them."""
    vocab, entries = 5003, 4
    logits = torch.zeros(entries, vocab)
    logits[:, 4000] = 2.0
    step = new_step(logits, vocab)
    step.rows.temperature.fill_(1.0)
    for entry, row in enumerate(step.entry_rows):
        step.rows.seed[row] = entry
    step.rows.top_k[step.entry_rows[0]] = 2
    step.rows.top_p[step.entry_rows[1]] = 0.3
    step.rows.min_p[step.entry_rows[2]] = 0.1
    step.rows.min_p[step.entry_rows[3]] = 0.2  # exp(-2) = 0.135 is below
    step.run(full=False)
    assert_tokens(step, expected(step, full=False))
    assert step.tokens[3] == 4000


@pytest.mark.parametrize("full", [False, True])
def test_rows_that_are_not_finite_are_marked(full: bool) -> None:
    vocab = 1000
    logits = randn(6, vocab, dtype=torch.float32).cpu()
    logits[0, 17], logits[1, 999], logits[2, :] = float("nan"), float("inf"), float("-inf")
    logits[3, :] = float("nan")
    logits[4, :900] = float("-inf")
    for softcap in (None, 15.0):
        step = new_step(strided(logits.to(DEVICE), 5), vocab, softcap)
        step.rows.temperature[step.entry_rows[1]] = 1.0
        step.rows.temperature[step.entry_rows[3]] = 1.0
        step.rows.top_k[step.entry_rows[3]] = 5
        step.rows.temperature[step.entry_rows[4]] = 1.0
        step.rows.logprobs.fill_(2)
        step.rows.stop_count.fill_(1)
        step.rows.min_position.fill_(10**6)
        step.run(full=full)
        assert step.valid == [0, 0, 0, 0, 1, 1]
        assert all(0 <= token < vocab for token in step.tokens) and step.tokens[4] >= 900


def test_padding_is_left_alone() -> None:
    vocab = 503
    step = new_step(poisoned(4, vocab, dtype=torch.float32), vocab)
    step.logits[1] = randn(vocab, dtype=torch.float32)
    step.entry_rows = [-1, 2, -1, -1]
    step.rows.ensure_penalties()
    step.rows.penalised.fill_(1)
    step.rows.logprobs.fill_(3)
    step.out.top_ids.fill_(-7)
    step.run(full=True)
    assert step.valid == [0, 1, 0, 0] and step.tokens[0] == 0
    assert step.tokens[1] == int(step.logits[1].argmax())
    assert (step.out.top_ids[[0, 2, 3]] == -7).all()
    assert step.rows.output_counts is not None and int(step.rows.output_counts.sum()) == 1


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_with_every_id_banned_keeps_its_logits(temperature: float) -> None:
    vocab = 70
    step = new_step(randn(2, vocab, dtype=torch.float32), vocab)
    step.rows.temperature.fill_(temperature)
    step.rows.stop_ids[:, :vocab] = torch.arange(vocab, device=DEVICE)
    step.rows.stop_count[step.entry_rows[0]] = vocab
    step.rows.stop_count[step.entry_rows[1]] = vocab - 1
    step.rows.min_position.fill_(1000)
    step.run(full=True)
    assert_tokens(step, expected(step, full=True))
    assert step.tokens[1] == vocab - 1


def test_penalty_counts_follow_what_is_sampled() -> None:
    """Six steps of a row under a strong frequency penalty, against the reference fed with the same counts."""
    vocab = 503
    step = new_step(randn(2, vocab, dtype=torch.float32), vocab)
    rows = step.rows
    first, second = step.entry_rows
    rows.penalised[first] = 1
    rows.frequency[first], rows.presence[first], rows.repetition[first] = 0.3, 0.2, 1.3
    rows.reset_counts(first, ints([5, 5, 9]), ints([7, 7, 7, 1]))
    assert rows.prompt_seen is not None and rows.output_counts is not None
    assert rows.prompt_seen[first].nonzero().flatten().tolist() == [5, 9]
    assert rows.output_counts[first, [1, 7]].tolist() == [1, 3]
    counts = rows.output_counts[first].cpu().clone()
    for turn in range(6):
        step.positions = [turn, turn]
        results = expected(step, full=True)
        step.run(full=True)
        assert_tokens(step, results)
        counts[step.tokens[0]] += 1
        assert torch.equal(rows.output_counts[first].cpu(), counts)
    assert int(rows.output_counts[second].sum()) == 0
    rows.output_counts[first] = 2**15 - 1
    step.run(full=True)
    assert int(rows.output_counts[first].min()) == 2**15 - 1
    rows.reset_counts(first, ints([]), ints([]))
    assert int(rows.output_counts[first].sum()) == 0 and int(rows.prompt_seen[first].sum()) == 0


def test_rows_do_not_see_each_other() -> None:
    """Alone, in a batch and in another order: the same tokens and the same bits of logprobs."""
    vocab, entries = 5003, 8
    step = new_step(randn(entries, vocab, dtype=torch.float32, scale=2), vocab)
    randomise(step, 11)
    step.rows.temperature.clamp_(min=0.5)
    step.rows.logprobs.fill_(2)
    step.run(full=True)
    tokens, logprobs, top = step.tokens, step.out.logprobs.clone(), step.out.top_logprobs.clone()
    backwards = list(range(entries))[::-1]
    for group in ([0], [3], [entries - 1], backwards):
        step.run(full=True, entries=group)
        assert step.out.tokens[: len(group)].tolist() == [tokens[entry] for entry in group]
        assert torch.equal(step.out.logprobs[: len(group)], logprobs[group])
        assert torch.equal(step.out.top_logprobs[: len(group), :2], top[group][:, :2])
    step.run(full=False)
    assert step.tokens == tokens


# -- the parts by themselves


@triton.jit
def _uniform_probe(seeds, choices, positions, out, COUNT: tl.constexpr):
    index = tl.arange(0, COUNT)
    number = philox_uniform(tl.load(seeds + index), tl.load(choices + index), tl.load(positions + index))
    tl.store(out + index, number)


def device_uniform(seeds: torch.Tensor, choices: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    out = torch.zeros(seeds.numel(), dtype=torch.float64, device=DEVICE)
    inputs = (seeds.to(DEVICE), choices.int().to(DEVICE), positions.int().to(DEVICE))
    _uniform_probe[(1,)](*inputs, out, COUNT=seeds.numel())
    return out.cpu()


def test_random_numbers_are_bit_equal() -> None:
    generator = np.random.default_rng(1)
    seeds = generator.integers(-(2**63), 2**63 - 1, 1024)
    seeds[:4] = [0, -1, 2**63 - 1, -(2**63)]
    choices, positions = generator.integers(0, 128, 1024), generator.integers(0, 2**31 - 1, 1024)
    expected_numbers = philox.uniform(seeds, choices, positions)
    found = device_uniform(*(torch.from_numpy(part) for part in (seeds, choices, positions)))
    assert np.array_equal(found.numpy(), expected_numbers)


def test_random_numbers_are_uniform() -> None:
    count, bins = 16384, 128
    numbers = device_uniform(
        torch.full((count,), 42), torch.zeros(count, dtype=torch.int64), torch.arange(count)
    )
    observed = torch.bincount((numbers * bins).long(), minlength=bins).double()
    chi_square = float(((observed - count / bins) ** 2 / (count / bins)).sum())
    assert chi_square < bins - 1 + 5 * (2 * (bins - 1)) ** 0.5


def test_draws_follow_the_distribution() -> None:
    """On a GPU 20,000 draws through the whole sampler; the interpreter is too slow for more than a few."""
    count, vocab, kept = (20_000, 503, 100) if ON_GPU else (60, 503, 4)
    row = torch.full((vocab,), float("-inf"))
    places = torch.randperm(vocab, generator=torch.Generator().manual_seed(0))[:kept]
    row[places] = randn(kept, dtype=torch.float32, scale=0.3).cpu()
    step = new_step(row.to(DEVICE).expand(count, vocab), vocab)
    step.entry_rows = list(range(count))
    step.positions = list(range(count))
    step.rows.temperature.fill_(1.0)
    step.run(full=False)
    probabilities = row.double().softmax(-1)
    observed = torch.bincount(torch.tensor(step.tokens), minlength=vocab).double()
    assert not observed[probabilities == 0].any()
    awaited = probabilities[places] * count
    chi_square = float(((observed[places] - awaited) ** 2 / awaited).sum())
    assert chi_square < kept - 1 + 5 * (2 * (kept - 1)) ** 0.5
    inverse = torch.searchsorted(probabilities.cumsum(0), draws(step), right=True)
    assert int((inverse != torch.tensor(step.tokens)).sum()) <= 1 + count // 1000


@triton.jit
def _filter_probe(values, temperature, top_k, top_p, out, VOCAB: tl.constexpr, BLOCK: tl.constexpr):
    """out: thresholds of top-k and of top-p, from a list and from a walk over the row."""
    place = tl.arange(0, BLOCK)
    x = tl.load(values + place, mask=place < VOCAB, other=float("-inf"))
    best = tl.max(x, axis=0)
    heat, count, share = tl.load(temperature), tl.load(top_k), tl.load(top_p).to(tl.float64)
    weights = weights_of(x, best, heat)
    total = tl.sum(weights, axis=0)
    tl.store(out, rank_threshold(x, best, count, 0))
    tl.store(out + 1, mass_threshold(x, weights, best, share * total))
    low = tl.minimum(best, -3.4028234e38)
    inverse = 1.0 / heat
    ranked = row_threshold(
        values, values, 0, low, best, count.to(tl.float64), inverse, None, VOCAB, False, False
    )
    tl.store(out + 2, ranked)
    tl.store(
        out + 3,
        row_threshold(values, values, 0, low, best, share * total, inverse, None, VOCAB, True, False),
    )


@pytest.mark.parametrize("shape", ["normal", "tied", "tiny", "wide"])
def test_filters_keep_exactly_what_the_reference_keeps(shape: str) -> None:
    vocab, temperature, top_k, top_p = 1000, 1.3, 37, 0.8
    values = randn(vocab, dtype=torch.float32, scale=2).cpu()
    if shape == "tied":
        values = values.round()
    elif shape == "tiny":  # differ only far behind the point
        values = 1.0 + (values * 64).round() * 2.0**-23
    elif shape == "wide":
        values = values * 1e-6
        values[::3] *= 1e6
    out = torch.zeros(4, device=DEVICE)
    _filter_probe[(1,)](
        values.to(DEVICE),
        torch.tensor([temperature], device=DEVICE),
        ints([top_k]),
        torch.tensor([top_p], device=DEVICE),
        out,
        VOCAB=vocab,
        BLOCK=1024,
    )
    exact_temperature = torch.tensor(temperature).double()
    scaled = (values.double() / exact_temperature)[None]
    scaled = scaled - scaled.max()
    temperatures = torch.ones(1)
    by_rank = reference_threshold(scaled, SamplingBatch(temperatures, top_k=torch.tensor([top_k])))
    by_mass = reference_threshold(scaled, SamplingBatch(temperatures, top_p=torch.tensor([top_p])))
    for index, threshold in enumerate((by_rank, by_mass, by_rank, by_mass)):
        assert threshold is not None
        kept = values >= out[index].cpu()
        assert torch.equal(kept, scaled[0] >= threshold), (shape, index)


@triton.jit
def _cap_probe(values, out, cap, COUNT: tl.constexpr):
    index = tl.arange(0, COUNT)
    tl.store(out + index, soft_capped(tl.load(values + index), cap))


def test_the_soft_cap_is_right() -> None:
    values = torch.cat((torch.linspace(-60, 60, 4000), torch.logspace(-30, 2, 96))).sort().values
    out = torch.zeros(4096, device=DEVICE)
    _cap_probe[(1,)](values.to(DEVICE), out, 15.0, COUNT=4096)
    exact = 15.0 * torch.tanh(values.double() / 15.0)
    assert ((out.cpu().double() - exact).abs() <= 3e-6).all()
    assert (out.diff() >= -1e-6).all()
    small = values.abs() < 1
    assert ((out.cpu().double() - exact).abs() <= 3e-7 * exact.abs())[small].all()


def test_batch_of_gives_neutral_values() -> None:
    """The tests' own translation: a fresh row is greedy and asks for nothing."""
    step = new_step(randn(1, 64, dtype=torch.float32), 64)
    batch = batch_of(step, full=True)
    assert float(batch.temperature) == 0.0 and batch.repetition is None and batch.bias is None
