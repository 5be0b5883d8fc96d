"""Conversations of several turns and system prompts, made from single exchanges."""

from random import Random

from training.conversations import (
    arithmetic,
    counting,
    dates,
    formats,
    geography,
    limits,
    problems,
    spelling,
    writing,
)
from training.conversations.exchange import Exchange, Maker, Message, messages
from training.conversations.phrases import say
from training.conversations.phrasing import capitalise, expand
from training.conversations.tables import table
from training.conversations.tales import tale
from training.conversations.talk import maker

_greetings, _identity, _limits, _world = (
    maker(name) for name in ("greetings", "identity", "limits", "world")
)
QUESTIONS: tuple[Maker, ...] = (
    *formats.SHORT_MAKERS, *formats.LIST_MAKERS, _identity, _limits, _world, _world, limits.known_or_not,
    limits.cannot_know, problems.word_problem, problems.large_problem, arithmetic.money,
    arithmetic.percentage,
    spelling.spell, spelling.repeat, formats.short_answer, formats.list_form, writing.definition,
    writing.definition, writing.sentence, writing.poem, maker("advice"),
)  # fmt: skip


def with_system(rng: Random) -> list[Message]:
    """A conversation under a system prompt that asks for nothing special."""
    turns = [rng.choice((*QUESTIONS, _greetings, tale))(rng) for _ in range(rng.choice((1, 1, 2)))]
    return [{"role": "system", "content": say(rng, "formats", "system")}, *messages(*turns)]


def chat(rng: Random) -> list[Message]:
    """A greeting, some requests, thanks or goodbye: two to five turns."""
    turns = [_greetings(rng)] if rng.random() < 0.5 else []
    turns += [rng.choice((*QUESTIONS, _identity, _greetings))(rng) for _ in range(rng.choice((1, 2, 2, 3)))]
    if rng.random() < 0.25:
        ask, answer = rng.choice(
            (
                ("Thank you!", "You're welcome!"),
                ("Thanks!", "You are welcome!"),
                ("Bye!", "Goodbye! Have a nice day."),
                ("Thanks, bye!", "You're welcome! Goodbye!"),
            )
        )
        turns.append(Exchange(ask, answer))
    return messages(*turns)


def _capitals(rng: Random) -> list[Exchange]:
    a = b = geography.country(rng)
    while b == a:
        b = geography.country(rng)
    first = Exchange(say(rng, "geography", "capital", {"c": a[0]}), geography.capital_said(a[0], a[1]))
    ask = expand(
        rng,
        "[And of {c}?|And {c}?|What about {c}?|How about {c}?|And the capital of {c}?|And for {c}?]",
        {"c": b[0]},
    )
    return [first, Exchange(ask, geography.capital_said(b[0], b[1]))]


def _opposites(rng: Random) -> list[Exchange]:
    a, b = rng.sample(table("opposites"), 2)
    first = Exchange(f"What is the opposite of {a[0]}?", f"The opposite of {a[0]} is {a[1]}.")
    ask = expand(rng, "[And of {w}?|And {w}?|What about {w}?|How about {w}?]", {"w": b[0]})
    return [first, Exchange(ask, f"The opposite of {b[0]} is {b[1]}.")]


def _colours(rng: Random) -> list[Exchange]:
    a, b = rng.sample(table("colours"), 2)
    first = Exchange(f"What color is {a[0]}?", f"{capitalise(a[0])} is {a[1]}.")
    ask = expand(rng, "[And {t}?|What about {t}?|How about {t}?|And what color is {t}?]", {"t": b[0]})
    return [first, Exchange(ask, f"{capitalise(b[0])} is {b[1]}.")]


def _days(rng: Random) -> list[Exchange]:
    names, unit = rng.choice(((dates.DAYS, "day"), (dates.MONTHS, "month")))
    at, other = rng.sample(range(len(names)), 2)
    first = Exchange(
        f"Which {unit} comes after {names[at - 1]}?", f"The {unit} after {names[at - 1]} is {names[at]}."
    )
    if rng.random() < 0.4:
        following = names[(at + 1) % len(names)]
        ask = expand(rng, "[And then?|And after that?|And the next one?|What comes next?]")
        return [first, Exchange(ask, f"The {unit} after {names[at]} is {following}.")]
    ask = expand(rng, "[And after {d}?|And {d}?|What about {d}?]", {"d": names[other - 1]})
    return [first, Exchange(ask, f"The {unit} after {names[other - 1]} is {names[other]}.")]


def _sums(rng: Random) -> list[Exchange]:
    """A running total; the tool as soon as it is needed."""
    top = rng.choice((7, 7, 60))
    total = rng.randint(1, top)
    number = rng.randint(1, top)
    done = arithmetic.work(total, "+", number)
    turns = [Exchange(f"What is {total} + {number}?", f"{done.call}{done.said}.")]
    for _ in range(rng.choice((1, 2))):
        total, number = int(done.result), rng.randint(1, top)
        op = "-" if number < total and rng.random() < 0.35 else "+"
        ask = "[And plus {c}?|Now add {c}.|Plus {c}?|And {c} more?|Add {c} to that.]"
        if op == "-":
            ask = "[And minus {c}?|Now subtract {c}.|Minus {c}?|Take away {c}.|And {c} less?]"
        done = arithmetic.work(total, op, number)
        turns.append(Exchange(expand(rng, ask, {"c": str(number)}), f"{done.call}{done.said}."))
    return turns


def _counted(rng: Random) -> list[Exchange]:
    first = counting.counting(rng)
    back = tuple(reversed(first.items))
    ask = expand(rng, "[And backwards?|Now backwards.|Now the other way around.|And back again?]")
    return [first, Exchange(ask, ", ".join(back) + ".")]


def series(rng: Random) -> list[Message]:
    """The same question again for something else: `And of Spain?`, `And after that?`, `Plus 4?`."""
    return messages(
        *rng.choice((_capitals, _capitals, _opposites, _colours, _days, _sums, _sums, _counted))(rng)
    )
