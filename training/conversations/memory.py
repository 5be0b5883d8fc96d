"""What the user told earlier in the conversation is known later in it."""

from collections.abc import Callable
from functools import cache
from random import Random

from training.conversations.arithmetic import sum_or_difference
from training.conversations.dates import MONTHS
from training.conversations.exchange import Exchange, Maker, Message, messages
from training.conversations.geography import capital
from training.conversations.phrases import say
from training.conversations.phrasing import as_typed, capitalise, carelessly
from training.conversations.stories.cast import ANIMALS, BOYS, COLOURS, FOODS, GIRLS, PET_NAMES
from training.conversations.tables import table
from training.conversations.talk import invented_word, maker, unheard_word

_EVERYDAY = {row[0]: tuple(row[1].split(" | ")) for row in table("everyday")}
_RELATIVES = (
    "brother", "sister", "mother", "father", "son", "daughter", "cousin", "aunt", "uncle", "friend",
    "best friend", "neighbor", "teacher", "grandmother", "grandfather", "boss",
)  # fmt: skip
# Asked between telling and asking back; none of them asks about the user.
_BETWEEN: tuple[Maker, ...] = (maker("world"), maker("advice"), sum_or_difference, capital)


@cache
def names() -> tuple[str, ...]:
    """First names of many countries."""
    return tuple(name for row in table("names") for name in row[1].split(" | "))


def first_name(rng: Random) -> str:
    """A first name; a third of them are invented, as those can only be copied from what the user said."""
    roll = rng.random()
    if roll < 0.2:
        return capitalise(unheard_word(rng))
    if roll < 0.33:
        return capitalise(invented_word(rng))
    return rng.choice(names() if roll < 0.8 else (*GIRLS, *BOYS, *_EVERYDAY["names"]))


def _place(rng: Random) -> str:
    return rng.choice(_EVERYDAY["city"]) if rng.random() < 0.6 else capitalise(unheard_word(rng))


_VALUES: dict[str, Callable[[Random], str]] = {
    "name": first_name,
    "age": lambda rng: str(rng.randint(5, 90)),
    "colour": lambda rng: rng.choice(COLOURS),
    "pet": lambda rng: rng.choice(PET_NAMES) if rng.random() < 0.5 else first_name(rng),
    "food": lambda rng: rng.choice(FOODS),
    "city": _place,
    "job": lambda rng: rng.choice(_EVERYDAY["job"]),
    "hobby": lambda rng: rng.choice(_EVERYDAY["hobby"]),
    "relative": first_name,
    "month": lambda rng: rng.choice(MONTHS),
    "number": lambda rng: str(rng.randint(2, 9999)),
    "word": unheard_word,
}
_WEIGHTS = {"name": 9.0, "pet": 2.0, "city": 1.5, "relative": 1.5}


def _say(rng: Random, heading: str, slots: dict[str, str]) -> str:
    return capitalise(say(rng, "memory", heading, slots))


def _told(rng: Random, kind: str, slots: dict[str, str]) -> list[Exchange]:
    """The turn in which the user tells it; a name may be put right in the next."""
    ending = rng.choices(("", " and how", " and yours"), (8, 1, 1))[0] if kind == "name" else ""
    turns = [
        Exchange(
            carelessly(rng, _say(rng, f"{kind} say{ending}", slots)),
            _say(rng, f"{kind} reply{ending}", slots),
        )
    ]
    if kind == "name" and rng.random() < 0.05:
        slots["v"] = first_name(rng)
        turns.append(Exchange(_say(rng, "name wrong", slots), _say(rng, "name wrong reply", slots)))
    return turns


def _asked(rng: Random, kind: str, slots: dict[str, str]) -> Exchange:
    if kind == "pet" and rng.random() < 0.25:
        kind = "kind"
    return Exchange(as_typed(rng, _say(rng, f"{kind} ask", slots)), _say(rng, f"{kind} answer", slots))


def told(rng: Random) -> list[Message]:
    """The user says something about themselves, or two things, and asks for it later."""
    kinds: list[str] = []
    while len(kinds) < rng.choice((1, 1, 1, 2)):
        kind = rng.choices(list(_VALUES), [_WEIGHTS.get(kind, 1.0) for kind in _VALUES])[0]
        if kind not in kinds:
            kinds.append(kind)
    slots = {"pet": rng.choice(ANIMALS[:24]), "who": rng.choice(_RELATIVES)}
    facts = {kind: {**slots, "v": _VALUES[kind](rng)} for kind in kinds}
    turns = [turn for kind in kinds for turn in _told(rng, kind, facts[kind])]
    for _ in range(rng.choice((0, 0, 0, 1, 1, 2))):
        turns.append(
            rng.choice(_BETWEEN)(rng)
            if rng.random() < 0.8
            else Exchange(_say(rng, "small talk", slots), _say(rng, "small talk reply", slots))
        )
    if rng.random() < 0.1:  # what was not told is not known
        other = rng.choice([kind for kind in ("name", "age", "city", "job", "food") if kind not in kinds])
        turns.append(Exchange(as_typed(rng, _say(rng, f"{other} ask", slots)), _say(rng, "not told", slots)))
    rng.shuffle(kinds)
    turns += [_asked(rng, kind, facts[kind]) for kind in kinds[: rng.choice((1, 2))]]
    if rng.random() < 0.08:
        turns.append(Exchange(_say(rng, "thanks", slots), _say(rng, "thanks reply", slots)))
    return messages(*turns)
