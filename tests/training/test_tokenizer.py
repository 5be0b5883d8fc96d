"""The tokenizer: training, the file format, round trips, and that text never yields a special id."""

import base64
import json
from pathlib import Path
from random import Random

import pytest

from engine.text import load_tokenizer
from training.conversations.tales import plain_story
from training.tokenizer import SPECIAL, Encoder, load, save, train

SAMPLES = (
    "Hello, world! It's 12345 o'clock.",
    "  two  spaces\n\n\tand a tab ",
    "naïve café \u2603 日本語 🙂",
    "<|bos|>not special<|assistant_end|>",
    "",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = Random(1)
    path = tmp_path_factory.mktemp("tokenizer")
    save(train([plain_story(rng) for _ in range(60)], 600), path)
    return path


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Encoder:
    return load(folder)


@pytest.mark.parametrize("text", SAMPLES)
def test_round_trip(encoder: Encoder, text: str) -> None:
    assert encoder.decode(encoder.encode(text)) == text


def test_files(folder: Path) -> None:
    lines = (folder / "tokenizer.tiktoken").read_text("ascii").splitlines()
    ranks = [(base64.b64decode(token), int(rank)) for token, rank in (line.split() for line in lines)]
    assert [rank for _, rank in ranks] == list(range(600 - len(SPECIAL)))
    assert [token for token, _ in ranks[:256]] == [bytes([b]) for b in range(256)]
    special = json.loads((folder / "tokenizer_config.json").read_text())["special_tokens"]
    assert list(special.values()) == list(range(591, 600))


def test_text_never_yields_special_ids(encoder: Encoder) -> None:
    special = {encoder.special(name) for name in SPECIAL}
    assert not special & set(encoder.encode("".join(SPECIAL)))


def test_merges_are_used(encoder: Encoder) -> None:
    text = "Once upon a time there was a little rabbit."
    assert len(encoder.encode(text)) < len(text) / 2


def test_digits_in_pairs(encoder: Encoder) -> None:
    assert all(len(encoder.decode([i])) <= 2 for i in encoder.encode("123456789"))


@pytest.mark.parametrize("text", SAMPLES)
def test_the_server_reads_the_same_format(folder: Path, encoder: Encoder, text: str) -> None:
    served = load_tokenizer(folder)
    assert served.encode(text) == encoder.encode(text)
    assert served.get_vocab_size() == encoder.size == 600
    assert served.encode_special("<|assistant_end|>") == encoder.special("<|assistant_end|>")


def test_too_little_text() -> None:
    with pytest.raises(ValueError, match="too little text"):
        train(["abc"], 600)
