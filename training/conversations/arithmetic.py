"""Small sums, comparisons, counting and word problems."""

from random import Random

from training.conversations.exchange import Exchange
from training.conversations.phrasing import as_typed, expand, joined

WORDS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
    "twenty",
]
_SIGNS = {"+": ("+", "plus"), "-": ("-", "minus"), "*": ("*", "times")}
_ASK = (
    "What is {a} {op} {b}?",
    "What's {a} {op} {b}?",
    "How much is {a} {op} {b}?",
    "{a} {op} {b}",
    "{a} {op} {b} = ?",
    "{a} {op} {b}?",
    "Calculate {a} {op} {b}.",
    "[Can you tell me|Tell me|Do you know] [what {a} {op} {b} is|{a} {op} {b}].",
    "{a} {op} {b} is what?",
    "What does {a} {op} {b} make?",
    "{a} {op} {b} =",
    "Please work out {a} {op} {b}.",
    "What do you get for {a} {op} {b}?",
)
_NAMED = {
    "+": (
        "Add {a} and {b}.",
        "What is the sum of {a} and {b}?",
        "{a} and {b} make how many?",
        "Please add {a} and {b}.",
    ),
    "-": (
        "Subtract {b} from {a}.",
        "Take {b} away from {a}.",
        "What is left if you take {b} from {a}?",
        "{a} take away {b}",
        "If you take {b} away from {a}, what do you get?",
        "How much is left of {a} without {b}?",
        "What is the difference of {a} and {b}?",
    ),
    "*": ("Multiply {a} by {b}.", "What is {a} multiplied by {b}?", "What is the product of {a} and {b}?"),
}
_THINGS = (
    "apples|books|eggs|balls|coins|cookies|pencils|birds|cats|flowers|stones|marbles|stickers|cars|"
    "pears|shells"
)
_PEOPLE = [
    "Tom",
    "Anna",
    "Ben",
    "Lily",
    "Sam",
    "Mia",
    "Max",
    "Emma",
    "Leo",
    "Zoe",
    "Omar",
    "Nina",
    "Paul",
    "Sara",
]


def sum_or_difference(rng: Random) -> Exchange:
    """An addition, subtraction or multiplication; numbers up to 20 are by far the most common."""
    op = rng.choices("+-*", (6, 3, 2))[0]
    if op == "*":
        a, b = rng.randint(1, 10), rng.randint(1, 10)
        result = a * b
    elif rng.random() < 0.75:
        result = rng.randint(1, 20)
        a = rng.randint(0, result)
        b = result - a
        if op == "-":
            a, result = result, a
    else:
        a, b = rng.randint(0, 60), rng.randint(0, 40)
        if op == "-":
            a, b = max(a, b), min(a, b)
        result = a + b if op == "+" else a - b
    sign = _SIGNS[op]
    ask = rng.choice(_NAMED[op] if rng.random() < 0.2 else _ASK)
    written = rng.random()
    left, right = (WORDS[a], WORDS[b]) if max(a, b) <= 20 and written < 0.12 else (str(a), str(b))
    question = expand(rng, ask, {"a": left, "b": right, "op": sign[rng.random() < 0.4]})
    if " " in question and rng.random() < 0.1 and sign[0] in question:
        question = question.replace(f" {sign[0]} ", sign[0])
    answer = f"{a} {sign[rng.random() < 0.3]} {b} is {result}."
    return Exchange(as_typed(rng, question), answer, str(result))


def word_problem(rng: Random) -> Exchange:
    """Someone has things, and gets or gives some."""
    thing, who = rng.choice(_THINGS.split("|")), rng.choice(_PEOPLE)
    a, b = rng.randint(1, 12), rng.randint(1, 8)
    if rng.random() < 0.55:
        told = rng.choice((
            f"{who} has {a} {thing} and gets {b} more. How many {thing} does {who} have?",
            f"I have {a} {thing} and find {b} more. How many {thing} do I have?",
            f"There are {a} {thing} on the table. I put {b} more there. How many {thing} are on the table?",
            f"I had {a} {thing} and bought {b} more. How many do I have in all?",
            f"{who} has {a} {thing}, and I have {b}. How many {thing} do we have together?",
        ))  # fmt: skip
        return Exchange(told, f"{a} plus {b} is {a + b}, so the answer is {a + b} {thing}.", str(a + b))
    a, b = a + b, b
    told = rng.choice((
        f"{who} has {a} {thing} and gives away {b}. How many {thing} are left?",
        f"I have {a} {thing} and lose {b}. How many {thing} do I have left?",
        f"There are {a} {thing} in the box. I take out {b}. How many {thing} are in the box now?",
        f"I had {a} {thing}. I gave {b} to {who}. How many do I have now?",
    ))  # fmt: skip
    return Exchange(
        told, f"{a} minus {b} is {a - b}, so there {'is' if a - b == 1 else 'are'} {a - b} left.", str(a - b)
    )


def counting(rng: Random) -> Exchange:
    """Count up or down, next and previous number, by steps."""
    start, length = rng.randint(0, 30), rng.randint(3, 10)
    kind = rng.random()
    if kind < 0.4:
        ask = rng.choice(
            (
                "Count from {a} to {b}.",
                "Please count from {a} to {b}.",
                "Can you count from {a} to {b}?",
                "Count to {b}, starting at {a}.",
                "Count up from {a} to {b}.",
                "Start at {a} and count to {b}.",
                "Can you count up to {b} from {a}?",
                "Count {a} to {b}",
                "Write the numbers from {a} to {b}.",
            )
        )
        numbers = list(range(start, start + length))
        if rng.random() < 0.4:
            numbers = list(range(1, rng.randint(3, 20) + 1))
            ask = rng.choice((ask, "Count to {b}.", "Can you count to {b}?"))
        if rng.random() < 0.15:
            numbers, ask = numbers[::-1], "Count [down|backwards] from {a} to {b}."
        question = expand(rng, ask, {"a": str(numbers[0]), "b": str(numbers[-1])})
        return Exchange(as_typed(rng, question), ", ".join(map(str, numbers)) + ".")
    number = rng.randint(1, 99)
    after = kind < 0.7
    word, result = ("after", number + 1) if after else ("before", number - 1)
    question = rng.choice((f"What number comes {word} {number}?", f"Which number is {word} {number}?",
                           f"What comes {word} {number}?"))  # fmt: skip
    return Exchange(as_typed(rng, question), f"The number {word} {number} is {result}.", str(result))


def comparing(rng: Random) -> Exchange:
    """Which is bigger; sort; even or odd; half and double."""
    kind = rng.randrange(4)
    a, b = rng.sample(range(1, 100), 2)
    if kind == 0:
        word, result = rng.choice((("bigger", max(a, b)), ("smaller", min(a, b)), ("larger", max(a, b))))
        other = min(a, b) if result == max(a, b) else max(a, b)
        ask = rng.choice((f"Which is {word}, {a} or {b}?", f"Which number is {word}: {a} or {b}?",
                          f"What is {word}, {a} or {b}?"))  # fmt: skip
        return Exchange(as_typed(rng, ask), f"{result} is {word} than {other}.", str(result))
    if kind == 1:
        numbers = rng.sample(range(1, 50), rng.randint(3, 5))
        ask = rng.choice(
            ("Sort these numbers: {}.", "Put these numbers in order: {}.", "Order the numbers {}.")
        )
        listed = joined([str(n) for n in numbers]) if rng.random() < 0.4 else ", ".join(map(str, numbers))
        return Exchange(as_typed(rng, ask.format(listed)), ", ".join(map(str, sorted(numbers))) + ".")
    if kind == 2:
        parity = "even" if a % 2 == 0 else "odd"
        ask = rng.choice((f"Is {a} even or odd?", f"Is {a} an even or an odd number?"))
        return Exchange(as_typed(rng, ask), f"{a} is {parity}.", parity.capitalize())
    if rng.random() < 0.5:
        a = rng.randint(1, 25) * 2
        ask = rng.choice((f"What is half of {a}?", f"What is {a} divided by 2?"))
        return Exchange(as_typed(rng, ask), f"Half of {a} is {a // 2}.", str(a // 2))
    a = rng.randint(1, 30)
    return Exchange(
        as_typed(rng, f"What is {rng.choice(('twice', 'double'))} {a}?"), f"Twice {a} is {2 * a}.", str(2 * a)
    )
