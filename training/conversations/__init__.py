"""Conversations made by program: what the data do not teach a model of this size.

`FAMILIES` names every generator with its weight; `generate` draws conversations without any held-out prompt.
"""

from collections.abc import Callable, Iterator
from random import Random

from training.conversations import (
    arithmetic,
    dates,
    dialogues,
    geography,
    lists,
    memory,
    nature,
    spelling,
    tales,
    writing,
    written,
)
from training.conversations.exchange import Maker, Message, messages
from training.conversations.talk import maker
from training.prompts import is_held_out

Talk = Callable[[Random], list[Message]]


def _single(make: Maker) -> Talk:
    return lambda rng: messages(make(rng))


# Name -> (generator, weight). The weights count conversations, not tokens: a story is as long as forty sums.
FAMILIES: dict[str, tuple[Talk, float]] = {
    "identity": (_single(maker("identity")), 9.0),
    "greetings": (_single(maker("greetings")), 8.0),
    "limits": (_single(maker("limits")), 5.0),
    "world": (_single(maker("world")), 7.0),
    "advice": (_single(maker("advice")), 4.0),
    "definitions": (_single(writing.definition), 8.0),
    "sentences": (_single(writing.sentence), 1.5),
    "poems": (_single(writing.poem), 1.5),
    "rhymes": (_single(writing.rhyme), 0.7),
    "sums": (_single(arithmetic.sum_or_difference), 13.0),
    "word_problems": (_single(arithmetic.word_problem), 3.0),
    "counting": (_single(arithmetic.counting), 3.0),
    "comparing": (_single(arithmetic.comparing), 2.0),
    "dates": (_single(dates.neighbour), 3.0),
    "today": (_single(dates.today), 1.5),
    "recite": (_single(dates.recite), 0.5),
    "capitals": (_single(geography.capital), 6.0),
    "capital_of": (_single(geography.capital_of), 2.0),
    "continents": (_single(geography.continent), 2.0),
    "languages": (_single(geography.language), 1.5),
    "animals": (_single(nature.animal), 3.0),
    "colours": (_single(nature.colour), 2.0),
    "opposites": (_single(nature.opposite), 2.5),
    "spelling": (_single(spelling.spell), 4.0),
    "repeat": (_single(spelling.repeat), 0.7),
    "lists": (_single(lists.listing), 7.0),
    "members": (_single(lists.member), 0.7),
    "short_answers": (_single(dialogues.short_answer), 4.0),
    "chat": (dialogues.chat, 8.0),
    "series": (dialogues.series, 4.0),
    "system": (dialogues.with_system, 5.0),
    "memory": (memory.told, 6.0),
    "written": (written.talk, 16.0),
    "short_tales": (_single(tales.short_tale), 2.0),
    "reading": (_single(tales.reading), 2.0),
}
STORY_FAMILIES: dict[str, tuple[Talk, float]] = {
    "tales": (_single(tales.tale), 8.0),
    "story_talk": (tales.story_talk, 3.5),
}


def generate(
    families: dict[str, tuple[Talk, float]], count: int, seed: int | str
) -> Iterator[tuple[str, list[Message]]]:
    """`count` pairs of family and conversation, the same for the same seed; held-out prompts never occur."""
    rng = Random(seed)
    names = list(families)
    weights = [weight for _, weight in families.values()]
    made = 0
    while made < count:
        name = rng.choices(names, weights)[0]
        talk = families[name][0](rng)
        if not any(turn["role"] == "user" and is_held_out(turn["content"]) for turn in talk):
            made += 1
            yield name, talk
