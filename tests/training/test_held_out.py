"""Held out by document and by prompt: what is planted is left out of training, or found by the leak check."""

import json
import lzma
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from training.data import conversations, plain_texts
from training.evaluate.documents import CHAT, PROSE, HeldOut, passage_and_question, sentences
from training.evaluate.items import digest, multiple_choice, prompts, short_answers, variants
from training.evaluate.questions import made
from training.leaks import Finder, check, find, left_out, main, prompt_sets
from training.prompts import FIXED, SUBSTRING_WORDS, held_out, is_held_out, normalised
from training.settings import Settings, tiny
from training.shards import DataError

PASSAGE = (
    "Once there lived a miller who had seven sons and a very old donkey. One day the donkey ran away into "
    "the dark forest behind the mill. The youngest son went after it with a lantern and some bread."
)
FRAME = "Read this part of a story and answer the question."
QUIZ = "Which river flows through the old town of Zubelstadt?\nA) Zub\nB) Rhine\nC) Nile\nD) Elbe"
OPEN = "Who was the very first mayor of the town of Zubelstadt?"
STORY = [
    f"The {word} walked along the river until evening came and the stars were out. "
    f"Then Anna asked Peter where the {word} had gone that day. "
    f"Later Anna and Peter met Maria and Rosa there. "
    f"In the morning Maria told Rosa that the {word} was back. After that Peter said nothing more about it. "
    f"Now Anna and Maria went home together, and Rosa was glad. At noon Peter saw the {word} once more. "
    f"So they all asked Anna about the {word} again. The evening was warm, and Maria laughed with the {word}."
    for word in ("king", "miller", "fox", "tailor", "giant", "hunter", "baker", "sailor", "witch", "princess")
]


def write(path: Path, items: Iterable[dict[str, object]]) -> None:
    with lzma.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(item) + "\n" for item in items)


def talk(kind: str, asked: str, answer: str) -> dict[str, object]:
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    return {"messages": turns, "source": "s", "kind": kind}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder whose held-out files yield items of every task."""
    write(tmp_path / PROSE, ({"text": text, "source": f"GITenberg/{i % 2}"} for i, text in enumerate(STORY)))
    write(
        tmp_path / CHAT,
        [
            talk("story_qa", f"Here is a story:\n\n{PASSAGE}\n\nPlease answer: Who ran away?", "The donkey."),
            talk("trivia", QUIZ, "The answer is A) Zub."),
            talk("trivia", "True or false: The town of Zubelstadt lies on an island.", "False."),
            talk("trivia", OPEN, "Otto Zubel."),
            talk("trivia", "Who are you?", "Too short to be an item."),
            talk("nq", "when was the town of zubelstadt first founded", "12 May 1312."),
        ],
    )
    return tmp_path


def small() -> Settings:
    return replace(tiny(), generated_stories=4, generated_tales=4, generated_talk=40)


def test_a_passage_under_another_question_is_left_out(data: Path) -> None:
    other = PASSAGE.split(". ", 1)[1]
    write(
        data / "chat-a.jsonl.xz",
        [
            talk("story_qa", f"{PASSAGE}\n\nHow many sons were there?", "Seven."),
            talk(
                "story_qa",
                f"{FRAME}\n\n{other}\n\nQuestion: Why?",
                "So.",
            ),
            talk("trivia", QUIZ.lower().replace("?", " ?!"), "It is A."),
            talk("trivia", QUIZ.split("\n")[0], "The Zub."),
            talk("trivia", QUIZ.replace("old", "new"), "Kept."),
            talk("story_qa", "Here is a story:\n\nA cat sat down.\n\nPlease answer: Who sat?", "Kept."),
        ],
    )
    kept = [messages[1]["content"] for _, messages in conversations(data)]
    assert kept == ["Kept.", "Kept."]
    assert left_out(data) == {"knowledge: document": 2, "story_qa: document": 2}


def test_another_edition_of_a_held_out_book_is_left_out(data: Path) -> None:
    pieces = [
        f"Chapter 4\n\n{STORY[2].upper()} And so on.",
        'He said: "' + PASSAGE + '"',
        "A text of its own.",
    ]
    write(data / "pretrain-a.jsonl.xz", [{"text": text, "source": "s", "tier": "simple"} for text in pieces])
    assert [text for _, text in plain_texts(data)] == pieces[2:]
    assert left_out(data) == {"pretrain-a: document": 2}


def test_without_held_out_files_nothing_is_left_out(tmp_path: Path) -> None:
    write(tmp_path / "pretrain-a.jsonl.xz", [{"text": PASSAGE, "source": "s", "tier": "simple"}])
    assert len(list(plain_texts(tmp_path))) == 1
    assert not HeldOut.of(tmp_path).shares(PASSAGE)


def test_a_damaged_held_out_file_is_named(data: Path) -> None:
    (data / CHAT).write_bytes((data / CHAT).read_bytes()[:-20])
    with pytest.raises(DataError, match=f"cannot read {data / CHAT}"):
        list(plain_texts(data))


@pytest.mark.parametrize(
    ("name", "item", "lacks"),
    [
        (CHAT, {}, "kind"),
        (CHAT, {"kind": "nq"}, "messages"),
        (CHAT, {"kind": "nq", "messages": []}, "messages"),
        (CHAT, {"kind": "nq", "messages": [{"role": "user"}]}, "role and content"),
        (PROSE, {"source": "s"}, "text"),
        (PROSE, {"source": "s", "text": 5}, "text"),
    ],
)
def test_a_held_out_item_that_lacks_something_is_told(
    data: Path, name: str, item: dict[str, object], lacks: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(data / name, [item])
    message = rf"{data / name} has an? (item|message) without {lacks}"
    for read in (plain_texts, conversations):
        with pytest.raises(DataError, match=message):
            list(read(data))
    with pytest.raises(DataError, match=message):
        digest(data)
    assert main(["--data", str(data), "--preset", "tiny", "--workers", "1"]) == 1
    assert re.search(message, capsys.readouterr().err)


def test_sentences_ignore_what_is_around_them() -> None:
    first, _, rest = PASSAGE.partition(". ")
    words = sentences(first + ".")[0]
    assert words in sentences(f'"{first}!" he said.\n{rest}') and words in sentences(first.upper() + "?")
    assert passage_and_question(f"{PASSAGE}\n\nMore.\n\nQuestion: Why?") == (f"{PASSAGE}\n\nMore.", "Why?")


# -- items ---------------------------------------------------------------------------------------------------


def test_items_of_every_task_are_built_alike_each_time(data: Path) -> None:
    choices, short = multiple_choice(data), short_answers(data)
    assert {name: len(items) for name, items in short.items()} == {
        "reading": 1,
        "quiz": 1,
        "search questions": 1,
    }
    assert (
        len(choices["quiz by text"]) == len(choices["quiz by letter"]) == len(choices["true or false"]) == 1
    )
    assert choices["quiz by text"][0].options[choices["quiz by text"][0].answer] == "Zub"
    assert choices["true or false"][0].options[choices["true or false"][0].answer] == "False."
    assert choices["missing name"] and choices["next sentence"]
    for items in choices.values():
        for item in items:
            assert len(set(item.options)) == len(item.options) and 0 <= item.answer < len(item.options)
    before = digest(data)
    assert before == digest(data) and multiple_choice(data) == choices
    write(data / PROSE, ({"text": text, "source": "GITenberg/1"} for text in STORY[1:]))
    assert digest(data) != before


def test_the_right_option_is_what_the_text_goes_on_with(data: Path) -> None:
    choices = multiple_choice(data)
    for name in ("next sentence", "missing name"):
        for item in choices[name]:
            whole = item.context + item.options[item.answer]
            assert any(whole in text for text in STORY)
            wrong = [option for at, option in enumerate(item.options) if at != item.answer]
            assert not any(item.context + option in text for option in wrong for text in STORY)


def test_variants_of_answers() -> None:
    assert variants("Otto Zubel (1290).") == ("Otto Zubel (1290)", "Otto Zubel")
    assert "Peking" in variants("Beijing, also known as Peking.") and "Zub" in variants("Rhine or Zub")


# -- prompts and leaks ---------------------------------------------------------------------------------------


def test_every_prompt_and_form_is_held_out() -> None:
    assert len(FIXED) == 40
    for question in made():
        assert is_held_out(question.text) and is_held_out(question.text.upper().replace("?", " !"))
        if len(normalised(question.text).split()) >= SUBSTRING_WORDS:
            assert is_held_out(f"Hello! {question.text} Thank you.")
    assert is_held_out("Could you add 4711 and 9 for me?")
    assert not is_held_out("What is 7 plus 5?") and not is_held_out("How do you spell house?")


def test_the_finder_finds_what_a_plain_search_finds() -> None:
    rng = Random(5)
    words = ["cat", "dog", "a", "the", "sat", "on", "mat", "elephant", "seven"]

    def text(least: int, most: int) -> str:
        return " ".join(rng.choices(words, k=rng.randint(least, most)))

    phrases = {text(1, 9) for _ in range(300)}
    finder = Finder.of(phrases)
    hits = 0
    for _ in range(400):
        turns = [text(0, 14) for _ in range(rng.randint(1, 5))]
        expected = {phrase for phrase in phrases if phrase in turns}
        for phrase in phrases:
            if len(phrase.split()) >= SUBSTRING_WORDS and len(phrase) > 20:
                expected |= {phrase for turn in turns if f" {phrase} " in f" {turn} "}
        found = finder.find(turns)
        assert expected <= found <= {p for p in phrases if any(f" {p} " in f" {turn} " for turn in turns)}
        hits += len(found)
    assert hits > 50


@pytest.mark.parametrize("where", ["plain", "user", "assistant"])
def test_a_planted_prompt_is_found_wherever_it_is(data: Path, where: str) -> None:
    planted = normalised(OPEN)
    said = f"He asked me - {OPEN.upper()} - and I knew."
    if where == "plain":
        # Words of the question, but no sentence of it: the documents' filter lets it through.
        write(data / "pretrain-a.jsonl.xz", [{"text": said, "source": "s", "tier": "simple"}])
    else:
        write(
            data / "chat-a.jsonl.xz",
            [talk("dolly", said if where == "user" else "What?", said if where == "assistant" else "Yes.")],
        )
    found, read = find(data, small())
    source = "a" if where == "plain" else "assistant"
    assert found == [f"{source}: {planted}"] and read > len(said)


@pytest.mark.parametrize("frame", ["“{}”", "‘{}’", "…{}—", "«{}»", "x\u00a0{}\u00a0x"])
def test_a_prompt_between_marks_outside_of_ascii_is_found(data: Path, frame: str) -> None:
    """Curly quotes in it and around it, dashes and wide blanks change nothing."""
    for turn in (turn for prompt in FIXED for turn in prompt.turns if "'" in turn or '"' in turn):
        asked = turn.replace("'", "’").replace(' "', " “").replace('"', "”")
        write(data / "pretrain-a.jsonl.xz", [{"text": frame.format(asked), "source": "s", "tier": "simple"}])
        found = find(data, replace(small(), generated_stories=0, generated_tales=0, generated_talk=0))[0]
        whole = len(normalised(turn).split()) >= SUBSTRING_WORDS or "x" not in frame
        assert found == ([f"a: {normalised(turn)}"] if whole else [])


def test_the_check_counts_all_prompts_and_two_workers_find_the_same(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = next(turn for prompt in FIXED for turn in prompt.turns if len(turn.split()) < SUBSTRING_WORDS)
    write(data / "pretrain-a.jsonl.xz", [{"text": short, "source": "s", "tier": "simple"}])
    result = check(data, tiny(), 1)
    assert result["found"] == [f"a: {normalised(short)}"]
    assert set(prompt_sets(data)) == set(result["prompts"])  # type: ignore[call-overload]
    assert held_out() < frozenset[str]().union(*prompt_sets(data).values())
    assert set(map(normalised, prompts(data))) <= frozenset[str]().union(*prompt_sets(data).values())
    report = data / "report.json"
    report.write_text('{"kept": 1}')
    flags = ["--data", str(data), "--preset", "tiny", "--workers", "2", "--report", str(report)]
    assert main(flags) == 1
    assert json.loads(report.read_text()) == {"kept": 1, "leaks": result}
    assert json.loads(capsys.readouterr().out) == result


@pytest.mark.parametrize("flags", [["--workers", "0"], ["--report", "nowhere.json"]])
def test_bad_flags_are_named(tmp_path: Path, flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--data", str(tmp_path), *flags])
    assert flags[0] in capsys.readouterr().err
    assert main(["--data", str(tmp_path / "nowhere")]) == 1
    assert "no data folder" in capsys.readouterr().err
