"""Requests for stories that say what must occur, how long it is, how it begins or ends."""

import re
from collections.abc import Callable
from random import Random

from training.conversations.exchange import Exchange
from training.conversations.phrases import say
from training.conversations.phrasing import article, as_typed, expand
from training.conversations.stories.cast import ANIMALS, BOYS, GIRLS, OBJECTS, PLACES, PRONOUN_OF, WONDERS
from training.conversations.stories.plot import all_plots
from training.conversations.stories.telling import Story, introduce, sentences, summarise, tell
from training.conversations.talk import invented_word

Request = tuple[str, Story]
_USED = ("kind", "object", "fkind", "food", "colour", "weather", "elder", "place", "drink")


def _verb(rng: Random) -> str:
    """`Tell me a short story`, without what it is about."""
    adjective = say(rng, "stories", "adjectives") if rng.random() < 0.5 else ""
    return say(rng, "stories", "verb", {"adj": adjective})


def _hero(rng: Random) -> str:
    return rng.choice((*ANIMALS, *WONDERS, "girl", "boy"))


def _one(word: str) -> str:
    return f"{article(word)} {word}"


def _with(rng: Random, fixed: dict[str, str], word: str) -> Story:
    """A story in which `word` occurs; plots without room for it are drawn again."""
    story = tell(rng, fixed)
    for _ in range(20):
        if re.search(rf"\b{word}\b", story.text):
            break
        story = tell(rng, fixed)
    return story


def _plain(rng: Random) -> Request:
    return say(rng, "stories", "plain"), tell(rng)


def _about_hero(rng: Random) -> Request:
    hero = _hero(rng)
    return f"{_verb(rng)} about {_one(hero)}.", tell(rng, {"kind": hero})


def _about_two(rng: Random) -> Request:
    """A hero and an object or a second character."""
    hero = _hero(rng)
    if rng.random() < 0.5:
        other = rng.choice(OBJECTS)
        story = _with(rng, {"kind": hero, "object": other}, other)
    else:
        other = rng.choice([animal for animal in ANIMALS if animal != hero])
        story = _with(rng, {"kind": hero, "fkind": other}, other)
    return f"{_verb(rng)} about {_one(hero)} and {_one(other)}.", story


def _about_named(rng: Random) -> Request:
    name = rng.choice((*GIRLS, *BOYS)) if rng.random() < 0.75 else invented_word(rng).capitalize()
    kind = "girl" if name in GIRLS or name[-1] in "ae" else "boy"
    who = name
    if rng.random() < 0.6:
        pronoun = {"girl": "she", "boy": "he"}[kind]
        fitting = [k for k in (*ANIMALS, *WONDERS) if PRONOUN_OF.get(k, pronoun) == pronoun]
        kind = rng.choice((*fitting, kind, kind))
        who = expand(rng, f"[{_one(kind)} named {name}|{_one(kind)} called {name}|{name} the {kind}]")
    return f"{_verb(rng)} about {who}.", tell(rng, {"name": name, "kind": kind})


def _about_theme(rng: Random) -> Request:
    plot = rng.choice(all_plots())
    return f"{_verb(rng)} about {plot.theme}.", tell(rng, plot=plot)


def _about_hook(rng: Random) -> Request:
    hero = _hero(rng)
    story = tell(rng, {"kind": hero})
    hook = expand(rng, story.plot.hook, story.slots)
    return f"{_verb(rng)} about {_one(hero)} who {hook}.", story


def _about_place(rng: Random) -> Request:
    hero, place = _hero(rng), rng.choice(PLACES)
    return f"{_verb(rng)} about {_one(hero)} at {place}.", _with(rng, {"kind": hero, "place": place}, place)


def _with_words(rng: Random) -> Request:
    """Two or three words that must occur."""
    story = tell(rng, {"kind": _hero(rng)})
    used = [story.slots[key].removeprefix("the ") for key in _USED]
    used = [word for word in dict.fromkeys(used) if re.search(rf"\b{word}\b", story.text)]
    chosen = rng.sample(used, min(len(used), rng.choice((2, 3, 3))))
    if len(chosen) < 2:
        return f"{_verb(rng)} about {_one(story.slots['kind'])}.", story
    quoted = [rng.choice(('"{}"', "{}")).format(word) for word in chosen]
    if rng.random() < 0.6:
        quoted = [f'"{word}"' for word in chosen]
    listed = ", ".join(quoted[:-1]) + f" and {quoted[-1]}"
    return say(rng, "stories", "words", {"verb": _verb(rng), "l": listed}), story


def _of_mood(rng: Random) -> Request:
    """Funny, sad, exciting, quiet, or with a happy ending."""
    mood = rng.choice(("funny", "sad", "exciting", "calm", "happy", "happy"))
    plots = [plot for plot in all_plots() if plot.mood == mood or (mood == "happy" and plot.mood != "sad")]
    heading = {"sad": "sad end", "happy": "happy end"}.get(mood, mood)
    hero = _hero(rng)
    ask = say(rng, "stories", heading, {"ask": f"{_verb(rng)} about {_one(hero)}"})
    return ask, tell(rng, {"kind": hero} if hero in ask else None, rng.choice(plots))


def _with_frame(rng: Random) -> Request:
    """The first or the last words are given."""
    story = tell(rng, {"kind": _hero(rng)})
    lines = sentences(story.text)
    slots = {"ask": f"{_verb(rng)} about {_one(story.slots['kind'])}"}
    if rng.random() < 0.75:
        words = lines[0].split()
        start = lines[0] if rng.random() < 0.4 else " ".join(words[: rng.randint(3, max(3, len(words) - 2))])
        return say(rng, "stories", "begins", {**slots, "start": start.rstrip(".,")}), story
    return say(rng, "stories", "ends", {**slots, "end": lines[-1]}), story


_REQUESTS: tuple[tuple[Callable[[Random], Request], float], ...] = (
    (_plain, 1), (_about_hero, 1.5), (_about_two, 3), (_about_named, 1.7), (_about_theme, 1.2),
    (_about_hook, 1.5), (_about_place, 0.8), (_with_words, 2.5), (_of_mood, 1.5), (_with_frame, 1.2),
)  # fmt: skip


def request(rng: Random) -> tuple[Exchange, Story]:
    """A request for a story and the story as its answer."""
    make = rng.choices([make for make, _ in _REQUESTS], [weight for _, weight in _REQUESTS])[0]
    ask, story = make(rng)
    text = story.text
    extra = rng.random()
    if make not in (_plain, _of_mood, _with_frame, _with_words) and extra < 0.3:
        heading = "extras" if extra < 0.14 else "moral wanted" if extra < 0.22 else "title wanted"
        if heading == "moral wanted" and story.plot.moral not in text:
            text += f"\n\nThe moral of the story: {story.plot.moral}"
        if heading == "title wanted":
            text = f"{story.title}\n\n{text}"
        ask = say(rng, "stories", heading, {"ask": ask.rstrip(".")})
    elif make is not _with_frame and rng.random() < 0.1:
        text = f"{story.title}\n\n{text}"
    if ask.startswith(("Can you", "Could you", "Do you")) and ask.count(".") == 1 and ask.endswith("."):
        ask = ask[:-1] + "?"
    return Exchange(as_typed(rng, ask) if make is not _with_frame else ask, text), story


def tale(rng: Random) -> Exchange:
    """One story on request."""
    return request(rng)[0]


def short_tale(rng: Random) -> Exchange:
    """A story of a few sentences, or of exactly as many as were asked for."""
    hero = _hero(rng)
    if rng.random() < 0.35:
        question = say(rng, "stories", "very short", {"h": hero})
        return Exchange(as_typed(rng, question), summarise(rng, tell(rng, {"kind": hero})))
    count = rng.choice((2, 3, 3, 4, 5, 5))
    number = ("two", "three", "four", "five")[count - 2] if rng.random() < 0.7 else str(count)
    question = say(rng, "stories", "sentences", {"h": hero, "n": number})
    return Exchange(as_typed(rng, question), of_length(rng, hero, count))


def of_length(rng: Random, hero: str, count: int) -> str:
    """A story about `hero` of exactly `count` sentences, two to five."""
    while True:
        story = tell(rng, {"kind": hero})
        plot, slots = story.plot, story.slots
        told = sentences(expand(rng, plot.summary, slots))
        start = expand(
            rng, "[There was once {a trait} {kind} named {name}.|{Name} was {a trait} {kind}.]", slots
        )
        lived = expand(rng, "{He} lived [in {home}|with {his} {elder} in {home}].", slots)
        end = expand(rng, "[{Name} never forgot that {day}.|{Name} thought of it for a long time.]", slots)
        lines = {3: [start, *told], 4: [start, lived, *told], 5: [start, lived, *told, end]}
        # Two sentences are the summary itself, which has to say what the hero is.
        named = told[0].replace(slots["name"], f"{slots['name']} the {slots['kind']}", 1)
        lines[2] = [named, *told[1:]]
        if len(told) == 2 and (count > 2 or named != told[0]):
            return introduce(" ".join(lines[count]), slots)


def plain_story(rng: Random) -> str:
    """A story as a document for pretraining, sometimes with its title."""
    story = tell(rng)
    return f"{story.title}\n\n{story.text}" if rng.random() < 0.4 else story.text
