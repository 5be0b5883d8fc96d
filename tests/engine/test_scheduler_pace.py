"""Prefill sized in time: running streams keep their pace, and nobody starves."""

import random
from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise

import pytest

from engine.blocks import BlockPool
from engine.estimator import DEFAULT_STRETCH, PrefillRoom, StepLoad, StepTimeModel, default_stretch
from engine.messages import Request, SamplingParams
from engine.plan import Plan
from engine.prefix import PrefixCache
from engine.scheduler import Scheduler, SchedulerConfig
from engine.sequence import Sequence

BLOCK = 16
Device = Callable[[StepLoad], float]


def gpu(load: StepLoad) -> float:
    """Like a large GPU with a 2 B model: bound by memory while a step is small, then by arithmetic."""
    memory = 0.9e-3 + load.kv_tokens * 6.2e-8
    tokens = load.rows + load.prefill_tokens
    arithmetic = tokens * 6.3e-6 + load.prefill_work * 5e-10
    return 0.2e-3 + max(memory, arithmetic) + (0.15e-3 if load.prefill_tokens else 0.0)


def learned(device: Device, noise: float = 0.0) -> StepTimeModel:
    rng, model = random.Random(5), StepTimeModel()
    for _ in range(200):
        rows = rng.randint(1, 64)
        loads = [StepLoad(rows, rows * rng.randint(50, 900))]
        tokens, context = rng.randint(16, 1024), rng.randint(0, 1500)
        loads.append(loads[0]._replace(prefill_tokens=tokens, prefill_work=tokens * context))
        for load in loads:
            model.observe(load, device(load) * (1 + rng.gauss(0, noise)))
    return model


class Simulation:
    """The real scheduler before a device whose steps take what a formula says."""

    def __init__(self, device: Device, *, stretch: float | None = 1.85, rows: int = 256) -> None:
        pool = BlockPool(20_000, BLOCK)
        config = SchedulerConfig(rows, 8192, 4096, prefill_stretch=stretch)
        self.scheduler = Scheduler(config, pool, PrefixCache(pool, False))
        self.device = device
        self.now = 0.0
        self.plans: list[tuple[Plan, float]] = []
        self.stamps: defaultdict[int, list[float]] = defaultdict(list)
        self.arrivals: dict[int, float] = {}

    def submit(self, id: int, prompt: int, new: int) -> None:
        params = SamplingParams(max_tokens=new, ignore_eos=True)
        for sequence in Sequence.of(Request(id=id, prompt=[7] * prompt, params=params)):
            self.arrivals[id] = self.now
            self.scheduler.add(sequence, self.now)

    def step(self) -> Plan | None:
        """One step; the results are seen at once."""
        plan = self.scheduler.plan(self.now)
        if plan is None:
            return None
        self.scheduler.launched(plan)
        seconds = self.device(plan.load)
        self.now += seconds
        self.plans.append((plan, seconds))
        self.scheduler.times.observe(plan.load, seconds)
        for chunk in plan.chunks:
            if chunk.samples and self.scheduler.token(chunk, 9):
                sequence = chunk.sequence
                self.stamps[sequence.id].append(self.now)
                if len(sequence.tokens) >= sequence.limit:
                    self.scheduler.finish(sequence)
        return plan

    def drain(self) -> None:
        while self.step() is not None:
            pass

    def gaps(self, ids: range, since: float, until: float) -> list[float]:
        return sorted(
            after - before
            for id in ids
            for before, after in pairwise(self.stamps[id])
            if since <= after <= until
        )


def test_both_kinds_of_steps_are_learned() -> None:
    def straight(load: StepLoad) -> float:
        return (
            1e-3
            + 4e-6 * load.rows
            + 6e-8 * load.kv_tokens
            + (2e-4 + 8e-6 * load.prefill_tokens + 1e-9 * load.prefill_work if load.prefill_tokens else 0.0)
        )

    model = learned(straight, noise=0.01)
    for load in (StepLoad(32, 9_000), StepLoad(8, 900, 256, 9_000), StepLoad(60, 40_000, 1000, 700_000)):
        assert model.predict(load) == pytest.approx(straight(load), rel=0.05)
    seconds = model.cost(300, 500)
    assert model.tokens_within(seconds, 500, 5000) == pytest.approx(300, abs=5)
    assert model.tokens_within(1.0, 500, 120) == 120
    assert model.tokens_within(0.0, 500, 120) == model.tokens_within(-1.0, 0, 120) == 0


def test_nothing_is_predicted_before_both_kinds_were_seen() -> None:
    model = StepTimeModel()
    for _ in range(50):
        model.observe(StepLoad(4, 400), 2e-3)
    assert not model.ready
    for _ in range(10):
        model.observe(StepLoad(4, 400, 64, 64), 3e-3)
    assert model.ready


def test_first_steps_pauses_and_nonsense_do_not_spoil_it() -> None:
    model = StepTimeModel()
    load, mixed = StepLoad(32, 9_000), StepLoad(32, 9_000, 256, 9_000)
    for step in range(120):
        model.observe(load, 30.0 if step in (0, 60) else 2e-3)
        model.observe(mixed, 8.0 if step in (0, 80) else 4e-3)
        for nonsense in (0.0, -1.0, float("nan"), float("inf")):
            model.observe(load, nonsense)
    assert model.predict(load) == pytest.approx(2e-3, rel=0.1)
    assert model.predict(mixed) == pytest.approx(4e-3, rel=0.1)


def test_a_device_that_became_slower_is_followed() -> None:
    model = StepTimeModel()
    for seconds in (1e-3, 3e-3):
        for step in range(150):
            model.observe(StepLoad(8 + step % 3, 900), seconds)
    assert model.predict(StepLoad(9, 900)) == pytest.approx(3e-3, rel=0.1)


def test_predictions_are_never_negative() -> None:
    rng, model = random.Random(1), StepTimeModel()
    for _ in range(500):
        load = StepLoad(
            rng.randint(0, 64), rng.randint(0, 10**6), rng.choice([0, 0, 300]), rng.randint(0, 10**6)
        )
        model.observe(load, rng.random() * 10 ** rng.randint(-6, 1))
        assert model.predict(load) >= 0 <= model.decode(load.rows, load.kv_tokens)


def test_room_is_cut_at_blocks_and_never_empty_for_the_first() -> None:
    model = learned(gpu)
    room = PrefillRoom(8192, BLOCK, model, model.prefill_overhead + model.cost(100, 0))
    assert room.take(0, 2000, None) == 96
    assert room.spent and room.take(0, 2000, None) == 0
    assert room.take(0, 2000, None, at_least_a_block=True) == BLOCK
    room = PrefillRoom(8192, BLOCK, model, -1.0)
    assert room.take(40, 2000, None) == 8  # to the end of a block
    room = PrefillRoom(8192, BLOCK, model, -1.0)
    assert room.take(0, 5, None) == 5  # the whole need
    room = PrefillRoom(100, BLOCK)
    assert [room.take(0, 70, None), room.take(0, 70, 16), room.take(0, 70, None)] == [70, 16, 14]
    assert room.spent and room.work == 70 * 69 // 2 + 16 * 15 // 2 + 14 * 13 // 2


def test_streams_keep_their_pace_beside_a_long_prompt() -> None:
    sim = Simulation(gpu)
    for id in range(32):
        sim.submit(id, 200, 600)
    for _ in range(120):
        sim.step()
    before = sim.now  # of prefill nothing was seen but the beginning
    sim.submit(999, 2000, 8)
    while not sim.stamps[999]:
        sim.step()
    gaps = sim.gaps(range(32), before, sim.now)
    alone = gpu(StepLoad(32, 32 * 400))
    assert gaps[-1] <= 2 * alone  # the p99 of any window is no larger
    assert sim.stamps[999][0] - before < 40 * alone  # and it did not take forever
    chunks = [c for plan, _ in sim.plans for c in plan.chunks if c.sequence.id == 999 and c.length > 1]
    assert all((c.start + c.length) % BLOCK == 0 for c in chunks[:-1])


def test_a_burst_on_an_idle_engine_is_not_held_back() -> None:
    sim, free = Simulation(gpu), Simulation(gpu, stretch=None)
    for one in (sim, free):
        for id in range(64):
            one.submit(id, 100, 100)
        one.drain()
        started = one.now
        for id in range(1000, 1256):
            one.submit(id, 300, 128)
        one.drain()
        one.stamps[-1] = [one.now - started]
    firsts = [
        sorted(one.stamps[id][0] - one.arrivals[id] for id in range(1000, 1256))[128] for one in (sim, free)
    ]
    assert sim.stamps[-1][0] <= 1.05 * free.stamps[-1][0]  # in all
    assert firsts[0] <= 1.15 * firsts[1]  # to the median first token


def test_more_waiting_get_more_time() -> None:
    sim = Simulation(gpu)
    for id in range(16):
        sim.submit(id, 100, 400)
    for late in range(100, 110):
        sim.submit(late, 300, 2)
        for _ in range(10):
            sim.step()
    taken = []
    for waiting in (1, 48):
        for id in range(waiting):
            sim.submit(1000 * waiting + id, 600, 1)
        plan = sim.step()
        assert plan is not None
        taken.append(plan.load.prefill_tokens)
        while any(s.id >= 1000 for s in sim.scheduler.unfinished()):
            sim.step()
    assert taken[1] > 2 * taken[0] >= BLOCK


def test_short_prefills_go_before_long_ones_which_age() -> None:
    sim = Simulation(gpu)
    for id in range(8):
        sim.submit(id, 100, 3000)
    for late in range(100, 110):
        sim.submit(late, 300, 2)
        for _ in range(10):
            sim.step()
    sim.submit(500, 3000, 1)
    sim.step()
    sim.submit(501, 200, 1)
    sim.submit(502, 200, 1)
    while not sim.stamps[500]:
        sim.step()
        assert sim.now < 60
    # They came while the long one was under way, got rows behind it, and passed it.
    assert sim.stamps[501][0] < sim.stamps[500][0] and sim.stamps[502][0] < sim.stamps[500][0]


def test_defaults() -> None:
    assert default_stretch(None, "cuda") == DEFAULT_STRETCH and default_stretch(None, "cpu") is None
    assert default_stretch(0.0, "cuda") is None and default_stretch(1.5, "cpu") == 1.5
    with pytest.raises(ValueError, match="prefill_stretch"):
        SchedulerConfig(1, 8, 8, prefill_stretch=0.5)


def test_a_step_without_memory_halves_the_budget_for_a_while() -> None:
    sim = Simulation(gpu, stretch=None, rows=8)
    sim.scheduler.budget.shrink()
    sim.submit(0, 4095, 1)
    sim.submit(1, 4000, 1)
    plan = sim.step()
    assert plan is not None and plan.num_tokens == 4096
    for id in range(2, 400):
        sim.submit(id, 4, 2)
        sim.step()
    for id in range(1000, 1003):
        sim.submit(id, 4000, 1)
    plan = sim.step()
    assert plan is not None and plan.num_tokens > 8000
