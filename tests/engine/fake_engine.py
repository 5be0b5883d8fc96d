"""An engine loop around the real scheduler, with a runner that only remembers what was written where.

Like keys and values, what it writes for a position depends on all tokens up to it. Every chunk reads its
whole prefix back through its block table: a stale block, wrong sharing or an off-by-one trips an assertion.
The next token is a hash of the prefix, so that the output of a request is known without an engine.
"""

from collections import deque
from dataclasses import dataclass, field
from itertools import accumulate
from zlib import crc32

from engine.blocks import BlockPool
from engine.estimator import StepLoad, StepTimeModel
from engine.messages import Request, SamplingParams
from engine.prefix import PrefixCache
from engine.scheduler import Chunk, Plan, Scheduler, SchedulerConfig
from engine.sequence import Sequence, State

END, TOOL, VOCAB = 0, 1, 24


def request(id: int, prompt: list[int], max_tokens: int = 8, **fields: object) -> Request:
    params = SamplingParams(max_tokens=max_tokens)
    return Request(id=id, prompt=prompt, params=params, **fields)  # type: ignore[arg-type]


def next_token(prefix: list[int], choice: int) -> int:
    return crc32(bytes([choice, *prefix])) % VOCAB


def forced_tokens(prefix: list[int]) -> list[int]:
    """What the tool answers: one to five tokens, never one that ends or calls again."""
    seed = crc32(bytes(prefix))
    return [2 + (seed >> shift) % 5 for shift in range(1 + seed % 5)]


def reference(request: Request, choice: int, max_model_len: int, tools: bool = True) -> list[int]:
    """The prompt and everything that must follow it, as a pure function."""
    tokens = list(request.prompt)
    limit = min(len(tokens) + request.params.max_tokens, max_model_len)
    while len(tokens) < limit:
        tokens.append(next_token(tokens, choice))
        if tokens[-1] == END:
            break
        if tokens[-1] == TOOL and tools:
            tokens += forced_tokens(tokens)[: limit - len(tokens)]
    return tokens


@dataclass
class Launch:
    """A step in the device's queue, with what the host staged for it."""

    plan: Plan
    staged: list[list[int]]  # per chunk: the host's tokens up to its end, those in flight missing
    rebuilt: dict[int, list[int]]  # row -> tokens its state is built from


def keys(prefix: list[int]) -> list[int]:
    """What is written for each position: a hash of the tokens up to it."""
    return list(accumulate(prefix, lambda before, token: crc32(bytes([token]), before), initial=0))[1:]


def seconds(load: StepLoad) -> float:
    """What a step takes on a device that never was."""
    rows, kv_tokens, tokens, work = load
    return 1e-3 + 1e-5 * rows + 1e-6 * kv_tokens + 2e-4 * tokens + 1e-6 * work


def teach(times: StepTimeModel) -> None:
    """Lets a scheduler know that device."""
    for step in range(40):
        times.observe(load := StepLoad(1 + step % 7, 40 * step), seconds(load))
        times.observe(load := StepLoad(1 + step % 5, 20 * step, 4 + step % 9, step), seconds(load))


class FakeRunner:
    """Keeps what was written to every slot, and per row the tokens that its state stands for."""

    def __init__(self, pool: BlockPool) -> None:
        self.size = pool.block_size
        self.memory: list[list[int | None]] = [[None] * pool.block_size for _ in range(pool.num_blocks)]
        self.rows: dict[int, list[int]] = {}

    def grow(self, num_blocks: int) -> None:
        self.memory += [[None] * self.size for _ in range(num_blocks - len(self.memory))]

    def stage(self, plan: Plan) -> Launch:
        fresh = {*plan.admitted, *plan.extended}
        rebuilt = {c.row: list(c.sequence.tokens) for c in plan.chunks if c.sequence in fresh}
        staged = [chunk.sequence.tokens[: chunk.start + chunk.length] for chunk in plan.chunks]
        return Launch(plan, staged, rebuilt)

    def execute(self, launch: Launch) -> list[tuple[Chunk, int]]:
        self.rows.update(launch.rebuilt)
        prefixes = []
        for chunk, staged in zip(launch.plan.chunks, launch.staged, strict=True):
            prefix = list(self.rows[chunk.row]) if chunk.feeds_back else staged
            assert len(prefix) == chunk.start + chunk.length, "a chunk's tokens are missing"
            assert prefix[: len(staged)] == staged, "the row's state is someone else's"
            for position, key in enumerate(keys(prefix)[chunk.start :], chunk.start):
                self.memory[chunk.block_table[position // self.size]][position % self.size] = key
            prefixes.append(prefix)
        pairs = zip(launch.plan.chunks, prefixes, strict=True)
        return [(chunk, self._sample(chunk, prefix)) for chunk, prefix in pairs if self._reads(chunk, prefix)]

    def _reads(self, chunk: Chunk, prefix: list[int]) -> bool:
        """The chunk must see its own prefix and nothing else. Whether it samples."""
        seen = [self.memory[chunk.block_table[p // self.size]][p % self.size] for p in range(len(prefix))]
        wrong = [p for p, key in enumerate(keys(prefix)) if seen[p] != key]
        assert not wrong, f"stream {chunk.sequence.id} reads something else at positions {wrong}"
        return chunk.samples

    def _sample(self, chunk: Chunk, prefix: list[int]) -> int:
        history = self.rows[chunk.row]
        assert history == prefix, "the row's state does not stand for the tokens before the sampled one"
        history.append(next_token(prefix, chunk.sequence.choice))
        return history[-1]


@dataclass
class FakeEngine:
    """The loop of the real engine, one call of `step` per plan, with `depth` steps of lookahead."""

    config: SchedulerConfig
    num_blocks: int = 64
    block_size: int = 4
    prefix_caching: bool = True
    depth: int = 1
    tools: bool = True
    max_blocks: int | None = None
    now: float = 0.0
    sequences: dict[int, Sequence] = field(default_factory=dict)
    plans: list[Plan] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.pool = BlockPool(self.num_blocks, self.block_size, max_blocks=self.max_blocks)
        self.prefix = PrefixCache(self.pool, self.prefix_caching)
        self.scheduler = Scheduler(self.config, self.pool, self.prefix)
        self.runner = FakeRunner(self.pool)
        self.in_flight: deque[Launch] = deque()

    def submit(self, request: Request) -> list[Sequence]:
        made = Sequence.of(request)
        for sequence in made:
            self.scheduler.add(sequence, self.now)
            self.sequences[sequence.id] = sequence
        return made

    def running(self) -> list[Sequence]:
        return [s for s in self.scheduler.unfinished() if s.state is State.RUNNING]

    def step(self, abort_before_launch: int | None = None) -> Plan | None:
        """Plans and launches a step, then looks at the results of those beyond the lookahead."""
        self.now += 1
        if self.pool.wanted:
            self.grow()
        before = self.running()
        plan = self.scheduler.plan(self.now)
        self.scheduler.check()
        if plan is not None:
            self._verify(plan, before)
            self.plans.append(plan)
            if abort_before_launch is not None:
                self.scheduler.abort(abort_before_launch)
            self.in_flight.append(self.runner.stage(plan))
            self.scheduler.launched(plan)
            self.scheduler.times.observe(plan.load, seconds(plan.load))
        elif not self.in_flight and self.scheduler.unfinished() and not self.pool.wanted:
            wake_at = self.scheduler.wake_at()
            assert wake_at is not None and wake_at > self.now, "nothing runs, and nothing is waited for"
            self.now = wake_at - 1
        if self.in_flight and (plan is None or len(self.in_flight) > self.depth):
            self.collect()
        self.scheduler.check()
        return plan

    def grow(self) -> None:
        """By as little as is needed, so that it happens often; behind everything in flight."""
        while self.in_flight:
            self.collect()
        blocks = max(self.pool.num_blocks, self.pool.wanted) + 1
        assert blocks <= self.pool.max_blocks
        self.runner.grow(blocks)
        self.pool.grow(blocks)

    def collect(self) -> None:
        for chunk, token in self.runner.execute(self.in_flight.popleft()):
            sequence = chunk.sequence
            if not self.scheduler.token(chunk, token):
                continue
            if token == TOOL and self.tools:
                room = sequence.limit - len(sequence.tokens)
                self.scheduler.extend(sequence, forced_tokens(sequence.tokens)[:room])
            if token == END or len(sequence.tokens) == sequence.limit:
                self.scheduler.finish(sequence)

    def drain(self) -> None:
        """Runs until everything has finished, within a bounded number of steps."""
        bound = 50 + 10 * sum(s.limit for s in self.scheduler.unfinished()) + 2 * self.pool.max_blocks
        for _ in range(bound):
            if not self.scheduler.unfinished() and not self.in_flight:
                return
            self.step()
        raise AssertionError(f"unfinished after {bound} steps: {self.scheduler.stats()}")

    def expected(self, sequence: Sequence) -> list[int]:
        return reference(sequence.request, sequence.choice, self.config.max_model_len, self.tools)

    def _verify(self, plan: Plan, before: list[Sequence]) -> None:
        """What every plan promises, whatever the policy."""
        lengths = [chunk.length for chunk in plan.chunks]
        planned = {chunk.sequence for chunk in plan.chunks}
        assert plan.num_tokens == sum(lengths) <= self.config.max_batched_tokens
        self._verify_load(plan)
        assert min(lengths) >= 1 and max(lengths) <= (self.config.max_chunk or max(lengths))
        assert len(planned) == len({chunk.row for chunk in plan.chunks}) == len(plan.chunks)
        assert not planned & set(plan.preempted)
        assert set(plan.admitted) <= planned and set(plan.extended) <= planned
        assert all(c.length == 1 and c.samples for c in plan.chunks if c.feeds_back)
        for sequence in before:
            assert (
                sequence in planned
                or sequence in plan.preempted
                or self.pool.wanted
                or sequence.reach >= sequence.limit
                or plan.num_tokens == self.config.max_batched_tokens
                or (self.config.prefill_stretch and plan.load.rows + plan.load.prefill_tokens > 0)
            ), f"stream {sequence.id} was passed over"
        if self.config.batching == "single":
            assert len(plan.chunks) == 1

    def _verify_load(self, plan: Plan) -> None:
        """The load says what is in the chunks; those of single positions come first."""
        rows, kv_tokens, tokens, work = plan.load
        single, longer = plan.chunks[:rows], plan.chunks[rows:]
        assert all(chunk.length == 1 and chunk.samples for chunk in single)
        assert kv_tokens == sum(chunk.start + 1 for chunk in single)
        assert tokens == sum(chunk.length for chunk in longer)
        assert work == sum(p for chunk in longer for p in range(chunk.start, chunk.start + chunk.length))
