"""What the Makefile would do, without doing it, and what happens to a test that lacks something."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.optional import STRICT, missing

ROOT = Path(__file__).parent.parent
SYSTEM = "VENV_FLAGS=--system-site-packages"


def install(folder: Path, *settings: str) -> str:
    """The commands of `make install` in a copy of the project's root."""
    if shutil.which("make") is None:
        missing("no make on this machine")
    for name in ("Makefile", "pyproject.toml"):
        if not (folder / name).exists():
            shutil.copy(ROOT / name, folder)
    command = ["make", "-n", "install", *settings]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout


def installed(folder: Path, asked: str) -> None:
    """Makes `folder` look as if `make install` had run there."""
    install(folder)
    (folder / ".venv/bin").mkdir(parents=True, exist_ok=True)
    (folder / ".venv/.installed").write_text(asked)


def test_another_torch_takes_effect_after_a_first_run(tmp_path: Path) -> None:
    installed(tmp_path, "")
    assert "pip install" not in install(tmp_path)
    for asked, command in (("TORCH=torch", 'pip install --quiet "torch"'), (SYSTEM, "-m venv --system-site")):
        installed(tmp_path, "")
        commands = install(tmp_path, asked)
        assert "uninstall --quiet --yes torch" in commands
        assert command in commands
        installed(tmp_path, asked.partition("=")[2] + "\n")
        assert "pip install" not in install(tmp_path, asked)
        assert "pip install" not in install(tmp_path)  # a plain `make run` later keeps it


def test_a_half_made_environment_is_made_anew(tmp_path: Path) -> None:
    """Where ensurepip is missing, `python -m venv` fails and leaves an environment without pip."""
    assert "test -x .venv/bin/pip " in install(tmp_path)


@pytest.mark.parametrize(("strict", "outcome"), [("0", pytest.skip.Exception), ("1", pytest.fail.Exception)])
def test_ci_lets_no_test_skip(
    strict: str, outcome: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(STRICT, strict)
    with pytest.raises(outcome, match="no oracle"):
        missing("no oracle")
