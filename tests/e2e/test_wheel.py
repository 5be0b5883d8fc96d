"""What `pip install` puts on a machine serves the page and a model, wherever it is started."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.app.server_process import DEADLINE, ROOT, environment, serving
from tests.e2e.api import connected, random_prompt
from tests.engine.golden import G5
from tests.optional import missing

PACKAGES = ("app", "engine", "kernels", "static", "models")
# Without `site`: an editable installation of this checkout would fill any hole in the wheel.
SERVER = [sys.executable, "-S", "-m", "app"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked wheel. It is built from a copy, because a build leaves its traces beside the sources."""
    pytest.importorskip(
        "setuptools", minversion="77", reason="building without a network needs setuptools 77"
    )
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        ".",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        ".",
    ]
    done = subprocess.run(build, cwd=source, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = source.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


def python_path(installed: Path) -> str:
    return os.pathsep.join((str(installed), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))


def files_of(root: Path) -> set[str]:
    return {
        str(path.relative_to(root))
        for name in PACKAGES
        for path in (root / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_every_file_is_inside(installed: Path) -> None:
    inside = files_of(installed)
    assert inside == files_of(ROOT)
    assert "static/index.html" in inside
    assert list(installed.glob("fastpath-*.dist-info/licenses/LICENSE"))


async def test_it_serves(installed: Path, tmp_path: Path) -> None:
    flags = ["--model", str(G5), "--dtype", "float32", "--threads", "1"]
    with serving(SERVER, *flags, cwd=tmp_path, PYTHONPATH=python_path(installed)) as server:
        async with connected(server) as api:
            page = await api.http.get("/")
            assert page.status_code == 200 and "<html" in page.text
            answer = await api.complete(random_prompt(5, seed=0), max_tokens=4, ignore_eos=True)
            assert len(answer.tokens) == 4


def test_the_embedded_model_loads(installed: Path, tmp_path: Path) -> None:
    if not list((ROOT / "models").rglob("config.json")):
        missing("no model ships with this checkout")
    done = subprocess.run(
        [*SERVER, "--dry-run", "--threads", "1"],
        cwd=tmp_path,
        env=environment() | {"PYTHONPATH": python_path(installed)},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    assert done.returncode == 0, done.stderr
    assert "KV cache" in done.stdout
