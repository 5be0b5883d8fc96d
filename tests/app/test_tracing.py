"""W3C trace context, and spans in a real OTLP receiver."""

import asyncio
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from app.__main__ import main
from app.checks import check
from app.routes.otlp import OtlpSpans
from app.settings.config import Config
from app.settings.http import HttpSettings
from app.settings.options import CommandLine, UsageError
from app.telemetry.trace_context import trace_context
from engine.messages import Finish, Frame, Started
from tests.app.scripted_engine import ScriptedEngine, says
from tests.app.serving import Served, served

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
VALID = f"00-{TRACE}-{PARENT}-01"


def parsed(*values: bytes) -> tuple[str, str, bool] | None:
    found = trace_context([(b"host", b"x"), *((b"traceparent", value) for value in values)])
    return None if found is None else (found.trace_id, found.parent_id, found.sampled)


@given(st.integers(0, 255), st.integers(0, 2**128 - 1), st.integers(0, 2**64 - 1), st.integers(0, 255))
@example(0, 0, 1, 1)
@example(0, 1, 0, 1)
@example(255, 1, 1, 1)
@settings(max_examples=50)
def test_what_is_valid_is_read(version: int, trace: int, parent: int, flags: int) -> None:
    value = f"{version:02x}-{trace:032x}-{parent:016x}-{flags:02x}".encode()
    valid = bool(version != 255 and trace and parent)
    expected = (f"{trace:032x}", f"{parent:016x}", bool(flags & 1)) if valid else None
    assert parsed(value) == expected
    assert parsed(b" " + value + b"\t") == expected
    assert parsed(value, value) is None, "two are none"
    assert parsed(value + b"-more") == (expected if version else None), "only later versions may have more"


@given(st.integers(0, 54), st.sampled_from(b"gAZ -\x00\xff0"))
@settings(max_examples=60)
def test_one_wrong_character_makes_it_invalid(at: int, char: int) -> None:
    value = bytearray(VALID.encode())
    if char == value[at] or (chr(char) == "0" and chr(value[at]) != "-"):
        return
    value[at] = char
    assert parsed(bytes(value)) is None
    assert parsed(bytes(value[:at])) is None


async def test_the_callers_trace_is_echoed_with_a_span_of_ours() -> None:
    async with served(ScriptedEngine(says("x"))) as s:
        spans = set()
        for path in ("/health", "/nowhere"):
            reply = await s.http.get(path, headers={"traceparent": VALID})
            found = re.fullmatch(rf"00-{TRACE}-([0-9a-f]{{16}})-01", reply.headers["traceparent"])
            assert found is not None
            spans.add(found[1])
        assert len(spans) == 2 and PARENT not in spans
        for invalid in (None, "00-x", VALID.upper()):
            headers = {} if invalid is None else {"traceparent": invalid}
            assert "traceparent" not in (await s.http.get("/health", headers=headers)).headers


@dataclass
class Receiver:
    """An OTLP collector: it decodes what it is sent."""

    url: str = ""
    spans: list[Span] = field(default_factory=list)
    paths: set[str] = field(default_factory=set)
    came: threading.Event = field(default_factory=threading.Event)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    found = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                import gzip

                body = gzip.decompress(body)
            request = ExportTraceServiceRequest.FromString(body)
            found.paths.add(self.path)
            for resource in request.resource_spans:
                for scope in resource.scope_spans:
                    found.spans += scope.spans
            found.came.set()
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield found
        server.shutdown()
        thread.join()


def attributes(span: Span) -> dict[str, object]:
    def plain(value: object) -> object:
        kind = value.WhichOneof("value")  # type: ignore[attr-defined]
        found = getattr(value, kind)
        return [plain(item) for item in found.values] if kind == "array_value" else found

    return {item.key: plain(item.value) for item in span.attributes}


async def generate(s: Served, engine: ScriptedEngine, finish: Finish | None, **body: object) -> None:
    """One completion of two tokens."""
    count = len(engine.requests)
    headers = {"traceparent": VALID}
    asking = s.http.post("/v1/completions", json={"prompt": "abc", **body}, headers=headers)
    task = asyncio.ensure_future(asking)
    await engine.until(lambda: len(engine.requests) == count + 1)
    id = engine.requests[-1].id
    engine.router.dispatch(Frame([], [], [], [], [], engine.stats(), started=[Started(id, 0.25, 2)]))
    engine.emit(id, b"a")
    engine.emit(id, b"b", finish or Finish(id, "length", None, 2))
    await task


async def test_a_span_of_each_request_reaches_the_collector(receiver: Receiver) -> None:
    engine = ScriptedEngine()
    async with served(engine, HttpSettings(otlp_endpoint=receiver.url)) as s:
        await generate(s, engine, None, max_tokens=5, temperature=0.5, seed=3)
        await generate(s, engine, None, stream=True)
        plain = await s.http.get("/health")
        assert re.fullmatch("00-[0-9a-f]{32}-[0-9a-f]{16}-01", plain.headers["traceparent"])
        unwanted = await s.http.get("/health", headers={"traceparent": VALID[:-1] + "0"})
        assert unwanted.headers["traceparent"].startswith(f"00-{TRACE}-")
        assert unwanted.headers["traceparent"].endswith("-00")
        spans = s.context.spans
        assert isinstance(spans, OtlpSpans)
        await spans.close()
    assert receiver.paths == {"/v1/traces"}
    first, second, health = receiver.spans
    assert (first.trace_id.hex(), first.parent_span_id.hex()) == (TRACE, PARENT)
    assert first.name == "text_completion scripted" and first.kind == Span.SPAN_KIND_SERVER
    said = attributes(first)
    expected = {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.request.model": "scripted",
        "gen_ai.request.max_tokens": 5,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.seed": 3,
        "gen_ai.request.choice.count": 1,
        "gen_ai.request.stream": False,
        "gen_ai.response.finish_reasons": ["length"],
        "gen_ai.usage.input_tokens": 4,
        "gen_ai.usage.output_tokens": 2,
        "gen_ai.usage.cache_read.input_tokens": 2,
        "gen_ai.latency.time_in_queue": 0.25,
        "http.response.status_code": 200,
        "http.route": "/v1/completions",
    }
    assert {name: said.get(name) for name in expected} == expected
    assert str(said["gen_ai.response.id"]).startswith("cmpl-")
    (event,) = first.events
    assert event.name == "gen_ai.first_token"
    assert first.start_time_unix_nano < event.time_unix_nano < first.end_time_unix_nano
    assert attributes(second)["gen_ai.request.stream"] is True
    assert health.trace_id.hex() == plain.headers["traceparent"].split("-")[1]
    said_by_all = [item for span in receiver.spans for item in attributes(span).items()]
    # A response's id is random.
    assert not any("abc" in str(value) for name, value in said_by_all if name != "gen_ai.response.id")


async def test_a_collector_that_is_away_holds_up_nothing() -> None:
    async with served(ScriptedEngine(says("x")), HttpSettings(otlp_endpoint="http://127.0.0.1:9")) as s:
        for _ in range(3):
            assert (await s.complete(prompt="x")).status_code == 200
        spans = s.context.spans
        assert spans is not None
        async with asyncio.timeout(4):
            await spans.close()


def test_without_the_packages_the_flag_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("app.checks.OTLP_MODULES", ("opentelemetry_that_is_not.there",))
    assert main(["--otlp-endpoint", "http://collector:4318"]) == 2
    assert "fastpath[otel]" in capsys.readouterr().err


@pytest.mark.parametrize("url", ["collector:4318", "ftp://x", "http://", "http://x:99999"])
def test_only_urls_are_endpoints(url: str) -> None:
    with pytest.raises(UsageError, match="--otlp-endpoint"):
        CommandLine("x", "x", Config()).parse(["--otlp-endpoint", url], {})


def test_content_needs_a_line_to_stand_in() -> None:
    config, _ = CommandLine("x", "x", Config()).parse(["--log-content"], {})
    with pytest.raises(UsageError, match="--access-log"):
        check(config)
