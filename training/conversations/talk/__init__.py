"""Talk written by hand: blocks of ways to ask (`? `) and fitting answers (`! `), as templates.

Every question of a block fits every answer of the block.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random

from training.conversations.exchange import Exchange
from training.conversations.phrasing import as_typed, carelessly, expand

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


def maker(name: str, remarks: bool = False) -> Callable[[Random], Exchange]:
    """A generator of exchanges from `name`.txt; nobody puts "Quick question:" in front of `remarks`."""
    typed = carelessly if remarks else as_typed

    def make(rng: Random) -> Exchange:
        asks, answers = rng.choice(blocks(name))
        slots = _invented(rng)
        return Exchange(
            typed(rng, expand(rng, rng.choice(asks), slots)), expand(rng, rng.choice(answers), slots)
        )

    return make


def invented_word(rng: Random) -> str:
    """A word that does not exist, two or three syllables."""
    return "".join(rng.choice(_SYLLABLES) for _ in range(rng.randint(2, 3)))


# Parts of an unheard word; what stands there twice is drawn as often.
_PARTS = tuple(
    tuple(pool.split("|"))
    for pool in (
        "b|bl|br|c|ch|cl|cr|d|dr|f|fl|fr|g|gl|gr|h|j|k|kl|kn|l|m|n|p|ph|pl|pr|qu|r|s|sc|sh|sk|sl|sm|sn|sp|st|"
        "str|sw|t|th|tr|tw|v|w|wh|y|z|",
        "a|a|a|e|e|e|i|i|i|o|o|o|u|u|ai|ea|ee|ei|ia|ie|io|oa|oo|ou|y",
        "||||b|ck|d|ff|g|ll|lt|m|mm|mp|n|n|nd|ng|nk|nn|nt|p|pp|r|r|rd|rk|rt|s|sh|ss|st|t|tt|x|zz",
    )
)


def unheard_word(rng: Random) -> str:
    """A word of four to ten letters that hardly ever exists, out of more parts than `invented_word` has."""
    while True:
        syllables = rng.choice((1, 2, 2, 2, 3))
        word = "".join(rng.choice(pool) for _ in range(syllables) for pool in _PARTS)
        if 4 <= len(word) <= 10:
            return word + rng.choice(("", "", "", "a", "o")) if word[-1] not in "aeiouy" else word


def _invented(rng: Random) -> dict[str, str]:
    """Names of people, things and places that do not exist."""

    def word() -> str:
        return invented_word(rng)

    first = rng.choice(("Doctor", "Professor", "Mr.", "Mrs.", "Sir", "Captain", "King", word().capitalize()))
    return {"person": f"{first} {word().capitalize()}", "thing": word(), "town": word().capitalize()}
