"""Incremental decoding equals decoding at once, for any tokens in any pieces."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.text import NANOCHAT_SPECIALS, BytePairTokenizer, IncrementalDecoder, Tokenizer, load_tokenizer
from tests.engine.blocks import outside_blocks
from tests.engine.golden import G1

NANOCHAT_IDS = {spelling: 503 + k for k, spelling in enumerate(NANOCHAT_SPECIALS)}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(G1)


# Bytes of real characters, broken ones, merged tokens, special tokens, and ids beyond the vocabulary.
PIECES = st.one_of(
    st.text(max_size=4).map(lambda text: list(text.encode())),
    st.lists(st.integers(0x80, 0xFF), max_size=4),
    st.lists(st.integers(0, 502), max_size=4),
    st.sampled_from([[503], [507], [600], list("\ufffd".encode()), list("\ufeff".encode())]),
)


@given(st.lists(PIECES, max_size=12))
def test_pieces_join_to_the_whole(tokenizer: Tokenizer, pieces: list[list[int]]) -> None:
    ids = [id for piece in pieces for id in piece]
    shown = IncrementalDecoder(tokenizer, skip_special=False)
    hidden = IncrementalDecoder(tokenizer)
    assert "".join(map(shown.push, pieces)) + shown.flush() == tokenizer.decode(ids)
    ordinary = [id for id in ids if not tokenizer.is_special(id)]
    assert "".join(map(hidden.push, pieces)) + hidden.flush() == tokenizer.decode(ordinary)


@given(st.lists(PIECES, max_size=12))
def test_one_by_one_never_waits_longer_than_needed(tokenizer: Tokenizer, pieces: list[list[int]]) -> None:
    """After each token, everything is out except a tail that could still become a character."""
    decoder = IncrementalDecoder(tokenizer)
    raw, text = b"", ""
    for id in (id for piece in pieces for id in piece if not tokenizer.is_special(id)):
        text += decoder.push([id])
        raw += tokenizer.token_bytes(id)
        held = next(n for n in range(4) if raw[: len(raw) - n].decode("utf-8", "replace") == text)
        tail = raw[len(raw) - held :]
        assert not held or _unfinished(tail)


def _unfinished(tail: bytes) -> bool:
    try:
        tail.decode()
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data" and error.start == 0
    return False


def test_a_real_replacement_character_passes(tokenizer: Tokenizer) -> None:
    decoder = IncrementalDecoder(tokenizer)
    assert decoder.push(list("a\ufffdb".encode())) == "a\ufffdb"
    assert decoder.flush() == ""


def test_a_dangling_partial_only_at_flush(tokenizer: Tokenizer) -> None:
    decoder = IncrementalDecoder(tokenizer)
    assert decoder.push([0x41, 0xF0, 0x9F]) == "A"
    assert decoder.push([0x98]) == ""
    assert decoder.flush() == "\ufffd"
    assert decoder.push([0x42]) == "B"


def test_special_and_hidden_tokens(tokenizer: Tokenizer) -> None:
    ids = [*tokenizer.encode("a"), 508, *tokenizer.encode("1"), 509, 507]
    assert IncrementalDecoder(tokenizer).push(ids) == "a"
    everything = IncrementalDecoder(tokenizer, skip_special=False)
    assert everything.push(ids) == "a<|python_start|>1<|python_end|><|assistant_end|>"
    tools_only = IncrementalDecoder(tokenizer, skip_special=False, hidden=[503, 507])
    assert tools_only.push(ids) == "a<|python_start|>1<|python_end|>"


MARKS = st.sampled_from(["<|python_start|>", "<|python_end|>", "<|output_start|>", "<|output_end|>"])
TOOL_PIECES = st.one_of(
    PIECES,
    MARKS.map(lambda mark: [NANOCHAT_IDS[mark]]),
    st.just([508, 0x31, 0x2B, 0x31, 509, 510, 0x32, 511]),
)


@given(st.lists(TOOL_PIECES, max_size=16), st.lists(st.integers(0, 80), max_size=8))
def test_a_block_has_no_text_however_the_tokens_arrive(
    tokenizer: Tokenizer, pieces: list[list[int]], cuts: list[int]
) -> None:
    ids = [id for piece in pieces for id in piece]
    text = tokenizer.decode(outside_blocks(tokenizer, ids))
    bounds = [0, *sorted(min(cut, len(ids)) for cut in cuts), len(ids)]
    for parts in ([ids], [[id] for id in ids], [ids[a:b] for a, b in pairwise(bounds)]):
        decoder = IncrementalDecoder(tokenizer)
        assert "".join(map(decoder.push, parts)) + decoder.flush() == text
    shown = IncrementalDecoder(tokenizer, skip_special=False)
    assert shown.push(ids) + shown.flush() == tokenizer.decode(ids)


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ("a(1+1)[2]b", "ab"),
        ("(1+1)[2](2+2)[4]b", "b"),
        ("a(1+", "a"),
        ("a(1+1)[2", "a"),
        ("a(1+1)b", "ab"),  # the calculator had no answer
        ("a(1(2)b", "ab"),
        ("a(1[2]b", "ab"),
        ("a)b]c", "abc"),
        ("a(1$b", "ab"),  # the turn ends in the block
    ],
)
def test_blocks(tokenizer: Tokenizer, said: str, text: str) -> None:
    ids = [
        {"(": 508, ")": 509, "[": 510, "]": 511, "$": 507}.get(character, ord(character))
        for character in said
    ]
    decoder = IncrementalDecoder(tokenizer)
    assert decoder.push(ids) + decoder.flush() == text


@pytest.mark.parametrize("without", ["<|python_start|>", "<|output_end|>"])
def test_other_tokenizers_have_no_blocks(without: str) -> None:
    """One mark of the four is not enough for text to be left out."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    specials = {mark: id for mark, id in NANOCHAT_IDS.items() if mark != without}
    tokenizer = BytePairTokenizer(ranks, specials)
    assert tokenizer.block_starts == frozenset()
    marks = [id for id in (508, 509, 510, 511) if id in tokenizer.special_ids]
    assert IncrementalDecoder(tokenizer).push([id for mark in marks for id in (mark, 0x61)]) == "aaa"
