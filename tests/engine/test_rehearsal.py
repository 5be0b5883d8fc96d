"""The rehearsal meets every kernel that a step may launch: in a graph's capture none could be compiled."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.optional import missing


@pytest.mark.slow
def test_no_step_needs_a_kernel_that_was_not_rehearsed(tmp_path: Path) -> None:
    if find_spec("triton") is None:
        missing("needs triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.engine.rehearsed_kernels"],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 48 and all(int(line.split(" missed:")[0].rsplit(" ", 1)[1]) > 10 for line in lines)
    assert not [line for line in lines if not line.endswith("missed:")]
