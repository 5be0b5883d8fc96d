"""Who and what can occur in a story: names, kinds, places, objects, food, weather (tables/cast.tsv)."""

from random import Random

from training.conversations.tables import table

CHILDREN = {"she": "girl", "he": "boy"}
_POOLS = {row[0]: tuple(row[1].split(" | ")) for row in table("cast")}
GIRLS, BOYS, PET_NAMES = _POOLS["girls"], _POOLS["boys"], _POOLS["pet names"]
ANIMALS, WONDERS, WORKERS = _POOLS["animals"], _POOLS["wonders"], _POOLS["workers"]
OBJECTS, FOODS, DRINKS = _POOLS["objects"], _POOLS["foods"], _POOLS["drinks"]
COLOURS, SIZES, TRAITS = _POOLS["colours"], _POOLS["sizes"], _POOLS["traits"]
PLACES, HOMES, ELDERS = _POOLS["places"], _POOLS["homes"], _POOLS["elders"]
WEATHERS, DAYS = _POOLS["weathers"], _POOLS["days"]

# Kinds that are always a she or always a he.
PRONOUN_OF = dict.fromkeys(("girl", "princess", "queen", "witch", "fairy", "mermaid", "hen", "cow"), "she")
PRONOUN_OF |= dict.fromkeys(("boy", "prince", "king", "wizard", "knight", "snowman", "fisherman"), "he")


def draw(rng: Random, fixed: dict[str, str] | None = None) -> dict[str, str]:
    """Slots for one story; `fixed` decides some of them (kind, name, object, fkind, place, ...)."""
    slots = dict(fixed or {})
    _draw_hero(rng, slots)
    _draw_friend(rng, slots)
    colour = slots.setdefault("colour", rng.choice(COLOURS))
    for key, pool in (("object", OBJECTS), ("food", FOODS), ("drink", DRINKS), ("place", PLACES),
                      ("home", HOMES), ("elder", ELDERS), ("weather", WEATHERS), ("day", DAYS),
                      ("trait", TRAITS)):  # fmt: skip
        slots.setdefault(key, rng.choice(pool))
    slots.setdefault("adj", rng.choice((colour, f"{rng.choice(SIZES)} {colour}", colour)))
    return slots


def _draw_hero(rng: Random, slots: dict[str, str]) -> None:
    he = slots.get("he") or rng.choice(("he", "she"))
    if "name" in slots and "he" not in slots:
        he = "she" if slots["name"] in GIRLS else "he" if slots["name"] in BOYS else he
    kind = slots.get("kind")
    if kind is None:
        roll = rng.random()
        human = slots.get("name") in GIRLS or slots.get("name") in BOYS
        kind = CHILDREN[he] if human or roll < 0.45 else rng.choice(ANIMALS if roll < 0.85 else WONDERS)
    he = PRONOUN_OF.get(kind, he)
    names = (GIRLS if he == "she" else BOYS) if kind in ("girl", "boy") or rng.random() < 0.3 else PET_NAMES
    slots.setdefault("name", rng.choice(names[::2]))
    slots.update(kind=kind, **_pronouns(he, ""))


def _draw_friend(rng: Random, slots: dict[str, str]) -> None:
    fhe = rng.choice(("he", "she"))
    pool = ANIMALS if rng.random() < 0.75 else (*WONDERS, *WORKERS)
    fkind = slots.setdefault("fkind", rng.choice([k for k in pool if k != slots["kind"]]))
    fhe = PRONOUN_OF.get(fkind, fhe)
    # Not a hero's names, so that a likely name for one is never also the likely one for the other.
    names = [n for n in (*PET_NAMES[1::2], *(GIRLS if fhe == "she" else BOYS)[1::2]) if n != slots["name"]]
    slots.setdefault("friend", rng.choice(names))
    slots.update(_pronouns(fhe, "f"))


def _pronouns(he: str, prefix: str) -> dict[str, str]:
    forms = ("she", "her", "her", "herself") if he == "she" else ("he", "him", "his", "himself")
    return {prefix + key: form for key, form in zip(("he", "him", "his", "himself"), forms, strict=True)}
