"""What `pip install` puts on a machine serves the page and a model, wherever it is started.

The wheel is installed into an environment of its own, in which nothing else is: the packages that it depends
on are those of the environment that runs the tests, so that nothing has to be fetched.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.app.server_process import DEADLINE, ROOT, environment, serving
from tests.e2e.api import connected, random_prompt
from tests.engine.golden import G5
from tests.optional import missing

PACKAGES = ("app", "engine", "kernels", "static", "models")
OUTSIDE = {"PYTHONPATH": ""}  # or the checkout would fill any hole in the wheel


@dataclass(frozen=True)
class Installed:
    """bin: the programs of the environment. packages: its site-packages."""

    bin: Path
    packages: Path

    @property
    def server(self) -> list[str]:
        """The command that the wheel brings."""
        return [str(self.bin / "fastpath")]

    def run(self, command: list[str], cwd: Path) -> "subprocess.CompletedProcess[str]":
        env = environment() | OUTSIDE
        return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=DEADLINE)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel is built from a copy, because a build leaves its traces beside the sources."""
    pytest.importorskip(
        "setuptools", minversion="77", reason="building without a network needs setuptools 77"
    )
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    _pip("wheel", ".", "--no-deps", "--no-build-isolation", "--wheel-dir", ".", cwd=source)
    (wheel,) = source.glob("*.whl")
    venv.create(target, symlinks=True)
    python = target / "bin" / "python"
    _pip("--python", str(python), "install", "--no-deps", "--no-index", str(wheel), cwd=source)
    (packages,) = target.glob("lib/python*/site-packages")
    # A line of such a file is a folder to look into, whose own files of this kind do not count: an editable
    # installation of this checkout stays out.
    dependencies = (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))
    (packages / "dependencies.pth").write_text("\n".join(dependencies) + "\n")
    return Installed(target / "bin", packages)


def _pip(*arguments: str, cwd: Path) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def files_of(root: Path) -> set[str]:
    return {
        str(path.relative_to(root))
        for name in PACKAGES
        for path in (root / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_every_file_is_inside(installed: Installed) -> None:
    inside = files_of(installed.packages)
    assert inside == files_of(ROOT)
    assert {"static/index.html", "static/docs.html", "app/chat/main.py"} <= inside
    assert list(installed.packages.glob("fastpath-*.dist-info/licenses/LICENSE"))


def test_nothing_comes_from_the_checkout(installed: Installed, tmp_path: Path) -> None:
    code = "import app, engine, kernels; print(app.__file__, engine.__file__, kernels.__file__)"
    done = installed.run([str(installed.bin / "python"), "-c", code], tmp_path)
    assert done.returncode == 0, done.stderr
    assert all(path.startswith(str(installed.packages) + os.sep) for path in done.stdout.split())


async def test_it_serves(installed: Installed, tmp_path: Path) -> None:
    """The page and the model that come with it; another model does as well."""
    flags = ["--threads", "1", "--dtype", "float32"]  # which spares a new place its compilation
    if not list((ROOT / "models").rglob("config.json")):
        flags += ["--model", str(G5)]
    with serving(installed.server, *flags, cwd=tmp_path, **OUTSIDE) as server:
        async with connected(server) as api:
            for path in ("/", "/docs"):
                page = await api.http.get(path)
                assert page.status_code == 200 and "<html" in page.text
            for name in ("app.js", "styles/base.css", "vendor/MANIFEST.json", "docs.js"):
                assert (await api.http.get(f"/static/{name}")).status_code == 200
            answer = await api.complete(random_prompt(5, seed=0), max_tokens=4, ignore_eos=True)
            assert len(answer.tokens) == 4


@pytest.mark.slow
def test_its_commands_find_the_model_that_comes_with_it(installed: Installed, tmp_path: Path) -> None:
    if not list((ROOT / "models").rglob("config.json")):
        missing("no model ships with this checkout")
    checked = installed.run([*installed.server, "check", "--port", "0"], tmp_path)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert str(installed.packages / "models") in checked.stdout
    asked = [*installed.server, "chat", "--threads", "1", "--dtype", "float32"]
    answered = installed.run([*asked, "-t", "0", "-p", "Name an animal."], tmp_path)
    assert answered.returncode == 0, answered.stderr
    assert len(answered.stdout.strip()) > 2
