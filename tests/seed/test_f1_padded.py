"""F1, S2 and S4: the dense forward with and without padding, and its gradients. More of S4: see
test_s_training."""

import math
from dataclasses import replace

import pytest
import torch

from engine.config import Generation
from engine.model import GPT
from tests.engine.checkpoints import GENERATIONS, make_model

LENGTHS = [1, 2, 3, 5, 8, 13, 21, 40]
VOCAB = 512


def padded_model(generation: Generation, **dims: object) -> GPT:
    return make_model(generation, 5, use_padded_attention=True, **dims)


def padded(rows: list[torch.Tensor], side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows in one batch, filled up with a token like any other, and its mask."""
    time = max(row.numel() for row in rows)
    ids = torch.full((len(rows), time), VOCAB - 1)
    mask = torch.zeros(len(rows), time, dtype=torch.bool)
    for index, row in enumerate(rows):
        place = slice(0, row.numel()) if side == "right" else slice(time - row.numel(), time)
        ids[index, place] = row
        mask[index, place] = True
    return ids, mask


def random_rows(lengths: list[int]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, VOCAB, (length,), generator=generator) for length in lengths]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("generation", GENERATIONS)
@torch.no_grad()
def test_f1_a_padded_row_gives_what_it_gives_alone(generation: Generation, side: str) -> None:
    # Heads in groups, and windows shorter than the longest row where the generation has windows at all.
    model = padded_model(generation, n_head=4, n_kv_head=2, short_window=7)
    rows = random_rows(LENGTHS)
    ids, mask = padded(rows, side)
    logits = model(ids, attention_mask=mask)
    assert logits.shape == (*ids.shape, VOCAB)
    for index, row in enumerate(rows):
        torch.testing.assert_close(logits[index, mask[index]], model(row[None])[0], rtol=0, atol=1e-5)
    assert not logits[~mask].any()


@torch.no_grad()
def test_f1_what_fills_the_padding_makes_no_difference() -> None:
    model = padded_model("G5")
    ids, mask = padded(random_rows([4, 9]), "left")
    other = torch.where(mask, ids, 0)
    assert torch.equal(model(ids, attention_mask=mask), model(other, attention_mask=mask.long()))


@torch.no_grad()
def test_f1_a_mask_over_everything_changes_nothing() -> None:
    model = padded_model("G5")
    ids = torch.stack(random_rows([12, 12]))
    everything = torch.ones_like(ids, dtype=torch.bool)
    torch.testing.assert_close(model(ids, attention_mask=everything), model(ids), rtol=0, atol=1e-5)


@torch.no_grad()
def test_f1_a_row_may_be_nothing_but_padding() -> None:
    model = padded_model("G5")
    (row,) = random_rows([6])
    ids, mask = padded([row, row[:0]], "right")
    logits = model(ids, attention_mask=mask)
    torch.testing.assert_close(logits[0], model(row[None])[0], rtol=0, atol=1e-5)
    assert not logits[1].any()


@pytest.mark.parametrize("side", ["right", "left"])
def test_f1_the_loss_ignores_padding(side: str) -> None:
    model = padded_model("G5").requires_grad_(True)
    rows = random_rows([7, 30, 12])
    ids, mask = padded([row[:-1] for row in rows], side)
    targets, _ = padded([row[1:] for row in rows], side)  # padding has a target here, which must not count
    targets[1, 3] = -1
    loss = model(ids, targets, attention_mask=mask)
    logits = torch.cat([model(row[None, :-1])[0] for row in rows])
    expected = torch.nn.functional.cross_entropy(logits, targets[mask], ignore_index=-1)
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-5)
    loss.backward()
    check_gradients(model)


def test_f1_a_mask_with_the_flag_off_is_an_error() -> None:
    ids, mask = padded(random_rows([3, 5]), "right")
    with pytest.raises(ValueError, match="use_padded_attention"):
        make_model("G1")(ids, attention_mask=mask)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(2, 4, dtype=torch.bool), r"\(2, 4\)"),
        (torch.ones(2, 5, 5, dtype=torch.bool), r"\(2, 5, 5\)"),
        (torch.zeros(2, 5, dtype=torch.bool), "keeps no token"),
        (torch.zeros(2, 5), "float32"),
    ],
    ids=["short", "square", "empty", "additive"],
)
def test_f1_a_mask_that_does_not_fit_is_an_error(mask: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        padded_model("G1")(torch.zeros(2, 5, dtype=torch.int64), attention_mask=mask)


@torch.no_grad()
def test_f1_the_flag_alone_changes_nothing() -> None:
    model = make_model("G5", 5)
    (row,) = random_rows([20])
    before = model(row[None])
    model.config = replace(model.config, use_padded_attention=True)
    assert torch.equal(model(row[None]), before)


def fresh(generation: Generation) -> GPT:
    """A model as training starts it."""
    model = padded_model(generation).requires_grad_(True).train()
    torch.manual_seed(0)
    model.init_weights()
    return model


@pytest.mark.parametrize("generation", GENERATIONS)
def test_s2_the_loss_starts_near_ln_of_the_vocabulary(generation: Generation) -> None:
    model = fresh(generation)
    rows = torch.stack(random_rows([33, 33]))
    ids, targets = rows[:, :-1], rows[:, 1:]
    loss = model(ids, targets)
    assert loss.shape == () and abs(loss.item() - math.log(VOCAB)) < 0.1
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[0, 20:] = False
    logits = model(ids, attention_mask=mask)
    assert logits.shape == (2, 32, VOCAB) and logits.isfinite().all()
    masked = model(ids, targets, attention_mask=mask)
    assert masked.shape == () and abs(masked.item() - math.log(VOCAB)) < 0.1


@pytest.mark.parametrize("generation", GENERATIONS)
def test_s4_every_parameter_gets_a_finite_gradient(generation: Generation) -> None:
    model = padded_model(generation).requires_grad_(True).train()
    rows = torch.stack(random_rows([33, 33]))
    model(rows[:, :-1], rows[:, 1:]).backward()
    check_gradients(model)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_s4_also_at_the_start_of_training(generation: Generation) -> None:
    model = fresh(generation)
    rows = torch.stack(random_rows([33, 33]))
    model(rows[:, :-1], rows[:, 1:]).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def check_gradients(model: GPT) -> None:
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all() and parameter.grad.any(), name
