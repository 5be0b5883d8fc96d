"""Conversations written by hand, several turns each, one file a topic (`*.txt`), expanded by templates.

`parsing` says how the files are written. `SHARED` slots can be used everywhere.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from random import Random

from training.conversations.exchange import Message
from training.conversations.phrasing import carelessly, expand
from training.conversations.stories.cast import ANIMALS, BOYS, COLOURS, FOODS, GIRLS
from training.conversations.tables import table
from training.conversations.talk import invented_word
from training.conversations.written.parsing import Written, read

FOLDER = Path(__file__).parent
_EVERYDAY = {row[0]: tuple(row[1].split(" | ")) for row in table("everyday")}
_FIRST_NAMES = (*GIRLS, *BOYS, *_EVERYDAY["names"])
SHARED: Mapping[str, tuple[str, ...]] = {
    "name": _FIRST_NAMES,
    "friend": _FIRST_NAMES,
    "animal": ANIMALS,
    "food": FOODS,
    "color": COLOURS,
    **{slot: _EVERYDAY[slot] for slot in ("city", "country", "job", "hobby", "thing")},
}


def draw_slots(rng: Random, written: Written, shared: Mapping[str, Sequence[str]] = SHARED) -> dict[str, str]:
    """One value for every slot that `written` can use; the friend never has the user's name."""
    slots = {slot: rng.choice(values) for slot, values in shared.items()}
    while slots["friend"] == slots["name"] and len(set(shared["friend"])) > 1:
        slots["friend"] = rng.choice(shared["friend"])
    for names, options in written.slots:
        slots.update(zip(names, rng.choice(options), strict=True))
    return slots


def spoken(rng: Random, written: Written, slots: Mapping[str, str]) -> list[Message]:
    """One reading of `written` with these slots. Raises KeyError for a slot without a value."""

    def text(template: str) -> str:
        return expand(rng, template, slots).replace("\\n", "\n").strip()

    turns: list[Message] = []
    if written.system is not None:
        turns.append({"role": "system", "content": text(written.system)})
    for at, alternatives in enumerate(written.turns):
        content = text(rng.choice(alternatives))
        if at % 2:
            turns.append({"role": "assistant", "content": content})
            continue
        if '"' not in content and "\n" not in content:
            # Not `as_typed`: words in front such as "Can you help me?" suit few turns of a chat.
            content = carelessly(rng, content)
        turns.append({"role": "user", "content": content})
    return turns


def talk(rng: Random) -> list[Message]:
    """A conversation out of all files, each as likely as another."""
    written = rng.choice(library())
    slots = draw_slots(rng, written)
    if rng.random() < 0.15 and "name" not in {name for names, _ in written.slots for name in names}:
        slots["name"] = invented_word(rng).capitalize()  # a name that was never seen must be copied, too
    return spoken(rng, written, slots)


@cache
def library() -> tuple[Written, ...]:
    """Every conversation of every file, in the order of their names."""
    paths = sorted(FOLDER.glob("*.txt"))
    return tuple(one for path in paths for one in read(path.read_text("utf-8"), path.name, SHARED))
