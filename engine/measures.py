"""What is measured of steps and requests, for metrics and the log: once per step, and twice per request."""

import time
from collections.abc import Iterable

from engine.messages import Started
from engine.messages.wire import StepHistograms
from engine.plan import Plan
from engine.sequence import Sequence, State

Measured = tuple[float | None, float | None, int, float | None]


class Measures:
    """Belongs to the loop. steps, rows: of all steps so far. last_plan, last_seconds: of the latest one."""

    __slots__ = ("_waiting_since", "_young", "histograms", "last_plan", "last_seconds", "rows", "steps")

    def __init__(self) -> None:
        self.steps = self.rows = 0
        self.histograms = StepHistograms()
        self.last_plan: Plan | None = None
        self.last_seconds = 0.0
        self._young: list[Sequence] = []  # have a row and no token yet
        self._waiting_since: float | None = None  # for a step to end; monotonic, None while nobody waits

    # -- steps

    def expect(self, now: float) -> None:
        """From `now` on (monotonic) a step is due to end, unless one is already."""
        if self._waiting_since is None:
            self._waiting_since = now

    def again(self, now: float) -> None:
        """The step that was due has failed, the next one is due from `now` on."""
        self._waiting_since = now

    def rest(self) -> None:
        """No step is due."""
        self._waiting_since = None

    def step(self, plan: Plan, seconds: float) -> None:
        """A step has ended."""
        self.steps += 1
        self.rows += len(plan.chunks)
        self.last_plan, self.last_seconds = plan, seconds
        self.histograms.observe(plan.num_tokens, seconds)
        self._waiting_since = time.monotonic()

    @property
    def step_age(self) -> float:
        """Seconds for which a step has been due to end."""
        return 0.0 if self._waiting_since is None else time.monotonic() - self._waiting_since

    # -- requests

    def start(self, admitted: Iterable[Sequence]) -> list[Started]:
        """What the front end is told of those that have a row for the first time."""
        told: list[Started] = []
        for sequence in admitted:
            if sequence.first_token or sequence in self._young:
                continue  # it was preempted and is back
            self._young.append(sequence)
            sequence.steps_before, sequence.rows_before = self.steps, self.rows
            told.append(Started(sequence.id, sequence.admitted - sequence.arrival, sequence.cached_tokens))
        return told

    def note_first_tokens(self) -> None:
        """Of those that started; to be called behind each step."""
        if not self._young:
            return
        now = time.monotonic()
        still: list[Sequence] = []
        for sequence in self._young:
            if len(sequence.tokens) > sequence.prompt_length:
                sequence.first_token = sequence.first_token or now
            elif sequence.state is not State.FINISHED:
                still.append(sequence)
        self._young = still

    def end(self, sequence: Sequence) -> Measured:
        """Seconds of prefill and decode, preemptions, rows of the average step: see Finish."""
        prefill = decode = rows = None
        if sequence.admitted and len(sequence.tokens) > sequence.prompt_length:
            now = time.monotonic()
            first = sequence.first_token = sequence.first_token or now
            prefill, decode = first - sequence.admitted, now - first
        steps = self.steps - sequence.steps_before
        if sequence.admitted and steps:
            rows = (self.rows - sequence.rows_before) / steps
        return prefill, decode, sequence.preemptions, rows
