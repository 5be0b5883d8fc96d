"""Kernels run on the GPU where there is one, else in Triton's interpreter on the CPU.

Triton decides when it is imported, so this must come first: it is the folder's conftest for that reason.
"""

import importlib.util
import os
import sys
from pathlib import Path

import pytest
import torch

from tests.optional import missing

TRITON = importlib.util.find_spec("triton") is not None

if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    if "triton.language" in sys.modules:
        raise RuntimeError("triton was imported before TRITON_INTERPRET could be set")
    os.environ["TRITON_INTERPRET"] = "1"


if TRITON and os.environ.get("TRITON_INTERPRET") == "1":
    from tests.kernels.triton.mended_interpreter import mend_interpreter
    from tests.kernels.triton.quick_interpreter import quicken_interpreter

    quicken_interpreter()
    mend_interpreter()


class _Absent(pytest.File):
    def collect(self) -> list[pytest.Item]:
        return [_AbsentItem.from_parent(self, name="needs_triton")]


class _AbsentItem(pytest.Item):
    def runtest(self) -> None:
        missing("triton is not installed")


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.File | None:
    """Stands for a test module that could not even be imported."""
    return None if TRITON else _Absent.from_parent(parent, path=module_path)
