"""Servers that the fault cases share, and the check that runs around every case."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.checkpoints import write_checkpoint
from tests.faults.harness import Service, launch, unharmed


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights with a context of 256 tokens: a start takes seconds, an answer milliseconds."""
    return write_checkpoint(tmp_path_factory.mktemp("tiny"), "G5")


@pytest.fixture(scope="session")
def steady_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, a little larger, with room for long answers: a test can act between two steps."""
    return write_checkpoint(
        tmp_path_factory.mktemp("steady"),
        "G5",
        n_layer=6,
        n_embd=256,
        n_head=4,
        n_kv_head=2,
        sequence_len=1024,
    )


@pytest.fixture(scope="session")
def plain_service(tiny_model: Path) -> Iterator[Service]:
    """The server that the cases of bad bodies and fields share."""
    with launch(tiny_model, "--max-model-len", "256") as service:
        yield service


@pytest.fixture
def service(plain_service: Service) -> Service:
    """The server of a case; modules with another one define this fixture anew."""
    return plain_service


@pytest.fixture(autouse=True)
def nothing_broke(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every case that is given a `service` runs inside `unharmed`; the others say it themselves."""
    if "service" not in request.fixturenames:
        yield
        return
    with unharmed(request.getfixturevalue("service")):
        yield
