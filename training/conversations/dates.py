"""Days of the week and months of the year: what comes before and after."""

from random import Random

from training.conversations.exchange import Exchange
from training.conversations.phrasing import as_typed, expand

DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]
LENGTHS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


def neighbour(rng: Random) -> Exchange:
    """The day or month before or after another."""
    names, unit = (DAYS, "day") if rng.random() < 0.6 else (MONTHS, "month")
    at = rng.randrange(len(names))
    step, word = rng.choice(((1, "after"), (-1, "before")))
    other = names[(at + step) % len(names)]
    ask = expand(
        rng,
        rng.choice(
            (
                "[What|Which] {unit} comes {word} {name}?",
                "[What|Which] {unit} is {word} {name}?",
                "What is the {unit} {word} {name}?",
                "What comes {word} {name}?",
                "The {unit} {word} {name}?",
                "Tell me the {unit} {word} {name}.",
                "[Do you know|Can you tell me] [what|which] {unit} comes {word} {name}?",
                "Name the {unit} that comes {word} {name}.",
                "Which {unit} [follows|comes next after] {name}?"
                if step == 1
                else "Which {unit} comes just before {name}?",
            )
        ),
        {"unit": unit, "word": word, "name": names[at]},
    )
    answer = rng.choice((f"The {unit} {word} {names[at]} is {other}.", f"{other} comes {word} {names[at]}."))
    return Exchange(as_typed(rng, ask), answer, other)


def today(rng: Random) -> Exchange:
    """If today is X, what is tomorrow; how many days has a month; which place in the year."""
    kind = rng.randrange(4)
    if kind == 0:
        at = rng.randrange(7)
        step, word = rng.choice(((1, "tomorrow"), (-1, "yesterday")))
        verb = "is" if step == 1 else "was"
        ask = rng.choice((f"If today is {DAYS[at]}, what day {verb} {word}?",
                          f"Today is {DAYS[at]}. What day {verb} {word}?"))  # fmt: skip
        other = DAYS[(at + step) % 7]
        return Exchange(as_typed(rng, ask), f"If today is {DAYS[at]}, {word} {verb} {other}.", other)
    at = rng.randrange(12)
    month = MONTHS[at]
    if kind == 1:
        extra = " It has 29 in a leap year." if at == 1 else ""
        ask = rng.choice((f"How many days does {month} have?", f"How many days are in {month}?"))
        return Exchange(as_typed(rng, ask), f"{month} has {LENGTHS[at]} days.{extra}", str(LENGTHS[at]))
    ordinals = [
        "first",
        "second",
        "third",
        "fourth",
        "fifth",
        "sixth",
        "seventh",
        "eighth",
        "ninth",
        "tenth",
        "eleventh",
        "twelfth",
    ]
    names, span = (MONTHS, "month of the year") if kind == 2 else (DAYS, "day of the week")
    at %= len(names)
    ask = rng.choice((f"What is the {ordinals[at]} {span}?", f"Which is the {ordinals[at]} {span}?"))
    return Exchange(as_typed(rng, ask), f"The {ordinals[at]} {span} is {names[at]}.", names[at])


def recite(rng: Random) -> Exchange:
    """All days or all months in order."""
    names, what = rng.choice(((DAYS, "days of the week"), (MONTHS, "months of the year")))
    ask = expand(
        rng,
        rng.choice(("Name the {w}.", "What are the {w}?", "List the {w}.", "Tell me the {w}.")),
        {"w": what},
    )
    listed = ", ".join(names[:-1]) + f", and {names[-1]}"
    return Exchange(as_typed(rng, ask), f"The {what} are {listed}.")
