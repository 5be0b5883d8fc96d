"""A run that is killed, and one whose disk is full, goes on as if nothing had been."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from tests.training import small
from training import __main__ as command

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.shards(tmp_path_factory.mktemp("resume") / "data")


@pytest.fixture(scope="module")
def whole(data: Path) -> Path:
    """The work folder, with `out` inside, of a run that nothing disturbed."""
    torch.set_num_threads(1)
    work = data.parent / "whole"
    assert small.run(data, work, work / "out") == 0
    return work


def killed(data: Path, work: Path, at: Callable[[str], bool]) -> list[str]:
    """Starts the command and kills it, without a chance to clean up, once `at` is true of a line that it
    prints; the lines. It is an error if it comes to its end.
    """
    arguments = [sys.executable, "-m", "tests.training.small", *map(str, (data, work, work / "out"))]
    lines: list[str] = []
    with subprocess.Popen(arguments, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line.strip())
            if at(line):
                process.kill()
                break
        else:
            raise AssertionError("it was not killed: " + "\n".join(lines))
    assert process.returncode == -9
    return lines


def same_outcome(work: Path, whole: Path) -> None:
    """Weights of both stages and the shipped files, to the bit; the curve of the losses too."""
    for stage in ("pretrain", "tune"):
        one, other = (
            torch.load(folder / f"{stage}.pt", weights_only=True)["model"] for folder in (work, whole)
        )
        assert set(one) == set(other)
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items()), stage
        curves = [json.loads((folder / f"{stage}.json").read_text())["losses"] for folder in (work, whole)]
        assert curves[0] == curves[1]
    shipped = sorted(path.name for path in (whole / "out").glob("*") if path.name != "report.json")
    assert sorted(path.name for path in (work / "out").glob("*") if path.name != "report.json") == shipped
    for name in shipped:
        assert (work / "out" / name).read_bytes() == (whole / "out" / name).read_bytes(), name


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_as_if_it_had_not_been(
    data: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = iter(range(100))
    killed(data, tmp_path, lambda line: "== tokenising" in line)
    assert not (tmp_path / "pretrain.pt").exists()
    killed(data, tmp_path, lambda line: "pretrain.partial-" in line and next(seen) == 3)
    third = killed(data, tmp_path, lambda line: "tune.partial-" in line)
    assert any(line.startswith("pretrain: resumed at step ") for line in third)
    assert (tmp_path / "pretrain.pt").exists() and not (tmp_path / "tune.pt").exists()
    assert small.run(data, tmp_path, tmp_path / "out") == 0
    assert "tune: resumed at step " in capsys.readouterr().out
    same_outcome(tmp_path, whole)
    assert not list(tmp_path.glob("*.partial*")), "nothing is left behind"


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    data: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = iter(range(100))
    killed(data, tmp_path, lambda line: "pretrain.partial-" in line and next(seen) == 4)
    paths = sorted(tmp_path.glob("pretrain.partial-*.pt"))
    assert len(paths) >= 2
    with paths[-1].open("r+b") as file:
        file.truncate(paths[-1].stat().st_size // 2)
    assert small.run(data, tmp_path, tmp_path / "out") == 0
    said = capsys.readouterr().out
    step = int(paths[-2].name.split("-")[1])
    assert f"{paths[-1]} is damaged" in said and f"pretrain: resumed at step {step}" in said
    same_outcome(tmp_path, whole)


@pytest.mark.slow
def test_damaged_weights_of_a_stage_are_made_again(
    data: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    killed(data, tmp_path, lambda line: "tune.partial-" in line)
    weights = tmp_path / "pretrain.pt"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    for path in tmp_path.glob("tune.partial-*"):
        path.unlink()
    assert small.run(data, tmp_path, tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert f"{weights} is damaged" in said and "pretrain: resumed at step " in said
    same_outcome(tmp_path, whole)


def test_the_same_seed_gives_the_same_files_and_another_gives_others(
    data: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert small.run(data, tmp_path / "again", tmp_path / "again" / "out") == 0
    same_outcome(tmp_path / "again", whole)
    chosen = replace(small.smallest(), seed=2)
    monkeypatch.setattr(small, "smallest", lambda: chosen)
    assert small.run(data, tmp_path / "other", tmp_path / "other" / "out") == 0
    with pytest.raises(AssertionError):
        same_outcome(tmp_path / "other", whole)


@pytest.mark.slow
def test_a_full_disk_ends_the_run_and_spares_what_is_there(
    data: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """/dev/full is a disk that is: the checkpoint in the making is led there."""
    seen = iter(range(100))
    killed(data, tmp_path, lambda line: "pretrain.partial-" in line and next(seen) == 2)
    waiting = tmp_path / "pretrain.partial.tmp"
    waiting.unlink(missing_ok=True)
    before = {path: path.read_bytes() for path in tmp_path.glob("pretrain.partial-*.pt")}
    waiting.symlink_to("/dev/full")
    assert small.run(data, tmp_path, tmp_path / "out") == 1
    said = capsys.readouterr().err
    last = max(before)
    assert "No space left on device" in said and f"the last one, {last.name}, is intact" in said
    assert "start the same command again" in said
    assert {path: path.read_bytes() for path in before} == before
    assert not waiting.is_symlink()
    assert small.run(data, tmp_path, tmp_path / "out") == 0
    same_outcome(tmp_path, whole)


def test_a_work_folder_of_other_settings_is_refused_and_can_be_started_over(
    data: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work, out = tmp_path / "work", tmp_path / "work" / "out"
    assert small.run(data, work, out, "--share", "0.5") == 0
    assert small.run(data, work, out) == 1
    assert "holds a run with other settings (phases, tune)" in capsys.readouterr().err
    assert small.run(data, work, out, "--no-resume") == 0
    same_outcome(work, whole)


def test_the_losses_are_drawn_beside_the_card(whole: Path) -> None:
    root = ElementTree.parse(whole / "out" / "losses.svg").getroot()
    lines = root.findall("{*}polyline")
    assert len(lines) == 2 and all(line.get("points") for line in lines)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--share", "0"], "--share 0 is not above 0"),
        (["--share", "2"], "--share 2 is not above 0 and at most 1"),
        (["--workers", "0"], "--workers 0 is not positive"),
        (["--checkpoint-seconds", "-1"], "--checkpoint-seconds -1 is negative"),
    ],
)
def test_bad_options_are_named(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command.arguments(["--data", "x", "--out", "y", *arguments])
    assert message in capsys.readouterr().err
