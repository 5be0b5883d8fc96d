"""Logprobs in OpenAI's two shapes, with the true bytes of each token."""

from collections.abc import Sequence
from typing import Protocol

from app.answers.pieces import Piece
from engine.messages import TokenLogprobs

LOWEST = -9999.0  # JSON has no -Infinity


class Names(Protocol):
    """What tokens are called, and what they are."""

    def token_name(self, id: int) -> str: ...

    def token_bytes(self, id: int) -> bytes: ...


class IdNames:
    """Tokens are called by their ids, so that no two have the same name."""

    def __init__(self, names: Names) -> None:
        self.token_bytes = names.token_bytes

    def token_name(self, id: int) -> str:
        return f"token_id:{id}"


def chat_logprobs(pieces: Sequence[Piece], text: Names) -> dict[str, object]:
    return {"content": logprob_entries(pieces, text), "refusal": None}


def logprob_entries(pieces: Sequence[Piece], text: Names) -> list[dict[str, object]]:
    """One item per token; a token that the tool machine wrote was certain: logprob 0, no alternatives.

    `token` names a token of a tool block that was left out of the text, too, but its `bytes` are none: those
    of all ordinary tokens, joined, are the text.
    """
    content: list[dict[str, object]] = []
    for piece in pieces:
        for token, item, silent in zip(piece.tokens, piece.logprobs, piece.silent, strict=True):
            top = [] if item is None else list(zip(item.top_ids, item.top_logprobs, strict=True))
            entry = _entry(text, token, 0.0 if item is None else item.logprob)
            if silent:
                entry["bytes"] = []
            entry["top_logprobs"] = [_entry(text, id, value) for id, value in top]
            content.append(entry)
    return content


def completion_logprobs(pieces: Sequence[Piece], text: Names) -> dict[str, list[object]]:
    """Parallel lists; the sampled token is among its own alternatives even outside the best ones.

    Tokens without text of their own (parts of a character, a tool block that was left out) have the offset of
    the text that comes next.
    """
    tokens: list[object] = []
    values: list[object] = []
    tops: list[object] = []
    offsets: list[object] = []
    for piece in pieces:
        for token, item, offset in zip(piece.tokens, piece.logprobs, piece.offsets, strict=True):
            spelled = text.token_name(token)
            value = 0.0 if item is None else _clamp(item.logprob)
            tokens.append(spelled)
            values.append(value)
            tops.append({**_alternatives(item, text), spelled: value})
            offsets.append(offset)
    return {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}


def _alternatives(item: TokenLogprobs | None, text: Names) -> dict[str, float]:
    if item is None:
        return {}
    pairs = zip(item.top_ids, item.top_logprobs, strict=True)
    return {text.token_name(id): _clamp(value) for id, value in pairs}


def _entry(text: Names, token: int, logprob: float) -> dict[str, object]:
    data = text.token_bytes(token)
    return {"token": text.token_name(token), "logprob": _clamp(logprob), "bytes": list(data)}


def _clamp(value: float) -> float:
    return value if value > LOWEST else LOWEST  # NaN, too
