"""Lists on demand: so many things of a kind, one with a letter, what belongs and what does not."""

from collections.abc import Sequence
from functools import cache
from random import Random

from training.conversations.arithmetic import WORDS
from training.conversations.exchange import Exchange, Message, messages
from training.conversations.phrases import say
from training.conversations.phrasing import article, as_typed, capitalise, joined
from training.conversations.tables import table

POPULAR = frozenset((
    "animals", "colors", "colours", "fruits", "vegetables", "countries", "birds", "cities", "sports",
    "flowers",
))  # fmt: skip
# Kinds whose members are nothing else: to say that something is not one of them is always right.
_APART = (
    "fruits", "vegetables", "birds", "colors", "countries", "planets", "insects", "musical instruments",
    "sports", "vehicles", "trees", "tools", "clothes", "furniture", "body parts", "languages", "months",
    "jobs", "drinks",
)  # fmt: skip
_UNCOUNTED = frozenset((
    "colors", "colours", "sports", "months", "days of the week", "languages", "countries", "drinks",
    "hobbies", "feelings", "metals", "materials", "gases", "planets", "continents", "oceans", "seasons",
    "cities", "capitals", "clothes", "rivers", "numbers", "games", "foods", "breakfast foods", "spices",
    "herbs", "desserts", "gems",
))  # fmt: skip


@cache
def kinds() -> tuple[tuple[str, str, tuple[str, ...]], ...]:
    """(plural, singular, members) of every list."""
    return tuple((many, one, tuple(items.split(", "))) for many, one, items in table("lists"))


def pick_kind(rng: Random) -> tuple[str, str, tuple[str, ...]]:
    """A list; what people ask for most comes most."""
    if rng.random() < 0.35:
        return rng.choice([kind for kind in kinds() if kind[0] in POPULAR])
    return rng.choice(kinds())


def with_article(kind: str, item: str) -> str:
    """`an apple`, but `red` and `France`."""
    if kind in _UNCOUNTED or item[:1].isupper() or item[:1].isdigit() or item.endswith("s"):
        return item
    return f"{article(item)} {item}"


def _some(rng: Random, items: Sequence[str], count: int) -> list[str]:
    """So many of them. Half the time the first ones in their order: a model that always takes the likeliest
    next word can then give a list without saying one of them twice.
    """
    return list(items[:count]) if rng.random() < 0.5 else rng.sample(items, count)


def _ask(rng: Random, heading: str, **slots: str) -> str:
    return as_typed(rng, capitalise(say(rng, "lists", heading, slots)))


def listing(rng: Random) -> Exchange:
    """So many members of a kind, or some, or one."""
    many, one, items = pick_kind(rng)
    roll = rng.random()
    if roll < 0.1:
        chosen = capitalise(rng.choice(items))
        return Exchange(_ask(rng, "one", one=one), f"{chosen}.", chosen)
    if roll < 0.22:
        picked = _some(rng, items, min(len(items), rng.choice((3, 4, 5))))
        question = _ask(rng, "some", c=many)
    else:
        count = min(rng.choices((2, 3, 4, 5, 6, 7, 10), (3, 9, 3, 5, 1, 0.7, 0.7))[0], len(items))
        picked = _some(rng, items, count)
        number = WORDS[count] if rng.random() < 0.75 else str(count)
        question = _ask(rng, "several", n=number, c=many)
    return Exchange(question, capitalise(joined(picked)) + ".", items=tuple(picked))


def with_letter(rng: Random) -> Exchange:
    """A member that starts with a given letter."""
    _many, one, items = pick_kind(rng)
    chosen = rng.choice(items)
    letter = chosen[0].upper()
    question = _ask(rng, "letter", one=one, L=letter)
    return Exchange(question, f"{capitalise(chosen)} starts with {letter}.", capitalise(chosen))


def member(rng: Random) -> Exchange:
    """Is this one of those; which of these is one; which does not fit."""
    apart = [kind for kind in kinds() if kind[0] in _APART]
    (many, one, own), (other_many, other_one, foreign) = rng.sample(apart, 2)
    strangers = [item for item in foreign if item not in own and not item.endswith("s")]
    own = tuple(item for item in own if not item.endswith("s"))
    kind = rng.randrange(4)
    if kind == 0:
        inside = rng.random() < 0.5
        item, home = (rng.choice(own), many) if inside else (rng.choice(strangers), other_many)
        question = _ask(rng, "is it", x=with_article(home, item), one=one, c=many)
        what = capitalise(with_article(home, item))
        if inside:
            return Exchange(question, f"Yes, {with_article(home, item)} is {article(one)} {one}.", "Yes")
        answer = f"No, {with_article(home, item)} is not {article(one)} {one}. "
        answer += f"{what} is {article(other_one)} {other_one}."
        return Exchange(question, answer, "No")
    if kind == 1:
        item = rng.choice([item for item in own if item not in foreign])
        named = with_article(many, item)
        pair = (one, other_one) if rng.random() < 0.5 else (other_one, one)
        question = _ask(rng, "what kind", x=named, one=pair[0], two=pair[1])
        return Exchange(question, f"{capitalise(named)} is {article(one)} {one}.", capitalise(one))
    if kind == 2:
        item = rng.choice([item for item in own if item not in foreign])
        shown = [item, *rng.sample(strangers, 2)]
        rng.shuffle(shown)
        question = _ask(rng, "which", one=one, l=joined(shown, "or"))
        return Exchange(
            question, f"{capitalise(with_article(many, item))} is {article(one)} {one}.", capitalise(item)
        )
    item = rng.choice(strangers)
    shown = [item, *rng.sample([thing for thing in own if thing not in foreign], 3)]
    rng.shuffle(shown)
    answer = f"{capitalise(item)} does not fit, because the others are {many}."
    return Exchange(_ask(rng, "odd", l=", ".join(shown)), answer, capitalise(item))


def listing_talk(rng: Random) -> list[Message]:
    """A list and what may follow: another one, two more, one with a letter, the first one again."""
    many, _, items = rng.choice([kind for kind in kinds() if len(kind[2]) >= 7])
    shuffled = _some(rng, items, len(items))
    count = rng.choice((2, 3, 3))
    said, rest = shuffled[:count], shuffled[: count - 1 : -1]
    turns = [Exchange(_ask(rng, "several", n=WORDS[count], c=many), capitalise(joined(said)) + ".")]
    for _ in range(rng.choice((1, 1, 2))):
        heading = rng.choice(("more", "more", "more several", "more letter", "first", "last", "how many"))
        if heading == "more":
            said.append(rest.pop())
            turns.append(Exchange(_ask(rng, "more"), capitalise(said[-1]) + "."))
        elif heading == "more several" and len(rest) > 2:
            said += (two := [rest.pop(), rest.pop()])
            turns.append(Exchange(_ask(rng, "more several"), f"{capitalise(two[0])} and {two[1]}."))
        elif heading == "more letter":
            said.append(rest.pop())
            letter = said[-1][0].upper()
            turns.append(
                Exchange(_ask(rng, "more letter", L=letter), f"{capitalise(said[-1])} starts with {letter}.")
            )
        elif heading in ("first", "last") and len(turns) == 1:
            thing = said[0 if heading == "first" else -1]
            turns.append(Exchange(_ask(rng, heading), f"The {heading} one was {thing}."))
        elif heading == "how many" and len(turns) == 1:
            turns.append(Exchange(_ask(rng, "how many"), f"I named {WORDS[count]} {many}."))
    return messages(*turns)
