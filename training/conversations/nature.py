"""Animals, colours of things, and opposites."""

from random import Random

from training.conversations.exchange import Exchange
from training.conversations.phrasing import article, as_typed, capitalise
from training.conversations.tables import table


def animal(rng: Random) -> Exchange:
    """The sound, young, legs, home or food of an animal."""
    name, sound, baby, legs, home, food = rng.choice(table("animals"))
    one = f"{article(name)} {name}"
    kind = rng.randrange(6)
    if kind == 0:
        ask = rng.choice(
            (
                "What sound does {} make?",
                "What noise does {} make?",
                "What does {} say?",
                "How does {} sound?",
                "What is the sound of {}?",
                "Which sound does {} make?",
            )
        ).format(one)
        return Exchange(as_typed(rng, ask), f"{capitalise(one)} {sound}.", None)
    if kind == 1:
        ask = rng.choice((f"What is a baby {name} called?", f"What do you call a baby {name}?",
                          f"What is the young of {one} called?"))  # fmt: skip
        young = baby if baby == "larva" else f"{article(baby)} {baby}"
        return Exchange(as_typed(rng, ask), f"A baby {name} is called {young}.", capitalise(baby))
    if kind == 2:
        ask = rng.choice((f"How many legs does {one} have?", f"How many legs has {one}?"))
        if name == "octopus":
            return Exchange(as_typed(rng, ask), "An octopus has eight arms.", "Eight")
        return Exchange(
            as_typed(rng, ask),
            f"{capitalise(one)} has {legs} legs.",
            None if legs == "no" else capitalise(legs),
        )
    if kind == 3:
        ask = rng.choice(
            (f"Where does {one} live?", f"Where can I find {one}?", f"What is the home of {one}?")
        )
        return Exchange(as_typed(rng, ask), f"{capitalise(one)} lives {home}.")
    if kind == 4:
        ask = rng.choice(
            (f"What does {one} eat?", f"What food does {one} like?", f"What is the food of {one}?")
        )
        return Exchange(as_typed(rng, ask), f"{capitalise(one)} eats {food}.")
    ask = rng.choice((f"Tell me about {one}.", f"What do you know about {one}?", f"Describe {one}."))
    told = f"{capitalise(one)} lives {home}. It has {legs} legs and eats {food}. "
    told += f"Its young is called {article(baby)} {baby}."
    return Exchange(as_typed(rng, ask), told.replace("a larva", "larva"))


def colour(rng: Random) -> Exchange:
    """The colour of a thing, or a thing of a colour."""
    thing, shade = rng.choice(table("colours"))
    word = rng.choice(("color", "colour"))
    if rng.random() < 0.2:
        same = [row[0] for row in table("colours") if row[1] == shade]
        return Exchange(as_typed(rng, rng.choice((f"What is {shade}?", f"Name something that is {shade}.",
                                                  f"Tell me a thing that is {shade}."))),
                        f"{capitalise(rng.choice(same))} is {shade}.")  # fmt: skip
    ask = rng.choice(
        (
            f"What {word} is {thing}?",
            f"Which {word} is {thing}?",
            f"What is the {word} of {thing}?",
            f"Tell me the {word} of {thing}.",
            f"What {word} does {thing} have?",
        )
    )
    return Exchange(as_typed(rng, ask), f"{capitalise(thing)} is {shade}.", capitalise(shade))


def opposite(rng: Random) -> Exchange:
    """A word and its opposite."""
    rows = table("opposites")
    word, other = rng.choice(rows)
    firsts = {row[0] for row in rows}
    if rng.random() < 0.5 and other not in firsts:
        word, other = other, word
    quoted = rng.choice((word, f'"{word}"'))
    ask = rng.choice(
        (
            "What is the opposite of {}?",
            "What's the opposite of {}?",
            "Opposite of {}?",
            "Tell me the opposite of {}.",
            "Give me the opposite of {}.",
            "What word means the opposite of {}?",
            "Which word is the opposite of {}?",
        )
    )
    mark = '"' if quoted != word else ""
    return Exchange(as_typed(rng, ask.format(quoted)),
                    f"The opposite of {quoted} is {mark}{other}{mark}.", capitalise(other))  # fmt: skip
