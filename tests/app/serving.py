"""A real uvicorn server in the test's own event loop, on a port that the system chose."""

import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import httpx
import openai
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.http.connection import GuardedHttpProtocol
from app.requests.text import TextService
from app.routes.context import Context
from app.routes.server import create_app
from app.settings.http import ConnectionLimits, HttpSettings
from engine.text import ChatTemplate, Tokenizer
from tests.app.scripted_engine import ScriptedEngine, byte_template, byte_tokenizer


@dataclass
class Served:
    engine: ScriptedEngine
    context: Context
    http: httpx.AsyncClient
    url: str
    port: int

    @property
    def openai(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(
            base_url=f"{self.url}/v1", api_key="none", max_retries=0, http_client=self.http
        )

    async def complete(self, **body: object) -> httpx.Response:
        return await self.http.post("/v1/completions", json=body)

    async def chat(self, content: str = "hi", **body: object) -> httpx.Response:
        messages = [{"role": "user", "content": content}]
        return await self.http.post("/v1/chat/completions", json={"messages": messages, **body})


@asynccontextmanager
async def served(
    engine: ScriptedEngine,
    settings: HttpSettings | None = None,
    *,
    direct: bool = True,
    tokenizer: Tokenizer | None = None,
    template: ChatTemplate | None = None,
    limits: ConnectionLimits | None = None,
    root_path: str = "",
) -> AsyncIterator[Served]:
    """`direct`: with the ASGI extension of app/http/direct.py and the guarded protocol, as it is served."""
    text = TextService(tokenizer or byte_tokenizer(), template or byte_template())
    app = create_app(engine, text, settings or HttpSettings())
    sock = socket.create_server(("127.0.0.1", 0))
    # As uvloop does it for the real server; else every second write waits 40 ms for an acknowledgement.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    http = partial(GuardedHttpProtocol, limits=limits) if direct else HttpToolsProtocol
    config = uvicorn.Config(
        app,
        http=http,  # type: ignore[arg-type]
        ws="none",
        log_level="critical",
        timeout_graceful_shutdown=1,
        root_path=root_path,
    )
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    await server.startup(sockets=[sock])
    port = sock.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    try:
        async with httpx.AsyncClient(base_url=url, timeout=10) as client:
            yield Served(engine, app.state.context, client, url, port)
    finally:
        app.state.context.lifecycle.start_draining()
        server.force_exit = True
        await server.shutdown(sockets=[sock])
        await engine.close()


def events(body: str) -> list[object]:
    """The data of each event; every event must be one `data:` line. [DONE] becomes the string "[DONE]"."""
    result: list[object] = []
    for block in body.split("\n\n"):
        lines = [line for line in block.split("\n") if line and not line.startswith(":")]
        if not lines:
            continue
        assert len(lines) == 1 and lines[0].startswith("data: "), block
        data = lines[0].removeprefix("data: ")
        result.append(data if data == "[DONE]" else json.loads(data))
    return result


def stream_text(body: str, index: int = 0) -> str:
    """The joined text of one choice, from either route."""
    text = ""
    for event in events(body):
        if isinstance(event, dict):
            for choice in event.get("choices", []):
                if choice["index"] == index:
                    text += choice["text"] if "text" in choice else choice["delta"].get("content", "")
    return text
