"""Prometheus text from what was counted.

Names are vLLM's where the meaning is the same, so that its dashboards work; `fastpath_` is for what nobody
else has. Each server has its own registry. Counters that the engine keeps are read from its latest
statistics.
"""

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol, runtime_checkable

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from app.http.lifecycle import Lifecycle
from app.telemetry.metrics import (
    E2E_BUCKETS,
    FINISHES,
    HTTP_BUCKETS,
    ITL_BUCKETS,
    PER_REQUEST,
    PHASES,
    TOKEN_BUCKETS,
    TTFT_BUCKETS,
    Counts,
    Histogram,
)
from engine.messages import EngineClient, EngineState, EngineUnavailable, ModelInfo
from engine.messages.wire import STEP_SECONDS, STEP_TOKENS

CONTENT_TYPE = CONTENT_TYPE_LATEST
Family = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily

# Codes with which a request is turned away for another reason than the load.
NOT_FOR_LOAD = ("draining", "engine_unavailable", "server_shutdown")


@runtime_checkable
class Watched(Protocol):
    """What an engine client knows about an engine in another process."""

    @property
    def heartbeat_age(self) -> float: ...

    revivals: int


def heartbeat_age(client: EngineClient) -> float:
    """Seconds since the engine was heard; 0 where nobody listens for it."""
    return client.heartbeat_age if isinstance(client, Watched) else 0.0


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
        except EngineUnavailable:
            info = None
        labels = {"model_name": info.name if info is not None else "", "engine": "0"}
        yield from self._engine(labels)
        yield from self._steps(labels)
        if info is not None:
            yield _cache_config(info, self._client.stats().blocks_total, labels)
            if info.memory:
                yield _memory(info.memory, labels)
        yield from self._requests(labels)
        yield from self._per_request(labels, info)
        yield from self._own(labels)
        yield from self._streams(labels)
        yield from self._http()

    def _engine(self, labels: dict[str, str]) -> Iterator[Family]:
        stats = self._client.stats()
        use = stats.blocks_used / stats.blocks_total if stats.blocks_total else 0.0
        yield _gauge("vllm:num_requests_running", "Sequences that hold a row.", stats.running, labels)
        yield _gauge("vllm:num_requests_waiting", "Sequences that wait for a row.", stats.waiting, labels)
        yield _gauges(
            "vllm:num_requests_waiting_by_reason",
            "Sequences that wait: for room, or because an idle engine gathers a batch.",
            "reason",
            {"capacity": stats.waiting - stats.deferred, "deferred": stats.deferred},
            labels,
        )
        yield _gauge("vllm:kv_cache_usage_perc", "Share of KV blocks in use, 0 to 1.", use, labels)
        yield _counter("vllm:prompt_tokens", "Prompt tokens processed.", stats.prompt_tokens, labels)
        yield _counter(
            "vllm:prompt_tokens_cached", "Of those, taken from the cache.", stats.cached_tokens, labels
        )
        yield _counter("vllm:generation_tokens", "Tokens generated.", stats.generated_tokens, labels)
        yield _counter(
            "vllm:corrupted_requests", "Choices whose logits were not finite.", stats.nonfinite, labels
        )
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
        yield _counter(
            "fastpath_decode_path_failures",
            "Times that kernels of a decode path gave up, and graphs took their place for good.",
            stats.path_failures,
            labels,
        )
        yield _gauge("fastpath_kv_blocks", "KV blocks in the pool.", stats.blocks_total, labels)
        yield _gauge("fastpath_batch_rows", "Rows in the last step.", stats.batch_rows, labels)
        yield _gauge("fastpath_step_seconds", "Duration of the last step.", stats.step_seconds, labels)
        yield _gauge(
            "fastpath_blocks_cached", "Blocks kept for the prefix cache.", stats.blocks_cached, labels
        )

    def _steps(self, labels: dict[str, str]) -> Iterator[Family]:
        """What the engine counts once per step."""
        stats = self._client.stats()
        rows = 0
        with contextlib.suppress(EngineUnavailable):
            rows = self._client.info.max_rows
        seen = stats.step_histograms
        yield _histogram(
            "vllm:iteration_tokens_total",
            "Tokens of a step, of prompts and of answers.",
            histogram(STEP_TOKENS, [seen.token_total, *seen.tokens]),
            labels,
        )
        yield _histogram(
            "fastpath_step_duration_seconds",
            "Duration of a step.",
            histogram(STEP_SECONDS, [seen.second_total, *seen.seconds]),
            labels,
        )
        yield _gauge(
            "fastpath_batch_occupancy",
            "Running sequences by rows that there are, 0 to 1.",
            stats.running / rows if rows else 0.0,
            labels,
        )
        yield _gauge(
            "fastpath_queue_age_seconds",
            "How long the sequence at the head of the queue has waited.",
            stats.oldest_wait_seconds,
            labels,
        )
        yield _gauge(
            "fastpath_engine_resident_memory_bytes",
            "Memory of the engine's process, 0 where it is the server's own.",
            stats.resident_bytes,
            labels,
        )

    def _per_request(self, labels: dict[str, str], info: ModelInfo | None) -> Iterator[Family]:
        most = info.max_model_len if info is not None else None
        for name, (buckets, text) in PER_REQUEST.items():
            counted = histogram(buckets, self._counts.per_request.get(name, []))
            yield _histogram(name, text, counted, labels, most if buckets is TOKEN_BUCKETS else None)

    def _http(self) -> Iterator[Family]:
        counts = self._counts
        requests = CounterMetricFamily(
            "http_requests", "HTTP requests that have ended.", labels=["method", "status", "handler"]
        )
        for key, value in counts.http_requests.items():
            requests.add_metric(key.split(" ", 2), value)
        yield requests
        seconds = HistogramMetricFamily(
            "http_request_duration_seconds", "From request to end of answer.", labels=["method", "handler"]
        )
        for kind, dumped in counts.http_seconds.items():
            counted = histogram(HTTP_BUCKETS, dumped)
            seconds.add_metric(kind.split(" ", 1), counted.cumulative(), counted.total)
        yield seconds
        text = "Memory of the processes that answer HTTP."
        yield _gauge("process_resident_memory_bytes", text, counts.resident_bytes, {})
        text = "Open files of the processes that answer HTTP."
        yield _gauge("process_open_fds", text, counts.open_fds, {})
        text = "CPU time of the processes that answer HTTP."
        yield _counter("process_cpu_seconds", text, counts.cpu_seconds, {})

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
        yield _counters(
            "fastpath_shed",
            "Requests turned away because of the load, by code.",
            "reason",
            {code: count for code, count in counts.rejections.items() if code not in NOT_FOR_LOAD},
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
        yield _gauge("fastpath_open_streams", "Event streams under way.", counts.open_streams, labels)
        yield _gauge("fastpath_tokens_per_second", "Recent token rate.", counts.tokens_per_second, labels)
        client = self._client
        revivals = client.revivals if isinstance(client, Watched) else 0
        yield _gauge(
            "fastpath_engine_heartbeat_age_seconds",
            "Since the engine process was last heard.",
            heartbeat_age(client),
            labels,
        )
        yield _counter(
            "fastpath_engine_restarts", "Engines that took the place of a dead one.", revivals, labels
        )

    def _streams(self, labels: dict[str, str]) -> Iterator[Family]:
        counts = self._counts
        yield _counters(
            "fastpath_disconnects",
            "Clients that left early, by how far their request had come.",
            "phase",
            dict.fromkeys(PHASES, 0) | counts.disconnect_phases,
            labels,
        )
        yield _counter(
            "fastpath_slow_reader_aborts", "Readers that took nothing.", counts.slow_readers, labels
        )
        replays = "Answers that began again because an engine had died."
        yield _counter("fastpath_replays", replays, counts.replays, labels)
        yield _counter("fastpath_sse_events", "Token events sent.", counts.events, labels)
        yield _counter("fastpath_sse_writes", "Writes that carried them.", counts.writes, labels)
        yield _counter("fastpath_sse_bytes", "Bytes of token events.", counts.event_bytes, labels)
        yield _gauge(
            "fastpath_sse_events_per_write",
            "Token events that share a write: 1 while all readers keep up.",
            counts.events / counts.writes if counts.writes else 1.0,
            labels,
        )
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


def _cache_config(info: ModelInfo, blocks: int, labels: dict[str, str]) -> GaugeMetricFamily:
    """Always 1: what it says is in the labels."""
    about = {
        "block_size": str(info.block_size),
        "num_gpu_blocks": str(blocks or info.num_blocks),
        "cache_dtype": info.dtype,
        "max_rows": str(info.max_rows),
        "max_model_len": str(info.max_model_len),
    }
    return _gauge("vllm:cache_config_info", "How the KV cache is cut.", 1.0, labels | about)


def _gauges(
    name: str, text: str, label: str, values: Mapping[str, float], labels: dict[str, str]
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=[*labels, label])
    for key, value in values.items():
        family.add_metric([*labels.values(), key], value)
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


def _histogram(
    name: str, text: str, histogram: Histogram, labels: dict[str, str], most: float | None = None
) -> HistogramMetricFamily:
    """`most`: no value is larger, so that no bound beyond needs to be shown."""
    shown = histogram.cumulative()
    if most is not None:
        shown = [pair for pair in shown if pair[0] == "+Inf" or float(pair[0]) <= most]
    family = HistogramMetricFamily(name, text, labels=list(labels))
    family.add_metric(list(labels.values()), shown, histogram.total)
    return family


def histogram(buckets: Sequence[float], dumped: Sequence[float]) -> Histogram:
    """One that was dumped, and perhaps added up."""
    result = Histogram(buckets)
    if dumped:
        result.load(dumped)
    return result
