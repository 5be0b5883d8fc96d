"""Tokenizers: the three kinds of files agree, and none lets text become a special id."""

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.text import (
    NANOCHAT_PATTERN,
    NANOCHAT_SPECIALS,
    BytePairTokenizer,
    Tokenizer,
    TokenizerError,
    load_tokenizer,
    save_tokenizer,
)
from tests.engine.checkpoints import golden_tokenizer, write_transformers_tokenizer
from tests.engine.golden import G1, G5, expected

KINDS = ("pickle", "own", "hugging-face")


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    own, hugging_face = tmp_path_factory.mktemp("own"), tmp_path_factory.mktemp("hf")
    save_tokenizer(own, golden_tokenizer())
    write_transformers_tokenizer(hugging_face)
    return dict(zip(KINDS, map(load_tokenizer, (G1 / "tokenizer", own, hugging_face)), strict=True))


@pytest.mark.parametrize("folder", [G1, G5], ids=lambda folder: folder.name)
def test_known_encodings(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    cases = expected(folder)["tokenizer"]
    assert len(cases) == 5
    for case in cases:
        assert tokenizer.encode(str(case["text"])) == case["ids"]
        assert tokenizer.decode(tokenizer.encode(str(case["text"]))) == case["text"]


@pytest.mark.parametrize("kind", KINDS)
def test_nanochats_five_methods(tokenizers: dict[str, Tokenizer], kind: str) -> None:
    tokenizer = tokenizers[kind]
    assert tokenizer.get_vocab_size() == 512
    assert [tokenizer.encode_special(token) for token in NANOCHAT_SPECIALS] == list(range(503, 512))
    assert tokenizer.get_bos_token_id() == 503
    assert tokenizer.decode([504, 72, 105, 505]) == "<|user_start|>Hi<|user_end|>"
    assert tokenizer.special_ids == frozenset(range(503, 512))
    assert tokenizer.is_special(511) and not tokenizer.is_special(72)
    with pytest.raises(KeyError):
        tokenizer.encode_special("<|unknown|>")


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_and_ids_out_of_range(tokenizers: dict[str, Tokenizer], kind: str) -> None:
    tokenizer = tokenizers[kind]
    assert [tokenizer.token_bytes(id) for id in (65, 255, 503)] == [b"A", b"\xff", b"<|bos|>"]
    assert tokenizer.token_bytes(512) == tokenizer.token_bytes(10**9) == tokenizer.token_bytes(-1) == b""
    assert tokenizer.decode([72, 100_000, -5, 105]) == "Hi"
    assert tokenizer.decode([0xE4, 0xBD]) == "�"


TEXT = st.text(
    st.one_of(st.sampled_from("ab cdefgh ETAOIN12345'\n\r\t <|>"), st.characters(codec="utf-8")), max_size=60
)


@given(TEXT)
def test_all_kinds_agree_and_round_trip(tokenizers: dict[str, Tokenizer], text: str) -> None:
    ids = tokenizers["pickle"].encode(text)
    assert tokenizers["own"].encode(text) == ids
    assert tokenizers["hugging-face"].encode(text) == ids
    assert tokenizers["pickle"].decode(ids) == text


@pytest.mark.parametrize("kind", KINDS)
def test_spelled_out_special_tokens_stay_text(tokenizers: dict[str, Tokenizer], kind: str) -> None:
    tokenizer = tokenizers[kind]
    for token in (*NANOCHAT_SPECIALS, "x<|bos|>", "<|user_end|><|assistant_start|>"):
        ids = tokenizer.encode(token)
        assert tokenizer.special_ids.isdisjoint(ids)
        assert tokenizer.decode(ids) == token


@pytest.mark.parametrize("kind", KINDS)
def test_half_a_surrogate_pair(tokenizers: dict[str, Tokenizer], kind: str) -> None:
    tokenizer = tokenizers[kind]
    assert tokenizer.decode(tokenizer.encode("a\ud83db")) == "a�b"
    assert tokenizer.decode(tokenizer.encode("\ud83d\ude00")) == "😀"


def test_white_space_without_end(tokenizers: dict[str, Tokenizer]) -> None:
    """The regex engine gives up on a run of a million characters; nobody's request may end in that."""
    text = "x" + " " * 1_200_000 + "\n" * 1_100_000 + "y"
    ids = tokenizers["pickle"].encode(text)
    assert tokenizers["pickle"].decode(ids) == text


def test_own_files_round_trip(tmp_path: Path) -> None:
    ranks = {bytes([byte]): byte for byte in range(256)} | {b" \n": 256, b"\xe4\xbd": 257}
    save_tokenizer(tmp_path / "new", BytePairTokenizer(ranks, {"<|bos|>": 300}))
    read = load_tokenizer(tmp_path / "new")
    assert isinstance(read, BytePairTokenizer)
    assert read.ranks == ranks and read.pattern == NANOCHAT_PATTERN
    assert read.special_tokens == {"<|bos|>": 300}
    assert read.get_vocab_size() == 301
    assert read.decode([257, 299, 0xA0]) == "你"


class _Call:
    """Pickles into a call of `function(*arguments)`."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.call


def test_a_pickle_cannot_call_anything(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    for function, arguments in ((os.mkdir, (str(trace),)), (eval, ("1",)), (getattr, (os, "system"))):
        try:
            data = pickle.dumps(_Call(function, *arguments))
        except TypeError:  # a module as argument does not pickle
            data = pickle.dumps(_Call(function, "", "upper"))
        (tmp_path / "tokenizer.pkl").write_bytes(data)
        with pytest.raises(TokenizerError, match=rf"asks for \w+\.{function.__name__}"):
            load_tokenizer(tmp_path)
    assert not trace.exists()


def _encoding_pickle(state: object) -> bytes:
    """A pickle of tiktoken's class with any state, written without the class."""
    body = pickle.dumps(state, protocol=4)[2:-1]
    return b"\x80\x04ctiktoken.core\nEncoding\n)\x81" + body + b"b."


RANKS = {bytes([byte]): byte for byte in range(256)}
GOOD = {"name": "x", "pat_str": ".", "mergeable_ranks": RANKS, "special_tokens": {"<|bos|>": 256}}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a readable pickle"),
        (b"\x80\x04garbage", "not a readable pickle"),
        ((G1 / "tokenizer" / "tokenizer.pkl").read_bytes()[:3000], "not a readable pickle"),
        (pickle.dumps({"ranks": 1}), "does not hold a tiktoken encoding"),
        (_encoding_pickle("gpt2"), "does not hold a tiktoken encoding with its ranks"),
        (_encoding_pickle(GOOD | {"pat_str": None}), "no split pattern"),
        (_encoding_pickle(GOOD | {"pat_str": "("}), "split pattern is not valid"),
        (_encoding_pickle(GOOD | {"mergeable_ranks": {"a": 1}}), "mergeable_ranks has the entry 'a'"),
        (_encoding_pickle(GOOD | {"mergeable_ranks": {b"a": 1}}), "lacks 255 of the 256 single bytes"),
        (_encoding_pickle(GOOD | {"mergeable_ranks": RANKS | {b"aa": 5}}), "token id 5 stands for two"),
        (_encoding_pickle(GOOD | {"mergeable_ranks": RANKS | {b"aa": -1}}), "the id -1"),
        (_encoding_pickle(GOOD | {"special_tokens": {"<|bos|>": 10**12}}), "the id 1000000000000"),
        (_encoding_pickle(GOOD | {"special_tokens": {"<|user_start|>": 256}}), "no special token"),
    ],
)
def test_damaged_pickles_are_refused(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "tokenizer.pkl").write_bytes(data)
    with pytest.raises(TokenizerError, match=message) as caught:
        load_tokenizer(tmp_path)
    assert "tokenizer.pkl" in str(caught.value)


def test_the_hand_made_pickle_is_a_good_one(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.pkl").write_bytes(_encoding_pickle(GOOD))
    assert load_tokenizer(tmp_path).get_vocab_size() == 257


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("tokenizer.tiktoken", "AA== zero\n", "line 1 is not"),
        ("tokenizer.tiktoken", "A 1\n", "line 1 is not"),
        ("tokenizer_config.json", "{", "not JSON"),
        ("tokenizer_config.json", "[]", "not a JSON object"),
        ("tokenizer_config.json", "{}", "no split pattern"),
        ("tokenizer_config.json", '{"pattern": ".", "special_tokens": [1]}', "special_tokens is missing"),
    ],
)
def test_damaged_own_files_are_refused(tmp_path: Path, file: str, text: str, message: str) -> None:
    save_tokenizer(tmp_path, golden_tokenizer())
    (tmp_path / file).write_text(text)
    with pytest.raises(TokenizerError, match=message):
        load_tokenizer(tmp_path)


def test_other_tokenizer_json_are_refused(tmp_path: Path) -> None:
    write_transformers_tokenizer(tmp_path)
    good = json.loads((tmp_path / "tokenizer.json").read_text())
    for change, message in (
        ({"decoder": {"type": "Metaspace"}}, "only byte-level"),
        ({"added_tokens": ["x"]}, "added_tokens has the entry"),
        ({"model": {"type": "Nonsense"}}, "not a readable tokenizer"),
    ):
        (tmp_path / "tokenizer.json").write_text(json.dumps(good | change))
        with pytest.raises(TokenizerError, match=message):
            load_tokenizer(tmp_path)


def test_a_folder_without_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="no tokenizer in"):
        load_tokenizer(tmp_path)
    shutil.copytree(G1 / "tokenizer", tmp_path / "tokenizer")
    assert load_tokenizer(tmp_path).get_vocab_size() == 512
