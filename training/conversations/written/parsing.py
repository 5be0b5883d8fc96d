"""The files of conversations written by hand.

Conversations are parted by a blank line. A conversation is, line by line:

    ~ system text                    (at most one, first)
    @ pet: dog|cat|rabbit            (a slot: one value is drawn for the whole conversation)
    @ animal,sound: cow,moo|dog,woof (slots drawn together)
    ? I have {a pet}.                (the user's turn; lines in a row are alternatives, one is drawn)
    ! How nice! [Is the {pet} old?|] (the assistant's turn; alternatives likewise)

User and assistant take turns, the user first, the assistant last. Lines are templates of `phrasing.expand`;
the two signs `\\n` are a line break.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from random import Random

from training.conversations.phrasing import expand

Options = tuple[tuple[str, ...], ...]
_SLOT = re.compile(r"\{(?:[aA] )?(\w+)\}")


@dataclass(frozen=True, slots=True)
class Written:
    """One conversation as written: its slots with their values, and the alternatives of every turn.

    `slots` pairs names that are drawn together with the values they can have together.
    """

    where: str
    system: str | None
    slots: tuple[tuple[tuple[str, ...], Options], ...]
    turns: tuple[tuple[str, ...], ...]


def read(text: str, name: str, shared: Iterable[str] = ()) -> list[Written]:
    """The conversations in `text`, from the file `name`; `shared` slots are known without an `@` line.

    Raises ValueError with the file's name and the line for a malformed conversation.
    """
    found: list[Written] = []
    block: list[tuple[int, str]] = []
    for number, line in enumerate([*text.splitlines(), ""], 1):
        if line.strip():
            block.append((number, line))
        elif block:
            found.append(_conversation(block, name, set(shared)))
            block = []
    return found


def _conversation(block: list[tuple[int, str]], name: str, known: set[str]) -> Written:
    system: str | None = None
    slots: list[tuple[tuple[str, ...], Options]] = []
    turns: list[list[str]] = []
    mark = ""
    for number, line in block:
        where = f"{name}:{number}"
        last, mark, rest = mark, line[:2], line[2:].strip()
        if mark not in ("~ ", "@ ", "? ", "! ") or not rest:
            raise ValueError(f"{where}: a line needs `~ `, `@ `, `? ` or `! ` and text: {line!r}")
        if (mark == "~ " and last) or (mark == "@ " and turns) or (mark == "! " and not turns):
            raise ValueError(
                f"{where}: `{mark[0]}` out of place; the order is `~`, `@`, then `?` and `!` in turn"
            )
        if mark == "@ ":
            slots.append(_slots(rest, where))
            known.update(slots[-1][0])
            continue
        if mark == "~ ":
            system = rest
            continue
        if not turns and system is not None:  # its slots are declared after it
            _check(system, known, f"{name}:{block[0][0]}")
        _check(rest, known, where)
        if mark == last:
            turns[-1].append(rest)
        else:
            turns.append([rest])
    if mark != "! ":
        raise ValueError(f"{name}:{block[-1][0]}: a conversation ends with the assistant's turn")
    return Written(f"{name}:{block[0][0]}", system, tuple(slots), tuple(map(tuple, turns)))


def _slots(text: str, where: str) -> tuple[tuple[str, ...], Options]:
    head, colon, tail = text.partition(":")
    names = tuple(part.strip() for part in head.split(","))
    # A single slot's values may hold commas.
    values = [option.split(",") if len(names) > 1 else [option] for option in tail.split("|")]
    options = tuple(tuple(value.strip() for value in option) for option in values)
    if not colon or not all(re.fullmatch(r"[a-z]\w*", slot) for slot in names):
        raise ValueError(f"{where}: slots are written `@ name: value|value`: {text!r}")
    if any(len(option) != len(names) or "" in option for option in options):
        raise ValueError(f"{where}: every alternative needs {len(names)} value(s): {text!r}")
    return names, options


def _check(template: str, known: set[str], where: str) -> None:
    """Refuses unknown slots and brackets that do not match."""
    for slot in _SLOT.findall(template):
        if slot not in known and slot[0].lower() + slot[1:] not in known:
            raise ValueError(f"{where}: unknown slot {{{slot}}}")
    try:
        expand(Random(0), _SLOT.sub("x", template))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    if "{" in (rest := _SLOT.sub("", template)) or "}" in rest:
        raise ValueError(f"{where}: a brace outside of a slot: {template!r}")
