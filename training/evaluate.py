"""How good the model is: held-out bits per byte, sums, capitals, greedy answers to fixed prompts."""

import math
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from engine.model import GPT
from training.conversations.exchange import Message
from training.data import CHAT_SOURCES, read_shard
from training.prompts import CAPITAL_FORM, CAPITALS, FIXED, SUM_FORM, sums
from training.template import prompt, render
from training.tokenizer import Encoder

ROWS = 32
Scored = tuple[str, list[int], list[int], int]  # source, ids, mask, bytes that the marked tokens stand for


@torch.inference_mode()
def bits_per_byte(model: GPT, encoder: Encoder, data: Path, limit: int | None = None) -> dict[str, float]:
    """Held-out bits per byte of each source, of all prose and of all chat (the assistant's tokens alone)."""
    items = [*_prose(data, encoder), *_chat(data, encoder)][:limit]
    context = model.config.sequence_len
    nats: dict[str, float] = defaultdict(float)
    size: dict[str, int] = defaultdict(int)
    items.sort(key=lambda item: len(item[1]))
    for at in range(0, len(items), ROWS):
        group = items[at : at + ROWS]
        for (source, _, _, length), loss in zip(group, _losses(model, group, context), strict=True):
            for key in (source, source.split("/")[0]):
                nats[key] += loss
                size[key] += length
    return {key: round(nats[key] / size[key] / math.log(2), 4) for key in sorted(nats) if size[key]}


def _losses(model: GPT, group: list[Scored], context: int) -> list[float]:
    """Summed loss of each item's marked tokens, in nats."""
    device = next(model.parameters()).device
    width = min(max(len(ids) for _, ids, _, _ in group), context + 1)
    ids = np.zeros((len(group), width), dtype=np.int64)
    mask = np.zeros((len(group), width), dtype=np.float32)
    for row, (_, tokens, marked, _) in enumerate(group):
        length = min(len(tokens), width)
        ids[row, :length], mask[row, :length] = tokens[:length], marked[:length]
    inputs = torch.from_numpy(ids).to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        logits = model(inputs[:, :-1])
    loss = F.cross_entropy(logits.float().flatten(0, 1), inputs[:, 1:].flatten(), reduction="none")
    per_row = (loss.view(len(group), -1) * torch.from_numpy(mask[:, 1:]).to(device)).sum(dim=1)
    return [float(value) for value in per_row]


def _prose(data: Path, encoder: Encoder) -> list[Scored]:
    scored = []
    for item in read_shard(data / "eval-pretrain.jsonl.xz"):
        text, source = str(item["text"]), str(item["source"])
        kind = next(
            (
                name
                for key, name in (
                    ("GITenberg", "children"),
                    ("openstax", "openstax"),
                    ("classic", "classics"),
                    ("wordset", "reference"),
                    ("factbook", "reference"),
                    ("FairytaleQA", "storybooks"),
                    ("asp-source", "storybooks"),
                    ("pb-source", "storybooks"),
                )
                if key in source
            ),
            "wiki",
        )
        ids = [encoder.special("<|bos|>"), *encoder.encode(text)]
        scored.append((f"prose/{kind}", ids, [0] + [1] * (len(ids) - 1), len(text.encode())))
    return scored


def _chat(data: Path, encoder: Encoder) -> list[Scored]:
    scored = []
    for item in read_shard(data / "eval-chat.jsonl.xz"):
        messages, source = item["messages"], CHAT_SOURCES.get(str(item["kind"]))
        assert isinstance(messages, list)
        if source is None:
            continue
        ids, mask = render(messages, encoder)
        said = sum(len(turn["content"].encode()) for turn in messages if turn["role"] == "assistant")
        scored.append((f"chat/{source}", ids, mask, said))
    return scored


@torch.inference_mode()
def greedy(model: GPT, encoder: Encoder, prompts: list[list[int]], limit: int) -> list[str]:
    """The greedy continuation of each prompt up to the end of the turn, without a cache."""
    device = next(model.parameters()).device
    ends = {encoder.special("<|assistant_end|>"), encoder.special("<|bos|>")}
    rows = [list(ids) for ids in prompts]
    open_rows = list(range(len(rows)))
    made: list[list[int]] = [[] for _ in rows]
    for _ in range(limit):
        if not open_rows:
            break
        width = max(len(rows[row]) for row in open_rows)
        ids = torch.zeros(len(open_rows), width, dtype=torch.int64)
        for at, row in enumerate(open_rows):
            ids[at, : len(rows[row])] = torch.tensor(rows[row])
        last = torch.tensor([len(rows[row]) - 1 for row in open_rows])
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = model(ids.to(device))
        best = logits[torch.arange(len(open_rows)), last.to(device)].argmax(dim=-1).tolist()
        still = []
        for row, token in zip(open_rows, best, strict=True):
            if token in ends:
                continue
            rows[row].append(token)
            made[row].append(token)
            still.append(row)
        open_rows = still
    return [encoder.decode(ids) for ids in made]


def fixed_prompts(model: GPT, encoder: Encoder, limit: int = 400) -> list[dict[str, object]]:
    """Every fixed prompt with its greedy answers, and whether the last one is as expected."""
    talks: list[list[Message]] = [
        [{"role": "system", "content": item.system}] if item.system else [] for item in FIXED
    ]
    for turn in range(max(len(item.turns) for item in FIXED)):
        asked = [at for at, item in enumerate(FIXED) if turn < len(item.turns)]
        for at in asked:
            talks[at].append({"role": "user", "content": FIXED[at].turns[turn]})
        answers = greedy(model, encoder, [prompt(talks[at], encoder) for at in asked], limit)
        for at, answer in zip(asked, answers, strict=True):
            talks[at].append({"role": "assistant", "content": answer})
    return [
        {"messages": talk, "pass": bool(re.search(item.expect or "", talk[-1]["content"]))}
        for item, talk in zip(FIXED, talks, strict=True)
    ]


def exact_answers(model: GPT, encoder: Encoder) -> dict[str, object]:
    """Sums up to 20 and the capitals of ten large countries, in a form that training never shows."""

    def ask(questions: list[str]) -> list[str]:
        return greedy(
            model, encoder, [prompt([{"role": "user", "content": q}], encoder) for q in questions], 32
        )

    pairs = sums()
    answers = ask([SUM_FORM.format(a, b) for a, b in pairs])
    wrong = [
        f"{a} + {b}: {answer}"
        for (a, b), answer in zip(pairs, answers, strict=True)
        if (re.findall(r"\d+", answer) or [""])[-1] != str(a + b)
    ]
    named = ask([CAPITAL_FORM.format(country) for country in CAPITALS])
    lost = [
        f"{c}: {answer}"
        for (c, city), answer in zip(CAPITALS.items(), named, strict=True)
        if city not in answer
    ]
    return {
        "sums": f"{len(pairs) - len(wrong)}/{len(pairs)}", "wrong_sums": wrong,
        "capitals": f"{len(CAPITALS) - len(lost)}/{len(CAPITALS)}", "wrong_capitals": lost,
    }  # fmt: skip
