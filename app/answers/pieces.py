"""Pieces of an answer: text, or part of a function call, and the tokens behind it."""

from collections.abc import Sequence
from dataclasses import dataclass

from engine.messages import TokenLogprobs


@dataclass(slots=True)
class CallPiece:
    """A part of a function call: its beginning (with `id` and `name`), more of its arguments, or `broken`: it
    turned out to be no call.
    """

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""
    broken: bool = False


@dataclass(slots=True)
class Piece:
    """Text that became certain, and the tokens behind it.

    With logprobs, `offsets` holds, for each token, the character of the answer at which its text begins, and
    `silent` whether it belongs to a tool block that was left out of the text. `finish` is "stop", "length" or
    "tool_calls" on a choice's last piece; `stop_reason` then is the stop string or the stop id, if one was
    given. `call` stands in the place of text in answers that call functions.
    """

    text: str
    tokens: list[int]
    logprobs: Sequence[TokenLogprobs | None] = ()
    offsets: Sequence[int] = ()
    silent: Sequence[bool] = ()
    finish: str | None = None
    stop_reason: str | int | None = None
    call: CallPiece | None = None


def merged(pieces: Sequence[Piece]) -> list[Piece]:
    """Consecutive pieces of one choice as few: text with text, and a call's arguments with more of them."""
    runs: list[list[Piece]] = []
    for piece in pieces:
        if runs and _continues(runs[-1][-1].call, piece.call):
            runs[-1].append(piece)
        else:
            runs.append([piece])
    return [joined(run) for run in runs]


def _continues(call: CallPiece | None, more: CallPiece | None) -> bool:
    if call is None or more is None:
        return call is more
    return call.index == more.index and bool(call.arguments and more.arguments)


def joined(pieces: list[Piece]) -> Piece:
    """Consecutive pieces of one choice as one: all of them text, or all of them arguments of one call."""
    if len(pieces) == 1:
        return pieces[0]
    last, call = pieces[-1], pieces[0].call
    if call is not None:
        call = CallPiece(
            call.index, arguments="".join(piece.call.arguments for piece in pieces if piece.call)
        )
    return Piece(
        "".join(piece.text for piece in pieces),
        [token for piece in pieces for token in piece.tokens],
        [item for piece in pieces for item in piece.logprobs],
        [item for piece in pieces for item in piece.offsets],
        [item for piece in pieces for item in piece.silent],
        last.finish,
        last.stop_reason,
        call,
    )
