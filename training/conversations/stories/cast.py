"""Who and what can occur in a story: pools in tables/cast.tsv, what fits a hero in heroes.tsv.

What fits is drawn in skewed order, so that the likeliest name, home and friend differ from hero to hero.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import TypeVar
from zlib import crc32

from training.conversations.tables import table

_T = TypeVar("_T")
CHILDREN = {"she": "girl", "he": "boy"}
_POOLS = {row[0]: tuple(row[1].split(" | ")) for row in table("cast")}
GIRLS, BOYS, PET_NAMES = _POOLS["girls"], _POOLS["boys"], _POOLS["pet names"]
ANIMALS, WONDERS, WORKERS = _POOLS["animals"], _POOLS["wonders"], _POOLS["workers"]
OBJECTS, FOODS, DRINKS = _POOLS["objects"], _POOLS["foods"], _POOLS["drinks"]
COLOURS, SIZES, TRAITS = _POOLS["colours"], _POOLS["sizes"], _POOLS["traits"]
PLACES, HOMES, ELDERS = _POOLS["places"], _POOLS["homes"], _POOLS["elders"]
WEATHERS, DAYS, SCENES = _POOLS["weathers"], _POOLS["days"], _POOLS["scenes"]
BUILDINGS = _POOLS["buildings"]
_DEEDS = {"fear": _POOLS["fears"], "skill": _POOLS["skills"], "wish": _POOLS["wishes"]}

# Kinds that are always a she or always a he.
PRONOUN_OF = dict.fromkeys(("girl", "princess", "queen", "witch", "fairy", "mermaid", "hen", "cow"), "she")
PRONOUN_OF |= dict.fromkeys(("boy", "prince", "king", "wizard", "knight", "snowman", "fisherman"), "he")

_MARKED = re.compile(r"(.+?)(?: \((she|he)\))?")
_SWIMMERS = frozenset(
    ("whale", "dolphin", "seal", "otter", "duck", "swan", "goose", "penguin", "frog", "beaver", "turtle",
     "octopus", "crab", "mermaid", "hippo", "crocodile")
)  # fmt: skip
_FLYERS = frozenset(
    ("owl", "bat", "crow", "sparrow", "robin", "parrot", "swan", "goose", "duck", "bee", "butterfly",
     "ladybug", "dragon", "fairy", "ghost")
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Hero:
    """What fits a kind of hero; the first of each is the likeliest. A name may settle the pronoun."""

    names: tuple[tuple[str, str | None], ...]
    homes: tuple[str, ...]
    friends: tuple[str, ...]
    elders: tuple[str, ...]


@cache
def heroes() -> dict[str, Hero]:
    """Kind -> what fits it. Raises ValueError for a name that is no name."""
    found = {}
    for kind, names, homes, friends, elder in table("heroes"):
        marked = [] if names == "-" else [_MARKED.fullmatch(name) for name in names.split(" | ")]
        if not all(marked):
            raise ValueError(f"heroes.tsv: {kind!r} has a name that cannot be read: {names!r}")
        wanted = PRONOUN_OF.get(kind)
        pairs = tuple((name[1], name[2] or wanted) for name in marked if name is not None)
        pairs = tuple(pair for pair in pairs if wanted in (None, pair[1]))
        elders = ELDERS if elder == "-" else (elder,)
        found[kind] = Hero(pairs, tuple(homes.split(" | ")), tuple(friends.split(" | ")), elders)
    return found


def favoured(rng: Random, pool: Sequence[str], key: str, share: float = 0.4) -> str:
    """One of `pool`, the same one for the same `key` in `share` of all draws."""
    return pool[crc32(key.encode()) % len(pool)] if rng.random() < share else rng.choice(pool)


def draw(rng: Random, fixed: dict[str, str] | None = None, subject: str = "") -> dict[str, str]:
    """Slots for one story; `fixed` decides some of them (kind, name, object, fkind, place, ...).

    What the hero fears, learns or wishes is drawn only where it is the plot's `subject`.
    """
    slots = dict(fixed or {})
    _draw_hero(rng, slots)
    _draw_friend(rng, slots)
    kind = slots["kind"]
    hero = heroes()[kind]
    colour = slots.setdefault("colour", rng.choice(COLOURS))
    if "home" not in slots:
        anywhere = kind in ("girl", "boy") and rng.random() < 0.4
        slots["home"] = rng.choice(HOMES) if anywhere else _first(rng, hero.homes)
    for key, pool in (("elder", hero.elders), ("trait", TRAITS), ("place", PLACES), ("food", FOODS)):
        if key not in slots:
            slots[key] = favoured(rng, pool, kind + key)
    for key, pool in (("object", OBJECTS), ("building", BUILDINGS), ("drink", DRINKS), ("scene", SCENES),
                      ("weather", WEATHERS), ("day", DAYS)):  # fmt: skip
        if key not in slots:
            slots[key] = rng.choice(pool)
    while subject in _DEEDS and subject not in slots:
        drawn = rng.choice(_DEEDS[subject])
        if not _odd(drawn, slots):
            slots[subject] = drawn
    adj = slots.setdefault("adj", f"{rng.choice(SIZES)} {colour}" if rng.random() < 0.3 else colour)
    slots.setdefault("thing", slots["object"] if rng.random() < 0.5 else f"{adj} {slots['object']}")
    return slots


def _odd(drawn: str, slots: dict[str, str]) -> bool:
    """Whether it is odd for this hero or this friend: a bat afraid of bats, a bird that wishes to fly."""
    kind, friend = slots["kind"], slots["fkind"]
    if kind in drawn or friend in drawn:
        return True
    swims = kind in _SWIMMERS and re.search(r"\b(swim|dive|sea|water|waves)\b", drawn)
    return bool(swims) or (kind in _FLYERS and bool(re.search(r"\b(fly|high|cloud)\b", drawn)))


def _first(rng: Random, pool: Sequence[_T]) -> _T:
    """One of `pool`; the first of four in half of all draws, then fewer and fewer."""
    return pool[int(len(pool) * rng.random() ** 2)]


def _draw_hero(rng: Random, slots: dict[str, str]) -> None:
    he = slots.get("he") or rng.choice(("he", "she"))
    if "name" in slots and "he" not in slots:
        he = "she" if slots["name"] in GIRLS else "he" if slots["name"] in BOYS else he
    kind = slots.get("kind")
    if kind is None:
        roll = rng.random()
        human = slots.get("name") in GIRLS or slots.get("name") in BOYS
        kind = CHILDREN[he]
        if not human and roll > 0.4:
            kind = _other(rng, ANIMALS if roll < 0.85 else WONDERS, slots.get("fkind", ""))
    he = PRONOUN_OF.get(kind, he)
    if "name" not in slots:
        names, roll = heroes()[kind].names, rng.random()
        if names and roll < 0.88:
            slots["name"], settled = _first(rng, names)
            he = settled or he
        else:
            people = (GIRLS if he == "she" else BOYS)[::2]
            # A child whose name begins like its toy: the toy decides what the likeliest name is.
            alike = [name for name in people if name[0].lower() == slots.get("object", "-")[0]]
            slots["name"] = _first(rng, alike if alike and rng.random() < 0.6 else people)
    slots.update(kind=kind, **_pronouns(he, ""))


def _draw_friend(rng: Random, slots: dict[str, str]) -> None:
    kind, fhe = slots["kind"], rng.choice(("he", "she"))
    if "fkind" not in slots:
        pool = ANIMALS if rng.random() < 0.75 else (*WONDERS, *WORKERS)
        fitting = heroes()[kind].friends
        # The likeliest kind is far ahead: else the hero's own wins where the likeliest word is taken.
        slots["fkind"] = _first(rng, fitting) if rng.random() < 0.7 else _other(rng, pool, kind)
    fkind = slots["fkind"]
    fhe = PRONOUN_OF.get(fkind, fhe)
    if "friend" not in slots:
        known = heroes().get(fkind)
        named = [pair for pair in (known.names if known else ()) if pair[0] != slots["name"]]
        if named and rng.random() < 0.85:
            slots["friend"], settled = _first(rng, named)
            fhe = settled or fhe
        else:
            # Not a hero's names, so that a likely name for one is never also the likely one for the other.
            slots["friend"] = _other(rng, (GIRLS if fhe == "she" else BOYS)[1::2], slots["name"])
    slots.update(_pronouns(fhe, "f"))


def _other(rng: Random, pool: Sequence[str], taken: str) -> str:
    while (drawn := rng.choice(pool)) == taken:
        pass
    return drawn


def _pronouns(he: str, prefix: str) -> dict[str, str]:
    forms = ("she", "her", "her", "herself") if he == "she" else ("he", "him", "his", "himself")
    return {prefix + key: form for key, form in zip(("he", "him", "his", "himself"), forms, strict=True)}
