"""Conversations of several turns, requested formats, and system prompts, made from single exchanges."""

from random import Random

from training.conversations import arithmetic, dates, geography, lists, nature, spelling, writing
from training.conversations.exchange import Exchange, Maker, Message, messages
from training.conversations.phrasing import capitalise, expand
from training.conversations.stories.cast import ANIMALS
from training.conversations.tables import table
from training.conversations.tales import tale
from training.conversations.talk import maker

_greetings, _identity, _limits, _world = (
    maker(name) for name in ("greetings", "identity", "limits", "world")
)
SHORT_MAKERS: tuple[Maker, ...] = (
    geography.capital,
    geography.capital_of,
    geography.continent,
    nature.colour,
    nature.opposite,
    dates.neighbour,
    arithmetic.sum_or_difference,
    arithmetic.comparing,
    spelling.spell,
    lists.member,
    nature.animal,
)
QUESTIONS: tuple[Maker, ...] = (
    *SHORT_MAKERS, _identity, _limits, _world, _world, lists.listing, lists.listing, arithmetic.counting,
    arithmetic.sum_or_difference, arithmetic.word_problem, geography.capital, dates.today, spelling.repeat,
    writing.definition, writing.definition, writing.sentence, writing.poem, maker("advice"),
)  # fmt: skip
_SYSTEM = (
    "You are a helpful assistant.",
    "You are Fastpath, a small and friendly assistant.",
    "You are a helpful assistant",
    "You are a friendly assistant. Answer the user's questions.",
    "You are a kind teacher for young children.",
    "Be polite and helpful.",
    "You are a chatbot.",
    "Answer in simple English.",
    "You are a helpful AI assistant.",
    "Answer as well as you can. If you do not know something, say so.",
    "You tell stories to children.",
    "Please use simple words.",
    "You are a helpful, honest and harmless assistant.",
)


def short_answer(rng: Random) -> Exchange:
    """An answer in one word, where one word is enough."""
    while True:
        plain = rng.choice(SHORT_MAKERS)(rng)
        if plain.short is not None:
            break
    form = rng.choice(
        (
            "{q} Answer in one word.",
            "{q} Answer with one word.",
            "{q} One word only.",
            "In one word: {q}",
            "{q} Just one word, please.",
            "{q} (one word)",
            "Answer in one word: {q}",
            "{q} Give only the answer.",
            "{q} Only the answer, please.",
            "{q} Short answer.",
            "{q} Reply with a single word.",
            "{q} Keep it short.",
        )
    )
    question = plain.question if plain.question.endswith(("?", ".", "!")) else plain.question + "?"
    return Exchange(form.format(q=question), plain.short + rng.choice((".", "", ".")), plain.short)


def with_system(rng: Random) -> list[Message]:
    """A conversation under a system prompt."""
    short = rng.random() < 0.35
    if short:
        system = rng.choice(
            (
                "Answer in one word.",
                "Give short answers.",
                "Always answer with one word.",
                "Be brief.",
                "Reply with a single word only.",
                "Answer as briefly as you can.",
            )
        )
        turns: list[Exchange] = []
        while len(turns) < rng.choice((1, 1, 2)):
            plain = rng.choice(SHORT_MAKERS)(rng)
            if plain.short is not None:
                turns.append(Exchange(plain.question, plain.short + "."))
    else:
        system = rng.choice(_SYSTEM)
        turns = [rng.choice((*QUESTIONS, _greetings, tale))(rng) for _ in range(rng.choice((1, 1, 2)))]
    return [{"role": "system", "content": system}, *messages(*turns)]


def chat(rng: Random) -> list[Message]:
    """A greeting, some requests, thanks or goodbye: two to four turns."""
    turns = [_greetings(rng)] if rng.random() < 0.5 else []
    turns += [rng.choice((*QUESTIONS, _identity, _greetings))(rng) for _ in range(rng.choice((1, 2, 2, 3)))]
    if rng.random() < 0.25:
        ask, answer = rng.choice(
            (
                ("Thank you!", "You're welcome!"),
                ("Thanks!", "You are welcome!"),
                ("Bye!", "Goodbye! Have a nice day."),
                ("Thanks, bye!", "You're welcome! Goodbye!"),
            )
        )
        turns.append(Exchange(ask, answer))
    return messages(*turns)


def series(rng: Random) -> list[Message]:
    """The same question again for something else: `And of Spain?`, `Another one`, `And the day before?`."""
    kind = rng.randrange(5)
    first: Exchange
    if kind == 0:
        rows = table("countries")
        large = [row for row in rows if row[0] in geography.LARGE]
        a, b = rng.sample(rows if rng.random() < 0.3 else large, 2)
        first = Exchange(f"What is the capital of {a[0]}?", f"The capital of {a[0]} is {a[1]}.")
        ask = expand(
            rng, "[And of {c}?|And {c}?|What about {c}?|How about {c}?|And the capital of {c}?]", {"c": b[0]}
        )
        return messages(first, Exchange(ask, f"The capital of {b[0]} is {b[1]}."))
    if kind == 1:
        rows = table("lists")
        category, joined_items = rng.choice(rows)
        items = joined_items.split(", ")
        if category in ("animals",):
            items = list(ANIMALS)
        rng.shuffle(items)
        first = Exchange(f"Name three {category}.", f"{capitalise(items[0])}, {items[1]}, and {items[2]}.")
        ask = expand(rng, "[One more|Another one|And one more|Give me one more|Another]")
        return messages(
            first, Exchange(ask + rng.choice((".", "", ", please.")), capitalise(items[3 % len(items)]) + ".")
        )
    if kind == 2:
        a, b = rng.sample(table("opposites"), 2)
        first = Exchange(f"What is the opposite of {a[0]}?", f"The opposite of {a[0]} is {a[1]}.")
        ask = expand(rng, "[And of {w}?|And {w}?|What about {w}?]", {"w": b[0]})
        return messages(first, Exchange(ask, f"The opposite of {b[0]} is {b[1]}."))
    if kind == 3:
        a, b = rng.sample(table("colours"), 2)
        first = Exchange(f"What color is {a[0]}?", f"{capitalise(a[0])} is {a[1]}.")
        ask = expand(rng, "[And {t}?|What about {t}?|And what color is {t}?]", {"t": b[0]})
        return messages(first, Exchange(ask, f"{capitalise(b[0])} is {b[1]}."))
    one, two, three = rng.randint(1, 12), rng.randint(1, 8), rng.randint(1, 8)
    first = Exchange(f"What is {one} + {two}?", f"{one} + {two} is {one + two}.")
    ask = expand(rng, "[And plus {c}?|Now add {c}.|Plus {c}?|And {c} more?]", {"c": str(three)})
    return messages(first, Exchange(ask, f"{one + two} + {three} is {one + two + three}."))
