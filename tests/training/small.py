"""Runs of the training command that take seconds: `python -m tests.training.small DATA WORK OUT` is one in a
process of its own, to be killed.
"""

import json
import lzma
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from training import __main__ as command
from training import settings as settings_module
from training.settings import Phase, Settings, tiny


def smallest() -> Settings:
    """A few steps of a few tokens, some of them from shards."""
    sources = {"generated_stories": 0.5, "generated_talk": 0.4, "storybooks": 0.1}
    return replace(
        tiny(),
        phases=(Phase("plain", 6_000, sources),),
        tune=Phase("tune", 3_000, {"generated_talk": 0.8, "assistant": 0.2}),
        dropout=0.1,
    )


def shard(path: Path, items: Sequence[object]) -> Path:
    with lzma.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(item) + "\n" for item in items)
    return path


def shards(folder: Path) -> Path:
    """The folder with a shard for each source of `smallest`."""
    folder.mkdir(parents=True, exist_ok=True)
    story = {"text": "A cat sat on a mat and was glad.", "source": "s", "tier": "simple"}
    shard(folder / "pretrain-storybooks.jsonl.xz", [story] * 20)
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]
    shard(folder / "chat-assistant.jsonl.xz", [{"messages": chat, "source": "s", "kind": "dolly"}] * 20)
    return folder


def run(data: Path, work: Path, out: Path, *more: str) -> int:
    """The command, a checkpoint after every step; what comes after export is about other things."""
    patch = pytest.MonkeyPatch()
    patch.setattr(settings_module, "tiny", smallest)
    patch.setattr(command, "_evaluated", lambda model, encoder, args: {})
    patch.setattr(command.leaks, "check", lambda data, settings, workers: {})
    patch.setattr(command.card, "write", lambda report, out: None)
    flags = ["--preset", "tiny", "--workers", "1", "--device", "cpu", "--checkpoint-seconds", "0"]
    try:
        return command.main(["--data", str(data), "--out", str(out), "--work", str(work), *flags, *more])
    finally:
        patch.undo()


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(run(*map(Path, sys.argv[1:4]), *sys.argv[4:]))
