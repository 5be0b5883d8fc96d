"""The benchmark of the HTTP layer on tiny loads: every part runs to its end, and says what can be checked."""

import pytest

from benchmarks.http.goodput import CAPACITY, offered
from benchmarks.http.health import health
from benchmarks.http.idle import BUSY, idle
from benchmarks.http.soak import PARTS, soak
from tests.engine.golden import G1


@pytest.mark.slow
async def test_idle_streams() -> None:
    row = await idle(64, 0.3)
    assert row["idle_streams"] == 64 and row["busy_streams"] == BUSY
    assert 0 < float(str(row["kib_per_idle_stream"])) < 500


async def test_what_is_beyond_the_capacity_is_refused_or_good() -> None:
    row = await offered(2.0, 2.0, ["--queue-timeout", "0.3"])
    assert row["broken"] == 0 and row["without_retry_after"] == 0
    assert 0 < float(str(row["goodput_per_second"])) <= 1.3 * CAPACITY


@pytest.mark.slow
async def test_health_beside_prompts() -> None:
    row = await health(str(G1), 1.0, 200)
    assert int(str(row["prompts"])) > 0


@pytest.mark.slow
async def test_a_soak_of_seconds() -> None:
    rows = await soak(str(G1), 6.0)
    assert [row["case"] for row in rows] == ["soak"] * PARTS + ["soak, quiet before", "soak, quiet after"]
    assert rows[-1]["blocks_used"] == rows[-2]["blocks_used"] == 0
