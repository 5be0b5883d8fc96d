"""Pretraining: the plain phase, then the late one with simple stories and chat, under one schedule."""

from pathlib import Path

from engine.model import GPT
from training.data import open_sources
from training.loop import Stage, add_dropout, finish, run
from training.optimizer import optimizers_for
from training.packing import Stream, check_steps, order
from training.settings import Settings


def share_at(step: int, total: int, settings: Settings) -> float:
    """Warm up, stay, then go down in a line to 5 % over the last part."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    down = settings.warmdown_share * total
    left = total - step
    return 1.0 if left >= down else 0.05 + 0.95 * left / down


def pretrain(model: GPT, settings: Settings, tokens: Path, folder: Path) -> None:
    """Train `model` and leave `pretrain.pt` in `folder`. Raises DataError where there is not one step."""
    documents = order(open_sources(tokens), settings.phases, settings.seed)
    batches = Stream(documents, settings.rows, settings.context)
    check_steps(batches, settings.phases)
    stage = Stage("pretrain", batches, lambda step: share_at(step, batches.steps, settings))
    optimizers = optimizers_for(model, settings)
    dropping = add_dropout(model, settings.dropout) if settings.dropout else []
    measured = run(model, optimizers, stage, settings, folder)
    for handle in dropping:
        handle.remove()
    finish("pretrain", model, measured, folder)
