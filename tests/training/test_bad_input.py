"""Flags and files that cannot be used are one line that names them, at every command of training."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from training import __main__ as command
from training import ablation, card, leaks, plot
from training.evaluate import __main__ as evaluate

MODELS = Path(__file__).parents[2] / "models"
Main = Callable[[list[str]], int]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With a report that is cut off, one that is no object, one without anything, and models that were tried
    by another measure.
    """
    guessed = {"device": "CPU", "torch": torch.__version__, "loss": "by guess", "rows": []}
    tables = ("cut", '{"a": 1'), ("list", "[]"), ("empty", "{}"), ("guessed", json.dumps(guessed))
    for name, content in tables:
        (tmp_path / f"{name}.json").write_text(content)
    for name in ("settings.json", "report.json"):
        (tmp_path / name).write_text('{"a": 1')
    return tmp_path


@pytest.mark.parametrize(
    ("main", "flags", "message"),
    [
        (command.main, "--data . --out {0}/out --device foo", "--device: 'foo' is no device"),
        (command.main, "--data . --out {0}/out --device cuda:99", "--device: 'cuda:99' is no device"),
        (
            command.main,
            "--data {0} --out {0}/out --preset tiny --work {0}",
            "cannot read {0}/settings.json: ",
        ),
        (ablation.main, "--data {0}/none", "--data: there is no folder {0}/none"),
        (ablation.main, "--data {0} --tokens 0", "--tokens is 0"),
        (ablation.main, "--data {0} --variants A,B", "--variants: there is no 'A,B'"),
        (ablation.main, "--data {0} --device meta", "--device: 'meta' is neither cpu nor cuda"),
        (ablation.main, "--data {0} --out {0}/cut.json", "cannot read {0}/cut.json: "),
        (
            ablation.main,
            "--data {0} --device cpu --out {0}/guessed.json",
            "{0}/guessed.json has rows of other conditions (by guess): choose another --out",
        ),
        (card.main, "--report {0}/none --out {1}", "cannot read {0}/none: No such file"),
        (card.main, "--report {0}/list.json --out {1}", "cannot read {0}/list.json: it is not a JSON object"),
        (card.main, "--report {0}/empty.json --out {0}", "cannot read {0}/config.json: No such file"),
        (plot.main, "--report {0}/empty.json --out {0}/x.svg", "{0}/empty.json: the report has no losses of"),
        (plot.main, "--report {0}/cut.json --out {0}/x.svg", "cannot read {0}/cut.json: "),
        (evaluate.main, "--data {0} --model {0}", "cannot read {0}/report.json: "),
        (
            evaluate.main,
            "--data {0} --model {1} --report {0}/no/r.json",
            "--report: there is no folder {0}/no",
        ),
        (evaluate.main, "--data {0} --model {1} --device gpu", "--device: 'gpu' is no device"),
        (leaks.main, "--data {0} --generated -5", "--generated is -5"),
        (leaks.main, "--data {0} --report {0}/cut.json", "cannot read {0}/cut.json: "),
    ],
)
def test_bad_input_is_one_line(
    folder: Path, main: Main, flags: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in folder.iterdir()}
    try:
        code = main(flags.format(folder, MODELS).split())
    except SystemExit as exit_:  # a flag; before the line about it comes the usage
        code = exit_.code  # type: ignore[assignment]
    assert code in (1, 2)
    last = capsys.readouterr().err.splitlines()[-1]
    assert "error: " in last and message.format(folder) in last
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
