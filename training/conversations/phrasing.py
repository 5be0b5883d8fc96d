"""Templates: `[one|another]` picks an alternative (nesting allowed), `{slot}` inserts a value.

`{a slot}` puts the right article in front, `{Slot}` and `{A slot}` start with a capital letter.
"""

import re
from collections.abc import Mapping
from functools import cache
from random import Random

Node = str | tuple["tuple[Node, ...]", ...]
_SLOT = re.compile(r"\{([aA] )?(\w+)\}")
# Words whose first letter misleads about the article.
_AN = ("hour", "honest")
_A = ("uni", "one", "use", "eu")
# What a sentence may begin with to have a "Please" put in front.
_IMPERATIVES = frozenset(
    [
        "Add",
        "Arrange",
        "Calculate",
        "Change",
        "Choose",
        "Continue",
        "Convert",
        "Count",
        "Cut",
        "Define",
        "Describe",
        "Divide",
        "Explain",
        "Find",
        "Finish",
        "Give",
        "List",
        "Make",
        "Multiply",
        "Name",
        "Order",
        "Pick",
        "Put",
        "Reverse",
        "Say",
        "Show",
        "Solve",
        "Sort",
        "Spell",
        "Start",
        "Subtract",
        "Take",
        "Tell",
        "Think",
        "Turn",
        "Use",
        "Write",
    ]
)


def article(noun: str) -> str:
    """`a` or `an`, by the sound that `noun` starts with."""
    word = noun.lower()
    if word.startswith(_AN):
        return "an"
    if word.startswith(_A):
        return "a"
    return "an" if word[:1] in "aeiou" else "a"


def capitalise(text: str) -> str:
    """`text` with its first letter in upper case; the rest is left alone."""
    return text[:1].upper() + text[1:]


def expand(rng: Random, template: str, slots: Mapping[str, str] | None = None) -> str:
    """One random reading of `template`, with its slots filled. Raises KeyError for an unknown slot."""
    text = _choose(rng, _parse(template))
    return _SLOT.sub(lambda match: _fill(match, slots or {}), text)


def _fill(match: re.Match[str], slots: Mapping[str, str]) -> str:
    lead, key = match.group(1), match.group(2)
    upper = key not in slots and key[0].isupper()
    value = slots[key[0].lower() + key[1:]] if upper else slots[key]
    if lead:
        value = f"{article(value)} {value}"
        upper = lead == "A "
    return capitalise(value) if upper else value


def _choose(rng: Random, nodes: tuple[Node, ...]) -> str:
    return "".join(n if isinstance(n, str) else _choose(rng, n[rng.randrange(len(n))]) for n in nodes)


@cache
def _parse(template: str) -> tuple[Node, ...]:
    nodes, end = _sequence(template, 0)
    if end != len(template):
        raise ValueError(f"unbalanced brackets in template: {template!r}")
    return nodes


def _sequence(text: str, start: int) -> tuple[tuple[Node, ...], int]:
    """Parse until an unmatched `|` or `]`; returns the nodes and where it stopped."""
    nodes: list[Node] = []
    literal = start
    at = start
    while at < len(text) and text[at] not in "|]":
        if text[at] != "[":
            at += 1
            continue
        if at > literal:
            nodes.append(text[literal:at])
        options: list[tuple[Node, ...]] = []
        while True:
            option, at = _sequence(text, at + 1)
            options.append(option)
            if at >= len(text):
                raise ValueError(f"unbalanced brackets in template: {text!r}")
            if text[at] == "]":
                break
        nodes.append(tuple(options))
        at += 1
        literal = at
    if at > literal:
        nodes.append(text[literal:at])
    return tuple(nodes), at


def as_typed(rng: Random, text: str) -> str:
    """What a person might really type for `text`: sometimes no capital, no full stop, or a polite word."""
    if rng.random() < 0.08 and not text.lower().startswith(("please", "hi", "hey", "hello", "thank")):
        lead = rng.choice(("Please ", "Hey, ", "Can you help me? ", "OK. ", "So, "))
        if lead == "Please " and text.split(" ")[0] not in _IMPERATIVES:
            lead = "Hey, "
        small = lead[-2] not in ".?" and not re.match(r"I\b", text)
        text = lead + (text[:1].lower() + text[1:] if small else text)
    return carelessly(rng, text)


def carelessly(rng: Random, text: str) -> str:
    """`text` as a hasty person types it: sometimes no capital or no full stop."""
    roll = rng.random()
    if roll < 0.15:
        text = text.lower()
    elif roll < 0.22:
        text = text[:1].lower() + text[1:]
    if rng.random() < 0.18:
        text = text.rstrip("?.! ") or text
    return text.rstrip()


def joined(items: list[str], last: str = "and") -> str:
    """`a, b, and c`; two items need no comma."""
    if len(items) < 3:
        return f" {last} ".join(items)
    return ", ".join(items[:-1]) + f", {last} {items[-1]}"
