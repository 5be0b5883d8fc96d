"""By how much two numbers differ, asked from either side, and sums that are asked in like words.

"How much more than 40 is 52" and "which number is 40 more than 52" differ in little but the operation, so
both are asked here, with the larger number first or last.
"""

from random import Random

from training.conversations.arithmetic import spelled, work
from training.conversations.dates import DAYS
from training.conversations.exchange import Exchange
from training.conversations.phrases import say
from training.conversations.phrasing import as_typed, capitalise
from training.conversations.stories.cast import BOYS, GIRLS

# Heading of differences.txt and its operation.
_BARE = {"plain": "-", "down": "-", "up": "+"}
_SCENES = {"scenes": "-", "joins": "+"}


def _large(rng: Random) -> int:
    return rng.randint(12, 99) if rng.random() < 0.5 else rng.randint(100, 999)


def _two(rng: Random) -> tuple[int, int]:
    """Two numbers of at least 2; small ones, or of two and three digits in all four ways."""
    if rng.random() < 0.25:
        return rng.randint(2, 10), rng.randint(2, 10)
    return _large(rng), _large(rng)


def _numbers(rng: Random, op: str) -> tuple[int, int]:
    """The operands in order; of a difference the larger is first, and they are 2 apart at least."""
    a, b = _two(rng)
    if op == "-":
        while abs(a - b) < 2:
            a, b = _two(rng)
        return max(a, b), min(a, b)
    return a, b


def bare(rng: Random) -> Exchange:
    """A difference or a sum of two numbers that stand for nothing."""
    heading = rng.choices(tuple(_BARE), (8, 3, 2))[0]
    op = _BARE[heading]
    a, b = _numbers(rng, op)
    in_words = rng.random() < 0.06
    slots = {"a": spelled(a), "b": spelled(b)} if in_words else {"a": str(a), "b": str(b)}
    question = capitalise(say(rng, "differences", heading, slots))
    done = work(a, op, b)
    return Exchange(as_typed(rng, question), f"{done.call}{done.said}.", f"{done.call}{done.result}")


def scene(rng: Random) -> Exchange:
    """Two amounts are compared, or one joins the other."""
    heading = rng.choices(tuple(_SCENES), (5, 1))[0]
    op = _SCENES[heading]
    a, b = _numbers(rng, op)
    done = work(a, op, b)
    who, other = rng.sample((*GIRLS, *BOYS), 2)
    day, later = sorted(rng.sample(DAYS, 2), key=DAYS.index)
    slots = {
        "a": str(a), "b": str(b), "r": str(done.result), "who": who, "other": other,
        "day": day, "day2": later,
    }  # fmt: skip
    question, said = say(rng, "differences", heading, slots).split(" => ")
    answer = f"{done.call}{done.said}, so {said}."
    return Exchange(as_typed(rng, capitalise(question)), answer, f"{done.call}{done.result}")


def difference(rng: Random) -> Exchange:
    """Bare numbers or a scene."""
    return bare(rng) if rng.random() < 0.6 else scene(rng)
