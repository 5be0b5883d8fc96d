"""Telling a story: a cast and a plot become paragraphs."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from random import Random

from training.conversations.phrases import say
from training.conversations.phrasing import expand
from training.conversations.stories.cast import draw, favoured
from training.conversations.stories.plot import Plot, all_plots

OPENINGS = (
    "Once upon a time there was {a trait} {kind} named {name}. {He} lived in {home} with {his} {elder}.",
    "Once there was {a kind} called {name}. {Name} lived in {home}.",
    "There was once {a trait} {kind} whose name was {name}. {His} home was {home}.",
    "{Name} was {a trait} {kind}. {He} lived with {his} {elder} in {home}.",
    "In {home} there lived {a kind} named {name}. {He} was [very|a bit|always] {trait}.",
    "Long ago, in {home}, there lived {a trait} {kind}. {His} name was {name}.",
    "This is the story of {name}, {a trait} {kind} from {home}.",
    "{Name} the {kind} lived in {home}. Everyone knew that {he} was {trait}.",
    "Not long ago, {a trait} {kind} named {name} lived in {home} with {his} {elder}.",
    "My grandmother told me about {name}, {a trait} {kind} from {home}.",
    "Let me tell you about {name}. {Name} was {a trait} {kind} who lived in {home}.",
    "Far away, in {home}, there was once {a trait} {kind} named {name}.",
    "Do you know {name}? {Name} was {a kind}, and there was nobody more {trait} in the whole world.",
    "{Name} was no common {kind}. {He} was {trait}, and {he} lived in {home} with {his} {elder}.",
)
ENDINGS = (
    "And they were happy for a long, long time.",
    "That was {a day} that {name} would never forget.",
    "And {name} [fell asleep with a smile|was very happy|smiled].",
    "And so the story of {name} [ends|has a happy ending].",
    "The end.",
    "That night {name} slept very well.",
)
# What a request may ask for that no plot is about: it comes back in the last paragraph.
_CLOSED = frozenset(("scene", "object2", "food", "object"))


@dataclass(frozen=True, slots=True)
class Story:
    """A told story with what later turns may ask about it."""

    text: str
    title: str
    plot: Plot
    slots: dict[str, str]


def tell(
    rng: Random,
    fixed: dict[str, str] | None = None,
    plot: Plot | None = None,
    marks: Sequence[str] = (),
) -> Story:
    """One story, 110 to 280 words; `fixed` slots come from the request; those of `marks` are named early."""
    plot = plot or rng.choice(all_plots())
    slots = draw(rng, fixed, plot.subject)
    parts = [expand(rng, rng.choice(beat), slots) for beat in plot.beats]
    if not plot.subject:
        parts.insert(0, expand(rng, favoured(rng, OPENINGS, slots["kind"]), slots))
    missing = [key for key in marks if not mentions(" ".join(parts[:2]), slots[key])]
    parts[0] = " ".join((parts[0], *(say(rng, "stories", f"mark {key}", slots) for key in missing)))
    for key in missing:
        if key in _CLOSED and not mentions(" ".join(parts[1:]), slots[key]):
            parts[-1] += " " + say(rng, "stories", f"end {key}", slots)
    if rng.random() < 0.4 and plot.mood != "sad" and not missing:
        parts[-1] += " " + expand(rng, rng.choice(ENDINGS), slots)
    if rng.random() < 0.12:
        parts[-1] += " " + plot.moral
    if not plot.subject:
        parts[:2] = [" ".join(parts[:2])]
    text = introduce("\n\n".join(parts) if rng.random() < 0.75 else " ".join(parts), slots)
    return Story(text, expand(rng, plot.title, slots), plot, slots)


def mentions(text: str, word: str) -> bool:
    """Whether `word` occurs in `text` as a word, in any case."""
    text, word = text.lower(), word.removeprefix("the ").lower()
    at = text.find(word)
    while at >= 0:
        end = at + len(word)
        if not text[max(0, at - 1) : at].isalnum() and not text[end : end + 1].isalnum():
            return True
        at = text.find(word, end)
    return False


@cache
def _as_subject(name: str) -> re.Pattern[str]:
    # Kept here, for the names are more than what the module `re` remembers.
    return re.compile(rf"\b{name}\b(?!'s)")


def introduce(text: str, slots: dict[str, str]) -> str:
    """Say what the friend is where the name comes first, if the wording did not."""
    friend, kind = slots["friend"], slots["fkind"]
    first = _as_subject(friend).search(text)
    if first is None or kind in text[max(0, first.start() - 60) : first.end() + 40]:
        return text
    return f"{text[: first.end()]} the {kind}{text[first.end() :]}"


def sentences(text: str) -> list[str]:
    """The sentences of `text`; a quotation's end mark ends its sentence only before a capital letter."""
    return re.split(r'(?<=[.!?])\s+(?=["A-Z])|(?<=[.!?]")\s+(?=["A-Z])', text)


def summarise(rng: Random, story: Story) -> str:
    """The story in two or three sentences."""
    name, kind = story.slots["name"], story.slots["kind"]
    start = rng.choice((f"{name} was {{a trait}} {kind}. ", f"There was once {{a kind}} named {name}. "))
    return introduce(expand(rng, start + story.plot.summary, story.slots), story.slots)
