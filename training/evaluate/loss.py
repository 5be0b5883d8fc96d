"""Likelihoods: held-out bits per byte of each source, and multiple choice by the likeliest option."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
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

BATCH_TOKENS = {"cuda": 16_384, "cpu": 4_096}
_SERVED_PROMPTS, _SERVED_TOKENS = 64, 32
# What bits per byte are of, for tables that may hold figures of another measure.
MEASURE = "tokens that stand for bytes, long items in windows"
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


def bits_per_byte(
    model: GPT, encoder: Encoder, data: Path, every: int = 1, autocast: bool = True
) -> dict[str, float]:
    """Held-out bits per byte of each source, of all prose and of all chat (the assistant's words alone).

    The loss of every token that stands for bytes, over these bytes. The token that ends an answer stands for
    none and does not count, as in nanochat's evaluate_bpb. Long items are scored whole, in the windows of
    `windows`. every: of each source every so many-th item, from the first. autocast: as in `marked_losses`.
    Raises DataError for a damaged file.
    """
    items: list[Scored] = []
    seen: dict[str, int] = defaultdict(int)
    for item in (*_prose(data, encoder), *_chat(data, encoder)):
        if seen[item[0]] % every == 0:
            items.append(item)
        seen[item[0]] += 1
    nats: dict[str, float] = defaultdict(float)
    size: dict[str, int] = defaultdict(int)
    losses = marked_losses(model, [marked for _, marked, _ in items], autocast)
    for (source, _, length), loss in zip(items, losses, strict=True):
        for key in (source, source.split("/")[0]):
            nats[key] += loss
            size[key] += length
    return {key: round(nats[key] / size[key] / math.log(2), 4) for key in sorted(nats) if size[key]}


def choose(
    model: GPT, encoder: Encoder, tasks: Mapping[str, Sequence[Choice]], autocast: bool = True
) -> dict[str, list[int]]:
    """The index of the likeliest option of each item, by task. autocast: as in `marked_losses`."""
    rows: list[Marked] = []
    for items in tasks.values():
        rows += [_option(item, at, encoder) for item in items for at in range(len(item.options))]
    losses = iter(marked_losses(model, rows, autocast))
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


def windows(length: int, context: int) -> Iterator[tuple[int, int, int]]:
    """How a row of `length` tokens is scored by a model of so many positions: (start, end, first) of each
    window, in order. Tokens `start` to `end` are seen together, and those from `first` on count.

    A window has context + 1 tokens, of which the last is predicted only. Each further one starts with half a
    context of tokens that counted before and are there to be seen. So every token but the row's very first,
    which nothing predicts, counts exactly once, and has at least half a context in front of it, or all that
    there is. A further window does not begin with <|bos|>: in pretraining, rows are cut the same way.
    """
    overlap = max(1, context // 2)
    start, first = 0, 1
    while first < length:
        end = min(length, start + context + 1)
        yield start, end, first
        start, first = end - overlap, end


@torch.inference_mode()
def marked_losses(model: GPT, rows: Sequence[Marked], autocast: bool = True) -> list[float]:
    """Summed loss of each row's marked tokens, in nats; a row's first token has none.

    A row longer than the context is scored in `windows`; those without a marked token are left out. autocast:
    compute in bfloat16 on a GPU, as the fp32 masters of training want it; without it, in the model's dtype.
    """
    device = next(model.parameters()).device
    budget = BATCH_TOKENS.get(device.type, BATCH_TOKENS["cpu"])
    pieces: list[tuple[int, Marked]] = []
    for at, (ids, marks) in enumerate(rows):
        for start, end, first in windows(len(ids), model.config.sequence_len):
            if any(marks[first:end]):
                pieces.append((at, (ids[start:end], [0] * (first - start) + marks[first:end])))
    pieces.sort(key=lambda piece: len(piece[1][0]))  # pieces of similar length share a batch
    losses = [0.0] * len(rows)
    done = 0
    while done < len(pieces):
        upto = done + 1
        while upto < len(pieces) and (upto + 1 - done) * len(pieces[upto][1][0]) <= budget:
            upto += 1
        group = pieces[done:upto]
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast and device.type == "cuda"):
            found = _losses(model, [marked for _, marked in group], device)
        for (at, _), loss in zip(group, found, strict=True):
            losses[at] += loss
        done = upto
    return losses


def _losses(model: GPT, group: Sequence[Marked], device: torch.device) -> list[float]:
    """Of rows that fit into the context."""
    width = max(len(ids) for ids, _ in group)
    ids = np.zeros((len(group), width), dtype=np.int64)
    mask = np.zeros((len(group), width), dtype=np.float32)
    for row, (tokens, marked) in enumerate(group):
        ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, marked
    inputs = torch.from_numpy(ids).to(device)
    logits = model(inputs[:, :-1])
    loss = F.cross_entropy(logits.float().flatten(0, 1), inputs[:, 1:].flatten(), reduction="none")
    per_row = (loss.view(len(group), -1) * torch.from_numpy(mask[:, 1:]).to(device)).sum(dim=1)
    summed: list[float] = per_row.tolist()
    return summed


def _prose(data: Path, encoder: Encoder) -> list[Scored]:
    scored = []
    for item in read_shard(data / PROSE):
        text, source = (field(data / PROSE, item, name, str) for name in ("text", "source"))
        kind = next((name for key, name in _SOURCES if key in source), "wiki")
        ids = [encoder.special("<|bos|>"), *encoder.encode(text)]
        scored.append((f"prose/{kind}", (ids, [0] + [1] * (len(ids) - 1)), len(text.encode())))
    return scored


def _chat(data: Path, encoder: Encoder) -> list[Scored]:
    end = encoder.special("<|assistant_end|>")
    scored = []
    for item in read_shard(data / CHAT):
        messages = turns(data / CHAT, item)
        source = CHAT_SOURCES.get(field(data / CHAT, item, "kind", str))
        if source is None:
            continue
        said = sum(len(turn["content"].encode()) for turn in messages if turn["role"] == "assistant")
        ids, learned = render(messages, encoder)
        marks = [int(mark and token != end) for token, mark in zip(ids, learned, strict=True)]
        scored.append((f"chat/{source}", (ids, marks), said))
    return scored
