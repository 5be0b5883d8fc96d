"""What follows a story: shorter, the moral, who was in it, another one, on with it; and reading."""

import re
from collections.abc import Callable
from random import Random

from training.conversations.exchange import Exchange, Message, messages
from training.conversations.phrases import say
from training.conversations.phrasing import article, as_typed, expand
from training.conversations.stories.cast import PET_NAMES
from training.conversations.stories.telling import Story, sentences, summarise, tell
from training.conversations.tales import request

_Next = Callable[[Random, Story], Exchange | None]


def _ask(rng: Random, heading: str, story: Story) -> str:
    return as_typed(rng, say(rng, "stories", heading, story.slots))


def _shorter(rng: Random, story: Story) -> Exchange:
    return Exchange(_ask(rng, "shorter", story), summarise(rng, story))


def _who(rng: Random, story: Story) -> Exchange:
    slots = story.slots
    told = f"The story is about {slots['name']} the {slots['kind']}"
    if re.search(rf"\b{slots['friend']}\b", story.text):
        told += f" and {slots['friend']} the {slots['fkind']}"
    return Exchange(_ask(rng, "who", story), f"{told}.")


def _moral(rng: Random, story: Story) -> Exchange:
    return Exchange(_ask(rng, "moral", story), story.plot.moral)


def _another(rng: Random, story: Story) -> Exchange:
    return Exchange(_ask(rng, "another", story), tell(rng).text)


def _like(rng: Random, story: Story) -> Exchange:
    return Exchange(_ask(rng, "like", story), say(rng, "stories", "liked", story.slots))


def _title(rng: Random, story: Story) -> Exchange:
    return Exchange(_ask(rng, "title", story), f'"{story.title}".')


def _name(rng: Random, story: Story) -> Exchange:
    slots = story.slots
    return Exchange(_ask(rng, "name", story), f"The {slots['kind']} is called {slots['name']}.")


def _what_is(rng: Random, story: Story) -> Exchange:
    slots = story.slots
    return Exchange(
        _ask(rng, "what is", story), f"{slots['name']} is {article(slots['kind'])} {slots['kind']}."
    )


def _friend(rng: Random, story: Story) -> Exchange | None:
    slots = story.slots
    if not re.search(rf"\b{slots['friend']}\b", story.text):
        return None
    told = f"{slots['friend']} is {article(slots['fkind'])} {slots['fkind']}."
    return Exchange(_ask(rng, "friend", story), told)


def _where(rng: Random, story: Story) -> Exchange | None:
    if story.slots["home"] not in story.text:
        return None
    return Exchange(_ask(rng, "where", story), f"{story.slots['name']} lived in {story.slots['home']}.")


def _continue(rng: Random, story: Story) -> Exchange:
    return Exchange(_ask(rng, "continue", story), say(rng, "stories", "continued", story.slots))


def _rename(rng: Random, story: Story) -> Exchange:
    new = rng.choice([name for name in PET_NAMES if not re.search(rf"\b{name}\b", story.text)])
    question = say(rng, "stories", "rename", {**story.slots, "new": new})
    return Exchange(as_typed(rng, question), re.sub(rf"\b{story.slots['name']}\b", new, story.text))


def _hero(rng: Random, story: Story) -> Exchange:
    return Exchange(_ask(rng, "hero", story), say(rng, "stories", "hero told", story.slots))


def _fate(rng: Random, story: Story) -> Exchange | None:
    """What became of the thing or the character that the story is about."""
    if not story.plot.fate:
        return None
    told = expand(rng, story.plot.fate, story.slots)
    return Exchange(_ask(rng, f"fate {story.plot.subject}", story), told)


def _ending(rng: Random, story: Story) -> Exchange:
    """The last sentence of the summary."""
    told = sentences(expand(rng, story.plot.summary, story.slots))[-1]
    return Exchange(_ask(rng, "ending", story), told)


def _other_end(rng: Random, story: Story) -> Exchange:
    subject = story.plot.subject
    heading = f"told end {subject}" if subject in ("object", "fkind") and rng.random() < 0.7 else "told end"
    asked = rng.choice(("another end", "happy ending"))
    return Exchange(_ask(rng, asked, story), say(rng, "stories", heading, story.slots))


_NEXT: tuple[tuple[_Next, float], ...] = (
    (_shorter, 5), (_who, 2), (_moral, 2.5), (_another, 1), (_like, 1.5), (_title, 4), (_name, 1.5),
    (_what_is, 1.5), (_friend, 1.5), (_where, 1.5), (_continue, 1.5), (_rename, 1),
    (_hero, 1.5), (_fate, 2.5), (_ending, 2), (_other_end, 1.5),
)  # fmt: skip


def story_talk(rng: Random) -> list[Message]:
    """A story and one to three turns about it; after another story or another end the talk is over."""
    first, story = request(rng)
    turns, used = [first], set[_Next]()
    for _ in range(rng.choice((1, 1, 2, 3))):
        make = rng.choices([make for make, _ in _NEXT], [weight for _, weight in _NEXT])[0]
        following = None if make in used else make(rng, story)
        used.add(make)
        if following is not None:
            turns.append(following)
        if make in (_another, _rename, _other_end):
            break
    return messages(*turns)


def reading(rng: Random) -> Exchange:
    """A question about a short text that is given."""
    whole = tell(rng)
    text = summarise(rng, whole)
    story = Story(text, whole.title, whole.plot, whole.slots)
    following = None
    while following is None:
        following = rng.choice((_who, _what_is, _name, _title, _moral, _friend))(rng, story)
    ask = following.question
    if not ask.endswith(("?", ".", "!")):
        ask += "?" if ask.lower().startswith(("wh", "does", "and", "so")) else "."
    form = rng.choice((f"{text}\n\n{ask}", f"{ask}\n\n{text}", f'Read this: "{text}" {ask}', f"{ask} {text}"))
    return Exchange(form, following.answer)
