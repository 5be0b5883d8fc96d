"""The prompts that the model is judged by. None of them may occur in training data: `is_held_out` tells."""

import re
from dataclasses import dataclass
from functools import cache

# Shorter prompts are everyday phrases; they are looked for as whole turns only.
SUBSTRING_WORDS = 6
CAPITALS = {
    "France": "Paris",
    "Germany": "Berlin",
    "Japan": "Tokyo",
    "China": "Beijing",
    "India": "New Delhi",
    "Russia": "Moscow",
    "Brazil": "Bras",
    "Canada": "Ottawa",
    "Egypt": "Cairo",
    "the United States": "Washington",
}
CAPITAL_FORM = "Can you tell me which city is the capital of {}?"
SUM_FORM = "Could you add {} and {} for me?"


@dataclass(frozen=True, slots=True)
class Prompt:
    """User turns, one after another; `expect` is a regular expression that the last answer should match."""

    turns: tuple[str, ...]
    expect: str | None = None
    system: str | None = None


def _ask(*turns: str, expect: str | None = None, system: str | None = None) -> Prompt:
    return Prompt(turns, expect, system)


THREE = r"\w+, \w+,? and \w+"
FIXED = (
    _ask("Hello! It's good to see you.", expect="(?i)hello|hi\\b|nice|good"),
    _ask("Hi there, and what might your name be?", expect="Fastpath"),
    _ask("Who exactly are you?", expect="Fastpath"),
    _ask("Are you some kind of human being?", expect="(?i)\\bno\\b|not|program|model"),
    _ask("And where do you actually run?", expect="(?i)machine"),
    _ask("What sort of things could you do for me?", expect="(?i)stor|question|sum|chat"),
    _ask("How are you feeling this morning?", expect="(?i)well|fine|good|thank"),
    _ask("I feel a little sad this evening.", expect="(?i)sorry"),
    _ask("Thanks, that was really useful to me!", expect="(?i)welcome|glad"),
    _ask("Good night, I'm off to bed now.", expect="(?i)night|sleep|dream"),
    _ask(CAPITAL_FORM.format("France"), expect="Paris"),
    _ask(CAPITAL_FORM.format("Japan"), expect="Tokyo"),
    _ask("Which country has Nairobi as its capital city?", expect="Kenya"),
    _ask("On which continent would I find Peru?", expect="South America"),
    _ask(SUM_FORM.format(7, 5), expect=r"\b12\b"),
    _ask("If I take 4 away from 13, what is left?", expect=r"\b9\b"),
    _ask("I have 3 apples and buy 6 more. How many apples do I have now?", expect=r"\b9\b"),
    _ask("Could you count for me from 3 up to 9?", expect=r"3, 4, 5, 6, 7, 8,? (and )?9"),
    _ask("Which day comes right after Monday?", expect="Tuesday"),
    _ask("And which month comes right before April?", expect="March"),
    _ask("Please give me the names of three animals.", expect=THREE),
    _ask("Could you list three colors for me?", expect=THREE),
    _ask("I need five fruits for a salad. Which ones?", expect=r"\w+, \w+, \w+"),
    _ask('What would be the opposite of "cold"?', expect="(?i)hot|warm"),
    _ask("What color does a ripe banana have?", expect="(?i)yellow"),
    _ask("What noise does a cow make?", expect="(?i)moo"),
    _ask('How would you spell the word "house"?', expect="(?i)h-o-u-s-e|h, o, u, s, e"),
    _ask("Name the capital of Italy, and use one word only.", expect=r"^Rome\.?$"),
    _ask("Do you happen to know what the weather is like outside?", expect="(?i)don't|can't|cannot|not"),
    _ask("Who is Professor Zubelkrank?", expect="(?i)don't know|sorry|not know|do not"),
    _ask(
        "Please tell me a short story about a hedgehog who finds a lantern.",
        expect="(?i)hedgehog(.|\n)*lantern",
    ),
    _ask("Make up a bedtime story about a robot named Dot.", expect="Dot"),
    _ask('Write a little story with the words "river", "umbrella" and "owl" in it.', expect="(?i)umbrella"),
    _ask("Could you write a tale about two friends who have a quarrel?", expect="(?i)quarrel|sorry|friend"),
    _ask("Explain to me why it rains.", expect="(?i)cloud|water"),
    _ask("How could I make a new friend at school?", expect="(?i)hello|smile|friend|listen"),
    _ask("My name is Ottilie, by the way.", "So what is my name?", expect="Ottilie"),
    _ask(
        "Please tell me a story about a penguin and a drum.",
        "Could you make that story much shorter?",
        expect="(?i)penguin|drum",
    ),
    _ask("Can you tell me which city is the capital of Spain?", "And what about Portugal?", expect="Lisbon"),
    _ask(
        "Tell me what a volcano is.",
        system="You answer in simple words for young children.",
        expect="(?i)mountain|hot|rock|lava",
    ),
)


def normalised(text: str) -> str:
    """Lower-case words only: spelling and punctuation variants of one prompt become equal."""
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


@cache
def held_out() -> frozenset[str]:
    """Normalised user turns that training data may not contain."""
    turns = [turn for prompt in FIXED for turn in prompt.turns]
    turns += [CAPITAL_FORM.format(country) for country in CAPITALS]
    turns += [SUM_FORM.format(a, b) for a, b in sums()]
    return frozenset(map(normalised, turns))


@cache
def _long() -> dict[str, tuple[str, ...]]:
    """The held-out turns of `SUBSTRING_WORDS` words and more, by their first words."""
    found: dict[str, tuple[str, ...]] = {}
    for turn in sorted(held_out()):
        words = turn.split()
        if len(words) >= SUBSTRING_WORDS:
            start = " ".join(words[:SUBSTRING_WORDS])
            found[start] = (*found.get(start, ()), turn)
    return found


def sums() -> list[tuple[int, int]]:
    """All pairs of numbers from 1 whose sum is at most 20."""
    return [(a, b) for a in range(1, 20) for b in range(1, 20) if a + b <= 20]


def is_held_out(user_text: str) -> bool:
    """Whether the turn is a held-out prompt, or has one of the longer ones in it."""
    text = normalised(user_text)
    if text in held_out():
        return True
    words = text.split()
    for at in range(len(words) - SUBSTRING_WORDS + 1):
        start = " ".join(words[at : at + SUBSTRING_WORDS])
        if any(" ".join(words[at:]).startswith(turn) for turn in _long().get(start, ())):
            return True
    return False
