"""Requests for stories that say what must occur, how long it is, how it begins or ends."""

from collections.abc import Callable
from functools import cache
from random import Random

from training.conversations.exchange import Exchange
from training.conversations.phrases import say
from training.conversations.phrasing import article, as_typed, expand, joined
from training.conversations.stories.cast import (
    ANIMALS,
    BOYS,
    BUILDINGS,
    COLOURS,
    DRINKS,
    ELDERS,
    FOODS,
    GIRLS,
    OBJECTS,
    PLACES,
    PRONOUN_OF,
    SCENES,
    SIZES,
    TRAITS,
    WEATHERS,
    WONDERS,
    WORKERS,
    heroes,
)
from training.conversations.stories.plot import Plot, all_plots, plots_about, plots_naming
from training.conversations.stories.telling import Story, introduce, sentences, summarise, tell
from training.conversations.tables import table
from training.conversations.talk import invented_word
from training.prompts import FIXED, normalised

Request = tuple[str, Story]
_WORDS = {"kind": (*ANIMALS, *WONDERS, "girl", "boy"), "fkind": ANIMALS, "object": OBJECTS,
          "object2": (*OBJECTS, *(one for one, _ in table("things"))), "place": PLACES, "scene": SCENES,
          "food": FOODS, "drink": DRINKS,
          "colour": COLOURS, "elder": ELDERS, "weather": WEATHERS}  # fmt: skip
_ASKED_FOR = ("kind", "kind", "kind", "object", "object", "object", "place", "place", "scene", "scene",
              "fkind", "food", "colour", "object2", "drink", "elder", "weather")  # fmt: skip
# What a story from given words says of its hero at once, by what the word is.
_CLAUSES = {
    "object": "[had|owned|carried] {a object}",
    "object2": "[found|kept] {a object2}",
    "place": "[often went to|lived not far from|loved to be at] {place}",
    "scene": "[loved the|sang about the|dreamed of the|often looked at the] {scene}",
    "food": "[liked|could cook|always ate] {food}",
    "drink": "drank {drink} every morning",
    "colour": "wore {a colour} [scarf|hat]",
    "weather": "loved {weather} days",
    "elder": "lived with {his} {elder}",
    "fkind": "had a friend, {a fkind} [named|called] {friend}",
}
_NEAR = 8  # words in a row that a request may not share with a prompt of the evaluation
_SUBJECTS = ("object",) * 8 + ("building", "building", "fear", "skill", "skill", "wish", "fkind", "fkind",
                               "fkind", "place")  # fmt: skip


def _verb(rng: Random) -> str:
    """`Tell me a short story`, without what it is about."""
    adjective = say(rng, "stories", "adjectives") if rng.random() < 0.5 else ""
    return say(rng, "stories", "verb", {"adj": adjective})


def _hero(rng: Random) -> str:
    return rng.choice(_WORDS["kind"])


def _one(word: str) -> str:
    return f"{article(word)} {word}"


@cache
def _prompts() -> tuple[frozenset[tuple[str, ...]], tuple[frozenset[str], ...]]:
    """Of the prompts: every run of _NEAR words, and which characters and things each puts together."""
    turns = [tuple(normalised(turn).split()) for prompt in FIXED for turn in prompt.turns]
    runs = {turn[at : at + _NEAR] for turn in turns for at in range(len(turn) - _NEAR + 1)}
    known = {*ANIMALS, *WONDERS, *OBJECTS, *SCENES}
    return frozenset(runs), tuple(s for turn in turns if len(s := known.intersection(turn)) > 1)


def near_prompt(question: str) -> bool:
    """Whether a request is too like a prompt: a run of words in common, or all its characters and things."""
    runs, sets = _prompts()
    words = tuple(normalised(question).split())
    if any(words[at : at + _NEAR] in runs for at in range(len(words) - _NEAR + 1)):
        return True
    present = set(words)
    return any(together <= present for together in sets)


def _of_thing(rng: Random) -> dict[str, str]:
    """An object, sometimes of a given colour or size."""
    fixed = {"object": rng.choice(OBJECTS)}
    roll = rng.random()
    if roll < 0.15:
        fixed["colour"] = fixed["adj"] = rng.choice(COLOURS)
    elif roll < 0.25:
        fixed["adj"] = rng.choice(SIZES)
    return fixed | {"thing": f"{fixed['adj']} {fixed['object']}" if "adj" in fixed else fixed["object"]}


def _other(rng: Random, hero: str) -> str:
    """A second character: half of the time a typical friend."""
    if rng.random() < 0.3:
        return rng.choice(heroes()[hero].friends)
    pool = ANIMALS if rng.random() < 0.75 else (*WONDERS, *WORKERS)
    return rng.choice([kind for kind in pool if kind != hero])


def _asked(rng: Random, subject: str, hero: str) -> dict[str, str]:
    """The hero and the value of a plot's subject, as a request names them."""
    fixed = {"kind": hero}
    if subject == "object":
        return fixed | _of_thing(rng)
    if subject == "fkind":
        return fixed | {"fkind": _other(rng, hero)}
    if subject == "place":
        return fixed | {"place": rng.choice(PLACES)}
    return fixed | ({"building": rng.choice(BUILDINGS)} if subject == "building" else {})


def _deed(rng: Random) -> tuple[str, Story]:
    """`a hedgehog who loses a kite` or `a fox called Rusty who ...`, and its story."""
    hero = _hero(rng)
    if rng.random() < 0.85:
        subject = rng.choice(_SUBJECTS)
        plot = rng.choice(plots_about(subject))
        fixed, marks = _asked(rng, subject, hero), [subject]
    else:
        plot, fixed, marks = rng.choice(all_plots()), {"kind": hero}, []
    roll, who = rng.random(), _one(hero)
    if roll < 0.12:
        fixed["trait"] = rng.choice(TRAITS)
        marks, who = [*marks, "trait"], _one(f"{fixed['trait']} {hero}")
    story = tell(rng, fixed, plot, marks)
    if roll > 0.92:
        who = f"{who} [named|called] {story.slots['name']}"
    return expand(rng, f"{who} who {plot.hook}", story.slots), story


def _plain(rng: Random) -> Request:
    return say(rng, "stories", "plain"), tell(rng)


def _about_hero(rng: Random) -> Request:
    hero = _hero(rng)
    return f"{_verb(rng)} about {_one(hero)}.", tell(rng, {"kind": hero})


def _about_two(rng: Random) -> Request:
    """A hero and an object or a second character."""
    hero = _hero(rng)
    subject = "object" if rng.random() < 0.6 else "fkind"
    fixed = _asked(rng, subject, hero)
    plots = plots_about(subject) if rng.random() < 0.75 else plots_naming(subject)
    story = tell(rng, fixed, rng.choice(plots), [subject])
    other = _one(story.slots["thing" if subject == "object" else "fkind"])
    return f"{_verb(rng)} about {_one(hero)} and {other}.", story


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
    story = tell(rng)
    return f"{_verb(rng)} about {expand(rng, story.plot.theme, story.slots)}.", story


def _about_deed(rng: Random) -> Request:
    who, story = _deed(rng)
    return f"{_verb(rng)} about {who}.", story


def _about_place(rng: Random) -> Request:
    fixed = _asked(rng, "place", _hero(rng))
    plots = plots_about("place") if rng.random() < 0.3 else plots_naming("place")
    story = tell(rng, fixed, rng.choice(plots), ["place"])
    return f"{_verb(rng)} about {_one(fixed['kind'])} at {fixed['place']}.", story


def _with_words(rng: Random) -> Request:
    """Two to four words that must occur; all of them are named in the first sentences."""
    keys = list(dict.fromkeys(rng.sample(_ASKED_FOR, 9)))[: rng.choice((2, 3, 3, 3, 3, 4))]
    if "kind" not in keys and rng.random() < 0.85:
        keys = ["kind" if key == "fkind" else key for key in keys]  # the only animal is the hero
    fixed: dict[str, str] = {}
    for key in keys:
        taken = {word.removeprefix("the ") for word in fixed.values()}
        fixed[key] = rng.choice([word for word in _WORDS[key] if word.removeprefix("the ") not in taken])
    shown = [(key, fixed[key]) for key in keys]
    if "object" in fixed:
        fixed["thing"] = fixed["object"]
    if "kind" not in fixed and rng.random() < 0.6:
        fixed["kind"] = rng.choice(("girl", "boy"))
    story = tell(rng, fixed, *_told_with(rng, keys))
    if rng.random() < 0.3:
        rng.shuffle(shown)
    order = [key for key, _ in shown]
    if "kind" in order and "fkind" in order and order.index("fkind") < order.index("kind"):
        # Of two animals the hero is the one that is named first.
        one, other = order.index("fkind"), order.index("kind")
        shown[one], shown[other] = shown[other], shown[one]
    words = [word.removeprefix("the ") for _, word in shown]
    heading, roll = "words", rng.random()
    if roll < 0.75:
        words = [f'"{word}"' for word in words]
    elif roll < 0.87:
        heading, words = "things", [_as_thing(key, word) for key, word in shown]
    comma = "," if len(words) > 2 and rng.random() < 0.3 else ""
    listed = ", ".join(words[:-1]) + f"{comma} and {words[-1]}"
    return say(rng, "stories", heading, {"verb": _verb(rng), "l": listed}), story


def _told_with(rng: Random, keys: list[str]) -> tuple[Plot, list[str], str | None]:
    """For words of these kinds: a plot, what has to be named early, and an opening.

    Most openings name all the words in a row, as the request does: that is easier to learn than a sentence
    here and there.
    """
    subject = next((key for key in ("object", "fkind") if key in keys), "")
    if subject and rng.random() < 0.2:
        return rng.choice(plots_about(subject)), keys, None
    plots = [plot for plot in plots_naming("object") if not plot.subject] if "object" in keys else []
    if not plots or rng.random() < 0.4:
        plots = [plot for plot in all_plots() if not plot.subject]
    clauses = [_CLAUSES[key] for key in keys if key != "kind"]
    start = rng.choice(("Once there was", "There was once", "Once upon a time there was"))
    who = f"{start} {{a kind}} [named|called] {{name}}, who {joined(clauses)}."
    return rng.choice(plots), keys, who + ("" if rng.random() < 0.5 else " {He} lived in {home}.")


def _as_thing(key: str, word: str) -> str:
    """A given word as part of a sentence: `an owl`, `the river`, `soup`."""
    if key in ("kind", "fkind", "object", "object2"):
        return _one(word)
    if key in ("scene", "elder"):
        return f"the {word}"
    return {"colour": f"the color {word}", "weather": f"{word} weather"}.get(key, word)


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
    (_plain, 1), (_about_hero, 1.5), (_about_two, 3.2), (_about_named, 1.3), (_about_theme, 1.2),
    (_about_deed, 5), (_about_place, 0.7), (_with_words, 4.5), (_of_mood, 1.2), (_with_frame, 1),
)  # fmt: skip


def request(rng: Random) -> tuple[Exchange, Story]:
    """A request for a story and the story as its answer, drawn again if it is too like a prompt."""
    exchange, story = _draw_request(rng)
    while near_prompt(exchange.question):
        exchange, story = _draw_request(rng)
    return exchange, story


def _draw_request(rng: Random) -> tuple[Exchange, Story]:
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
        who, story = _deed(rng) if rng.random() < 0.5 else (_one(hero), tell(rng, {"kind": hero}))
        question = as_typed(rng, say(rng, "stories", "very short", {"h": who.split(" ", 1)[1]}))
        return short_tale(rng) if near_prompt(question) else Exchange(question, summarise(rng, story))
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
            return introduce(rng, " ".join(lines[count]), slots)


def plain_story(rng: Random) -> str:
    """A story as a document for pretraining, sometimes with its title."""
    story = tell(rng)
    return f"{story.title}\n\n{story.text}" if rng.random() < 0.4 else story.text
