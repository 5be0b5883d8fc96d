"""What generated talk must not contain: mistakes of language, a life of its own, names that nobody told."""

import re
from collections import Counter
from random import Random

import pytest

from training.conversations import FAMILIES, STORY_FAMILIES, generate, limits, memory, troubles
from training.conversations.exchange import Message, without_markers
from training.conversations.phrases import headings
from training.conversations.tables import table
from training.conversations.talk import blocks, invented_word, unheard_word

ALL = {**FAMILIES, **STORY_FAMILIES}
# By sound: "a one-eyed cat", "a university", "an hour", "an X". Single letters are names of letters.
_SOUNDS_A = re.compile(r"(?i)(?:one|once|uni(?!n|m)|us(?:e|ual)|eu|ewe|uk|utensil|u-|u\b)")
_SOUNDS_AN = re.compile(r"(?i)(?:hour|honest|honou?r|heir)|[fhlmnrsx]\b")
# In "how often does a occur in ...", "a and e", "is a in ...", the letter is meant.
_AFTER_A_LETTER = {"in", "and", "is", "are", "or", "occur", "occurs", "appear", "appears"}
# Said twice on purpose, or one the end and one the beginning of two parts.
_TWICE = {
    "that",
    "had",
    "very",
    "ha",
    "bye",
    "knock",
    "blah",
    "hello",
    "no",
    "haha",
    "so",
    "tick",
    "drip",
    "can",
}
_ENDS = re.compile(r"[.!?:\"')\]…]$|\.\.\.$")


def _article_mistakes(text: str) -> list[str]:
    wrong = []
    for found, word in re.findall(r"\b([Aa]n?) ([A-Za-z][\w-]*)", text):
        if len(word) == 1 or word in _AFTER_A_LETTER:
            continue
        an = bool(_SOUNDS_AN.match(word)) or (word[0].lower() in "aeiou" and not _SOUNDS_A.match(word))
        if an != (found.lower() == "an"):
            wrong.append(f"{found} {word}")
    return wrong


def _doubled(text: str) -> list[str]:
    return [
        word
        for word in re.findall(r"\b([A-Za-z]{2,}) \1\b", text, re.I)
        if word.lower() not in _TWICE and not word[0].isupper()
    ]


@pytest.fixture(scope="module")
def talks() -> list[tuple[str, list[Message]]]:
    """Two hundred of each family, so that rare ones are read as closely as common ones."""
    return [(name, talk) for name in ALL for _, talk in generate({name: ALL[name]}, 200, f"of {name}")]


def test_the_rules_find_mistakes_and_nothing_else() -> None:
    assert _article_mistakes("A owl and an dog met an hour ago. It was a unicorn, an umbrella, a one.") == [
        "A owl",
        "an dog",
    ]
    assert _doubled("It is is here.") == ["is"] and not _doubled("He said that that was so.")


def test_assistants_write_articles_by_sound(talks: list[tuple[str, list[Message]]]) -> None:
    wrong = Counter(
        (family, mistake)
        for family, talk in talks
        for turn in talk
        for mistake in _article_mistakes(without_markers(turn["content"]))
    )
    assert not wrong


def test_no_word_is_said_twice(talks: list[tuple[str, list[Message]]]) -> None:
    wrong = [
        (family, word, turn["content"])
        for family, talk in talks
        for turn in talk
        if turn["role"] == "assistant"
        for word in _doubled(without_markers(turn["content"]))
    ]
    assert not wrong


def test_answers_in_sentences_end_with_a_mark(talks: list[tuple[str, list[Message]]]) -> None:
    """An answer of several words, in one line: it ends as a sentence does, unless it is a list or a title."""
    wrong = Counter[str]()
    for family, talk in talks:
        for turn in talk:
            text = turn["content"]
            if turn["role"] != "assistant" or "\n" in text or len(text.split()) < 4 or "<|" in text:
                continue
            if (
                not _ENDS.search(text)
                and text[0].isupper()
                and re.search(r"\b(?:is|are|was|has|have|do|can|will)\b", text)
            ):
                wrong[family, text] += 1  # type: ignore[index]
    assert not wrong


def test_it_never_claims_a_human_life(talks: list[tuple[str, list[Message]]]) -> None:
    claims = re.compile(
        r"\bI(?: am|'m) (?:an? )?\w+ years? old|\bI(?: am|'m) an? (?:woman|man|girl|boy|teacher|student)\b|"
        r"\bmy (?:wife|husband|kids|children|boyfriend|girlfriend|mom|dad)\b|"
        r"\bI live in (?!this|the machine)"
    )
    stories = {"tales", "story_talk", "short_tales", "written", "reading", "chat", "system", "poems"}
    for family, talk in talks:
        for turn in talk:
            if turn["role"] == "assistant" and family not in stories:
                assert not claims.search(turn["content"]), (family, turn["content"])


def test_answers_to_remarks_claim_no_life() -> None:
    for asks, answers in blocks("greetings"):
        for answer in answers:
            assert not re.search(
                r"(?i)\b(?:my (?:family|home|job|friends)|I (?:ate|slept|went|live))\b", answer
            ), asks


# -- memory --------------------------------------------------------------------------------------------------


def test_names_are_many_and_said_back() -> None:
    """A told name is in the greeting and in the answer; the name told last is the one that counts."""
    rng = Random(4)
    told, asked = Counter[str](), 0
    names = {line for heading in ("name say", "name wrong") for line in headings("memory")[heading]}
    assert len(names) > 50 and len(memory.names()) > 1000
    for _ in range(3000):
        talk = memory.told(rng)
        for at in range(1, len(talk), 2):
            if found := re.fullmatch(r"Your name is (.+)\.", talk[at]["content"]):
                name = found[1]
                asked += 1
                told[name] += 1
                before = [turn["content"] for turn in talk[:at]]
                assert sum(re.search(rf"(?i)\b{name}\b", text) is not None for text in before) >= 2, talk
    assert asked > 600 and len(told) > 0.6 * asked and max(told.values()) < 20


def test_what_was_told_is_what_is_answered() -> None:
    """Every value in an answer to a question back was said by the user before, in whatever case."""
    back = re.compile(
        r"Your (?:favorite \w+|\w+(?: \w+)?|birthday|hobby) is (?:called |in )?(.+)\.|You live in (.+)\.|"
        r"You are (\d+) years old\.|The (?:number|word) is (.+)\."
    )
    rng, checked = Random(9), 0
    for _ in range(2000):
        talk = memory.told(rng)
        for at in range(3, len(talk), 2):
            if found := back.fullmatch(talk[at]["content"]):
                value = next(filter(None, found.groups()))
                checked += 1
                users = " ".join(turn["content"] for turn in talk[: at - 1] if turn["role"] == "user")
                assert value.lower() in users.lower(), talk
    assert checked > 1000


def test_what_was_not_told_is_not_known() -> None:
    rng, unknown = Random(2), 0
    for _ in range(1500):
        talk = memory.told(rng)
        unknown += any("You have not told me" in turn["content"] for turn in talk)
    assert 80 < unknown < 300


def test_without_a_city_in_the_question_none_is_in_the_answer() -> None:
    rng = Random(6)
    cities = {row[1].split(",")[0] for row in table("countries")}
    named = re.compile(rf"\b(?:{'|'.join(map(re.escape, sorted(cities)))})\b")
    for _ in range(3000):
        made = limits.cannot_know(rng)
        said = set(named.findall(made.answer))
        assert all(city.lower() in made.question.lower() for city in said), made


def test_invented_words_are_words_and_seldom_the_same() -> None:
    rng = Random(1)
    drawn = [unheard_word(rng) for _ in range(4000)]
    assert all(re.fullmatch("[a-z]{4,11}", word) and re.search("[aeiouy]", word) for word in drawn)
    assert len(set(drawn)) > 3600
    assert len({invented_word(rng) for _ in range(4000)}) > 1000


# -- feelings and dangers ------------------------------------------------------------------------------------


def test_only_a_danger_is_answered_with_an_emergency_line() -> None:
    help_line = re.compile(r"emergency|crisis line|\b112\b")
    for name in ("feelings", "troubles", "greetings"):
        for asks, answers in blocks(name):
            assert not any(map(help_line.search, answers)), asks
    for asks, answers in blocks("danger"):
        assert all(map(help_line.search, answers)), asks


def test_a_trouble_comes_with_many_questions_and_alone() -> None:
    rng = Random(3)
    asked = Counter[str]()
    for _ in range(4000):
        question = troubles.trouble(rng).question
        asked[question.lower().rstrip("?.! ").rpartition(". ")[2]] += 1
    tails = {line for line in headings("advice")["behind"] if "[" not in line}
    assert sum(asked[line.lower().rstrip("?.! ")] > 0 for line in tails) == len(tails) > 30
