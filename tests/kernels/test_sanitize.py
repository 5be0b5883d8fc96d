"""What the run under compute-sanitizer says and returns, without one."""

import importlib.util
import sys
from pathlib import Path

import pytest

from tests.gpu import sanitize
from tests.optional import missing


def test_without_a_sanitizer(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sanitize, "find_sanitizer", lambda: None)
    assert sanitize.main([]) == 2
    assert "nothing was checked" in capsys.readouterr().out


def test_the_newest_toolkit_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert sanitize.find_sanitizer(f"{tmp_path}/cuda*/bin") is None
    for name in ("cuda-12.8", "cuda-13.0"):
        (tmp_path / name / "bin").mkdir(parents=True)
        (tmp_path / name / "bin" / "compute-sanitizer").touch(0o755)
    assert sanitize.find_sanitizer(f"{tmp_path}/cuda*/bin") == f"{tmp_path}/cuda-13.0/bin/compute-sanitizer"


@pytest.mark.parametrize(
    ("statuses", "result", "words"),
    [
        ({}, 0, ["no tool: nothing found", "memcheck: nothing found", "racecheck: nothing found"]),
        ({"racecheck": 9}, 1, ["memcheck: nothing found", "racecheck: ERRORS"]),
        ({"memcheck": 124}, 1, ["memcheck: failed (124)", "racecheck: nothing found"]),
        ({"": 1}, 1, ["no tool: failed (1)"]),
    ],
)
def test_what_tools_find(
    statuses: dict[str, int],
    result: int,
    words: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A tool that fails does not keep the next one from its work; kernels that are wrong by themselves do."""
    used = []

    def supervised(command: list[str]) -> tuple[int, str]:
        used.append(command[command.index("--tool") + 1] if "--tool" in command else "")
        assert command[-2:] == ["--only", "skinny"]
        return statuses.get(used[-1], 0), "output"

    monkeypatch.setattr(sanitize, "find_sanitizer", lambda: "/opt/compute-sanitizer")
    monkeypatch.setattr(sanitize, "supervised", supervised)
    assert sanitize.main(["--only", "skinny"]) == result
    assert used == ([""] if "" in statuses else ["", "memcheck", "racecheck"])
    shown = capsys.readouterr().out
    assert all(word in shown for word in words) and shown.count("output") == len(used)


RACE = """========= Error: Race reported between Write access at {writer}+0x9400 in decode_step:1101
=========     and Read access at {reader}+0xde10 in decode_step:1100 [72 hazards]
=========     and Read access at {reader}+0xe050 in decode_step:1100 [68 hazards]
========= """
NUMBERS = ("set_number(int, int)", "number_in(int)")
MULTIPLY = "void multiply<(int)1, (bool)1, (int)1, (bool)0>(int, int, int, int, unsigned int)"
KEYS = ("copy_bulk(void *, const void *, int, unsigned long long *)", MULTIPLY)
MAIL = ("put_to_peer(Word *, int, unsigned int, unsigned int)", "get_shared(const Word *)")


@pytest.mark.parametrize(
    ("races", "result", "words"),
    [
        ([NUMBERS, KEYS, MAIL], 0, "racecheck: nothing found, 3 races that are known"),
        ([NUMBERS, (KEYS[0], "store_sums(int)")], 1, "racecheck: ERRORS, 1 races"),
        ([(NUMBERS[0], MULTIPLY)], 1, "racecheck: ERRORS, "),
        ([(KEYS[0], KEYS[0])], 1, "racecheck: ERRORS, "),
        ([(NUMBERS[0], MAIL[1])], 1, "racecheck: ERRORS, "),
    ],
)
def test_races_that_are_known(
    races: list[tuple[str, str]],
    result: int,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """They are no errors, and do not hide any."""
    blocks = [RACE.format(writer=writer, reader=reader) for writer, reader in races]
    report = "\n".join(
        ["========= COMPUTE-SANITIZER", *blocks, "results are right", "========= RACECHECK SUMMARY: 2"]
    )

    def supervised(command: list[str]) -> tuple[int, str]:
        return (sanitize.FOUND, report) if "racecheck" in command else (0, "results are right")

    monkeypatch.setattr(sanitize, "find_sanitizer", lambda: "/opt/compute-sanitizer")
    monkeypatch.setattr(sanitize, "supervised", supervised)
    assert sanitize.main(["racecheck", "--only", "decode"]) == result
    shown = capsys.readouterr().out
    assert words in shown and shown.count("results are right") == 2
    assert shown.count("Race reported") == sum(race not in (NUMBERS, KEYS, MAIL) for race in races)


@pytest.mark.parametrize(
    "after",
    [
        "decode: results are right\n========= Target application returned an error",
        "decode: results are right\n========= Internal Sanitizer Error: no more memory",
        "AssertionError: 0.5",
    ],
)
def test_known_races_hide_nothing_else(after: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither other words of the tool nor results that are wrong."""
    race = RACE.format(writer=NUMBERS[0], reader=NUMBERS[1])

    def supervised(command: list[str]) -> tuple[int, str]:
        return (sanitize.FOUND, f"{race}\n{after}") if "racecheck" in command else (0, "results are right")

    monkeypatch.setattr(sanitize, "find_sanitizer", lambda: "/opt/compute-sanitizer")
    monkeypatch.setattr(sanitize, "supervised", supervised)
    assert sanitize.main(["racecheck", "--only", "decode"]) == 1


def test_plans_are_made_where_triton_is_interpreted() -> None:
    """In such a process as a tool looks at, with Triton's kernel in place of the one that is looked at."""
    if importlib.util.find_spec("triton") is None:
        missing("triton is not installed")
    code = "from tests.gpu.sanitize import paged; paged([(2, 1, 3)], 'cpu')"
    assert sanitize.supervised([sys.executable, "-c", code]) == (0, "")
