"""What training leaves out so that the evaluation is held out by document.

A document is a piece of a book or an article, the story passage of a reading question, or a quiz question.
The shards hold whole books and articles out, but some text reached the data twice: the same tale from another
edition, a story passage under another question, an article's head as an answer. So whatever shares a sentence
with a held-out document is left out of training, and so is a quiz question that is asked again.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from training.conversations.exchange import Message
from training.shards import field, read_shard, turns

PROSE, CHAT = "eval-pretrain.jsonl.xz", "eval-chat.jsonl.xz"
QUIZ = ("story_qa", "trivia", "nq")  # the kinds of chat that items are made of
SENTENCE_WORDS = 8  # shorter sentences are common property
# What the data put around a passage to make a question of it.
_FRAMES = ("Here is a story:", "Read this part of a story and answer the question.")
_ASKED = re.compile(r"^(?:Please answer|Question):\s*")
_TO_SPACE = {at: " " for at in range(128) if not chr(at).isalnum()} | {ord("'"): None}
_SENTENCES = _TO_SPACE | {ord(end): "\n" for end in '.!?\n"'}


def sentences(text: str) -> list[str]:
    """Lower-case words of every sentence and line of `text`."""
    return [" ".join(line.split()) for line in text.lower().translate(_SENTENCES).split("\n")]


def passage_and_question(text: str) -> tuple[str, str]:
    """The two parts of a reading question, without the frame around them."""
    parts = text.strip().split("\n\n")
    if len(parts) > 1 and parts[0] in _FRAMES:
        parts = parts[1:]
    return "\n\n".join(parts[:-1]), _ASKED.sub("", parts[-1])


def everyday(text: str) -> bool:
    """Whether a quiz question is so short that anyone might ask it; such make no items."""
    return len(stem(text).split()) < SENTENCE_WORDS


def stem(text: str) -> str:
    """A quiz question without its options."""
    return text.split("\nA)")[0].strip()


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Sentences of the held-out documents, of at least SENTENCE_WORDS words, and whole quiz questions."""

    sentences: frozenset[str]
    questions: frozenset[str]

    @classmethod
    def of(cls, data: Path) -> "HeldOut":
        """From the evaluation's files in `data`; what is not there holds nothing out.

        Raises DataError for a damaged file.
        """
        documents, questions = [], set()
        for item in _items(data / PROSE):
            documents.append(field(data / PROSE, item, "text", str))
        for item in _items(data / CHAT):
            kind, asked = field(data / CHAT, item, "kind", str), turns(data / CHAT, item)[0]["content"]
            if kind not in QUIZ or everyday(asked):
                continue
            if kind == "story_qa":
                documents += passage_and_question(asked)
            else:
                documents.append(stem(asked))
                questions.add(_whole(stem(asked)))
        found = {line for text in documents for line in sentences(text)}
        return cls(
            frozenset(line for line in found if line.count(" ") >= SENTENCE_WORDS - 1),
            frozenset(questions - {""}),
        )

    def shares(self, text: str) -> bool:
        """Whether `text` has a sentence of a held-out document."""
        return bool(self.sentences) and not self.sentences.isdisjoint(sentences(text))

    def touches(self, messages: Iterable[Message]) -> bool:
        """Whether a conversation has such a sentence, or asks a held-out quiz question."""
        return any(
            self.shares(turn["content"])
            or (turn["role"] == "user" and _whole(stem(turn["content"])) in self.questions)
            for turn in messages
        )


def _whole(text: str) -> str:
    return " ".join(text.lower().translate(_TO_SPACE).split())


def _items(path: Path) -> Iterator[dict[str, object]]:
    if path.exists():
        yield from read_shard(path)
