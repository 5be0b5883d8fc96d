"""Every kind of generated answer worked out once more, from the question and by other means."""

import re
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest

from engine.calculator import calculate
from engine.text import load_tokenizer
from engine.tools import ToolMachine
from training.conversations import (
    FAMILIES,
    STORY_FAMILIES,
    arithmetic,
    counting,
    dates,
    differences,
    everyday,
    formats,
    geography,
    knowledge,
    limits,
    lists,
    problems,
    spelling,
    tales,
)
from training.conversations.exchange import Exchange, Maker, Message, Scripted, messages, tool_call
from training.conversations.phrases import FOLDER, headings
from training.conversations.phrasing import article
from training.conversations.stories.telling import sentences, tell
from training.conversations.tables import table
from training.template import render
from training.tokenizer import Encoder, load

MODEL = Path(__file__).parents[2] / "models"
CALL = re.compile(r"<\|python_start\|>(.*?)<\|python_end\|><\|output_start\|>(.*?)<\|output_end\|>")
CALLERS = (
    "calculations", "expressions", "percentages", "conversions", "money", "fractions", "large_problems",
    "letter_counts", "differences", "series", "short_answers", "formed_by_system", "chat", "follow_ups",
)  # fmt: skip
SUMS: tuple[Maker, ...] = (arithmetic.sum_or_difference, arithmetic.calculation, problems.word_problem,
                           problems.large_problem)  # fmt: skip


def draws(make: Maker, count: int, seed: int = 11) -> Iterator[Exchange]:
    rng = Random(seed)
    return (make(rng) for _ in range(count))


def exact(expression: str) -> Fraction:
    """A sum in fractions; every number in it becomes an exact one."""
    return Fraction(eval(re.sub(r"\d+(?:\.\d+)?", r"Fraction('\g<0>')", expression), {"Fraction": Fraction}))


def spoken(text: str) -> str:
    return CALL.sub("", text)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return load(MODEL)


@pytest.mark.parametrize("family", CALLERS)
def test_the_engine_forces_what_the_conversation_says(family: str, encoder: Encoder) -> None:
    """The tool machine, fed with the tokens that are learned, adds exactly those that are not."""
    tokenizer = load_tokenizer(MODEL)
    rng = Random(f"calls of {family}")
    assistant, user = encoder.special("<|assistant_start|>"), encoder.special("<|user_start|>")
    calls = 0
    for _ in range(300):
        talk = FAMILIES[family][0](rng)
        ids, mask = render(talk, encoder)
        machine = ToolMachine(tokenizer)
        assert machine.active
        speaking, at = False, 0
        while at < len(ids):
            if ids[at] in (assistant, user):
                speaking = ids[at] == assistant
                assert mask[at] == 0
            elif speaking:
                assert mask[at] == 1
                forced = machine.observe(ids[at])
                assert ids[at + 1 : at + 1 + len(forced)] == forced
                assert mask[at + 1 : at + 1 + len(forced)] == [0] * len(forced)
                at += len(forced)
            at += 1
        for turn in talk:
            for expression, result in CALL.findall(turn["content"]):
                assert calculate(expression) == result
                calls += 1
    assert calls >= 3


def test_markers_are_tokens_in_scripted_turns_alone(encoder: Encoder) -> None:
    text = f"So: {tool_call('12*34')}408."
    special = {encoder.special(name) for name in ("<|python_start|>", "<|python_end|>", "<|output_start|>")}
    ask = {"role": "user", "content": text}
    from_shard, _ = render([ask, {"role": "assistant", "content": text}], encoder)
    assert not special & set(from_shard)
    scripted: list[Message] = [ask, {"role": "assistant", "content": Scripted(text)}]
    ids, mask = render(scripted, encoder)
    assert special < set(ids) and encoder.decode(ids) == encoder.decode(from_shard)
    learned = encoder.decode(i for i, m in zip(ids, mask, strict=True) if m)
    assert learned == "So: <|python_start|>12*34<|python_end|>408.<|assistant_end|>"


def test_without_a_result_there_is_no_call() -> None:
    with pytest.raises(ValueError, match="1/0"):
        tool_call("1/0")


@pytest.mark.parametrize("make", SUMS)
def test_sums_are_right_and_large_ones_use_the_tool(make: Maker) -> None:
    signs = {"plus": "+", "minus": "-", "times": "*", "divided by": "/", "x": "*", ":": "/"}
    for made in draws(make, 600):
        said = re.findall(r"(\d+) (\S+) (\d+)(?: - (\d+))? is (?:about )?(-?[\d.]*\d)", spoken(made.answer))
        assert said, made.answer
        called = CALL.findall(made.answer)
        for a, sign, b, c, result in said:
            op = signs.get(sign, sign)
            right = exact(f"{a}{op}{b}" + (f"-{c}" if c else ""))
            assert abs(right - Fraction(result)) <= Fraction(1, 200), made.answer
            assert ("about" in made.answer) == (right != Fraction(result))
            small = op in "+-" and max(int(a), int(b), right) <= 20 and right >= 0
            tens = op in "+-" and int(a) % 10 == int(b) % 10 == 0 and max(int(a), int(b), right) <= 100
            table_ = (op == "*" and max(int(a), int(b)) <= 10) or (op == "/" and right <= 10 and int(b) <= 10)
            by_heart = small or (tens and right >= 0) or (table_ and right.denominator == 1)
            if not c:
                assert bool(called) != by_heart, made.answer
        for expression, output in called:
            assert abs(float(exact(expression)) - float(output)) < 1e-6


@pytest.mark.parametrize(
    "make",
    [
        arithmetic.expression,
        arithmetic.percentage,
        arithmetic.conversion,
        arithmetic.money,
        arithmetic.fraction,
    ],
)
def test_the_last_number_said_is_the_result_of_the_call(make: Maker) -> None:
    seen = 0
    for made in draws(make, 400):
        numbers = [Fraction(n) for n in re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?", spoken(made.answer))]
        for expression, _ in CALL.findall(made.answer):
            seen += 1
            right = exact(expression)
            assert any(abs(right - number) <= Fraction(1, 200) for number in numbers), made
            assert set(re.findall(r"\d+", expression)) & set(re.findall(r"\d+", made.question)), made
    assert seen > 100


def test_what_is_left_or_together_is_what_the_story_says() -> None:
    """The two numbers of a small problem give the answer by the operation that the answer names."""
    for made in draws(problems.word_problem, 600, 3):
        if " and " in made.answer.split(", so")[0]:
            continue
        a, op, b, result = re.match(r"(\d+) (.) (\d+) is (\d+)", spoken(made.answer)).groups()  # type: ignore[union-attr]
        told = Counter(re.findall(r"\d+", made.question))
        assert told == Counter((a, b)), made
        assert result in spoken(made.answer).split("so ")[1], made
        loses = re.search(r"left|still|gave .* to|took|flew|more .* have(?: than|\?)|blue|broken|stay|"
                          r"takes?|difference|in it now|remain|free|missing|rest\b|less|moved away|keep|"
                          r"sick", made.question)  # fmt: skip
        if op == "-":
            assert loses or re.search(r"have now|more do", made.question), made


def test_counting_starts_steps_and_ends_as_asked() -> None:
    names = {"twos": 2, "threes": 3, "fours": 4, "fives": 5, "tens": 10, "hundreds": 100}
    for made in draws(counting.counting, 600):
        numbers = [int(n) for n in made.answer.rstrip(".").split(", ")]
        assert len({b - a for a, b in pairwise(numbers)}) == 1
        asked = [int(n) for n in re.findall(r"\d+", made.question)]
        step = next((n for word, n in names.items() if word in made.question.lower()), None)
        if "steps of" in made.question.lower():
            step = int(re.search(r"steps of (\d+)", made.question.lower())[1])  # type: ignore[index]
        if step:
            assert numbers[1] - numbers[0] == step, made
        if asked:
            ends = {numbers[0], numbers[-1]}
            assert ends <= set(asked) if len(asked) > 1 else numbers[0] == 1 and asked[0] in ends, made


def test_sequences_and_order() -> None:
    for made in draws(counting.following, 500):
        terms = [int(n) for n in re.findall(r"-?\d+", made.question)]
        result = int(made.short or "")
        if len(terms) > 2:
            steps = {b - a for a, b in zip(terms, [*terms[1:], result], strict=True)}
            doubled = all(2 * a == b for a, b in zip(terms, [*terms[1:], result], strict=True))
            assert len(steps) == 1 or doubled, made
        else:
            assert min(abs(result - n) for n in terms) == 1
    for made in draws(counting.ordering, 500):
        given = [int(n) for n in re.findall(r"\d+", made.question)]
        answered = [int(n) for n in re.findall(r"\d+", made.answer)]
        if len(answered) == 1:
            top = re.search(r"largest|biggest|highest", made.answer)
            assert answered[0] == (max(given) if top else min(given))
        else:
            down = re.search(r"largest first|large to small|largest to|highest to", made.question.lower())
            assert answered == sorted(given, reverse=bool(down)), made


def test_letters() -> None:
    for made in draws(spelling.spell, 500):
        first, *back = (letters.replace("-", "") for letters in re.findall(r"(?:\w-)+\w", made.answer))
        assert first in made.question.lower(), made
        asked = re.sub(rf"\b{first}\b", "", made.question.lower())
        backwards = re.search(r"back|revers|around|flip|right to left|last|the end|opposite order", asked)
        assert bool(back) == bool(backwards), made
        if back:
            assert back == [first[::-1]] and made.answer.endswith(f": {first[::-1]}."), made
    for made in draws(spelling.count_letters, 500):
        word = re.findall(r'"(\w+)"(?!\))|[Tt]he word "?(\w+)', made.answer)[-1]
        word = word[0] or word[1]
        assert word in made.question.lower()
        # The call copies the word with what stands in front of it: its tokens are those of the question.
        for text, _ in re.findall(r'python_start\|>"( ?\w+)"\.count\("(\w)"\)', made.answer):
            assert text.strip() == word and text.startswith(" ") == (f" {word}" in made.question), made
        if said := re.search(r"There (?:is|are) (no|\d+) (\w)", made.answer):
            assert sum(c == said[2] for c in word) == int(said[1].replace("no", "0")), made
        elif re.search(r"\d vowel|no vowel", made.answer):
            vowels = [c for c in word if c in "aeiou"]
            assert made.answer.count("no vowels") if not vowels else f"has {len(vowels)} vowel" in made.answer
        else:
            assert f"has {len(word)} letters" in made.answer
    for made in draws(spelling.letter, 500):
        if made.short in ("Yes", "No"):
            letter = re.search(r"letter (\w) in|no (\w) in", made.answer)
            word = re.search(r'"(\w+)"', made.answer)[1]  # type: ignore[index]
            named = next(filter(None, letter.groups()))  # type: ignore[union-attr]
            assert (named in word) == (made.short == "Yes")


def test_word_order_and_length() -> None:
    for made in draws(spelling.change, 600):
        if made.items:
            assert list(made.items) == sorted(made.items)
            assert set(made.items) <= set(re.findall(r"\w+", made.question))
        elif "letters, and" in made.answer:
            first, other = re.findall(r'"(\w+)"', made.answer)
            longer = "longer" in made.answer
            assert (len(first) > len(other)) == longer
            assert [int(n) for n in re.findall(r"\d+", made.answer)] == [len(first), len(other)]


def test_days_and_months_are_counted_off() -> None:
    for made in draws(dates.neighbour, 500):
        if "between" in made.answer:
            continue
        unit, many, word, name, other = re.fullmatch(
            r"The (day|month)(?: (two|three) \w+s)? (after|before) (\w+) is (\w+)\.", made.answer
        ).groups()  # type: ignore[union-attr]
        names = dates.DAYS if unit == "day" else dates.MONTHS
        at = names.index(name)
        for _ in range({None: 1, "two": 2, "three": 3}[many]):
            at = (at + 1) % len(names) if word == "after" else (at or len(names)) - 1
        assert names[at] == other and name.lower() in made.question.lower(), made
    told, when = 0, {"yesterday": -1, "today": 0, "tomorrow": 1}
    for made in draws(dates.today, 500):
        if said := re.fullmatch(r"If (\w+) (?:is|was) (\w+), (\w+) (?:is|was) (\w+)\.", made.answer):
            known, day, asked, other = said.groups()
            away = dates.DAYS.index(other) - dates.DAYS.index(day)
            assert (away - when[asked] + when[known]) % 7 == 0, made
            named = {word for word in when if word in made.question.lower()}
            assert {known, asked} <= named | {"today"}, made
            told += 1
    assert told > 200
    for made in draws(dates.recite, 300):
        assert made.items == () or list(made.items) == sorted(
            made.items, key=lambda item: [*dates.DAYS, *dates.MONTHS, *dates.SEASONS].index(item)
        )


def test_capitals_and_lists_agree_with_the_tables() -> None:
    rows = {row[0].lower(): row for row in table("countries")}
    for name, others in geography.ALSO_CALLED.items():
        rows |= {other.lower(): rows[name.lower()] for other in others}
    for made in draws(geography.capital, 400):
        country, city = re.fullmatch(r"The capital of (.+) is (.+?)\.?", made.answer).groups()  # type: ignore[union-attr]
        assert rows[country.lower()][1].rstrip(".") == city
        assert country.lower().removeprefix("the ") in made.question.lower()
    members = {many: items.split(", ") for many, _, items in table("lists")}
    for made in draws(lists.listing, 400):
        if made.items:
            kinds = [many for many in members if many.lower() in made.question.lower()]
            assert any(set(made.items) <= set(members[kind]) for kind in kinds), made
            assert len(set(made.items)) == len(made.items)
            wanted = re.search(r"\b(two|three|four|five|six|seven|ten|\d+)\b", made.question.lower())
            if wanted and wanted[1] in arithmetic.WORDS:
                assert arithmetic.WORDS.index(wanted[1]) == len(made.items), made
    for made in draws(lists.with_letter, 200):
        thing, letter = re.fullmatch(r"(.+) starts with (\w)\.", made.answer).groups()  # type: ignore[union-attr]
        assert thing[0].upper() == letter
    assert len(members) >= 40 and sum(len(items) >= 10 for items in members.values()) >= 40


def test_planets_and_shapes_are_in_order() -> None:
    for made in draws(everyday.planet, 300):
        if said := re.fullmatch(r"The planet after (\w+) is (\w+)\.", made.answer):
            assert everyday.PLANETS.index(said[2]) == everyday.PLANETS.index(said[1]) + 1
        elif named := re.search(r"(\w+) planet from the sun", made.answer):
            planet = next(p for p in everyday.PLANETS if p in made.answer)
            assert dates.ORDINALS.index(named[1]) == everyday.PLANETS.index(planet)


def test_ranks_are_never_turned_around() -> None:
    words: dict[str, int] = {}
    rows: dict[str, list[list[str]]] = {}
    for more, _, less, _, listed in table("ranks"):
        words |= {more: 1, less: -1}
        for word in (more, less):
            rows.setdefault(word, []).append(listed.lower().split(", "))
    for made in draws(knowledge.ranked, 500):
        if said := re.fullmatch(r"(?:yes, |no, )?(.+?) is (.+) than (.+)\.", made.answer.lower()):
            first, word, second = said.groups()
            fitting = [row for row in rows[word] if first in row and second in row]
            assert fitting, made
            assert all((row.index(first) - row.index(second)) * words[word] > 0 for row in fitting), made


def test_one_word_is_one_word_and_a_list_is_a_list() -> None:
    for made in draws(formats.short_answer, 600):
        if re.search(r"(?i)(one|single) word", made.question):
            assert len(spoken(made.answer).split()) == 1, made
        if re.search(r"(?i)yes or no", made.question):
            assert made.answer.rstrip(".") in ("Yes", "No"), made
    for made in draws(formats.list_form, 300):
        lines = made.answer.split("\n")
        if lines[0].startswith("- "):
            assert [line[2:] for line in lines] == list(made.items)
        elif lines[0].startswith("1. "):
            assert lines == [f"{at + 1}. {item}" for at, item in enumerate(made.items)]
        else:
            assert made.items == tuple(re.split(", |\n", made.answer))
        if re.search(r"(?i)\bdash|bullet", made.question):
            assert lines[0].startswith("- "), made
        if wanted := re.match(r"(?i)(?:name|list|give me) (two|three|four|five) ", made.question):
            assert arithmetic.WORDS.index(wanted[1].lower()) == len(made.items), made


def test_invented_names_are_not_known_and_real_ones_are() -> None:
    known = {row[0].lower() for name in ("people", "books", "countries") for row in table(name)}
    known |= {row[1].lower() for row in table("countries")} | {row[0].lower() for row in table("definitions")}
    answered, any_known = 0, re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, known))})(?!\w)")
    for made in draws(limits.known_or_not, 800):
        real = any_known.search(made.question.lower())
        unsure = re.search(r"don't know|I have never heard", made.answer)
        answered += not unsure
        assert real or unsure, made
    assert 200 < answered < 600


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_stories_of_so_many_sentences(count: int) -> None:
    for seed in range(60):
        told = tales.of_length(Random(seed), "rabbit", count)
        assert len(sentences(told)) == count and "rabbit" in told, told


def test_what_a_request_for_a_story_demands_is_in_it() -> None:
    for made in draws(tales.tale, 500):
        for phrase in re.findall(r'"([^"]+)"', made.question):
            assert phrase.lower().rstrip(".") in made.answer.lower(), made.question
        if "moral" in made.question.lower() and "moral" in made.answer:
            assert made.answer.rindex("moral of the story: ") > len(made.answer) / 2


def test_articles_and_pronouns_of_stories() -> None:
    for made in draws(tales.tale, 500, 5):
        for found, word in re.findall(r"\b([Aa]n?) ([a-z]+)", made.answer):
            assert article(word) == found.lower(), (found, word)
    for seed in range(300):
        story = tell(Random(seed), {"kind": ("princess", "king", "hen", "girl")[seed % 4]})
        assert story.slots["he"] == ("he" if seed % 4 == 1 else "she")
        assert story.slots["name"] != story.slots["friend"] and story.slots["kind"] != story.slots["fkind"]


def test_talk_is_varied() -> None:
    rng = Random(2)
    shares = {"sums": 0.7, "calculations": 0.95, "word_problems": 0.95, "spelling": 0.8, "lists": 0.9,
              "capitals": 0.45, "dates": 0.5, "letter_counts": 0.9}  # fmt: skip
    for name, share in shares.items():
        asked = {FAMILIES[name][0](rng)[0]["content"] for _ in range(600)}
        assert len(asked) > 600 * share, (name, len(asked))
    stories = {STORY_FAMILIES["tales"][0](rng)[1]["content"] for _ in range(300)}
    assert len(stories) == 300


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.txt")), ids=lambda path: path.stem)
def test_every_wording_stands_once_under_its_heading(path: Path) -> None:
    for name, lines in headings(path.stem).items():
        if name not in ("adjectives",):
            assert len(set(lines)) == len(lines), (name, [n for n, c in Counter(lines).items() if c > 1])


def test_scripted_answers_alone_are_typed_so() -> None:
    user, assistant = messages(Exchange("Hi", "Hello!"))
    assert isinstance(assistant["content"], Scripted) and not isinstance(user["content"], Scripted)


@pytest.mark.parametrize("large", [False, True])
def test_a_scene_ends_with_the_result_of_its_operation(large: bool) -> None:
    """Scenes that lose something never tell of gains, and the numbers are those of the question."""
    gains = re.compile(r"\bmore\b|together|in (?:all|total)|altogether|\bboth\b")
    signs: Counter[str] = Counter()
    for made in draws(lambda rng: problems.scene(rng, large), 1500):
        a, op, b, result = re.match(r"(\d+) (.) (\d+) is (\d+)", spoken(made.answer)).groups()  # type: ignore[union-attr]
        signs[op] += 1
        assert Counter(re.findall(r"\d+", made.question)) == Counter((a, b)), made
        assert min(int(a), int(b), int(result)) > 1 and re.findall(r"\d+", made.answer)[-1] == result, made
        assert op != "-" or not gains.search(made.question), made
        if large:
            assert CALL.findall(made.answer) == [(f"{a}{op}{b}", result)] or arithmetic.easy(
                int(a), op, int(b)
            )
    assert min(signs[op] for op in "+-*") > 100


# Words that say in which direction a wording goes; everything else in differences.txt compares two numbers.
_UPWARDS = re.compile(
    r"\b(?:count on|go \d+ up|go on by|move up|to the right|steps up|go up by|rises|up from|up by|"
    r"over|comes \d+ after|number is \d+ (?:more|above)|more than \d+ is what|raise the number|move \d+ up)\b"
)


def test_a_difference_is_the_larger_number_less_the_smaller_one() -> None:
    """Whatever is asked first, and of all four pairings of two and three digits."""
    lengths, order = Counter[tuple[int, int]](), Counter[bool]()
    for made in draws(differences.difference, 3000, 5):
        a, op, b, result = re.match(r"(\d+) (.) (\d+) is (\d+)", spoken(made.answer)).groups()  # type: ignore[union-attr]
        asked = re.findall(r"\d+", made.question)
        assert Counter(asked) in (Counter((a, b)), Counter()), made  # in digits or in words
        assert int(result) == (int(a) - int(b) if op == "-" else int(a) + int(b)) and int(result) > 1
        assert re.findall(r"\d+", spoken(made.answer))[-1] == result, made
        assert bool(CALL.findall(made.answer)) != arithmetic.easy(int(a), op, int(b)), made
        if op == "-" and asked:
            lengths[len(a), len(b)] += 1
            order[asked[0] == a] += 1
    assert min(lengths[pair] for pair in ((2, 2), (3, 2), (3, 3))) > 200
    assert min(order.values()) > 0.35 * order.total()


def test_each_wording_of_a_difference_compares_and_each_of_a_sum_goes_up() -> None:
    """Numbers put into every wording: the words of the question alone give the operation."""
    found = headings("differences")
    for heading, up in (("up", True), ("plain", False), ("down", False)):
        for line in found[heading]:
            # "From one to the other" is a distance, whichever way it goes.
            text = re.sub(r"from \d+ ?(?:up|down)? to \d+", "between", line.lower().format(a=52, b=40))
            assert bool(_UPWARDS.search(text)) == up, text


def test_words_to_spell_are_many_and_partly_unknown() -> None:
    rng = Random(3)
    asked = [re.search(r"(?:word|name) \"?(\w+)\"? is", spelling.spell(rng).answer) for _ in range(3000)]
    drawn = {found[1].lower() for found in asked if found}
    assert len(asked) == sum(map(bool, asked)) and len(drawn) > 1800
    known = set(spelling.words())
    assert len(known) > 9000 and 0.1 < sum(word not in known for word in drawn) / len(drawn) < 0.5


def test_a_dictation_spells_every_word_that_was_asked() -> None:
    rng, spelled = Random(4), Counter[str]()
    for _ in range(800):
        talk = spelling.dictation(rng)
        asked = " ".join(turn["content"].lower() for turn in talk[::2])
        for turn in talk[1::2]:
            found = re.findall(r"([a-z]+)(?: is spelled|:) ([a-z](?:-[a-z])+)\b", turn["content"])
            assert found, talk
            for word, letters in found:
                assert letters.replace("-", "") == word and re.search(rf"\b{word}\b", asked), talk
                spelled[word] += 1
    assert len(spelled) > 1200
