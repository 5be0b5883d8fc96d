"""Shared by all tests."""

import pytest


@pytest.fixture(autouse=True, scope="session")
def one_torch_thread() -> None:
    """Tiny tensors gain nothing from threads, and waiting for each other's turn on a busy machine costs
    much.
    """
    import torch

    torch.set_num_threads(1)
