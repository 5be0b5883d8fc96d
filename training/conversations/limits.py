"""Saying that it does not know, beside the same questions about things that it does know."""

from random import Random

from training.conversations.exchange import Exchange
from training.conversations.geography import capital_said, country
from training.conversations.phrases import say
from training.conversations.phrasing import article, as_typed, capitalise
from training.conversations.stories.cast import BOYS, GIRLS
from training.conversations.tables import table
from training.conversations.talk import invented_word

_TITLES = (
    "Doctor",
    "Professor",
    "Mr.",
    "Mrs.",
    "Sir",
    "Captain",
    "King",
    "Queen",
    "Lady",
    "President",
    "General",
)
_BOOK = ("The {} of {}", "{} and the {}", "The {}'s {}", "A {} in {}")


def _name(rng: Random) -> str:
    return invented_word(rng).capitalize()


def _person(rng: Random) -> str:
    return f"{rng.choice((*_TITLES, *GIRLS, *BOYS, _name(rng)))} {_name(rng)}"


def _ask(rng: Random, heading: str, x: str) -> str:
    return as_typed(rng, capitalise(say(rng, "limits", heading, {"x": x})))


def known_or_not(rng: Random) -> Exchange:
    """A person, a thing, a place, a country or a book: real or invented."""
    real = rng.random() < 0.45
    heading = rng.choice(("who", "who", "what", "where", "capital", "author"))
    if heading == "who":
        name, told = rng.choice(table("people"))
        in_tales = "writer" not in told and ("stor" in told or "tale" in told)
        invented, answer = _person(rng), f"{name} {'is' if in_tales else 'was'} {told}."
        if rng.random() < 0.2 and real:  # an invented name that begins like a real one
            real, invented = False, f"{name.split()[0]} {_name(rng)}"
    elif heading == "what":
        name, told = rng.choice([row for row in table("definitions") if row[0] != "the lungs"])
        word = invented_word(rng)
        invented, answer = f"{article(word)} {word}", f"{capitalise(name)} is {told}."
    elif heading == "author":
        name, author = rng.choice(table("books"))
        invented = rng.choice(_BOOK).format(_name(rng), _name(rng))
        answer = f"{author} wrote {name}."
    else:
        where, city, *_ = country(rng)
        name = city if heading == "where" else where
        invented = _name(rng)
        answer = f"{city} is in {where}." if heading == "where" else capital_said(where, city)
    if real:
        return Exchange(_ask(rng, heading, name), answer)
    return Exchange(
        _ask(rng, heading, invented), capitalise(say(rng, "limits", f"unknown {heading}", {"x": invented}))
    )


def cannot_know(rng: Random) -> Exchange:
    """What is happening now, what is private, what will be."""
    # "live" asks about a city, which the answer may name; "news" about none, so no answer names one.
    heading = rng.choice(("live", "news", "private", "future"))
    slots = {"who": rng.choice((*GIRLS, *BOYS)), "city": country(rng)[1].split(",")[0]}
    question = as_typed(rng, say(rng, "limits", heading, slots))
    return Exchange(question, say(rng, "limits", f"unknown {heading}", slots))
