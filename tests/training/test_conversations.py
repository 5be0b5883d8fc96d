"""Generated conversations: every family works, draws are reproducible, held-out prompts never occur."""

import re
from dataclasses import replace
from itertools import cycle
from random import Random

import pytest

from training.conversations import FAMILIES, STORY_FAMILIES, generate
from training.conversations.exchange import TOOL_MARKER, Message
from training.conversations.phrasing import article, expand
from training.conversations.stories.plot import all_plots, parse
from training.conversations.stories.telling import summarise, tell
from training.conversations.talk import FOLDER, blocks
from training.conversations.written import SHARED, draw_slots, library, spoken
from training.conversations.written import talk as written_talk
from training.conversations.written.parsing import Written, read
from training.leaks import SUBSTRING_WORDS
from training.prompts import CAPITAL_FORM, FIXED, SUM_FORM, held_out, is_held_out, normalised

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


WRITTEN = {
    name: [w for w in library() if w.where.startswith(name + ":")]
    for name in sorted({w.where.partition(":")[0] for w in library()})
}
LONG_PROMPTS = tuple(prompt for prompt in held_out() if len(prompt.split()) >= SUBSTRING_WORDS)


@pytest.mark.parametrize("name", WRITTEN)
def test_every_written_conversation_is_sound(name: str) -> None:
    for written in WRITTEN[name]:
        for seed in range(25):
            rng = Random(seed)
            talk = spoken(rng, written, draw_slots(rng, written))
            if written.system is not None:
                assert talk.pop(0)["role"] == "system", written.where
            assert len(talk) >= 2 and len(talk) % 2 == 0, written.where
            for turn, role in zip(talk, cycle(("user", "assistant"))):
                content = turn["content"]
                assert turn["role"] == role and content, written.where
                assert not re.search(r"[{}|]|\\n|  ", content), f"{written.where}: {content}"
                if role == "user":
                    plain = normalised(content)
                    assert not is_held_out(content), f"{written.where}: {content}"
                    assert not any(prompt in plain for prompt in LONG_PROMPTS), f"{written.where}: {content}"
                else:
                    assert len(content.split()) <= 120, written.where


def _with_one_value(written: Written, value: str) -> tuple[Written, dict[str, tuple[str, ...]]]:
    """`written` and the shared lists, every slot with a single value made of `value` and the slot's name."""
    slots = tuple((names, (tuple(value + slot for slot in names),)) for names, _ in written.slots)
    return replace(written, slots=slots), {slot: (value + slot,) for slot in SHARED}


@pytest.mark.parametrize("name", WRITTEN)
def test_another_value_of_a_slot_changes_every_turn_that_names_it_and_nothing_else(name: str) -> None:
    for written in WRITTEN[name]:
        for seed in range(4):
            told = []
            for value in ("Qov", "Zyt"):
                one, shared = _with_one_value(written, value)
                rng = Random(seed)
                told.append([turn["content"] for turn in spoken(rng, one, draw_slots(rng, one, shared))])
            first, second = told
            assert [re.sub("(?i)qov", "zyt", text) for text in first] == [
                re.sub("(?i)zyt", "zyt", text) for text in second
            ], written.where


def test_slots_are_drawn_together_and_once() -> None:
    (written,) = read(
        "@ animal,sound: cow,moo|dog,woof\n? I am {a animal}.\n! {A animal}!\n? And?\n! {Sound}, {animal}.",
        "x",
    )
    seen = set()
    for seed in range(30):
        rng = Random(seed)
        talk = spoken(rng, written, draw_slots(rng, written))
        seen.add((talk[1]["content"], talk[3]["content"]))
    assert seen == {("A cow!", "Moo, cow."), ("A dog!", "Woof, dog.")}


def test_quoted_text_is_left_as_it_is() -> None:
    (written,) = read('? Say "Good Day."\n? Shorten this:\\nIt Is Late.\n! Yes.\\nNo.', "x")
    asked = {spoken(Random(seed), written, {})[0]["content"] for seed in range(60)}
    assert asked == {'Say "Good Day."', "Shorten this:\nIt Is Late."}
    assert spoken(Random(0), written, {})[1]["content"] == "Yes.\nNo."


def test_written_conversations_are_drawn_evenly() -> None:
    rng = Random(11)
    openings = {turn["content"] for turn in (written_talk(rng)[0] for _ in range(20 * len(library())))}
    assert len(openings) >= len(library())


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("! Hello.", "f.txt:1.*out of place"),
        ("? Hello.", "f.txt:1.*ends with"),
        ("? A.\n! B.\n\n\n? Hello.\n! Hi.\n? Well?", "f.txt:7.*ends with"),
        ("? A.\n~ B.\n! C.", "f.txt:2.*out of place"),
        ("? A.\n@ b: c\n! C.", "f.txt:2.*out of place"),
        ("? A.\nB.\n! C.", "f.txt:2.*a line needs"),
        ("? A.\n! ", "f.txt:2.*a line needs"),
        ("? A.\n! {unknown}", "f.txt:2.*unknown slot"),
        ("~ {unknown}\n@ known: x\n? A.\n! B.", "f.txt:1.*unknown slot"),
        ("? A.\n! [B", "f.txt:2.*unbalanced"),
        ("? A.\n! {B", "f.txt:2.*brace"),
        ("@ a,b: c|d,e\n? A.\n! B.", "f.txt:1.*2 value"),
        ("@ a b|c\n? A.\n! B.", "f.txt:1.*slots are written"),
    ],
)
def test_a_malformed_conversation_is_refused_with_file_and_line(text: str, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        read(text, "f.txt")
