"""What is known about one HTTP request when it has ended: for the log, the metrics and the traces.

Nothing here runs per token. A choice keeps the times of its first and last token anyway; percentiles of the
times between its tokens are those of the engine's steps while it was being generated, for a choice gets one
token with each of them.
"""

import statistics
import time
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from operator import itemgetter
from typing import Protocol

from starlette.types import Scope

from app.answers.choices import Choice
from app.answers.generation import Generation
from app.telemetry.metrics import Metrics
from app.telemetry.trace_context import TraceContext

CONTENT = ("messages", "prompt", "input", "instructions", "system", "stop", "stop_sequences")
CLIENT_LEFT = 499  # nginx's status for an answer that nobody waited for

Header = tuple[bytes, bytes]

_when = itemgetter(0)


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one choice; None is not known, or did not come so far."""

    queue: float | None
    prefill: float | None
    decode: float | None
    per_token: float | None  # mean time between tokens

    @classmethod
    def of(cls, choice: Choice, started: float) -> "Timing":
        """The engine's own times where it has told them. It tells no end of a choice that was aborted, also
        by a stop string: then what follows the queue is measured here.
        """
        stream, ended, first = choice.stream, choice.ended, choice.first_token_at
        began = stream.started if stream is not None else None
        queue = began.queue_seconds if began is not None else None
        prefill = decode = per_token = None
        if first:
            decode = choice.last_token_at - first
            if choice.completion_tokens > 1:
                per_token = decode / (choice.completion_tokens - 1)
            if queue is not None:
                prefill = max(first - started - queue, 0.0)
        if ended is not None and ended.prefill_seconds is not None:
            prefill, decode = ended.prefill_seconds, ended.decode_seconds
        return cls(queue, prefill, decode, per_token)


@dataclass(slots=True)
class RequestRecord:
    """One HTTP request, filled in on its way. `status` 0: no answer has begun."""

    method: str
    path: str
    client: str
    started: float = field(default_factory=time.perf_counter)
    started_ns: int = field(default_factory=time.time_ns)
    seconds: float = 0.0
    status: int = 0
    route: str = "none"
    streamed: bool = False
    request_id: str = ""
    key_id: str = ""
    trace: TraceContext | None = None
    generation: Generation | None = None
    response_id: str = ""
    model: str = ""
    user: str = ""
    content: dict[str, object] = field(default_factory=dict)

    def answers(
        self,
        generation: Generation,
        body: dict[str, object],
        model: str,
        response_id: str = "",
        *,
        with_content: bool = False,
    ) -> None:
        """The request asks for a generation; `body` is what it sent, `model` what answers it. Without
        `with_content` nothing is kept of its texts, which can be much larger than what the engine is given.
        """
        self.generation, self.model, self.response_id = generation, model, response_id
        user = body.get("safety_identifier") or body.get("user")
        if isinstance(user, str):
            self.user = user[:128]
        if with_content:
            self.content = {name: body[name] for name in CONTENT if name in body}

    def count(self, metrics: Metrics) -> None:
        """Tells the metrics what they count once per request."""
        metrics.http_answered(self.method, self.status, self.route, self.seconds)
        generation = self.generation
        if generation is None:
            return
        for choices in _by_prompt(generation):
            self._count_prompt(choices, metrics, generation.started)

    def _count_prompt(self, choices: list[Choice], metrics: Metrics, started: float) -> None:
        first = choices[0]
        metrics.observe("vllm:request_prompt_tokens", len(first.prompt))
        metrics.observe("vllm:request_params_n", len(choices))
        longest = max(choice.completion_tokens for choice in choices)
        metrics.observe("vllm:request_max_num_generation_tokens", longest)
        if first.stream is not None and first.stream.request is not None:
            metrics.observe("vllm:request_params_max_tokens", first.stream.request.params.max_tokens)
        for choice in choices:
            timing = Timing.of(choice, started)
            metrics.observe("vllm:request_generation_tokens", choice.completion_tokens)
            metrics.observe("vllm:request_queue_time_seconds", timing.queue)
            metrics.observe("vllm:request_prefill_time_seconds", timing.prefill)
            metrics.observe("vllm:request_decode_time_seconds", timing.decode)
            metrics.observe("vllm:request_time_per_output_token_seconds", timing.per_token)
            if timing.prefill is not None and timing.decode is not None:
                metrics.observe("vllm:request_inference_time_seconds", timing.prefill + timing.decode)
            if choice.ended is not None:
                metrics.observe("vllm:request_num_preemptions", choice.ended.preemptions)

    def line(self, with_content: bool = False) -> dict[str, object]:
        """The fields of the log line; all but the last few are there for every request."""
        about: dict[str, object] = {
            "request_id": self.request_id,
            "key_id": self.key_id,
            "client": self.client,
            "method": self.method,
            "route": self.route if self.route != "none" else self.path[:100],
            "status": self.status,
            "duration_ms": _ms(self.seconds),
            "trace_id": self.trace.trace_id if self.trace is not None else None,
        }
        if self.generation is None:
            return about
        about |= self._generated(self.generation)
        if self.user:
            about["user"] = self.user
        if with_content:
            about["content"] = self.content
        return about

    def _generated(self, generation: Generation) -> dict[str, object]:
        usage, choices = generation.usage(), generation.choices
        timing = Timing.of(choices[0], generation.started)
        first = choices[0].first_token_at
        p50, p95 = gap_quantiles(choices[0])
        decode = choices[0].last_token_at - first
        tokens = choices[0].completion_tokens
        rows = [c.ended.batch_rows for c in choices if c.ended is not None and c.ended.batch_rows is not None]
        reasons = list(dict.fromkeys(choice.reason for choice in choices if choice.reason))
        return {
            "finish_reason": ",".join(reasons) or None,
            "n_prompt": usage.prompt_tokens,
            "n_cached": self._cached(generation),
            "n_out": usage.completion_tokens,
            "queue_ms": _ms(timing.queue),
            "ttft_ms": _ms(first - generation.started) if first else None,
            "itl_p50_ms": _ms(p50),
            "itl_p95_ms": _ms(p95),
            "tok_s": round((tokens - 1) / decode, 1) if tokens > 1 and decode > 0 else None,
            "batch_mean": round(statistics.fmean(rows), 2) if rows else None,
            "aborted": generation.left or None,
            "params": self.params(generation),
            **({"error": generation.fault} if generation.fault else {}),
        }

    def _cached(self, generation: Generation) -> int | None:
        """Of all prompts; the engine tells it with each first row."""
        found = [
            choices[0].stream.started.cached_tokens
            for choices in _by_prompt(generation)
            if choices[0].stream is not None and choices[0].stream.started is not None
        ]
        return sum(found) if found else generation.usage().cached_tokens

    def params(self, generation: Generation) -> dict[str, object]:
        """How the request sampled, as the engine was told: no text."""
        groups = list(_by_prompt(generation))
        stream = generation.choices[0].stream
        about: dict[str, object] = {"n": len(groups[0]), "stream": self.streamed}
        if len(groups) > 1:
            about["prompts"] = len(groups)
        if stream is None or stream.request is None:
            return about
        params = stream.request.params
        about |= {
            "max_tokens": params.max_tokens,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "top_k": params.top_k,
            "seed": params.seed,
        }
        return about


class Spans(Protocol):
    """Where spans go."""

    def begin(self, record: RequestRecord, caller: TraceContext | None) -> TraceContext:
        """A request has come; which span it is."""
        ...

    def end(self, record: RequestRecord) -> None: ...

    async def close(self) -> None:
        """Sends what is left."""
        ...


def record_of(scope: Scope) -> RequestRecord:
    """What app/routes/observe.py keeps of a request; a record that nobody reads where nothing looks."""
    record: object = scope.get("record")
    return record if isinstance(record, RequestRecord) else RequestRecord("", "", "")


def timing_headers(generation: Generation) -> list[Header]:
    """How long a whole answer took, in OpenAI's header and in the one that browsers show."""
    spent = 1e3 * (time.perf_counter() - generation.started)
    headers = [(b"openai-processing-ms", b"%d" % round(spent))]
    timing = Timing.of(generation.choices[0], generation.started)
    parts = [
        f"{name};dur={1e3 * seconds:.2f}"
        for name, seconds in (("queue", timing.queue), ("prefill", timing.prefill), ("decode", timing.decode))
        if seconds is not None
    ]
    if parts:
        headers.append((b"server-timing", ", ".join(parts).encode()))
    return headers


def gap_quantiles(choice: Choice) -> tuple[float | None, float | None]:
    """Median and 95th percentile of the seconds between the steps that brought the choice's tokens; of what
    the latest 4,096 frames brought where it took more. Steps that came together share their time.
    """
    stream = choice.stream
    if stream is None or choice.completion_tokens < 2:
        return None, None
    arrivals = list(stream.arrivals)
    # The first token's time was taken a moment after its frame had come.
    begin = max(bisect_right(arrivals, choice.first_token_at, key=_when) - 1, 0)
    arrivals = arrivals[begin : bisect_right(arrivals, choice.last_token_at, key=_when)]
    gaps: list[tuple[float, int]] = []
    for (earlier, steps_then), (later, steps) in pairwise(arrivals):
        count = max(steps - steps_then, 1)
        gaps.append(((later - earlier) / count, count))
    if not gaps:
        return None, None
    gaps.sort()
    ends = list(accumulate(count for _, count in gaps))
    p50, p95 = (gaps[bisect_right(ends, share * (ends[-1] - 1))][0] for share in (0.5, 0.95))
    return p50, p95


def _by_prompt(generation: Generation) -> Iterator[list[Choice]]:
    groups: dict[int, list[Choice]] = {}
    for choice in generation.choices:
        groups.setdefault(id(choice.prompt), []).append(choice)
    return iter(groups.values())


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(1e3 * seconds, 3)
