"""Talk written by hand: blocks of ways to ask (`? `) and fitting answers (`! `), as templates.

Every question of a block fits every answer of the block.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random

from training.conversations.exchange import Exchange
from training.conversations.phrasing import as_typed, expand

FOLDER = Path(__file__).parent
Block = tuple[tuple[str, ...], tuple[str, ...]]

_SYLLABLES = [
    "zor",
    "vel",
    "quin",
    "tab",
    "mork",
    "lun",
    "fib",
    "dax",
    "pel",
    "gro",
    "nim",
    "bru",
    "kel",
    "vo",
    "sna",
    "tor",
    "wim",
    "ja",
    "plo",
    "rix",
    "zub",
    "trel",
]


@cache
def blocks(name: str) -> tuple[Block, ...]:
    """The blocks of `name`.txt."""
    found: list[Block] = []
    for part in (FOLDER / f"{name}.txt").read_text("utf-8").strip().split("\n\n"):
        lines = part.splitlines()
        asks = tuple(line[2:] for line in lines if line.startswith("? "))
        answers = tuple(line[2:].replace("\\n", "\n") for line in lines if line.startswith("! "))
        if not asks or not answers or len(asks) + len(answers) != len(lines):
            raise ValueError(f"{name}.txt: a block needs `? ` and `! ` lines only: {lines[0]!r}")
        found.append((asks, answers))
    return tuple(found)


def maker(name: str) -> Callable[[Random], Exchange]:
    """A generator of exchanges from `name`.txt."""

    def make(rng: Random) -> Exchange:
        asks, answers = rng.choice(blocks(name))
        slots = _invented(rng)
        return Exchange(
            as_typed(rng, expand(rng, rng.choice(asks), slots)), expand(rng, rng.choice(answers), slots)
        )

    return make


def invented_word(rng: Random) -> str:
    """A word that does not exist, two or three syllables."""
    return "".join(rng.choice(_SYLLABLES) for _ in range(rng.randint(2, 3)))


def _invented(rng: Random) -> dict[str, str]:
    """Names of people, things and places that do not exist."""

    def word() -> str:
        return invented_word(rng)

    first = rng.choice(("Doctor", "Professor", "Mr.", "Mrs.", "Sir", "Captain", "King", word().capitalize()))
    return {"person": f"{first} {word().capitalize()}", "thing": word(), "town": word().capitalize()}
