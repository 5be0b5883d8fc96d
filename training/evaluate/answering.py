"""Answers of a shipped folder, from the server's own engine, with the calculator as on its chat routes."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import torch

from engine.async_engine import AsyncEngine
from engine.llama import Llama
from engine.loader import load_model
from engine.messages import EngineConfig, Request, SamplingParams
from training.conversations.exchange import Message
from training.template import prompt
from training.tokenizer import load

ROWS = {"cuda": 256, "cpu": 32}
POOL_BYTES = 8 * 2**30
POOL_SHARE = 0.25  # of what is free on a GPU, at most


@dataclass(frozen=True, slots=True)
class Answer:
    """The text, special tokens of the calculator in it, and whether the turn ended by itself."""

    text: str
    ended: bool


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample; the default is greedy."""

    temperature: float = 0.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int = 0


def _pool_bytes(device: torch.device) -> int:
    """For keys and values on a GPU. The same device computes losses, so they do not get all of its memory."""
    free, _ = torch.cuda.mem_get_info(device)
    return min(POOL_BYTES, int(free * POOL_SHARE))


class Answerer:
    """An engine that answers conversations. Use it as a context manager; it is not for several threads.

    folder: a shipped model. device: "cpu" or "cuda". dtype: as `engine.loader.load_model` has it. Raises
    CheckpointError for a folder that cannot be loaded.
    """

    def __init__(
        self, folder: Path, device: str = "cpu", dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    ) -> None:
        model, tokenizer, meta = load_model(folder, device=device, dtype=dtype)
        assert not isinstance(model, Llama)
        self.model = model
        self.encoder = load(folder)
        self.recommended = meta.sampling_defaults
        kind = next(model.parameters()).device.type
        config = EngineConfig(
            device=kind,
            dtype=dtype,
            max_rows=ROWS.get(kind, ROWS["cpu"]),
            kv_bytes=_pool_bytes(next(model.parameters()).device) if kind == "cuda" else None,
        )
        self._engine = AsyncEngine(model, tokenizer, config, meta)
        self._loop = asyncio.Runner()

    def __enter__(self) -> Self:
        self._loop.run(self._engine.start())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.run(self._engine.close())
        self._loop.close()

    def answers(
        self, talks: Sequence[Sequence[Message]], most: int, sampling: Sampling | None = None
    ) -> list[Answer]:
        """The next answer in each conversation, of at most `most` tokens, all of them at once."""
        return self._loop.run(self._answers(talks, most, sampling or Sampling()))

    async def _answers(
        self, talks: Sequence[Sequence[Message]], most: int, sampling: Sampling
    ) -> list[Answer]:
        return list(await asyncio.gather(*(self._answer(talk, most, sampling) for talk in talks)))

    async def _answer(self, talk: Sequence[Message], most: int, sampling: Sampling) -> Answer:
        ids = prompt(talk, self.encoder)
        room = self._engine.info.max_model_len - len(ids)
        if room < 1:
            return Answer("", ended=False)  # a model of such a short context has no answer to it
        params = SamplingParams(
            max_tokens=min(most, room),
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            repetition_penalty=sampling.repetition_penalty,
            seed=sampling.seed,
        )
        made, _, ended = await self._tokens(ids, params)
        if made and made[-1] in self._engine.info.terminal_ids:
            made.pop()
        return Answer(self.encoder.decode(made).strip(), ended)

    def continuations(self, prompts: Sequence[list[int]], tokens: int) -> list[tuple[list[int], list[float]]]:
        """Each prompt continued by `tokens` ids at temperature 1, and their log probabilities as served."""

        async def one(at: int, ids: list[int]) -> tuple[list[int], list[float]]:
            params = SamplingParams(max_tokens=tokens, seed=at, logprobs=0, ignore_eos=True)
            made, logprobs, _ = await self._tokens(ids, params, tools=False)
            return made, logprobs

        async def every() -> list[tuple[list[int], list[float]]]:
            return list(await asyncio.gather(*(one(at, ids) for at, ids in enumerate(prompts))))

        return self._loop.run(every())

    async def _tokens(
        self, ids: list[int], params: SamplingParams, tools: bool = True
    ) -> tuple[list[int], list[float], bool]:
        """The ids that follow, their log probabilities where asked for, and whether the turn ended by itself.

        Raises RuntimeError if the engine fails, ValueError for a prompt that is too long.
        """
        request = Request(id=self._engine.next_id(1), prompt=ids, params=params, tools=tools)
        made: list[int] = []
        logprobs: list[float] = []
        ended = False
        async for delta in self._engine.generate(request):
            made += delta.tokens
            logprobs += [one.logprob for one in delta.logprobs if one is not None]
            if delta.finish is not None:
                if delta.finish.reason == "error":
                    raise RuntimeError(f"the engine failed: {delta.finish.message}")
                ended = delta.finish.reason == "stop"
        return made, logprobs, ended
