"""Animals, colours of things, and opposites."""

from random import Random

from training.conversations.arithmetic import WORDS
from training.conversations.exchange import Exchange
from training.conversations.phrases import say
from training.conversations.phrasing import article, as_typed, capitalise
from training.conversations.tables import table

_PLURALS = {
    "sheep",
    "fish",
    "deer",
    "wolf",
    "mouse",
    "goose",
    "fox",
    "octopus",
    "butterfly",
    "fly",
    "calf",
    "ostrich",
}
# Names of young ones that stand for many animals.
_SHARED = frozenset(
    row[2] for row in table("animals") if sum(row[2] == other[2] for other in table("animals")) > 1
)


def _ask(rng: Random, heading: str, **slots: str) -> str:
    """A wording; those with a plural are drawn again for animals whose plural does not just add an s."""
    text = capitalise(say(rng, "knowledge", heading, slots))
    while slots.get("n") in _PLURALS and f"{slots['n']}s" in text:
        text = capitalise(say(rng, "knowledge", heading, slots))
    return as_typed(rng, text)


def animal(rng: Random) -> Exchange:
    """The sound, young, legs, home or food of an animal."""
    name, sound, baby, legs, home, food = rng.choice(table("animals"))
    one = f"{article(name)} {name}"
    slots, kind, the = {"one": one, "n": name}, rng.randrange(8), capitalise(one)
    if kind < 2:
        if sound.startswith("says ") and rng.random() < 0.25:
            return Exchange(_ask(rng, "whose sound", s=sound), f"{the} {sound}.", capitalise(name))
        return Exchange(_ask(rng, "sound", **slots), f"{the} {sound}.", None)
    if kind < 4:
        young = baby if baby == "larva" else f"{article(baby)} {baby}"
        if baby not in _SHARED and rng.random() < 0.3:
            return Exchange(
                _ask(rng, "grown", b=baby),
                f"{capitalise(article(baby))} {baby} is a young {name}.",
                capitalise(name),
            )
        return Exchange(_ask(rng, "young", **slots), f"A baby {name} is called {young}.", capitalise(baby))
    if kind == 4:
        question = _ask(rng, "legs", **slots)
        if name == "octopus":
            return Exchange(question, "An octopus has eight arms.", "Eight")
        return Exchange(question, f"{the} has {legs} legs.", None if legs == "no" else capitalise(legs))
    if kind == 5:
        return Exchange(_ask(rng, "home", **slots), f"{the} lives {home}.")
    if kind == 6:
        return Exchange(_ask(rng, "food", **slots), f"{the} eats {food}.")
    told = (
        f"{the} lives {home}. It has {legs} legs and eats {food}. Its young is called {article(baby)} {baby}."
    )
    if name == "octopus":
        told = told.replace("eight legs", "eight arms")
    return Exchange(_ask(rng, "about", **slots), told.replace("a larva", "larva"))


def sentences_about(rng: Random) -> Exchange:
    """As many sentences on an animal as were asked for, two to four."""
    name, sound, baby, legs, home, food = rng.choice(table("animals"))
    the, one = capitalise(f"{article(name)} {name}"), f"{article(name)} {name}"
    young = baby if baby == "larva" else f"{article(baby)} {baby}"
    limbs = "eight arms" if name == "octopus" else f"{legs} legs"
    told = [f"{the} has {limbs}.", f"It {sound}.", f"It eats {food}.", f"It lives {home}."]
    count = rng.choice((2, 3, 3, 3, 4))
    chosen = [told[0], *rng.sample(told[1:], count - 1)]
    if rng.random() < 0.4:
        chosen[-1] = f"A baby {name} is called {young}."
    number = WORDS[count] if rng.random() < 0.7 else str(count)
    return Exchange(_ask(rng, "sentences", one=one, n=name, k=number), " ".join(chosen))


def colour(rng: Random) -> Exchange:
    """The colour of a thing, or a thing of a colour."""
    thing, shade = rng.choice(table("colours"))
    if rng.random() < 0.2:
        same = [row[0] for row in table("colours") if row[1] == shade]
        return Exchange(
            _ask(rng, "thing of colour", shade=shade), f"{capitalise(rng.choice(same))} is {shade}."
        )
    question = _ask(rng, "colour", word=rng.choice(("color", "colour", "color")), thing=thing)
    return Exchange(question, f"{capitalise(thing)} is {shade}.", capitalise(shade))


def opposite(rng: Random) -> Exchange:
    """A word and its opposite."""
    rows = table("opposites")
    word, other = rng.choice(rows)
    if rng.random() < 0.5 and other not in {row[0] for row in rows}:
        word, other = other, word
    quoted = rng.choice((word, f'"{word}"'))
    mark = '"' if quoted != word else ""
    if rng.random() < 0.12:
        right = rng.random() < 0.5
        claimed = other if right else rng.choice([row[1] for row in rows if row[1] not in (other, word)])
        question = _ask(rng, "are opposites", w=quoted, v=f"{mark}{claimed}{mark}")
        answer = f"The opposite of {quoted} is {mark}{other}{mark}."
        return Exchange(question, f"{'Yes' if right else 'No'}. {answer}", "Yes" if right else "No")
    answer = f"The opposite of {quoted} is {mark}{other}{mark}."
    return Exchange(_ask(rng, "opposite", w=quoted), answer, capitalise(other))
