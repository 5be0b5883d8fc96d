"""Counting in plain numbers while tokens flow; app/prometheus.py shows them.

Each process counts for itself. `Counts` is what it has counted at one moment, and can be added up.
"""

import math
import time
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Sequence

import msgspec

from app.lifecycle import Lifecycle

TTFT_BUCKETS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560),
)
ITL_BUCKETS = (
    *(0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1, 2.5, 5, 7.5, 10, 20, 40, 80),
)
E2E_BUCKETS = (
    *(0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60),
    *(120, 240, 480, 960, 1920, 7680),
)
FINISHES = ("stop", "length", "abort", "error")
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
        self.slow_readers = 0
        self.events = 0
        self.writes = 0
        self.pings = 0
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

    def sent(self, events: int) -> None:
        """Token events, in one write."""
        self.events += events
        self.writes += 1

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
            events=self.events,
            writes=self.writes,
            pings=self.pings,
            tokens_per_second=self.tokens_per_second(),
            recent_ttft=list(self._recent),
            open_answers=lifecycle.open_answers,
            open_choices=lifecycle.open_choices,
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
    events: int = 0
    writes: int = 0
    pings: int = 0
    tokens_per_second: float = 0.0
    recent_ttft: list[float] = []
    open_answers: int = 0
    open_choices: int = 0

    def plus(self, other: "Counts") -> "Counts":
        return Counts(
            time_to_first_token=_added(self.time_to_first_token, other.time_to_first_token),
            inter_token_latency=_added(self.inter_token_latency, other.inter_token_latency),
            request_latency=_added(self.request_latency, other.request_latency),
            finishes=dict(Counter(self.finishes) + Counter(other.finishes)),
            rejections=dict(Counter(self.rejections) + Counter(other.rejections)),
            disconnects=self.disconnects + other.disconnects,
            slow_readers=self.slow_readers + other.slow_readers,
            events=self.events + other.events,
            writes=self.writes + other.writes,
            pings=self.pings + other.pings,
            tokens_per_second=self.tokens_per_second + other.tokens_per_second,
            recent_ttft=self.recent_ttft + other.recent_ttft,
            open_answers=self.open_answers + other.open_answers,
            open_choices=self.open_choices + other.open_choices,
        )

    def past(self) -> "Counts":
        """What remains when the process has ended: nothing is open and nothing flows."""
        return msgspec.structs.replace(
            self, tokens_per_second=0.0, recent_ttft=[], open_answers=0, open_choices=0
        )

    def ttft_quantiles(self, *quantiles: float) -> list[float | None]:
        """Of recent requests; None where there were none."""
        values = sorted(self.recent_ttft)
        return [values[min(len(values) - 1, int(q * len(values)))] if values else None for q in quantiles]


def _added(one: list[float], two: list[float]) -> list[float]:
    return [a + b for a, b in zip(one, two, strict=True)] if one and two else one or two
