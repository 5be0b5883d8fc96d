"""Random histories: whatever is submitted, aborted, extended or preempted when, the tokens are the same."""

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.scheduler import SchedulerConfig
from engine.sequence import Sequence, State
from tests.engine.fake_engine import FakeEngine, request, teach

MAX_LEN = 28
# Few distinct beginnings, so that prefixes are shared wholly, partly and across block borders.
PROMPTS = st.builds(
    lambda family, length, tail: [family + (i % 3) for i in range(length)] + tail,
    st.sampled_from([2, 2, 3]),
    st.integers(1, 18),
    st.lists(st.integers(2, 23), max_size=4),
)


class SchedulerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.next_id = 0
        self.aborted: set[Sequence] = set()
        self.lost = False

    @initialize(
        rows=st.integers(1, 6),
        spare=st.integers(0, 12),
        max_chunk=st.sampled_from([None, None, 1, 3, 7]),
        batching=st.sampled_from(["continuous", "continuous", "continuous", "static", "single"]),
        timeout=st.sampled_from([0.0, 0.0, 3.5]),
        blocks=st.integers(3, 30),
        block_size=st.sampled_from([1, 2, 4]),
        caching=st.booleans(),
        depth=st.sampled_from([0, 1, 1, 1, 2]),
        stretch=st.sampled_from([None, 1.0, 1.85]),
        growth=st.sampled_from([0, 0, 1, 10, 200]),
    )
    def start(  # type: ignore[no-untyped-def]
        self, rows, spare, max_chunk, batching, timeout, blocks, block_size, caching, depth, stretch, growth
    ) -> None:
        config = SchedulerConfig(rows, rows + spare, MAX_LEN, batching, max_chunk, timeout, stretch)
        self.engine = FakeEngine(config, blocks, block_size, caching, depth, max_blocks=blocks + growth)
        self.no_memory = 0  # times that everything had to start over
        teach(self.engine.scheduler.times)

    @rule(
        prompt=PROMPTS,
        max_tokens=st.integers(1, 20),
        n=st.sampled_from([1, 1, 1, 2, 3]),
        priority=st.sampled_from([0, 0, 0, 1, -1]),
        salt=st.sampled_from([b"", b"", b"other"]),
    )
    def submit(self, prompt: list[int], max_tokens: int, n: int, priority: int, salt: bytes) -> None:
        made = request(self.next_id, prompt, max_tokens, n=n, priority=priority, cache_salt=salt)
        pool = self.engine.pool
        limit = min(len(prompt) + max_tokens, self.engine.scheduler.config.max_model_len)
        if limit <= len(prompt) or limit - 1 > (pool.max_blocks - 1) * pool.block_size:
            with pytest.raises(ValueError, match="at least one" if self.lost else "KV blocks"):
                self.engine.submit(made)
        else:
            self.engine.submit(made)
        self.next_id += n

    @rule()
    def find_no_memory(self) -> None:
        """As when a launch failed for lack of memory: everything starts over, in smaller steps."""
        self.no_memory += 1
        self.engine.scheduler.budget.shrink()
        self.engine.scheduler.recompute(keep_cache=True)

    @precondition(lambda self: self.engine.pool.may_grow)
    @rule()
    def lose_growth(self) -> None:
        """As when growth found no memory: what cannot be served any more ends, the others go on."""
        for sequence in self.engine.scheduler.settle():
            self.engine.scheduler.finish(sequence)
            self.aborted.add(sequence)
        self.lost = True

    @rule(count=st.integers(1, 6))
    def step(self, count: int) -> None:
        for _ in range(count):
            self.engine.step()

    @precondition(lambda self: self.engine.in_flight)
    @rule()
    def look(self) -> None:
        """The results arrive before the next plan, as when the loop had a moment to spare."""
        self.engine.collect()

    @precondition(lambda self: self.engine.scheduler.unfinished())
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        sequence = self._pick(data)
        assert self.engine.scheduler.abort(sequence.id) is sequence
        assert self.engine.scheduler.abort(sequence.id) is None
        self.engine.scheduler.finish(sequence)

    @precondition(lambda self: self.engine.scheduler.unfinished())
    @rule(data=st.data())
    def abort_between_plan_and_launch(self, data: st.DataObject) -> None:
        sequence = self._pick(data)
        if self.engine.step(abort_before_launch=sequence.id) is None:
            self.engine.scheduler.abort(sequence.id)

    @precondition(lambda self: self.engine.scheduler.unfinished())
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        self.engine.scheduler.finish(self._pick(data), poisoned=True)

    @invariant()
    def counts_reconcile(self) -> None:
        if not hasattr(self, "engine"):
            return
        self.engine.scheduler.check()
        stats, pool = self.engine.scheduler.stats(), self.engine.pool
        assert stats.blocks_used + stats.blocks_cached + stats.blocks_free == pool.usable
        assert stats.running <= self.engine.config.max_rows
        if pool.may_grow and not self.no_memory:
            assert not stats.preemptions, "the pool could have grown instead"
        assert stats.cached_tokens <= stats.prefix_queries <= stats.prompt_tokens

    @invariant()
    def tokens_are_a_function_of_the_prompt(self) -> None:
        for sequence in self.engine.sequences.values() if hasattr(self, "engine") else ():
            expected = self.engine.expected(sequence)
            assert sequence.tokens == expected[: len(sequence.tokens)]
            if sequence.state is State.FINISHED and sequence not in self.aborted:
                # Where growth was lost, a limit may have become that of the pool.
                assert len(sequence.tokens) == len(expected) or (
                    self.lost and len(sequence.tokens) == sequence.limit
                )

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        self.engine.drain()
        self.tokens_are_a_function_of_the_prompt()
        assert all(s.state is State.FINISHED for s in self.engine.sequences.values())
        assert self.engine.pool.used == 0
        self.engine.prefix.clear()
        self.engine.scheduler.check()
        assert self.engine.pool.free_cached == 0

    def _pick(self, data: st.DataObject) -> Sequence:
        sequence = data.draw(st.sampled_from(self.engine.scheduler.unfinished()))
        self.aborted.add(sequence)
        return sequence


SchedulerMachine.TestCase.settings = settings(
    max_examples=100,
    stateful_step_count=30,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestSchedulerMachine = SchedulerMachine.TestCase
