"""`python -m app check`: it agrees with what a server would do, and names the flag that mends."""

import json
import socket
from pathlib import Path

import pytest

from app.settings.options import table
from app.survey import command_line, main
from engine.messages.finding import Finding
from tests.app.server_process import GOLDEN, SERVER, finish

CHECK = [*SERVER, "check"]


def rows_of(stdout: str) -> tuple[dict[str, object], dict[str, Finding]]:
    said = json.loads(stdout)
    return said, {row["what"]: Finding(**row) for row in said["findings"]}


def test_a_sound_model_is_told_in_a_table_and_its_load_agrees() -> None:
    done = finish([*CHECK, str(GOLDEN), "--port", "0", "--threads", "1", "--load"])
    assert done.returncode == 0, done.stdout
    *lines, verdict = done.stdout.splitlines()
    rows = {line[7:].split("  ")[0]: line for line in lines}
    assert all(line.startswith("ok ") for line in lines)
    assert "nanochat-d4 (G1, 0.3 M parameters)" in rows["model"]
    # What was computed without the weights is what the engine made of them.
    pool = rows["KV pool"].split("KV pool")[1].split()[0]
    assert f"KV cache: {pool} tokens" in rows["load"] and "nanochat-d4 (G1, 0.3 M" in rows["load"]
    assert verdict == "This would be served."


def test_a_port_in_use_is_98_and_the_model_is_told_all_the_same() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = finish([*CHECK, str(GOLDEN), "--json", "--port", str(taken.getsockname()[1])])
    said, rows = rows_of(done.stdout)
    assert (done.returncode, said["exit_code"], said["ok"]) == (98, 98, False)
    assert (rows["port"].flag, rows["model"].state) == ("--port", "ok")


def test_who_may_ask_and_where_it_listens_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("app.survey._engine", lambda config: [])
    keys = tmp_path / "keys"
    keys.write_text("a-key\n# none\nanother\n")

    def told(*flags: str) -> tuple[int, dict[str, Finding]]:
        code = main(["--json", "--port", "0", *flags])
        return code, rows_of(capsys.readouterr().out)[1]

    code, rows = told("--host", "0.0.0.0")
    assert (code, rows["access"].state, rows["access"].flag) == (0, "note", "--api-key-file")
    code, rows = told("--host", "0.0.0.0", "--api-key-file", str(keys))
    assert (code, rows["access"].says) == (0, "2 keys")
    path = tmp_path / "socket"
    code, rows = told("--uds", str(path), "--metrics-port", "0")
    assert (code, rows["access"].state, rows["port"].says) == (0, "ok", str(path))
    assert not path.exists()  # nothing is left behind
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        code, rows = told("--uds", str(path))
        assert (code, rows["port"].flag) == (98, "--uds") and path.exists()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, rows = told("--metrics-port", str(taken.getsockname()[1]))
    assert (code, rows["metrics port"].flag) == (98, "--metrics-port")
    code, rows = told("--api-key-file", str(tmp_path / "no"))
    assert (code, rows["settings"].flag) == (2, "--api-key-file")


def test_settings_that_cannot_be_are_2_in_both_forms() -> None:
    done = finish([*CHECK, "--json", "--batch-sise", "4"])
    said, rows = rows_of(done.stdout)
    assert (done.returncode, said["ok"], rows["settings"].code) == (2, False, 2)
    assert "did you mean --batch-size?" in rows["settings"].says
    done = finish([*CHECK], APP_MAX_NUM_BLOCKS="4")
    assert done.returncode == 2 and done.stdout.startswith("WRONG  settings  --max-num-blocks 4 needs")
    assert done.stderr == ""


def test_every_file_among_the_settings_is_looked_at(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A setting that names a file is told apart by its metavar, as the help shows it."""
    named = [entry.field for entry in table(command_line().base) if entry.flag.metavar == "FILE"]
    assert "trace" in named
    code = main([str(tmp_path), "--port", "0", "--json", "--trace", str(tmp_path / "no" / "trace")])
    _, rows = rows_of(capsys.readouterr().out)
    assert (code, rows["files"].flag, rows["files"].state) == (2, "--trace", "wrong")
    assert (rows["model"].code, rows["model"].flag) == (3, "--model")
