"""Files that are there whole or not at all, whatever ends the program or fills the disk."""

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO


class ReadError(Exception):
    """A file could not be read; the message names it."""


class WriteError(Exception):
    """A file could not be written; the message names it. What was there before is intact."""


def write_whole(path: Path, write: Callable[[BinaryIO], object], waiting: Path | None = None) -> None:
    """Have `write` fill a file beside `path` (`waiting`, or PATH.tmp), bring it to the disk, and only then
    put it in the place of `path`. Raises WriteError.
    """
    waiting = waiting or path.with_name(f"{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with waiting.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(waiting, path)
        _sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            waiting.unlink(missing_ok=True)
        raise WriteError(f"cannot write {path}: {error.strerror or error}") from error


def write_text(path: Path, text: str) -> None:
    """UTF-8 text, whole or not at all. Raises WriteError."""
    write_whole(path, lambda file: file.write(text.encode()))


def read_table(path: Path) -> dict[str, object]:
    """The JSON object in a file. Raises ReadError."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ReadError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    if not isinstance(found, dict):
        raise ReadError(f"cannot read {path}: it is not a JSON object")
    return found


def _sync_folder(folder: Path) -> None:
    """A new name is safe once its folder is on the disk."""
    if os.name == "nt":  # which has no such thing
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
