"""The items of the data's files, checked field by field."""

import json
import lzma
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from training.conversations.exchange import Message

T = TypeVar("T")


class DataError(Exception):
    """The data folder lacks something or a shard cannot be read."""


def read_shard(path: Path) -> Iterator[dict[str, object]]:
    """The items of one `.jsonl.xz` file. Raises DataError if it is damaged."""
    try:
        with lzma.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)
    except (lzma.LZMAError, EOFError, OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}") from error


def field(path: Path, item: Mapping[str, object], name: str, kind: type[T]) -> T:
    """A field of a shard's item. Raises DataError, naming the file, where it is not there or another type."""
    value = item.get(name) if isinstance(item, dict) else None
    if not isinstance(value, kind):
        raise DataError(f"{path} has an item without {name} ({kind.__name__}): {str(item)[:80]}")
    return value


def turns(path: Path, item: Mapping[str, object]) -> list[Message]:
    """The messages of a conversation, at least one. Raises DataError, naming the file."""
    messages = field(path, item, "messages", list)
    if not messages:
        raise DataError(f"{path} has an item without messages: {str(item)[:80]}")
    for turn in messages:
        if not isinstance(turn, dict) or not all(
            isinstance(turn.get(key), str) for key in ("role", "content")
        ):
            raise DataError(f"{path} has a message without role and content: {str(turn)[:80]}")
    return messages
