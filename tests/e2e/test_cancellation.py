"""A client that leaves the real server: its row and blocks are free within a step, and nobody else notices.

The engine process is held still while the client leaves, so that it is known what was done before and after.
"""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.app.server_process import Server
from tests.e2e.api import Answer, Api, connected, random_prompt, stopped, until
from tests.e2e.conftest import start
from tests.tiers import tiered

CHUNK = 8
ROWS = 3
# A step may be under way when the client leaves, and the next one may be queued behind it.
STEPS_LATE = 3
LENGTH = 120  # tokens of those that stay
OTHERS = [
    {"prompt": random_prompt(20 + k, seed=k), "max_tokens": LENGTH, "seed": k, "ignore_eos": True}
    for k in range(ROWS - 1)
]


@pytest.fixture(scope="module")
def server(slow_model: Path) -> Iterator[Server]:
    flags = ("--batch-size", str(ROWS), "--prefill-chunk", str(CHUNK), "--no-enable-prefix-caching")
    with start(slow_model, *flags) as server:
        yield server


async def leave(api: Api, task: "asyncio.Task[Answer]") -> None:
    """Closes a request's connection and waits until the front end has noticed."""
    before = await api.stats()
    task.cancel()
    await asyncio.wait({task})
    await api.until_stats(lambda stats: stats["open_answers"] == before["open_answers"] - 1)


def others(api: Api) -> "list[asyncio.Task[Answer]]":
    return [asyncio.create_task(api.complete(**other)) for other in OTHERS]  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def undisturbed(server: Server) -> list[tuple[object, ...]]:
    """What the others get when nobody joins or leaves."""

    async def answers() -> list[Answer]:
        async with connected(server) as api:
            return list(await asyncio.gather(*others(api)))

    result = asyncio.run(answers())
    assert all(answer.done and len(answer.tokens) == LENGTH for answer in result)
    return [answer.content for answer in result]


async def check_freed(api: Api, disconnects: float) -> None:
    """Nothing is held any more, by both accounts."""
    stats = await api.until_idle()
    assert (stats["running"], stats["waiting"], stats["blocks_used"]) == (0, 0, 0)
    for name in ("running", "waiting"):
        assert await api.metric(f"vllm:num_requests_{name}") == 0
    assert await api.metric("vllm:kv_cache_usage_perc") == 0
    assert await api.metric("fastpath_disconnects_total") == disconnects + 1


@pytest.mark.parametrize("stream", tiered([True, False], {0}), ids=["stream", "plain"])
@pytest.mark.parametrize("phase", ["prefilling", "decoding"])
async def test_row_and_blocks_are_free_within_a_step(
    api: Api, server: Server, phase: str, stream: bool
) -> None:
    (engine,) = server.children()
    disconnects = await api.metric("fastpath_disconnects_total")
    start = await api.until_idle()
    length, max_tokens = (960, 8) if phase == "prefilling" else (8, 900)
    prompt = random_prompt(length, seed=1)
    task = asyncio.create_task(api.complete(prompt, stream=stream, max_tokens=max_tokens, ignore_eos=True))

    def underway(stats: dict[str, int]) -> bool:
        made = stats["generated_tokens"] - start["generated_tokens"]
        return stats["steps"] > start["steps"] + 2 if phase == "prefilling" else made > 2

    await api.until_stats(underway)
    with stopped(engine):
        await api.stats()
        held = await api.stats()
        made = held["generated_tokens"] - start["generated_tokens"]
        assert (held["running"], made > 0) == (1, phase == "decoding")
        assert held["blocks_used"] > 0
        assert await api.metric("vllm:num_requests_running") == 1
        await leave(api, task)
    freed = await api.until_idle()
    assert freed["steps"] - held["steps"] <= STEPS_LATE
    assert freed["generated_tokens"] - held["generated_tokens"] <= 2
    await check_freed(api, disconnects)


@pytest.mark.parametrize("stream", tiered([True, False], {0}), ids=["stream", "plain"])
async def test_leaving_the_queue(
    api: Api, server: Server, undisturbed: list[tuple[object, ...]], stream: bool
) -> None:
    (engine,) = server.children()
    disconnects = await api.metric("fastpath_disconnects_total")
    blocker = asyncio.create_task(api.complete(random_prompt(9, seed=9), max_tokens=300, ignore_eos=True))
    staying = others(api)
    await api.until_stats(lambda stats: stats["running"] == ROWS)
    queued = asyncio.create_task(api.complete(random_prompt(30, seed=3), stream=stream, max_tokens=9))
    await api.until_stats(lambda stats: stats["waiting"] == 1)
    assert await api.metric("vllm:num_requests_waiting") == 1
    with stopped(engine):
        held = await api.stats()
        assert (held["running"], held["waiting"]) == (ROWS, 1)
        await leave(api, queued)
    freed = await api.until_stats(lambda stats: stats["waiting"] == 0)
    assert freed["running"] == ROWS
    assert freed["prompt_tokens"] == held["prompt_tokens"], "it was admitted after it had left"
    assert [answer.content for answer in await asyncio.gather(*staying)] == undisturbed
    assert len((await blocker).tokens) == 300
    await check_freed(api, disconnects)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "plain"])
@pytest.mark.parametrize("phase", ["prefilling", "decoding"])
async def test_others_get_the_same_bytes(
    api: Api, undisturbed: list[tuple[object, ...]], phase: str, stream: bool
) -> None:
    disconnects = await api.metric("fastpath_disconnects_total")
    progress = [Answer() for _ in OTHERS]
    staying = [
        asyncio.create_task(api.complete(**other, into=answer))  # type: ignore[arg-type]
        for other, answer in zip(OTHERS, progress, strict=True)
    ]
    await until(lambda: all(answer.tokens for answer in progress))
    length, max_tokens = (960, 8) if phase == "prefilling" else (8, 900)
    leaving = asyncio.create_task(
        api.complete(random_prompt(length, seed=2), stream=stream, max_tokens=max_tokens, ignore_eos=True)
    )
    await api.until_stats(lambda stats: stats["running"] == ROWS)
    await leave(api, leaving)
    assert not all(task.done() for task in staying), "the others ended before anybody left"
    assert [answer.content for answer in await asyncio.gather(*staying)] == undisturbed
    await check_freed(api, disconnects)


async def test_a_choice_of_many(api: Api) -> None:
    """All rows of a request with several choices go at once, also those that still wait."""
    disconnects = await api.metric("fastpath_disconnects_total")
    task = asyncio.create_task(
        api.complete(random_prompt(8, seed=4), max_tokens=900, n=ROWS + 2, ignore_eos=True)
    )
    await api.until_stats(lambda stats: stats["running"] == ROWS and stats["waiting"] == 2)
    await leave(api, task)
    await check_freed(api, disconnects)
