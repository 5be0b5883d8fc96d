"""Counting in plain numbers while tokens flow, and Prometheus text when somebody asks.

Names are vLLM's where the meaning is the same, so that its dashboards work; `fastpath_` is for what nobody
else has. Each server has its own registry. Counters that the engine keeps are read from its latest
statistics.
"""

import math
import time
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from app.lifecycle import Lifecycle
from engine.messages import EngineClient, EngineState, EngineUnavailable

CONTENT_TYPE = CONTENT_TYPE_LATEST
Family = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily

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

    def cumulative(self) -> list[tuple[str, float]]:
        """Prometheus' (upper bound, count up to it) pairs."""
        result: list[tuple[str, float]] = []
        seen = 0
        for bound, count in zip((*self._buckets, math.inf), self._counts, strict=True):
            seen += count
            result.append(("+Inf" if bound == math.inf else str(float(bound)), seen))
        return result


class Metrics:
    """What the HTTP layer counts. Times are in seconds, `now` is perf_counter's."""

    def __init__(self) -> None:
        self.time_to_first_token = Histogram(TTFT_BUCKETS)
        self.inter_token_latency = Histogram(ITL_BUCKETS)
        self.request_latency = Histogram(E2E_BUCKETS)
        self.finishes: Counter[str] = Counter(dict.fromkeys(FINISHES, 0))
        self.rejections: Counter[str] = Counter()
        self.disconnects = 0
        self.slow_readers = 0
        self.events = 0
        self.writes = 0
        self.pings = 0
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
        self.inter_token_latency.observe(seconds / tokens, tokens)
        self._count(tokens, now)

    def finished(self, reason: str) -> None:
        self.finishes[reason] += 1

    def answered(self, seconds: float) -> None:
        self.request_latency.observe(seconds)

    def rejected(self, code: str) -> None:
        self.rejections[code] += 1

    def tokens_per_second(self) -> float:
        """Exponential average over about five seconds of the tokens that reached the HTTP layer."""
        self._fold(time.perf_counter())
        return self._rate

    def recent_ttft(self, *quantiles: float) -> list[float | None]:
        values = sorted(self._recent)
        return [values[min(len(values) - 1, int(q * len(values)))] if values else None for q in quantiles]

    def mean_latency(self) -> float:
        """Seconds that a request took on average, 1 if nothing is known."""
        count = self.request_latency.cumulative()[-1][1]
        return self.request_latency.total / count if count else 1.0

    def _count(self, tokens: int, now: float) -> None:
        self._uncounted += tokens
        if now - self._rate_at > _FOLD_SECONDS:
            self._fold(now)

    def _fold(self, now: float) -> None:
        elapsed = now - self._rate_at
        self._rate = self._rate * math.exp(-elapsed / _RATE_SECONDS) + self._uncounted / _RATE_SECONDS
        self._uncounted = 0
        self._rate_at = now


class Exporter(Collector):
    """Renders one server's metrics from `Metrics`, the engine's statistics and the open answers."""

    def __init__(self, metrics: Metrics, client: EngineClient, lifecycle: Lifecycle) -> None:
        self._metrics = metrics
        self._client = client
        self._lifecycle = lifecycle
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def render(self) -> bytes:
        return generate_latest(self._registry)

    def describe(self) -> Iterable[Family]:
        return ()

    def collect(self) -> Iterator[Family]:
        try:
            name = self._client.info.name
        except EngineUnavailable:
            name = ""
        labels = {"model_name": name, "engine": "0"}
        yield from self._engine(labels)
        yield from self._requests(labels)
        yield from self._own(labels)

    def _engine(self, labels: dict[str, str]) -> Iterator[Family]:
        stats = self._client.stats()
        use = stats.blocks_used / stats.blocks_total if stats.blocks_total else 0.0
        yield _gauge("vllm:num_requests_running", "Sequences that hold a row.", stats.running, labels)
        yield _gauge("vllm:num_requests_waiting", "Sequences that wait for a row.", stats.waiting, labels)
        yield _gauge("vllm:kv_cache_usage_perc", "Share of KV blocks in use, 0 to 1.", use, labels)
        yield _counter("vllm:prompt_tokens", "Prompt tokens processed.", stats.prompt_tokens, labels)
        yield _counter("vllm:generation_tokens", "Tokens generated.", stats.generated_tokens, labels)
        yield _counter("vllm:num_preemptions", "Sequences that lost their row.", stats.preemptions, labels)
        yield _counter("vllm:prefix_cache_queries", "Prompt tokens looked up.", stats.prefix_queries, labels)
        yield _counter(
            "vllm:prefix_cache_hits", "Prompt tokens found in the cache.", stats.cached_tokens, labels
        )
        yield _counter("fastpath_steps", "Steps of the engine.", stats.steps, labels)
        yield _counter(
            "fastpath_late_tokens", "Sampled tokens whose row was gone.", stats.late_tokens, labels
        )
        yield _gauge("fastpath_batch_rows", "Rows in the last step.", stats.batch_rows, labels)
        yield _gauge("fastpath_step_seconds", "Duration of the last step.", stats.step_seconds, labels)
        yield _gauge(
            "fastpath_blocks_cached", "Blocks kept for the prefix cache.", stats.blocks_cached, labels
        )

    def _requests(self, labels: dict[str, str]) -> Iterator[Family]:
        metrics = self._metrics
        yield _counters(
            "vllm:request_success",
            "Choices that ended, by reason.",
            "finished_reason",
            metrics.finishes,
            labels,
        )
        yield _counters(
            "vllm:admission_rejections",
            "Requests turned away, by code.",
            "reason",
            metrics.rejections,
            labels,
        )
        yield _histogram(
            "vllm:time_to_first_token_seconds",
            "From request to first token.",
            metrics.time_to_first_token,
            labels,
        )
        yield _histogram(
            "vllm:inter_token_latency_seconds",
            "Between tokens of a choice.",
            metrics.inter_token_latency,
            labels,
        )
        yield _histogram(
            "vllm:e2e_request_latency_seconds", "From request to last token.", metrics.request_latency, labels
        )

    def _own(self, labels: dict[str, str]) -> Iterator[Family]:
        metrics = self._metrics
        ready = self._client.state == EngineState.READY
        yield _gauge("fastpath_engine_ready", "1 when the engine takes requests.", float(ready), labels)
        yield _gauge(
            "fastpath_draining", "1 while the server shuts down.", float(self._lifecycle.draining), labels
        )
        yield _gauge("fastpath_open_answers", "Answers under way.", self._lifecycle.open_answers, labels)
        yield _gauge("fastpath_tokens_per_second", "Recent token rate.", metrics.tokens_per_second(), labels)
        yield _counter("fastpath_disconnects", "Clients that left early.", metrics.disconnects, labels)
        yield _counter(
            "fastpath_slow_reader_aborts", "Readers that took nothing.", metrics.slow_readers, labels
        )
        yield _counter("fastpath_sse_events", "Token events sent.", metrics.events, labels)
        yield _counter("fastpath_sse_writes", "Writes that carried them.", metrics.writes, labels)
        yield _counter("fastpath_sse_pings", "Keep-alive comments sent.", metrics.pings, labels)


def _gauge(name: str, text: str, value: float, labels: dict[str, str]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=list(labels))
    family.add_metric(list(labels.values()), value)
    return family


def _counter(name: str, text: str, value: float, labels: dict[str, str]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=list(labels))
    family.add_metric(list(labels.values()), value)
    return family


def _counters(
    name: str, text: str, label: str, values: Counter[str], labels: dict[str, str]
) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=[*labels, label])
    for key, value in values.items():
        family.add_metric([*labels.values(), key], value)
    return family


def _histogram(name: str, text: str, histogram: Histogram, labels: dict[str, str]) -> HistogramMetricFamily:
    family = HistogramMetricFamily(name, text, labels=list(labels))
    family.add_metric(list(labels.values()), histogram.cumulative(), histogram.total)
    return family
