"""What is wrong with the data is said, with the file's name, before anything is trained."""

import lzma
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training import small
from training.conversations.tales import plain_story
from training.data import (
    CHAT_SHARDS,
    CHAT_SOURCES,
    SIZES_FILE,
    check_sources,
    conversations,
    open_sources,
    plain_texts,
    prepare,
)
from training.files import WriteError
from training.settings import Phase, Settings, full, tiny
from training.shards import DataError
from training.tokenizer import save, train

STORY = {"text": "A fox.", "tier": "simple", "source": "s"}
CHAT = {
    "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}],
    "kind": "dolly",
    "source": "s",
}
SHARDS = (
    "pretrain-storybooks", "pretrain-children-pd", "pretrain-classics", "pretrain-wiki", "pretrain-openstax",
    "pretrain-reference", "chat-assistant", "chat-smalltalk", "chat-chitchat", "chat-task",
)  # fmt: skip


def files(folder: Path) -> Path:
    """A shard, empty but for its name, of everything that `full` names."""
    for name in SHARDS:
        small.shard(folder / f"{name}.jsonl.xz", [])
    return folder


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng, path = Random(1), tmp_path_factory.mktemp("tokenizer")
    save(train([plain_story(rng) for _ in range(60)], 512), path)
    return path


def of(**weights: float) -> Settings:
    """Tiny settings whose one phase has these sources."""
    return replace(tiny(), phases=(Phase("plain", 100, weights),))


@pytest.mark.parametrize("missing", SHARDS)
def test_a_missing_shard_is_named(tmp_path: Path, missing: str) -> None:
    check_sources(files(tmp_path), full())
    (tmp_path / f"{missing}.jsonl.xz").unlink()
    wanted = missing.replace("children-pd", r"children-\*")
    with pytest.raises(DataError, match=rf"phase 'plain' .* but there is no {tmp_path}/{wanted}\.jsonl\.xz"):
        check_sources(tmp_path, full())


def test_numbered_shards_count(tmp_path: Path) -> None:
    (files(tmp_path) / "pretrain-wiki.jsonl.xz").rename(tmp_path / "pretrain-wiki.0001.jsonl.xz")
    check_sources(tmp_path, full())


def test_generated_sources_need_no_file_but_a_number(tmp_path: Path) -> None:
    check_sources(tmp_path, tiny())
    with pytest.raises(DataError, match="'generated_tales', but generated_tales in the settings is not"):
        check_sources(tmp_path, replace(of(generated_tales=1.0), generated_tales=0))
    with pytest.raises(DataError, match="'generated_poems'"):
        check_sources(tmp_path, of(generated_poems=1.0))
    with pytest.raises(DataError, match=r"'wikki', but there is no .*pretrain-wikki\.jsonl\.xz"):
        check_sources(tmp_path, of(wikki=1.0))


def test_every_chat_source_has_a_shard() -> None:
    assert set(CHAT_SHARDS) == set(CHAT_SOURCES.values())


@pytest.mark.parametrize(
    ("source", "shard", "item", "message"),
    [
        ("knowledge", "chat-assistant", CHAT, "an item of the kind words or what_is or trivia or nq"),
        ("wiki", "pretrain-wiki", None, "a document for it"),
        ("children-other", "pretrain-children-pd", STORY, "a document of another tier"),
    ],
)
def test_a_shard_without_anything_for_a_source_is_told(
    tmp_path: Path, tokenizer: Path, source: str, shard: str, item: object, message: str
) -> None:
    small.shard(tmp_path / f"{shard}.jsonl.xz", [item] if item else [])
    with pytest.raises(DataError, match=f"'{source}', but no shard in {tmp_path} has {message}"):
        prepare(tmp_path, of(**{source: 1.0}), tokenizer, tmp_path / "tokens", 1)
    assert not (tmp_path / "tokens").exists(), "nothing is kept that would be taken for done"


@given(share=st.floats(0, 0.999))
@settings(max_examples=25)
def test_a_shard_that_is_cut_off_is_named(tmp_path_factory: pytest.TempPathFactory, share: float) -> None:
    folder = tmp_path_factory.mktemp("cut")
    rng = Random(2)
    stories = [{"text": plain_story(rng), "tier": "simple", "source": "s"} for _ in range(20)]
    path = small.shard(folder / "pretrain-wiki.jsonl.xz", stories)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(DataError, match=rf"cannot read {path}"):
        list(plain_texts(folder))


@given(place=st.floats(0, 1), bit=st.integers(0, 7))
@settings(max_examples=25)
def test_a_flipped_bit_is_noticed(tmp_path_factory: pytest.TempPathFactory, place: float, bit: int) -> None:
    folder = tmp_path_factory.mktemp("flipped")
    path = small.shard(folder / "pretrain-wiki.jsonl.xz", [STORY] * 20)
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 1 << bit
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"cannot read {path}"):
        list(plain_texts(folder))


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([{"tier": "simple"}], "without text"),
        ([{"text": 7}], "without text"),
        (["a line that is no object"], "without text"),
    ],
)
def test_a_document_of_another_form_is_named(tmp_path: Path, items: list[object], message: str) -> None:
    path = small.shard(tmp_path / "pretrain-wiki.jsonl.xz", items)
    with pytest.raises(DataError, match=rf"{path} has an item {message}"):
        list(plain_texts(tmp_path))


def test_children_need_a_tier(tmp_path: Path) -> None:
    small.shard(tmp_path / "pretrain-children-pd.jsonl.xz", [{"text": "A fox."}])
    with pytest.raises(DataError, match="without tier"):
        list(plain_texts(tmp_path))


@pytest.mark.parametrize(
    "item",
    [
        {"messages": CHAT["messages"]},
        {"kind": "dolly"},
        {"kind": "dolly", "messages": "Hi"},
        {"kind": "dolly", "messages": [{"role": "user"}]},
        {"kind": "dolly", "messages": ["Hi"]},
    ],
)
def test_a_conversation_of_another_form_is_named(tmp_path: Path, item: object) -> None:
    path = small.shard(tmp_path / "chat-assistant.jsonl.xz", [item])
    with pytest.raises(DataError, match=rf"{path} has an? (item|message) without"):
        list(conversations(tmp_path))


def test_text_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "pretrain-wiki.jsonl.xz"
    path.write_bytes(lzma.compress(b'{"text": "\xff"}\n'))
    with pytest.raises(DataError, match=f"cannot read {path}"):
        list(plain_texts(tmp_path))


def test_damaged_token_files_are_told(tmp_path: Path, tokenizer: Path) -> None:
    folder = tmp_path / "tokens"
    sizes = prepare(tmp_path, tiny(), tokenizer, folder, 1)
    assert set(open_sources(folder)) == set(sizes)
    kept = {path: path.read_bytes() for path in folder.iterdir()}
    for path, content in kept.items():
        for damaged in (b"", content[:-3]):
            path.write_bytes(damaged)
            with pytest.raises(DataError, match=r"are damaged .*; remove that folder"):
                open_sources(folder)
        path.write_bytes(content)
    (folder / "generated_talk.tokens.npy").unlink()
    with pytest.raises(DataError, match=r"generated_talk\.tokens\.npy"):
        open_sources(folder)


def test_a_full_disk_is_no_finished_tokenising(tmp_path: Path, tokenizer: Path) -> None:
    folder = tmp_path / "tokens"
    folder.mkdir()
    (folder / "generated_talk.tokens.npy.tmp").symlink_to("/dev/full")
    with pytest.raises(WriteError, match=r"cannot write .*generated_talk\.tokens\.npy"):
        prepare(tmp_path, tiny(), tokenizer, folder, 1)
    assert not (folder / SIZES_FILE).exists()


@pytest.mark.parametrize(("kind", "read"), [("personachat", 1), ("selfdialog", 1), ("dolly", 2)])
def test_people_who_introduce_themselves_are_left_out(tmp_path: Path, kind: str, read: int) -> None:
    """The assistant has a name of its own, and learned others from such talk."""
    said = ("Do you like tea?", "I do."), ("Hi, what is your name?", "My name is Sarah.")
    items = []
    for question, answer in said:
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        items.append({**CHAT, "kind": kind, "messages": turns})
    small.shard(tmp_path / f"{CHAT_SHARDS[CHAT_SOURCES[kind]]}.jsonl.xz", items)
    assert len(list(conversations(tmp_path))) == read
