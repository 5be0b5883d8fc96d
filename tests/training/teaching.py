"""A small model that learns a few rows by heart: a model that knows, for tests of what measures models."""

from collections.abc import Sequence
from pathlib import Path

import torch

from engine.config import Generation, GPTConfig
from engine.model import GPT
from training import tokenizer
from training.conversations import FAMILIES, generate
from training.export import export
from training.tokenizer import Encoder

Row = tuple[list[int], list[int]]  # ids, and 1 for each that is to be learned
VOCABULARY = 400


def small_tokenizer(folder: Path) -> Encoder:
    """A tokenizer of VOCABULARY entries in `folder`."""
    texts = (turn["content"] for _, talk in generate(FAMILIES, 400, 0) for turn in talk)
    tokenizer.save(tokenizer.train(texts, VOCABULARY), folder)
    return tokenizer.load(folder)


def small_config(generation: Generation = "G1", context: int = 512) -> GPTConfig:
    return GPTConfig.for_generation(
        generation, sequence_len=context, vocab_size=VOCABULARY, n_layer=2, n_head=2, n_kv_head=1, n_embd=64,
        window_pattern="SL",
    )  # fmt: skip


def taught(rows: Sequence[Row], steps: int = 200, generation: Generation = "G1") -> GPT:
    """A model after `steps` steps on all rows at once."""
    torch.manual_seed(0)
    model = GPT(small_config(generation))
    model.init_weights()
    width = max(len(ids) for ids, _ in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    targets = torch.full((len(rows), width), -1)
    for at, (tokens, marks) in enumerate(rows):
        ids[at, : len(tokens)] = torch.tensor(tokens)
        learned = [token if mark else -1 for token, mark in zip(tokens, marks, strict=True)]
        targets[at, : len(tokens)] = torch.tensor(learned)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.0)
    for _ in range(steps):
        loss = model(ids[:, :-1], targets[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05, f"not learned by heart: {loss.item()}"
    return model.requires_grad_(False).eval()


def shipped(model: GPT, tokenizer_folder: Path, out: Path) -> Path:
    """`model` as a shipped folder."""
    export(model.state_dict(), model.config, tokenizer_folder, out)
    return out
