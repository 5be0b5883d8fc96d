"""Checkpoints and other files are whole or not there, and damage is noticed wherever it lies."""

import errno
import os
from pathlib import Path
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.checkpoint import KEPT, CheckpointError, Checkpoints
from training.conversations.tales import plain_story
from training.export import export
from training.files import WriteError, write_text, write_whole
from training.loop import build
from training.settings import tiny
from training.tokenizer import save, train

CPU = torch.device("cpu")


def state(step: int) -> dict[str, object]:
    return {"step": step, "model": {"w": torch.full((5,), float(step))}}


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path, "stage")


def test_the_last_two_are_kept_and_the_last_is_loaded(checkpoints: Checkpoints) -> None:
    assert checkpoints.newest(CPU) is None
    for step in (3, 20, 100, 1000):
        checkpoints.save(step, state(step))
        found = checkpoints.newest(CPU)
        assert found is not None and found["step"] == step
    assert [int(path.name.split("-")[1]) for path in checkpoints.paths()] == [100, 1000]
    assert len(checkpoints.paths()) == KEPT
    checkpoints.drop()
    assert list(checkpoints.folder.iterdir()) == []


def test_stages_do_not_see_each_others(tmp_path: Path) -> None:
    one, other = Checkpoints(tmp_path, "tune"), Checkpoints(tmp_path, "pretune")
    one.save(1, state(1))
    assert other.newest(CPU) is None and other.paths() == []


@given(
    data=st.data(),
    damage=st.sampled_from(["cut", "flipped", "longer", "empty"]),
)
@settings(max_examples=60)
def test_any_damage_is_noticed(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, damage: str
) -> None:
    here = Checkpoints(tmp_path_factory.mktemp("damaged"), "stage")
    here.save(1, state(1))
    path = here.save(2, state(2))
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    match damage:
        case "cut":
            del content[place:]
        case "flipped":
            content[place] ^= 1 << data.draw(st.integers(0, 7))
        case "longer":
            content += b"\0"
        case _:
            content.clear()
    path.write_bytes(content)
    found = here.newest(CPU)
    assert found is not None and found["step"] == 1
    assert not path.exists(), "a damaged one is not looked at again"


def test_with_every_checkpoint_damaged_there_is_none(
    checkpoints: Checkpoints, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (1, 2):
        checkpoints.save(step, state(step)).write_bytes(b"")
    assert checkpoints.newest(CPU) is None
    assert capsys.readouterr().out.count("is damaged") == 2


def test_what_a_crash_leaves_half_written_is_never_read(checkpoints: Checkpoints) -> None:
    checkpoints.save(1, state(1))
    (checkpoints.folder / "stage.partial.tmp").write_bytes(b"half")
    found = checkpoints.newest(CPU)
    assert found is not None and found["step"] == 1
    checkpoints.save(2, state(2))
    assert not (checkpoints.folder / "stage.partial.tmp").exists()


def full_disk(waiting: Path) -> None:
    waiting.parent.mkdir(parents=True, exist_ok=True)
    waiting.symlink_to("/dev/full")


def test_a_full_disk_leaves_the_last_checkpoint(checkpoints: Checkpoints) -> None:
    full_disk(checkpoints.folder / "stage.partial.tmp")
    with pytest.raises(CheckpointError, match="No space left on device; there was none before"):
        checkpoints.save(1, state(1))
    kept = checkpoints.save(2, state(2))
    full_disk(checkpoints.folder / "stage.partial.tmp")
    with pytest.raises(
        CheckpointError, match=f"No space left on device; the last one, {kept.name}, is intact"
    ):
        checkpoints.save(3, state(3))
    assert checkpoints.paths() == [kept]
    found = checkpoints.newest(CPU)
    assert found is not None and found["step"] == 2


def test_a_stage_is_finished_once_its_weights_are_whole(
    checkpoints: Checkpoints, capsys: pytest.CaptureFixture[str]
) -> None:
    model = torch.nn.Linear(3, 2)
    assert not checkpoints.finished()
    checkpoints.finish(model.state_dict(), {"steps": 7})
    assert checkpoints.finished()
    other = torch.nn.Linear(3, 2)
    checkpoints.load(other)
    assert torch.equal(other.weight, model.weight)
    weights = checkpoints.folder / "stage.pt"
    for damaged in (weights, checkpoints.folder / "stage.json"):
        checkpoints.finish(model.state_dict(), {"steps": 7})
        damaged.write_bytes(damaged.read_bytes()[:-40])
        assert not checkpoints.finished() and not weights.exists()
        assert f"{damaged} is damaged" in capsys.readouterr().out


@pytest.mark.parametrize("waiting", ["stage.json.tmp", "stage.pt.tmp"])
def test_a_stage_that_cannot_be_finished_is_not(checkpoints: Checkpoints, waiting: str) -> None:
    checkpoints.save(1, state(1))
    full_disk(checkpoints.folder / waiting)
    with pytest.raises(CheckpointError, match="No space left on device; the checkpoints of the stage are"):
        checkpoints.finish(torch.nn.Linear(3, 2).state_dict(), {})
    assert not checkpoints.finished() and len(checkpoints.paths()) == 1


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.txt"
    write_text(path, "first\n")

    def fail(file: object) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    with pytest.raises(WriteError, match=rf"cannot write {path}: {os.strerror(errno.EDQUOT)}"):
        write_whole(path, fail)
    assert path.read_text() == "first\n" and list(path.parent.iterdir()) == [path]
    write_text(path, "sécond")
    assert path.read_text("utf-8") == "sécond"
    with pytest.raises(WriteError, match=r"Not a directory|File exists"):
        write_text(path / "below", "")


def test_an_export_without_room_leaves_the_model_that_is_there(tmp_path: Path) -> None:
    model, rng = build(tiny(), "cpu"), Random(1)
    save(train([plain_story(rng) for _ in range(60)], 512), tmp_path / "tokenizer")
    shards = export(model.state_dict(), model.config, tmp_path / "tokenizer", tmp_path / "out")
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with torch.no_grad():
        model.lm_head.weight.add_(1.0)
    full_disk(tmp_path / "out" / f"{shards[0].name}.new.tmp")
    with pytest.raises(WriteError, match="No space left on device"):
        export(model.state_dict(), model.config, tmp_path / "tokenizer", tmp_path / "out")
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
