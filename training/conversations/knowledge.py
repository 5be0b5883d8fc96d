"""Yes and no with a reason, true or false, and which of two things is bigger, heavier, faster, ..."""

from random import Random

from training.conversations.exchange import Exchange
from training.conversations.phrases import say
from training.conversations.phrasing import as_typed, capitalise, joined
from training.conversations.tables import table


def _ask(rng: Random, heading: str, **slots: str) -> str:
    return as_typed(rng, say(rng, "knowledge", heading, slots))


def _verdict(question: str, yes: bool) -> str:
    """The first word of the answer: true or false where that was asked."""
    if "rue or false" in question.replace("TRUE", "true"):
        return "True" if yes else "False"
    return "Yes" if yes else "No"


def fact(rng: Random) -> Exchange:
    """A yes or no question from the table, with the reason."""
    question, yes, reason = rng.choice(table("facts"))
    return Exchange(as_typed(rng, question), f"{yes}, {reason}.", yes)


def ability(rng: Random) -> Exchange:
    """Whether something can do something."""
    thing, can, cannot = rng.choice(table("abilities"))
    yes = rng.random() < 0.5
    verb = rng.choice((can if yes else cannot).split(", "))
    heading = "true can" if rng.random() < 0.25 else "can"
    question = _ask(rng, heading, x=thing, v=verb)
    able = rng.choice(can.split(", "))
    said = f"{thing} can {verb}" if yes else f"{thing} cannot {verb}, but it can {able}"
    word = _verdict(question, yes)
    return Exchange(question, f"{word}, {said}.", word)


def quality(rng: Random) -> Exchange:
    """Whether something is like that."""
    thing, is_, is_not = rng.choice(table("properties"))
    yes = rng.random() < 0.5
    claimed = rng.choice((is_ if yes else is_not).split(", "))
    question = _ask(rng, "true is" if rng.random() < 0.25 else "is", x=thing, p=claimed)
    said = f"{thing} is {claimed}" if yes else f"{thing} is not {claimed}"
    word = _verdict(question, yes)
    return Exchange(question, f"{word}, {said}.", word)


def ranked(rng: Random) -> Exchange:
    """Two or more things from a ranked row: which is more, which is most, in order."""
    more, most, less, least, listed = rng.choice(table("ranks"))
    items = listed.split(", ")
    kind = rng.random()
    if kind < 0.65:
        low, high = sorted(rng.sample(range(len(items)), 2))
        word, first, second = (
            (more, items[high], items[low]) if rng.random() < 0.6 else (less, items[low], items[high])
        )
        a, b = (first, second) if rng.random() < 0.5 else (second, first)
        if kind < 0.45:
            question = _ask(rng, "than", w=word, a=a, b=b)
            return Exchange(question, f"{capitalise(first)} is {word} than {second}.", capitalise(first))
        yes = "Yes" if a == first else "No"
        question = _ask(rng, "is than", w=word, a=a, b=b)
        return Exchange(question, f"{yes}, {first} is {word} than {second}.", yes)
    chosen = sorted(rng.sample(range(len(items)), 3))
    shown = rng.sample(chosen, 3)
    if kind < 0.85:
        word, best = (most, items[chosen[-1]]) if rng.random() < 0.6 else (least, items[chosen[0]])
        question = _ask(rng, "most", w=word, l=joined([items[at] for at in shown], "or"))
        return Exchange(question, f"{capitalise(best)} is the {word}.", capitalise(best))
    ordered = tuple(items[at] for at in chosen)
    question = _ask(rng, "sort", w=most, s=least, l=", ".join(items[at] for at in shown))
    return Exchange(question, f"{capitalise(joined(list(ordered)))}.", items=ordered)
