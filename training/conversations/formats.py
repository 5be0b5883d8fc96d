"""Answers in the form that was asked for: with the question, afterwards, or by a system message."""

from collections.abc import Sequence
from random import Random

from training.conversations import (
    arithmetic,
    counting,
    dates,
    everyday,
    geography,
    knowledge,
    lists,
    nature,
    spelling,
)
from training.conversations.exchange import Exchange, Maker, Message, messages
from training.conversations.phrases import say
from training.conversations.phrasing import as_typed, capitalise

# Questions whose answer may be a word or two.
SHORT_MAKERS: tuple[Maker, ...] = (
    geography.capital, geography.capital, geography.capital_of, geography.continent, geography.language,
    nature.colour, nature.opposite, nature.animal, dates.neighbour, dates.today, dates.month,
    arithmetic.sum_or_difference, arithmetic.calculation, counting.comparing, counting.following,
    spelling.letter, spelling.count_letters, spelling.rhyme, lists.member, lists.with_letter,
    knowledge.fact, knowledge.ability, knowledge.quality, knowledge.ranked,
    everyday.everyday,
)  # fmt: skip
YES_NO_MAKERS: tuple[Maker, ...] = (knowledge.fact, knowledge.ability, knowledge.quality, knowledge.ranked,
                                    lists.member, geography.continent, geography.capital_of)  # fmt: skip
LIST_MAKERS: tuple[Maker, ...] = (lists.listing, lists.listing, lists.listing, dates.recite, dates.month,
                                  geography.neighbours, counting.counting, spelling.change)  # fmt: skip
LIST_FORMS = ("bullets", "bullets", "numbered", "commas", "lines")


def formed(form: str, items: Sequence[str]) -> str:
    """Things as bullets, numbered, one per line, or with commas."""
    if form == "commas":
        return ", ".join(items)
    if form == "lines":
        return "\n".join(items)
    if form == "numbered":
        return "\n".join(f"{at}. {item}" for at, item in enumerate(items, 1))
    return "\n".join(f"- {item}" for item in items)


def _short(rng: Random) -> Exchange:
    while (plain := rng.choice(SHORT_MAKERS)(rng)).short is None:
        pass
    return plain


def _one_word(plain: Exchange) -> bool:
    return plain.short is not None and " " not in plain.short.split("|>")[-1]


def _listed(rng: Random) -> Exchange:
    while not (plain := rng.choice(LIST_MAKERS)(rng)).items:
        pass
    return plain


def _yes_no(rng: Random) -> Exchange:
    while (plain := rng.choice(YES_NO_MAKERS)(rng)).short not in ("Yes", "No"):
        pass
    return plain


def _stop(rng: Random, short: str) -> str:
    return short + "." if rng.random() < 0.75 and short[-1] != "." else short


def _asked(rng: Random, heading: str, plain: Exchange, answer: str) -> Exchange:
    question = plain.question if plain.question.endswith(("?", ".", "!")) else plain.question + "?"
    return Exchange(say(rng, "formats", heading, {"q": question}), answer, plain.short, plain.items)


def short_answer(rng: Random) -> Exchange:
    """An answer in one word, in a few words, yes or no, or as a sentence."""
    roll = rng.random()
    if roll < 0.15:
        plain = _yes_no(rng)
        return _asked(rng, "yes or no", plain, _stop(rng, plain.short or ""))
    plain = _short(rng)
    if roll < 0.3:
        return _asked(rng, "sentence", plain, plain.answer)
    if roll < 0.35 and "<|" not in plain.answer:
        return _asked(rng, "capitals", plain, plain.answer.upper())
    heading = "one word" if _one_word(plain) and rng.random() < 0.75 else "brief"
    return _asked(rng, heading, plain, _stop(rng, plain.short or ""))


def list_form(rng: Random) -> Exchange:
    """Several things as a list of some form; the form follows the request or is a part of it."""
    form = rng.choice(LIST_FORMS)
    if form != "commas" and rng.random() < 0.5:
        many, _, members = lists.pick_kind(rng)
        items = tuple(rng.sample(members, min(rng.choice((2, 3, 3, 4, 4, 5, 6)), len(members))))
        number = arithmetic.WORDS[len(items)] if rng.random() < 0.75 else str(len(items))
        asked = say(rng, "formats", f"several {form}", {"n": number, "c": many})
        return Exchange(as_typed(rng, capitalise(asked)), formed(form, items), items=items)
    plain = _listed(rng)
    return _asked(rng, form, plain, formed(form, plain.items))


def follow_up(rng: Random) -> list[Message]:
    """An answer, and the same again in another form."""
    if rng.random() < 0.5:
        plain = _short(rng)
        full, brief = plain.answer, _stop(rng, plain.short or "")
        heading = rng.choice(("then one word", "then one word", "then sentence", "then capitals"))
        if heading == "then one word" and not _one_word(plain):
            heading = "then sentence"
        if heading == "then capitals" and "<|" not in full:
            first, second = full, full.upper()
        elif heading == "then sentence":
            first, second = brief, full
        else:
            heading, first, second = "then one word", full, brief.split("|>")[-1]
        if "<|" in first:
            second = second.split("|>")[-1]  # the result is known by then
    else:
        plain = _listed(rng)
        form = rng.choice((*LIST_FORMS, "sorted", "reversed"))
        first, heading = plain.answer, f"then {form}"
        if form == "sorted":
            second = ", ".join(sorted(plain.items, key=lambda item: (item.lower(), item))) + "."
            heading = heading if not any(item.isdigit() for item in plain.items) else "then commas"
            second = second if heading == "then sorted" else formed("commas", plain.items)
        else:
            second = (
                ", ".join(reversed(plain.items)) + "." if form == "reversed" else formed(form, plain.items)
            )
        if form in ("bullets", "lines") and rng.random() < 0.2:
            first = formed("commas", plain.items)
    turns = [Exchange(plain.question, first), Exchange(as_typed(rng, say(rng, "formats", heading)), second)]
    return messages(*turns)


def formed_by_system(rng: Random) -> list[Message]:
    """A form that a system message asks for, in one to three turns."""
    form = rng.choice(
        ("one word", "one word", "brief", "sentence", "bullets", "numbered", "commas", "capitals")
    )
    turns: list[Exchange] = []
    count = rng.choice((1, 1, 2, 3))
    while len(turns) < count:
        if form in LIST_FORMS:
            plain = _listed(rng)
            turns.append(Exchange(plain.question, formed(form, plain.items)))
            continue
        plain = _short(rng)
        if form == "sentence":
            turns.append(Exchange(plain.question, plain.answer))
        elif form == "capitals" and "<|" not in plain.answer:
            turns.append(Exchange(plain.question, plain.answer.upper()))
        elif form == "brief" or (form == "one word" and _one_word(plain)):
            turns.append(Exchange(plain.question, f"{plain.short}".rstrip(".") + "."))
    system = {"role": "system", "content": say(rng, "formats", f"system {form}")}
    return [system, *messages(*turns)]
