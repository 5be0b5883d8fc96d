"""The engine for scripts and notebooks: plain calls and generators, no event loop in sight.

    engine = Engine(model, tokenizer, enable_batch_decode=True)
    for tokens, masks in engine.generate_batched([[bos, 5, 7], [bos, 9]], max_tokens=[20, 30], temperature=0):
        ...

Underneath is the server's own `AsyncEngine`, on a loop in a thread of its own. It decodes continuously, and
the generators hand its tokens out in columns, one token of every row at a time.
"""

import operator
import weakref
from collections.abc import Generator, Iterable, Sequence
from typing import Self, TypeAlias, TypeVar

import msgspec

from engine.async_engine import AsyncEngine
from engine.backend import Feature
from engine.background import BackgroundLoop
from engine.checkpoint import CheckpointMeta
from engine.columns import Column, Columns
from engine.decoder import Decoder
from engine.messages import (
    BatchingMode,
    EngineConfig,
    EngineStats,
    EngineUnavailable,
    Request,
    SamplingParams,
    TokenStream,
)
from engine.sampler import check_params
from engine.terminals import NanochatTokenizer

T = TypeVar("T")

Prompt: TypeAlias = str | Sequence[int]
PerRow: TypeAlias = T | Sequence[T | None] | None  # one value for all rows, or one for each


class Engine:
    """Generates from one model, by the call forms of nanochat's engine.

    model: unchanged, and free for other engines; its projections are copied into a packed form. tokenizer:
    anything with nanochat's five methods. enable_batch_decode: `generate_batched` may be called, and
    requests of all generators share steps; without it they are served one at a time. reuse_ids_buffer: kept
    for nanochat's callers; `status` says what is done. config: settings of the engine below, whose `batching`
    counts with enable_batch_decode only; without one the flags of the model's own config alone turn fast
    paths on. meta: what the loader knows beyond the weights, such as further ids that end an answer.

    Generators may be open side by side, in several threads too. A generator submits its requests when its
    first column is asked for, runs ahead of its reader, and takes its requests back when it is closed or
    dropped. Raises ValueError, at the call or with the first column, for what can never be served, and
    RuntimeError when the engine fails or was closed.
    """

    def __init__(
        self,
        model: Decoder,
        tokenizer: NanochatTokenizer,
        reuse_ids_buffer: bool = True,
        enable_batch_decode: bool = False,
        config: EngineConfig | None = None,
        *,
        meta: CheckpointMeta | None = None,
    ) -> None:
        config = config or EngineConfig(profile="seed")
        if not enable_batch_decode:
            config = msgspec.structs.replace(config, batching="single")
        self.model = model
        self.tokenizer = tokenizer
        self.reuse_ids_buffer = reuse_ids_buffer
        self.enable_batch_decode = enable_batch_decode
        self._engine = AsyncEngine(model, tokenizer, config, meta)
        self._background = BackgroundLoop(self._engine)
        weakref.finalize(self, self._background.end).atexit = False

    @property
    def mode(self) -> BatchingMode:
        """How requests share steps."""
        return self._engine.config.batching

    def status(self) -> list[Feature]:
        """A row for each feature: its name, what was asked for, what is used, and why."""
        batched = self.enable_batch_decode
        rows = {name: used for name, _, used, _ in self._engine.info.features}
        pinned = rows["enable_persistent_decode"] == "on"
        return [
            *self._engine.info.features,
            ("batch decode", str(batched), str(batched), f"requests are served in mode {self.mode}"),
            (
                "reuse ids buffer",
                str(self.reuse_ids_buffer),
                str(pinned),
                "every step's inputs go through the same buffers"
                if pinned
                else "steps make their inputs anew; tokens are the same",
            ),
        ]

    def stats(self) -> EngineStats:
        """The engine's counters at this moment."""
        if self._background.running:
            return self._background.call(self._engine.stats)
        return self._engine.stats()

    def close(self) -> None:
        """Ends the engine; generators that are still open fail. Repeating it changes nothing."""
        self._background.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -- generation
    # ----------------------------------------------------------------------------------------------

    def generate(
        self,
        tokens: Prompt,
        num_samples: int = 1,
        max_tokens: int | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int = 42,
    ) -> Generator[Column, None, None]:
        """Continues one prompt `num_samples` times: yields (token_column, token_masks), lists of that length.

        Mask 1: sampled. 0: forced by the calculator. -1: this row has finished, and its token (bos) means
        nothing. A row ends with a terminal id, which is yielded, after `max_tokens` tokens, forced ones
        included, or where the model's context ends. tokens: ids as they are, or a text, which gets bos in
        front. temperature 0 is greedy; top_k None or 0 is off.
        """
        if num_samples < 1:
            raise ValueError(f"num_samples is {num_samples}, at least 1 is needed")
        prompt = self._prompt(tokens, "tokens")
        request = self._request(prompt, max_tokens, temperature, top_k, seed, num_samples)
        return self._columns([request])

    def generate_batched(
        self,
        prompts: Sequence[Prompt],
        max_tokens: PerRow[int] = None,
        temperature: PerRow[float] = 1.0,
        top_k: PerRow[int] = None,
        seed: int = 42,
    ) -> Generator[Column, None, None]:
        """Continues several prompts at once: yields (token_column, token_masks), one entry per prompt; see
        `generate`.

        max_tokens, temperature, top_k: one value for all rows, or a list with one for each, in which None
        stands for the default. Row i samples with seed + i, and gives what `generate` gives for its prompt
        and that seed, whatever its neighbours. Raises ValueError at once, before anything is computed:
        without enable_batch_decode, for an empty prompt among others too, and for lists of the wrong length.
        """
        if not self.enable_batch_decode:
            raise ValueError("generate_batched needs an Engine with enable_batch_decode=True")
        if isinstance(prompts, str) or not isinstance(prompts, Sequence) or not prompts:
            raise ValueError("prompts must be a list of at least one prompt")
        rows = len(prompts)
        ids = [self._prompt(prompt, f"prompts[{row}]") for row, prompt in enumerate(prompts)]
        limits = _per_row("max_tokens", max_tokens, rows)
        temperatures = _per_row("temperature", temperature, rows)
        top_ks = _per_row("top_k", top_k, rows)
        requests: list[Request | None] = []
        for row in range(rows):
            try:
                request = self._request(ids[row], limits[row], temperatures[row], top_ks[row], seed + row)
            except ValueError as error:
                raise ValueError(f"row {row}: {error}") from None
            requests.append(request)
        return self._columns(requests)

    def _prompt(self, prompt: object, name: str) -> list[int]:
        if isinstance(prompt, str):
            return [self.tokenizer.get_bos_token_id(), *self.tokenizer.encode(prompt)]
        if not isinstance(prompt, Iterable):
            raise ValueError(f"{name} is {prompt!r}, not a list of token ids nor a text")
        try:
            ids = [operator.index(id) for id in prompt]
        except TypeError:
            raise ValueError(f"{name} holds something that is not a token id") from None
        if not ids:
            raise ValueError(f"{name} is empty; there is nothing to start from")
        info = self._engine.info
        if not all(0 <= id < info.vocab_size for id in ids):
            raise ValueError(f"{name} holds a token id outside the vocabulary of {info.vocab_size}")
        if len(ids) >= info.max_model_len:
            raise ValueError(
                f"{name} has {len(ids)} tokens of at most {info.max_model_len}: at least one must be sampled"
            )
        return ids

    def _request(
        self,
        prompt: list[int],
        max_tokens: int | None,
        temperature: float | None,
        top_k: int | None,
        seed: int,
        n: int = 1,
    ) -> Request | None:
        """None where nothing is asked for: a limit of 0. Its id is given when it is submitted."""
        info = self._engine.info
        if max_tokens is not None and not isinstance(max_tokens, int):
            raise ValueError(f"max_tokens is {max_tokens!r}, not a whole number")
        if max_tokens == 0:
            return None
        room = info.max_model_len - len(prompt)
        params = SamplingParams(
            max_tokens=room if max_tokens is None else max_tokens,
            temperature=1.0 if temperature is None else temperature,
            top_k=min(top_k or 0, info.vocab_size),
            seed=seed,
        )
        check_params(params, info.vocab_size)
        return Request(id=0, prompt=prompt, params=params, n=n, tools=True)

    def _columns(self, requests: list[Request | None]) -> Generator[Column, None, None]:
        """The columns of requests, their choices side by side. They are taken back whenever this ends."""
        columns = Columns(self.tokenizer.get_bos_token_id())
        ids: list[int] = []

        def submit() -> None:
            columns.attach(self._submit(requests, ids))

        self._background.start()
        try:
            self._background.call(submit)
            yield from columns
        except EngineUnavailable as error:
            raise RuntimeError(str(error)) from (self._engine.fault or error)
        finally:
            self._background.post(lambda: self._engine.abort(ids))

    def _submit(self, requests: list[Request | None], ids: list[int]) -> list[TokenStream | None]:
        """Queues requests on the loop, all or, where it raises, none; `ids` gets their stream ids."""
        streams: list[TokenStream | None] = []
        engine = self._engine
        try:
            for request in requests:
                if request is None:
                    streams.append(None)
                    continue
                opened = engine.submit(msgspec.structs.replace(request, id=engine.next_id(request.n)))
                streams += opened
                ids += (stream.id for stream in opened)
        except BaseException:
            engine.abort(ids)
            raise
        return streams


def _per_row(name: str, value: PerRow[T], rows: int) -> list[T | None]:
    """A value for each row. Raises ValueError for a list of another length."""
    if isinstance(value, Sequence):
        if len(value) != rows:
            raise ValueError(f"{name} has {len(value)} entries for {rows} prompts")
        return list(value)
    return [value] * rows
