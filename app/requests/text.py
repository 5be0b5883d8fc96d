"""Text to token ids and back, for the model that the engine loaded.

The tokenizer's files are read once the engine has said where they are. Encoding a long text, or loading,
happens in a thread, so that no stream waits for it.
"""

import asyncio
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from app.http.errors import EngineGone
from engine.messages import ModelInfo
from engine.text import (
    ChatMessage,
    ChatTemplate,
    IncrementalDecoder,
    PlainTemplate,
    StandInTokenizer,
    StopMatcher,
    Tokenizer,
    Tool,
    load_chat_template,
    load_tokenizer,
)

THREAD_ABOVE = 2048  # characters; about half a millisecond of encoding

T = TypeVar("T")


class Spellings(dict[int, bytes]):
    """Token id to its text as a JSON string, for tokens whose text is the same wherever they stand.

    Empty for the others: special tokens, parts of characters, ids without text. Entries are made when they
    are first asked for.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self._tokenizer = tokenizer

    def __missing__(self, id: int) -> bytes:
        spelling = self[id] = self._spell(id)
        return spelling

    def _spell(self, id: int) -> bytes:
        data = b"" if self._tokenizer.is_special(id) else self._tokenizer.token_bytes(id)
        try:
            return msgspec.json.encode(data.decode()) if data else b""
        except UnicodeDecodeError:
            return b""


class TextService:
    """Tokenizer and chat template of one model.

    `TextService(tokenizer, template)` is ready at once (tests, an inline engine); without arguments it loads
    what `prepare` names.
    """

    def __init__(self, tokenizer: Tokenizer | None = None, template: ChatTemplate | None = None) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._spellings = Spellings(tokenizer) if tokenizer is not None else None
        self._path: str | None = None
        self._loading = asyncio.Lock()

    @property
    def tokenizer(self) -> Tokenizer:
        """Raises EngineGone (503) until `prepare` has been called."""
        if self._tokenizer is None:
            raise EngineGone("The tokenizer has not been loaded yet.")
        return self._tokenizer

    async def prepare(self, info: ModelInfo) -> None:
        """Loads the tokenizer of `info.path` unless that has been done. Raises TokenizerError, OSError."""
        if self._path == info.path or (self._path is None and self._tokenizer is not None):
            return
        async with self._loading:
            if self._path != info.path:
                tokenizer, self._template = await asyncio.to_thread(_load, info)
                self._tokenizer, self._spellings = tokenizer, Spellings(tokenizer)
                self._path = info.path

    @property
    def spellings(self) -> Spellings:
        """Raises EngineGone (503) until `prepare` has been called."""
        if self._spellings is None:
            raise EngineGone("The tokenizer has not been loaded yet.")
        return self._spellings

    async def encode(self, texts: Sequence[str], *, bos: bool) -> list[list[int]]:
        """Ordinary ids of each text, which never contain special ones. bos: behind BOS, where the model's
        text begins with one; in the place of no text at all, BOS always.
        """
        tokenizer = self.tokenizer
        alone = [tokenizer.get_bos_token_id()] if bos else []
        first = alone if tokenizer.adds_bos else []
        return await _aside(
            sum(map(len, texts)),
            lambda: [first + tokenizer.encode(text) if text else list(alone) for text in texts],
        )

    @property
    def template(self) -> ChatTemplate:
        """Raises EngineGone (503) until `prepare` has been called."""
        if self._template is None:
            raise EngineGone("The chat template has not been loaded yet.")
        return self._template

    async def render(
        self, messages: list[ChatMessage], *, continue_final: bool = False, tools: Sequence[Tool] = ()
    ) -> list[int]:
        """The conversation as the model's template writes it, ready for the assistant's turn."""
        template = self.template
        # Tools are walked several times, and written as JSON.
        chars = THREAD_ABOVE * len(tools) + sum(len(message.content) for message in messages)
        return await _aside(
            chars, lambda: template.render(messages, continue_final=continue_final, tools=tools)
        )

    def decoder(
        self,
        *,
        skip_special: bool,
        hidden: Collection[int] = frozenset(),
        shown: Collection[int] = frozenset(),
    ) -> IncrementalDecoder:
        return IncrementalDecoder(self.tokenizer, skip_special, hidden, shown)

    def ids_of(self, spellings: Sequence[str]) -> dict[int, str]:
        """Those of the spellings that are special tokens, by id."""
        specials = self.tokenizer.special_tokens
        return {specials[spelling]: spelling for spelling in spellings if spelling in specials}

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids)

    def token_bytes(self, id: int) -> bytes:
        return self.tokenizer.token_bytes(id)

    def token_name(self, id: int) -> str:
        return token_string(self.tokenizer.token_bytes(id))

    def is_special(self, id: int) -> bool:
        return self.tokenizer.is_special(id)


def token_string(data: bytes) -> str:
    """A token as text; one that is no UTF-8 by itself is spelled byte by byte."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def matcher(stops: Sequence[str], include: bool) -> StopMatcher | None:
    return StopMatcher(stops, include) if stops else None


def _load(info: ModelInfo) -> tuple[Tokenizer, ChatTemplate]:
    if not info.path:  # a model with random weights, of which there was nothing but a description
        stand_in = StandInTokenizer(info.vocab_size)
        return stand_in, PlainTemplate(stand_in)
    folder = Path(info.path)
    tokenizer = load_tokenizer(folder)
    return tokenizer, load_chat_template(folder, tokenizer)


async def _aside(chars: int, work: Callable[[], T]) -> T:
    return await asyncio.to_thread(work) if chars > THREAD_ABOVE else work()
