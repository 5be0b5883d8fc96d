"""Telling a story: a cast and a plot become paragraphs."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from random import Random

from training.conversations.phrases import say
from training.conversations.phrasing import article, capitalise, expand
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
# Words that a bare name follows: "his friend Hazel", "old Hazel".
_APPOSED = re.compile(
    r"\b(?:friend|friends|neighbor|cousin|the|old|little|poor|dear|good|small|big|named|called|name was)\s$",
    re.I,
)
# Titles that can be read off the story, whatever its plot.
_TITLES = {"object": "{Name} and the {Object}", "fkind": "{Name} and {Friend}", "building": "The {Building}"}
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
    opening: str | None = None,
) -> Story:
    """One story, 110 to 280 words; `fixed` slots come from the request; those of `marks` are named early.

    `opening` is a template for the first sentences of a plot that has none of its own.
    """
    plot = plot or rng.choice(all_plots())
    slots = draw(rng, fixed, plot.subject)
    parts = [expand(rng, rng.choice(beat), slots) for beat in plot.beats]
    if not plot.subject:
        parts.insert(0, expand(rng, opening or favoured(rng, OPENINGS, slots["kind"]), slots))
    missing = [key for key in marks if not mentions(" ".join(parts[:2]), slots[key])]
    parts[0] = " ".join((parts[0], *(say(rng, "stories", f"mark {key}", slots) for key in missing)))
    for key in marks:
        if key in _CLOSED and not mentions(" ".join(parts[1:]), slots[key]):
            parts[-1] += " " + say(rng, "stories", f"end {key}", slots)
    if rng.random() < 0.4 and plot.mood != "sad" and not missing:
        parts[-1] += " " + expand(rng, rng.choice(ENDINGS), slots)
    if rng.random() < 0.12:
        parts[-1] += " " + plot.moral
    if not plot.subject:
        parts[:2] = [" ".join(parts[:2])]
    text = introduce(rng, "\n\n".join(parts) if rng.random() < 0.75 else " ".join(parts), slots)
    title = _TITLES[plot.subject] if plot.subject in _TITLES and rng.random() < 0.6 else plot.title
    return Story(text, expand(rng, title, slots), plot, slots)


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


def introduce(rng: Random, text: str, slots: dict[str, str], share: float = 0.88) -> str:
    """Say what the friend is where the name comes first, if the wording did not.

    In `share` of all stories the kind is said before the name, "a fox named Rusty": a name alone is foreseen
    from the text so far, where every name is the hero's.
    """
    friend, kind = slots["friend"], slots["fkind"]
    first = _as_subject(friend).search(text)
    if first is None:
        return text
    before, after = text[: first.start()], text[first.end() :]
    told = f" the {kind}"
    for form in (told, f", {article(kind)} {kind}"):
        if re.match(rf"{form}\b", after):
            told, after = form, after.removeprefix(form)
            break
    else:
        if kind in before[-60:] or kind in after[:40]:
            return text
    quoted = before.count('"') % 2 == 1
    if quoted or _APPOSED.search(before[-12:]) or rng.random() >= share:
        return f"{before}{friend}{told}{after}"
    who = f"{article(kind)} {kind} {rng.choice(('named', 'named', 'called'))} {friend}"
    starts = not before or bool(re.search(r'(?:[.!?]["\']?\s+|^"|\n)$', before[-4:]))
    return f"{before}{capitalise(who) if starts else who}{after}"


def sentences(text: str) -> list[str]:
    """The sentences of `text`; a quotation's end mark ends its sentence only before a capital letter."""
    return re.split(r'(?<=[.!?])\s+(?=["A-Z])|(?<=[.!?]")\s+(?=["A-Z])', text)


def summarise(rng: Random, story: Story) -> str:
    """The story in two or three sentences."""
    name, kind = story.slots["name"], story.slots["kind"]
    start = rng.choice((f"{name} was {{a trait}} {kind}. ", f"There was once {{a kind}} named {name}. "))
    return introduce(rng, expand(rng, start + story.plot.summary, story.slots), story.slots)
