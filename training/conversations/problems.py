"""Word problems: small ones worked in the head, larger ones with the calculator tool."""

from random import Random

from training.conversations.arithmetic import Worked, work
from training.conversations.dates import DAYS
from training.conversations.exchange import Exchange, tool_call
from training.conversations.phrases import say
from training.conversations.phrasing import as_typed, capitalise
from training.conversations.stories.cast import BOYS, GIRLS
from training.conversations.tables import table

# Present for I, present for others, past.
_GAIN = (
    ("buy", "buys", "bought"), ("find", "finds", "found"), ("get", "gets", "got"), ("win", "wins", "won"),
    ("collect", "collects", "collected"), ("pick up", "picks up", "picked up"), ("buy", "buys", "bought"),
)  # fmt: skip
_LOSE = (
    ("give away", "gives away", "gave away"), ("lose", "loses", "lost"), ("sell", "sells", "sold"),
    ("use", "uses", "used"), ("give", "gives", "gave"),
)  # fmt: skip
_EAT = ("eat", "eats", "ate")
EATEN = frozenset(
    [
        "apple",
        "egg",
        "cookie",
        "pear",
        "orange",
        "banana",
        "lemon",
        "plum",
        "carrot",
        "potato",
        "tomato",
        "muffin",
        "cake",
        "pie",
        "sandwich",
        "nut",
        "pancake",
        "peach",
        "cherry",
        "strawberry",
        "melon",
        "onion",
        "donut",
        "bun",
        "roll",
    ]
)
_ANIMALS = [
    "bird",
    "duck",
    "cow",
    "horse",
    "dog",
    "cat",
    "rabbit",
    "goat",
    "frog",
    "hen",
    "pig",
    "lamb",
    "swan",
    "pigeon",
    "squirrel",
    "monkey",
]


def _people(rng: Random, slots: dict[str, str]) -> str:
    """Slots of the one who has the things; returns how the answer speaks of them."""
    friend, other = rng.sample((*GIRLS, *BOYS), 2)
    slots.update(friend=friend, other=other)
    if rng.random() < 0.5:
        slots.update(
            who="I",
            he="I",
            him="me",
            his="my",
            whose="my",
            have="have",
            do="do",
            we="we",
            share="share",
            put="put",
        )
        return "you have"
    name = rng.choice([name for name in (*GIRLS, *BOYS) if name not in (friend, other)])
    he, him, his = ("she", "her", "her") if name in GIRLS else ("he", "him", "his")
    slots.update(
        who=name,
        he=he,
        him=him,
        his=his,
        whose=f"{name}'s",
        have="has",
        do="does",
        we="they",
        share="shares",
        put="puts",
    )
    return f"{name} has"


def _slots(rng: Random, a: int, b: int) -> tuple[dict[str, str], str]:
    """What every wording may use, and the beginning of the answer ("you have", "Tom has")."""
    thing, things = rng.choice(table("things"))
    animal = rng.choice(_ANIMALS)
    slots = {
        "a": str(a), "b": str(b), "thing": thing, "things": things, "animals": animal + "s",
        "athings": thing if a == 1 else things, "bthings": thing if b == 1 else things,
        "animals_a": animal if a == 1 else animal + "s",
        "are_a": "is" if a == 1 else "are", "were_a": "was" if a == 1 else "were",
        "are_b": "is" if b == 1 else "are",
    }  # fmt: skip
    slots["day"], slots["day2"] = rng.sample(DAYS, 2)
    has = _people(rng, slots)
    at = 0 if slots["who"] == "I" else 1
    gain = rng.choice(_GAIN)
    lose = _EAT if thing in EATEN and rng.random() < 0.5 else rng.choice(_LOSE)
    if lose[0] == "give":
        lose = (f"give {slots['friend']}", f"gives {slots['friend']}", f"gave {slots['friend']}")
    slots.update(gain=gain[at], gained=gain[2], lose=lose[at], lost=lose[2])
    return slots, has


def _numbers(rng: Random, large: bool) -> tuple[int, int]:
    if large:
        return rng.choice((rng.randint(12, 99), rng.randint(21, 400))), rng.randint(6, 99)
    total = rng.choice((rng.randint(2, 20), rng.randint(5, 20)))
    a = rng.randint(1, total - 1)
    return a, total - a


def _count(number: int, slots: dict[str, str], noun: str = "things") -> str:
    many = slots[noun]
    one = slots["thing"] if noun == "things" else many.removesuffix("s")
    return f"{number} {one if number == 1 else many}"


def _answer(rng: Random, question: str, done: Worked, said: str) -> Exchange:
    answer = f"{done.call}{done.said}, so {said}."
    return Exchange(as_typed(rng, question), answer, f"{done.call}{done.result}")


def _sum(rng: Random, large: bool) -> Exchange:
    a, b = _numbers(rng, large)
    slots, has = _slots(rng, a, b)
    done = work(a, "+", b)
    total = int(done.result)
    heading = rng.choice(("more", "more", "more", "together", "here more", "come"))
    if 4 < a < 60 and 1 < b < 60 and rng.random() < 0.1:
        heading = "age"
    if heading == "age":
        question = say(rng, "problems", "age", slots)
        who = "you" if question.startswith("I ") else slots["other" if "older" in question else "friend"]
        will = f"{'are' if who == 'you' else 'is'}" if "older" in question else "will be"
        return _answer(rng, question, done, f"{who} {will} {total} years old")
    said = {
        "more": f"{has} {_count(total, slots)}",
        "together": f"{'you' if slots['who'] == 'I' else 'they'} have {_count(total, slots)} together",
        "here more": f"there are {_count(total, slots)}",
        "come": f"there are {_count(total, slots, 'animals')}",
    }[heading]
    slots |= {"a": str(a), "b": str(b)}
    return _answer(rng, say(rng, "problems", heading, slots), done, said)


def _difference(rng: Random, large: bool) -> Exchange:
    b, rest = _numbers(rng, large)
    a = b + rest
    slots, has = _slots(rng, a, b)
    done = work(a, "-", b)
    heading = rng.choice(("left", "left", "left", "here left", "compare" if b == 1 else "go", "compare"))
    question = say(rng, "problems", heading, slots)
    if heading == "left":
        said = f"{has} {_count(rest, slots)} left"
    elif heading == "compare":
        said = f"{has} {_count(rest, slots).replace(' ', ' more ', 1)}"
    else:
        verb = "is" if rest == 1 else "are"
        end = (
            " still playing"
            if "playing" in question
            else ""
            if question.endswith(("red?", "blue?", "broken?"))
            else " left"
        )
        said = (
            f"there {verb} {rest}{end}" if end else f"{rest} {verb} {question.split(' are ')[-1].rstrip('?')}"
        )
    return _answer(rng, question, done, said)


def _product(rng: Random, large: bool) -> Exchange:
    a, b = (rng.randint(3, 40), rng.randint(11, 60)) if large else (rng.randint(2, 10), rng.randint(2, 10))
    if rng.random() < 0.6:
        slots, _ = _slots(rng, a, b)
        done = work(a, "*", b)
        return _answer(rng, say(rng, "problems", "times", slots), done, f"there are {_count(a * b, slots)}")
    slots, _ = _slots(rng, a * b, b)
    done = work(a * b, "/", b)
    question = say(rng, "problems", "share", slots)
    whom = "there are" if "box" in question else "each gets"
    return _answer(
        rng, question, done, f"{whom} {_count(a, slots)}" + (" in each" if "box" in question else "")
    )


def _steps(rng: Random, large: bool) -> Exchange:
    a, b = _numbers(rng, large)
    c = rng.randint(1, a + b - 1)
    slots, has = _slots(rng, a, b)
    question = say(rng, "problems", "steps", slots | {"c": str(c)})
    said = f"{has} {_count(a + b - c, slots)}"
    if large:
        done = Worked(
            tool_call(f"{a}+{b}-{c}"), f"{a} + {b} - {c} is {a + b - c}", work(a + b, "-", c).result
        )
    else:
        last = work(a + b, "-", c)
        done = Worked("", f"{work(a, '+', b).said}, and {last.said}", last.result)
    return _answer(rng, question, done, said)


def _large(rng: Random) -> int:
    """A number of two or three digits, as likely of the one as of the other."""
    return rng.randint(12, 99) if rng.random() < 0.5 else rng.randint(100, 999)


def scene(rng: Random, large: bool) -> Exchange:
    """A scene from scenes.txt and the end of its answer; numbers are 2 at least, so nouns are plural."""
    op = rng.choices("+-*", (3, 3, 3 if large else 1))[0]
    if op == "*":
        top = (99, 999) if large and rng.random() < 0.4 else (99, 60) if large else (10, 10)
        a, b = rng.sample([rng.randint(12 if large else 2, end) for end in top], 2)
    else:
        a, b = (_large(rng), _large(rng)) if large else (rng.randint(2, 10), rng.randint(2, 10))
        a = a + b if op == "-" else a
    done = work(a, op, b)
    small = not large and op != "*" and rng.random() < 0.6
    day, later = sorted(rng.sample(DAYS, 2), key=DAYS.index)
    slots = {"a": str(a), "b": str(b), "r": str(done.result), "day": day, "day2": later}
    question, said = say(rng, "scenes", f"small {op}" if small else op, slots).split(" => ")
    return _answer(rng, question, done, said)


def word_problem(rng: Random, large: bool = False) -> Exchange:
    """A small story with numbers; a small one has no number above 20 in it, products up to 10 x 10 apart."""
    makers = (_sum, _difference, _product, _steps, scene)
    make = rng.choices(makers, (6, 5, 4, 1, 16) if large else (6, 5, 2, 1, 8))[0]
    made = make(rng, large)
    return Exchange(
        capitalise(made.question) if rng.random() < 0.9 else made.question, made.answer, made.short
    )


def large_problem(rng: Random) -> Exchange:
    """A word problem for the calculator."""
    return word_problem(rng, large=True)
