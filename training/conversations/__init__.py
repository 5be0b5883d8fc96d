"""Conversations made by program: what the data do not teach a model of this size.

`FAMILIES` names every generator with its weight; `generate` draws conversations without any held-out prompt.
"""

from collections.abc import Callable, Iterator
from random import Random

from training.conversations import (
    arithmetic,
    counting,
    dates,
    dialogues,
    differences,
    everyday,
    formats,
    geography,
    knowledge,
    limits,
    lists,
    memory,
    nature,
    problems,
    spelling,
    story_talk,
    tales,
    troubles,
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
    "identity": (_single(maker("identity")), 13.0),
    "greetings": (_single(maker("greetings")), 11.0),
    "limits": (_single(maker("limits")), 5.0),
    "world": (_single(maker("world")), 7.0),
    "advice": (_single(maker("advice")), 5.0),
    "feelings": (_single(maker("feelings", remarks=True)), 7.0),
    "danger": (_single(maker("danger", remarks=True)), 2.0),
    "explaining": (_single(maker("explaining")), 4.5),
    "opening_up": (troubles.opening_up, 3.0),
    "troubles": (_single(troubles.trouble), 6.0),
    "definitions": (_single(writing.definition), 11.0),
    "sentences": (_single(writing.sentence), 1.5),
    "scripts": (_single(writing.script), 1.5),
    "poems": (_single(writing.poem), 1.5),
    "rhymes": (_single(spelling.rhyme), 1.5),
    "sums": (_single(arithmetic.sum_or_difference), 14.0),
    "calculations": (_single(arithmetic.calculation), 10.0),
    "differences": (_single(differences.difference), 9.0),
    "expressions": (_single(arithmetic.expression), 2.5),
    "percentages": (_single(arithmetic.percentage), 1.2),
    "conversions": (_single(arithmetic.conversion), 2.0),
    "money": (_single(arithmetic.money), 1.5),
    "fractions": (_single(arithmetic.fraction), 2.0),
    "word_problems": (_single(problems.word_problem), 9.0),
    "large_problems": (_single(problems.large_problem), 5.5),
    "counting": (_single(counting.counting), 4.0),
    "following": (_single(counting.following), 2.0),
    "ordering": (_single(counting.ordering), 1.5),
    "comparing": (_single(counting.comparing), 2.0),
    "dates": (_single(dates.neighbour), 6.5),
    "today": (_single(dates.today), 2.0),
    "months": (_single(dates.month), 2.0),
    "recite": (_single(dates.recite), 1.2),
    "capitals": (_single(geography.capital), 7.0),
    "capital_of": (_single(geography.capital_of), 3.0),
    "continents": (_single(geography.continent), 2.0),
    "languages": (_single(geography.language), 1.5),
    "neighbours": (_single(geography.neighbours), 1.0),
    "countries": (_single(geography.about), 1.0),
    "animals": (_single(nature.animal), 3.5),
    "animal_sentences": (_single(nature.sentences_about), 2.0),
    "colours": (_single(nature.colour), 2.5),
    "opposites": (_single(nature.opposite), 2.5),
    "facts": (_single(knowledge.fact), 2.5),
    "everyday": (_single(everyday.everyday), 4.0),
    "abilities": (_single(knowledge.ability), 1.5),
    "qualities": (_single(knowledge.quality), 1.5),
    "ranks": (_single(knowledge.ranked), 2.0),
    "spelling": (_single(spelling.spell), 9.0),
    "dictation": (spelling.dictation, 8.0),
    "letter_counts": (_single(spelling.count_letters), 7.0),
    "letters": (_single(spelling.letter), 3.0),
    "word_forms": (_single(spelling.change), 2.0),
    "repeat": (_single(spelling.repeat), 1.0),
    "lists": (_single(lists.listing), 7.0),
    "list_letters": (_single(lists.with_letter), 1.0),
    "list_talk": (lists.listing_talk, 2.0),
    "members": (_single(lists.member), 2.0),
    "known_or_not": (_single(limits.known_or_not), 4.0),
    "cannot_know": (_single(limits.cannot_know), 3.3),
    "short_answers": (_single(formats.short_answer), 5.0),
    "list_forms": (_single(formats.list_form), 2.5),
    "follow_ups": (formats.follow_up, 4.0),
    "formed_by_system": (formats.formed_by_system, 3.0),
    "chat": (dialogues.chat, 8.0),
    "series": (dialogues.series, 5.0),
    "system": (dialogues.with_system, 3.5),
    "memory": (memory.told, 9.0),
    "written": (written.talk, 10.0),
    "short_tales": (_single(tales.short_tale), 2.0),
    "reading": (_single(story_talk.reading), 2.0),
}
STORY_FAMILIES: dict[str, tuple[Talk, float]] = {
    "tales": (_single(tales.tale), 8.0),
    "story_talk": (story_talk.story_talk, 4.5),
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
