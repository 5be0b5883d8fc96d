"""Requests for stories that say what must occur, and the turns that may follow a story."""

import re
from random import Random

from training.conversations.exchange import Exchange, Message, messages
from training.conversations.phrasing import article, as_typed, capitalise, expand
from training.conversations.stories.cast import ANIMALS, BOYS, GIRLS, OBJECTS, PLACES, WONDERS
from training.conversations.stories.plot import all_plots
from training.conversations.stories.telling import Story, summarise, tell
from training.conversations.talk import invented_word

_VERB = (
    "[Tell me|Write|Tell|Make up|Can you tell me|Can you write|Please write|Please tell me|Could you write|"
    "I want|"
    "I would like|Give me|Write me] a[ short| little|| bedtime| nice| simple] story"
)
_PLAIN = (
    _VERB + ".",
    "Tell me a story",
    "A story, please.",
    "Story time!",
    "Do you know a story?",
    "I want to hear a story.",
    "Can I have a bedtime story?",
    "Write something for my child.",
    "Tell me a fairy tale.",
    "Once upon a time",
)


def _request(rng: Random) -> tuple[str, Story]:
    """A request and the story that fulfils it."""
    kind = rng.choices(range(9), (1, 1, 1.5, 1, 1.3, 1, 1, 0.7, 2))[0]
    plot = rng.choice(all_plots())
    hero = rng.choice(ANIMALS + WONDERS + ("girl", "boy"))
    fixed = {"kind": hero}
    verb = expand(rng, _VERB)
    if kind == 0:
        return expand(rng, rng.choice(_PLAIN)), tell(rng, plot=plot)
    if kind == 1:
        return f"{verb} about {article(hero)} {hero}.", tell(rng, fixed, plot)
    if kind == 2:
        fixed["object"] = rng.choice(OBJECTS)
        ask = f"{verb} about {article(hero)} {hero} and {article(fixed['object'])} {fixed['object']}."
        return ask, _with(rng, fixed, fixed["object"])
    if kind == 3:
        fixed["fkind"] = rng.choice([animal for animal in ANIMALS if animal != hero])
        ask = f"{verb} about {article(hero)} {hero} and {article(fixed['fkind'])} {fixed['fkind']}."
        return ask, _with(rng, fixed, fixed["fkind"])
    if kind == 4:
        name = fixed["name"] = (
            rng.choice(GIRLS + BOYS) if rng.random() < 0.75 else invented_word(rng).capitalize()
        )
        fixed["kind"] = "girl" if name in GIRLS or name[-1] in "ae" else "boy"
        who = name
        if rng.random() < 0.6:
            fixed["kind"] = hero if hero not in ("girl", "boy") else fixed["kind"]
            who = rng.choice(
                (
                    f"{article(fixed['kind'])} {fixed['kind']} [named|called] {name}",
                    f"{name} the {fixed['kind']}",
                )
            )
            who = expand(rng, who)
        return f"{verb} about {who}.", tell(rng, fixed, plot)
    if kind == 5:
        return f"{verb} about {plot.theme}.", tell(rng, plot=plot)
    if kind == 6:
        story = tell(rng, fixed, plot)
        hook = expand(rng, plot.hook, story.slots)
        return f"{verb} about {article(hero)} {hero} who {hook}.", story
    if kind == 7:
        fixed["place"] = rng.choice(PLACES)
        return f"{verb} about {article(hero)} {hero} at {fixed['place']}.", _with(rng, fixed, fixed["place"])
    story = tell(rng, fixed, plot)
    used = [
        story.slots[key] for key in ("kind", "object", "fkind", "food", "colour", "weather", "elder", "place")
    ]
    used = [word.removeprefix("the ") for word in used]
    used = [word for word in dict.fromkeys(used) if re.search(rf"\b{word}\b", story.text)]
    chosen = rng.sample(used, min(len(used), rng.choice((2, 3))))
    quote = rng.choice(('"{}"', "{}"))
    listed = ", ".join(quote.format(word) for word in chosen[:-1]) + " and " + quote.format(chosen[-1])
    if len(chosen) < 2:
        return f"{verb} about {article(hero)} {hero}.", story
    return expand(rng, f"{verb} [with|that uses|using] the words ") + listed + ".", story


def _with(rng: Random, fixed: dict[str, str], word: str) -> Story:
    """A story in which `word` occurs; plots without room for it are drawn again."""
    story = tell(rng, fixed)
    for _ in range(20):
        if re.search(rf"\b{word}\b", story.text):
            break
        story = tell(rng, fixed)
    return story


def request(rng: Random) -> tuple[Exchange, Story]:
    """A request for a story and the story as its answer."""
    ask, story = _request(rng)
    if rng.random() < 0.08:
        ask = ask.rstrip(".") + rng.choice((" with a happy ending.", " for children.", ", please."))
    titled = rng.random() < 0.15
    text = f"{story.title}\n\n{story.text}" if titled else story.text
    return Exchange(as_typed(rng, ask), text), story


def tale(rng: Random) -> Exchange:
    """One story on request."""
    return request(rng)[0]


def short_tale(rng: Random) -> Exchange:
    """A story of two or three sentences."""
    hero = rng.choice(ANIMALS + WONDERS)
    story = tell(rng, {"kind": hero})
    ask = expand(
        rng,
        rng.choice(
            (
                "Tell me a very short story about {a h}.",
                "[Write|Tell me] a story about {a h} in [three sentences|a few sentences|two sentences].",
                "A very short story about {a h}[, please|].",
            )
        ),
        {"h": hero},
    )
    return Exchange(as_typed(rng, ask), summarise(rng, story))


def story_talk(rng: Random) -> list[Message]:
    """A story and one or two turns about it."""
    first, story = request(rng)
    slots = story.slots
    name, kind, friend = slots["name"], slots["kind"], slots["friend"]
    turns = [first]
    makers = rng.sample(("short", "who", "moral", "another", "like", "title", "name"), rng.choice((1, 1, 2)))
    for maker in makers:
        if maker == "short":
            ask = expand(
                rng,
                "[Make it shorter|Shorter, please|Can you make it shorter?|Tell it in two sentences|"
                "Sum it up|"
                "What happened in the story?|What was the story about?|A shorter version, please]",
            )
            turns.append(Exchange(as_typed(rng, ask), summarise(rng, story)))
        elif maker == "who" and friend in story.text:
            answer = f"The story is about {name} the {kind} and {friend} the {slots['fkind']}."
            turns.append(Exchange(rng.choice(("Who is in the story?", "Who are the characters?")), answer))
        elif maker == "moral":
            ask = expand(
                rng,
                "[What is the moral?|What can we learn from it?|What is the moral of the story?|"
                "What does it teach?]",
            )
            turns.append(Exchange(as_typed(rng, ask), story.plot.moral))
        elif maker == "another":
            ask = expand(
                rng,
                "[Another one|Another story, please|Tell me another one|One more|Again!|Another!|"
                "Tell me another story.]",
            )
            turns.append(Exchange(as_typed(rng, ask), tell(rng).text))
        elif maker == "like":
            ask = expand(
                rng, "[I like that story|That was a nice story|What a lovely story!|Beautiful!|I love it]"
            )
            turns.append(
                Exchange(
                    ask,
                    expand(
                        rng,
                        f"[I'm glad that you like it!|Thank you! I like {name} too.] "
                        "[Would you like another one?|Shall I tell you another one?]",
                    ),
                )
            )
        elif maker == "title":
            ask = expand(
                rng,
                "[What is the title?|Give it a title.|What could we call the story?|Does it have a title?]",
            )
            turns.append(Exchange(ask, f'"{story.title}".'))
        elif maker == "name":
            ask = f"What is the name of the {kind}?"
            turns.append(Exchange(ask, f"The {kind} is called {name}."))
    return messages(*turns)


def reading(rng: Random) -> Exchange:
    """A question about a short text that is given."""
    story = tell(rng)
    slots = story.slots
    text = summarise(rng, story)
    ask, answer = rng.choice(
        (
            (f"Who is {slots['name']}?", f"{slots['name']} is {article(slots['kind'])} {slots['kind']}."),
            (
                "Who is the story about?",
                f"The story is about {slots['name']}, {article(slots['kind'])} {slots['kind']}.",
            ),
            (f"What is the name of the {slots['kind']}?", f"The {slots['kind']} is called {slots['name']}."),
            ("Give this story a title.", f'"{story.title}".'),
            ("What can we learn from this story?", story.plot.moral),
        )
    )
    return Exchange(
        rng.choice((f"{text}\n\n{ask}", f"{ask}\n\n{text}", f'Read this: "{text}" {ask}')), capitalise(answer)
    )


def plain_story(rng: Random) -> str:
    """A story as a document for pretraining, sometimes with its title."""
    story = tell(rng)
    return f"{story.title}\n\n{story.text}" if rng.random() < 0.4 else story.text
