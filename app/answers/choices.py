"""One choice of an answer: from token ids to the pieces of text that may be sent.

A piece is made for each token that yields text. A token that yields none (half a character, the beginning of
a stop string, a calculation) is not lost: it waits, with its logprobs, for the piece that carries its text or
the next one, or for the last one.
"""

from collections.abc import Collection

from app.admission.gate import Place
from app.answers.pieces import Piece, joined
from app.answers.scores import PromptScores
from app.requests.sampling import Sampling
from app.requests.text import TextService, matcher
from engine.messages import Delta, Finish, TokenLogprobs, TokenStream
from engine.messages.wire import FaultCode

MERGE_ABOVE = 64  # tokens pending for one reader; beyond this it gets one event for all of them


class Choice:
    """Consumes the deltas of one stream. `stream` is None when nothing is to be generated.

    `cached_tokens` is None until the engine has told it with the choice's end; of a choice that a stop string
    ended it never does. `fault` says why the engine ended the choice, if it did so with an error, and
    `fault_code` which kind of error it was, if that is known. `first_token_at` and `last_token_at` are
    perf_counter's, 0 before there is one; `ended` is what the engine said about the choice's end, `reason`
    what the client is told.
    """

    __slots__ = (
        "_chars",
        "_decoder",
        "_held_logprobs",
        "_held_offsets",
        "_held_silent",
        "_held_tokens",
        "_hidden",
        "_matcher",
        "_min_tokens",
        "_sampling",
        "_simple",
        "_special",
        "_text",
        "cached_tokens",
        "completion_tokens",
        "counted",
        "done",
        "ended",
        "fault",
        "fault_code",
        "first_token_at",
        "index",
        "last_token_at",
        "place",
        "prompt",
        "prompt_text",
        "reason",
        "scores",
        "stream",
    )

    def __init__(
        self,
        index: int,
        stream: TokenStream | None,
        prompt: list[int],
        sampling: Sampling,
        text: TextService,
        hidden: Collection[int] = frozenset(),
        prompt_text: str = "",
    ) -> None:
        self.index = index
        self.stream = stream
        self.prompt = prompt
        self.prompt_text = prompt_text  # echoed before the answer
        self.scores: PromptScores | None = None  # where the prompt's logprobs are wanted
        self.place: Place | None = None  # its request's, where that is counted
        self.counted = False  # its end, in the metrics; once, however often it begins
        self._sampling = sampling
        self._special = text.is_special
        self._text = text
        self._hidden = hidden
        self._min_tokens = sampling.min_tokens
        self.restart()

    def restart(self) -> None:
        """Back to where no token has been seen."""
        sampling = self._sampling
        self.completion_tokens = 0
        self.cached_tokens: int | None = None if self.stream is not None else 0
        self.done = False
        self.fault: str | None = None
        self.fault_code: FaultCode | None = None
        self.first_token_at = 0.0
        self.last_token_at = 0.0
        self.ended: Finish | None = None
        self.reason = ""
        self._decoder = self._text.decoder(skip_special=sampling.skip_special, hidden=self._hidden)
        self._matcher = matcher(sampling.stop, sampling.include_stop)
        self._simple = self._matcher is None and sampling.logprobs is None
        self._chars = len(self.prompt_text)
        self._held_tokens: list[int] = []
        self._held_logprobs: list[TokenLogprobs | None] = []
        self._held_offsets: list[int] = []
        self._held_silent: list[bool] = []

    @property
    def plain(self) -> bool:
        """Whether the next token's text is all there is to it: nothing waits, nothing is watched for."""
        return self._simple and not self._held_tokens and self._decoder.stateless and not self.done

    @property
    def shaped_by(self) -> str:
        """The field of the request that the answer's grammar comes from, where it has one."""
        constraint = self._sampling.constraint
        return "tools" if constraint is None else constraint.field

    def feed(self, delta: Delta) -> list[Piece]:
        """The pieces that a delta completes, also when it ends in an error."""
        if self.done:
            return []
        pieces: list[Piece] = []
        finish = delta.finish
        if self._simple and finish is None and len(delta.tokens) == 1 and not self._held_tokens:
            # By far the most frequent case: one token, nothing to watch for.
            self.completion_tokens += 1
            text = self._decoder.push(delta.tokens)
            if text:
                return [Piece(text, delta.tokens)]
            self._held_tokens = delta.tokens
            return pieces
        if finish is not None:
            self._hear(finish)
        last = len(delta.tokens) - 1
        for k, token in enumerate(delta.tokens):
            ends = k == last and finish is not None and finish.stop_token == token
            inside = self._decoder.in_block
            text = "" if ends and not self._shows(token) else self._decoder.push((token,))
            silent = inside or self._decoder.in_block  # a block's last mark, too
            self._hold(token, delta.logprobs[k] if delta.logprobs else None, text, silent)
            if text:
                text, stop = self._match(text)
                if stop is not None:
                    self.done = True
                    return [*pieces, self._piece(text, "stop", stop)]
                if text:
                    pieces.append(self._piece(text))
        if len(pieces) > MERGE_ABOVE:
            pieces = [joined(pieces)]
        if finish is not None:
            self._finish(finish, pieces)
        return pieces

    def _shows(self, stop_token: int) -> bool:
        """A stop id that the client named has text if the client wants stops in the output."""
        return self._sampling.include_stop and not self._special(stop_token)

    def _hold(self, token: int, logprobs: TokenLogprobs | None, text: str, silent: bool) -> None:
        self.completion_tokens += 1
        self._held_tokens.append(token)
        if self._sampling.logprobs is not None:
            self._held_logprobs.append(logprobs)
            self._held_offsets.append(self._chars)
            self._held_silent.append(silent)
            self._chars += len(text)

    def _match(self, text: str) -> tuple[str, str | None]:
        if self._matcher is None or self.completion_tokens <= self._min_tokens:
            return text, None
        return self._matcher.push(text)

    def _piece(self, text: str, finish: str | None = None, stop_reason: str | int | None = None) -> Piece:
        about = (self._held_logprobs, self._held_offsets, self._held_silent)
        piece = Piece(text, self._held_tokens, *about, finish, stop_reason)
        self._held_tokens = []
        if self._held_logprobs:
            self._held_logprobs = []
            self._held_offsets = []
            self._held_silent = []
        return piece

    def _hear(self, finish: Finish) -> None:
        """What the engine says with the end, whether or not a stop string comes before it."""
        self.ended = finish
        if finish.reason in ("stop", "length"):
            self.cached_tokens = finish.cached_tokens

    def _ends(self, finish: Finish) -> bool:
        """The engine's end is the choice's; False for one that is a fault."""
        self.done = True
        if finish.reason not in ("stop", "length"):
            self.fault = finish.message or f"The engine ended the request ({finish.reason})."
            self.fault_code = finish.code
            return False
        return True

    def _finish(self, finish: Finish, pieces: list[Piece]) -> None:
        if not self._ends(finish):
            return
        rest, stop = self._match(self._decoder.flush())
        if stop is None and self._matcher is not None:
            rest += self._matcher.flush()
        reason: str = "stop" if stop is not None else finish.reason
        by = stop if stop is not None else self._named_stop(finish.stop_token)
        if not rest and not self._held_tokens and pieces:
            pieces[-1].finish, pieces[-1].stop_reason = reason, by
        else:
            pieces.append(self._piece(rest, reason, by))

    def _named_stop(self, token: int | None) -> int | None:
        return token if token in self._sampling.stop_token_ids else None
