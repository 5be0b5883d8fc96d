"""Counting up, down and by steps; sequences, order, comparisons, even and odd, numbers in words."""

from random import Random

from training.conversations.arithmetic import WORDS, spelled, work
from training.conversations.exchange import Exchange
from training.conversations.phrases import say
from training.conversations.phrasing import as_typed, capitalise, joined

_STEPS = {2: "twos", 3: "threes", 4: "fours", 5: "fives", 10: "tens", 100: "hundreds"}


def _ask(rng: Random, heading: str, **slots: str) -> str:
    return as_typed(rng, say(rng, "counting", heading, slots))


def counting(rng: Random) -> Exchange:
    """Count from one number to another."""
    kind = rng.choices(("range", "to", "down", "step"), (6, 1.5, 1.5, 2))[0]
    start = rng.choice((rng.randint(0, 10), rng.randint(0, 40), rng.randint(0, 90)))
    numbers = list(range(start, start + rng.choice((*range(3, 11), 15))))
    slots: dict[str, str] = {}
    if kind == "to":
        numbers = list(range(1, rng.randint(3, 20) + 1))
    elif kind == "down":
        numbers = list(range(rng.randint(0, 1), rng.randint(3, 15))) if rng.random() < 0.6 else numbers
        numbers.reverse()
    elif kind == "step":
        step = rng.choice(list(_STEPS))
        first = rng.choice((step, 0, step, rng.randint(1, 20)))
        numbers = list(range(first, first + step * rng.randint(4, 11), step))
        slots = {"s": _STEPS[step], "n": str(step)}
    a, b = str(numbers[0]), str(numbers[-1])
    if kind in ("range", "to") and numbers[-1] <= 20 and rng.random() < 0.08:
        a, b = WORDS[numbers[0]], WORDS[numbers[-1]]
    shown = tuple(map(str, numbers))
    return Exchange(_ask(rng, kind, a=a, b=b, **slots), ", ".join(shown) + ".", items=shown)


def following(rng: Random) -> Exchange:
    """The number after, before or between; what comes next in a sequence."""
    kind = rng.randrange(4)
    if kind == 0:
        n = rng.choice((rng.randint(1, 20), rng.randint(1, 99), rng.randint(100, 999)))
        word, result = rng.choice((("after", n + 1), ("before", n - 1)))
        question = _ask(rng, "next" if rng.random() < 0.6 else word, w=word, n=str(n))
        return Exchange(question, f"The number {word} {n} is {result}.", str(result))
    if kind == 1:
        n = rng.randint(1, 99)
        question = _ask(rng, "between", a=str(n), b=str(n + 2))
        return Exchange(question, f"{n + 1} is between {n} and {n + 2}.", str(n + 1))
    step = rng.choice((1, 1, 2, 2, 3, 5, 10, 10, -1, -2, 4, 100, 0))
    first = rng.choice((abs(step), rng.randint(1, 30) + 5 * max(0, -step)))
    length = rng.choice((3, 4, 4, 5))
    if step == 0:
        terms = [max(1, first % 6) * 2**at for at in range(length + 1)]
        reason = "Each number is twice the one before"
    else:
        terms = [first + at * step for at in range(length + 1)]
        reason = f"Each number is {abs(step)} {'more' if step > 0 else 'less'} than the one before"
    question = _ask(rng, "sequence", l=", ".join(map(str, terms[:-1])))
    return Exchange(question, f"{reason}, so {terms[-1]} comes next.", str(terms[-1]))


def ordering(rng: Random) -> Exchange:
    """Sort numbers; the largest or smallest of several."""
    top = rng.choice((20, 50, 100, 1000))
    numbers = rng.sample(range(1, top), rng.choice((3, 3, 4, 5, 6)))
    shown = [str(n) for n in numbers]
    listed = joined(shown) if rng.random() < 0.4 else ", ".join(shown)
    if rng.random() < 0.6:
        down = rng.random() < 0.25
        ordered = tuple(map(str, sorted(numbers, reverse=down)))
        question = _ask(rng, "sort down" if down else "sort", l=listed)
        return Exchange(question, ", ".join(ordered) + ".", items=ordered)
    word, result = rng.choice((
        ("largest", max(numbers)), ("smallest", min(numbers)), ("biggest", max(numbers)),
        ("highest", max(numbers)), ("lowest", min(numbers)),
    ))  # fmt: skip
    return Exchange(_ask(rng, "extreme", w=word, l=listed), f"The {word} number is {result}.", str(result))


def comparing(rng: Random) -> Exchange:
    """Which of two is bigger; even or odd; numbers in words; whether a sum is right."""
    kind = rng.randrange(5)
    a, b = rng.sample(range(1, rng.choice((20, 100, 1000))), 2)
    if kind == 0:
        word, result = rng.choice((("bigger", max(a, b)), ("smaller", min(a, b)), ("larger", max(a, b)),
                                   ("greater", max(a, b)), ("less", min(a, b))))  # fmt: skip
        other = a + b - result
        question = _ask(rng, "compare", w=word, a=str(a), b=str(b))
        return Exchange(question, f"{result} is {word} than {other}.", str(result))
    if kind == 1:
        parity = "even" if a % 2 == 0 else "odd"
        heading = rng.choice(("parity", "is even", "is odd"))
        question = _ask(rng, heading, a=str(a))
        if heading == "parity":
            return Exchange(question, f"{a} is {parity}.", capitalise(parity))
        yes = "Yes" if heading.endswith(parity) else "No"
        return Exchange(question, f"{yes}, {a} is {parity}.", yes)
    if kind == 2:
        return Exchange(_ask(rng, "words", a=str(a)), f"{capitalise(spelled(a))}.", capitalise(spelled(a)))
    if kind == 3:
        return Exchange(_ask(rng, "digits", w=spelled(a)), f"{a}.", str(a))
    total = rng.randint(1, 20)
    a = rng.randint(0, total)
    x, op, y = (a, "+", total - a) if rng.random() < 0.6 else (total, "-", a)
    done = work(x, op, y)
    claimed = done.result if rng.random() < 0.5 else max(0, done.result + rng.choice((-2, -1, 1, 2)))
    right = claimed == done.result
    question = _ask(rng, "true", a=str(x), op=op, b=str(y), c=str(claimed))
    word = ("True" if right else "False") if question.lower().count("true or") else ("Yes" if right else "No")
    return Exchange(question, f"{word}{', ' if word in ('Yes', 'No') else ': '}{done.said}.", word)
