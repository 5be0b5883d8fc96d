"""Items with exact scoring from held-out documents, built by program: the text itself is not committed.

Multiple choice: quiz questions with four options, true-or-false statements, and two cloze tasks on prose in
the spirit of the Children's Book Test (Hill et al. 2015): which of four sentences goes on, and which of four
names belongs into the next sentence. Short answers: reading, quiz and search questions.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from training.evaluate.documents import CHAT, PROSE, QUIZ, everyday, passage_and_question, stem
from training.shards import field, read_shard, turns

PASSAGE_CHARACTERS = 2600  # a reading question must leave room for its answer in 1,024 tokens
_OPTION = re.compile(r"^[A-D]\) (.+)$", re.M)
_ANSWER = re.compile(r"^The answer is ([A-D])\)")
_TRUE_FALSE = re.compile(r"(?i)^true or false: ")
_SENTENCE = re.compile(r"(?<=[.!?])[\"']?\s+(?=[\"'A-Z])")
_NAME = re.compile(r"(?<=[a-z,;] )[A-Z][a-z]{2,}\b(?!')")
_CONTEXT_SENTENCES, _CONTEXT_OF_NAMES = 3, 7
# Capital letters in mid-sentence that are no one's name.
_NO_NAMES = frozenset(
    (
        "The",
        "And",
        "But",
        "She",
        "His",
        "Her",
        "They",
        "You",
        "Your",
        "Then",
        "There",
        "When",
        "What",
        "Sunday",
    )
)


@dataclass(frozen=True, slots=True)
class Choice:
    """`context` goes on with one of `options`; the right one is `options[answer]`.

    asked: the context is a user's turn and the options are answers to it; otherwise it is plain text.
    per_byte: options are compared by their mean loss, as they differ in length; else by the sum.
    """

    context: str
    options: tuple[str, ...]
    answer: int
    asked: bool
    per_byte: bool


@dataclass(frozen=True, slots=True)
class Short:
    """A question and the answers that count as right."""

    question: str
    accepted: tuple[str, ...]


def multiple_choice(data: Path, most: int = 150) -> dict[str, list[Choice]]:
    """By task. most: items of each cloze task. Raises DataError for a damaged file."""
    tasks: dict[str, list[Choice]] = {
        name: [] for name in ("quiz by text", "quiz by letter", "true or false")
    }
    for kind, asked, answer in _chat(data):
        options = tuple(_OPTION.findall(asked))
        letter = _ANSWER.match(answer)
        if kind == "trivia" and len(options) == 4 and letter:
            at = "ABCD".index(letter[1])
            tasks["quiz by text"].append(Choice(stem(asked), options, at, True, True))
            letters = tuple(f"The answer is {one})" for one in "ABCD")
            tasks["quiz by letter"].append(Choice(asked, letters, at, True, True))
        elif kind == "trivia" and _TRUE_FALSE.match(asked):
            right = int(answer.startswith("False"))
            tasks["true or false"].append(Choice(asked, ("True.", "False."), right, True, False))
    return tasks | {"next sentence": _next_sentences(data, most), "missing name": _names(data, most)}


def short_answers(data: Path) -> dict[str, list[Short]]:
    """By task. Raises DataError for a damaged file."""
    tasks: dict[str, list[Short]] = {"reading": [], "quiz": [], "search questions": []}
    for kind, asked, answer in _chat(data):
        item = Short(asked, variants(answer))
        if kind == "story_qa" and len(asked) <= PASSAGE_CHARACTERS:
            tasks["reading"].append(item)
        elif kind == "nq":
            tasks["search questions"].append(item)
        elif kind == "trivia" and not _OPTION.search(asked) and not _TRUE_FALSE.match(asked):
            tasks["quiz"].append(item)
    return tasks


def variants(answer: str) -> tuple[str, ...]:
    """The answer, without what stands in brackets, and the parts of one that says "also known as" or "or"."""
    bare = answer.strip().rstrip(".")
    outside = re.sub(r"\s*\([^)]*\)", "", bare)
    parts = re.split(r", (?:also known as|also called|or) | or (?=[A-Z])", outside)
    return tuple(dict.fromkeys(part for part in (bare, outside, *parts) if part))


def prompts(data: Path) -> list[str]:
    """What is asked: every question of these items, reading questions without their passage."""
    return [
        passage_and_question(asked)[1] if kind == "story_qa" else stem(asked)
        for kind, asked, _ in _chat(data)
    ]


def digest(data: Path) -> str:
    """SHA-256 over all items in order: two evaluations with the same digest asked the same."""
    state = hashlib.sha256()
    for group in (*multiple_choice(data).items(), *short_answers(data).items()):
        state.update(repr(group).encode())
    return state.hexdigest()


# -- reading -------------------------------------------------------------------------------------------------


def _chat(data: Path) -> Iterator[tuple[str, str, str]]:
    """Kind, question and answer of each held-out question that makes an item."""
    for item in read_shard(data / CHAT):
        kind, messages = field(data / CHAT, item, "kind", str), turns(data / CHAT, item)
        if len(messages) == 2 and kind in QUIZ and not everyday(messages[0]["content"]):
            yield kind, messages[0]["content"], messages[1]["content"]


def _pieces(data: Path) -> list[tuple[str, list[str]]]:
    """Source and sentences of each held-out piece of prose that reads as prose."""
    pieces = []
    for item in read_shard(data / PROSE):
        source, text = (field(data / PROSE, item, name, str) for name in ("source", "text"))
        if "wordset" in source or "factbook" in source:
            continue
        # Each paragraph by itself: a heading does not run into the sentence after it.
        lines = [line.strip() for part in text.split("\n") for line in _SENTENCE.split(part)]
        pieces.append((source, [line for line in lines if line]))
    return pieces


def _whole(sentence: str) -> bool:
    """A sentence of middling length with an end."""
    return 6 <= len(sentence.split()) <= 30 and sentence[-1] in ".!?\"'" and sentence[0].isupper()


def _next_sentences(data: Path, most: int) -> list[Choice]:
    """Four sentences of one book or article, of which one follows the context."""
    rng = Random("next sentence")
    by_source: dict[str, list[tuple[int, list[str]]]] = {}
    for at, (source, lines) in enumerate(_pieces(data)):
        by_source.setdefault(source, []).append((at, lines))
    items = []
    for pieces in by_source.values():
        for at, lines in pieces:
            places = [place for place in range(_CONTEXT_SENTENCES, len(lines)) if _whole(lines[place])]
            others = [line for other, found in pieces if other != at for line in found if _whole(line)]
            if not places or len(others) < 30:
                continue
            place = rng.choice(places)
            right = lines[place]
            # The nearest in length, so that length tells nothing.
            near = sorted(set(others) - {right}, key=lambda line: (abs(len(line) - len(right)), line))[:12]
            options = [right, *rng.sample(near, 3)]
            items.append(_shuffled(rng, " ".join(lines[place - _CONTEXT_SENTENCES : place]), options, True))
    return _sampled(rng, items, most)


def _names(data: Path, most: int) -> list[Choice]:
    """The next sentence with one of four names that the context has, each in the same place."""
    rng = Random("missing name")
    items = []
    for source, lines in _pieces(data):
        if "GITenberg" not in source and "classic" not in source and "source" not in source:
            continue
        for place in range(_CONTEXT_OF_NAMES, len(lines)):
            context = " ".join(lines[place - _CONTEXT_OF_NAMES : place])
            names = sorted(set(_NAME.findall(context)) - _NO_NAMES)
            own = [name for name in _NAME.findall(lines[place]) if name in names]
            if not own or len(names) < 4 or not _whole(lines[place]):
                continue
            name = rng.choice(own)
            others = [other for other in names if other not in lines[place]]
            if len(others) >= 3:
                chosen = (name, *rng.sample(others, 3))
                options = [re.sub(rf"\b{name}\b", one, lines[place]) for one in chosen]
                items.append(_shuffled(rng, context, options, False))
                break
    return _sampled(rng, items, most)


def _shuffled(rng: Random, context: str, options: Sequence[str], per_byte: bool) -> Choice:
    """The right option, which comes first, at a random place."""
    order = rng.sample(range(len(options)), len(options))
    return Choice(context, tuple(" " + options[at] for at in order), order.index(0), False, per_byte)


def _sampled(rng: Random, items: list[Choice], most: int) -> list[Choice]:
    return items if len(items) <= most else rng.sample(items, most)
