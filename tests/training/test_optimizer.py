"""Muon and AdamW: updates are orthogonal, the loss goes down, schedules and state survive."""

import pytest
import torch

from training.loop import build
from training.optimizer import Muon, optimizers_for, orthogonalised
from training.pretrain import share_at
from training.settings import tiny


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 32, 8), (2, 8, 32)])
def test_orthogonalised(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    result = orthogonalised(torch.randn(shape))
    singular = torch.linalg.svdvals(result)
    assert result.shape == shape
    assert singular.min() > 0.5 and singular.max() < 1.3


def test_muon_takes_matrices_only() -> None:
    with pytest.raises(ValueError, match="matrices"):
        Muon([torch.nn.Parameter(torch.zeros(3))], lr=0.1)


def test_a_few_steps_reduce_the_loss_and_move_every_parameter() -> None:
    settings = tiny()
    model = build(settings, "cpu")
    before = {name: value.clone() for name, value in model.named_parameters()}
    optimizers = optimizers_for(model, settings)
    ids = torch.randint(settings.vocab_size, (2, 32), generator=torch.Generator().manual_seed(1))
    losses = []
    for step in range(12):
        optimizers.scale(1.0, step)
        loss = model(ids[:, :-1], ids[:, 1:])
        loss.backward()
        optimizers.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5
    assert all(not torch.equal(value, before[name]) for name, value in model.named_parameters())


def test_every_parameter_is_in_exactly_one_group() -> None:
    model = build(tiny(), "cpu")
    optimizers = optimizers_for(model, tiny())
    groups = [*optimizers.muon.param_groups, *optimizers.adam.param_groups]
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())


def test_scale_sets_rates_relative_to_their_base() -> None:
    optimizers = optimizers_for(build(tiny(), "cpu"), tiny(), scale=0.5)
    optimizers.scale(0.25, 1000)
    assert optimizers.muon.param_groups[0]["lr"] == pytest.approx(0.02 * 0.5 * 0.25)
    assert optimizers.muon.param_groups[0]["momentum"] == pytest.approx(0.95)


def test_schedule() -> None:
    settings = tiny()
    shares = [share_at(step, 100, settings) for step in range(100)]
    assert shares[0] == 0.5 and shares[2] == 1.0 and shares[50] == 1.0
    assert shares[75] == pytest.approx(0.525) and 0.05 < shares[99] < 0.08
