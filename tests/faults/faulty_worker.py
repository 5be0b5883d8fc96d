"""The real engine process, in which requests with certain seeds meet a fault.

The faults are put in from here, by wrapping methods; the engine itself knows nothing of them.
"""

import functools
import time
from collections.abc import Callable

import engine.runner
from engine.compiled_runner import CompiledRunner
from engine.faults import PathFailed
from engine.plan import Chunk, Plan
from engine.runner import ModelRunner
from engine.sampler import SamplingRow
from engine.state import RowState
from engine.steps import StepHandle, StepResult
from engine.worker import main
from kernels.sampling import SamplingBatch

SAMPLER = 4040  # an exception in the sampler, at the sixth token
HANG = 4141  # a step that does not end, at the sixth token
OOM_PREFILL = 4242  # no memory for steps of its prompt, when they are launched
OOM_PREFILL_STEP = 4243  # the same, while they run
OOM_DECODE = 4244  # no memory for steps behind its fifth token, when they are launched
OOM_DECODE_STEP = 4245  # the same, while they run
GAVE_UP = 4747  # kernels that give up in a step of several rows behind its fifth token, once
AFTER = 5  # output tokens

given_up: set[int] = set()  # streams

Launch = Callable[[ModelRunner, Plan], StepHandle]


def output(chunk: Chunk) -> int:
    """Output tokens that the chunk's sequence has, those in flight included."""
    return chunk.start + chunk.length - chunk.sequence.prompt_length


def is_hit(chunk: Chunk) -> int:
    """The fault that a chunk meets, 0 for none."""
    seed = chunk.sequence.request.params.seed
    if seed in (OOM_PREFILL, OOM_PREFILL_STEP):
        return seed if output(chunk) <= 0 else 0
    if seed == GAVE_UP:
        return seed if output(chunk) > AFTER and chunk.sequence.id not in given_up else 0
    return seed if seed in (HANG, OOM_DECODE, OOM_DECODE_STEP) and output(chunk) > AFTER else 0


def out_of_memory() -> StepResult:
    raise MemoryError("there is no memory for this step")


def give_up(step: StepHandle) -> StepResult:
    step.future.result()
    raise PathFailed


def hang() -> StepResult:
    time.sleep(3600)
    raise AssertionError


def faulty(launch: Launch) -> Launch:
    @functools.wraps(launch)
    def launch_or_fail(self: ModelRunner, plan: Plan) -> StepHandle:
        fault = max(map(is_hit, plan.chunks), default=0)
        if fault in (OOM_PREFILL, OOM_DECODE):
            out_of_memory()
        if fault in (OOM_PREFILL_STEP, OOM_DECODE_STEP, HANG):
            return StepHandle(plan, self._thread.submit(hang if fault == HANG else out_of_memory))
        handle = launch(self, plan)
        if fault == GAVE_UP and len(plan.chunks) > 1:
            given_up.update(chunk.sequence.id for chunk in plan.chunks)
            self.path_failures += 1
            return StepHandle(plan, self._thread.submit(give_up, handle))
        return handle

    return launch_or_fail


def faulty_sampling(
    make: Callable[[list[SamplingRow], RowState, object], SamplingBatch],
) -> Callable[[list[SamplingRow], RowState, object], SamplingBatch]:
    """Whoever asks for logprobs goes this way; a position is that of the token to be sampled."""

    def batch(rows: list[SamplingRow], state: RowState, device: object) -> SamplingBatch:
        if any(row.params.seed == SAMPLER and row.position >= PROMPT + AFTER for row in rows):
            raise ArithmeticError("this row cannot be sampled")
        return make(rows, state, device)

    return batch


PROMPT = 8  # tokens of the prompts that the sampler's fault expects

if __name__ == "__main__":
    for runner in (ModelRunner, CompiledRunner):
        runner.launch = faulty(runner.launch)  # type: ignore[method-assign]
    engine.runner.sampling_batch = faulty_sampling(engine.runner.sampling_batch)  # type: ignore[assignment]
    main()
