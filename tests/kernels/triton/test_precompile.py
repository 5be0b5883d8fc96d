"""Kernels are noted, compiled at once, and then only launched; one that cannot be compiled says so later."""

import os
import subprocess
import sys
from pathlib import Path


def test_kernels_are_compiled_before_they_are_launched(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.triton.precompile_without_a_device"],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "noted 4",  # without a launch, and the same one twice counts once
        "compiled 3 loaded loaded loaded",
        "launched launched launched launched",
        "refused True",
    ]
