"""Ways to ask and to answer, by topic: text files of templates under headings (`# heading`)."""

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from random import Random

from training.conversations.phrasing import expand

FOLDER = Path(__file__).parent
_POLITE = re.compile(r"(Can|Could|Would|Do|Will) you [^.?!]*\.")


@cache
def headings(topic: str) -> dict[str, tuple[str, ...]]:
    """The templates of `topic`.txt under each heading. Raises ValueError for a heading without templates."""
    found: dict[str, list[str]] = {}
    here: list[str] | None = None
    for line in filter(None, map(str.strip, (FOLDER / f"{topic}.txt").read_text("utf-8").splitlines())):
        if line.startswith("# "):
            here = found.setdefault(line[2:], [])
        elif here is None:
            raise ValueError(f"{topic}.txt: {line!r} stands before the first heading")
        else:
            here.append(line)
    if empty := [name for name, lines in found.items() if not lines]:
        raise ValueError(f"{topic}.txt: nothing stands under {empty[0]!r}")
    return {name: tuple(lines) for name, lines in found.items()}


def say(rng: Random, topic: str, heading: str, slots: Mapping[str, str] | None = None) -> str:
    """One random wording under a heading, its slots filled; polite questions end with a question mark."""
    text = expand(rng, rng.choice(headings(topic)[heading]), slots).replace("  ", " ").strip()
    return text[:-1] + "?" if _POLITE.fullmatch(text) else text
