"""One OpenTelemetry span per request, for `--otlp-endpoint`; loaded only where that is asked for.

Attributes follow the GenAI conventions, and vLLM's names for what those lack. Spans leave through the SDK's
batch processor: its own thread talks to the collector, and drops spans when that does not keep up.
"""

import asyncio
import secrets
import threading
from urllib.parse import urlsplit

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Span, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)
from opentelemetry.util.types import AttributeValue

from app.answers.record import RequestRecord, Timing
from app.settings.http import package_version
from app.telemetry.trace_context import TraceContext

EXPORT_SECONDS = 3.0  # for one batch, and for what is left at the end
OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/chat/completions": "chat",
    "/v1/messages": "chat",
    "/v1/responses": "chat",
    "/v1/completions": "text_completion",
}


class OtlpSpans:
    """A `Spans` that sends to an OTLP collector over HTTP. endpoint: its URL; a bare host gets /v1/traces."""

    def __init__(self, endpoint: str, delay_seconds: float = 5.0) -> None:
        url = endpoint if urlsplit(endpoint).path.strip("/") else endpoint.rstrip("/") + "/v1/traces"
        about = {"service.name": "fastpath", "service.version": package_version()}
        self._provider = TracerProvider(
            resource=Resource.create(about), id_generator=_Ids(), shutdown_on_exit=False
        )
        exporter = OTLPSpanExporter(endpoint=url, timeout=EXPORT_SECONDS)
        self._provider.add_span_processor(
            BatchSpanProcessor(exporter, schedule_delay_millis=1e3 * delay_seconds)
        )
        self._tracer = self._provider.get_tracer("fastpath", package_version())
        self._open: dict[str, Span] = {}  # by span id

    def begin(self, record: RequestRecord, caller: TraceContext | None) -> TraceContext:
        parent = None
        if caller is not None:
            flags = TraceFlags(TraceFlags.SAMPLED if caller.sampled else TraceFlags.DEFAULT)
            remote = SpanContext(int(caller.trace_id, 16), int(caller.parent_id, 16), True, flags)
            parent = set_span_in_context(NonRecordingSpan(remote))
        span = self._tracer.start_span(
            f"{record.method} {record.path[:100]}",
            context=parent,
            kind=SpanKind.SERVER,
            start_time=record.started_ns,
        )
        own = span.get_span_context()
        span_id = f"{own.span_id:016x}"
        if isinstance(span, Span):
            self._open[span_id] = span
        parent_id = caller.parent_id if caller is not None else ""
        return TraceContext(f"{own.trace_id:032x}", parent_id, span_id, own.trace_flags.sampled)

    def end(self, record: RequestRecord) -> None:
        span = self._open.pop(record.trace.span_id, None) if record.trace is not None else None
        if span is None:
            return  # the caller does not want it recorded
        span.set_attributes(
            {
                "http.request.method": record.method,
                "http.route": record.route,
                "http.response.status_code": record.status,
                "http.request.id": record.request_id,
                "client.address": record.client,
            }
        )
        if record.generation is not None:
            span.update_name(f"{OPERATIONS.get(record.route, 'generate')} {record.model}".strip())
            span.set_attributes(_generation(record))
            first = record.generation.choices[0].first_token_at
            if first:
                at = record.started_ns + round(1e9 * (first - record.started))
                span.add_event("gen_ai.first_token", timestamp=at)
        fault = record.generation.fault if record.generation is not None else ""
        if record.status >= 500 or fault:
            span.set_status(Status(StatusCode.ERROR, fault[:200] or None))
            span.set_attribute("error.type", str(record.status) if record.status >= 500 else "engine")
        span.end(record.started_ns + round(1e9 * record.seconds))

    async def close(self) -> None:
        """Sends what is left; gives up after a while."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()

        def finish() -> None:
            if not done.done():
                done.set_result(None)

        def shut_down() -> None:
            self._provider.shutdown()
            if not loop.is_closed():
                loop.call_soon_threadsafe(finish)

        # Not in the loop's executor, whose threads the interpreter waits for.
        threading.Thread(target=shut_down, name="spans", daemon=True).start()
        await asyncio.wait({done}, timeout=EXPORT_SECONDS)


class _Ids(IdGenerator):
    """Random ids that no seed of this process can repeat."""

    def generate_span_id(self) -> int:
        return secrets.randbits(64) or 1

    def generate_trace_id(self) -> int:
        return secrets.randbits(128) or 1


def _generation(record: RequestRecord) -> dict[str, AttributeValue]:
    generation = record.generation
    assert generation is not None
    usage, choices = generation.usage(), generation.choices
    params = record.params(generation)
    timing = Timing.of(choices[0], generation.started)
    first = choices[0].first_token_at
    found: dict[str, object] = {
        "gen_ai.operation.name": OPERATIONS.get(record.route, "generate"),
        "gen_ai.provider.name": "fastpath",
        "gen_ai.request.model": record.model,
        "gen_ai.response.model": record.model,
        "gen_ai.response.id": record.response_id or None,
        "gen_ai.response.finish_reasons": [choice.reason for choice in choices if choice.reason],
        "gen_ai.response.time_to_first_chunk": first - generation.started if first else None,
        "gen_ai.request.choice.count": params.get("n"),
        "gen_ai.request.stream": record.streamed,
        "gen_ai.usage.input_tokens": usage.prompt_tokens,
        "gen_ai.usage.output_tokens": usage.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
        "gen_ai.latency.time_in_queue": timing.queue,
        "gen_ai.latency.time_in_model_prefill": timing.prefill,
        "gen_ai.latency.time_in_model_decode": timing.decode,
        "gen_ai.latency.e2e": record.seconds,
    }
    for name in ("max_tokens", "temperature", "top_p", "top_k", "seed"):
        found[f"gen_ai.request.{name}"] = params.get(name)
    attributes: dict[str, AttributeValue] = {}
    for name, value in found.items():
        if isinstance(value, str | bool | int | float):
            attributes[name] = value
        elif isinstance(value, list):
            attributes[name] = [str(item) for item in value]
    return attributes
