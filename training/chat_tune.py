"""Chat tuning: whole conversations, loss on the assistant's tokens alone, and documents of prose, of which
every token is learned; the rate goes down to nothing.
"""

from pathlib import Path

from engine.model import GPT
from training.data import open_sources
from training.loop import Stage, finish, run
from training.optimizer import optimizers_for
from training.packing import Aligned, check_steps, order
from training.settings import Settings
from training.tokenizer import Encoder


def chat_tune(model: GPT, settings: Settings, encoder: Encoder, tokens: Path, folder: Path) -> None:
    """Train `model` and leave `tune.pt` in `folder`. Raises DataError where there is not one step."""
    documents = order(open_sources(tokens), (settings.tune,), settings.seed + 1)
    batches = Aligned(documents, settings.rows, settings.context, encoder.special("<|bos|>"))
    check_steps(batches, (settings.tune,))
    stage = Stage("tune", batches, lambda step: 1.0 - step / max(1, batches.steps))
    optimizers = optimizers_for(model, settings, settings.tune_lr_scale)
    finish("tune", model, run(model, optimizers, stage, settings, folder), folder)
