"""Sampling against its definition: masks, penalties, distribution, logprobs, and independence of rows."""

import numpy as np
import pytest
import torch

from kernels.philox import uniform
from kernels.sampling import SamplingBatch, sample

VOCAB = 320


def logits(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * 3


def draws(rows: int, seed: int = 1) -> torch.Tensor:
    zeros = np.zeros(rows, dtype=np.int64)
    return torch.from_numpy(uniform(np.full(rows, seed), zeros, np.arange(rows)))


def column(value: float, rows: int) -> torch.Tensor:
    return torch.full((rows,), value)


def allowed(row: torch.Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> torch.Tensor:
    """The probabilities that the definition of the filters gives, float64."""
    scaled = row.double() / temperature
    order = scaled.argsort(descending=True)
    keep = torch.ones(VOCAB, dtype=torch.bool)
    if top_k:
        keep[order[top_k:]] = False
    probabilities = scaled.masked_fill(~keep, float("-inf")).softmax(-1)
    keep &= scaled.softmax(-1) >= min_p * scaled.softmax(-1).max()
    probabilities = scaled.masked_fill(~keep, float("-inf")).softmax(-1)
    before = probabilities[order].cumsum(0) - probabilities[order]
    keep[order[before >= top_p]] = False
    return scaled.masked_fill(~keep, float("-inf")).softmax(-1)


@pytest.mark.parametrize(
    "temperature, top_k, top_p, min_p",
    [
        (1.0, 0, 1.0, 0.0),
        (0.7, 40, 1.0, 0.0),
        (1.3, 0, 0.8, 0.0),
        (1.0, 0, 1.0, 0.05),
        (0.9, 20, 0.9, 0.02),
        (2.0, 1, 1.0, 0.0),
    ],
)
def test_distribution(temperature: float, top_k: int, top_p: float, min_p: float) -> None:
    rows = 20_000
    row = logits(1)[0]
    batch = SamplingBatch(
        temperature=column(temperature, rows),
        top_k=torch.full((rows,), top_k),
        top_p=column(top_p, rows),
        min_p=column(min_p, rows),
        uniform=draws(rows),
    )
    tokens = sample(row.expand(rows, -1).clone(), batch).tokens
    expected = allowed(row, temperature, top_k, top_p, min_p)
    counts = torch.bincount(tokens, minlength=VOCAB).double()
    assert not counts[expected == 0].any()
    often = expected * rows >= 5
    chi_square = ((counts - expected * rows) ** 2 / (expected * rows))[often].sum().item()
    freedom = max(int(often.sum()) - 1, 1)
    assert chi_square < freedom + 5 * (2 * freedom) ** 0.5 + 5


def test_greedy_takes_the_lowest_of_tied_ids() -> None:
    tied = torch.zeros(2, VOCAB)
    tied[0, [7, 11, 300]] = 4.0
    tied[1, [319, 2]] = 1.0
    assert sample(tied, SamplingBatch(temperature=torch.zeros(2))).tokens.tolist() == [7, 2]


def test_rows_do_not_see_each_other() -> None:
    """Every row alone gives what it gives in a batch that mixes all parameters."""
    rows, values, u = 6, logits(6, seed=3), draws(6)
    temperature = torch.tensor([0.0, 1.0, 0.5, 1.5, 0.8, 1.0])
    top_k = torch.tensor([0, 0, 7, 50, 3, 0])
    top_p = torch.tensor([1.0, 0.5, 1.0, 0.9, 0.99, 1.0])
    min_p = torch.tensor([0.0, 0.0, 0.1, 0.0, 0.0, 0.3])
    wanting = torch.arange(rows)

    def run(index: torch.Tensor) -> list[object]:
        batch = SamplingBatch(temperature[index], top_k[index], top_p[index], min_p[index], u[index])
        batch.logprob_rows, batch.logprob_count = wanting[: len(index)], 4
        result = sample(values[index].clone(), batch)
        assert result.logprobs is not None and result.top_logprobs is not None and result.top_ids is not None
        return [
            result.tokens.tolist(),
            result.logprobs.tolist(),
            result.top_logprobs.tolist(),
            result.top_ids.tolist(),
        ]

    together = run(torch.arange(rows))
    for row in range(rows):
        assert run(torch.tensor([row])) == [part[row : row + 1] for part in together]  # type: ignore[index]


def test_penalties_bias_and_bans() -> None:
    values = torch.zeros(3, VOCAB)
    values[:, 5], values[:, 6], values[:, 9] = 2.0, 1.9, -1.0
    seen = torch.zeros(3, VOCAB, dtype=torch.bool)
    counts = torch.zeros(3, VOCAB, dtype=torch.int32)
    seen[0, 5] = True  # repetition divides a positive logit: 2 / 2 < 1.9
    counts[1, 5] = 1  # presence 0.2 takes 2 below 1.9
    batch = SamplingBatch(
        temperature=torch.zeros(3),
        repetition=torch.tensor([2.0, 1.0, 1.0]),
        presence=torch.tensor([0.0, 0.2, 0.0]),
        frequency=torch.tensor([0.0, 0.0, 0.5]),
        prompt_seen=seen,
        output_counts=counts,
        bias=(torch.tensor([2]), torch.tensor([9])),
        bias_values=torch.tensor([4.0]),
        banned=(torch.tensor([2]), torch.tensor([5])),
    )
    assert sample(values, batch).tokens.tolist() == [6, 6, 9]


def test_bias_comes_before_penalties() -> None:
    """(2 + 0.5) / 2 = 1.25 is below 1.3; 2 / 2 + 0.5 = 1.5 would not be."""
    values = torch.zeros(1, VOCAB)
    values[0, 5], values[0, 6] = 2.0, 1.3
    seen = torch.zeros(1, VOCAB, dtype=torch.bool)
    seen[0, 5] = True
    batch = SamplingBatch(
        temperature=torch.zeros(1),
        repetition=torch.tensor([2.0]),
        presence=torch.zeros(1),
        frequency=torch.zeros(1),
        prompt_seen=seen,
        output_counts=torch.zeros(1, VOCAB, dtype=torch.int32),
        bias=(torch.tensor([0]), torch.tensor([5])),
        bias_values=torch.tensor([0.5]),
    )
    assert sample(values, batch).tokens.tolist() == [6]


def test_a_row_with_every_id_banned_still_samples() -> None:
    ids = torch.arange(VOCAB)
    batch = SamplingBatch(
        temperature=torch.zeros(1),
        banned=(torch.zeros(VOCAB, dtype=torch.int64), ids),
    )
    result = sample(logits(1), batch)
    assert result.valid.tolist() == [True] and 0 <= result.tokens.item() < VOCAB


def test_logprobs_are_of_the_raw_logits() -> None:
    values = logits(2, seed=9)
    batch = SamplingBatch(temperature=torch.full((2,), 0.1), uniform=draws(2))
    batch.logprob_rows, batch.logprob_count = torch.tensor([1]), 3
    result = sample(values.clone(), batch)
    expected = values[1].double().log_softmax(-1)
    assert result.logprobs is not None and result.top_ids is not None and result.top_logprobs is not None
    torch.testing.assert_close(result.logprobs[0].double(), expected[result.tokens[1]], rtol=0, atol=1e-5)
    assert result.top_ids[0].tolist() == expected.topk(3).indices.tolist()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_is_marked(bad: float) -> None:
    values = logits(3)
    values[1, 17] = bad
    assert sample(values, SamplingBatch(temperature=torch.zeros(3))).valid.tolist() == [True, False, True]
