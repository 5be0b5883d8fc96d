"""Sums: small ones from memory, larger ones with the calculator tool.

From memory: + and - with numbers up to 20 and with whole tens up to 100, products up to 10 x 10 and the
divisions that undo them. Everything else is a call of the tool.
"""

from dataclasses import dataclass
from fractions import Fraction
from random import Random

from training.conversations.exchange import Exchange, tool_call
from training.conversations.phrases import say
from training.conversations.phrasing import as_typed, joined
from training.conversations.tables import table

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
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
SIGNS = {"+": ("+", "plus"), "-": ("-", "minus"), "*": ("*", "times", "x"), "/": ("/", "divided by", ":")}


def spelled(number: int) -> str:
    """A number up to 999 in words."""
    if number <= 20:
        return WORDS[number]
    if number < 100:
        ten, one = divmod(number, 10)
        return _TENS[ten - 2] + (f"-{WORDS[one]}" if one else "")
    hundred, rest = divmod(number, 100)
    return f"{WORDS[hundred]} hundred" + (f" and {spelled(rest)}" if rest else "")


def apply(a: int, op: str, b: int) -> Fraction:
    """The exact result. Raises ZeroDivisionError."""
    return (
        {"+": Fraction(a) + b, "-": Fraction(a) - b, "*": Fraction(a) * b}[op]
        if op != "/"
        else Fraction(a, b)
    )


def easy(a: int, op: str, b: int) -> bool:
    """Whether the result is known by heart."""
    result = apply(a, op, b)
    if op in "+-":
        if result < 0 or max(a, b) > 100 or result > 100:
            return False
        return a % 10 == b % 10 == 0 or (max(a, b) <= 20 and result <= 20)
    if op == "*":
        return max(a, b) <= 10
    return result.denominator == 1 and result <= 10 and b <= 10


def written(value: Fraction) -> str:
    """A result in words: whole, or rounded to two places and then called so."""
    if value.denominator == 1:
        return str(value)
    rounded = round(value, 2)
    digits = f"{float(rounded):.2f}".rstrip("0").rstrip(".")
    return digits if rounded == value else f"about {digits}"


@dataclass(frozen=True, slots=True)
class Worked:
    """A sum done: the tool's call (empty if it is easy), the sum as a clause, and its result."""

    call: str
    said: str
    result: Fraction


def work(a: int, op: str, b: int, sign: str | None = None) -> Worked:
    """One operation, by heart or with the tool."""
    result = apply(a, op, b)
    call = "" if easy(a, op, b) else tool_call(f"{a}{op}{b}")
    return Worked(call, f"{a} {sign or op} {b} is {written(result)}", result)


def _asked(rng: Random, a: int, op: str, b: int) -> Exchange:
    """A sum as a question, with its answer."""
    heading = op if rng.random() < 0.5 else "any"
    signs = SIGNS[op]
    sign = signs[0] if rng.random() < 0.6 else rng.choice(signs)
    left, right = str(a), str(b)
    if rng.random() < 0.08 and max(a, b) <= 999:
        left, right = spelled(a), spelled(b)
    elif rng.random() < 0.2:
        left, right = f"{a:,}", f"{b:,}"
    question = say(rng, "arithmetic", heading, {"a": left, "b": right, "op": sign}).strip()
    if not sign.isalpha() and rng.random() < 0.15:
        question = question.replace(f" {sign} ", sign)
    spoken = sign if sign in ("+", "plus", "-", "minus", "*", "times") else op
    done = work(a, op, b, spoken if rng.random() < 0.7 else op)
    return Exchange(as_typed(rng, question), f"{done.call}{done.said}.", done.call + written(done.result))


def sum_or_difference(rng: Random) -> Exchange:
    """A sum that is answered from memory."""
    op = rng.choices("+-*/", (6, 4, 2.5, 1))[0]
    if op in "*/":
        a, b = rng.randint(0 if op == "*" else 1, 10), rng.randint(1, 10)
        return _asked(rng, a, op, b) if op == "*" else _asked(rng, a * b, op, b)
    if rng.random() < 0.1:
        a, b = sorted((10 * rng.randint(1, 9), 10 * rng.randint(1, 9)), reverse=True)
        if op == "-" or a + b <= 100:
            return _asked(rng, a, op, b)
    result = rng.randint(0, 20) if rng.random() < 0.2 else rng.choice((*range(1, 21), *range(9, 21)))
    a = rng.randint(0, result)
    return _asked(rng, a, "+", result - a) if op == "+" else _asked(rng, result, "-", a)


def _number(rng: Random) -> int:
    """A number that is too large for sums by heart; two and three digits are the most common."""
    digits = rng.choices((2, 3, 4, 5), (8, 8, 2, 1))[0]
    return rng.randint(10 ** (digits - 1), 10**digits - 1)


def calculation(rng: Random) -> Exchange:
    """A sum that needs the tool."""
    while True:
        op = rng.choices("+-*/", (5, 4, 4, 2))[0]
        a, b = _number(rng), _number(rng)
        if op in "*/" and rng.random() < 0.7:
            b = rng.randint(2, 12)
        if op in "+-" and rng.random() < 0.25:
            a, b = rng.sample((a, rng.randint(2, 19)), 2)
        if op in "+-" and rng.random() < 0.12:  # just beyond what is known by heart
            a, b = rng.randint(5, 32), rng.randint(5, 32)
        if op == "/" and rng.random() < 0.7:
            a *= b
        if op == "-" and a < b and rng.random() < 0.9:
            a, b = b, a
        if not easy(a, op, b):
            return _asked(rng, a, op, b)


def expression(rng: Random) -> Exchange:
    """Several steps at once, always with the tool; or the sum of several small numbers from memory."""
    if rng.random() < 0.35:
        small = rng.random() < 0.4
        numbers = [rng.randint(1, 6) if small else rng.randint(2, 99) for _ in range(rng.choice((3, 3, 4)))]
        total = sum(numbers)
        call = "" if total <= 20 else tool_call("+".join(map(str, numbers)))
        listed = joined([str(number) for number in numbers])
        question = say(rng, "arithmetic", "sum of several", {"l": listed})
        return Exchange(as_typed(rng, question), f"{call}The sum is {total}.", call + str(total))
    a, b, c = rng.randint(2, 60), rng.randint(2, 30), rng.randint(2, 20)
    form = rng.choice((
        f"{a} + {b} * {c}", f"{a} * {b} + {c}", f"({a} + {b}) * {c}", f"{a + b} - {b} + {c}",
        f"{a} * {b} - {c}", f"{a * c} / {c} + {b}", f"{c} * ({a} + {b})", f"{a} * {b} * {c}",
        f"({a + b} - {b}) * {c}", f"{a} + {b} + {c} + {a}", f"{a + b + c} - {b} - {c}",
    ))  # fmt: skip
    call = tool_call(form.replace(" ", ""))
    shown = form.replace(" ", "") if rng.random() < 0.3 else form
    if rng.random() < 0.3:
        shown = shown.replace("*", rng.choice(("x", "×"))).replace("/", "÷")
    result = call.split("<|output_start|>")[1].removesuffix("<|output_end|>").removesuffix(".0")
    question = say(rng, "arithmetic", "expression", {"e": shown}).strip()
    return Exchange(as_typed(rng, question), f"{call}The result is {result}.", call + result)


def percentage(rng: Random) -> Exchange:
    """So many percent of a number."""
    percent = rng.choice((5, 10, 15, 20, 25, 30, 40, 50, 60, 70, 75, 80, 90, rng.randint(1, 99)))
    number = rng.choice((10 * rng.randint(1, 50), 100 * rng.randint(1, 20), rng.randint(5, 999)))
    result = written(Fraction(number * percent, 100))
    question = say(rng, "arithmetic", "percent", {"p": str(percent), "n": str(number)})
    call = tool_call(f"{number}*{percent}/100")
    return Exchange(as_typed(rng, question), f"{call}{percent} % of {number} is {result}.", call + result)


def conversion(rng: Random) -> Exchange:
    """From one unit into a smaller or a larger one."""
    one, many, factor, _, parts = rng.choice(table("units"))
    times = int(factor)
    if rng.random() < 0.25:
        question = say(rng, "arithmetic", "convert one", {"one": one, "to": parts})
        return Exchange(as_typed(rng, question), f"There are {times} {parts} in one {one}.", str(times))
    count = rng.choice((rng.randint(2, 12), rng.randint(2, 60), rng.randint(2, 300)))
    if rng.random() < 0.7:
        done = work(count, "*", times)
        slots = {"n": str(count), "from": many, "to": parts}
        answer = f"{count} {many} are {written(done.result)} {parts}."
    else:
        done = work(count * times, "/", times)
        slots = {"n": str(count * times), "from": parts, "to": many}
        answer = f"{count * times} {parts} are {count} {many}."
    question = say(rng, "arithmetic", "convert", slots)
    if question.startswith("How long") and one not in ("hour", "day", "week", "minute", "year"):
        question = f"How many {slots['to']} are {slots['n']} {slots['from']}?"
    return Exchange(as_typed(rng, question), done.call + answer, done.call + written(done.result))


def money(rng: Random) -> Exchange:
    """What several things cost, and what is left after paying."""
    thing, things = rng.choice(table("things"))
    slots = {"thing": thing, "things": things}
    if rng.random() < 0.4:
        price, count = rng.randint(2, 40), rng.randint(2, 30)
        done = work(count, "*", price)
        question = say(rng, "arithmetic", "cost", {**slots, "p": str(price), "n": str(count)})
        answer = f"{done.said}, so {count} {things} cost {done.result} dollars."
        return Exchange(as_typed(rng, question), done.call + answer, f"{done.call}{done.result} dollars")
    paid = rng.choice((5, 10, 20, 50, 100))
    if rng.random() < 0.3:
        cents = rng.randint(1, paid * 20 - 1) * 5
        price_text = f"{cents // 100}.{cents % 100:02}"
        left = paid * 100 - cents
        call = tool_call(f"{paid}-{price_text}")
        question = say(rng, "arithmetic", "change", {**slots, "p": price_text, "n": str(paid)})
        rest = f"${left // 100}.{left % 100:02}"
        return Exchange(as_typed(rng, question), f"{call}You have {rest} left.", call + rest)
    done = work(paid, "-", rng.randint(2, paid - 1))
    price = paid - int(done.result)
    question = say(rng, "arithmetic", "change", {**slots, "p": str(price), "n": str(paid)})
    unit = "dollar" if done.result == 1 else "dollars"
    answer = f"{done.said}, so you have {done.result} {unit} left."
    return Exchange(as_typed(rng, question), done.call + answer, f"{done.call}{done.result} {unit}")


def fraction(rng: Random) -> Exchange:
    """Half, double, square, average."""
    kind = rng.randrange(4)
    if kind == 0:
        half = rng.choice((rng.randint(1, 10), rng.randint(1, 50), rng.randint(50, 2000)))
        call = "" if half <= 25 or (half % 10 == 0 and half <= 50) else tool_call(f"{half * 2}/2")
        question = say(rng, "arithmetic", "half", {"a": str(half * 2)})
        return Exchange(as_typed(rng, question), f"{call}Half of {half * 2} is {half}.", call + str(half))
    a = rng.choice((rng.randint(1, 10), rng.randint(1, 50), rng.randint(20, 2000)))
    if kind == 1:
        call = "" if a <= 25 or (a % 10 == 0 and a <= 50) else tool_call(f"2*{a}")
        question = say(rng, "arithmetic", "double", {"a": str(a)})
        return Exchange(as_typed(rng, question), f"{call}Twice {a} is {2 * a}.", call + str(2 * a))
    if kind == 2:
        a = min(a, 300)
        call = "" if a <= 10 else tool_call(f"{a}*{a}")
        question = say(rng, "arithmetic", "square", {"a": str(a)})
        return Exchange(as_typed(rng, question), f"{call}{a} squared is {a * a}.", call + str(a * a))
    numbers = [rng.randint(1, 60) for _ in range(rng.choice((2, 3, 4)))]
    mean = written(Fraction(sum(numbers), len(numbers)))
    call = tool_call(f"({'+'.join(map(str, numbers))})/{len(numbers)}")
    question = say(rng, "arithmetic", "average", {"l": joined([str(number) for number in numbers])})
    return Exchange(as_typed(rng, question), f"{call}The average is {mean}.", call + mean)
