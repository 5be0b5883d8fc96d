"""The scheduler's rules, one by one."""

import pytest

from engine.messages import BatchingMode
from engine.plan import Plan
from engine.scheduler import SchedulerConfig
from engine.sequence import Sequence, State
from tests.engine.fake_engine import FakeEngine, next_token, request

FIVES = [5] * 64  # shared beginnings
LONG = list(range(2, 24))  # 22 different tokens


def engine(
    rows: int = 4,
    budget: int = 64,
    *,
    max_len: int = 64,
    batching: BatchingMode = "continuous",
    max_chunk: int | None = None,
    timeout: float = 0.0,
    blocks: int = 64,
    caching: bool = True,
    depth: int = 1,
    tools: bool = False,
) -> FakeEngine:
    config = SchedulerConfig(rows, budget, max_len, batching, max_chunk, timeout)
    return FakeEngine(config, blocks, 4, caching, depth, tools)


def planned(made: FakeEngine) -> Plan:
    plan = made.step()
    assert plan is not None
    return plan


def shape(plan: Plan | None) -> list[tuple[int, int, int]]:
    """(stream, start, length) of each chunk."""
    return [] if plan is None else [(c.sequence.id, c.start, c.length) for c in plan.chunks]


def lively(count: int, length: int = 3, steps: int = 10, choice: int = 0) -> list[list[int]]:
    """Different prompts whose continuations neither end nor call a tool for some steps."""
    found: list[list[int]] = []
    for seed in range(2, 20_000):
        prompt = [2 + seed * (k + 3) ** 2 % 21 for k in range(length)]
        tokens = list(prompt)
        for _ in range(steps):
            tokens.append(next_token(tokens, choice))
        if prompt not in found and min(tokens[length:]) > 1:
            found.append(prompt)
        if len(found) == count:
            return found
    raise AssertionError("no such prompts")


# -- steps ---------------------------------------------------------------------------------------------------


def test_prefill_then_one_position_per_step_fed_back_by_the_device() -> None:
    made = engine()
    (prompt,) = lively(1)
    (sequence,) = made.submit(request(7, prompt, 4))
    plans = [planned(made) for _ in range(4)]
    assert [shape(p) for p in plans] == [[(7, 0, 3)], [(7, 3, 1)], [(7, 4, 1)], [(7, 5, 1)]]
    assert [p.chunks[0].feeds_back for p in plans] == [False, True, True, True]
    assert plans[0].admitted == (sequence,) and plans[1].admitted == ()
    assert made.step() is None  # the fourth token is in flight and known to be the last
    assert sequence.state is State.FINISHED
    assert sequence.tokens == made.expected(sequence)
    assert made.scheduler.stats().late_tokens == 0


def test_without_lookahead_every_token_comes_from_the_host() -> None:
    made = engine(depth=0)
    made.submit(request(0, lively(1)[0], 4))
    made.drain()
    assert [c.feeds_back for p in made.plans for c in p.chunks] == [False] * 4


def test_a_token_after_the_end_is_late() -> None:
    made = engine()
    prompt = next([a, b] for a in range(2, 24) for b in range(2, 24) if next_token([a, b], 0) == 0)
    (sequence,) = made.submit(request(0, prompt))
    made.drain()
    assert sequence.tokens == [*prompt, 0]
    assert made.scheduler.stats().late_tokens == 1
    assert len(made.plans) == 2


def test_max_model_len_ends_a_sequence_like_max_tokens() -> None:
    made = engine(max_len=6)
    (sequence,) = made.submit(request(0, lively(1)[0], 50))
    made.drain()
    assert len(sequence.tokens) == 6
    assert made.scheduler.stats().late_tokens == 0


def test_decodes_come_first_and_prefill_takes_what_is_left() -> None:
    made = engine(budget=10)
    first, second = lively(2)
    made.submit(request(0, first))
    made.submit(request(1, second))
    assert shape(made.step()) == [(0, 0, 3), (1, 0, 3)]
    made.submit(request(2, LONG))
    assert shape(made.step()) == [(0, 3, 1), (1, 3, 1), (2, 0, 8)]
    plan = planned(made)
    assert shape(plan) == [(0, 4, 1), (1, 4, 1), (2, 8, 8)]
    assert [c.samples for c in plan.chunks] == [True, True, False]
    assert shape(made.step()) == [(0, 5, 1), (1, 5, 1), (2, 16, 6)]
    assert shape(made.step())[2] == (2, 22, 1)


@pytest.mark.parametrize("max_chunk", [1, 7, 64])
def test_max_chunk_cuts_a_prefill(max_chunk: int) -> None:
    made = engine(max_chunk=max_chunk)
    (sequence,) = made.submit(request(0, LONG, 2))
    made.drain()
    prefill = [c for p in made.plans for c in p.chunks if c.start < len(LONG)]
    assert max(c.length for c in prefill) == min(max_chunk, len(LONG))
    assert [c.samples for c in prefill] == [False] * (len(prefill) - 1) + [True]
    assert sequence.tokens == made.expected(sequence)


def test_at_most_four_partial_prefills() -> None:
    made = engine(rows=8, max_chunk=2, caching=False)
    for stream in range(6):
        made.submit(request(stream, LONG))
    assert shape(made.step()) == [(stream, 0, 2) for stream in range(4)]
    for _ in range(9):
        assert len(planned(made).chunks) == 4
    last = planned(made)  # the four finish, two more begin
    assert sorted(shape(last)) == [*((stream, 20, 2) for stream in range(4)), (4, 0, 2), (5, 0, 2)]


# -- admission -----------------------------------------------------------------------------------------------


def test_admission_is_by_priority_then_arrival() -> None:
    made = engine(rows=1)
    for stream, priority in enumerate([1, 0, 1, 0, -1]):
        made.submit(request(stream, [stream + 2, 3], 1, priority=priority))
    made.drain()
    assert [plan.admitted[0].id for plan in made.plans] == [4, 1, 3, 0, 2]


def test_rows_limit_what_runs_and_the_lowest_is_given_first() -> None:
    made = engine(rows=2)
    for stream, prompt in enumerate(lively(3)):
        made.submit(request(stream, prompt, 4 + 4 * stream))
    assert [c.row for c in planned(made).chunks] == [0, 1]
    assert made.scheduler.stats().waiting == 1
    made.scheduler.abort(0)
    assert [(c.sequence.id, c.row) for c in planned(made).chunks] == [(1, 1), (2, 0)]


def test_a_prompt_is_admitted_only_as_a_whole_with_room_for_those_who_run() -> None:
    made = engine(blocks=1 + 8, caching=False)
    made.submit(request(0, lively(1)[0], 8))  # 1 block of 8
    made.step()
    made.submit(request(1, [*range(2, 24), 2, 3, 4], 1))  # 7 blocks: all that are left, but no watermark
    made.submit(request(2, [9], 1))  # would fit, but is not its turn
    assert shape(made.step()) == [(0, 3, 1)]
    made.scheduler.abort(0)
    assert shape(made.step()) == [(1, 0, 25)]  # alone it needs no watermark
    made.drain()


def test_a_lone_sequence_may_take_the_whole_pool() -> None:
    made = engine(blocks=1 + 4)
    (sequence,) = made.submit(request(0, lively(1, 12)[0], 5))
    made.drain()
    assert len(sequence.tokens) == 17 and made.scheduler.stats().preemptions == 0


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "message"),
    [
        ([], 4, "empty prompt"),
        (FIVES, 4, "64 prompt tokens of at most 64"),
        ([5], 0, "at least one must be sampled"),
        ([5] * 12, 6, "12 prompt tokens and up to 6 sampled ones need 5 KV blocks of 4; the pool has 4"),
    ],
)
def test_refuses_what_could_never_finish(prompt: list[int], max_tokens: int, message: str) -> None:
    made = engine(blocks=1 + 4)
    with pytest.raises(ValueError, match=message):
        made.submit(request(0, prompt, max_tokens))
    assert made.scheduler.unfinished() == []
    assert made.step() is None


def test_a_stream_id_is_added_once() -> None:
    made = engine()
    (sequence,) = made.submit(request(0, [5, 6]))
    with pytest.raises(ValueError, match="added before"):
        made.scheduler.add(sequence, 0.0)
    with pytest.raises(ValueError, match="added before"):
        made.submit(request(0, [5, 6]))


@pytest.mark.parametrize(("rows", "budget", "max_chunk"), [(0, 8, None), (4, 3, None), (4, 8, 0)])
def test_refuses_a_configuration_that_could_starve(rows: int, budget: int, max_chunk: int | None) -> None:
    with pytest.raises(ValueError, match="max_rows"):
        SchedulerConfig(rows, budget, 64, max_chunk=max_chunk)


# -- prefix cache --------------------------------------------------------------------------------------------


def test_a_later_prompt_starts_behind_its_cached_blocks() -> None:
    made = engine()
    made.submit(request(0, LONG, 1))
    made.step()
    (sequence,) = made.submit(request(1, [*LONG[:18], 2, 2], 1))
    assert shape(made.step()) == [(1, 16, 4)]  # the step that writes the blocks is launched, not done
    assert sequence.cached_tokens == 16
    made.drain()
    stats = made.scheduler.stats()
    assert (stats.prompt_tokens, stats.prefix_queries, stats.cached_tokens) == (42, 42, 16)
    assert (stats.blocks_used, stats.blocks_cached) == (0, 6)  # four shared, one more of each


def test_the_same_prompt_again_leaves_its_last_token() -> None:
    made = engine()
    made.submit(request(0, LONG[:16], 1))
    made.drain()
    (again,) = made.submit(request(1, LONG[:16], 1))
    assert shape(made.step()) == [(1, 12, 4)]  # the last block is computed again, for its last token
    made.drain()
    assert again.tokens == made.expected(again)


def test_another_salt_or_no_cache_computes_everything() -> None:
    for made, salt in ((engine(), b"other"), (engine(caching=False), b"")):
        made.submit(request(0, LONG, 1))
        made.drain()
        made.submit(request(1, LONG, 1, cache_salt=salt))
        assert shape(made.step()) == [(1, 0, 22)]


def test_output_is_cached_for_the_next_turn() -> None:
    made = engine()
    (first,) = made.submit(request(0, lively(1)[0], 10))
    made.drain()
    made.submit(request(1, [*first.tokens, 3], 1))
    assert shape(made.step()) == [(1, 12, 2)]


def test_poisoned_blocks_are_not_served() -> None:
    made = engine()
    (bad,) = made.submit(request(0, LONG, 4))
    made.step()
    made.scheduler.finish(bad, poisoned=True)
    made.submit(request(1, LONG, 1))
    assert shape(made.step()) == [(1, 0, 22)]


# -- choices -------------------------------------------------------------------------------------------------


def test_choices_wait_for_the_prompt_of_the_first_and_share_its_blocks() -> None:
    made = engine(max_chunk=16)
    first, *others = made.submit(request(0, LONG, 4, n=3))
    made.submit(request(9, [7, 8], 4))
    assert shape(made.step()) == [(0, 0, 16), (9, 0, 2)]  # another request may pass them
    assert {s for s, _, _ in shape(made.step())} == {0, 9}
    assert shape(made.step())[-2:] == [(1, 20, 2), (2, 20, 2)]
    assert all(s.block_table[:5] == first.block_table[:5] for s in others)
    made.drain()
    assert all(s.tokens == made.expected(s) for s in (first, *others))


def test_choices_go_ahead_without_a_cache_or_when_the_first_is_gone() -> None:
    made = engine(caching=False)
    made.submit(request(0, LONG[:8], 2, n=3))
    assert len(planned(made).chunks) == 3
    made = engine(max_chunk=4)
    made.submit(request(0, LONG[:8], 2, n=3))
    assert len(planned(made).chunks) == 1
    made.scheduler.abort(0)
    assert len(planned(made).chunks) == 2


# -- preemption ----------------------------------------------------------------------------------------------


def pressed(priorities: tuple[int, int, int] = (0, 0, 0)) -> tuple[FakeEngine, list[Sequence]]:
    """Three sequences of 3 + 9 tokens, one block each to begin with, in a pool of six blocks."""
    made = engine(blocks=1 + 6)
    sequences = []
    for stream, prompt in enumerate(lively(3)):
        sequences += made.submit(request(stream, prompt, 9, priority=priorities[stream]))
    return made, sequences


def first_preemption(made: FakeEngine) -> Plan:
    while not (plan := planned(made)).preempted:
        pass
    return plan


def test_the_latest_arrival_gives_way_and_everybody_still_finishes() -> None:
    made, sequences = pressed()
    plan = first_preemption(made)
    assert [s.id for s in plan.preempted] == [2]
    assert [s for s, _, _ in shape(plan)] == [0, 1]
    assert sequences[2].row is None and sequences[2].block_table == []
    made.drain()
    assert all(s.tokens == made.expected(s) for s in sequences)
    assert sequences[0].preemptions == 0


def test_the_least_important_gives_way_first() -> None:
    made, sequences = pressed(priorities=(1, 0, 0))
    assert [s.id for s in first_preemption(made).preempted] == [0]
    made.drain()
    assert all(s.tokens == made.expected(s) for s in sequences)


def test_the_least_computed_gives_way_first() -> None:
    made = engine(blocks=1 + 6, caching=False)
    short, other = lively(2)
    made.submit(request(0, short, 13))
    made.step()
    made.submit(request(1, [*other, *short, *other], 12))
    assert [s.id for s in first_preemption(made).preempted] == [0]  # it came first, but has computed less
    made.drain()


def test_immune_after_two_preemptions_unless_alone() -> None:
    made, sequences = pressed()
    sequences[2].preemptions = 2
    assert [s.id for s in first_preemption(made).preempted] == [1]
    made, sequences = pressed()
    for sequence in sequences:
        sequence.preemptions = 2
    assert [s.id for s in first_preemption(made).preempted] == [2]
    made.drain()


def test_the_token_in_flight_is_kept_and_resume_waits_for_it() -> None:
    made, _ = pressed()
    victim = first_preemption(made).preempted[0]
    known = len(victim.tokens)
    assert victim.in_flight == 0 and victim.state is State.WAITING  # seen right after the plan
    assert victim.tokens == made.expected(victim)[:known]
    made.drain()
    resumed = next(p for p in made.plans if victim in p.admitted and p is not made.plans[0])
    (chunk,) = [c for c in resumed.chunks if c.sequence is victim]
    assert not chunk.feeds_back and chunk.start + chunk.length == known
    assert made.scheduler.stats().late_tokens == 0


def test_nobody_resumes_with_a_token_in_flight() -> None:
    made, _ = pressed()
    made.depth = 2  # so that the victim's token is still unseen after the plan that preempts it
    victim = first_preemption(made).preempted[0]
    made.scheduler.abort(0)
    made.scheduler.abort(1)
    assert victim.in_flight
    assert made.step() is None and not victim.in_flight
    assert planned(made).admitted == (victim,)
    made.drain()
    assert victim.tokens == made.expected(victim)


def test_resume_finds_its_blocks_in_the_cache() -> None:
    made = engine(blocks=1 + 5)
    for stream, prompt in enumerate(lively(2)):
        made.submit(request(stream, prompt, 9))
    victim = first_preemption(made).preempted[0]  # the other one took the last free block
    made.scheduler.abort(0)
    plan = planned(made)
    assert plan.admitted == (victim,) and shape(plan) == [(1, 8, 1)]
    assert victim.cached_tokens == 0  # of its prompt nothing was
    made.drain()
    assert victim.tokens == made.expected(victim)


def test_a_preempted_sequence_keeps_its_place_and_nobody_passes_it() -> None:
    made, _ = pressed()
    made.submit(request(9, [8], 1))  # needs one block only
    victim = first_preemption(made).preempted[0]
    while victim.state is State.WAITING:
        assert made.sequences[9].state is State.WAITING
        made.step()
    made.drain()


def test_what_a_preemption_frees_is_not_for_newcomers() -> None:
    made = engine(blocks=1 + 10, caching=False)
    for stream, prompt in enumerate(lively(2)):
        made.submit(request(stream, prompt, 9))
    made.submit(request(2, LONG, 9, priority=1))
    while made.pool.free:
        made.step()
    (newcomer,) = made.submit(request(3, [8], 1, priority=-1))
    plan = first_preemption(made)
    assert [s.id for s in plan.preempted] == [2] and plan.admitted == ()
    assert planned(made).admitted == (newcomer,)
    made.drain()


def test_a_victim_that_frees_nothing_is_spared() -> None:
    made = engine(blocks=1 + 6)
    scheduler = made.scheduler
    (owner,) = made.submit(request(0, LONG[:8], 1, priority=2))
    for later in (request(1, [*LONG[:8], 2], 12, priority=1), request(2, [3], 12)):
        plan = scheduler.plan(0.0)
        assert plan is not None
        scheduler.launched(plan)
        made.submit(later)
    sharer, needy = made.sequences[1], made.sequences[2]
    # No token is ever looked at, so the owner lives on, while both others grow.
    while (plan := scheduler.plan(0.0)) and not plan.preempted:
        scheduler.launched(plan)
    assert (owner.state, sharer.state, needy.state) == (State.RUNNING, State.WAITING, State.RUNNING)
    scheduler.check()


# -- forced tokens, end, abort -------------------------------------------------------------------------------


def test_forced_tokens_void_the_one_in_flight() -> None:
    made = engine()
    (prompt,) = lively(1)
    (sequence,) = made.submit(request(0, prompt, 20))
    made.step()
    made.step()
    assert len(sequence.tokens) == 4 and sequence.in_flight == 1
    made.scheduler.extend(sequence, [6, 7, 8])
    assert sequence.tokens[4:] == [6, 7, 8] and sequence.in_flight == 0
    plan = planned(made)
    assert shape(plan) == [(0, 4, 3)] and plan.extended == (sequence,) and plan.admitted == ()
    assert plan.chunks[0].samples and not plan.chunks[0].feeds_back
    assert made.scheduler.stats().late_tokens == 1
    plan = planned(made)
    assert shape(plan) == [(0, 7, 1)] and plan.extended == () and plan.chunks[0].feeds_back
    assert sequence.tokens[7] == next_token(sequence.tokens[:7], 0)


def test_forced_tokens_wait_their_turn_in_chunks() -> None:
    made = engine(max_chunk=2)
    (sequence,) = made.submit(request(0, lively(1)[0], 20))
    for _ in range(3):
        made.step()
    made.scheduler.extend(sequence, [6, 7, 8])
    start = sequence.num_computed
    plans = [planned(made) for _ in range(2)]
    assert [shape(p) for p in plans] == [[(0, start, 2)], [(0, start + 2, 1)]]
    assert [p.extended for p in plans] == [(sequence,), ()]


def test_forced_tokens_stay_within_the_limit() -> None:
    made = engine()
    (sequence,) = made.submit(request(0, [5, 6], 3))
    with pytest.raises(ValueError, match="no room for 4"):
        made.scheduler.extend(sequence, [7] * 4)
    made.scheduler.finish(sequence)
    with pytest.raises(ValueError, match="no room"):
        made.scheduler.extend(sequence, [7])


@pytest.mark.parametrize("moment", ["queued", "prefill", "first token in flight", "decode", "preempted"])
def test_abort_frees_everything_at_once(moment: str) -> None:
    made = engine(max_chunk=2)
    (sequence,) = made.submit(request(0, lively(1)[0], 8))
    steps = {"queued": 0, "prefill": 1, "first token in flight": 2, "decode": 4, "preempted": 4}[moment]
    for _ in range(steps):
        made.step()
    if moment == "preempted":
        made.scheduler._preempt(sequence)
    assert made.scheduler.abort(0) is sequence
    assert made.scheduler.abort(0) is None
    made.scheduler.finish(sequence)
    made.scheduler.check()
    stats = made.scheduler.stats()
    assert (stats.running, stats.waiting, stats.blocks_used) == (0, 0, 0)
    tokens = list(sequence.tokens)
    made.drain()
    assert sequence.tokens == tokens


def test_row_and_blocks_are_reused_while_the_aborted_step_is_in_flight() -> None:
    made = engine(rows=1, blocks=1 + 3)
    first, second = lively(2)
    made.submit(request(0, first, 8))
    made.step()
    made.step()
    made.scheduler.abort(0)
    (sequence,) = made.submit(request(1, second, 8))
    assert planned(made).chunks[0].row == 0
    made.drain()
    assert sequence.tokens == made.expected(sequence)


# -- batching modes ------------------------------------------------------------------------------------------


def test_u4_single_runs_one_sequence_at_a_time() -> None:
    made = engine(batching="single")
    for stream, prompt in enumerate(lively(3)):
        made.submit(request(stream, prompt, 3))
    made.drain()
    order = [c.sequence.id for p in made.plans for c in p.chunks]
    assert order == [0] * 3 + [1] * 3 + [2] * 3


def test_f3_static_gathers_a_batch_and_runs_it_to_its_end() -> None:
    made = engine(rows=2, batching="static", timeout=5.0)
    prompts = lively(4)
    made.submit(request(0, prompts[0], 2))
    assert made.step() is None  # now 1; waits for company until 5
    assert made.scheduler.wake_at() == 5.0
    made.submit(request(1, prompts[1], 6))
    assert len(planned(made).chunks) == 2  # full: no more waiting
    made.submit(request(2, prompts[2], 2))
    made.submit(request(3, prompts[3], 2))
    while made.sequences[1].state is not State.FINISHED:
        assert made.sequences[2].state is State.WAITING
        made.step()
    assert made.sequences[0].state is State.FINISHED
    assert {c.sequence.id for c in planned(made).chunks} == {2, 3}
    assert made.scheduler.wake_at() is None


def test_f3_static_starts_alone_when_nobody_comes_and_admits_nobody_meanwhile() -> None:
    made = engine(rows=4, batching="static", timeout=5.0)
    first, second = lively(2)
    made.submit(request(0, first, 4))
    assert made.step() is None and made.step() is not None  # woken at 5
    assert made.now == 5.0
    made.submit(request(1, second, 2))
    while made.sequences[0].state is not State.FINISHED:
        made.step()
    assert made.sequences[1].state is State.WAITING
    made.drain()


def test_a_static_batch_holds_all_choices() -> None:
    made = engine(rows=3, batching="static")
    sequences = made.submit(request(0, LONG, 4, n=3))
    made.submit(request(9, [7], 1))
    made.drain()
    first_of_9 = next(i for i, p in enumerate(made.plans) if 9 in [c.sequence.id for c in p.chunks])
    assert all(s.tokens == made.expected(s) and s.cached_tokens == 20 * bool(s.choice) for s in sequences)
    assert not {c.sequence.id for p in made.plans[first_of_9:] for c in p.chunks} - {9}


def test_f3_an_idle_continuous_engine_waits_for_company_a_running_one_does_not() -> None:
    made = engine(rows=3, timeout=5.0)
    prompts = lively(3)
    made.submit(request(0, prompts[0], 6))
    assert made.step() is None
    assert made.scheduler.wake_at() == 5.0
    made.submit(request(1, prompts[1], 6))
    assert len(planned(made).chunks) == 2
    made.submit(request(2, prompts[2], 6))
    assert len(planned(made).chunks) == 3
    made.drain()


def test_f3_a_full_house_does_not_wait() -> None:
    made = engine(rows=2, timeout=5.0)
    for stream, prompt in enumerate(lively(2)):
        made.submit(request(stream, prompt, 2))
    assert len(planned(made).chunks) == 2


def test_plan_is_none_when_there_is_nothing_to_do() -> None:
    made = engine()
    assert made.step() is None
    assert made.scheduler.wake_at() is None
    stats = made.scheduler.stats()
    assert not any(stats._replace(blocks_free=0))
    assert stats.blocks_free == 63
