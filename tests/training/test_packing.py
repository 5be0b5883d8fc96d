"""Template, loss mask and packing: which token is learned, and that a run can begin at any step."""

from pathlib import Path
from random import Random

import numpy as np
import pytest

from training.conversations.exchange import Message
from training.conversations.tales import plain_story
from training.data import Source, prepare
from training.packing import Aligned, Stream, check_steps, order
from training.settings import Phase, tiny
from training.shards import DataError, read_shard
from training.template import prompt, render
from training.tokenizer import Encoder, load, save, train

TALK: list[Message] = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "Goodbye."},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = Random(1)
    path = tmp_path_factory.mktemp("tokenizer")
    save(train([plain_story(rng) for _ in range(60)], 512), path)
    return path


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Encoder:
    return load(folder)


def test_template(encoder: Encoder) -> None:
    ids, mask = render(TALK, encoder)
    expected = (
        "<|bos|><|user_start|>Be kind.\n\nHi<|user_end|><|assistant_start|>Hello!<|assistant_end|>"
        "<|user_start|>Bye<|user_end|><|assistant_start|>Goodbye.<|assistant_end|>"
    )
    assert encoder.decode(ids) == expected
    learned = [i for i, keep in zip(ids, mask, strict=True) if keep]
    assert encoder.decode(learned) == "Hello!<|assistant_end|>Goodbye.<|assistant_end|>"
    assert encoder.decode(prompt(TALK[:2], encoder)).endswith("Hi<|user_end|><|assistant_start|>")


@pytest.mark.parametrize("talk", [TALK[:1], TALK[2:], [TALK[1], TALK[1]]])
def test_roles_must_alternate(encoder: Encoder, talk: list[Message]) -> None:
    with pytest.raises(ValueError, match="user"):
        render(talk, encoder)


def _source(name: str, lengths: list[int], masked: bool = False) -> Source:
    """Document d of the source is [1000 * (d + 1), 1000 * (d + 1) + 1, ...]; every third token is learned."""
    documents = [np.arange(1000 * (d + 1), 1000 * (d + 1) + n) for d, n in enumerate(lengths)]
    tokens = np.concatenate(documents).astype(np.uint16)
    mask = np.concatenate([np.arange(n) % 3 == 2 for n in lengths]).astype(np.uint8) if masked else None
    return Source(name, tokens, np.array(lengths, dtype=np.int32), mask)


def test_stream_covers_every_token_in_order() -> None:
    sources = {"a": _source("a", [7, 5, 9, 11])}
    documents = order(sources, (Phase("one", 32, {"a": 1.0}),), 0)
    whole = np.concatenate([documents.tokens(at) for at in range(len(documents.length))])
    batches = list(Stream(documents, 2, 5).batches())
    ids = np.concatenate([ids.ravel() for ids, _ in batches])
    targets = np.concatenate([targets.ravel() for _, targets in batches])
    assert ids.tolist() == whole[: len(ids)].tolist()
    assert targets.tolist() == whole[1 : len(ids) + 1].tolist()


def test_aligned_rows_start_with_a_document_and_learn_marked_tokens_only() -> None:
    sources = {"a": _source("a", [4, 6, 3, 8, 30], masked=True)}
    documents = order(sources, (Phase("one", 200, {"a": 1.0}),), 0)
    packed = Aligned(documents, 2, 9, pad=7)
    assert packed.steps > 2
    for ids, targets in packed.batches():
        assert ids.shape == targets.shape == (2, 9)
        assert all(first % 1000 == 0 for first in ids[:, 0])
        learned = targets[targets >= 0]
        assert len(learned) and all(value % 1000 % 3 == 2 for value in learned)
        # A learned token follows its predecessor of the same document, never padding.
        rows, columns = np.nonzero(targets >= 0)
        assert (targets[rows, columns] == ids[rows, columns] + 1).all()


@pytest.mark.parametrize("kind", ["stream", "aligned"])
def test_batches_can_begin_anywhere(kind: str) -> None:
    sources = {"a": _source("a", [7, 5, 9]), "b": _source("b", [3, 4], masked=True)}
    phases = (Phase("one", 300, {"a": 0.7, "b": 0.3}), Phase("two", 100, {"b": 1.0}))
    documents = order(sources, phases, 3)
    packed = Stream(documents, 2, 10) if kind == "stream" else Aligned(documents, 2, 10, 0)
    every = list(packed.batches())
    assert len(every) == packed.steps
    for (ids, targets), (again_ids, again_targets) in zip(every[3:], packed.batches(3), strict=True):
        assert (ids == again_ids).all() and (targets == again_targets).all()


def test_order_follows_the_weights_and_the_seed() -> None:
    sources = {"a": _source("a", [10] * 20), "b": _source("b", [5] * 20)}
    phases = (Phase("one", 4000, {"a": 0.75, "b": 0.25}),)
    documents = order(sources, phases, 1)
    share = documents.length[documents.source == 0].sum() / documents.length.sum()
    assert 0.73 < share < 0.77
    assert (order(sources, phases, 1).document == documents.document).all()
    assert not (order(sources, phases, 2).document == documents.document).all()
    # A source is seen whole before it repeats.
    seen = documents.document[documents.source == 0]
    counts = np.bincount(seen, minlength=20)
    assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize("tokens", [0, 5, 20, 21])
def test_phases_without_a_step_are_named(tokens: int) -> None:
    """A step of two rows of ten takes 21 tokens, the last as a target; rows of whole documents the same."""
    phases = (Phase("one", tokens, {"a": 1.0}),)
    documents = order({"a": _source("a", [1] * 40, masked=True)}, phases, 0)
    stream = Stream(documents, 2, 10)
    for packed in (stream, Aligned(documents, 2, 10, 0), Aligned(documents, 1, 30, 0)):
        assert len(list(packed.batches())) == packed.steps
        if not packed.steps:
            with pytest.raises(DataError, match=f"phase 'one' with {tokens} tokens.*{packed.rows} rows"):
                check_steps(packed, phases)
        else:
            check_steps(packed, phases)
    assert stream.steps == (tokens == 21)


def test_a_source_without_tokens_is_an_error() -> None:
    with pytest.raises(DataError, match="no tokens of 'x', a source of phase 'one'"):
        order({"a": _source("a", [3])}, (Phase("one", 10, {"a": 1.0, "x": 1.0}),), 0)


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    shard = tmp_path / "pretrain-wiki.jsonl.xz"
    shard.write_bytes(b"\xfd7zXZ\x00 but not really")
    with pytest.raises(DataError, match=r"pretrain-wiki\.jsonl\.xz"):
        list(read_shard(shard))


def test_a_missing_data_folder_is_an_error(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(DataError, match="no data folder"):
        prepare(tmp_path / "nowhere", tiny(), folder, tmp_path / "tokens", 1)
