"""Generated conversations: every family works, draws are reproducible, held-out prompts never occur."""

import re
from random import Random

import pytest

from training.conversations import FAMILIES, STORY_FAMILIES, generate
from training.conversations.exchange import TOOL_MARKER, Message
from training.conversations.phrasing import article, expand
from training.conversations.stories.plot import all_plots, parse
from training.conversations.stories.telling import summarise, tell
from training.conversations.talk import FOLDER, blocks
from training.prompts import CAPITAL_FORM, FIXED, SUM_FORM, is_held_out, normalised

ALL = {**FAMILIES, **STORY_FAMILIES}


@pytest.mark.parametrize("name", ALL)
def test_a_family_makes_well_formed_conversations(name: str) -> None:
    rng = Random(7)
    for _ in range(150):
        talk: list[Message] = ALL[name][0](rng)
        roles = [turn["role"] for turn in talk]
        turns = roles[1:] if roles[0] == "system" else roles
        assert turns == ["user", "assistant"] * (len(turns) // 2) and turns
        for turn in talk:
            content = turn["content"]
            assert content == content.strip() and content
            assert not re.search(r"[][{}|]|(?<!\.)\.\.$|  ", TOOL_MARKER.sub("", content)), content
            assert turn["role"] == "assistant" or not TOOL_MARKER.search(content)


def test_the_same_seed_gives_the_same_conversations() -> None:
    first = list(generate(ALL, 200, "seed"))
    assert first == list(generate(ALL, 200, "seed"))
    assert first != list(generate(ALL, 200, "another"))


def test_held_out_prompts_are_never_generated() -> None:
    prompt = FIXED[0].turns[0]
    families = {
        "leaky": (lambda rng: _talk(prompt.upper() if rng.random() < 0.9 else "What is rain?"), 1.0),
    }
    made = [talk[0]["content"] for _, talk in generate(families, 20, 1)]
    assert made == ["What is rain?"] * 20


def _talk(question: str) -> list[Message]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": "Yes."}]


def test_held_out_ignores_case_and_punctuation() -> None:
    assert is_held_out(SUM_FORM.format(7, 5).lower().rstrip("?") + " !")
    assert is_held_out(CAPITAL_FORM.format("France"))
    assert not is_held_out("What is the capital of France?")
    assert is_held_out("Hey, " + CAPITAL_FORM.format("France").lower() + " Answer in one word.")
    assert not is_held_out(CAPITAL_FORM.format("Malta"))
    assert not is_held_out("My friend asked: who exactly are you?")
    assert normalised("It's  A-Test!") == "it s a test"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.txt")), ids=lambda path: path.stem)
def test_every_talk_template_reads(path) -> None:  # type: ignore[no-untyped-def]
    rng = Random(1)
    slots = {"person": "P", "thing": "t", "town": "T"}
    for asks, answers in blocks(path.stem):
        for template in (*asks, *answers):
            assert expand(rng, template, slots)


@pytest.mark.parametrize("plot", all_plots(), ids=lambda plot: plot.theme)
def test_every_plot_can_be_told(plot) -> None:  # type: ignore[no-untyped-def]
    for seed in range(20):
        story = tell(Random(seed), {"kind": "rabbit", "object": "kite"}, plot)
        assert "rabbit" in story.text and story.slots["name"] in story.text
        assert 80 < len(story.text.split()) < 330
        assert summarise(Random(seed), story)


def test_a_beat_without_wording_is_refused() -> None:
    with pytest.raises(ValueError, match="no wording"):
        parse("theme: x\nhook: x\nmoral: x\nsummary: x\ntitle: x\n- one\n--\n--\n- three")


@pytest.mark.parametrize(
    ("template", "expected"),
    [("{a x}", "an apple"), ("{A x}", "An apple"), ("{X}s", "Apples"), ("[a|a] [b[c|c]]", "a bc")],
)
def test_templates(template: str, expected: str) -> None:
    assert expand(Random(0), template, {"x": "apple"}) == expected


@pytest.mark.parametrize("template", ["[a", "a]", "a|b"])
def test_unbalanced_templates_are_refused(template: str) -> None:
    with pytest.raises(ValueError, match="unbalanced"):
        expand(Random(0), template)


def test_articles() -> None:
    assert [article(word) for word in ("owl", "unicorn", "hour", "dog")] == ["an", "a", "an", "a"]
