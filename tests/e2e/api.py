"""Talks to a real server as its clients do, and reads what it says about itself."""

import asyncio
import contextlib
import json
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field

import httpx

from tests.app.server_process import DEADLINE, Server

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"


@dataclass(slots=True)
class Answer:
    """What has come of one choice so far; `done` is set by the stream's `[DONE]` or the plain body's end."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    finish: str | None = None
    usage: dict[str, object] = field(default_factory=dict)
    error: dict[str, object] | None = None
    done: bool = False

    @property
    def content(self) -> tuple[str, tuple[int, ...], str | None]:
        """What must not depend on other requests."""
        return self.text, tuple(self.tokens), self.finish

    @property
    def cached(self) -> int:
        """Prompt tokens that the prefix cache had."""
        details = self.usage["prompt_tokens_details"]
        assert isinstance(details, dict)
        return int(details["cached_tokens"])

    def take(self, body: dict[str, object]) -> None:
        """An event of a stream, or a whole body."""
        if "error" in body:
            assert isinstance(body["error"], dict)
            self.error = body["error"]
            return
        if isinstance(body.get("usage"), dict):
            self.usage = body["usage"]  # type: ignore[assignment]
        choices = body["choices"]
        assert isinstance(choices, list)
        for choice in choices:
            message = choice.get("delta") or choice.get("message") or {}
            self.text += choice.get("text") or message.get("content") or ""
            self.tokens += choice.get("token_ids") or []
            self.finish = choice["finish_reason"] or self.finish


class Api:
    """A client of one server."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.http = httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{server.port}", timeout=DEADLINE, trust_env=False
        )

    async def ask(
        self, path: str, body: dict[str, object], *, stream: bool, into: Answer | None = None
    ) -> Answer:
        """One answer with its token ids. `into` shows its progress; cancelling closes the connection."""
        answer = into or Answer()
        body = {"return_token_ids": True, "stream": stream} | body
        if not stream:
            reply = await self.http.post(path, json=body)
            assert reply.status_code == 200, reply.text
            answer.take(reply.json())
            answer.done = True
            return answer
        async for data in self.events(path, body | {"stream_options": {"include_usage": True}}):
            if data == "[DONE]":
                answer.done = True
            else:
                answer.take(json.loads(data))
        return answer

    async def events(self, path: str, body: dict[str, object]) -> AsyncIterator[str]:
        """The data of a stream's events."""
        async with self.http.stream("POST", path, json=body) as reply:
            assert reply.status_code == 200, await reply.aread()
            assert reply.headers["content-type"].startswith("text/event-stream")
            async for line in reply.aiter_lines():
                if line.startswith("data: "):
                    yield line.removeprefix("data: ")

    async def complete(
        self, prompt: list[int], *, stream: bool = True, into: Answer | None = None, **fields: object
    ) -> Answer:
        """Continues token ids."""
        return await self.ask(COMPLETIONS, {"prompt": prompt} | fields, stream=stream, into=into)

    async def chat(
        self, content: str, *, stream: bool = True, into: Answer | None = None, **fields: object
    ) -> Answer:
        body = {"messages": [{"role": "user", "content": content}]} | fields
        return await self.ask(CHAT, body, stream=stream, into=into)

    # What the server says about itself

    async def stats(self) -> dict[str, int]:
        reply = await self.http.get("/stats")
        stats: dict[str, int] = reply.json()
        return stats

    async def metric(self, name: str) -> float:
        """The sum over all labels of one name in /metrics."""
        lines = (await self.http.get("/metrics")).text.splitlines()
        values = [line for line in lines if line.startswith((name + " ", name + "{"))]
        assert values, f"/metrics has no {name}"
        return sum(float(line.rsplit(" ", 1)[1]) for line in values)

    async def ready(self) -> bool:
        return (await self.http.get("/ready")).status_code == 200

    async def until_stats(self, condition: Callable[[dict[str, int]], bool]) -> dict[str, int]:
        """Asks for the statistics until they meet a condition; gives them back."""
        start = time.monotonic()
        while not condition(stats := await self.stats()):
            assert time.monotonic() - start < DEADLINE, f"the server stayed at {stats}"
            await asyncio.sleep(0.005)
        return stats

    async def until_idle(self) -> dict[str, int]:
        """Waits until nothing runs or waits."""
        return await self.until_stats(lambda s: s["running"] + s["waiting"] + s["open_answers"] == 0)


async def until(condition: Callable[[], bool]) -> None:
    """Lets the loop run until a condition on local state is true."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < DEADLINE, "the condition did not come true in time"
        await asyncio.sleep(0.002)


@contextlib.asynccontextmanager
async def connected(server: Server) -> AsyncIterator[Api]:
    api = Api(server)
    try:
        yield api
    finally:
        await api.http.aclose()


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """The process takes no step in here."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def random_prompt(length: int, seed: int) -> list[int]:
    """Ordinary ids of the golden vocabulary."""
    return random.Random(seed).choices(range(503), k=length)
