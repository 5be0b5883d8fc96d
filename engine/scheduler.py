"""Which sequences compute which positions in the next step.

The loop that owns a scheduler may run ahead of the tokens it has seen, normally by one step:

    plan = scheduler.plan(now)              # step N+1
    scheduler.launched(plan)                # queued on the device behind step N
    for chunk, token_id in results(N):      # those that sampled
        if scheduler.token(chunk, token_id):
            ...                             # finish(sequence), extend(sequence, ids) or nothing

Steps run strictly in launch order. Rows and blocks therefore go back at once, even while the step in flight
still writes them: whoever gets them next runs behind it.

Where blocks are short and the pool may grow, nobody is preempted: `plan` says what is needed, through
`BlockPool.want`, and the loop makes the pool larger between two steps.

Invariants: a running sequence holds blocks for its whole prompt from its admission on, and alone would fit
into the pool as it is, up to its limit; `num_computed` counts launched positions; with tokens in flight a
running sequence wants one position at most. Of stop conditions only the length limit is known here; of text
and devices nothing.
"""

from collections.abc import Iterable
from dataclasses import replace
from heapq import heappop, heappush

from engine.blocks import WRITE_OFF, BlockPool
from engine.estimator import PrefillRoom, StepLoad, StepTimeModel
from engine.plan import Chunk, Plan
from engine.prefix import PrefixCache
from engine.queue import WaitingQueue, urgency
from engine.scheduling import SchedulerConfig, SchedulerStats, StepBudget, cheapest, sequence_limit
from engine.sequence import Sequence, State

__all__ = ["Chunk", "Plan", "Scheduler", "SchedulerConfig", "SchedulerStats"]

MAX_PARTIAL_PREFILLS = 4

_chunk = tuple.__new__  # a plan holds one chunk per row, and Chunk(...) takes three times as long


class Scheduler:
    """Continuous, static or single batching of sequences over the blocks of one pool."""

    def __init__(self, config: SchedulerConfig, pool: BlockPool, prefix: PrefixCache) -> None:
        self.config = config
        self.pool = pool
        self.prefix = prefix
        self.times = StepTimeModel()
        self.budget = StepBudget(config.max_batched_tokens, max(config.max_rows, pool.block_size))
        self._extended = False  # whether some sequence's `extended` may be set
        self._suspects: list[Sequence] = []  # those that the `plan` under way admits, or tries to
        self._waiting = WaitingQueue(config.batching, config.max_rows, config.batch_timeout)
        self._unfinished: dict[int, Sequence] = {}  # by stream id
        self._running: dict[int, Sequence] = {}  # by row, in order of admission
        self._free_rows = list(range(config.max_rows))  # a heap: low rows first keeps the batch dense
        self._arrivals = self._preemptions = self._late_tokens = 0
        self._prompt_tokens = self._prefix_queries = self._cached_tokens = 0

    def add(self, sequence: Sequence, now: float) -> None:
        """Queues a new sequence. Raises ValueError for one that could never finish, or is known already."""
        limit = sequence_limit(sequence, self.config.max_model_len, self.pool)
        if sequence.order >= 0 or sequence.id in self._unfinished:
            raise ValueError(f"stream {sequence.id} was added before")
        sequence.limit, sequence.arrival, sequence.order = limit, now, self._arrivals
        self._arrivals += 1
        self._unfinished[sequence.id] = sequence
        self._waiting.push(sequence)

    def plan(self, now: float) -> Plan | None:
        """The next step; None when nothing can be computed now. Call `launched` before planning again."""
        self._suspects = []
        preempted: list[Sequence] = []
        decodes = self._decodes()
        if decodes is None:  # no block was free
            if self.pool.may_grow:
                self.pool.want(self.pool.usable + 1)  # it doubles; whoever needs more will ask again
                return None
            preempted = self._reserve()
            decodes = self._decodes() or ([], [], 0)
        chunks, prefills, kv_tokens = decodes
        load = StepLoad(len(chunks), kv_tokens)
        room = self._room(load, len(prefills))
        partial = self._continue(prefills, now, room, chunks)
        # What a preemption has just freed is not for newcomers.
        admitted = [] if preempted else self._admit(now, room, chunks, partial)
        plan = self._finish_plan(chunks, admitted, preempted, load, room) if chunks else None
        self._suspects = []
        return plan

    def _finish_plan(
        self,
        chunks: list[Chunk],
        admitted: list[Sequence],
        preempted: list[Sequence],
        load: StepLoad,
        room: PrefillRoom,
    ) -> Plan:
        extended: tuple[Sequence, ...] = ()
        if self._extended:
            extended = tuple(chunk.sequence for chunk in chunks if chunk.sequence.extended)
            for sequence in extended:
                sequence.extended = False
            self._extended = any(sequence.extended for sequence in self._running.values())
        rows, num_tokens = load.rows, load.rows
        scored: tuple[Chunk, ...] = ()
        if len(chunks) > rows:
            num_tokens += sum(chunk.length for chunk in chunks[rows:])
            scored = tuple(chunk for chunk in chunks[rows:] if chunk.scores)
            load = load._replace(prefill_tokens=num_tokens - rows, prefill_work=room.work)
        predicted = self.times.predict(load)
        gone = tuple(preempted)
        return Plan(tuple(chunks), tuple(admitted), extended, gone, num_tokens, load, predicted, scored)

    def wake_at(self) -> float | None:
        """When the gather window closes because of which the last `plan` was None."""
        return self._waiting.wake_at

    def launched(self, plan: Plan) -> None:
        """The plan's step is queued on the device: whatever is launched from now on runs behind it."""
        caching, size = self.prefix.enabled, self.pool.block_size
        for sequence, _, epoch, _, length, samples, _, _ in plan.chunks:
            if sequence.epoch == epoch:  # else it ended, or was extended, since it was planned
                sequence.num_computed += length
                if samples:
                    sequence.in_flight += 1
                if caching and (sequence.published + 1) * size <= sequence.num_computed:
                    self.prefix.publish(sequence)
        self.budget.launched()

    def token(self, chunk: Chunk, token_id: int) -> bool:
        """Appends the token that `chunk` sampled. False for a late one, which nobody may see."""
        sequence = chunk.sequence
        if sequence.epoch != chunk.epoch:
            self._late_tokens += 1
            return False
        tokens = sequence.tokens
        tokens.append(token_id)
        sequence.in_flight -= 1
        if (
            sequence.row is not None
            and self.prefix.enabled
            and (sequence.published + 1) * self.pool.block_size <= len(tokens)
        ):
            self.prefix.publish(sequence)
        return True

    def scored(self, chunk: Chunk, end: int) -> int | None:
        """Notes that the prompt tokens behind a chunk's positions have logprobs, up to index `end`. Returns
        the first that had none before; None where all had, or the chunk is late.
        """
        sequence = chunk.sequence
        first = sequence.unscored
        if sequence.epoch != chunk.epoch or end <= first:
            return None
        sequence.unscored = end
        return first

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
        sequence.extended = self._extended = True

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
            self.pool.release(sequence.block_table)  # of one whose admission broke off
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

    def recompute(self, *, keep_cache: bool = False) -> None:
        """Sends every running sequence back to the queue, because what its blocks hold is in doubt.

        A launched step that failed may have left blocks unwritten that others matched in the prefix cache.
        keep_cache: no launched step has failed, so what was published stays good.
        Their tokens in flight are void, too; seeds are counters, so the same ones will be sampled again.
        """
        if not keep_cache:
            self.prefix.clear()
        for sequence in list(self._running.values()):
            sequence.in_flight = 0
            sequence.epoch += 1
            self._preempt(sequence)

    def settle(self) -> list[Sequence]:
        """The pool keeps its size. Returns those who wait and are too long for it; the caller ends them."""
        self.pool.settle()
        most = min(self.config.max_model_len, self.pool.usable * self.pool.block_size + 1)
        self.config = replace(self.config, max_model_len=most)
        for sequence in self._waiting:
            sequence.limit = min(sequence.limit, most)
        return [sequence for sequence in self._waiting if sequence.limit <= sequence.prompt_length]

    def suspects(self) -> list[Sequence]:
        """Whom to finish before planning again, after a `plan` that raised: the one whose admission broke
        off, or else all that it admitted. Whoever else it admitted is back in the queue.
        """
        suspects, self._suspects = self._suspects, []
        if not suspects or suspects[-1].state is not State.WAITING:
            return suspects
        for admitted in suspects[:-1]:
            self._preempt(admitted)
        return suspects[-1:]

    def unfinished(self) -> list[Sequence]:
        """Every sequence that runs or waits."""
        return list(self._unfinished.values())

    def stats(self) -> SchedulerStats:
        waiting, pool = self._waiting, self.pool
        # In the order of the fields, which is faster; one for each frame.
        return SchedulerStats(
            len(self._running),
            len(waiting),
            len(waiting) if waiting.wake_at is not None else 0,
            waiting.oldest,
            pool.used,
            pool.free_cached,
            pool.free - pool.free_cached,
            self._preemptions,
            self._late_tokens,
            self._prompt_tokens,
            self._prefix_queries,
            self._cached_tokens,
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

    def _decodes(self) -> tuple[list[Chunk], list[Sequence], int] | None:
        """One position for each decoding row, the sequences that want more, and the tokens behind the former.

        None when a sequence needs a block and none is free; what others got until then they keep.
        """
        pool, size = self.pool, self.pool.block_size
        chunks: list[Chunk] = []
        prefills: list[Sequence] = []
        kv_tokens = 0
        for row, sequence in self._running.items():
            in_flight = sequence.in_flight
            reach = len(sequence.tokens) + in_flight
            if reach >= sequence.limit:
                continue  # ends with the token in flight
            grammar = sequence.grammar
            if grammar is not None and (in_flight or (grammar.early and not grammar.ready)):
                continue
            table = sequence.block_table
            while reach > len(table) * size:
                if not pool.free:
                    return None
                table.append(pool.allocate(table[-1]))
            start = sequence.num_computed
            if reach - start == 1:
                feeds_back = in_flight > 0
                chunks.append(
                    _chunk(Chunk, (sequence, row, sequence.epoch, start, 1, True, feeds_back, table))
                )
                kv_tokens += reach
            else:
                prefills.append(sequence)
        return chunks, prefills, kv_tokens

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
                    victim = cheapest(sequence, self._running.values(), self.pool.refs)
                    preempted.append(self._preempt(victim))
        return preempted

    def _preempt(self, victim: Sequence) -> Sequence:
        """Back to the queue; its keys and values will be computed again, or found in the cache."""
        self._release(victim)
        victim.state = State.WAITING
        victim.preemptions += 1
        self._preemptions += 1
        self._waiting.push(victim)
        return victim

    def _room(self, load: StepLoad, partial: int) -> PrefillRoom:
        """What a step has room for beside its decoding rows.

        Where about as many run as before, it may take `prefill_stretch` times as long as without prefill.
        Where many wait and few run, those few give way: time grows with the number that waits for each.
        """
        rows, stretch = load.rows, self.config.prefill_stretch
        tokens, size = self.budget.tokens - rows, self.pool.block_size
        if stretch is None or not rows:
            return PrefillRoom(tokens, size)
        pressure = 1 + (partial + min(len(self._waiting), len(self._free_rows))) / rows
        return self.times.room(load, tokens, size, stretch, pressure)

    def _continue(self, prefills: list[Sequence], now: float, room: PrefillRoom, chunks: list[Chunk]) -> int:
        """Partial prefills and forced tokens: within a priority the shortest first, unless one has waited.

        Returns how many remain partial.
        """
        if len(prefills) > 1:
            prefills.sort(key=lambda sequence: urgency(sequence, now))
        partial = len(prefills)
        for sequence in prefills:
            start = sequence.num_computed
            length = room.take(start, sequence.reach - start, self.config.max_chunk)
            if length:
                chunks.append(Chunk.of(sequence, length))
                partial -= chunks[-1].samples
        return partial

    def _admit(self, now: float, room: PrefillRoom, chunks: list[Chunk], partial: int) -> list[Sequence]:
        """Gives rows to waiting sequences, by rank, and appends their chunks."""
        admitted: list[Sequence] = []
        if not self._waiting.opens(now, len(self._running)):
            return admitted
        for sequence in list(self._waiting):
            if not self._free_rows or partial >= MAX_PARTIAL_PREFILLS or room.spent:
                break
            if not self._waiting.belongs(sequence) or (sequence.waits_for_leader and self._shares(sequence)):
                continue
            if sequence.grammar is not None and not sequence.grammar.ready:
                continue
            self._suspects.append(sequence)
            # Strictly in order: what the first cannot have yet, a smaller one behind it must not take.
            # A preempted sequence needs the token that it left in flight, which may even be its last.
            if sequence.in_flight or not self._take_blocks(sequence):
                self._suspects.pop()
                break
            self._waiting.remove(sequence)
            sequence.state, sequence.extended = State.RUNNING, False
            sequence.admitted = sequence.admitted or now
            sequence.row = heappop(self._free_rows)
            self._running[sequence.row] = sequence
            admitted.append(sequence)
            start = sequence.num_computed
            length = room.take(start, sequence.reach - start, self.config.max_chunk, at_least_a_block=True)
            chunks.append(Chunk.of(sequence, length))
            partial += not chunks[-1].samples
        return admitted

    def _shares(self, sequence: Sequence) -> bool:
        """Whether it gets something from its leader."""
        return self.prefix.enabled or sequence.request.params.prompt_logprobs is not None

    def _take_blocks(self, sequence: Sequence) -> bool:
        """Takes blocks for all known tokens, cached ones where possible; all or nothing."""
        pool, running, watermark = self.pool, len(self._running), 0
        if not pool.may_grow:
            # Room for those who run to grow. A sequence alone may take everything: it fits.
            watermark = max(-(-pool.usable // 100), running) if running else 0
            if pool.free <= watermark:
                return False
        # Cached positions have no logits to score a prompt with.
        matches = sequence.unscored >= sequence.prompt_length
        matched = self.prefix.match(sequence) if matches else []
        cached = len(matched)
        fresh = pool.blocks_for(len(sequence.tokens)) - cached
        revived = sum(pool.refs[block] == 0 for block in matched)
        lacking, whole = fresh + revived + watermark - pool.free, pool.blocks_for(sequence.limit - 1)
        if lacking > 0 or whole > pool.usable:
            pool.want(max(pool.usable + lacking, whole))
            return False
        table = sequence.block_table  # at any moment all that the sequence holds
        for block in matched:
            pool.share(block)
            table.append(block)
        for _ in range(fresh):
            table.append(pool.allocate(table[-1] if table else WRITE_OFF))
        sequence.published = cached
        sequence.num_computed = cached * pool.block_size
        if not sequence.preemptions:
            sequence.cached_tokens = sequence.num_computed
            self._cached_tokens += sequence.num_computed
            self._prompt_tokens += sequence.prompt_length
            self._prefix_queries += sequence.prompt_length if self.prefix.enabled and matches else 0
        return True

    def _release(self, sequence: Sequence) -> None:
        if sequence.row is None:
            raise RuntimeError(f"stream {sequence.id} is not running")
        del self._running[sequence.row]
        heappush(self._free_rows, sequence.row)
        self.pool.release(sequence.block_table)
        sequence.block_table = []  # not cleared: the plan in flight reads the old list
        sequence.row = None
        sequence.num_computed = 0
