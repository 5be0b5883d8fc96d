"""The bytes of an answer of /v1/responses: its numbered events, or one JSON body."""

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from app.answers.choices import Choice
from app.answers.generation import Usage
from app.answers.lanes import NumberedLane, Tally
from app.answers.logprobs import logprob_entries
from app.answers.pieces import CallPiece, Piece
from app.http.direct import DirectWrite
from app.http.errors import ApiError
from app.requests.openai import Delivery
from app.requests.text import TextService
from app.telemetry.metrics import Metrics

Status = Literal["in_progress", "completed", "incomplete"]

encode = msgspec.json.encode


@dataclass(slots=True, kw_only=True)
class ResponseWriter:
    """A `Writer`. `echoed` are the fields that every response repeats from its request.

    What the model writes becomes items of `output`: a message for each stretch of text, and a call for each
    function that it calls. One item at a time is open; its text is in the tally.
    """

    delivery: Delivery
    text: TextService
    seed: int
    fingerprint: str
    wants_logprobs: bool
    echoed: Mapping[str, object]
    created: int = field(default_factory=lambda: int(time.time()))
    id: str = field(default_factory=lambda: f"resp_{secrets.token_hex(12)}")
    request_id: str = ""
    _tally: Tally = field(default_factory=Tally)
    _items: list[dict[str, object]] = field(default_factory=list)  # in the order of `output_index`
    _broken: set[int] = field(default_factory=set)  # items that turned out to be no calls
    _open: dict[str, object] | None = None  # the last of the items
    _next_message: str = field(default_factory=lambda: _message_id())
    _around: tuple[bytes, bytes] | None = None  # the text of the open message's events
    _logprobs: list[dict[str, object]] = field(default_factory=list)  # of the open item
    _cut: bool = False  # by a limit of tokens

    def opening(self, choices: Sequence[Choice]) -> bytes:
        response = self._response("in_progress")
        created = self._event("response.created", response=response)
        return created + self._event("response.in_progress", response=response)

    def event(self, choice: Choice, piece: Piece) -> bytes:
        events = []
        logprobs = self._entries(piece)
        if piece.call is not None:
            events.append(self._call(piece.call))
        elif piece.text or (piece.finish is not None and not self._items):
            if self._open is None or self._open["type"] != "message":
                events += [self._close(), self._open_message()]
            self._logprobs += logprobs
            if piece.text:
                events.append(self._say(piece.text, logprobs))
        elif self._open is not None:
            self._logprobs += logprobs  # of tokens without text, at the end
        if piece.finish is not None:
            self._cut = piece.finish == "length"
            events.append(self._close("incomplete" if self._cut else "completed"))
        return b"".join(events)

    def around(self, choice: Choice) -> None:
        """Every event has a number, too."""
        return

    def lane(self, choice: Choice, write: DirectWrite, metrics: Metrics) -> NumberedLane:
        """For a message that is the whole answer: a choice that may call functions is never plain."""
        before, after = _around_text(self._next_message, 0)
        return NumberedLane(choice, before, after, self.text.spellings, write, metrics, self._tally)

    def ending(self, usage: Usage) -> bytes:
        status = "incomplete" if self._cut else "completed"
        return self._event(f"response.{status}", response=self._whole(usage))

    def failure(self, error: ApiError) -> bytes:
        rest = self._close("incomplete") if self._open is not None else b""
        about = {"code": error.code, "message": error.message}
        told = self._event("error", **about, param=error.param)
        return rest + told + self._event("response.failed", response=self._response("failed", error=about))

    def body(self, answers: Sequence[tuple[Choice, list[Piece]]], usage: Usage) -> bytes:
        ((choice, pieces),) = answers
        for piece in pieces:  # what a stream would send makes the items, too
            self.event(choice, piece)
        return encode(self._whole(usage))

    # -- the response

    def _response(
        self, status: str, usage: Usage | None = None, error: dict[str, str] | None = None
    ) -> dict[str, object]:
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "background": False,
            "error": error,
            "incomplete_details": {"reason": "max_output_tokens"} if self._cut else None,
            "model": self.delivery.model,
            "output": [item for at, item in enumerate(self._items) if at not in self._broken],
            **self.echoed,
            "usage": None if usage is None else _usage(usage),
            "system_fingerprint": self.fingerprint,
            "seed": self.seed,
        }

    def _whole(self, usage: Usage) -> dict[str, object]:
        return self._response("incomplete" if self._cut else "completed", usage)

    def _event(self, type: str, **fields: object) -> bytes:
        event = {"type": type, **fields, "sequence_number": self._tally.next}
        self._tally.next += 1
        return b"event: %b\ndata: %b\n\n" % (type.encode(), encode(event))

    # -- the open item

    def _close(self, status: Status = "completed") -> bytes:
        """Events that end the open item, if there is one."""
        item = self._open
        if item is None:
            return b""
        text = msgspec.Raw(b'"' + b"".join([said[1:-1] for said in self._tally.said]) + b'"')
        where = {"item_id": item["id"], "output_index": len(self._items) - 1}
        item["status"] = status
        if item["type"] == "message":
            part = _text_part(text, self._logprobs)
            item["content"] = [part]
            place = where | {"content_index": 0}
            events = self._event("response.output_text.done", **place, text=text, logprobs=self._logprobs)
            events += self._event("response.content_part.done", **place, part=part)
        else:
            item["arguments"] = text
            done = "response.function_call_arguments.done"
            events = self._event(done, **where, name=item["name"], arguments=text)
        self._open, self._around = None, None
        self._tally.said = []
        self._logprobs = []
        return events + self._event("response.output_item.done", output_index=len(self._items) - 1, item=item)

    def _begin(self, item: dict[str, object]) -> bytes:
        self._items.append(item)
        self._open = item
        return self._event("response.output_item.added", output_index=len(self._items) - 1, item=item)

    # -- messages

    def _open_message(self) -> bytes:
        id, self._next_message = self._next_message, _message_id()
        about = {"id": id, "type": "message", "role": "assistant", "status": "in_progress"}
        begun = self._begin({**about, "content": []})
        at = len(self._items) - 1
        self._around = _around_text(id, at)
        place = {"item_id": id, "output_index": at, "content_index": 0}
        return begun + self._event("response.content_part.added", **place, part=_text_part("", []))

    def _say(self, text: str, logprobs: list[dict[str, object]]) -> bytes:
        spelled = encode(text)
        before, after = self._around or (b"", b"")
        if logprobs:
            after = after.replace(b'"logprobs":[]', b'"logprobs":' + encode(logprobs))
        number = self._tally.next
        self._tally.next += 1
        self._tally.said.append(spelled)
        return b"%b%b%b%d}\n\n" % (before, spelled, after, number)

    def _entries(self, piece: Piece) -> list[dict[str, object]]:
        """The logprobs of a piece's tokens."""
        if not self.wants_logprobs or not piece.tokens:
            return []
        return logprob_entries([piece], self.text)

    # -- calls

    def _call(self, call: CallPiece) -> bytes:
        if call.broken:
            self._broken.add(len(self._items) - 1)
            return self._close("incomplete")
        if call.name is not None:
            item: dict[str, object] = {
                "id": f"fc_{secrets.token_hex(12)}",
                "type": "function_call",
                "status": "in_progress",
                "call_id": call.id,
                "name": call.name,
                "arguments": "",
            }
            return self._close() + self._begin(item)
        item = self._items[-1]
        self._tally.said.append(encode(call.arguments))
        where = {"item_id": item["id"], "output_index": len(self._items) - 1}
        return self._event("response.function_call_arguments.delta", **where, delta=call.arguments)


def _message_id() -> str:
    return f"msg_{secrets.token_hex(12)}"


def _around_text(id: str, at: int) -> tuple[bytes, bytes]:
    """What stands around the text of a message's event, up to the event's number."""
    type = b"response.output_text.delta"
    place = b'"item_id":"%b","output_index":%d,"content_index":0' % (id.encode(), at)
    before = b'event: %b\ndata: {"type":"%b",%b,"delta":' % (type, type, place)
    return before, b',"logprobs":[],"sequence_number":'


def _text_part(text: object, logprobs: Sequence[object]) -> dict[str, object]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def _usage(usage: Usage) -> dict[str, object]:
    """Clients add `cached_tokens` up, so where nobody knows it it is 0."""
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens or 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
