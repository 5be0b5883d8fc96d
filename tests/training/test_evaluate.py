"""What is measured of a model: one that knows the answers has all right, one that knows nothing guesses."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
import torch
import torch.nn.functional as F

from engine.model import GPT
from tests.training.teaching import Row, shipped, small_config, small_tokenizer, taught
from tests.training.test_held_out import OPEN, QUIZ, STORY, talk, write
from training import card
from training.evaluate.__main__ import main
from training.evaluate.answering import Answer, Answerer, Sampling
from training.evaluate.documents import CHAT, PROSE
from training.evaluate.items import Choice
from training.evaluate.loss import bits_per_byte, choose, marked_losses, served_loss, windows
from training.evaluate.questions import Question
from training.evaluate.report import asked_sets, fluency, summary
from training.template import render
from training.tokenizer import Encoder

SUM = Question("What do 12 bags of 34 nuts make?", "number", "408")
CITY = Question("Where does the king of Japan live?", "capital", "Tokyo")
SPELL = Question("Which letters has cat?", "spelled", "cat")
BLOCK = "<|python_start|>12*34<|python_end|><|output_start|>408<|output_end|>"
CHOICES = [
    Choice(f"Who owns house number {at}?", ("Anna.", "Peter.", "Rosa.", "The old man."), at % 4, True, True)
    for at in range(8)
]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def encoder_at(tmp_path_factory: pytest.TempPathFactory) -> tuple[Encoder, Path]:
    folder = tmp_path_factory.mktemp("tokenizer")
    return small_tokenizer(folder), folder


def conversation(encoder: Encoder, asked: str, answer: str) -> Row:
    return render([{"role": "user", "content": asked}, {"role": "assistant", "content": answer}], encoder)


def with_tool(encoder: Encoder, asked: str) -> Row:
    """An answer that hands 12*34 to the calculator and repeats what it wrote; the output is not learned."""
    before, _ = conversation(encoder, asked, "")
    ids = before[:-1]
    parts = [
        (
            [
                encoder.special("<|python_start|>"),
                *encoder.encode("12*34"),
                encoder.special("<|python_end|>"),
            ],
            1,
        ),
        ([encoder.special("<|output_start|>"), *encoder.encode("408"), encoder.special("<|output_end|>")], 0),
        ([*encoder.encode("That is 408."), encoder.special("<|assistant_end|>")], 1),
    ]
    mask = [0] * len(ids)
    for tokens, learn in parts:
        ids, mask = ids + tokens, mask + [learn] * len(tokens)
    return ids, mask


@pytest.fixture(scope="module")
def knowing(encoder_at: tuple[Encoder, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Answerer]:
    """A shipped model that knows the answers above by heart, loaded by the server's engine."""
    encoder, tokenizer = encoder_at
    rows = [
        with_tool(encoder, SUM.text),
        conversation(encoder, CITY.text, "The king lives in Tokyo."),
        conversation(encoder, SPELL.text, "c-a-t"),
        *(conversation(encoder, item.context, item.options[item.answer]) for item in CHOICES),
    ]
    model = taught(rows, generation="G5")  # which has everything that the others have
    out = shipped(model, tokenizer, tmp_path_factory.mktemp("shipped"))
    with Answerer(out) as answerer:
        yield answerer


@pytest.fixture(scope="module")
def ignorant() -> GPT:
    model = GPT(small_config())
    model.randomize(3)
    return model.requires_grad_(False).eval()


def test_the_calculator_answers_as_on_the_server(knowing: Answerer) -> None:
    found = asked_sets(knowing, {"sums": [SUM], "others": [CITY, SPELL]})
    assert found["sums"] == {"right": 1, "of": 1, "used_tool": 1, "wrong": []}
    assert found["others"] == {"right": 2, "of": 2, "used_tool": 0, "wrong": []}
    (answer,) = knowing.answers([[{"role": "user", "content": SUM.text}]], 60)
    assert answer == Answer(f"{BLOCK}That is 408.", ended=True)


def test_another_expected_answer_is_a_wrong_one(knowing: Answerer) -> None:
    wrong = Question(SUM.text, "number", "409")
    found = asked_sets(knowing, {"sums": [SUM, wrong, SUM]})["sums"]
    assert found["right"] == 2 and found["wrong"] == [[SUM.text, f"{BLOCK}That is 408."]]


def test_an_answer_that_is_cut_short_has_not_ended(knowing: Answerer) -> None:
    (whole,) = knowing.answers([[{"role": "user", "content": CITY.text}]], 60)
    (cut,) = knowing.answers([[{"role": "user", "content": CITY.text}]], 3)
    assert whole.ended and not cut.ended and whole.text.startswith(cut.text)
    too_long = "What? " * 500
    assert knowing.answers([[{"role": "user", "content": too_long}]], 3) == [Answer("", ended=False)]


def test_company_and_seeds(knowing: Answerer) -> None:
    talks = [[{"role": "user", "content": question.text}] for question in (SUM, CITY, SPELL)]
    together = knowing.answers(talks, 40)
    assert together == [knowing.answers([one], 40)[0] for one in talks]
    hot = [knowing.answers(talks, 40, Sampling(temperature=3.0, seed=seed)) for seed in (1, 1, 2)]
    assert hot[0] == hot[1] != hot[2]


def test_a_model_that_knows_chooses_right_and_another_by_chance(knowing: Answerer, ignorant: GPT) -> None:
    chosen = choose(knowing.model, knowing.encoder, {"known": CHOICES})
    assert chosen == {"known": [item.answer for item in CHOICES]}
    rng = Random(0)

    def word() -> str:
        return "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=8))

    unknown = [
        Choice(word(), tuple(word() for _ in range(4)), rng.randrange(4), at % 2 == 0, at % 3 == 0)
        for at in range(200)
    ]
    guessed = choose(ignorant, knowing.encoder, {"unknown": unknown})["unknown"]
    assert 0.15 < sum(at == item.answer for at, item in zip(guessed, unknown, strict=True)) / 200 < 0.35


def test_the_order_of_options_changes_nothing(knowing: Answerer, ignorant: GPT) -> None:
    for item in CHOICES:
        turned = Choice(item.context, item.options[::-1], 3 - item.answer, item.asked, item.per_byte)
        first, second = choose(ignorant, knowing.encoder, {"a": [item, turned]})["a"]
        assert first == 3 - second


def test_losses_add_up_and_do_not_depend_on_company(knowing: Answerer, ignorant: GPT) -> None:
    encoder = knowing.encoder
    rows = [conversation(encoder, item.context, " ".join(item.options)) for item in CHOICES]
    together = marked_losses(ignorant, rows)
    for row, loss in zip(rows, together, strict=True):
        assert marked_losses(ignorant, [row])[0] == pytest.approx(loss, rel=1e-4)
        parts = [
            marked_losses(
                ignorant, [(row[0], [int(at == place and mark) for place, mark in enumerate(row[1])])]
            )[0]
            for at, mark in enumerate(row[1])
            if mark
        ]
        assert sum(parts) == pytest.approx(loss, rel=1e-4)


@pytest.mark.parametrize("context", [1, 2, 3, 8, 9])
def test_windows_count_every_token_once_and_let_it_see_half_a_context(context: int) -> None:
    for length in range(5 * context + 3):
        counted: list[int] = []
        for start, end, first in windows(length, context):
            assert 0 <= start < first < end <= length and end - start <= context + 1
            for token in range(first, end):
                seen = token - start
                assert seen == token if start == 0 else seen >= max(1, context // 2)
                counted.append(token)
        assert counted == list(range(1, length))


@pytest.fixture(scope="module")
def short() -> GPT:
    """Of a context of 32 tokens, but with every path alive."""
    model = GPT(small_config("G5", context=32))
    model.randomize(5)
    return model.requires_grad_(False).eval()


def random_row(rng: Random, length: int) -> Row:
    ids = [rng.randrange(small_config().vocab_size) for _ in range(length)]
    return ids, [int(rng.random() < 0.5) for _ in range(length)]


def direct(model: GPT, row: Row) -> list[float]:
    """The loss of each token but the first by one plain forward pass, 0 where it is not marked."""
    ids = torch.tensor([row[0]])
    losses = F.cross_entropy(model(ids[:, :-1])[0], ids[0, 1:], reduction="none")
    return (losses * torch.tensor(row[1][1:])).tolist()


def test_within_the_context_a_rows_loss_is_that_of_the_forward_pass(short: GPT) -> None:
    rng = Random(1)
    rows = [random_row(rng, length) for length in (2, 3, 17, 31, 32, 33)]
    found = marked_losses(short, rows)
    assert found == pytest.approx([sum(direct(short, row)) for row in rows], rel=1e-4)


@pytest.mark.parametrize("length", [34, 48, 49, 50, 51, 100, 333])
def test_a_long_row_is_scored_whole(short: GPT, length: int) -> None:
    """By the windows as they are described; its beginning is scored as without the rest."""
    ids, marks = random_row(Random(length), length)
    expected = sum(
        sum(direct(short, (ids[start:end], marks[start:end]))[first - start - 1 :])
        for start, end, first in windows(length, 32)
    )
    (found,) = marked_losses(short, [(ids, marks)])
    assert found == pytest.approx(expected, rel=1e-4)
    front = [int(at < 33 and mark) for at, mark in enumerate(marks)]
    back = [int(at >= 33 and mark) for at, mark in enumerate(marks)]
    first, second = marked_losses(short, [(ids, front), (ids, back)])
    assert first == pytest.approx(marked_losses(short, [(ids[:33], marks[:33])])[0], rel=1e-4)
    assert first + second == pytest.approx(found, rel=1e-4) and second > 0


def test_rows_without_a_marked_token_have_no_loss(short: GPT) -> None:
    assert marked_losses(short, [([7], [1]), ([], []), ([1] * 99, [0] * 99), ([1, 2], [1, 0])]) == [0.0] * 4


def test_the_options_of_a_long_context_are_scored(knowing: Answerer, ignorant: GPT) -> None:
    """They lie beyond the first window, where they once had no part in the choice."""
    rng = Random(2)
    context = "".join(rng.choices("abcdefghijkl ", k=3 * small_config().sequence_len))
    options = ("x", "xyz" * 9, "xyz" * 19)
    items = [Choice(context, options, 0, False, False), Choice(context, options[::-1], 2, False, False)]
    assert choose(ignorant, knowing.encoder, {"long": items}) == {"long": [0, 2]}  # the shortest is likeliest


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write(tmp_path / PROSE, ({"text": text, "source": f"GITenberg/{i % 2}"} for i, text in enumerate(STORY)))
    write(
        tmp_path / CHAT,
        [talk("trivia", QUIZ, "The answer is A) Zub."), talk("trivia", OPEN, "Otto Zubel.")] * 2,
    )
    return tmp_path


def test_bits_per_byte_of_a_model_that_knows_nothing(data: Path, encoder_at: tuple[Encoder, Path]) -> None:
    """A model of equal probabilities has log2(vocabulary) bits a token, whatever the text."""
    encoder, _ = encoder_at
    model = GPT(small_config())
    model.init_weights()  # the head begins at zero
    found = bits_per_byte(model, encoder, data)
    tokens = sum(len(encoder.encode(text)) for text in STORY)
    size = sum(len(text.encode()) for text in STORY)
    expected = tokens * math.log2(model.config.vocab_size) / size
    assert found["prose"] == found["prose/children"] == pytest.approx(expected, abs=1e-3)
    assert set(bits_per_byte(model, encoder, data, every=3)) == set(found)
    said = ["The answer is A) Zub.", "Otto Zubel."]  # as in the fixture; the token that ends them is none
    expected = sum(len(encoder.encode(text)) for text in said) * math.log2(model.config.vocab_size)
    assert found["chat"] == pytest.approx(expected / sum(map(len, said)), abs=1e-3)


def test_bits_per_byte_of_long_items_count_all_their_tokens(
    tmp_path: Path, encoder_at: tuple[Encoder, Path]
) -> None:
    """As many bits a byte as of the same text in a model that sees it at once."""
    encoder, _ = encoder_at
    text = "A cat sat on the mat, and 12 dogs came by. " * 40
    write(tmp_path / PROSE, [{"text": text, "source": "wiki"}])
    write(tmp_path / CHAT, [talk("trivia", "Who?", text.strip()), talk("trivia", "And who?", text.strip())])
    expected = len(encoder.encode(text)) * math.log2(small_config().vocab_size) / len(text)
    for context in (16, 2048):
        model = GPT(small_config(context=context))
        model.init_weights()  # the head begins at zero: every token costs the same
        found = bits_per_byte(model, encoder, tmp_path)
        assert found["prose"] == pytest.approx(expected, abs=1e-3)
        assert found["chat"] == pytest.approx(expected, rel=2e-3)


def test_the_engine_has_the_loss_of_the_forward_pass(knowing: Answerer, data: Path) -> None:
    """Up to 0.001 nats, as the engine rounds otherwise than the forward pass."""
    found = served_loss(knowing, knowing.model, data)
    assert found["tokens"] > 0 and found["engine"] == pytest.approx(found["reference"], abs=1e-3)


def test_fluency_counts_ends_and_loops() -> None:
    fine, looping = Answer("One two three four five.", True), Answer("so it goes on " * 20, False)
    assert fluency([fine, fine]) == {"answers": 2, "ended": 1.0, "repeated_4grams": 0.0}
    both = fluency([fine, looping])
    assert both["ended"] == 0.5 and both["repeated_4grams"] > 0.4  # type: ignore[operator]


# -- the command ---------------------------------------------------------------------------------------------


def test_the_command_measures_a_folder_and_writes_its_card(
    data: Path, encoder_at: tuple[Encoder, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a model that ends every turn at once, so that it takes a moment only."""
    encoder, tokenizer = encoder_at
    rows = [
        conversation(encoder, text, "") for text in (SUM.text, CITY.text, "Hi", "Who are you?", OPEN, "a b c")
    ]
    out = shipped(taught(rows, 60), tokenizer, tmp_path / "out")
    (out / "report.json").write_text(json.dumps({"sources": {"wiki": 5_000_000}, "fixed_passed": "9/9"}))
    assert main(["--model", str(out), "--data", str(data), "--device", "cpu"]) == 0
    report = json.loads((out / "report.json").read_text())
    lines = capsys.readouterr().out.splitlines()
    assert lines[:-1] == summary(report) and "measured in" in lines[-1]
    right = report["required"]["sums up to 20"]["right"]
    assert f"required, sums up to 20: {right}/190" in lines and "choices, quiz by letter" in "".join(lines)
    assert f"bits per byte, prose: {report['bits_per_byte']['prose']:.4f}" in lines
    assert report["sources"] == {"wiki": 5_000_000} and report["fixed_passed"] != "9/9"
    assert report["required"]["sums up to 20"]["of"] == 190
    assert report["choices"]["quiz by letter"]["of"] == 2 and report["short_answers"]["quiz"]["of"] == 2
    written = (out / "README.md").read_text()
    first = json.loads(card.FIRST_MODEL.read_text())
    assert f"| sums up to 20 | 190/190 | {report['required']['sums up to 20']['right']}/190 |" in written
    assert f"| bits per byte, prose | {first['bits_per_byte']['prose']:.4f} |" in written
    assert "| its own name | 0/6 | **fail** |" in written


@pytest.mark.parametrize("flags", [["--every", "-1"], ["--data", "nowhere"]])
def test_bad_flags_are_named(tmp_path: Path, flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--model", str(tmp_path), "--data", str(tmp_path), *flags])
    assert flags[0] in capsys.readouterr().err


def test_a_folder_without_a_model_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", str(tmp_path), "--data", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("error: ")
