"""The bytes of an answer of /v1/messages: Anthropic's events, or one JSON body."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from app.answers.choices import Choice
from app.answers.generation import Usage
from app.answers.lanes import EventLane
from app.answers.pieces import CallPiece, Piece
from app.http.dialects import anthropic_error
from app.http.direct import DirectWrite
from app.http.errors import ApiError
from app.requests.openai import Delivery
from app.requests.text import TextService
from app.telemetry.metrics import Metrics

encode = msgspec.json.encode


@dataclass(slots=True, kw_only=True)
class MessageWriter:
    """A `Writer`. What the model writes becomes blocks of `content`, of which one at a time is open."""

    delivery: Delivery
    text: TextService
    seed: int
    id: str = field(default_factory=lambda: f"msg_{secrets.token_hex(12)}")
    request_id: str = ""
    _blocks: int = 0  # begun so far
    _open: str | None = None  # the type of the last one, while it is open
    _last: Piece | None = None  # the one with the finish

    def opening(self, choices: Sequence[Choice]) -> bytes:
        usage = Usage(len(choices[0].prompt), 0, None)
        return _event("message_start", message=self._message([], None, usage))

    def event(self, choice: Choice, piece: Piece) -> bytes:
        events = []
        if piece.call is not None:
            events.append(self._call(piece.call))
        elif piece.text:
            if self._open != "text":
                events.append(self._begin({"type": "text", "text": ""}))
            before, after = _around_text(self._blocks - 1)
            events.append(before + encode(piece.text) + after)
        if piece.finish is not None:
            events.append(self._close())
            self._last = piece
        return b"".join(events)

    def around(self, choice: Choice) -> tuple[bytes, bytes]:
        """For text that is the whole answer: a choice that may call functions is never plain."""
        return _around_text(0)

    def lane(self, choice: Choice, write: DirectWrite, metrics: Metrics) -> EventLane:
        return EventLane(choice, *self.around(choice), self.text.spellings, write, metrics)

    def ending(self, usage: Usage) -> bytes:
        delta = _event("message_delta", delta=_stop(self._last), usage=_usage(usage))
        return delta + _event("message_stop")

    def failure(self, error: ApiError) -> bytes:
        return b"event: error\ndata: " + encode(anthropic_error(error, self.request_id)) + b"\n\n"

    def body(self, answers: Sequence[tuple[Choice, list[Piece]]], usage: Usage) -> bytes:
        ((_, pieces),) = answers
        return encode(self._message(_content(pieces), pieces[-1], usage))

    def _message(
        self, content: list[dict[str, object]], last: Piece | None, usage: Usage
    ) -> dict[str, object]:
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.delivery.model,
            "content": content,
            **_stop(last),
            "usage": _usage(usage),
            "seed": self.seed,
        }

    def _call(self, call: CallPiece) -> bytes:
        if call.broken:
            return self._close()
        if call.name is not None:
            return self._begin({"type": "tool_use", "id": call.id, "name": call.name, "input": {}})
        delta = {"type": "input_json_delta", "partial_json": call.arguments}
        return _event("content_block_delta", index=self._blocks - 1, delta=delta)

    def _begin(self, block: dict[str, object]) -> bytes:
        ended = self._close()
        begun = _event("content_block_start", index=self._blocks, content_block=block)
        self._blocks += 1
        self._open = str(block["type"])
        return ended + begun + (_event("ping") if self._blocks == 1 else b"")

    def _close(self) -> bytes:
        if self._open is None:
            return b""
        self._open = None
        return _event("content_block_stop", index=self._blocks - 1)


@dataclass(slots=True)
class _Block:
    """`call` is None where it is text."""

    call: CallPiece | None
    texts: list[str] = field(default_factory=list)

    def shown(self) -> dict[str, object] | None:
        """None for a call that was cut: its input is no JSON."""
        text = "".join(self.texts)
        if self.call is None:
            return {"type": "text", "text": text}
        try:
            msgspec.json.decode(text, type=dict[str, msgspec.Raw])
        except (msgspec.DecodeError, UnicodeError):
            return None
        about = {"type": "tool_use", "id": self.call.id, "name": self.call.name}
        return about | {"input": msgspec.Raw(text.encode())}


def _content(pieces: Sequence[Piece]) -> list[dict[str, object]]:
    """What the events of `pieces` add up to, without calls that are none or were cut."""
    blocks: list[_Block] = []
    for piece in pieces:
        call = piece.call
        if call is None:
            if piece.text:
                if not blocks or blocks[-1].call is not None:
                    blocks.append(_Block(None))
                blocks[-1].texts.append(piece.text)
        elif call.broken:
            blocks.pop()
        elif call.name is not None:
            blocks.append(_Block(call))
        else:
            blocks[-1].texts.append(call.arguments)
    return [shown for block in blocks if (shown := block.shown()) is not None]


def _event(type: str, **fields: object) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (type.encode(), encode({"type": type, **fields}))


def _around_text(at: int) -> tuple[bytes, bytes]:
    delta = b'{"type":"content_block_delta","index":%d,"delta":{"type":"text_delta","text":' % at
    return b"event: content_block_delta\ndata: " + delta, b"}}\n\n"


def _stop(last: Piece | None) -> dict[str, object]:
    """Why the answer ended; before its last piece, nothing."""
    if last is None or last.finish is None:
        return {"stop_reason": None, "stop_sequence": None}
    if last.finish == "stop" and isinstance(last.stop_reason, str):
        return {"stop_reason": "stop_sequence", "stop_sequence": last.stop_reason}
    reasons = {"length": "max_tokens", "tool_calls": "tool_use"}
    return {"stop_reason": reasons.get(last.finish, "end_turn"), "stop_sequence": None}


def _usage(usage: Usage) -> dict[str, object]:
    """Here, input tokens are those that the cache did not have. It is null where nobody knows."""
    return {
        "input_tokens": usage.prompt_tokens - (usage.cached_tokens or 0),
        "cache_creation_input_tokens": None,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }
