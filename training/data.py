"""From the shards to token files: reading, sorting into sources, generating, tokenising in parallel.

A source is three arrays in the run's folder: `NAME.tokens.npy` (uint16, documents one after another),
`NAME.lengths.npy` (int32, tokens of each document) and `NAME.mask.npy` (uint8, 1 where the assistant speaks).
"""

import json
import multiprocessing
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from random import Random

import numpy as np

from training.conversations import FAMILIES, STORY_FAMILIES, generate
from training.conversations.exchange import Message, without_markers
from training.conversations.tales import plain_story
from training.evaluate.documents import HeldOut
from training.files import write_text, write_whole
from training.prompts import is_held_out
from training.settings import Settings
from training.shards import DataError, field, read_shard, turns
from training.template import render
from training.tokenizer import Encoder, load

SIZES_FILE = "sizes.json"
# Kinds of chat that make up a source; those not named are left out (gsm8k is too hard; jokes get memorised).
CHAT_SOURCES = {
    "dolly": "assistant",
    "instruct_small": "assistant",
    "simplify": "assistant",
    "words": "knowledge",
    "what_is": "knowledge",
    "trivia": "knowledge",
    "nq": "knowledge",
    "story_qa": "story_qa",
    "stories": "stories",
    "smalltalk": "smalltalk",
    "selfdialog": "chitchat",
    "personachat": "persona",
    "topical": "chitchat",
    "sgd": "task",
    "taskmaster": "task",
}
# Conversations with such a turn are left out. Who the assistant is, training/conversations alone tells.
_ABOUT_SELF = re.compile(
    r"(?i)\b(your|ur) (name|age|boss|maker|creator|owner|birthday)|who (are|made|built|created|is your)|"
    r"what are you\b|"
    r"are you (a|an|real|human|alive|chatgpt|siri|alexa|cortana)|how old|your (mom|dad|parents|family)|"
    r"\b(bot|bots|human|humans|digital|software|chatbot|robot|artificial)\b"
)
# People who introduce themselves to each other, or whom the data set calls by a number.
_INTRODUCED = re.compile(r"(?i)\byour name\b|\bmy name('s| is)\b|\buser [12]\b")
_UNFIT = {"smalltalk": _ABOUT_SELF, "chitchat": _INTRODUCED, "persona": _INTRODUCED}
# The shard that holds a source's conversations.
CHAT_SHARDS = {
    "assistant": "chat-assistant", "knowledge": "chat-assistant", "story_qa": "chat-assistant",
    "stories": "chat-assistant", "smalltalk": "chat-smalltalk", "chitchat": "chat-chitchat",
    "persona": "chat-chitchat", "task": "chat-task",
}  # fmt: skip
CHILDREN = {"children-simple": "simple", "children-other": "another"}  # and the tier that makes it up
CHUNK = 2000


@dataclass(frozen=True, slots=True)
class Source:
    """One tokenised source."""

    name: str
    tokens: np.ndarray
    lengths: np.ndarray
    mask: np.ndarray | None

    @property
    def starts(self) -> np.ndarray:
        return np.concatenate(([0], np.cumsum(self.lengths, dtype=np.int64)[:-1]))


def check_sources(data: Path, settings: Settings) -> None:
    """Raises DataError, naming the file, where one is missing from which a phase's source comes."""
    if not data.is_dir():
        raise DataError(f"no data folder {data}")
    for phase in (*settings.phases, settings.tune):
        for source in sorted(phase.weights):
            named = f"phase {phase.name!r} of the settings names the source {source!r}"
            if source.startswith("generated_"):
                if not getattr(settings, source, 0):
                    raise DataError(f"{named}, but {source} in the settings is not a positive number")
                continue
            shard = (
                "pretrain-children-*" if source in CHILDREN else CHAT_SHARDS.get(source, f"pretrain-{source}")
            )
            if not any(data.glob(f"{shard}.jsonl.xz")) and not any(data.glob(f"{shard}.*.jsonl.xz")):
                raise DataError(f"{named}, but there is no {data / shard}.jsonl.xz")


def _check_found(data: Path, settings: Settings, sizes: Mapping[str, int]) -> None:
    """Raises DataError where the files hold nothing of a source that a phase names."""
    for phase in (*settings.phases, settings.tune):
        for source in sorted(set(phase.weights) - {name for name, size in sizes.items() if size}):
            kinds = [kind for kind, made in CHAT_SOURCES.items() if made == source]
            what = f"an item of the kind {' or '.join(kinds)}" if kinds else "a document"
            if source in CHILDREN:
                what = f"a document of {CHILDREN[source]} tier"
            raise DataError(
                f"phase {phase.name!r} of the settings names the source {source!r}, but no shard in {data} "
                f"has {what} for it"
            )


def plain_texts(data: Path) -> Iterator[tuple[str, str]]:
    """(source, text) of every pretraining item; what shares a document with the evaluation is left out.

    Raises DataError for a damaged file.
    """
    held_out = HeldOut.of(data)
    for path in sorted(data.glob("pretrain-*.jsonl.xz")):
        name = path.name.split(".")[0].removeprefix("pretrain-")
        for item in read_shard(path):
            source, text = name, field(path, item, "text", str)
            if held_out.shares(text):
                continue
            if name.startswith("children"):
                simple = field(path, item, "tier", str) == "simple"
                source = "children-simple" if simple else "children-other"
            yield source, text


def conversations(data: Path) -> Iterator[tuple[str, list[Message]]]:
    """(source, messages) of every chat item that is used. Held-out prompts and documents are left out, and
    talk in which somebody else than the assistant says who he is.
    """
    held_out = HeldOut.of(data)
    for path in sorted(data.glob("chat-*.jsonl.xz")):
        for item in read_shard(path):
            source = CHAT_SOURCES.get(field(path, item, "kind", str))
            messages = turns(path, item)
            asked = [turn["content"] for turn in messages if turn["role"] == "user"]
            if source is None or any(map(is_held_out, asked)) or held_out.touches(messages):
                continue
            unfit = _UNFIT.get(source)
            if unfit and any(unfit.search(turn["content"]) for turn in messages):
                continue
            yield source, messages


def tokenizer_texts(data: Path, settings: Settings) -> Iterator[str]:
    """Text for the tokenizer from three pools: prose, chat, and what the programs write.

    Each is shuffled and read up to the text that would be more than `settings.tokenizer_characters`. Of prose
    about a third takes part, drawn by chance, and none of the classics; of what is generated a fraction, and
    without the calculator's marks. Raises DataError for a damaged file.
    """
    rng = Random(settings.seed)
    prose = [text for source, text in plain_texts(data) if source != "classics" and rng.random() < 0.35]
    chat = ["\n".join(turn["content"] for turn in messages) for _, messages in conversations(data)]
    talk = [
        "\n".join(without_markers(m["content"]) for m in turns)
        for _, turns in generate(FAMILIES, settings.generated_talk // 10, 0)
    ]
    stories = [plain_story(rng) for _ in range(settings.generated_stories // 20)]
    for pool in (prose, chat, talk + stories):
        rng.shuffle(pool)
        left = settings.tokenizer_characters
        for text in pool:
            left -= len(text)
            if left < 0:
                break
            yield text


# -- tokenising, in worker processes ------------------------------------------------------------------------

Job = tuple[str, str, object]  # source, what to do, its input
Result = tuple[str, np.ndarray, np.ndarray, np.ndarray | None]
_encoder = cache(load)  # in workers alone, each of which lives for one tokenizer


def contents(job: Job) -> Iterator[str | list[Message]]:
    """The texts or conversations that a job stands for."""
    source, what, given = job
    if what == "texts":
        assert isinstance(given, list)
        yield from given
    elif what == "stories":
        assert isinstance(given, tuple)
        rng = Random(f"{source} {given}")
        yield from (plain_story(rng) for _ in range(given[1]))
    else:
        yield from _talks(what, given, source)


def _in_worker(folder: Path, job: Job) -> Result:
    return _work(_encoder(folder), job)


def _work(encoder: Encoder, job: Job) -> Result:
    bos = encoder.special("<|bos|>")
    documents: list[list[int]] = []
    masks: list[list[int]] = []
    for content in contents(job):
        if isinstance(content, str):
            documents.append([bos, *encoder.encode(content)])
        else:
            ids, mask = render(content, encoder)
            documents.append(ids)
            masks.append(mask)
    lengths = np.array([len(ids) for ids in documents], dtype=np.int32)
    tokens = np.fromiter((i for ids in documents for i in ids), dtype=np.uint16, count=int(lengths.sum()))
    if not masks:
        return job[0], tokens, lengths, None
    return (
        job[0],
        tokens,
        lengths,
        np.fromiter((m for mask in masks for m in mask), dtype=np.uint8, count=len(tokens)),
    )


def _talks(what: str, given: object, source: str) -> Iterable[list[Message]]:
    if what == "conversations":
        assert isinstance(given, list)
        return given
    assert isinstance(given, tuple)
    families = STORY_FAMILIES if what == "tales" else FAMILIES
    return (messages for _, messages in generate(families, given[1], f"{source} {given}"))


def jobs(data: Path, settings: Settings) -> Iterator[Job]:
    """The work in a fixed order, so that the outcome does not depend on the number of workers."""
    for what, items in (("texts", plain_texts(data)), ("conversations", conversations(data))):
        waiting: dict[str, list[object]] = {}
        for source, item in items:
            chunk = waiting.setdefault(source, [])
            chunk.append(item)
            if len(chunk) == CHUNK:
                yield source, what, waiting.pop(source)
        for source, chunk in waiting.items():
            yield source, what, chunk
    for source, what, count in (
        ("generated_stories", "stories", settings.generated_stories),
        ("generated_tales", "tales", settings.generated_tales),
        ("generated_talk", "talk", settings.generated_talk),
    ):
        for at in range(0, count, CHUNK):
            yield source, what, (settings.seed * 1_000_003 + at, min(CHUNK, count - at))


def prepare(data: Path, settings: Settings, tokenizer: Path, folder: Path, workers: int) -> dict[str, int]:
    """Tokenise everything into `folder`; returns the tokens of each source.

    Raises DataError for data that are damaged or lack a source of the settings, WriteError for a full disk.
    """
    check_sources(data, settings)
    parts: dict[str, list[Result]] = {}
    if workers > 1:
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            for result in pool.imap(partial(_in_worker, tokenizer), jobs(data, settings)):
                parts.setdefault(result[0], []).append(result)
    else:
        for result in map(partial(_work, load(tokenizer)), jobs(data, settings)):
            parts.setdefault(result[0], []).append(result)
    sizes = {name: int(sum(len(r[1]) for r in results)) for name, results in sorted(parts.items())}
    _check_found(data, settings, sizes)
    for name, results in sorted(parts.items()):
        _save(folder / f"{name}.tokens.npy", [r[1] for r in results])
        _save(folder / f"{name}.lengths.npy", [r[2] for r in results])
        _save(folder / f"{name}.mask.npy", [r[3] for r in results if r[3] is not None])
    write_text(folder / SIZES_FILE, json.dumps(sizes, indent=1))  # last: it says that all are there
    return sizes


def _save(path: Path, parts: list[np.ndarray]) -> None:
    """One array of the parts; none of a source that has none."""
    path.unlink(missing_ok=True)
    if parts:
        whole = np.concatenate(parts)
        write_whole(path, lambda file: np.save(file, whole))


def open_sources(folder: Path) -> dict[str, Source]:
    """The sources that `prepare` wrote. Raises DataError for files that are damaged."""
    try:
        sizes = json.loads((folder / SIZES_FILE).read_text("utf-8"))
        sources = {name: _open(folder, name, size) for name, size in sizes.items()}
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"the token files in {folder} are damaged ({error}); remove that folder to have them made anew"
        ) from error
    return sources


def _open(folder: Path, name: str, size: int) -> Source:
    tokens = np.load(folder / f"{name}.tokens.npy", mmap_mode="r")
    lengths = np.load(folder / f"{name}.lengths.npy")
    path = folder / f"{name}.mask.npy"
    mask = np.load(path, mmap_mode="r") if path.exists() else None
    if not len(tokens) == size == int(lengths.sum()) or (mask is not None and len(mask) != size):
        raise ValueError(f"{name} does not have its {size} tokens")
    return Source(name, tokens, lengths, mask)
