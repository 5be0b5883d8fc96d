"""Lists on demand: so many things of a kind, in the form that was asked for."""

from random import Random

from training.conversations.arithmetic import WORDS
from training.conversations.exchange import Exchange
from training.conversations.phrasing import as_typed, capitalise, joined
from training.conversations.stories.cast import ANIMALS
from training.conversations.tables import table

_ASK = (
    "Name {n} {c}.", "List {n} {c}.", "Give me {n} {c}.", "Tell me {n} {c}.", "Can you name {n} {c}?",
    "What are {n} {c}?", "Write down {n} {c}.", "{n} {c}, please.", "Please name {n} {c}.", "I need {n} {c}.",
    "Can you give me {n} {c}?", "Could you name {n} {c}?", "Think of {n} {c}.", "Give me a list of {n} {c}.",
    "Say {n} {c}.", "Do you know {n} {c}?", "Give me the names of {n} {c}.",
)  # fmt: skip
_FORMS = ("as a list", "as a numbered list", "with commas", "one per line", "in a list")
_POPULAR = ("animals", "colors", "colours", "fruits", "vegetables", "countries", "birds", "cities")


def listing(rng: Random) -> Exchange:
    """So many members of a category."""
    rows = table("lists")
    category, joined_items = rng.choice(rows)
    if rng.random() < 0.4:
        category, joined_items = rng.choice([row for row in rows if row[0] in _POPULAR])
    items = joined_items.split(", ")
    if category == "animals" and rng.random() < 0.5:
        items = list(ANIMALS)
    count = min(rng.choices((1, 2, 3, 4, 5, 6), (1, 3, 9, 3, 5, 1))[0], len(items))
    chosen = rng.sample(items, count)
    number = WORDS[count] if rng.random() < 0.75 else str(count)
    if count == 1:
        return Exchange(
            as_typed(
                rng, rng.choice((f"Name one of the {category}.", f"Give me one example of {category}."))
            ),
            capitalise(chosen[0]) + ".",
            capitalise(chosen[0]),
        )
    ask = capitalise(rng.choice(_ASK).format(n=number, c=category))
    if rng.random() < 0.2:
        form = rng.choice(_FORMS)
        ask = ask.rstrip("?.") + (f" {form}." if not ask.endswith("?") else f" {form}?")
        return Exchange(as_typed(rng, ask), _formed(form, chosen))
    plain = capitalise(joined(chosen)) + "."
    return Exchange(
        as_typed(rng, ask),
        rng.choice((plain, plain, plain, f"{capitalise(number)} {category} are {joined(chosen)}.")),
    )


def _formed(form: str, items: list[str]) -> str:
    if form == "with commas":
        return ", ".join(items)
    if form == "one per line":
        return "\n".join(items)
    if form == "as a numbered list":
        return "\n".join(f"{at}. {item}" for at, item in enumerate(items, 1))
    return "\n".join(f"- {item}" for item in items)


def member(rng: Random) -> Exchange:
    """Is this one of those; which does not fit."""
    rows = [
        row
        for row in table("lists")
        if row[0]
        in (
            "fruits",
            "vegetables",
            "birds",
            "colors",
            "countries",
            "planets",
            "insects",
            "musical instruments",
            "sports",
            "vehicles",
            "flowers",
            "trees",
            "tools",
            "clothes",
        )
    ]
    (category, own), (_, foreign) = rng.sample(rows, 2)
    inside = rng.random() < 0.5
    item = rng.choice((own if inside else foreign).split(", "))
    if item in own and not inside:
        inside = True
    ask = rng.choice((f"Is {item} one of the {category}?", f"Does {item} belong to the {category}?"))
    answer = (
        f"Yes, {item} is one of the {category}." if inside else f"No, {item} is not one of the {category}."
    )
    return Exchange(as_typed(rng, ask), answer, "Yes" if inside else "No")
