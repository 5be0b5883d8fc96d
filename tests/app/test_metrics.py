"""What /metrics says, in a real scrape; the catalogue, the dashboard and the alerts speak of nothing else."""

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from app.settings.http import HttpSettings
from app.telemetry.metrics import ITL_BUCKETS, PER_REQUEST, Counts, Histogram, Metrics
from engine.messages import EngineStats, Finish, Frame, Started
from engine.messages.wire import StepHistograms
from tests.app.scripted_engine import ScriptedEngine, says
from tests.app.server_process import DEADLINE
from tests.app.serving import Served, served

ROOT = Path(__file__).parents[2]
OWN_LABELS = {"model_name", "engine"}


async def scrape(s: Served) -> dict[str, Metric]:
    text = (await s.http.get("/metrics")).text
    return {family.name: family for family in text_string_to_metric_families(text)}


def value(families: dict[str, Metric], name: str, **labels: str) -> float:
    """Of one sample."""
    found = [
        sample.value
        for family in families.values()
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]
    assert len(found) == 1, (name, found)
    return found[0]


def tell(engine: ScriptedEngine, started: Started) -> None:
    engine.router.dispatch(Frame([], [], [], [], [], engine.stats(), started=[started]))


async def asked(engine: ScriptedEngine, count: int) -> int:
    """The first stream id of the last of so many requests, once it is there."""
    await engine.until(lambda: len(engine.requests) == count)
    return engine.requests[-1].id


async def test_times_and_sizes_of_a_request_are_the_engines() -> None:
    engine = ScriptedEngine()
    async with served(engine) as s:
        task = asyncio.ensure_future(s.complete(prompt="abcd", max_tokens=7, n=2))
        id = await asked(engine, 1)
        for stream in (id, id + 1):
            tell(engine, Started(stream, 0.004, 3))
            engine.emit(stream, b"a")
            engine.emit(stream, b"b")
            end = Finish(
                stream,
                "length",
                None,
                3,
                prefill_seconds=0.04,
                decode_seconds=4.0,
                preemptions=2,
                batch_rows=2.5,
            )
            engine.emit(stream, b"c", end)
        reply = await task
        assert re.fullmatch(r"\d+", reply.headers["openai-processing-ms"])
        assert reply.headers["server-timing"] == "queue;dur=4.00, prefill;dur=40.00, decode;dur=4000.00"
        seen = await scrape(s)
    for name, total in (
        ("queue_time_seconds", 0.008),
        ("prefill_time_seconds", 0.08),
        ("decode_time_seconds", 8.0),
        ("inference_time_seconds", 8.08),
        ("generation_tokens", 6),
        ("num_preemptions", 4),
    ):
        assert value(seen, f"vllm:request_{name}_count") == 2, name
        assert value(seen, f"vllm:request_{name}_sum") == pytest.approx(total), name
    for name, total in (
        ("prompt_tokens", 5),  # with the one that begins a text
        ("params_n", 2),
        ("params_max_tokens", 7),
        ("max_num_generation_tokens", 3),
    ):
        assert value(seen, f"vllm:request_{name}_count") == 1, name
        assert value(seen, f"vllm:request_{name}_sum") == total, name
    assert value(seen, "vllm:request_time_per_output_token_seconds_count") == 2
    assert value(seen, "http_requests_total", method="POST", status="200", handler="/v1/completions") == 1
    assert value(seen, "http_request_duration_seconds_count", handler="/v1/completions") == 1


async def test_a_stop_string_leaves_nothing_unmeasured() -> None:
    """The engine never tells the end of such a choice: what follows the queue is measured here."""
    engine = ScriptedEngine()
    async with served(engine) as s:
        task = asyncio.ensure_future(s.complete(prompt="x", stop="!", stream=True))
        id = await asked(engine, 1)
        tell(engine, Started(id, 0.002, 0))
        for byte in b"ab!":
            engine.emit(id, [byte])
        await task
        seen = await scrape(s)
    assert value(seen, "vllm:request_success_total", finished_reason="stop") == 1
    for name in ("queue", "prefill", "decode", "inference"):
        assert value(seen, f"vllm:request_{name}_time_seconds_count") == 1
    assert value(seen, "vllm:request_num_preemptions_count") == 0


@contextlib.asynccontextmanager
async def connected(s: Served, body: bytes, length: int) -> AsyncIterator[asyncio.StreamReader]:
    """A raw client that has sent a request, or a part of it; it leaves at the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", s.port)
    head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json"
    writer.write(f"{head}\r\ncontent-length: {length}\r\n\r\n".encode() + body)
    await writer.drain()
    try:
        yield reader
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def test_who_leaves_is_counted_by_phase() -> None:
    engine = ScriptedEngine()
    body = json.dumps({"prompt": "x", "stream": True}).encode()
    async with served(engine, HttpSettings(header_grace=60)) as s:

        async def left(phase: str) -> None:
            async with asyncio.timeout(DEADLINE):
                while not s.context.metrics.disconnect_phases[phase]:
                    await s.http.get("/health")

        async with connected(s, body[:5], len(body)):
            await s.http.get("/health")
        await left("body")
        async with connected(s, body, len(body)):
            await asked(engine, 1)
        await left("queue")
        async with connected(s, body, len(body)):
            tell(engine, Started(await asked(engine, 2), 0.0, 0))
        await left("prefill")
        async with connected(s, body, len(body)) as reader:
            id = await asked(engine, 3)
            tell(engine, Started(id, 0.0, 0))
            engine.emit(id, b"a")
            await reader.readuntil(b'"a"')
            assert value(await scrape(s), "fastpath_open_streams") == 1
        await left("decode")
        seen = await scrape(s)
        assert engine.open_streams == 0
    for phase in ("body", "queue", "prefill", "decode"):
        assert value(seen, "fastpath_disconnects_total", phase=phase) == 1
    assert value(seen, "fastpath_open_streams") == 0
    assert value(seen, "vllm:request_success_total", finished_reason="abort") == 3
    assert value(seen, "http_requests_total", status="499") == 3  # those that got no headers
    assert value(seen, "http_requests_total", handler="/v1/completions", status="200") == 1


async def test_the_engines_counters_are_shown() -> None:
    engine = ScriptedEngine()
    steps = StepHistograms()
    for tokens, seconds in ((1, 0.0004), (20, 0.004), (20_000, 99.0)):
        steps.observe(tokens, seconds)
    stats = EngineStats(
        *(4, 5), deferred=2, oldest_wait_seconds=1.5, nonfinite=3, resident_bytes=7, step_histograms=steps
    )
    stats = msgspec.structs.replace(stats, path_failures=6)
    engine.stats = lambda: stats  # type: ignore[method-assign]
    async with served(engine) as s:
        seen = await scrape(s)
        shown = (await s.http.get("/stats")).json()
    assert value(seen, "vllm:num_requests_waiting_by_reason", reason="capacity") == 3
    assert value(seen, "vllm:num_requests_waiting_by_reason", reason="deferred") == 2
    assert value(seen, "vllm:corrupted_requests_total") == 3
    assert value(seen, "fastpath_decode_path_failures_total") == shown["path_failures"] == 6
    assert value(seen, "fastpath_queue_age_seconds") == 1.5
    assert value(seen, "fastpath_batch_occupancy") == 0.5
    assert value(seen, "vllm:iteration_tokens_total_sum") == 20_021
    assert value(seen, "vllm:iteration_tokens_total_bucket", le="32.0") == 2
    assert value(seen, "fastpath_step_duration_seconds_bucket", le="0.0005") == 1
    assert value(seen, "fastpath_step_duration_seconds_count") == 3
    info = next(iter(seen["vllm:cache_config_info"].samples)).labels
    assert (info["block_size"], info["num_gpu_blocks"], info["cache_dtype"]) == ("16", "64", "float32")
    assert "step_histograms" not in shown and shown["oldest_wait_seconds"] == 1.5


async def test_bytes_and_events_are_those_on_the_wire() -> None:
    async with served(ScriptedEngine(says("a✓bcd" * 3))) as s:
        text = (await s.complete(prompt="x", stream=True)).text
        metrics = s.context.metrics
        sent = [block for block in text.split("\n\n") if '"text":' in block]
        assert metrics.events == len(sent) >= metrics.writes
        assert metrics.event_bytes == sum(len(block.encode()) + 2 for block in sent)


VALUES = st.lists(st.tuples(st.sampled_from(sorted(PER_REQUEST)), st.floats(0, 1e4)), max_size=20)


@given(VALUES, VALUES)
@settings(max_examples=30)
def test_two_front_ends_count_as_one_would(
    one: list[tuple[str, float]], two: list[tuple[str, float]]
) -> None:
    def counted(values: list[tuple[str, float]]) -> Counts:
        from app.http.lifecycle import Lifecycle

        metrics = Metrics()
        for name, number in values:
            metrics.observe(name, number)
            metrics.http_answered("GET", int(number) % 3 + 200, name, number)
            metrics.disconnected("decode")
        wire = msgspec.msgpack.encode(metrics.counts(Lifecycle()))  # as it comes from another process
        return msgspec.msgpack.decode(wire, type=Counts)

    apart, together = counted(one).plus(counted(two)), counted([*one, *two])
    assert apart.http_requests == together.http_requests
    assert apart.disconnect_phases == together.disconnect_phases
    for ours, theirs in (
        (apart.per_request, together.per_request),
        (apart.http_seconds, together.http_seconds),
    ):
        assert ours.keys() == theirs.keys()
        for name in ours:
            assert ours[name] == pytest.approx(theirs[name])


# -- nothing speaks of a metric that is not there


@pytest.fixture
async def families() -> dict[str, Metric]:
    """A scrape in which every kind of thing has happened once."""
    engine = ScriptedEngine(says("hello"))
    assert engine.model is not None
    engine.model = msgspec.structs.replace(engine.model, memory={"kv": 1})
    async with served(engine) as s:
        await s.complete(prompt="x", stream=True)
        s.context.metrics.rejected("overloaded")
        return await scrape(s)


def sample_names(families: dict[str, Metric]) -> set[str]:
    """Every name that a query may use. Labelled families without a sample yet count with their names."""
    names = {sample.name for family in families.values() for sample in family.samples}
    return names | {f"{name}_total" for name, family in families.items() if family.type == "counter"}


def mentioned(text: str) -> set[str]:
    return set(re.findall(r"\b(?:vllm:|fastpath_|http_request|process_)[a-z0-9_:]+", text))


def expressions() -> Iterator[tuple[str, str]]:
    dashboard = json.loads((ROOT / "deploy/grafana/dashboards/fastpath.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]
    for group in yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]


async def test_dashboard_and_alerts_ask_for_what_there_is(families: dict[str, Metric]) -> None:
    names, asked_for = sample_names(families), set()
    for where, expression in expressions():
        used = mentioned(expression)
        assert used and used <= names, (where, used - names)
        assert expression.count("(") == expression.count(")"), where
        asked_for |= used
    shown = {re.sub("_(bucket|sum|count)$", "", name) for name in asked_for}
    shown |= {name.removesuffix("_total") for name in shown}
    assert families.keys() - shown <= {"vllm:cache_config_info"}, "the dashboard leaves out what is measured"


async def test_the_catalogue_is_what_a_scrape_says(families: dict[str, Metric]) -> None:
    rows: dict[str, tuple[str, set[str]]] = {}
    for line in (ROOT / "docs/metrics.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `") and len(cells) == 4:
            rows[cells[0].strip("`")] = cells[1], set(re.findall(r"`(\w+)`", cells[2]))
    there = set()
    for family in families.values():
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = {label for sample in family.samples for label in sample.labels} - OWN_LABELS - {"le"}
        assert name in rows, f"docs/metrics.md lacks {name} ({family.type}, {sorted(labels)})"
        assert rows[name] == (family.type, labels), name
        there.add(name)
    assert rows.keys() == there


async def test_short_times_have_fine_buckets(families: dict[str, Metric]) -> None:
    for name, family in families.items():
        if family.type == "histogram" and name.endswith("_seconds") and not name.startswith("http"):
            bounds = {sample.labels.get("le") for sample in family.samples}
            assert {"0.0005", "0.001", "0.002", "0.005", "0.01"} <= bounds, name


def test_a_histogram_keeps_every_value() -> None:
    histogram = Histogram(ITL_BUCKETS)
    for number in (0.0, 0.0005, 0.00051, 80, 81):
        histogram.observe(number)
    shown = dict(histogram.cumulative())
    assert (shown["0.0005"], shown["0.001"], shown["80.0"], shown["+Inf"]) == (2, 3, 4, 5)
