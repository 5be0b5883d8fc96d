"""Runs requests through a real AsyncEngine and collects what each one got."""

import asyncio
from dataclasses import dataclass, field

from engine.async_engine import AsyncEngine
from engine.messages import EngineConfig, Finish, Request, SamplingParams, TokenStream
from engine.model import GPT
from engine.terminals import NanochatTokenizer


@dataclass(slots=True)
class Answer:
    """Tokens of one choice, the logprobs that came with them, and its end. prompt: of each prompt token but
    the first, its logprob, its rank, and the alternatives.
    """

    tokens: list[int] = field(default_factory=list)
    logprobs: list[tuple[float, tuple[int, ...], tuple[float, ...]] | None] = field(default_factory=list)
    forced: list[int] = field(default_factory=list)
    finish: Finish | None = None
    prompt: list[tuple[float, int, tuple[int, ...], tuple[float, ...]]] = field(default_factory=list)

    @property
    def content(self) -> tuple[object, ...]:
        """What must not depend on the company: everything but the stream id and the share of cached
        tokens.
        """
        assert self.finish is not None
        return (
            tuple(self.tokens),
            tuple(self.logprobs),
            tuple(self.forced),
            self.finish.reason,
            self.finish.stop_token,
            self.finish.message,
            tuple(self.prompt),
        )


async def read(stream: TokenStream) -> Answer:
    answer = Answer()
    while answer.finish is None:
        delta = await stream.next()
        for scores in delta.prompt:
            assert scores.first == len(answer.prompt) + 1 and not answer.tokens
            lists = scores.logprobs, scores.ranks, scores.top_ids, scores.top_logprobs
            answer.prompt += [
                (logprob, rank, tuple(ids), tuple(values))
                for logprob, rank, ids, values in zip(*lists, strict=True)
            ]
        answer.forced += [len(answer.tokens) + index for index in delta.forced]
        answer.tokens += delta.tokens
        answer.logprobs += [
            None if item is None else (item.logprob, tuple(item.top_ids), tuple(item.top_logprobs))
            for item in delta.logprobs
        ]
        answer.finish = delta.finish
    return answer


@dataclass(frozen=True, slots=True)
class Ask:
    """A request without its id."""

    prompt: list[int]
    params: SamplingParams
    n: int = 1
    tools: bool = False
    cache_salt: bytes = b""


async def answers(engine: AsyncEngine, asks: list[Ask], *, together: bool) -> list[list[Answer]]:
    """Per ask, the answers of its choices; the asks one after the other, or all at once."""

    async def one(ask: Ask) -> list[Answer]:
        request = Request(
            id=engine.next_id(ask.n),
            prompt=ask.prompt,
            params=ask.params,
            n=ask.n,
            tools=ask.tools,
            cache_salt=ask.cache_salt,
        )
        return list(await asyncio.gather(*(read(stream) for stream in engine.submit(request))))

    if together:
        return list(await asyncio.gather(*(one(ask) for ask in asks)))
    return [await one(ask) for ask in asks]


async def started(model: GPT, tokenizer: NanochatTokenizer, **config: object) -> AsyncEngine:
    engine = AsyncEngine(model, tokenizer, EngineConfig(**config))  # type: ignore[arg-type]
    await engine.start()
    return engine
