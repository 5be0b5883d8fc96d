"""Shared by all tests."""

import contextlib
import os

# Before torch reads it, and for the servers that tests start: as many test processes as there are cores leave
# no second core to any, and threads that wait for each other then wait for the clock.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

# A check in a module that several tests share shows its values when it fails, as one in a test does.
pytest.register_assert_rewrite(
    "tests.app", "tests.e2e", "tests.engine", "tests.faults", "tests.gpu", "tests.kernels", "tests.static"
)

with contextlib.suppress(ImportError):  # the tests of a GPU do without it
    from hypothesis import HealthCheck, settings

    # Property tests try the same examples in every run, and a busy machine does not fail them.
    settings.register_profile(
        "fastpath", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
    )
    settings.load_profile("fastpath")

if not torch.cuda.is_available():
    # Triton decides when it is imported: without a GPU its kernels run in the interpreter.
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True, scope="session")
def one_torch_thread() -> None:
    """Tiny tensors gain nothing from threads, and waiting for each other's turn on a busy machine costs
    much.
    """
    torch.set_num_threads(1)
