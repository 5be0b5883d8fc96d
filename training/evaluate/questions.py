"""Questions that a program makes, with what a right answer is. Training never uses their forms.

`required()` is what the model must get right at least; `calculator()` and `spelling()` are drawn with fixed
seeds. A form is a template with numbers or words left open; `FORMS` lists them all, and `training.prompts`
keeps conversations with any of them out of training.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Literal

FOLDER = Path(__file__).parent / "words"
Rule = Literal["number", "capital", "name", "animals", "colours", "tuesday", "spelled", "reversed"]


@dataclass(frozen=True, slots=True)
class Question:
    """One user turn, the rule of `training.evaluate.scoring` that judges the answer, and what it expects."""

    text: str
    rule: Rule
    expect: str = ""


# Accepted spellings are parted by "|".
CAPITALS = {
    "France": "Paris",
    "Germany": "Berlin",
    "Japan": "Tokyo",
    "China": "Beijing|Peking",
    "India": "New Delhi|Delhi",
    "Russia": "Moscow",
    "Brazil": "Brasilia|Brasília",
    "Canada": "Ottawa",
    "Egypt": "Cairo",
    "the United States": "Washington",
}
CAPITAL_FORM = "Can you tell me which city is the capital of {}?"
CAPITAL_FORMS = (
    CAPITAL_FORM,
    "If I wanted to see the capital of {}, which city would I travel to?",
    "I forgot how the capital of {} is called. Would you remind me?",
)
SUM_FORM = "Could you add {} and {} for me?"
NAME = (
    "Hi there, and what might your name be?",
    "How should I address you?",
    "Under which name do people know you?",
    "I would like to know how you are called.",
    "Before we begin: who am I talking with here?",
    "Would you mind telling me your own name?",
)
ANIMALS = (
    "Please give me the names of three animals.",
    "Which three animals come to your mind first?",
    "I would like to hear three animals from you.",
    "For a drawing I need any three animals. Which ones?",
    "Mention three animals of your choice.",
    "Can three animals be named by you?",
)
COLOURS = (
    "Could you list three colors for me?",
    "Which three colours come to your mind first?",
    "I would like to hear three colors from you.",
    "For a painting I need any three colours. Which ones?",
    "Mention three colors of your choice.",
    "Can three colours be named by you?",
)
TUESDAY = (
    "Which day comes right after Monday?",
    "Suppose today is Monday. Which day do we have tomorrow?",
    "After Monday, which day is the next one in the week?",
    "Yesterday was Monday. So which day is it now?",
    "My visit is one day after Monday. On which day is that?",
    "What is the name of the day that Monday is followed by?",
)
ADD = (
    SUM_FORM,
    "I need to know the total of {} and {}, please.",
    "When I put {} together with {}, which number comes out?",
    "Would you work out for me how much {} and {} are together?",
)
SUBTRACT = (
    "Could you take {1} off {0} for me?",
    "If I start at {0} and go down by {1}, on which number do I end up?",
    "I have to know what remains of {0} once {1} are gone.",
    "By how much is {0} more than {1}?",
)
MULTIPLY = (
    "Could you multiply {} with {} for me?",
    "I want to know how much {} groups of {} come to.",
    "Which number comes out of {} times {}, please?",
    "Would you work out for me what {} rows with {} seats each make?",
)
PROBLEMS = (
    ("A baker has {a} rolls in the morning and bakes {b} more by noon. How many rolls are that in all?", "+"),
    ("Our school has {a} pupils, and {b} new ones join it. How many pupils does it have then?", "+"),
    ("I walked {a} steps before lunch and {b} steps after it. How many steps did I walk today?", "+"),
    ("A farmer owns {a} hens and sells {b} of them. How many hens stay on the farm?", "-"),
    ("A tank holds {a} litres of water, and {b} litres leak out. How many litres remain in it?", "-"),
    ("The book has {a} pages, and I have read {b} of them. How many pages are still ahead of me?", "-"),
    ("Each of {a} boxes contains {b} pens. How many pens do the boxes contain altogether?", "*"),
    ("One ticket costs {b} dollars. How many dollars do {a} such tickets cost?", "*"),
    ("A hall has {a} rows of {b} chairs. How many chairs stand in the hall?", "*"),
    ("A train makes {a} trips a day. How many trips does it make in {b} days?", "*"),
)
COUNT = (
    "How many {0} are there in the word {1}?",
    "In the word {1}, how many times does one meet the letter {0}?",
    "Look at {1} closely: how often can you find the letter {0} in it?",
)
SPELL = (
    "Which letters, one after another, make up the word {}?",
    "I never know how {} is written. Would you spell it out for me?",
)
REVERSE = (
    "What do you get if you read the word {} from its end to its beginning?",
    "Please turn the word {} around, letter by letter.",
)
FORMS = (
    *CAPITAL_FORMS,
    *ADD,
    *SUBTRACT,
    *MULTIPLY,
    *(problem for problem, _ in PROBLEMS),
    *COUNT,
    *SPELL,
    *REVERSE,
)


@cache
def words(name: str) -> tuple[str, ...]:
    """The words of words/NAME.txt."""
    return tuple((FOLDER / f"{name}.txt").read_text("utf-8").split())


def sums() -> list[tuple[int, int]]:
    """All pairs of numbers from 1 whose sum is at most 20."""
    return [(a, b) for a in range(1, 20) for b in range(1, 20) if a + b <= 20]


@cache
def required() -> dict[str, tuple[Question, ...]]:
    """By name: what a release must get right, asked in several ways."""
    return {
        "capitals of ten large countries": tuple(
            Question(form.format(country), "capital", city)
            for form in CAPITAL_FORMS
            for country, city in CAPITALS.items()
        ),
        "sums up to 20": tuple(Question(SUM_FORM.format(a, b), "number", str(a + b)) for a, b in sums()),
        "its own name": tuple(Question(text, "name") for text in NAME),
        "three animals": tuple(Question(text, "animals") for text in ANIMALS),
        "three colours": tuple(Question(text, "colours") for text in COLOURS),
        "the day after Monday": tuple(Question(text, "tuesday") for text in TUESDAY),
    }


@cache
def calculator(each: int = 40) -> dict[str, tuple[Question, ...]]:
    """Sums, differences and products of numbers of two and three digits, and word problems."""
    rng = Random("calculator")

    def number() -> int:
        return rng.randint(12, 99) if rng.random() < 0.5 else rng.randint(100, 999)

    def two() -> tuple[int, int]:
        return number(), number()

    def drawn(forms: Sequence[str], sign: str) -> tuple[Question, ...]:
        return tuple(_calculation(forms[at % len(forms)], sign, *two()) for at in range(each))

    return {
        "sums": drawn(ADD, "+"),
        "differences": drawn(SUBTRACT, "-"),
        "products": drawn(MULTIPLY, "*"),
        "word problems": tuple(
            _calculation(text.replace("{a}", "{0}").replace("{b}", "{1}"), sign, *two())
            for text, sign in (PROBLEMS[at % len(PROBLEMS)] for at in range(each))
        ),
    }


def _calculation(form: str, sign: str, a: int, b: int) -> Question:
    if sign == "-":
        a, b = max(a, b), min(a, b)
    if sign == "*":
        b = b % 88 + 12  # two digits
    result = a + b if sign == "+" else a - b if sign == "-" else a * b
    return Question(form.format(a, b), "number", str(result))


@cache
def spelling(each: int = 40) -> dict[str, tuple[Question, ...]]:
    """Letters counted in a word, words spelled forwards and backwards."""
    rng, known = Random("spelling"), words("spelling")

    def counted(form: str) -> Question:
        word = rng.choice(known)
        # Nearly always a letter that occurs, and often one that occurs twice.
        letter = rng.choice(word) if rng.random() < 0.9 else rng.choice("aeiostr")
        return Question(form.format(letter, word), "number", str(word.count(letter)))

    count = tuple(counted(COUNT[at % len(COUNT)]) for at in range(each))
    forwards, backwards = (rng.sample(known, min(each, len(known))) for _ in range(2))
    return {
        "letters counted": count,
        "spelled forwards": tuple(
            Question(SPELL[at % len(SPELL)].format(word), "spelled", word) for at, word in enumerate(forwards)
        ),
        "spelled backwards": tuple(
            Question(REVERSE[at % len(REVERSE)].format(word), "reversed", word[::-1])
            for at, word in enumerate(backwards)
        ),
    }


def made() -> list[Question]:
    """Every question of this module."""
    groups = [*required().values(), *calculator().values(), *spelling().values()]
    return [question for group in groups for question in group]
