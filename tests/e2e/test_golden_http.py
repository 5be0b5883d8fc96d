"""Upstream's greedy tokens through HTTP: in any company, chunk and block size, cache state, and preempted."""

import asyncio
import json
from collections.abc import Iterator

import pytest

from tests.app.server_process import Server
from tests.e2e.api import Answer, Api
from tests.e2e.conftest import start
from tests.engine.golden import GOLDEN
from tests.tiers import tiered

# Every chunk size and every block size once; 17 usable blocks hold the longest request and little else.
# Each is a server to start. Every run has two of them, which set all three flags; an engine by itself comes
# by all of these sizes in every run, in tests/engine/test_metamorphic.py.
SERVERS = {
    "chunk 1, blocks of 32": ("--prefill-chunk", "1", "--block-size", "32"),
    "chunk 7, blocks of 1": ("--prefill-chunk", "7", "--block-size", "1"),
    "chunk 64, blocks of 16": ("--prefill-chunk", "64", "--block-size", "16"),
    "few blocks": ("--num-blocks", "18", "--block-size", "16"),
}

Case = tuple[list[int], list[int]]  # prompt, greedy tokens


@pytest.fixture(
    scope="module",
    params=tiered([((golden, flags),) for golden in ("g1", "g5") for flags in SERVERS], {3, 5}),
    ids=lambda param: f"{param[0]}, {param[1]}",
)
def golden(request: pytest.FixtureRequest) -> Iterator[tuple[str, str, Server]]:
    folder, flags = request.param
    with start(GOLDEN / folder, *SERVERS[flags]) as server:
        yield folder, flags, server


@pytest.fixture
def server(golden: tuple[str, str, Server]) -> Server:
    return golden[2]


@pytest.fixture
def cases(golden: tuple[str, str, Server]) -> list[Case]:
    data = json.loads((GOLDEN / golden[0] / "expected.json").read_text())
    return [(case["prompt"], case["greedy"]) for case in data["prompts"]]


async def greedy(api: Api, case: Case, *, stream: bool, salt: str) -> Answer:
    prompt, tokens = case
    answer = await api.complete(
        prompt, stream=stream, max_tokens=len(tokens), temperature=0, ignore_eos=True, cache_salt=salt
    )
    assert answer.tokens == tokens
    assert answer.finish == "length" and answer.done
    assert answer.usage["completion_tokens"] == len(tokens)
    return answer


async def test_alone_with_a_cold_and_a_warm_cache(api: Api, cases: list[Case]) -> None:
    for k, case in enumerate(cases):
        cold = await greedy(api, case, stream=True, salt=f"alone {k}")
        warm = await greedy(api, case, stream=False, salt=f"alone {k}")
        assert cold.text == warm.text
        assert cold.cached == 0
        assert warm.cached > 0 or len(case[0]) <= 32  # only whole blocks are kept


async def test_all_at_once(api: Api, cases: list[Case], golden: tuple[str, str, Server]) -> None:
    before = await api.metric("vllm:num_preemptions_total")
    for _ in ("cold", "warm"):
        asks = [greedy(api, c, stream=stream, salt="together") for stream in (True, False) for c in cases]
        await asyncio.gather(*asks)
    preemptions = await api.metric("vllm:num_preemptions_total") - before
    assert (preemptions > 0) == (golden[1] == "few blocks")
    stats = await api.until_idle()
    assert stats["blocks_used"] == 0
