"""Which sequences compute which positions in the next step.

The loop that owns a scheduler may run ahead of the tokens it has seen, normally by one step:

    plan = scheduler.plan(now)              # step N+1
    scheduler.launched(plan)                # queued on the device behind step N
    for chunk, token_id in results(N):      # those that sampled
        if scheduler.token(chunk, token_id):
            ...                             # finish(sequence), extend(sequence, ids) or nothing

Steps run strictly in launch order. Rows and blocks therefore go back at once, even while the step in flight
still writes them: whoever gets them next runs behind it.

Invariants: a running sequence holds blocks for its whole prompt from its admission on; `num_computed` counts
launched positions; with tokens in flight a running sequence wants one position at most. Of stop conditions
only the length limit is known here; of text and devices nothing.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from heapq import heappop, heappush

from engine.blocks import WRITE_OFF, BlockPool
from engine.messages import BatchingMode
from engine.plan import Chunk, Plan
from engine.prefix import PrefixCache
from engine.queue import WaitingQueue
from engine.sequence import Sequence, State

__all__ = ["Chunk", "Plan", "Scheduler", "SchedulerConfig", "SchedulerStats"]

MAX_PARTIAL_PREFILLS = 4
IMMUNE_AFTER = 2  # preemptions


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """max_rows: most sequences that run at once. max_batched_tokens: most positions in one step.
    max_model_len: most tokens of a sequence. max_chunk: most positions of one sequence in one step.
    batch_timeout: seconds that an idle engine waits for company while fewer than max_rows sequences wait.
    """

    max_rows: int
    max_batched_tokens: int
    max_model_len: int
    batching: BatchingMode = "continuous"
    max_chunk: int | None = None
    batch_timeout: float = 0.0

    def __post_init__(self) -> None:
        if self.max_rows < 1 or (self.max_chunk is not None and self.max_chunk < 1):
            raise ValueError("max_rows and max_chunk must be at least 1")
        if self.max_batched_tokens < self.max_rows:
            # The decoding rows alone could fill every step, and a prefill would never progress.
            raise ValueError(f"max_batched_tokens {self.max_batched_tokens} < max_rows {self.max_rows}")


@dataclass(frozen=True, slots=True)
class SchedulerStats:
    """Totals count from the start; prompt tokens count once, at their sequence's first admission."""

    running: int
    waiting: int
    blocks_used: int
    blocks_cached: int  # free ones that the prefix cache may serve again
    blocks_free: int  # free ones without content
    preemptions: int
    late_tokens: int
    prompt_tokens: int
    prefix_queries: int  # of those, looked up in the prefix cache
    cached_tokens: int  # of those, found there


class Scheduler:
    """Continuous, static or single batching of sequences over the blocks of one pool."""

    def __init__(self, config: SchedulerConfig, pool: BlockPool, prefix: PrefixCache) -> None:
        self.config = config
        self.pool = pool
        self.prefix = prefix
        self._waiting = WaitingQueue(config.batching, config.max_rows, config.batch_timeout)
        self._unfinished: dict[int, Sequence] = {}  # by stream id
        self._running: dict[int, Sequence] = {}  # by row, in order of admission
        self._free_rows = list(range(config.max_rows))  # a heap: low rows first keeps the batch dense
        self._arrivals = self._preemptions = self._late_tokens = 0
        self._prompt_tokens = self._prefix_queries = self._cached_tokens = 0

    def add(self, sequence: Sequence, now: float) -> None:
        """Queues a new sequence. Raises ValueError for one that could never finish, or is known already."""
        prompt, max_len = sequence.prompt_length, self.config.max_model_len
        limit = min(prompt + sequence.request.params.max_tokens, max_len)
        if prompt < 1:
            raise ValueError("an empty prompt gives nothing to start from")
        if limit <= prompt:
            raise ValueError(f"{prompt} prompt tokens of at most {max_len}: at least one must be sampled")
        need = self.pool.blocks_for(limit - 1)  # the last token is never read back
        if need > self.pool.usable:
            raise ValueError(
                f"{prompt} prompt tokens and up to {limit - prompt} sampled ones need {need} KV blocks of "
                f"{self.pool.block_size}; the pool has {self.pool.usable}"
            )
        if sequence.order >= 0 or sequence.id in self._unfinished:
            raise ValueError(f"stream {sequence.id} was added before")
        sequence.limit, sequence.arrival, sequence.order = limit, now, self._arrivals
        self._arrivals += 1
        self._unfinished[sequence.id] = sequence
        self._waiting.push(sequence)

    def plan(self, now: float) -> Plan | None:
        """The next step; None when nothing can be computed now. Call `launched` before planning again."""
        preempted = self._reserve()
        chunks = self._continue_running()
        # What a preemption has just freed is not for newcomers.
        admitted = [] if preempted else self._admit(now, chunks)
        if not chunks:
            return None
        extended = tuple(chunk.sequence for chunk in chunks if chunk.sequence.extended)
        for sequence in extended:
            sequence.extended = False
        num_tokens = sum(chunk.length for chunk in chunks)
        return Plan(tuple(chunks), tuple(admitted), extended, tuple(preempted), num_tokens)

    def wake_at(self) -> float | None:
        """When the gather window closes because of which the last `plan` was None."""
        return self._waiting.wake_at

    def launched(self, plan: Plan) -> None:
        """The plan's step is queued on the device: whatever is launched from now on runs behind it."""
        for chunk in plan.chunks:
            sequence = chunk.sequence
            if sequence.epoch == chunk.epoch:  # else it ended, or was extended, since it was planned
                sequence.num_computed += chunk.length
                sequence.in_flight += chunk.samples
                self.prefix.publish(sequence)

    def token(self, chunk: Chunk, token_id: int) -> bool:
        """Appends the token that `chunk` sampled. False for a late one, which nobody may see."""
        sequence = chunk.sequence
        if sequence.epoch != chunk.epoch:
            self._late_tokens += 1
            return False
        sequence.tokens.append(token_id)
        sequence.in_flight -= 1
        if sequence.state is State.RUNNING:
            self.prefix.publish(sequence)
        return True

    def extend(self, sequence: Sequence, ids: Iterable[int]) -> None:
        """Appends forced tokens behind the last seen one; they are computed as one chunk.

        Tokens in flight become void. What was computed for tokens already seen stays valid: with one step of
        lookahead that is everything. Raises ValueError beyond the sequence's limit or its end.
        """
        forced = list(ids)
        if sequence.state is State.FINISHED or len(sequence.tokens) + len(forced) > sequence.limit:
            raise ValueError(f"stream {sequence.id} has no room for {len(forced)} forced tokens")
        sequence.num_computed = min(sequence.num_computed, len(sequence.tokens))
        sequence.tokens += forced
        sequence.in_flight = 0
        sequence.epoch += 1
        sequence.extended = True

    def finish(self, sequence: Sequence, *, poisoned: bool = False) -> None:
        """Ends a sequence: its row and blocks are free at once. Repeating it changes nothing.

        poisoned: its keys and values cannot be trusted, and must not be served from the prefix cache.
        """
        if sequence.state is State.FINISHED:
            return
        if poisoned:
            self.prefix.evict(sequence)
        if sequence.state is State.RUNNING:
            self._release(sequence)
        else:
            self._waiting.remove(sequence)
        self._waiting.leave(sequence)
        del self._unfinished[sequence.id]
        sequence.state = State.FINISHED
        sequence.in_flight = 0
        sequence.epoch += 1

    def abort(self, stream: int) -> Sequence | None:
        """Finishes the sequence behind a stream id and returns it; None when there is none (any more)."""
        sequence = self._unfinished.get(stream)
        if sequence is not None:
            self.finish(sequence)
        return sequence

    def recompute(self) -> None:
        """Sends every running sequence back to the queue, because what its blocks hold is in doubt.

        A launched step that failed may have left blocks unwritten that others matched in the prefix cache.
        Their tokens in flight are void, too; seeds are counters, so the same ones will be sampled again.
        """
        self.prefix.clear()
        for sequence in list(self._running.values()):
            sequence.in_flight = 0
            sequence.epoch += 1
            self._preempt(sequence)

    def unfinished(self) -> list[Sequence]:
        """Every sequence that runs or waits."""
        return list(self._unfinished.values())

    def stats(self) -> SchedulerStats:
        return SchedulerStats(
            running=len(self._running),
            waiting=len(self._waiting),
            blocks_used=self.pool.used,
            blocks_cached=self.pool.free_cached,
            blocks_free=self.pool.free - self.pool.free_cached,
            preemptions=self._preemptions,
            late_tokens=self._late_tokens,
            prompt_tokens=self._prompt_tokens,
            prefix_queries=self._prefix_queries,
            cached_tokens=self._cached_tokens,
        )

    def check(self) -> None:
        """Reconciles rows, blocks and cache. Raises RuntimeError; O(blocks), for tests and idle moments."""
        self.pool.check(sequence.block_table for sequence in self._running.values())
        self.prefix.check()
        if sorted([*self._running, *self._free_rows]) != list(range(self.config.max_rows)):
            raise RuntimeError("rows are lost, or held twice")
        if any(sequence.row != row for row, sequence in self._running.items()):
            raise RuntimeError("a sequence and the scheduler disagree about its row")
        if any(s.row is not None or s.block_table or s.num_computed for s in self._waiting):
            raise RuntimeError("a waiting sequence holds a row or blocks")
        if len(self._running) + len(self._waiting) != len(self._unfinished):
            raise RuntimeError("a sequence neither runs nor waits")

    def _reserve(self) -> list[Sequence]:
        """Gets every running sequence the blocks it wants, preempting where none is free."""
        preempted: list[Sequence] = []
        for sequence in list(self._running.values()):
            reach = sequence.reach
            if reach <= len(sequence.block_table) * self.pool.block_size or reach >= sequence.limit:
                continue
            need = self.pool.blocks_for(reach)
            while sequence.state is State.RUNNING and len(sequence.block_table) < need:
                if self.pool.free:
                    sequence.block_table.append(self.pool.allocate(sequence.block_table[-1]))
                else:
                    preempted.append(self._preempt(self._victim(sequence)))
        return preempted

    def _victim(self, needy: Sequence) -> Sequence:
        """The one that is cheapest to lose: `needy` itself, or one that frees at least one block."""
        refs = self.pool.refs
        running = self._running.values()
        candidates = [s for s in running if s is needy or any(refs[b] == 1 for b in reversed(s.block_table))]
        vulnerable = [s for s in candidates if s.preemptions < IMMUNE_AFTER]
        return max(vulnerable or candidates, key=lambda s: (s.request.priority, -s.num_computed, s.order))

    def _preempt(self, victim: Sequence) -> Sequence:
        """Back to the queue; its keys and values will be computed again, or found in the cache."""
        self._release(victim)
        victim.state = State.WAITING
        victim.preemptions += 1
        self._preemptions += 1
        self._waiting.push(victim)
        return victim

    def _continue_running(self) -> list[Chunk]:
        """Decoding rows first, one position each; then partial prefills and forced tokens, by rank."""
        chunks: list[Chunk] = []
        prefills: list[Sequence] = []
        for sequence in self._running.values():
            reach = sequence.reach
            if reach >= sequence.limit:
                continue  # ends with the token in flight
            if reach - sequence.num_computed == 1:
                chunks.append(self._chunk(sequence, 1))
            else:
                prefills.append(sequence)
        budget = self.config.max_batched_tokens - len(chunks)
        for sequence in sorted(prefills, key=lambda s: s.rank):
            if budget:
                chunks.append(self._chunk(sequence, budget))
                budget -= chunks[-1].length
        return chunks

    def _admit(self, now: float, chunks: list[Chunk]) -> list[Sequence]:
        """Gives rows to waiting sequences, by rank, and appends their chunks."""
        admitted: list[Sequence] = []
        if not self._waiting.opens(now, len(self._running)):
            return admitted
        budget = self.config.max_batched_tokens - sum(chunk.length for chunk in chunks)
        partial = sum(not chunk.samples for chunk in chunks)
        for sequence in self._waiting:
            if not budget or not self._free_rows or partial >= MAX_PARTIAL_PREFILLS:
                break
            if not self._waiting.belongs(sequence) or self._waits_for_leader(sequence):
                continue
            # Strictly in order: what the first cannot have yet, a smaller one behind it must not take.
            # A preempted sequence needs the token that it left in flight, which may even be its last.
            if sequence.in_flight or not self._take_blocks(sequence):
                break
            sequence.state, sequence.extended = State.RUNNING, False
            sequence.row = heappop(self._free_rows)
            self._running[sequence.row] = sequence
            chunk = self._chunk(sequence, budget)
            chunks.append(chunk)
            admitted.append(sequence)
            budget -= chunk.length
            partial += not chunk.samples
        for sequence in admitted:
            self._waiting.remove(sequence)
        return admitted

    def _waits_for_leader(self, sequence: Sequence) -> bool:
        """Whether choice 0 is about to compute the prompt blocks that this choice could share."""
        leader = sequence.leader
        if leader is None or leader.state is State.FINISHED or not self.prefix.enabled:
            return False
        return leader.num_computed < leader.prompt_length

    def _take_blocks(self, sequence: Sequence) -> bool:
        """Takes blocks for all known tokens, cached ones where possible; all or nothing."""
        pool, running = self.pool, len(self._running)
        # Room for those who run to grow. A sequence alone may take everything: `add` made sure that it fits.
        watermark = max(-(-pool.usable // 100), running) if running else 0
        if pool.free <= watermark:
            return False
        matched = self.prefix.match(sequence)
        cached = len(matched)
        fresh = pool.blocks_for(len(sequence.tokens)) - cached
        revived = sum(pool.refs[block] == 0 for block in matched)
        if fresh + revived + watermark > pool.free:
            return False
        for block in matched:
            pool.share(block)
        sequence.block_table = matched  # a list of its own
        for _ in range(fresh):
            sequence.block_table.append(pool.allocate(matched[-1] if matched else WRITE_OFF))
        sequence.published = cached
        sequence.num_computed = cached * pool.block_size
        if not sequence.preemptions:
            sequence.cached_tokens = sequence.num_computed
            self._cached_tokens += sequence.num_computed
            self._prompt_tokens += sequence.prompt_length
            self._prefix_queries += sequence.prompt_length if self.prefix.enabled else 0
        return True

    def _chunk(self, sequence: Sequence, budget: int) -> Chunk:
        """As much of what a running sequence wants as `budget` (at least 1) and the configuration allow."""
        if sequence.row is None:
            raise RuntimeError(f"stream {sequence.id} is not running")
        start = sequence.num_computed
        wanted = sequence.reach - start
        length = min(wanted, budget, self.config.max_chunk or wanted)
        samples, feeds_back = length == wanted, sequence.in_flight > 0
        row, epoch, table = sequence.row, sequence.epoch, sequence.block_table
        return Chunk(sequence, row, epoch, start, length, samples, feeds_back, table)

    def _release(self, sequence: Sequence) -> None:
        if sequence.row is None:
            raise RuntimeError(f"stream {sequence.id} is not running")
        del self._running[sequence.row]
        heappush(self._free_rows, sequence.row)
        self.pool.release(sequence.block_table)
        sequence.block_table = []  # not cleared: the plan in flight reads the old list
        sequence.row = None
        sequence.num_computed = 0
