"""What the settings about keys, hosts and origins may hold."""

import re
from collections.abc import Collection
from pathlib import Path

from app.settings.options import MASK, UsageError

_KEY = re.compile(r"[^\s\x00-\x1f\x7f,#]+")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.\-]*://(\[[0-9a-f:.]+\]|[a-z0-9._\-]+)(:[0-9]{1,5})?")
_ROOT_PATH = re.compile(r"(/[A-Za-z0-9._~\-]+)*")


def key(value: str) -> str:
    """An API key. Its characters are those that a header and a line of a file can carry."""
    if value == MASK:
        raise ValueError("a key that --print-config has hidden has to be filled in again")
    if not _KEY.fullmatch(value):
        raise ValueError("a key may not be empty, and may not hold spaces, commas, '#' or control characters")
    return value


def read_keys(path: str) -> tuple[str, ...]:
    """The keys of a file: one a line, without empty lines and comments. Raises UsageError."""
    flag = "--api-key-file"
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UsageError(f"{flag}: {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{flag}: {path} is not a text in UTF-8") from None
    keys: list[str] = []
    for number, line in enumerate(lines, 1):
        if not (word := line.partition("#")[0].strip()):
            continue
        try:
            keys.append(key(word))
        except ValueError as error:
            raise UsageError(f"{flag}: {path}, line {number}: {error}") from None
    if not keys:
        # Not "everybody may": who names a file wants to lock something.
        raise UsageError(f"{flag}: {path} holds no key")
    return tuple(keys)


def origin(value: str) -> str:
    """A web origin, as browsers write it."""
    if not _ORIGIN.fullmatch(value):
        raise ValueError(f"{value!r} is not an origin such as https://chat.example or http://localhost:3000")
    return value


def root_path(value: str) -> str:
    if not _ROOT_PATH.fullmatch(value):
        raise ValueError(f"{value!r} is not a path such as /llm, without a slash at its end")
    return value


def allowed_hosts(bound: str, more: Collection[str]) -> frozenset[str] | None:
    """The names that a server on the address `bound` answers for; None: any.

    A server that others can reach may have any name, so there only those that were given are checked.
    """
    if "*" in more:
        return None
    own = {"localhost", "127.0.0.1", "[::1]"}
    bound = f"[{bound}]" if ":" in bound else bound
    if not more and bound.lower() not in own and not bound.startswith("127."):
        return None
    return frozenset(own | {bound.lower()} | {name.lower() for name in more})
