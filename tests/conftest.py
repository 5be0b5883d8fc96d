"""Shared by all tests."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    # Triton decides when it is imported: without a GPU its kernels run in the interpreter.
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True, scope="session")
def one_torch_thread() -> None:
    """Tiny tensors gain nothing from threads, and waiting for each other's turn on a busy machine costs
    much.
    """
    torch.set_num_threads(1)
