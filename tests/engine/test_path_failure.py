"""Kernels of a decode path that give up while serving: what their steps computed counts for nothing, and no
client notices. On a device that is made up (tests.engine.made_up_gpu), where wrong keys give wrong tokens.
"""

import asyncio
import logging
from collections.abc import Iterator

import pytest

from engine.faults import PathFailed, is_device_lost, is_out_of_memory
from engine.gpu.paths import Paths
from engine.messages import EngineStats, SamplingParams
from engine.model import GPT
from engine.prefix import PrefixCache
from engine.scheduler import Scheduler
from tests.engine.made_up_gpu import Kernels, made_up, serve_with, tiny_model
from tests.engine.serving import Ask, answers, started
from tests.seed.test_k_stubs import FiveMethods


@pytest.fixture(autouse=True)
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with made_up(monkeypatch):
        yield


@pytest.fixture(scope="module")
def model() -> GPT:
    return tiny_model()


def ask(prompt: list[int], new: int) -> Ask:
    return Ask(prompt, SamplingParams(max_tokens=new, ignore_eos=True))


# More than there are rows, so that sequences join while others decode; some prompts take several steps.
ASKS = [
    ask([(first + 7 * place) % 400 for place in range(length)], new)
    for length, new, first in ((40, 20, 1), (5, 26, 2), (70, 9, 3), (16, 22, 4), (15, 12, 5), (33, 3, 6))
]

Tokens = list[list[int]]


def serve(
    model: GPT, monkeypatch: pytest.MonkeyPatch, kernels: Kernels | None, lookahead: bool
) -> tuple[Tokens, EngineStats]:
    """All asks at once, and then, for the prefix cache, each with its answer as a prompt."""

    def paths() -> Paths | None:
        if kernels is None:
            return None
        return Paths(kernels.failed, kernels, {1: "persistent", 2: "chained", 4: "chained"})

    async def run() -> tuple[Tokens, EngineStats]:
        serve_with(monkeypatch, paths)
        engine = await started(model, FiveMethods(), num_blocks=200, lookahead=lookahead)
        first = [answer.tokens for (answer,) in await answers(engine, ASKS, together=True)]
        again = [ask([*asked.prompt, *tokens], 4) for asked, tokens in zip(ASKS, first, strict=True)]
        second = [answer.tokens for (answer,) in await answers(engine, again, together=True)]
        engine.core.scheduler.check()
        stats = engine.stats()
        await engine.close()
        return first + second, stats

    return asyncio.run(run())


@pytest.mark.parametrize("lookahead", [True, False])
def test_a_failure_at_any_step_changes_no_token(
    model: GPT, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, lookahead: bool
) -> None:
    expected, plain = serve(model, monkeypatch, None, lookahead)
    assert [len(tokens) for tokens in expected[: len(ASKS)]] == [a.params.max_tokens for a in ASKS]
    whole = Kernels()
    tokens, stats = serve(model, monkeypatch, whole, lookahead)
    assert tokens == expected and stats.path_failures == 0 and stats.cached_tokens == plain.cached_tokens > 0
    assert whole.launches > 20
    for step in range(whole.launches):
        kernels = Kernels(fails_at=step)
        caplog.clear()
        with caplog.at_level(logging.WARNING, "fastpath.engine"):
            tokens, stats = serve(model, monkeypatch, kernels, lookahead)
        assert tokens == expected, step
        assert stats.path_failures == 1 and "gave up" in caplog.text, step
        assert caplog.text.count("gave up") == 1 and not kernels.failed.item()
        # The step that failed and at most the one that had been launched behind it.
        assert step + 1 <= kernels.launches <= step + 1 + lookahead


@pytest.mark.parametrize("fault", ["cache", "rows", "tokens"])
def test_what_is_not_put_right_would_be_noticed(
    model: GPT, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """A prefix cache that keeps its blocks, sequences that go on in theirs, tokens that count."""
    expected, _ = serve(model, monkeypatch, None, True)
    if fault == "cache":
        monkeypatch.setattr(PrefixCache, "clear", lambda self: None)
    elif fault == "rows":
        monkeypatch.setattr(Scheduler, "_preempt", lambda self, victim: victim)
    else:
        monkeypatch.setattr("engine.gpu.runner._LOST", 1 << 20)
    seen = []
    for step in (3, 8, 12):
        try:
            seen.append(serve(model, monkeypatch, Kernels(fails_at=step), True)[0])
        except RuntimeError:  # the scheduler's own check, or the engine's end
            seen.append([])
    assert any(tokens != expected for tokens in seen)


def test_it_is_neither_a_lost_device_nor_a_lack_of_memory() -> None:
    assert not is_device_lost(PathFailed()) and not is_out_of_memory(PathFailed())
