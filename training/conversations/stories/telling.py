"""Telling a story: a cast and a plot become paragraphs."""

import re
from dataclasses import dataclass
from random import Random

from training.conversations.phrasing import expand
from training.conversations.stories.cast import draw
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


@dataclass(frozen=True, slots=True)
class Story:
    """A told story with what later turns may ask about it."""

    text: str
    title: str
    plot: Plot
    slots: dict[str, str]


def tell(rng: Random, fixed: dict[str, str] | None = None, plot: Plot | None = None) -> Story:
    """One story, 110 to 280 words; `fixed` slots come from the request."""
    plot = plot or rng.choice(all_plots())
    slots = draw(rng, fixed)
    parts = [expand(rng, rng.choice(OPENINGS), slots)]
    parts += [expand(rng, rng.choice(beat), slots) for beat in plot.beats]
    if rng.random() < 0.4 and plot.mood != "sad":
        parts[-1] += " " + expand(rng, rng.choice(ENDINGS), slots)
    if rng.random() < 0.12:
        parts[-1] += " " + plot.moral
    parts[:2] = [" ".join(parts[:2])]
    text = introduce("\n\n".join(parts) if rng.random() < 0.75 else " ".join(parts), slots)
    return Story(text, expand(rng, plot.title, slots), plot, slots)


def introduce(text: str, slots: dict[str, str]) -> str:
    """Say what the friend is where the name comes first, if the wording did not."""
    friend, kind = slots["friend"], slots["fkind"]
    first = re.search(rf"\b{friend}\b(?!'s)", text)
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
