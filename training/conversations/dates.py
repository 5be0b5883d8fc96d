"""Days of the week, months of the year and seasons."""

from random import Random

from training.conversations.exchange import Exchange
from training.conversations.phrases import say
from training.conversations.phrasing import article, as_typed, capitalise, joined

DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = [
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
    "November", "December",
]  # fmt: skip
LENGTHS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
ORDINALS = (
    "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth",
    "eleventh", "twelfth",
)  # fmt: skip
SEASONS = ["spring", "summer", "autumn", "winter"]
# Of the northern half of the world; winter begins with December.
SEASON_OF = {month: SEASONS[(at + 1) % 12 // 3 - 1] for at, month in enumerate(MONTHS)}
_PARTS = (
    ("days", "week", "7"), ("months", "year", "12"), ("seasons", "year", "4"), ("hours", "day", "24"),
    ("days", "year", "365"), ("weeks", "year", "52"), ("minutes", "hour", "60"), ("seconds", "minute", "60"),
    ("years", "century", "100"), ("years", "decade", "10"),
)  # fmt: skip
_AWAY = {1: "next", 2: "two", 3: "three"}


def _ask(rng: Random, heading: str, **slots: str) -> str:
    return as_typed(rng, say(rng, "dates", heading, slots))


def neighbour(rng: Random) -> Exchange:
    """The day or month so many before or after another, or between two."""
    names, unit = (DAYS, "day") if rng.random() < 0.65 else (MONTHS, "month")
    at = rng.randrange(len(names))
    name = names[at]
    away = rng.choices((1, 2, 3), (10, 2, 0.7))[0]
    sign, word = rng.choice(((1, "after"), (-1, "before")))
    if rng.random() < 0.08:
        before, after = names[at - 1], names[(at + 1) % len(names)]
        question = _ask(rng, "between", unit=unit, a=before, b=after)
        return Exchange(question, f"{name} is between {before} and {after}.", name)
    other = names[(at + sign * away) % len(names)]
    heading = _AWAY[away]
    if away == 1 and rng.random() < 0.4:
        heading = word
        if unit == "day" and rng.random() < 0.3:
            heading = "day later" if sign > 0 else "day earlier"
    whole = "week" if unit == "day" else "year"
    question = _ask(rng, heading, unit=unit, word=word, name=name, whole=whole)
    if away > 1:
        return Exchange(question, f"The {unit} {_AWAY[away]} {unit}s {word} {name} is {other}.", other)
    return Exchange(question, f"The {unit} {word} {name} is {other}.", other)


def today(rng: Random) -> Exchange:
    """Today and tomorrow; the weekend; which day or month is the third."""
    at, kind = rng.randrange(7), rng.random()
    day = DAYS[at]
    if kind < 0.55:
        step, heading, known, asked = rng.choice((
            (1, "tomorrow", "today is", "tomorrow is"), (-1, "yesterday", "today is", "yesterday was"),
            (1, "since yesterday", "yesterday was", "today is"),
            (-1, "until tomorrow", "tomorrow is", "today is"),
        ))  # fmt: skip
        other = DAYS[(at + step) % 7]
        return Exchange(_ask(rng, heading, name=day), f"If {known} {day}, {asked} {other}.", other)
    if kind < 0.7:
        heading, weekend = rng.choice(("weekend", "weekday")), at > 4
        yes = "Yes" if weekend == (heading == "weekend") else "No"
        fact = "is on the weekend" if weekend else "is a weekday"
        return Exchange(_ask(rng, heading, name=day), f"{yes}, {day} {fact}.", yes)
    if kind < 0.75:
        answer = "Saturday and Sunday are the weekend."
        return Exchange(_ask(rng, "weekend days"), answer, items=("Saturday", "Sunday"))
    names, span = (MONTHS, "month of the year") if rng.random() < 0.6 else (DAYS, "day of the week")
    at = rng.randrange(len(names))
    slots = {"nth": ORDINALS[at], "span": span, "unit": span.split()[0], "n": str(at + 1)}
    question = _ask(rng, "nth", name2=f"{slots['unit']} number", **slots)
    return Exchange(question, f"The {ORDINALS[at]} {span} is {names[at]}.", names[at])


def month(rng: Random) -> Exchange:
    """How long a month is, its number, its season; the seasons."""
    at, kind = rng.randrange(12), rng.random()
    name = MONTHS[at]
    if kind < 0.3:
        extra = " It has 29 in a leap year." if at == 1 else ""
        answer = f"{name} has {LENGTHS[at]} days.{extra}"
        return Exchange(_ask(rng, "days in", name=name), answer, str(LENGTHS[at]))
    if kind < 0.5:
        season = SEASON_OF[name]
        answer = f"{name} is in {season} in the northern half of the world."
        return Exchange(_ask(rng, "season", name=name), answer, capitalise(season))
    if kind < 0.6:
        season = rng.choice(SEASONS)
        months = [m for m in (*MONTHS[-1:], *MONTHS[:-1]) if SEASON_OF[m] == season]
        answer = f"The months of {season} are {joined(months)}."
        return Exchange(_ask(rng, "months of", season=season), answer, items=tuple(months))
    if kind < 0.75:
        answer = f"{name} is the {ORDINALS[at]} month of the year."
        return Exchange(_ask(rng, "number", name=name), answer, str(at + 1))
    if kind < 0.88:
        at = rng.randrange(4)
        step, word = rng.choice(((1, "after"), (-1, "before")))
        other = SEASONS[(at + step) % 4]
        question = _ask(rng, "season next", word=word, name=SEASONS[at])
        return Exchange(question, f"{capitalise(other)} comes {word} {SEASONS[at]}.", capitalise(other))
    parts, whole, count = rng.choice(_PARTS)
    return Exchange(
        _ask(rng, "how many", parts=parts, whole=whole),
        f"{capitalise(article(whole))} {whole} has {count} {parts}.",
        count,
    )


def recite(rng: Random) -> Exchange:
    """All days, months or seasons in order, some of them, or some put in order."""
    names, what, unit = rng.choice((
        (DAYS, "days of the week", "day"), (MONTHS, "months of the year", "month"),
        (SEASONS, "seasons", "season"),
    ))  # fmt: skip
    whole = "week" if unit == "day" else "year"
    kind = rng.random()
    if kind < 0.4 or unit == "season":
        return Exchange(_ask(rng, "recite", w=what), f"The {what} are {joined(names)}.", items=tuple(names))
    if kind < 0.6:
        start, end = sorted(rng.sample(range(len(names)), 2))
        chosen = names[start : end + 1]
        question = _ask(rng, "from to", unit=unit, a=names[start], b=names[end])
        return Exchange(question, joined(chosen) + ".", items=tuple(chosen))
    if kind < 0.8:
        chosen = rng.sample(names, rng.choice((3, 3, 4)))
        ordered = sorted(chosen, key=names.index)
        return Exchange(
            _ask(rng, "order", unit=unit, l=joined(chosen)), joined(ordered) + ".", items=tuple(ordered)
        )
    a, b = rng.sample(names, 2)
    first, second = sorted((a, b), key=names.index)
    question = _ask(rng, "earlier", unit=unit, a=a, b=b, whole=whole)
    return Exchange(question, f"{first} comes before {second}.", first)
