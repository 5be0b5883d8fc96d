"""Counting in plain numbers while tokens flow; app/telemetry/prometheus.py shows them.

Each process counts for itself. `Counts` is what it has counted at one moment, and can be added up.
"""

import math
import os
import resource
import time
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Sequence

import msgspec

from app.http.lifecycle import Lifecycle
from engine.messages.resident import resident_bytes

TTFT_BUCKETS = (
    *(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560),
)
ITL_BUCKETS = (
    *(0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1, 2.5, 5, 7.5, 10, 20, 40, 80),
)
E2E_BUCKETS = (
    *(
        0.0005,
        0.001,
        0.002,
        0.005,
        0.01,
        0.02,
        0.05,
        0.1,
        0.2,
        0.3,
        0.5,
        0.8,
        1,
        1.5,
        2,
        2.5,
        5,
        10,
        15,
        20,
        30,
        40,
        50,
        60,
    ),
    *(120, 240, 480, 960, 1920, 7680),
)
TOKEN_BUCKETS = tuple(digit * 10**power for power in range(7) for digit in (1, 2, 5))
PREEMPTION_BUCKETS = (0, 1, 2, 5, 10, 20)
N_BUCKETS = (1, 2, 5, 10, 20)
HTTP_BUCKETS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 60, 600)
LAG_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1, 5)

# What is counted once per request or choice: name, buckets, meaning.
PER_REQUEST: dict[str, tuple[Sequence[float], str]] = {
    "vllm:request_queue_time_seconds": (E2E_BUCKETS, "A choice's wait for a row."),
    "vllm:request_prefill_time_seconds": (E2E_BUCKETS, "From a choice's row to its first token."),
    "vllm:request_decode_time_seconds": (E2E_BUCKETS, "From a choice's first token to its last."),
    "vllm:request_inference_time_seconds": (E2E_BUCKETS, "From a choice's row to its last token."),
    "vllm:request_time_per_output_token_seconds": (ITL_BUCKETS, "A choice's mean time between tokens."),
    "vllm:request_prompt_tokens": (TOKEN_BUCKETS, "Tokens of a prompt."),
    "vllm:request_generation_tokens": (TOKEN_BUCKETS, "Tokens generated for a choice."),
    "vllm:request_max_num_generation_tokens": (TOKEN_BUCKETS, "Tokens of a request's longest choice."),
    "vllm:request_params_n": (N_BUCKETS, "Choices asked for per prompt."),
    "vllm:request_params_max_tokens": (TOKEN_BUCKETS, "Most tokens that a choice was allowed."),
    "vllm:request_num_preemptions": (PREEMPTION_BUCKETS, "Times that a choice lost its row."),
    "fastpath_event_loop_lag_seconds": (LAG_BUCKETS, "How late a front end's event loop runs a timer."),
}
FINISHES = ("stop", "length", "abort", "error")
PHASES = ("body", "queue", "prefill", "decode")  # of a request whose client leaves
_RATE_SECONDS = 5.0  # time constant of the tokens-per-second average
_FOLD_SECONDS = 0.1  # how often tokens enter it while they flow
_RECENT = 512  # requests that the percentiles look at


class Histogram:
    """Counts per bucket, without locks: it lives on one event loop."""

    __slots__ = ("_buckets", "_counts", "total")

    def __init__(self, buckets: Sequence[float]) -> None:
        self._buckets = buckets
        self._counts = [0] * (len(buckets) + 1)
        self.total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self._counts[bisect_left(self._buckets, value)] += times
        self.total += value * times

    @property
    def count(self) -> int:
        return sum(self._counts)

    def cumulative(self) -> list[tuple[str, float]]:
        """Prometheus' (upper bound, count up to it) pairs."""
        result: list[tuple[str, float]] = []
        seen = 0
        for bound, count in zip((*self._buckets, math.inf), self._counts, strict=True):
            seen += count
            result.append(("+Inf" if bound == math.inf else str(float(bound)), seen))
        return result

    def dump(self) -> list[float]:
        """The total, then the count of each bucket: what `load` of another one adds to itself."""
        return [self.total, *self._counts]

    def load(self, dumped: Sequence[float]) -> None:
        self.total += dumped[0]
        self._counts = [own + int(other) for own, other in zip(self._counts, dumped[1:], strict=True)]


class Metrics:
    """What the HTTP layer counts. Times are in seconds, `now` is perf_counter's.

    Most streams get a token in each step, so `flowed` only counts how many waited since when, and the rest of
    the work is done once per step.
    """

    def __init__(self) -> None:
        self.time_to_first_token = Histogram(TTFT_BUCKETS)
        self._inter_token_latency = Histogram(ITL_BUCKETS)
        self.request_latency = Histogram(E2E_BUCKETS)
        self.finishes: Counter[str] = Counter(dict.fromkeys(FINISHES, 0))
        self.rejections: Counter[str] = Counter()
        self.disconnects = 0
        self.disconnect_phases: Counter[str] = Counter()
        self.slow_readers = 0
        self._events = 0
        self._writes = 0
        self.replays = 0  # answers that began again because an engine had died
        self.pings = 0
        self.lane_events = 0  # token events that went out one by one through a lane, with a write for each
        self.event_bytes = 0
        self.open_streams = 0
        self.per_request = {name: Histogram(buckets) for name, (buckets, _) in PER_REQUEST.items()}
        self.http_requests: Counter[str] = Counter()  # by method, status, handler, with blanks between
        self.http_seconds: dict[str, Histogram] = {}  # by method and handler, with a blank between
        self._step_at = 0.0  # when the tokens in `_gaps` came
        self._gaps: dict[float, int] = {}  # time of the token before: how many
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._rate = 0.0
        self._rate_at = time.perf_counter()
        self._uncounted = 0  # tokens since then

    def first_token(self, seconds: float, tokens: int, now: float) -> None:
        self.time_to_first_token.observe(seconds)
        self._recent.append(seconds)
        self._count(tokens, now)

    def token_gap(self, seconds: float, tokens: int, now: float) -> None:
        """`tokens` arrived together, `seconds` after the ones before them."""
        self._inter_token_latency.observe(seconds / tokens, tokens)
        self._count(tokens, now)

    def flowed(self, last: float, now: float) -> None:
        """A token arrived, and the stream's one before at `last`."""
        if now != self._step_at:
            self._settle()
            self._step_at = now
        gaps = self._gaps
        gaps[last] = gaps.get(last, 0) + 1

    @property
    def events(self) -> int:
        """Token events sent."""
        return self._events + self.lane_events

    @property
    def writes(self) -> int:
        """Writes that carried them."""
        return self._writes + self.lane_events

    def sent(self, events: int, size: int) -> None:
        """Token events, in one write of so many bytes."""
        self._events += events
        self._writes += 1
        self.event_bytes += size

    def observe(self, name: str, value: float | None) -> None:
        """One of `PER_REQUEST`; None is not known, and not counted."""
        if value is not None:
            self.per_request[name].observe(value)

    def disconnected(self, phase: str) -> None:
        """A client left; `phase` is one of `PHASES`."""
        self.disconnects += 1
        self.disconnect_phases[phase] += 1

    def http_answered(self, method: str, status: int, handler: str, seconds: float) -> None:
        """An HTTP request ended; `handler` is its route, without what the client wrote into it."""
        self.http_requests[f"{method} {status} {handler}"] += 1
        kind = f"{method} {handler}"
        histogram = self.http_seconds.get(kind)
        if histogram is None:
            histogram = self.http_seconds[kind] = Histogram(HTTP_BUCKETS)
        histogram.observe(seconds)

    @property
    def inter_token_latency(self) -> Histogram:
        self._settle()
        return self._inter_token_latency

    def finished(self, reason: str) -> None:
        self.finishes[reason] += 1

    def answered(self, seconds: float) -> None:
        self.request_latency.observe(seconds)

    def rejected(self, code: str) -> None:
        self.rejections[code] += 1

    def tokens_per_second(self) -> float:
        """Exponential average over about five seconds of the tokens that reached the HTTP layer."""
        self._settle()
        self._fold(time.perf_counter())
        return self._rate

    def counts(self, lifecycle: Lifecycle) -> "Counts":
        """All of it at this moment, to be shown or added up."""
        return Counts(
            time_to_first_token=self.time_to_first_token.dump(),
            inter_token_latency=self.inter_token_latency.dump(),
            request_latency=self.request_latency.dump(),
            finishes=dict(self.finishes),
            rejections=dict(self.rejections),
            disconnects=self.disconnects,
            slow_readers=self.slow_readers,
            replays=self.replays,
            events=self.events,
            writes=self.writes,
            pings=self.pings,
            tokens_per_second=self.tokens_per_second(),
            recent_ttft=list(self._recent),
            open_answers=lifecycle.open_answers,
            open_choices=lifecycle.open_choices,
            disconnect_phases=dict(self.disconnect_phases),
            event_bytes=self.event_bytes,
            open_streams=self.open_streams,
            per_request={name: each.dump() for name, each in self.per_request.items()},
            http_requests=dict(self.http_requests),
            http_seconds={kind: each.dump() for kind, each in self.http_seconds.items()},
            **process_usage(),
        )

    def _settle(self) -> None:
        """Counts what `flowed` has put aside."""
        if not self._gaps:
            return
        gaps, self._gaps = self._gaps, {}
        for last, tokens in gaps.items():
            self._inter_token_latency.observe(self._step_at - last, tokens)
        self._count(sum(gaps.values()), self._step_at)

    def _count(self, tokens: int, now: float) -> None:
        self._uncounted += tokens
        if now - self._rate_at > _FOLD_SECONDS:
            self._fold(now)

    def _fold(self, now: float) -> None:
        elapsed = now - self._rate_at
        self._rate = self._rate * math.exp(-elapsed / _RATE_SECONDS) + self._uncounted / _RATE_SECONDS
        self._uncounted = 0
        self._rate_at = now


class Counts(msgspec.Struct, kw_only=True):
    """What one front-end process has counted, or several of them together."""

    time_to_first_token: list[float] = []  # histograms as Histogram.dump gives them; empty: nothing
    inter_token_latency: list[float] = []
    request_latency: list[float] = []
    finishes: dict[str, int] = {}
    rejections: dict[str, int] = {}
    disconnects: int = 0
    slow_readers: int = 0
    replays: int = 0
    events: int = 0
    writes: int = 0
    pings: int = 0
    tokens_per_second: float = 0.0
    recent_ttft: list[float] = []
    open_answers: int = 0
    open_choices: int = 0
    disconnect_phases: dict[str, int] = {}
    event_bytes: int = 0
    open_streams: int = 0
    per_request: dict[str, list[float]] = {}
    http_requests: dict[str, int] = {}
    http_seconds: dict[str, list[float]] = {}
    resident_bytes: float = 0
    cpu_seconds: float = 0.0
    open_fds: float = 0

    def plus(self, other: "Counts") -> "Counts":
        return Counts(
            time_to_first_token=_added(self.time_to_first_token, other.time_to_first_token),
            inter_token_latency=_added(self.inter_token_latency, other.inter_token_latency),
            request_latency=_added(self.request_latency, other.request_latency),
            finishes=dict(Counter(self.finishes) + Counter(other.finishes)),
            rejections=dict(Counter(self.rejections) + Counter(other.rejections)),
            disconnects=self.disconnects + other.disconnects,
            slow_readers=self.slow_readers + other.slow_readers,
            replays=self.replays + other.replays,
            events=self.events + other.events,
            writes=self.writes + other.writes,
            pings=self.pings + other.pings,
            tokens_per_second=self.tokens_per_second + other.tokens_per_second,
            recent_ttft=self.recent_ttft + other.recent_ttft,
            open_answers=self.open_answers + other.open_answers,
            open_choices=self.open_choices + other.open_choices,
            disconnect_phases=dict(Counter(self.disconnect_phases) + Counter(other.disconnect_phases)),
            event_bytes=self.event_bytes + other.event_bytes,
            open_streams=self.open_streams + other.open_streams,
            per_request=_all_added(self.per_request, other.per_request),
            http_requests=dict(Counter(self.http_requests) + Counter(other.http_requests)),
            http_seconds=_all_added(self.http_seconds, other.http_seconds),
            resident_bytes=self.resident_bytes + other.resident_bytes,
            cpu_seconds=self.cpu_seconds + other.cpu_seconds,
            open_fds=self.open_fds + other.open_fds,
        )

    def past(self) -> "Counts":
        """What remains when the process has ended: nothing is open and nothing flows."""
        return msgspec.structs.replace(
            self,
            tokens_per_second=0.0,
            recent_ttft=[],
            open_answers=0,
            open_choices=0,
            open_streams=0,
            resident_bytes=0,
            open_fds=0,
        )

    def ttft_quantiles(self, *quantiles: float) -> list[float | None]:
        """Of recent requests; None where there were none."""
        values = sorted(self.recent_ttft)
        return [values[min(len(values) - 1, int(q * len(values)))] if values else None for q in quantiles]


def process_usage() -> dict[str, float]:
    """What this process holds of memory and files, and the CPU time that it took."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    try:
        fds = len(os.listdir("/proc/self/fd")) - 1  # less the one that lists them
    except OSError:
        fds = 0
    cpu = used.ru_utime + used.ru_stime
    return {"resident_bytes": resident_bytes(), "cpu_seconds": cpu, "open_fds": fds}


def _all_added(one: dict[str, list[float]], two: dict[str, list[float]]) -> dict[str, list[float]]:
    return {name: _added(one.get(name, []), two.get(name, [])) for name in {**one, **two}}


def _added(one: list[float], two: list[float]) -> list[float]:
    return [a + b for a, b in zip(one, two, strict=True)] if one and two else one or two
