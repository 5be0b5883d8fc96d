"""The short way of plain tokens: from the engine's frame to where they are wanted, with nobody woken."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from app.answers.choices import MERGE_ABOVE, Choice
from app.answers.pieces import Piece
from app.http.direct import DirectWrite
from app.requests.text import TextService
from app.telemetry.metrics import Metrics


class EventLane:
    """Writes a choice's tokens as events; a `Lane`.

    Open only while the choice's decoder stands between characters and outside of tool blocks, and its
    stream's task waits (see `Generation`), so that what it writes is in its place. Everything but a token
    whose text is certain by itself is left to that task. `written_at` is when it last wrote (perf_counter).
    """

    __slots__ = ("_after", "_before", "_choice", "_metrics", "_spellings", "_write", "written_at")

    def __init__(
        self,
        choice: Choice,
        before: bytes,
        after: bytes,
        spellings: Mapping[int, bytes],
        write: DirectWrite,
        metrics: Metrics,
    ) -> None:
        self._choice = choice
        self._before = before
        self._after = after
        self._spellings = spellings
        self._write = write
        self._metrics = metrics
        self.written_at = 0.0

    def push(self, token: int, now: float) -> bool:
        text = self._spellings[token]
        data = self._before + text + self._after
        if not text or not self._write(data):
            return False
        choice, metrics = self._choice, self._metrics
        metrics.lane_events += 1
        metrics.event_bytes += len(data)
        metrics.flowed(choice.last_token_at, now)
        choice.last_token_at = self.written_at = now
        choice.completion_tokens += 1
        return True

    def push_all(self, tokens: Sequence[int], now: float) -> bool:
        """One event per token, one write for all."""
        count = len(tokens)
        texts = [self._spellings[token] for token in tokens]
        if count > MERGE_ABOVE or not all(texts):
            return False
        data = self._joined(texts)
        if not self._write(data):
            return False
        self._said(texts)
        choice = self._choice
        self._metrics.sent(count, len(data))
        self._metrics.token_gap(now - choice.last_token_at, count, now)
        choice.last_token_at = self.written_at = now
        choice.completion_tokens += count
        return True

    def _joined(self, texts: Sequence[bytes]) -> bytes:
        """Their events."""
        before, after = self._before, self._after
        return b"".join([before + text + after for text in texts])

    def _said(self, texts: Sequence[bytes]) -> None:
        """They have been written."""


@dataclass(slots=True)
class Tally:
    """Of a stream whose events are numbered and whose end repeats its text: the next event's number, and the
    text so far as JSON strings, to be joined without their quotes.
    """

    next: int = 0
    said: list[bytes] = field(default_factory=list)


class NumberedLane(EventLane):
    """An `EventLane` that goes on with a `Tally`. The last thing in its events is their number."""

    __slots__ = ("_tally",)

    def __init__(
        self,
        choice: Choice,
        before: bytes,
        after: bytes,
        spellings: Mapping[int, bytes],
        write: DirectWrite,
        metrics: Metrics,
        tally: Tally,
    ) -> None:
        super().__init__(choice, before, after, spellings, write, metrics)
        self._tally = tally

    def push(self, token: int, now: float) -> bool:
        text, tally = self._spellings[token], self._tally
        data = b"%b%b%b%d}\n\n" % (self._before, text, self._after, tally.next)
        if not text or not self._write(data):
            return False
        tally.next += 1
        tally.said.append(text)
        choice, metrics = self._choice, self._metrics
        metrics.lane_events += 1
        metrics.event_bytes += len(data)
        metrics.flowed(choice.last_token_at, now)
        choice.last_token_at = self.written_at = now
        choice.completion_tokens += 1
        return True

    def _joined(self, texts: Sequence[bytes]) -> bytes:
        before, after = self._before, self._after
        numbered = enumerate(texts, self._tally.next)
        return b"".join([b"%b%b%b%d}\n\n" % (before, text, after, k) for k, text in numbered])

    def _said(self, texts: Sequence[bytes]) -> None:
        self._tally.next += len(texts)
        self._tally.said += texts


class WaitingLane:
    """Keeps a choice's tokens for an answer that is sent as a whole; a `Lane`.

    `take` gives them as a piece; they come before what the generation returned since the last call.
    """

    __slots__ = ("_choice", "_metrics", "_spellings", "_text", "_tokens")

    def __init__(self, choice: Choice, text: TextService, metrics: Metrics) -> None:
        self._choice = choice
        self._text = text
        self._spellings = text.spellings
        self._metrics = metrics
        self._tokens: list[int] = []

    def push(self, token: int, now: float) -> bool:
        if not self._spellings[token]:
            return False
        choice = self._choice
        self._tokens.append(token)
        self._metrics.flowed(choice.last_token_at, now)
        choice.last_token_at = now
        choice.completion_tokens += 1
        return True

    def push_all(self, tokens: Sequence[int], now: float) -> bool:
        if not all(self._spellings[token] for token in tokens):
            return False
        choice = self._choice
        self._tokens += tokens
        self._metrics.token_gap(now - choice.last_token_at, len(tokens), now)
        choice.last_token_at = now
        choice.completion_tokens += len(tokens)
        return True

    def take(self) -> list[Piece]:
        tokens, self._tokens = self._tokens, []
        # Not through the choice's decoder, which may stand inside a later character by now.
        return [Piece(self._text.decode(tokens), tokens)] if tokens else []
