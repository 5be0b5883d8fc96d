"""What the loop's own Python costs per step: `python -m benchmarks.scheduling [--rows 1,8,64,256]`.

Everything that runs between two steps of a device that answers at once: planning, launching (of a runner that
does nothing), looking at the tokens, and the outgoing frame as bytes. Microseconds of wall time per step.
"""

import argparse
import gc
import statistics
import time
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.report import save, table
from engine.blocks import BlockPool
from engine.core import EngineCore
from engine.messages import Request, SamplingParams
from engine.messages.wire import encode
from engine.plan import Plan
from engine.prefix import PrefixCache
from engine.scheduler import Scheduler, SchedulerConfig
from engine.steps import SampledToken, StepHandle, StepResult

VOCABULARY = 65_536
PROMPT = 64


class NoTools:
    """The two methods that the tool machine needs of a tokenizer; no request here has tools."""

    def encode_special(self, text: str, /) -> int:
        raise KeyError(text)

    def encode(self, text: str, /) -> list[int]:
        return []

    def decode(self, ids: list[int], /) -> str:
        return ""


class InstantRunner:
    """Gives every sampling chunk the same few tokens, at once."""

    vocab_size = VOCABULARY
    graph_recaptures = path_failures = 0
    early_masks = False

    def __init__(self) -> None:
        self._tokens = [SampledToken(token) for token in range(5, 261)]
        self._future: Future[StepResult] = Future()

    def launch(self, plan: Plan) -> StepHandle:
        return StepHandle(plan, self._future)

    async def collect(self, handle: StepHandle) -> StepResult:
        return self.result(handle.plan)

    def result(self, plan: Plan) -> StepResult:
        sampled = [self._tokens[chunk.row & 255] for chunk in plan.chunks if chunk.samples]
        return StepResult(sampled, 0.002, 0.002)

    async def grow(self, blocks: int) -> None:
        """There are no keys and values to move."""

    def close(self) -> None:
        pass


@dataclass(slots=True)
class Row:
    """Microseconds per step, medians. emit: the frame and its bytes."""

    rows: int
    steps: int
    plan_us: float = 0.0
    launch_us: float = 0.0
    process_us: float = 0.0
    emit_us: float = 0.0
    total_us: float = 0.0
    total_p99_us: float = 0.0


def core_with(rows: int, new: int, stretch: float | None, caching: bool) -> tuple[EngineCore, InstantRunner]:
    """An engine core with `rows` requests of `new` tokens, every second one with an id to stop at."""
    blocks = 1 + 2 * rows * -(-(PROMPT + new + 1) // 16)
    pool = BlockPool(blocks, 16)
    config = SchedulerConfig(rows, max(8192, rows), PROMPT + new + 1, prefill_stretch=stretch)
    runner = InstantRunner()
    core = EngineCore(Scheduler(config, pool, PrefixCache(pool, caching)), runner, NoTools(), (1, 2))
    for index in range(rows):
        stop = (3,) if index % 2 else ()
        params = SamplingParams(max_tokens=new, ignore_eos=index % 4 == 0, stop_token_ids=stop, seed=index)
        core.add(Request(id=index, prompt=[10 + index] * PROMPT, params=params))
    return core, runner


def measure(rows: int, steps: int, stretch: float | None = 1.85, caching: bool = True) -> Row:
    """One step of lookahead, as the real loop has it."""
    core, runner = core_with(rows, steps + 40, stretch, caching)
    scheduler, clock = core.scheduler, time.perf_counter
    in_flight: Plan | None = None
    samples: list[tuple[float, float, float, float]] = []
    gc.collect()
    gc.freeze()
    for step in range(steps + 30):
        started = clock()
        plan = scheduler.plan(started)
        planned = clock()
        if plan is not None:
            runner.launch(plan)
            scheduler.launched(plan)
        launched = clock()
        processed = launched
        if in_flight is not None:
            result = runner.result(in_flight)
            launched_again = clock()
            core.process(in_flight, result)
            processed = clock()
            frame = core.take_frame()
            if frame is not None:
                encode(frame)
            emitted = clock()
            if step >= 30:
                samples.append(
                    (
                        planned - started,
                        launched - planned,
                        processed - launched_again,
                        emitted - processed,
                    )
                )
        in_flight = plan
    gc.unfreeze()
    parts = [1e6 * statistics.median(column) for column in zip(*samples, strict=True)]
    totals = sorted(1e6 * sum(sample) for sample in samples)
    p99 = totals[min(len(totals) - 1, int(0.99 * len(totals)))]
    return Row(rows, len(samples), *parts, statistics.median(totals), p99)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default="1,8,64,256")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--no-prefix-caching", action="store_true")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the result there")
    parser.add_argument("--save", action="store_true", help="keep the result in benchmarks/results")
    args = parser.parse_args(argv)
    rows = [
        measure(int(count), args.steps, caching=not args.no_prefix_caching) for count in args.rows.split(",")
    ]
    header = ["rows", "steps", "plan us", "launch", "process", "emit", "total", "total p99"]
    print(table(header, [list(asdict(row).values()) for row in rows]))
    if args.save or args.out:
        settings = {key: value for key, value in vars(args).items() if key not in ("save", "out")}
        print("kept in", save("scheduling", [asdict(row) for row in rows], settings, out=args.out))


if __name__ == "__main__":
    main()
