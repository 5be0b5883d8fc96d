"""The prompts that the model is judged by. None of them may occur in training data: `is_held_out` tells."""

import re
from dataclasses import dataclass
from functools import cache

from training.evaluate.questions import CAPITAL_FORM, FORMS, NAME, SUM_FORM, made

# Shorter prompts are everyday phrases: they are held out, and looked for, as whole turns only.
SUBSTRING_WORDS = 6


@dataclass(frozen=True, slots=True)
class Prompt:
    """User turns, one after another; `expect` is a regular expression that the last answer should match."""

    turns: tuple[str, ...]
    expect: str | None = None
    system: str | None = None


def _ask(*turns: str, expect: str | None = None, system: str | None = None) -> Prompt:
    return Prompt(turns, expect, system)


THREE = r"\w+, \w+,? and \w+"
# Nobody who has an age, a sex or a name of a person is speaking.
NO_LIFE = r"^(?!.*\b(woman|man|girl|boy|years? old|year old|my name is (?!Fastpath)))"
FIXED = (
    _ask("Hello! It's good to see you.", expect=f"(?i){NO_LIFE}.*(hello|hi\\b|nice|good)"),
    _ask(NAME[0], expect="Fastpath"),
    _ask("Who exactly are you?", expect="Fastpath"),
    _ask("Are you some kind of human being?", expect="(?i)\\bno\\b|not|program|model"),
    _ask("And where do you actually run?", expect="(?i)machine|computer"),
    _ask("What sort of things could you do for me?", expect="(?i)stor|question|sum|chat"),
    _ask("How are you feeling this morning?", expect="(?i)well|fine|good|great|thank"),
    _ask("I feel a little sad this evening.", expect=f"(?i){NO_LIFE}.*(sorry|hard|hope|better|cheer)"),
    _ask("Thanks, that was really useful to me!", expect="(?i)^(?!.*upset).*(welcome|glad)"),
    _ask(CAPITAL_FORM.format("France"), expect="Paris"),
    _ask("Which country has Nairobi as its capital city?", expect="Kenya"),
    _ask("On which continent would I find Peru?", expect="South America"),
    _ask(SUM_FORM.format(7, 5), expect=r"\b12\b"),
    _ask("If I take 4 away from 13, what is left?", expect=r"\b9\b"),
    _ask("I need to know what 47 times 86 comes to.", expect=r"\b4,?042\b"),
    _ask("I have 3 apples and buy 6 more. How many apples do I have now?", expect=r"\b9\b"),
    _ask("Could you count for me from 3 up to 9?", expect=r"3, 4, 5, 6, 7, 8,? (and )?9"),
    _ask("How many r are there in the word strawberry?", expect=r"(?i)\b(3|three)\b"),
    _ask('How would you spell the word "house"?', expect="(?i)h-o-u-s-e|h, o, u, s, e"),
    _ask("Which day comes right after Monday?", expect="Tuesday"),
    _ask("And which month comes right before April?", expect="March"),
    _ask("Please give me the names of three animals.", expect=THREE),
    _ask("Could you list three colors for me?", expect=THREE),
    _ask("I want four fruits, one on each line, with a dash in front.", expect=r"(- \w+.*\n?){4}"),
    _ask('What would be the opposite of "cold"?', expect="(?i)hot|warm"),
    _ask("What color does a ripe banana have?", expect="(?i)yellow"),
    _ask("Name the capital of Italy, and use one word only.", expect=r"^Rome\.?$"),
    _ask("Do you happen to know what the weather is like outside?", expect="(?i)don't|can't|cannot|not"),
    _ask("Who is Professor Zubelkrank?", expect="(?i)don't know|sorry|not know|do not"),
    _ask("Who won the football match last night?", expect="(?i)don't know|sorry|not know|do not|cannot"),
    _ask(
        "Please tell me a short story about a hedgehog who finds a lantern.",
        expect="(?i)hedgehog(.|\\n)*lantern",
    ),
    _ask(
        'Write a little story with the words "river", "umbrella" and "owl" in it.',
        expect="(?i)(?=(.|\\n)*river)(?=(.|\\n)*umbrella)(?=(.|\\n)*owl)",
    ),
    _ask("Could you write a tale about two friends who have a quarrel?", expect="(?i)quarrel|sorry|friend"),
    _ask("Explain to me why it rains.", expect="(?i)cloud|water"),
    _ask("How could I make a new friend at school?", expect="(?i)hello|smile|listen|kind|invite|join"),
    _ask(
        "I cannot fall asleep at night. What would you advise?", expect="(?i)bed|screen|read|dark|quiet|rest"
    ),
    _ask("My name is Ottilie, by the way.", "So what is my name?", expect=f"{NO_LIFE}.*Ottilie"),
    _ask(
        "Please tell me a story about a penguin and a drum.",
        "Could you make that story much shorter?",
        "And what would be a good title for it?",
        expect="(?i)penguin|drum",
    ),
    _ask(CAPITAL_FORM.format("Spain"), "And what about Portugal?", expect="Lisbon"),
    _ask(
        "A volcano, what kind of thing might that be?",
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
    turns += [question.text for question in made()]
    return frozenset(map(normalised, turns))


def _form(template: str) -> str:
    """The normalised form as an expression; an open place takes one or two words."""
    words = re.sub(r"\{\w*\}", " xslotx ", template)
    return normalised(words).replace("xslotx", r"[a-z0-9]+(?: [a-z0-9]+)?")


_FORMS = re.compile("|".join(map(_form, FORMS)))


@cache
def _by_start() -> dict[tuple[str, ...], list[tuple[str, ...]]]:
    """Words of the prompts of at least SUBSTRING_WORDS words, by the first three."""
    found: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
    for words in sorted(tuple(prompt.split()) for prompt in held_out()):
        if len(words) >= SUBSTRING_WORDS:
            found.setdefault(words[:3], []).append(words)
    return found


def is_held_out(user_text: str) -> bool:
    """Whether a user turn is one of the prompts, contains a longer one, or has the form of one with other
    numbers or words in it.
    """
    text = normalised(user_text)
    if text in held_out() or _FORMS.fullmatch(text) is not None:
        return True
    words, known = tuple(text.split()), _by_start()
    return any(
        words[at : at + len(prompt)] == prompt
        for at in range(len(words) - SUBSTRING_WORDS + 1)
        for prompt in known.get(words[at : at + 3], ())
    )
