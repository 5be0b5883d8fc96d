"""The training loop that pretraining and chat tuning share: steps, progress, checkpoints, resumption."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.hooks import RemovableHandle

from engine.config import GPTConfig
from engine.model import GPT
from training.checkpoint import Checkpoints
from training.flops import flops_per_token, peak_flops
from training.optimizer import Optimizers
from training.packing import Batch
from training.progress import Progress
from training.settings import Settings

REPORT_EVERY = 50  # steps; the losses of that many are one point of the curve
SETTLED = 10  # steps until the speed is measured: the first ones compile


class Batches(Protocol):
    """Batches that can begin at any step."""

    steps: int

    def batches(self, first: int = 0) -> Iterator[Batch]: ...


@dataclass(slots=True)
class Stage:
    """One stage of training: its name, its batches, and the share of the learning rate at each step."""

    name: str
    batches: Batches
    share: Callable[[int], float]


def build(settings: Settings, device: str) -> GPT:
    """The model with fresh weights, fp32 masters; on CUDA the residual stream is bf16."""
    torch.manual_seed(settings.seed)
    model = GPT(
        GPTConfig.for_generation(
            settings.generation, sequence_len=settings.context, vocab_size=settings.vocab_size,
            n_layer=settings.n_layer, n_head=settings.n_head, n_kv_head=settings.n_kv_head,
            n_embd=settings.n_embd,
        )
    )  # fmt: skip
    model.init_weights()
    model.to(device)
    if device.startswith("cuda"):
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                module.register_forward_hook(lambda module, args, output: output.bfloat16())
    model.rope(next(model.parameters()).device)  # made now, so that the compiled step finds it ready
    return model


def add_dropout(model: GPT, share: float) -> list[RemovableHandle]:
    """Drop `share` of what each sublayer adds to the residual stream; `remove()` the handles to stop."""

    def drop(module: nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
        return F.dropout(output, share)

    outputs = [module for name, module in model.named_modules() if name.endswith("c_proj")]
    return [module.register_forward_hook(drop) for module in outputs]


@dataclass(slots=True)
class _Done:
    """What a stage has behind it. losses: [step, mean since the one before]. running: not yet in there, a
    scalar of each step. seconds: of earlier starts of the program.
    """

    step: int = 0
    losses: list[list[float]] = field(default_factory=list)
    running: list[torch.Tensor] = field(default_factory=list)
    seconds: float = 0.0


def run(
    model: GPT, optimizers: Optimizers, stage: Stage, settings: Settings, folder: Path
) -> dict[str, object]:
    """Train from the last intact checkpoint of this stage, or from the start; returns what was measured.

    Raises CheckpointError where one cannot be written; the one before is intact then.
    """
    device = next(model.parameters()).device
    checkpoints = Checkpoints(folder, stage.name)
    done = _resume(model, optimizers, checkpoints, device)
    first = done.step
    forward = torch.compile(model, dynamic=False) if device.type == "cuda" else model
    total, tokens = stage.batches.steps, settings.rows * settings.context
    progress = Progress(stage.name, total, first)
    if first:
        progress.say(f"{stage.name}: resumed at step {first}")
    began = last_saved = time.monotonic()
    speed = _Speed(model, settings, device, first)
    for step, (ids, targets) in enumerate(_ahead(stage.batches, first, device), first):
        optimizers.scale(stage.share(step), step)
        torch.manual_seed(settings.seed * 1_000_003 + step)  # dropout's, the same in a run that was resumed
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = forward(ids, targets)
        loss.backward()
        optimizers.step()
        done.running.append(loss.detach())
        progress.step()
        speed.passed(step)
        if len(done.running) == REPORT_EVERY or step == total - 1:
            done.losses.append([step, round(torch.stack(done.running).mean().item(), 4)])
            done.running.clear()
            rate = speed.tokens_per_second(step)
            left = (total - 1 - step) * tokens / rate if rate else None
            progress.report(done.losses[-1][1], rate, speed.mfu(rate), left)
        if time.monotonic() - last_saved > settings.checkpoint_seconds and step < total - 1:
            last_saved = time.monotonic()
            state = {"step": step + 1, "losses": done.losses, "running": [one.cpu() for one in done.running]}
            state["seconds"] = done.seconds + last_saved - began
            state |= {"model": model.state_dict(), "optimizers": optimizers.state_dict()}
            progress.say(f"{stage.name}: {checkpoints.save(step + 1, state).name}")
    ended = _now(device)
    progress.close()
    rate = speed.tokens_per_second(total - 1)
    return {
        "steps": total,
        "tokens": total * tokens,
        "seconds": round(done.seconds + ended - began, 1),
        "losses": done.losses,
        "tokens_per_second": round(rate),
        "mfu": round(speed.mfu(rate) or 0.0, 4),
    }


def _resume(model: GPT, optimizers: Optimizers, checkpoints: Checkpoints, device: torch.device) -> _Done:
    """Brings model and optimizers to the last intact checkpoint, if there is one."""
    saved = checkpoints.newest(device)
    if saved is None:
        return _Done()
    model.load_state_dict(cast(dict[str, torch.Tensor], saved["model"]))
    optimizers.load_state_dict(cast(dict[str, dict[str, object]], saved["optimizers"]))
    running = [one.to(device) for one in cast(list[torch.Tensor], saved["running"])]
    losses = cast(list[list[float]], saved["losses"])
    return _Done(cast(int, saved["step"]), losses, running, cast(float, saved["seconds"]))


class _Speed:
    """Tokens a second since the first steps, which compile, and the share of the device's peak."""

    def __init__(self, model: GPT, settings: Settings, device: torch.device, first: int) -> None:
        self.device, self.settled = device, first + SETTLED
        self.tokens = settings.rows * settings.context
        self.flops = flops_per_token(model.config, settings.context)
        self.began: float | None = None

    def passed(self, step: int) -> None:
        if step == self.settled:
            self.began = _now(self.device)

    def tokens_per_second(self, step: int) -> float:
        """Now, after this step; 0 as long as it is not known."""
        if self.began is None or step <= self.settled:
            return 0.0
        return (step - self.settled) * self.tokens / (_now(self.device) - self.began)

    def mfu(self, rate: float) -> float | None:
        peak = peak_flops(self.device)
        return rate * self.flops / peak if peak else None


def _ahead(batches: Batches, first: int, device: torch.device) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches on the device, the next one being made while one is in use."""
    source = batches.batches(first)

    def take() -> tuple[torch.Tensor, torch.Tensor] | None:
        batch = next(source, None)
        if batch is None:
            return None
        ids, targets = (torch.from_numpy(array) for array in batch)
        if device.type == "cuda":
            ids, targets = ids.pin_memory(), targets.pin_memory()
        return ids.to(device, non_blocking=True), targets.to(device, non_blocking=True)

    with ThreadPoolExecutor(1) as pool:
        upcoming = pool.submit(take)
        while (batch := upcoming.result()) is not None:
            upcoming = pool.submit(take)
            yield batch


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.monotonic()


def finish(stage: str, model: GPT, measured: dict[str, object], folder: Path) -> None:
    """Keep the stage's weights and figures. Raises CheckpointError where they cannot be written."""
    Checkpoints(folder, stage).finish(model.state_dict(), measured)
