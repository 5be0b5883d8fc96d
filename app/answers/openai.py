"""The bytes of an answer: events of a stream, or one JSON body.

Per token only its text is escaped; everything around it was encoded when the request came in. An event that
carries more than text (logprobs, token ids, usage, the end) is put together from its parts.
"""

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from app.answers.choices import Choice
from app.answers.generation import Usage
from app.answers.lanes import EventLane
from app.answers.logprobs import IdNames, Names, chat_logprobs, completion_logprobs
from app.answers.pieces import Piece
from app.answers.scored_choice import best
from app.answers.scores import PromptScores
from app.http.direct import DirectWrite
from app.http.errors import ApiError
from app.requests.openai import Delivery
from app.requests.text import TextService
from app.telemetry.metrics import Metrics

DONE = b"data: [DONE]\n\n"

encode = msgspec.json.encode


class Writer(Protocol):
    """Puts one request's answer into the bytes that its route speaks; `Format` is OpenAI's older routes'.

    id: the answer's. request_id: the HTTP request's, known when the answer begins.
    """

    delivery: Delivery
    text: TextService
    id: str
    request_id: str

    def opening(self, choices: Sequence[Choice]) -> bytes:
        """Events that come before any token."""
        ...

    def event(self, choice: Choice, piece: Piece) -> bytes:
        """The events of one piece; every piece of a stream passes here that no lane has taken."""
        ...

    def around(self, choice: Choice) -> tuple[bytes, bytes] | None:
        """What stands before and after the text (a JSON string) of a choice's event; None where there is
        more to an event than its text.
        """
        ...

    def lane(self, choice: Choice, write: DirectWrite, metrics: Metrics) -> EventLane | None:
        """The short way of a choice's plain tokens, if there is one."""
        ...

    def ending(self, usage: Usage) -> bytes: ...

    def failure(self, error: ApiError) -> bytes:
        """The end of a stream that has begun."""
        ...

    def body(self, answers: Sequence[tuple[Choice, list[Piece]]], usage: Usage) -> bytes:
        """The whole answer, not streamed."""
        ...


def joined(pieces: Sequence[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


@dataclass(slots=True, kw_only=True)
class Format:
    """A `Writer`: one request's answer; subclasses say how a choice looks in it.

    `prefix` names the id, `chunk_object` and `body_object` are OpenAI's names for an event and a body.
    """

    delivery: Delivery
    text: TextService
    seed: int
    fingerprint: str
    wants_logprobs: bool
    created: int = field(default_factory=lambda: int(time.time()))
    id: str = ""
    request_id: str = ""
    _sent: dict[int, int] = field(default_factory=dict)  # tokens per choice, for usage in every event
    _head: bytes = b""
    _tail: bytes = b""
    _fast: bool = False
    _around: dict[int, tuple[bytes, bytes]] = field(default_factory=dict)
    _after: bytes = b""
    _names: Names = field(init=False)

    prefix = ""
    body_object = ""
    chunk_object = ""

    def __post_init__(self) -> None:
        self.id = f"{self.prefix}-{secrets.token_hex(12)}"
        delivery = self.delivery
        head = {"id": self.id, "object": self.chunk_object, "created": self.created, "model": delivery.model}
        self._head = b"data: " + encode(head)[:-1] + b',"choices":['
        self._tail = (b'],"usage":null' if delivery.include_usage else b"]") + b"}\n\n"
        self._names = IdNames(self.text) if delivery.token_names else self.text
        self._fast = not (self.wants_logprobs or delivery.token_ids or delivery.continuous_usage)
        self._after = self.close_text() + b',"logprobs":null,"finish_reason":null}' + self._tail

    def open_text(self) -> bytes:
        raise NotImplementedError

    def close_text(self) -> bytes:
        raise NotImplementedError

    def logprobs(self, pieces: Sequence[Piece]) -> dict[str, object]:
        raise NotImplementedError

    def delta(self, piece: Piece) -> bytes:
        """What an event says of a choice, apart from what is around it."""
        return self.open_text() + encode(piece.text) + self.close_text()

    def opening(self, choices: Sequence[Choice]) -> bytes:
        """Events that come before any token."""
        raise NotImplementedError

    def event(self, choice: Choice, piece: Piece) -> bytes:
        around = self.around(choice) if piece.finish is None else None
        if around is None:
            return self._full_event(choice, piece)
        before, after = around
        return before + encode(piece.text) + after

    def around(self, choice: Choice) -> tuple[bytes, bytes] | None:
        """What stands before and after the text (a JSON string) of a choice's event; None where there is
        more to an event than its text.
        """
        if not self._fast:
            return None
        around = self._around.get(choice.index)
        if around is None:
            before = self._head + b'{"index":%d,' % choice.index + self.open_text()
            around = self._around[choice.index] = (before, self._after)
        return around

    def lane(self, choice: Choice, write: DirectWrite, metrics: Metrics) -> EventLane | None:
        around = self.around(choice)
        return None if around is None else EventLane(choice, *around, self.text.spellings, write, metrics)

    def ending(self, usage: Usage) -> bytes:
        """The usage event if it was asked for, and the end of the stream."""
        if not self.delivery.include_usage:
            return DONE
        last = {**self._signature(), "usage": usage.payload()}
        return self._head + b"]," + encode(last)[1:] + b"\n\n" + DONE

    def failure(self, error: ApiError) -> bytes:
        return b"data: " + encode({"error": error.payload()}) + b"\n\n" + DONE

    def body(self, answers: Sequence[tuple[Choice, list[Piece]]], usage: Usage) -> bytes:
        """The whole answer, not streamed."""
        body: dict[str, object] = {
            "id": self.id,
            "object": self.body_object,
            "created": self.created,
            "model": self.delivery.model,
            "choices": [self._answer(choice, pieces) for choice, pieces in answers],
            "usage": usage.payload(),
            **self._signature(),
        }
        self.add_prompt(body, [choice for choice, _ in answers])
        return encode(body)

    def message(self, choice: Choice, pieces: Sequence[Piece]) -> dict[str, object]:
        """A choice's text as the body holds it."""
        raise NotImplementedError

    def add_prompt(self, body: dict[str, object], choices: Sequence[Choice]) -> None:
        """Chat answers carry the ids and the logprobs of their one prompt at the top."""

    def _answer(self, choice: Choice, pieces: list[Piece]) -> dict[str, object]:
        last = pieces[-1]
        answer: dict[str, object] = {
            "index": choice.index,
            **self.message(choice, pieces),
            "logprobs": self.logprobs(pieces) if self.wants_logprobs else None,
            "finish_reason": last.finish,
            "stop_reason": last.stop_reason,
        }
        if self.delivery.token_ids:
            answer["token_ids"] = [token for piece in pieces for token in piece.tokens]
        return answer

    def _signature(self) -> dict[str, object]:
        return {"system_fingerprint": self.fingerprint, "seed": self.seed}

    def _full_event(self, choice: Choice, piece: Piece) -> bytes:
        rest: dict[str, object] = {
            "logprobs": self.logprobs([piece]) if self.wants_logprobs and piece.tokens else None,
            "finish_reason": piece.finish,
        }
        if piece.finish is not None:
            rest["stop_reason"] = piece.stop_reason
        if self.delivery.token_ids:
            rest["token_ids"] = piece.tokens
        top: dict[str, object] = self._signature() if piece.finish is not None else {}
        sent = self._sent[choice.index] = self._sent.get(choice.index, 0) + len(piece.tokens)
        if self.delivery.continuous_usage:
            top["usage"] = Usage(len(choice.prompt), sent, choice.cached_tokens).payload()
        elif self.delivery.include_usage:
            top["usage"] = None
        start = self._head + b'{"index":%d,' % choice.index + self.delta(piece) + b","
        end = b"]," + encode(top)[1:] if top else b"]}"
        return start + encode(rest)[1:] + end + b"\n\n"

    def _first_event(
        self, choice: Choice, inner: bytes, extra: dict[str, object], logprobs: object = None
    ) -> bytes:
        more = b"," + encode(extra)[1:-1] if extra else b""
        start = self._head + b'{"index":%d,' % choice.index
        about = b',"logprobs":' + encode(logprobs) + b',"finish_reason":null'
        return start + inner + about + more + b"}"


class ChatFormat(Format):
    """/v1/chat/completions: a role first, then content."""

    prefix = "chatcmpl"
    body_object = "chat.completion"
    chunk_object = "chat.completion.chunk"
    role = b'"delta":{"role":"assistant","content":""}'

    def open_text(self) -> bytes:
        return b'"delta":{"content":'

    def close_text(self) -> bytes:
        return b"}"

    def logprobs(self, pieces: Sequence[Piece]) -> dict[str, object]:
        return chat_logprobs(pieces, self._names)

    def opening(self, choices: Sequence[Choice]) -> bytes:
        tail = b"]," + encode(self._signature())[1:-1] + self._tail[1:]
        if self.delivery.token_ids:
            tail = b'],"prompt_token_ids":' + encode(choices[0].prompt) + tail[1:]
        return b"".join(self._first_event(choice, self.role, {}) + tail for choice in choices)

    def message(self, choice: Choice, pieces: Sequence[Piece]) -> dict[str, object]:
        return {"message": {"role": "assistant", "content": joined(pieces), "refusal": None}}

    def add_prompt(self, body: dict[str, object], choices: Sequence[Choice]) -> None:
        if self.delivery.token_ids:
            body["prompt_token_ids"] = choices[0].prompt
        scores, count = choices[0].scores, self.delivery.prompt_logprobs
        if scores is not None and count is not None:
            body["prompt_logprobs"] = scores.entries(self._names, count)


@dataclass(slots=True, kw_only=True)
class CompletionFormat(Format):
    """/v1/completions: text, with the prompt's own text first when it is echoed, and its logprobs where any
    are wanted: echoed_logprobs then is the number of alternatives. keep: how many of a prompt's choices are
    returned, the best first; None: all.
    """

    echoed_logprobs: int | None = None
    keep: int | None = None
    _echoed: set[int] = field(default_factory=set)  # choices whose scored prompt was sent

    prefix = "cmpl"
    body_object = "text_completion"
    chunk_object = "text_completion"

    def open_text(self) -> bytes:
        return b'"text":'

    def close_text(self) -> bytes:
        return b""

    def logprobs(self, pieces: Sequence[Piece]) -> dict[str, object]:
        return {**completion_logprobs(pieces, self._names)}

    def opening(self, choices: Sequence[Choice]) -> bytes:
        events = []
        for choice in choices:
            if choice.scores is None and (choice.prompt_text or self.delivery.token_ids):
                events.append(self._prompt_event(choice, None))
        return b"".join(events)

    def body(self, answers: Sequence[tuple[Choice, list[Piece]]], usage: Usage) -> bytes:
        kept = answers if self.keep is None else best(answers, self.keep)
        return Format.body(self, kept, usage)

    def _prompt_event(self, choice: Choice, logprobs: object) -> bytes:
        extra: dict[str, object] = {}
        if self.delivery.token_ids:
            extra = {"token_ids": [], "prompt_token_ids": choice.prompt}
        inner = b'"text":' + encode(choice.prompt_text)
        return self._first_event(choice, inner, extra, logprobs) + self._tail

    def _full_event(self, choice: Choice, piece: Piece) -> bytes:
        event = Format._full_event(self, choice, piece)
        if choice.scores is None or choice.index in self._echoed or not choice.scores.complete:
            return event
        # Its first event: the engine scores a prompt before it gives any token of its choices, unless the
        # choice that it does so with has failed, and the answer with it.
        self._echoed.add(choice.index)
        return self._prompt_event(choice, self._prompt_arrays(choice, choice.scores)) + event

    def _prompt_arrays(self, choice: Choice, scores: PromptScores) -> dict[str, list[object]]:
        return scores.arrays(self.text, self._names, choice.prompt_text, self.echoed_logprobs or 0)

    def _answer(self, choice: Choice, pieces: list[Piece]) -> dict[str, object]:
        answer, scores = Format._answer(self, choice, pieces), choice.scores
        if scores is None:
            return answer
        if self.echoed_logprobs is not None:
            own = completion_logprobs(pieces, self._names)
            prompt = self._prompt_arrays(choice, scores)
            answer["logprobs"] = {name: values + own[name] for name, values in prompt.items()}
        if self.delivery.prompt_logprobs is not None:
            answer["prompt_logprobs"] = scores.entries(self._names, self.delivery.prompt_logprobs)
        return answer

    def message(self, choice: Choice, pieces: Sequence[Piece]) -> dict[str, object]:
        message: dict[str, object] = {"text": choice.prompt_text + joined(pieces)}
        if self.delivery.token_ids:
            message["prompt_token_ids"] = choice.prompt
        return message
