"""`python -m training.evaluate` on a GPU: a shipped int8 folder measures there as on a CPU."""

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from engine.loader import load_model
from engine.model import GPT
from tests.training.teaching import Row, shipped, small_config, small_tokenizer, taught
from tests.training.test_held_out import STORY, talk, write
from training.evaluate.answering import Answerer
from training.evaluate.documents import CHAT, PROSE
from training.evaluate.loss import bits_per_byte, marked_losses
from training.evaluate.report import measure
from training.template import render


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shipped model of the latest generation, whose scalars are float32 in whatever dtype."""
    tokenizer = tmp_path_factory.mktemp("tokenizer")
    encoder = small_tokenizer(tokenizer)
    turns = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "I am Fastpath."}]
    model = taught([render(turns, encoder)], generation="G5")
    return shipped(model, tokenizer, tmp_path_factory.mktemp("shipped"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Held-out files with items that are longer than the context."""
    where = tmp_path_factory.mktemp("data")
    write(where / PROSE, ({"text": text * 3, "source": "wiki"} for text in STORY))
    write(
        where / CHAT, [talk("trivia", "Who went home?", "Anna and Maria did."), talk("nq", "Who?", "Rosa.")]
    )
    return where


@pytest.fixture(scope="module", params=["float32", "bfloat16", "auto"])
def answerer(request: pytest.FixtureRequest, folder: Path) -> Iterator[Answerer]:
    with Answerer(folder, "cuda", request.param) as one:
        yield one


def test_bits_per_byte_are_those_of_the_cpu(answerer: Answerer, folder: Path, data: Path) -> None:
    reference, _, _ = load_model(folder, device="cpu", dtype="float32")
    assert isinstance(reference, GPT)
    expected = bits_per_byte(reference, answerer.encoder, data)
    found = bits_per_byte(answerer.model, answerer.encoder, data, autocast=False)
    assert found == pytest.approx(expected, rel=0.02)


def test_losses_of_fp32_weights_under_autocast(folder: Path) -> None:
    """As training measures before it rounds."""
    rng = Random(4)
    rows: list[Row] = [
        ([rng.randrange(small_config().vocab_size) for _ in range(length)], [1] * length)
        for length in (5, 64, 700, 1500)
    ]
    found: list[list[float]] = []
    for device in ("cpu", "cuda"):
        model, _, _ = load_model(folder, device=device, dtype="float32")
        assert isinstance(model, GPT)
        found.append(marked_losses(model, rows))
    assert found[0] == pytest.approx(found[1], rel=0.02)


def test_everything_is_measured(folder: Path, data: Path) -> None:
    report = measure(folder, data, "cuda")
    served = report["served_loss"]
    assert isinstance(served, dict) and set(served) == {"cuda", "cpu"}
    for figures in served.values():
        assert figures["engine"] == pytest.approx(figures["reference"], rel=0.02)
    assert report["measured_on"] == "cuda"
