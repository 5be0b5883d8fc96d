"""Which files a path means, and what is said when it means none."""

import os
import shutil
from pathlib import Path

import huggingface_hub
import pytest

import engine.checkpoint
from engine.checkpoint import CheckpointError, CheckpointFiles, locate
from tests.engine.checkpoints import write_checkpoint


@pytest.fixture(autouse=True)
def no_checkpoints_of_the_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "nothing"))


def touch(base: Path, *names: str) -> Path:
    """Empty model files with their descriptions, and a tokenizer folder."""
    for name in names:
        file = base / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        file.with_name(file.name.replace("model_", "meta_").replace(".pt", ".json")).write_text("{}")
    (base / "tokenizer").mkdir(exist_ok=True)
    (base / "tokenizer" / "tokenizer.pkl").touch()
    return base


def chosen(files: CheckpointFiles) -> tuple[str | None, str | None, int | None]:
    return files.source, files.tag, files.step


def test_w2_a_base_directory(tmp_path: Path) -> None:
    base = touch(
        tmp_path,
        "chatsft_checkpoints/d20/model_000650.pt",
        "chatsft_checkpoints/d20/model_000099.pt",
        "chatsft_checkpoints/d20/model_1000001.pt",  # six digits are the least, not the most
        "chatsft_checkpoints/d4/model_000001.pt",
        "chatsft_checkpoints/zeta/model_000001.pt",
        "base_checkpoints/d34/model_169150.pt",
        "mid_checkpoints/d34/optim_000001.pt",
    )
    files = locate(base)
    assert chosen(files) == ("sft", "d20", 1000001)
    assert files.layout == "nanochat" and files.name == "nanochat-d20"
    assert files.weights == (base / "chatsft_checkpoints/d20/model_1000001.pt",)
    assert files.meta == base / "chatsft_checkpoints/d20/meta_1000001.json"
    assert files.tokenizer_folder == base / "tokenizer"
    assert chosen(locate(base, step=650)) == ("sft", "d20", 650)
    assert chosen(locate(base, tag="d4")) == ("sft", "d4", 1)
    assert chosen(locate(base, tag="zeta")) == ("sft", "zeta", 1)
    assert chosen(locate(base, source="base")) == ("base", "d34", 169150)


def test_folders_below_a_base_directory(tmp_path: Path) -> None:
    base = touch(tmp_path, "chatrl_checkpoints/d12/model_000003.pt", "chatrl_checkpoints/d4/model_000009.pt")
    assert chosen(locate(base / "chatrl_checkpoints")) == ("rl", "d12", 3)
    below = locate(str(base / "chatrl_checkpoints" / "d4"))
    assert chosen(below) == ("rl", "d4", 9)
    assert below.name == "nanochat-d4"
    assert below.tokenizer_folder == base / "tokenizer"


def test_tags_without_a_depth_go_by_age(tmp_path: Path) -> None:
    base = touch(tmp_path, *(f"base_checkpoints/{tag}/model_000001.pt" for tag in ("alpha", "beta", "gamma")))
    for age, tag in enumerate(("beta", "gamma", "alpha")):
        os.utime(base / "base_checkpoints" / tag, (1000 - age, 1000 - age))
    assert chosen(locate(base)) == ("base", "beta", 1)


def test_one_flat_folder(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "nanochat-d32", "G1", layout="flat", step=650)
    files = locate(folder)
    assert (files.name, chosen(files)) == ("nanochat-d32", (None, None, 650))
    assert files.tokenizer_folder == folder


@pytest.mark.parametrize("layout", ["safetensors", "transformers"])
@pytest.mark.parametrize(("shards", "index"), [(1, False), (3, True), (3, False)])
def test_folders_with_a_configuration(tmp_path: Path, layout: str, shards: int, index: bool) -> None:
    folder = write_checkpoint(
        tmp_path / "model",
        "G1",
        layout=layout,
        shards=shards,
        index=index,  # type: ignore[arg-type]
    )
    files = locate(folder)
    assert files.layout == ("fastpath" if layout == "safetensors" else "transformers")
    assert len(files.weights) == shards
    assert files.meta == folder / "config.json" and files.tokenizer_folder == folder
    if shards > 1:
        files.weights[1].unlink()
        with pytest.raises(CheckpointError, match="lacks model-00002-of-00003"):
            locate(folder)


def test_an_index_cannot_leave_its_folder(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", "G1", layout="safetensors")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../secret.safetensors"}}')
    with pytest.raises(CheckpointError, match="outside its folder"):
        locate(folder)


def test_w2_without_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.checkpoint, "embedded_folder", lambda: tmp_path / "models")
    with pytest.raises(CheckpointError, match="no model was given, and none ships"):
        locate(None)
    shipped = write_checkpoint(tmp_path / "models" / "fastpath-tiny", "G1", layout="safetensors")
    assert locate(None).folder == shipped
    with pytest.raises(CheckpointError, match="no nanochat checkpoints here"):
        locate(None, tag="d4")
    base = touch(tmp_path / "base", "mid_checkpoints/d4/model_000001.pt")
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(base))
    assert chosen(locate(None)) == ("mid", "d4", 1)
    monkeypatch.delenv("NANOCHAT_BASE_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert locate(None).folder == shipped
    shutil.copytree(base, tmp_path / ".cache" / "nanochat")
    assert chosen(locate(None)) == ("mid", "d4", 1)


def test_what_is_not_there(tmp_path: Path) -> None:
    base = touch(tmp_path / "base", "base_checkpoints/d4/model_000001.pt")
    for arguments, message in (
        ({"source": "sft"}, "no checkpoints of source 'sft'; it has base"),
        ({"source": "pretrain"}, "no checkpoint source 'pretrain'; there are sft, rl, mid, base"),
        ({"tag": "d20"}, "no checkpoint 'd20'; it has d4"),
        ({"step": 2}, "no step 2; it has 1"),
    ):
        with pytest.raises(CheckpointError, match=message):
            locate(base, **arguments)  # type: ignore[arg-type]
    (base / "base_checkpoints/d4/meta_000001.json").unlink()
    with pytest.raises(CheckpointError, match=r"lacks its description meta_000001\.json"):
        locate(base)
    (base / "tokenizer/tokenizer.pkl").unlink()
    (base / "base_checkpoints/d4/meta_000001.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no tokenizer for"):
        locate(base)


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    empty, notes, gemma, bare = (tmp_path / name for name in ("empty", "notes", "gemma", "bare"))
    for folder in (empty, notes, gemma, bare):
        folder.mkdir()
    (notes / "letters").mkdir()
    (notes / "todo.txt").touch()
    (gemma / "config.json").write_text('{"model_type": "gemma"}')
    (bare / "config.json").write_text('{"model_type": "nanochat"}')
    for path, message in (
        (empty, "It holds nothing"),
        (notes, "It holds letters/, todo.txt"),
        (gemma, "a model of type 'gemma'; there are nanochat, llama, mistral, qwen2"),
        (bare, "no weights"),
        (notes / "todo.txt", "is a file"),
        (tmp_path / "absent", "does not exist"),
    ):
        with pytest.raises(CheckpointError, match=message):
            locate(path)
    (gemma / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not JSON"):
        locate(gemma)


def test_hub_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = write_checkpoint(tmp_path / "snapshot", "G1", layout="flat", step=650)
    asked: list[tuple[str, object]] = []

    def download(name: str, *, revision: object, allow_patterns: object) -> str:
        asked.append((name, revision))
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    files = locate("karpathy/nanochat-d32")
    assert (files.name, files.step) == ("karpathy/nanochat-d32", 650)
    assert locate("karpathy/nanochat-d32@refs/pr/1").name == "karpathy/nanochat-d32"
    assert asked == [("karpathy/nanochat-d32", None), ("karpathy/nanochat-d32", "refs/pr/1")]
    # What is on disk, or does not look like a name there, is never fetched.
    write_checkpoint(tmp_path / "owner" / "name", "G1", layout="flat")
    assert locate("owner/name").name == "name"
    for path in ("./owner/other", "/owner/other", "a/b/c", "word"):
        with pytest.raises(CheckpointError, match="does not exist"):
            locate(path)
    assert len(asked) == 2


def test_a_hub_that_cannot_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=r"'owner/absent' is no folder here, and fetching .* failed: "):
        locate("owner/absent")
