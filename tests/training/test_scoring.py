"""What counts as a right answer: for every rule, answers that are right in many ways, and near misses."""

import pytest

from training.evaluate.questions import CAPITALS, Question, Rule, calculator, made, required, spelling
from training.evaluate.scoring import (
    ANIMALS,
    COLOURS,
    final_number,
    matches,
    overlap,
    plain,
    repetition,
    right,
    used_tool,
    visible,
)

TOOL = "<|python_start|>{}<|python_end|><|output_start|>{}<|output_end|>"


def knowing(question: Question) -> str:
    """The answer of someone who knows."""
    match question.rule:
        case "name":
            return "I'm Fastpath."
        case "animals":
            return "Three animals are a cat, a dog and two mice."
        case "colours":
            return "Red, dark blue, and green."
        case "tuesday":
            return "The day after Monday is Tuesday."
        case "spelled":
            return f"It is spelled {'-'.join(question.expect)}."
        case _:
            return f"That is {question.expect.split('|')[0]}."


def test_who_knows_has_all_right_and_who_says_nothing_has_none() -> None:
    for question in made():
        assert right(question, knowing(question)), question
        assert not right(question, "") and not right(question, "I don't know."), question


def test_answers_to_other_questions_are_hardly_ever_right() -> None:
    """A model that answers at random: each answer is given to the next question of its set."""
    groups = [*calculator().values(), *spelling().values(), required()["capitals of ten large countries"]]
    for group in groups:
        hits = sum(
            right(question, knowing(other))
            for question, other in zip(group, group[1:] + group[:1], strict=True)
        )
        # Letters are counted to 0, 1, 2 or 3, so chance is high there.
        assert hits <= (0.7 if "letter" in group[1].text else 0.05) * len(group)


def test_questions_are_drawn_alike_and_all_differ() -> None:
    assert calculator.__wrapped__() == calculator() and spelling.__wrapped__() == spelling()
    for group in (*calculator().values(), *required().values()):
        assert len({question.text for question in group}) == len(group)
    assert len(CAPITALS) == 10 and all(len(group) >= 5 for group in required().values())


@pytest.mark.parametrize("before", ["", "Let me see: ", "12 times 34 is "])
def test_the_calculator_counts_where_the_text_says_no_number(before: str) -> None:
    block = TOOL.format("12*34", "408")
    assert used_tool(before + block) and not used_tool(before)
    assert final_number(before + block) == final_number(f"{before}{block} in all.") == "408"
    assert final_number(f"{before}{block}408.") == "408"
    assert final_number(f"{before}{block}So it is 407.") == "407"  # what is said counts
    assert "12*34" not in visible(block) and "408" not in visible(block)


def test_an_unanswered_block_is_no_use_of_the_tool() -> None:
    assert not used_tool("<|python_start|>1+<|python_end|>nothing")
    assert final_number("<|python_start|>1+2") is None


@pytest.mark.parametrize(
    ("text", "number"),
    [("1,408.", "1408"), ("13 - 4 is 9.", "9"), ("it is -5", "-5"), ("12-5 is 7", "7"), ("Nine.", "9"),
     ("3.5 in all", "3.5"), ("none", None), ("r2d2", None)],
)  # fmt: skip
def test_final_numbers(text: str, number: str | None) -> None:
    assert final_number(text) == number


@pytest.mark.parametrize(
    ("rule", "text", "good"),
    [
        ("animals", "1. cat\n2. dog\n3. butterflies", True),
        ("animals", "- a cat\n- a dog\n- a polar bear", True),
        ("animals", "Sure! A lion, a tiger and an ox. They are strong.", True),
        ("animals", "Cat, dog, and cat.", False),
        ("animals", "Cat, dog, and cats.", False),
        ("animals", "Cat, dog, and table.", False),
        ("animals", "Cat, dog, pig, and table.", False),
        ("animals", "Cat, dog, pig, and cow.", False),
        ("animals", "Bear.", False),
        ("colours", "Red, blue, and yellow.", True),
        ("colours", "Red, blue, and cat.", False),
        ("tuesday", "Tuesday.", True),
        ("tuesday", "Tuesday or Wednesday.", False),
        ("tuesday", "The day before Monday is Sunday.", False),
        ("name", "My name is Fastpath!", True),
        ("name", "My name is Fastpaths.", False),
    ],
)
def test_rules(rule: Rule, text: str, good: bool) -> None:
    assert right(Question("?", rule), text) is good


@pytest.mark.parametrize(
    ("text", "good"),
    [("The capital of India is New Delhi.", True), ("delhi", True), ("New Delhi, or Paris.", False),
     ("The capital of India is Mumbai.", False), ("Delhis", False)],
)  # fmt: skip
def test_capitals(text: str, good: bool) -> None:
    assert right(Question("?", "capital", CAPITALS["India"]), text) is good


@pytest.mark.parametrize(
    "form", ["h-o-u-s-e", "H-O-U-S-E.", "h, o, u, s, e", "H, O, U, S, and E", "h o u s e"]
)
def test_spelled_words(form: str) -> None:
    for text in (form, f"House is spelled {form}", f"House: {form}"):
        assert right(Question("?", "spelled", "house"), text)
        assert right(Question("?", "reversed", "house"), text)
        assert not right(Question("?", "spelled", "houses"), text)
    assert right(Question("?", "reversed", "house"), "You get house.")
    assert not right(Question("?", "spelled", "house"), "House.")


@pytest.mark.parametrize("answer", ["The Beatles", "the beatles.", "It was the Beatles!", "BEATLES"])
def test_short_answers_that_are_equal(answer: str) -> None:
    assert matches(answer, ["The Beatles."]) and matches("The Beatles.", [answer])
    assert overlap(answer, ["The Beatles."]) == 1.0
    assert not matches(answer + " and more", ["The Beatles."])
    assert 0 < overlap(answer + " and more", ["The Beatles."]) < 1


def test_number_words_are_digits() -> None:
    assert plain("Twelve kings") == plain("The 12 kings.") != plain("13 kings")
    assert overlap("cats", ["dogs"]) == 0.0


def test_repetition_grows_with_every_loop() -> None:
    sentence = "the cat sat on the mat and slept "
    shares = [repetition(sentence * times) for times in (1, 2, 5, 20)]
    assert shares[0] == 0.0 and shares == sorted(shares) and shares[-1] > 0.9
    assert repetition("too short") == 0.0


def test_the_lists_are_of_single_lower_case_words() -> None:
    for known in (ANIMALS, COLOURS):
        assert all(word.isalpha() and word == word.lower() for word in known)
    assert not ANIMALS & COLOURS
