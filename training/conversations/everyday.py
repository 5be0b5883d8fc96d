"""What people do at work, what things are made of and for, shapes, planets, and the senses."""

from random import Random

from training.conversations.arithmetic import WORDS
from training.conversations.dates import ORDINALS
from training.conversations.exchange import Exchange
from training.conversations.phrases import say
from training.conversations.phrasing import article, as_typed, capitalise, joined
from training.conversations.tables import table

PLANETS = ("Mercury", "Venus", "Earth", "Mars", "Jupiter", "Saturn", "Uranus", "Neptune")
_SENSES = (
    ("see", "eyes"), ("hear", "ears"), ("smell", "nose"), ("taste", "tongue"), ("feel", "skin"),
    ("walk", "legs"), ("think", "brain"), ("chew", "teeth"), ("breathe", "lungs"), ("hold things", "hands"),
)  # fmt: skip


def _ask(rng: Random, heading: str, **slots: str) -> str:
    return as_typed(rng, say(rng, "everyday", heading, slots))


def job(rng: Random) -> Exchange:
    """What someone does, or who does it."""
    name, does = rng.choice(table("jobs"))
    one = f"{article(name)} {name}"
    if rng.random() < 0.5:
        return Exchange(_ask(rng, "job", job=name), f"{capitalise(one)} {does}.")
    return Exchange(_ask(rng, "who", does=does), f"{capitalise(one)} {does}.", capitalise(one))


def thing(rng: Random) -> Exchange:
    """What a thing is made of, what it is for, what is needed for a task."""
    kind = rng.randrange(3)
    if kind == 0:
        name, material = rng.choice(table("made_of"))
        return Exchange(
            _ask(rng, "made", x=name), f"{capitalise(name)} is made of {material}.", capitalise(material)
        )
    name, use, verb = rng.choice(table("purposes"))
    if kind == 1:
        return Exchange(_ask(rng, "need", use=use), f"You need {name} {use}.", capitalise(name))
    return Exchange(_ask(rng, "for", x=name, **{"is": verb}), f"You can use {name} {use}.")


def shape(rng: Random) -> Exchange:
    """How many sides a shape has, and which shape has so many."""
    name, sides = rng.choice(table("shapes"))
    answer = f"{capitalise(article(name))} {name} has {sides} sides and {sides} corners."
    if rng.random() < 0.6 or sides == "four":
        return Exchange(_ask(rng, "sides", shape=name), answer, capitalise(sides))
    return Exchange(_ask(rng, "with sides", n=sides), answer, capitalise(name))


def planet(rng: Random) -> Exchange:
    """The planets in order from the sun."""
    at, kind = rng.randrange(len(PLANETS)), rng.random()
    name = PLANETS[at]
    if kind < 0.4:
        question = _ask(rng, "planet", nth=ORDINALS[at])
        return Exchange(question, f"The {ORDINALS[at]} planet from the sun is {name}.", name)
    if kind < 0.6:
        question = _ask(rng, "planet place", p=name)
        return Exchange(
            question, f"{name} is the {ORDINALS[at]} planet from the sun.", capitalise(WORDS[at + 1])
        )
    if kind < 0.8:
        at = rng.randrange(len(PLANETS) - 1)
        question = _ask(rng, "planet next", p=PLANETS[at])
        return Exchange(question, f"The planet after {PLANETS[at]} is {PLANETS[at + 1]}.", PLANETS[at + 1])
    return Exchange(_ask(rng, "planets"), f"The planets are {joined(list(PLANETS))}.", items=PLANETS)


def sense(rng: Random) -> Exchange:
    """What we see, hear or walk with."""
    verb, part = rng.choice(_SENSES)
    return Exchange(_ask(rng, "sense", v=verb), f"We {verb} with our {part}.", capitalise(part))


def everyday(rng: Random) -> Exchange:
    """Any of these."""
    return rng.choices((job, thing, shape, planet, sense), (3, 5, 1, 2, 1))[0](rng)
