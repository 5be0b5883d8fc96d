"""Everything that is measured of a shipped folder, as one table of plain values."""

import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Literal, cast

from engine.loader import load_model
from engine.model import GPT
from training.conversations.exchange import Message
from training.evaluate.answering import Answer, Answerer, Sampling
from training.evaluate.documents import CHAT, PROSE
from training.evaluate.items import digest, multiple_choice, short_answers
from training.evaluate.loss import bits_per_byte, choose, served_loss
from training.evaluate.questions import Question, calculator, required, spelling
from training.evaluate.scoring import matches, overlap, repetition, right, used_tool
from training.prompts import FIXED

SHORT_TOKENS, LONG_TOKENS = 96, 400
SEEDS = (1, 2, 3)
SHOWN = 40  # wrong answers that are kept of each set
Report = dict[str, object]


def measure(
    folder: Path,
    data: Path | None,
    device: str = "cpu",
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    every: int = 1,
    most: int = 150,
) -> Report:
    """The report of the model in `folder`.

    data: the folder with the held-out files; without them what needs them is left out. every: bits per byte
    on every so many-th item of a source; 0: not at all. most: items of each cloze task. Raises
    CheckpointError for the folder, DataError for the data.
    """
    began = time.monotonic()
    with Answerer(folder, device, dtype) as answerer:
        report: Report = {}
        if data is not None and (data / PROSE).exists() and (data / CHAT).exists():
            if every:
                report["bits_per_byte"] = bits_per_byte(
                    answerer.model, answerer.encoder, data, every, autocast=False
                )
                report["bits_per_byte_of_every"] = every
            report["served_loss"] = {device: _served(answerer, folder, device, data)}
            report["choices"] = _choices(answerer, data, most)
            report["short_answers"] = _short(answerer, data)
            report["items_digest"] = digest(data)
        report["required"] = asked_sets(answerer, required())
        report["calculator"] = asked_sets(answerer, calculator())
        report["spelling"] = asked_sets(answerer, spelling())
        report |= _fixed(answerer)
    if "served_loss" in report and device != "cpu":
        assert data is not None
        with Answerer(folder, "cpu") as answerer:  # most people serve it there, and that computes otherwise
            table = cast(dict[str, object], report["served_loss"])
            table["cpu"] = _served(answerer, folder, "cpu", data)
    report["measured_in_seconds"] = round(time.monotonic() - began, 1)
    report["measured_on"] = device
    return report


def summary(report: Mapping[str, object]) -> list[str]:
    """A line for each set of a report: what was measured, so that logs of several models can be compared."""
    bits = cast(Mapping[str, float], report.get("bits_per_byte", {}))
    lines = [f"bits per byte, {name}: {bits[name]:.4f}" for name in ("prose", "chat") if name in bits]
    for part in ("choices", "short_answers", "required", "calculator", "spelling"):
        for name, found in cast(Mapping[str, Report], report.get(part, {})).items():
            lines.append(f"{part.replace('_', ' ')}, {name}: {found['right']}/{found['of']}")
    if "fixed_passed" in report:
        lines.append(f"fixed prompts: {report['fixed_passed']}")
    return lines


def _served(answerer: Answerer, folder: Path, device: str, data: Path) -> dict[str, float]:
    reference, _, _ = load_model(folder, device=device, dtype="float32")
    assert isinstance(reference, GPT)
    return served_loss(answerer, reference, data)


def asked_sets(answerer: Answerer, sets: Mapping[str, Sequence[Question]]) -> dict[str, Report]:
    """Of each set: how many are right of how many, how many used the calculator, and wrong answers."""
    questions = [question for items in sets.values() for question in items]
    answers = iter(_ask(answerer, [question.text for question in questions]))
    found: dict[str, Report] = {}
    for name, items in sets.items():
        pairs = [(question, next(answers).text) for question in items]
        wrong = [[question.text, text] for question, text in pairs if not right(question, text)]
        found[name] = {
            "right": len(pairs) - len(wrong),
            "of": len(pairs),
            "used_tool": sum(used_tool(text) for _, text in pairs),
            "wrong": wrong[:SHOWN],
        }
    return found


def _ask(answerer: Answerer, questions: Sequence[str]) -> list[Answer]:
    return answerer.answers([[{"role": "user", "content": text}] for text in questions], SHORT_TOKENS)


def _choices(answerer: Answerer, data: Path, most: int) -> dict[str, Report]:
    tasks = multiple_choice(data, most)
    chosen = choose(answerer.model, answerer.encoder, tasks, autocast=False)
    return {
        name: {
            "right": sum(at == item.answer for at, item in zip(chosen[name], items, strict=True)),
            "of": len(items),
            "options": len(items[0].options) if items else 0,
        }
        for name, items in tasks.items()
    }


def _short(answerer: Answerer, data: Path) -> dict[str, Report]:
    found: dict[str, Report] = {}
    for name, items in short_answers(data).items():
        answers = _ask(answerer, [item.question for item in items])
        pairs = [(answer.text, item.accepted) for answer, item in zip(answers, items, strict=True)]
        found[name] = {
            "right": sum(matches(*pair) for pair in pairs),
            "of": len(pairs),
            "overlap": round(fmean(overlap(*pair) for pair in pairs), 3) if pairs else 0.0,
        }
    return found


# -- fixed prompts -------------------------------------------------------------------------------------------


def _fixed(answerer: Answerer) -> Report:
    """The fixed prompts answered greedily, and how answers end and repeat, sampled ones too."""
    talks, greedy = converse(answerer, Sampling())
    prompts = [
        {"messages": talk, "pass": re.search(item.expect or "", talk[-1]["content"]) is not None}
        for item, talk in zip(FIXED, talks, strict=True)
    ]
    table = answerer.recommended
    sampled: list[Answer] = []
    for seed in SEEDS:
        sampling = Sampling(
            table.get("temperature", 1.0),
            int(table.get("top_k", 0)),
            table.get("repetition_penalty", 1.0),
            seed,
        )
        sampled += converse(answerer, sampling)[1]
    return {
        "fixed_prompts": prompts,
        "fixed_passed": f"{sum(bool(item['pass']) for item in prompts)}/{len(prompts)}",
        "repetition": {"greedy": fluency(greedy), "sampled": fluency(sampled)},
    }


def converse(answerer: Answerer, sampling: Sampling) -> tuple[list[list[Message]], list[Answer]]:
    """Every fixed prompt with the model's answers between its turns, and all these answers."""
    talks: list[list[Message]] = [
        [{"role": "system", "content": item.system}] if item.system else [] for item in FIXED
    ]
    given: list[Answer] = []
    for turn in range(max(len(item.turns) for item in FIXED)):
        asked = [at for at, item in enumerate(FIXED) if turn < len(item.turns)]
        for at in asked:
            talks[at].append({"role": "user", "content": FIXED[at].turns[turn]})
        answers = answerer.answers([talks[at] for at in asked], LONG_TOKENS, sampling)
        for at, answer in zip(asked, answers, strict=True):
            talks[at].append({"role": "assistant", "content": answer.text})
        given += answers
    return talks, given


def fluency(answers: Sequence[Answer]) -> Report:
    """Share of answers that end by themselves, and the mean share of repeated runs of four words."""
    return {
        "answers": len(answers),
        "ended": round(fmean(answer.ended for answer in answers), 4),
        "repeated_4grams": round(fmean(repetition(answer.text) for answer in answers), 4),
    }
