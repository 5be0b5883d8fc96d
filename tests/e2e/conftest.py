"""Real servers with the real engine on tiny models. A start costs seconds, so modules share one."""

import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.app.server_process import SERVER, Server, serving
from tests.e2e.api import Api, connected
from tests.engine.checkpoints import write_checkpoint


@contextlib.contextmanager
def start(model: Path, *flags: str) -> Iterator[Server]:
    """A ready server in float32 with one thread, so that several tests at once do not hinder each other."""
    with serving(SERVER, "--model", str(model), "--dtype", "float32", "--threads", "1", *flags) as server:
        yield server


@pytest.fixture(scope="session")
def slow_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of the newest generation, large enough that a test can act between two steps."""
    return write_checkpoint(
        tmp_path_factory.mktemp("slow"),
        "G5",
        n_layer=8,
        n_embd=256,
        n_head=4,
        n_kv_head=2,
        sequence_len=1024,
    )


@pytest.fixture
async def api(server: Server) -> AsyncIterator[Api]:
    """A client of the module's `server`."""
    async with connected(server) as api:
        yield api
