"""Likelihoods: held-out bits per byte of each source, and multiple choice by the likeliest option."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from engine.model import GPT
from training.data import CHAT_SOURCES
from training.evaluate.answering import Answerer
from training.evaluate.documents import CHAT, PROSE
from training.evaluate.items import Choice
from training.shards import field, read_shard, turns
from training.template import prompt, render
from training.tokenizer import Encoder

BATCH_TOKENS = {"cuda": 32_768, "cpu": 4_096}
_SERVED_PROMPTS, _SERVED_TOKENS = 64, 32
Marked = tuple[list[int], list[int]]  # ids, and 1 for each whose loss counts
Scored = tuple[str, Marked, int]  # source, ids with marks, bytes that the marked tokens stand for
_SOURCES = (
    ("GITenberg", "children"),
    ("openstax", "openstax"),
    ("classic", "classics"),
    ("wordset", "reference"),
    ("factbook", "reference"),
    ("FairytaleQA", "storybooks"),
    ("asp-source", "storybooks"),
    ("pb-source", "storybooks"),
)


def bits_per_byte(model: GPT, encoder: Encoder, data: Path, every: int = 1) -> dict[str, float]:
    """Held-out bits per byte of each source, of all prose and of all chat (the assistant's tokens alone).

    every: of each source every so many-th item, from the first. Raises DataError for a damaged file.
    """
    items: list[Scored] = []
    seen: dict[str, int] = defaultdict(int)
    for item in (*_prose(data, encoder), *_chat(data, encoder)):
        if seen[item[0]] % every == 0:
            items.append(item)
        seen[item[0]] += 1
    nats: dict[str, float] = defaultdict(float)
    size: dict[str, int] = defaultdict(int)
    losses = marked_losses(model, [marked for _, marked, _ in items])
    for (source, _, length), loss in zip(items, losses, strict=True):
        for key in (source, source.split("/")[0]):
            nats[key] += loss
            size[key] += length
    return {key: round(nats[key] / size[key] / math.log(2), 4) for key in sorted(nats) if size[key]}


def choose(model: GPT, encoder: Encoder, tasks: Mapping[str, Sequence[Choice]]) -> dict[str, list[int]]:
    """The index of the likeliest option of each item, by task."""
    rows: list[Marked] = []
    for items in tasks.values():
        rows += [_option(item, at, encoder) for item in items for at in range(len(item.options))]
    losses = iter(marked_losses(model, rows))
    chosen: dict[str, list[int]] = {}
    for name, items in tasks.items():
        chosen[name] = []
        for item in items:
            nats = [next(losses) / (len(o.encode()) if item.per_byte else 1) for o in item.options]
            chosen[name].append(nats.index(min(nats)))
    return chosen


def served_loss(answerer: Answerer, reference: GPT, data: Path) -> dict[str, float]:
    """Nats per token of sampled continuations, as the engine computed them and as `reference` does.

    The engine may compute otherwise than the model's own forward pass (integer products, other kernels);
    both look at the same tokens, which the engine sampled at temperature 1 after held-out text.
    """
    encoder = answerer.encoder
    prompts = [ids[:64] for _, (ids, _), _ in _prose(data, encoder) if len(ids) >= 64][:_SERVED_PROMPTS]
    made = answerer.continuations(prompts, _SERVED_TOKENS)
    rows = [
        (before + ids, [0] * len(before) + [1] * len(ids))
        for before, (ids, _) in zip(prompts, made, strict=True)
    ]
    tokens = sum(len(ids) for ids, _ in made)
    served = -sum(sum(logprobs) for _, logprobs in made)
    return {
        "tokens": tokens,
        "engine": round(served / tokens, 5),
        "reference": round(sum(marked_losses(reference, rows, autocast=False)) / tokens, 5),
    }


def _option(item: Choice, at: int, encoder: Encoder) -> Marked:
    if item.asked:
        before = prompt([{"role": "user", "content": item.context}], encoder)
    else:
        before = [encoder.special("<|bos|>"), *encoder.encode(item.context)]
    option = encoder.encode(item.options[at])
    return before + option, [0] * len(before) + [1] * len(option)


@torch.inference_mode()
def marked_losses(model: GPT, rows: Sequence[Marked], autocast: bool = True) -> list[float]:
    """Summed loss of each row's marked tokens, in nats. Rows of similar length share a batch.

    What is beyond the context length has no part in it, at the end of a row. autocast: compute in bfloat16 on
    a GPU.
    """
    device = next(model.parameters()).device
    budget = BATCH_TOKENS.get(device.type, BATCH_TOKENS["cpu"])
    longest = model.config.sequence_len + 1
    order = sorted(range(len(rows)), key=lambda at: len(rows[at][0]))
    losses = [0.0] * len(rows)
    start = 0
    while start < len(order):
        end = start + 1
        while end < len(order) and (end + 1 - start) * min(len(rows[order[end]][0]), longest) <= budget:
            end += 1
        group = order[start:end]
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast and device.type == "cuda"):
            found = _losses(model, [rows[at] for at in group], longest, device)
        for at, loss in zip(group, found, strict=True):
            losses[at] = loss
        start = end
    return losses


def _losses(model: GPT, group: Sequence[Marked], longest: int, device: torch.device) -> list[float]:
    width = min(max(len(ids) for ids, _ in group), longest)
    ids = np.zeros((len(group), width), dtype=np.int64)
    mask = np.zeros((len(group), width), dtype=np.float32)
    for row, (tokens, marked) in enumerate(group):
        length = min(len(tokens), width)
        ids[row, :length], mask[row, :length] = tokens[:length], marked[:length]
    inputs = torch.from_numpy(ids).to(device)
    logits = model(inputs[:, :-1])
    loss = F.cross_entropy(logits.float().flatten(0, 1), inputs[:, 1:].flatten(), reduction="none")
    per_row = (loss.view(len(group), -1) * torch.from_numpy(mask[:, 1:]).to(device)).sum(dim=1)
    return [float(value) for value in per_row]


def _prose(data: Path, encoder: Encoder) -> list[Scored]:
    scored = []
    for item in read_shard(data / PROSE):
        text, source = (field(data / PROSE, item, name, str) for name in ("text", "source"))
        kind = next((name for key, name in _SOURCES if key in source), "wiki")
        ids = [encoder.special("<|bos|>"), *encoder.encode(text)]
        scored.append((f"prose/{kind}", (ids, [0] + [1] * (len(ids) - 1)), len(text.encode())))
    return scored


def _chat(data: Path, encoder: Encoder) -> list[Scored]:
    scored = []
    for item in read_shard(data / CHAT):
        messages = turns(data / CHAT, item)
        source = CHAT_SOURCES.get(field(data / CHAT, item, "kind", str))
        if source is None:
            continue
        said = sum(len(turn["content"].encode()) for turn in messages if turn["role"] == "assistant")
        scored.append((f"chat/{source}", render(messages, encoder), said))
    return scored
