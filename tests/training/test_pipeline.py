"""The one command at toy size: stages run, are skipped when done, resume; the server loads what it ships."""

import json
import lzma
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine.loader import load_model
from training import __main__ as command
from training import settings as settings_module
from training.evaluate.report import Report
from training.export import read_exported
from training.loop import Stage, build, run
from training.optimizer import optimizers_for
from training.packing import Batch
from training.settings import Phase, Settings, tiny

ANSWERED = {
    "pass": False,
    "messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}],
}
MEASURED: Report = {
    "required": {"sums up to 20": {"right": 1, "of": 9, "used_tool": 0, "wrong": [["1 + 1?", "3."]]}},
    "fixed_prompts": [ANSWERED],
    "fixed_passed": "0/1",
    "measured_in_seconds": 0.1,
}


def smallest() -> Settings:
    """A few steps of a few tokens."""
    sources = {"generated_stories": 0.5, "generated_talk": 0.5}
    return replace(
        tiny(),
        phases=(Phase("plain", 2_000, sources),),
        tune=Phase("tune", 1_500, {"generated_talk": 0.8, "assistant": 0.2}),
        checkpoint_seconds=0.0,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """(data, work, out) after one run of the command."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("training")
    data = root / "data"
    data.mkdir()
    _shard(
        data / "pretrain-storybooks.jsonl.xz", [{"text": "A cat sat.", "source": "s", "tier": "simple"}] * 3
    )
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]
    _shard(data / "chat-assistant.jsonl.xz", [{"messages": chat, "source": "s", "kind": "dolly"}] * 3)
    _run(data, root / "work", root / "out")
    return data, root / "work", root / "out"


def _shard(path: Path, items: list[dict[str, object]]) -> None:
    with lzma.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(item) + "\n" for item in items)


def _run(data: Path, work: Path, out: Path) -> int:
    patch = pytest.MonkeyPatch()
    patch.setattr(settings_module, "tiny", smallest)
    # A model that has learned nothing has nothing to measure; test_evaluate.py measures others.
    patch.setattr(command, "measure", lambda folder, data, device: MEASURED)
    try:
        flags = ["--preset", "tiny", "--workers", "1", "--device", "cpu"]
        return command.main(["--data", str(data), "--out", str(out), "--work", str(work), *flags])
    finally:
        patch.undo()


def test_everything_is_there(trained: tuple[Path, Path, Path]) -> None:
    out = trained[2]
    report = json.loads((out / "report.json").read_text())
    assert report["pretrain"]["steps"] > 0 and report["tune"]["steps"] > 0
    written = (out / "README.md").read_text()
    assert "| sums up to 20 | 1/9 | **fail** |" in written and "- 1 + 1? — 3." in written
    assert report["leaks"]["found"] == [] and "none occurs" in written
    assert "✗ **user**\n   > Why?" in written
    assert {"storybooks", "assistant", "generated_talk"} <= set(report["sources"])
    config = json.loads((out / "config.json").read_text())
    assert config["model_type"] == "fastpath-nanochat"
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {path.name for path in out.glob("*.safetensors")}


def test_done_stages_are_skipped(
    trained: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    data, work, out = trained
    before = (work / "tune.pt").stat().st_mtime_ns
    assert _run(data, work, out) == 0
    assert (work / "tune.pt").stat().st_mtime_ns == before
    assert "pretraining" not in capsys.readouterr().out


def test_the_server_loads_what_was_shipped(trained: tuple[Path, Path, Path]) -> None:
    _, work, out = trained
    model, tokenizer, _ = load_model(out, device="cpu", dtype="float32")
    reference = build(smallest(), "cpu")
    reference.load_state_dict(torch.load(work / "tune.pt", weights_only=True)["model"])
    ids = torch.tensor([[tokenizer.get_bos_token_id(), *tokenizer.encode("Once upon a time")]])
    with torch.inference_mode():
        expected, got = reference(ids), model(ids)
    assert (got - expected).norm() / expected.norm() < 0.03
    rounded = build(smallest(), "cpu")
    rounded.load_state_dict(read_exported(out))
    with torch.inference_mode():
        assert torch.allclose(rounded(ids), got, atol=1e-4)


def test_two_runs_with_one_seed_are_equal(trained: tuple[Path, Path, Path], tmp_path: Path) -> None:
    data, _, out = trained
    _run(data, tmp_path / "work", tmp_path / "out")
    for path in [*out.glob("*.safetensors"), *out.glob("tokenizer*")]:
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes(), path.name


class _Interrupted(Exception):
    pass


class _Few:
    """Ten fixed batches; `stop_at` raises when that step is asked for."""

    steps = 10

    def __init__(self, stop_at: int | None = None) -> None:
        self.stop_at = stop_at
        self.asked: list[int] = []

    def batches(self, first: int = 0):  # type: ignore[no-untyped-def]
        for step in range(first, self.steps):
            if step == self.stop_at:
                raise _Interrupted
            self.asked.append(step)
            ids = torch.randint(512, (2, 17), generator=torch.Generator().manual_seed(step)).numpy()
            batch: Batch = (ids[:, :-1], ids[:, 1:])
            yield batch


def test_an_interrupted_stage_resumes_as_if_it_had_not_been(tmp_path: Path) -> None:
    settings = smallest()

    def trained_with(batches: _Few, folder: Path) -> dict[str, torch.Tensor]:
        model = build(settings, "cpu")
        run(model, optimizers_for(model, settings), Stage("s", batches, lambda step: 1.0), settings, folder)
        return model.state_dict()

    whole = trained_with(_Few(), tmp_path / "whole")
    with pytest.raises(_Interrupted):
        trained_with(_Few(stop_at=6), tmp_path / "parts")
    rest = _Few()
    resumed = trained_with(rest, tmp_path / "parts")
    assert 0 < rest.asked[0] <= 6
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize(("share", "phase"), [("1e-9", "plain"), ("0.02", "tune"), ("0.2", "tune")])
def test_a_share_too_small_for_a_step_ships_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], share: str, phase: str
) -> None:
    flags = ["--preset", "tiny", "--workers", "1", "--device", "cpu", "--share", share]
    paths = ["--data", str(tmp_path), "--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    with pytest.MonkeyPatch.context() as patch:
        tune = Phase("tune", 1_000, {"generated_talk": 1.0})
        patch.setattr(settings_module, "tiny", lambda: replace(tiny(), tune=tune))
        assert command.main([*paths, *flags]) == 1
    assert f"error: phase '{phase}' with " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_missing_data_folder_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(tmp_path / "nowhere", tmp_path / "work", tmp_path / "out") == 1
    assert "no data folder" in capsys.readouterr().err
