"""A choice whose text may hold function calls, and how an answer shows them.

Built on top of plain choices and answers: what a choice's decoder and stop strings let through goes to the
parser of calls, and what that makes of it becomes pieces again. Every token stays in exactly one piece, in
order, so usage and logprobs are what they would be without.
"""

import secrets
import string
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import msgspec

from app.answers.choices import Choice
from app.answers.openai import ChatFormat
from app.answers.pieces import CallPiece, Piece
from app.requests.sampling import Sampling
from app.requests.text import TextService
from app.requests.tools import ToolUse
from engine.messages import Delta, TokenLogprobs, TokenStream
from engine.text import CallArguments, CallBegan, CallBroken, CallEnded, CallEvent, CallParser, Said

_ALPHABET = string.ascii_letters + string.digits
_SHORT = 9


class CallingChoice(Choice):
    """Like Choice; its pieces hold calls beside text. It ends with "tool_calls" where it made some and none
    of them broke off.
    """

    __slots__ = ("_parser", "_short_ids", "_single", "_use", "_waiting")

    def __init__(
        self,
        index: int,
        stream: TokenStream | None,
        prompt: list[int],
        sampling: Sampling,
        text: TextService,
        hidden: Collection[int],
        prompt_text: str,
        use: ToolUse,
    ) -> None:
        self._use = use
        self._short_ids = use.format.short_ids
        self._single = use.single
        super().__init__(index, stream, prompt, sampling, text, hidden, prompt_text)

    def restart(self) -> None:
        super().restart()
        use = self._use
        self._decoder = self._text.decoder(
            skip_special=self._sampling.skip_special,
            hidden=self._hidden,
            shown=self._text.ids_of(use.format.marks),
        )
        self._parser = CallParser(use.format, [function.name for function in use.allowed])
        self._waiting = _Waiting([], [], [], [])

    @property
    def plain(self) -> bool:
        return False

    def feed(self, delta: Delta) -> list[Piece]:
        pieces = super().feed(delta)
        made: list[Piece] = []
        for k, piece in enumerate(pieces):
            self._waiting.add(piece)
            events = self._parser.push(piece.text)
            if piece.finish is not None:
                events += self._parser.end(cut=piece.finish == "length")
            ended = next((at for at, event in enumerate(events, 1) if isinstance(event, CallEnded)), 0)
            if self._single and ended:
                made += self._pieces(events[:ended])
                # What the model has written behind the call is not a part of the answer.
                self.completion_tokens -= sum(len(later.tokens) for later in pieces[k + 1 :])
                self.completion_tokens -= len(self._held_tokens)
                self.done = True
                made.append(self._waiting.piece(finish="stop" if self._parser.broken else "tool_calls"))
                break
            made += self._pieces(events)
            if piece.finish is not None:
                self._end(piece, made)
        return made

    def _pieces(self, events: Sequence[CallEvent]) -> list[Piece]:
        """One for each stretch of text or of a call's arguments, and each call's beginning."""
        made: list[Piece] = []
        for event in events:
            last = made[-1] if made else None
            match event:
                case Said(text):
                    if last is not None and last.call is None:
                        last.text += text
                    else:
                        made.append(self._waiting.piece(text))
                case CallBegan(index, name):
                    made.append(self._waiting.piece(call=CallPiece(index, self._new_id(), name)))
                case CallArguments(index, text):
                    if last is not None and last.call is not None and last.call.arguments:
                        last.call.arguments += text
                    else:
                        made.append(self._waiting.piece(call=CallPiece(index, arguments=text)))
                case CallBroken(index):
                    made.append(Piece("", [], call=CallPiece(index, broken=True)))
        return made

    def _end(self, piece: Piece, made: list[Piece]) -> None:
        """Puts the finish on the last piece, or behind it where calls were made."""
        called = self._parser.calls > 0 and not self._parser.broken
        finish = "tool_calls" if called and piece.finish == "stop" else piece.finish
        if made and made[-1].call is None and not self._waiting.tokens and finish != "tool_calls":
            made[-1].finish, made[-1].stop_reason = finish, piece.stop_reason
        else:
            made.append(self._waiting.piece(finish=finish, stop_reason=piece.stop_reason))

    def _new_id(self) -> str:
        if self._short_ids:
            return "".join(secrets.choice(_ALPHABET) for _ in range(_SHORT))
        return "call_" + secrets.token_hex(12)


@dataclass(slots=True)
class _Waiting:
    """Tokens whose text is not certain yet, and what belongs to them; the next piece takes them."""

    tokens: list[int]
    logprobs: list[TokenLogprobs | None]
    offsets: list[int]
    silent: list[bool]

    def add(self, piece: Piece) -> None:
        self.tokens += piece.tokens
        self.logprobs += piece.logprobs
        self.offsets += piece.offsets
        self.silent += piece.silent

    def piece(
        self,
        text: str = "",
        *,
        call: CallPiece | None = None,
        finish: str | None = None,
        stop_reason: str | int | None = None,
    ) -> Piece:
        made = Piece(text, self.tokens, self.logprobs, self.offsets, self.silent, finish, stop_reason, call)
        self.tokens, self.logprobs, self.offsets, self.silent = [], [], [], []
        return made


class CallingFormat(ChatFormat):
    """/v1/chat/completions where functions may be called."""

    role = b'"delta":{"role":"assistant","content":null}'

    def event(self, choice: Choice, piece: Piece) -> bytes:
        if piece.call is None and piece.finish is None:
            return super().event(choice, piece)
        # Whoever reads a stream has the broken call already, and learns from the finish what it is.
        return b"" if piece.call is not None and piece.call.broken else self._full_event(choice, piece)

    def delta(self, piece: Piece) -> bytes:
        call = piece.call
        if call is None:
            return super().delta(piece) if piece.text else b'"delta":{}'
        entry: dict[str, object] = {"index": call.index}
        about: dict[str, object] = {"arguments": call.arguments}
        if call.name is not None:
            entry |= {"id": call.id, "type": "function"}
            about = {"name": call.name} | about
        return b'"delta":' + msgspec.json.encode({"tool_calls": [entry | {"function": about}]})

    def message(self, choice: Choice, pieces: Sequence[Piece]) -> dict[str, object]:
        calls: dict[int, dict[str, str]] = {}
        ids: dict[int, str | None] = {}
        for call in (piece.call for piece in pieces if piece.call is not None):
            if call.broken:
                del calls[call.index]
            elif call.name is not None:
                calls[call.index] = {"name": call.name, "arguments": ""}
                ids[call.index] = call.id
            else:
                calls[call.index]["arguments"] += call.arguments
        message = super().message(choice, pieces)
        inner = message["message"]
        if calls and isinstance(inner, dict):
            inner["content"] = inner["content"] or None
            inner["tool_calls"] = [
                {"id": ids[index], "type": "function", "function": about} for index, about in calls.items()
            ]
        return message
