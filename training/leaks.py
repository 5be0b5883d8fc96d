"""`python -m training.leaks --data DIR`: no prompt of the evaluation may occur in training data.

Everything that training reads is read again here, generated conversations included: the same jobs as in
`training.data`. A prompt of at least SUBSTRING_WORDS words is looked for anywhere in a text, a shorter one,
which is an everyday phrase, as a whole turn. Both ignore case and punctuation.
"""

import argparse
import json
import multiprocessing
import os
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import numpy as np

from training.data import CHAT_SOURCES, Job, contents, jobs
from training.evaluate import items
from training.evaluate.documents import CHAT, HeldOut
from training.evaluate.questions import calculator, required, spelling
from training.files import ReadError, WriteError, read_table, write_text
from training.prompts import FIXED, SUBSTRING_WORDS, is_held_out, normalised
from training.settings import Settings, full, tiny
from training.shards import DataError, field, read_shard, turns

_WINDOW = 16  # characters whose hash is compared; shorter prompts are looked for as whole turns only
_BITS = 20
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


def prompt_sets(data: Path) -> dict[str, frozenset[str]]:
    """Normalised prompts of each part of the evaluation."""
    made = [
        question for groups in (calculator(), spelling()) for group in groups.values() for question in group
    ]
    required_texts = [question.text for group in required().values() for question in group]
    sets: dict[str, Iterable[str]] = {
        "fixed prompts": [turn for prompt in FIXED for turn in prompt.turns],
        "required": required_texts,
        "calculator and spelling": [question.text for question in made],
    }
    if (data / CHAT).exists():
        sets["multiple choice and short answers"] = items.prompts(data)
    return {name: frozenset(map(normalised, texts)) - {""} for name, texts in sets.items()}


@dataclass(frozen=True, slots=True)
class Finder:
    """Looks for many phrases at once: a rolling hash of _WINDOW bytes, then the phrase itself."""

    whole: frozenset[str]
    by_start: Mapping[bytes, tuple[bytes, ...]]  # the first _WINDOW bytes of " phrase " -> phrases
    marked: np.ndarray  # [2 ** _BITS] bool: hashes of those starts

    @classmethod
    def of(cls, phrases: Iterable[str]) -> "Finder":
        phrases = frozenset(phrases)
        starts: dict[bytes, tuple[bytes, ...]] = {}
        for phrase in sorted(phrases):
            if len(phrase.split()) >= SUBSTRING_WORDS and len(phrase) + 2 >= _WINDOW:
                framed = f" {phrase} ".encode()
                starts[framed[:_WINDOW]] = (*starts.get(framed[:_WINDOW], ()), framed)
        marked = np.zeros(2**_BITS, dtype=bool)
        for start in starts:
            marked[_hashes(np.frombuffer(start, dtype=np.uint8))] = True
        return cls(phrases, starts, marked)

    def find(self, turns: Iterable[str]) -> set[str]:
        """The phrases that occur in these turns, which are normalised."""
        turns = list(turns)
        found = {turn for turn in turns if turn in self.whole}
        # Turns do not run into each other: no phrase has a line break.
        text = "".join(f" {turn} \n" for turn in turns).encode()
        if len(text) < _WINDOW:
            return found
        for at in np.flatnonzero(self.marked[_hashes(np.frombuffer(text, dtype=np.uint8))]).tolist():
            for phrase in self.by_start.get(text[at : at + _WINDOW], ()):
                if text.startswith(phrase, at):
                    found.add(phrase.decode().strip())
        return found


def _hashes(text: np.ndarray) -> np.ndarray:
    """A hash of _BITS bits of every run of _WINDOW bytes. [bytes] uint8 -> [bytes - _WINDOW + 1]."""
    values = text.astype(np.uint64) + np.uint64(1)
    factor, size = _FACTOR, 1
    with np.errstate(over="ignore"):
        while size < _WINDOW:  # from hashes of `size` bytes to those of twice as many
            values = values[:-size] * factor + values[size:]
            factor, size = factor * factor, 2 * size
    return (values >> np.uint64(64 - _BITS)).astype(np.int64)


# -- in worker processes -------------------------------------------------------------------------------------

_finder = cache(Finder.of)  # made once in a process: every job carries the same phrases


def _search(phrases: frozenset[str], job: Job) -> tuple[str, int, list[str]]:
    """Where from, how many characters, and the prompts that occur."""
    said: list[str] = []
    for content in contents(job):
        texts = [content] if isinstance(content, str) else [turn["content"] for turn in content]
        said += map(normalised, texts)
    return job[0], sum(map(len, said)), sorted(_finder(phrases).find(said))


def find(data: Path, settings: Settings, workers: int = 1) -> tuple[list[str], int]:
    """A line for every prompt that occurs, "source: prompt", and the characters that were read."""
    phrases = frozenset[str]().union(*prompt_sets(data).values())
    found: set[str] = set()
    read = 0
    search = partial(_search, phrases)
    with ExitStack() as stack:
        if workers > 1:
            pool = stack.enter_context(multiprocessing.get_context("spawn").Pool(workers))
            results: Iterable[tuple[str, int, list[str]]] = pool.imap_unordered(search, jobs(data, settings))
        else:
            results = map(search, jobs(data, settings))
        for source, size, prompts in results:
            found |= {f"{source}: {prompt}" for prompt in prompts}
            read += size
    return sorted(found), read


def left_out(data: Path) -> dict[str, int]:
    """Items of the shards that training leaves out: for a prompt in them, or for a held-out document."""
    held_out = HeldOut.of(data)
    count: Counter[str] = Counter()
    for path in sorted(data.glob("pretrain-*.jsonl.xz")):
        name = path.name.split(".")[0]
        texts = (field(path, item, "text", str) for item in read_shard(path))
        count[f"{name}: document"] += sum(map(held_out.shares, texts))
    for path in sorted(data.glob("chat-*.jsonl.xz")):
        for item in read_shard(path):
            source, messages = CHAT_SOURCES.get(field(path, item, "kind", str)), turns(path, item)
            if source is None:
                continue
            if any(turn["role"] == "user" and is_held_out(turn["content"]) for turn in messages):
                count[f"{source}: prompt"] += 1
            elif held_out.touches(messages):
                count[f"{source}: document"] += 1
    return {name: size for name, size in sorted(count.items()) if size}


def check(data: Path, settings: Settings, workers: int) -> dict[str, object]:
    """What the card says about leaks. Raises DataError for a damaged shard."""
    found, read = find(data, settings, workers)
    return {
        "prompts": {name: len(prompts) for name, prompts in prompt_sets(data).items()},
        "characters_read": read,
        "found": found,
        "left_out": left_out(data),
    }


def main(argv: list[str] | None = None) -> int:
    """1 if a prompt occurs in training data, or the data cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m training.leaks", description="Look for test prompts.")
    parser.add_argument("--data", type=Path, required=True, help="folder with the .jsonl.xz shards")
    parser.add_argument("--preset", choices=("full", "tiny"), default="full")
    parser.add_argument("--generated", type=int, help="this many generated conversations, not the preset's")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--report", type=Path, help="a report.json that gets the result under `leaks`")
    args = parser.parse_args(argv)
    if args.workers < 1:
        parser.error(f"--workers is {args.workers}, not 1 or more")
    if args.generated is not None and args.generated < 0:
        parser.error(f"--generated is {args.generated}, not 0 or more")
    if args.report is not None and not args.report.is_file():
        parser.error(f"--report: there is no file {args.report}")
    settings = full() if args.preset == "full" else tiny()
    if args.generated is not None:
        settings = replace(settings, generated_talk=args.generated)
    try:
        if not args.data.is_dir():
            raise DataError(f"no data folder {args.data}")
        report = read_table(args.report) if args.report is not None else {}
        result = check(args.data, settings, args.workers)
        if args.report is not None:
            write_text(args.report, json.dumps(report | {"leaks": result}, indent=1) + "\n")
    except (DataError, ReadError, WriteError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(result, indent=1))
    return bool(result["found"])


if __name__ == "__main__":
    raise SystemExit(main())
