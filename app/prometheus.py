"""Prometheus text from what was counted.

Names are vLLM's where the meaning is the same, so that its dashboards work; `fastpath_` is for what nobody
else has. Each server has its own registry. Counters that the engine keeps are read from its latest
statistics.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from app.lifecycle import Lifecycle
from app.metrics import E2E_BUCKETS, FINISHES, ITL_BUCKETS, TTFT_BUCKETS, Counts, Histogram
from engine.messages import EngineClient, EngineState, EngineUnavailable

CONTENT_TYPE = CONTENT_TYPE_LATEST
Family = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily


class Exporter(Collector):
    """Renders a server's metrics from `Counts` and the engine's statistics."""

    def __init__(self, client: EngineClient, lifecycle: Lifecycle) -> None:
        self._client = client
        self._lifecycle = lifecycle
        self._counts = Counts()
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def render(self, counts: Counts) -> bytes:
        self._counts = counts
        return generate_latest(self._registry)

    def describe(self) -> Iterable[Family]:
        return ()

    def collect(self) -> Iterator[Family]:
        try:
            info = self._client.info
            name, memory = info.name, info.memory
        except EngineUnavailable:
            name, memory = "", {}
        labels = {"model_name": name, "engine": "0"}
        yield from self._engine(labels)
        if memory:
            yield _memory(memory, labels)
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
        yield _counter(
            "fastpath_kv_pool_growths", "Times that the KV pool became larger.", stats.kv_growths, labels
        )
        yield _counter(
            "fastpath_graph_recaptures",
            "Times that CUDA graphs were given up because the KV pool had moved.",
            stats.graph_recaptures,
            labels,
        )
        yield _gauge("fastpath_kv_blocks", "KV blocks in the pool.", stats.blocks_total, labels)
        yield _gauge("fastpath_batch_rows", "Rows in the last step.", stats.batch_rows, labels)
        yield _gauge("fastpath_step_seconds", "Duration of the last step.", stats.step_seconds, labels)
        yield _gauge(
            "fastpath_blocks_cached", "Blocks kept for the prefix cache.", stats.blocks_cached, labels
        )

    def _requests(self, labels: dict[str, str]) -> Iterator[Family]:
        counts = self._counts
        yield _counters(
            "vllm:request_success",
            "Choices that ended, by reason.",
            "finished_reason",
            Counter(dict.fromkeys(FINISHES, 0)) | Counter(counts.finishes),
            labels,
        )
        yield _counters(
            "vllm:admission_rejections",
            "Requests turned away, by code.",
            "reason",
            counts.rejections,
            labels,
        )
        yield _histogram(
            "vllm:time_to_first_token_seconds",
            "From request to first token.",
            histogram(TTFT_BUCKETS, counts.time_to_first_token),
            labels,
        )
        yield _histogram(
            "vllm:inter_token_latency_seconds",
            "Between tokens of a choice.",
            histogram(ITL_BUCKETS, counts.inter_token_latency),
            labels,
        )
        yield _histogram(
            "vllm:e2e_request_latency_seconds",
            "From request to last token.",
            histogram(E2E_BUCKETS, counts.request_latency),
            labels,
        )

    def _own(self, labels: dict[str, str]) -> Iterator[Family]:
        counts = self._counts
        ready = self._client.state == EngineState.READY
        yield _gauge("fastpath_engine_ready", "1 when the engine takes requests.", float(ready), labels)
        yield _gauge(
            "fastpath_draining", "1 while the server shuts down.", float(self._lifecycle.draining), labels
        )
        yield _gauge("fastpath_open_answers", "Answers under way.", counts.open_answers, labels)
        yield _gauge("fastpath_tokens_per_second", "Recent token rate.", counts.tokens_per_second, labels)
        yield _counter("fastpath_disconnects", "Clients that left early.", counts.disconnects, labels)
        yield _counter(
            "fastpath_slow_reader_aborts", "Readers that took nothing.", counts.slow_readers, labels
        )
        replays = "Answers that began again because an engine had died."
        yield _counter("fastpath_replays", replays, counts.replays, labels)
        yield _counter("fastpath_sse_events", "Token events sent.", counts.events, labels)
        yield _counter("fastpath_sse_writes", "Writes that carried them.", counts.writes, labels)
        yield _counter("fastpath_sse_pings", "Keep-alive comments sent.", counts.pings, labels)


def _gauge(name: str, text: str, value: float, labels: dict[str, str]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=list(labels))
    family.add_metric(list(labels.values()), value)
    return family


def _memory(parts: Mapping[str, int], labels: dict[str, str]) -> GaugeMetricFamily:
    text = "Bytes of the device by purpose, as budgeted at start."
    family = GaugeMetricFamily("fastpath_memory_bytes", text, labels=[*labels, "part"])
    for part, size in parts.items():
        family.add_metric([*labels.values(), part], size)
    return family


def _counter(name: str, text: str, value: float, labels: dict[str, str]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=list(labels))
    family.add_metric(list(labels.values()), value)
    return family


def _counters(
    name: str, text: str, label: str, values: Mapping[str, int], labels: dict[str, str]
) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=[*labels, label])
    for key, value in values.items():
        family.add_metric([*labels.values(), key], value)
    return family


def _histogram(name: str, text: str, histogram: Histogram, labels: dict[str, str]) -> HistogramMetricFamily:
    family = HistogramMetricFamily(name, text, labels=list(labels))
    family.add_metric(list(labels.values()), histogram.cumulative(), histogram.total)
    return family


def histogram(buckets: Sequence[float], dumped: Sequence[float]) -> Histogram:
    """One that was dumped, and perhaps added up."""
    result = Histogram(buckets)
    if dumped:
        result.load(dumped)
    return result
