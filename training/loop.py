"""The training loop that pretraining and chat tuning share: steps, progress, checkpoints, resumption."""

import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.hooks import RemovableHandle

from engine.config import GPTConfig
from engine.model import GPT
from training.optimizer import Optimizers
from training.packing import Batch
from training.settings import Settings

# Dense bf16 peak of a device, for the share of it that a run reaches (MFU).
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "B200": 2250e12, "A100": 312e12}


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


def flops_per_token(settings: Settings) -> int:
    """Forward and backward, attention counted causally."""
    kv_share = settings.n_kv_head / settings.n_head
    blocks = round((10 + 2 * kv_share) * settings.n_layer * settings.n_embd**2)
    head = settings.vocab_size * settings.n_embd
    return 6 * (blocks + head) + 6 * settings.n_layer * settings.n_embd * settings.context


def run(
    model: GPT, optimizers: Optimizers, stage: Stage, settings: Settings, folder: Path
) -> dict[str, object]:
    """Train from the last checkpoint of this stage, or from the start; returns what was measured."""
    device = next(model.parameters()).device
    partial = folder / f"{stage.name}.partial.pt"
    first, losses, spent = 0, [], 0.0
    if partial.exists():
        saved = torch.load(partial, map_location=device, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizers.load_state_dict(saved["optimizers"])
        first, losses, spent = saved["step"], saved["losses"], saved["seconds"]
        print(f"{stage.name}: resumed at step {first}", flush=True)
    forward = torch.compile(model, dynamic=False) if device.type == "cuda" else model
    total, tokens = stage.batches.steps, settings.rows * settings.context
    began = last_saved = time.monotonic()
    steady: float | None = None
    running: list[torch.Tensor] = []
    for step, (ids, targets) in enumerate(_ahead(stage.batches, first, device), first):
        optimizers.scale(stage.share(step), step)
        torch.manual_seed(settings.seed * 1_000_003 + step)  # dropout's, the same in a run that was resumed
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = forward(ids, targets)
        loss.backward()
        optimizers.step()
        running.append(loss.detach())
        if step == first + 10:
            steady = _now(device)
        if len(running) == 50 or step == total - 1:
            losses.append([step, round(torch.stack(running).mean().item(), 4)])
            running.clear()
            speed = (
                (step - first - 10) * tokens / (_now(device) - steady)
                if steady and step > first + 10
                else 0.0
            )
            _report(stage.name, step, total, losses[-1][1], speed, settings, device)
        if time.monotonic() - last_saved > settings.checkpoint_seconds:
            last_saved = time.monotonic()
            state = {"step": step + 1, "losses": losses, "seconds": spent + last_saved - began}
            save(partial, model, {"optimizers": optimizers.state_dict(), **state})
    finish = _now(device)
    speed = (total - first - 11) * tokens / (finish - steady) if steady and total > first + 11 else 0.0
    return {
        "steps": total,
        "tokens": total * tokens,
        "seconds": round(spent + finish - began, 1),
        "losses": losses,
        "tokens_per_second": round(speed),
        "mfu": round(mfu(speed, settings, device), 4),
    }


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


def mfu(speed: float, settings: Settings, device: torch.device) -> float:
    """Share of the device's bf16 peak; 0 where the peak is not known."""
    if device.type != "cuda":
        return 0.0
    name = torch.cuda.get_device_name(device)
    peak = next((value for key, value in PEAK_FLOPS.items() if key in name), 0.0)
    return speed * flops_per_token(settings) / peak if peak else 0.0


def _report(
    name: str, step: int, total: int, loss: float, speed: float, settings: Settings, device: torch.device
) -> None:
    share = f", MFU {mfu(speed, settings, device):.1%}" if device.type == "cuda" else ""
    print(f"{name} {step + 1}/{total} loss {loss:.4f}, {speed / 1e3:.0f}k tokens/s{share}", flush=True)


def save(path: Path, model: GPT, more: dict[str, object]) -> None:
    """Write a checkpoint; the previous one stays intact until the new one is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    waiting = path.with_suffix(".tmp")
    torch.save({"model": model.state_dict(), **more}, waiting)
    os.replace(waiting, path)


def finish(stage: str, model: GPT, measured: dict[str, object], folder: Path) -> None:
    """Keep the stage's weights and figures, and drop its partial checkpoint."""
    save(folder / f"{stage}.pt", model, {})
    (folder / f"{stage}.json").write_text(json.dumps(measured))
    (folder / f"{stage}.partial.pt").unlink(missing_ok=True)
