"""What a scripted server can be told to say: the steps of a script, and the events of a stream."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from starlette.responses import JSONResponse, Response


class Gate:
    """A step of a script: nothing is written until the test releases the server once more."""


GATE = Gate()


@dataclass(frozen=True, slots=True)
class Pause:
    """A step of a script that stands for the time a token takes, in seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Refusal:
    """Instead of a stream: an error status with the nested error body."""

    status: int
    code: str
    message: str
    headers: dict[str, str] = field(default_factory=dict)
    param: str | None = None

    def response(self) -> Response:
        error = {"message": self.message, "type": "x", "param": self.param, "code": self.code}
        return JSONResponse({"error": error}, self.status, self.headers)


class HangUp:
    """A step of a script: the connection is cut, without a proper end of the body. A resumable stream goes on
    with the next step, for the reader who comes back.
    """


Step = bytes | Gate | Pause | HangUp
Script = Refusal | Sequence[Step]


def event(payload: dict[str, object]) -> bytes:
    """One SSE event in UTF-8, characters beyond ASCII unescaped."""
    return b"data: " + json.dumps(payload, ensure_ascii=False).encode() + b"\n\n"


def delta(
    text: str,
    finish: str | None = None,
    index: int = 0,
    logprobs: Sequence[dict[str, object]] | None = None,
    seed: int | None = None,
) -> bytes:
    """A chunk with a piece of the answer; `logprobs` are of `score`."""
    choice = {"index": index, "delta": {"content": text}, "finish_reason": finish}
    if logprobs is not None:
        choice["logprobs"] = {"content": list(logprobs)}
    chunk: dict[str, object] = {"object": "chat.completion.chunk", "choices": [choice]}
    if seed is not None:
        chunk |= {"model": "scripted-model", "system_fingerprint": "fp_scripted", "seed": seed}
    return event(chunk)


def score(token: str, logprob: float, others: dict[str, float] | None = None) -> dict[str, object]:
    """One token's entry of `logprobs`, with the alternatives that the client asked for."""

    def entry(name: str, value: float) -> dict[str, object]:
        return {"token": name, "logprob": value, "bytes": list(name.encode())}

    top = [entry(name, value) for name, value in {token: logprob, **(others or {})}.items()]
    return entry(token, logprob) | {"top_logprobs": top}


def role(index: int = 0, seed: int | None = None) -> bytes:
    """The chunk that a choice begins with."""
    choice = {"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
    chunk: dict[str, object] = {"model": "scripted-model", "choices": [choice]}
    if seed is not None:
        chunk |= {"system_fingerprint": "fp_scripted", "seed": seed}
    return event(chunk)


ROLE = role()
DONE = b"data: [DONE]\n\n"


def queue(position: int, eta_ms: int | None = None) -> bytes:
    """The comment of a request that waits: `position` requests go before it."""
    return b": " + json.dumps({"queue": {"position": position, "eta_ms": eta_ms}}).encode() + b"\n"


def usage(completion_tokens: int, cached: int | None = None) -> bytes:
    """The usage chunk, without choices."""
    counts: dict[str, object] = {
        "prompt_tokens": 9,
        "completion_tokens": completion_tokens,
        "total_tokens": 9 + completion_tokens,
    }
    if cached is not None:
        counts["prompt_tokens_details"] = {"cached_tokens": cached}
    return event({"choices": [], "usage": counts})


def error(message: str, code: str) -> bytes:
    """An error event, as it follows on headers that promised success."""
    return event({"error": {"message": message, "type": "server_error", "param": None, "code": code}})
