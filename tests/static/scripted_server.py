"""A small HTTP server that serves the page and answers by script, as awkwardly as a network can.

It serves `static/` with the page's Content-Security-Policy, lists one model, and answers
`/v1/chat/completions` with the script that the last message names. It can do what no healthy server does:
cut an event in the middle of a character, break off, wait for the test between two writes.
"""

import asyncio
import json
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

STATIC = Path(__file__).resolve().parents[2] / "static"
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; font-src 'self'; "
    "connect-src 'self'; worker-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'"
)
SAMPLING_DEFAULTS = {"temperature": 0.7, "top_k": 40, "min_p": 0.05, "max_tokens": 256}


class Gate:
    """A step of a script: nothing is written until the test releases the server once more."""


GATE = Gate()


@dataclass(frozen=True, slots=True)
class Pause:
    """A step of a script that stands for the time a token takes, in seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Refusal:
    """Instead of a stream: an error status with the nested error body."""

    status: int
    code: str
    message: str
    headers: dict[str, str] = field(default_factory=dict)


class HangUp:
    """A step of a script: the connection is cut, without a proper end of the body."""


Step = bytes | Gate | Pause | HangUp
Script = Refusal | Sequence[Step]


def event(payload: dict[str, object]) -> bytes:
    """One SSE event in UTF-8, characters beyond ASCII unescaped."""
    return b"data: " + json.dumps(payload, ensure_ascii=False).encode() + b"\n\n"


def delta(text: str, finish: str | None = None) -> bytes:
    """A chunk with a piece of the answer."""
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    return event({"object": "chat.completion.chunk", "choices": [choice]})


ROLE = event(
    {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}
)
DONE = b"data: [DONE]\n\n"


def usage(completion_tokens: int) -> bytes:
    """The usage chunk, without choices."""
    counts = {
        "prompt_tokens": 9,
        "completion_tokens": completion_tokens,
        "total_tokens": 9 + completion_tokens,
    }
    return event({"choices": [], "usage": counts})


def error(message: str, code: str) -> bytes:
    """An error event, as it follows on headers that promised success."""
    return event({"error": {"message": message, "type": "server_error", "param": None, "code": code}})


@dataclass(slots=True)
class Exchange:
    """One chat request that the server got."""

    body: dict[str, object]
    left: threading.Event = field(default_factory=threading.Event)  # set when the client leaves early


class ScriptedServer:
    """Runs in a thread of its own, on a port that the system picks."""

    def __init__(self) -> None:
        self.scripts: dict[str, list[Script]] = {}
        self.exchanges: list[Exchange] = []
        self.load: dict[str, object] = {"running": 2, "waiting": 1}
        self._loop = asyncio.new_event_loop()
        self._gate = asyncio.Semaphore(0)
        # Listening before the server runs: a client that comes early waits in the backlog.
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/"
        config = uvicorn.Config(self._app(), log_level="critical", lifespan="off", ws="none")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def script(self, message: str, *answers: Script) -> None:
        """Sets what a message gets: the first time the first answer, and so on; the last one stays."""
        self.scripts[message] = list(answers)

    def release(self, times: int = 1) -> None:
        """Opens the next gates."""
        for _ in range(times):
            self._loop.call_soon_threadsafe(self._gate.release)

    def reset(self) -> None:
        """Forgets scripts and requests."""
        self.scripts.clear()
        self.exchanges.clear()

        async def close_gates() -> None:
            while not self._gate.locked():
                await self._gate.acquire()

        asyncio.run_coroutine_threadsafe(close_gates(), self._loop).result(5)

    def close(self) -> None:
        """Stops the server and waits for its thread."""
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._server.serve([self._socket]))

    def _app(self) -> ASGIApp:
        app = Starlette(
            routes=[
                Route("/", self._page),
                Route("/v1/models", self._models),
                Route("/stats", self._stats),
                Mount("/static", StaticFiles(directory=STATIC)),
            ]
        )

        async def with_headers(scope: Scope, receive: Receive, send: Send) -> None:
            async def send_with_headers(message: Message) -> None:
                if message["type"] == "http.response.start":
                    extra = [
                        (b"content-security-policy", CSP.encode()),
                        (b"x-content-type-options", b"nosniff"),
                    ]
                    message["headers"] = [*message["headers"], *extra]
                await send(message)

            target = self._chat if scope["path"] == "/v1/chat/completions" else app
            await target(scope, receive, send_with_headers)

        return with_headers

    async def _page(self, request: Request) -> Response:
        return FileResponse(STATIC / "index.html")

    async def _models(self, request: Request) -> Response:
        card = {"id": "scripted-model", "object": "model", "max_model_len": 2048}
        return JSONResponse({"data": [card | {"meta": {"sampling_defaults": SAMPLING_DEFAULTS}}]})

    async def _stats(self, request: Request) -> Response:
        return JSONResponse(self.load)

    async def _chat(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = json.loads(await Request(scope, receive).body())
        exchange = Exchange(body)
        self.exchanges.append(exchange)
        answers = self.scripts[body["messages"][-1]["content"]]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Refusal):
            refusal = {"message": answer.message, "type": "x", "param": None, "code": answer.code}
            response = JSONResponse({"error": refusal}, answer.status, answer.headers)
            await response(scope, receive, send)
            return
        writer = asyncio.create_task(self._write(answer, send))
        leaver = asyncio.create_task(self._wait_for_leaving(receive))
        await asyncio.wait({writer, leaver}, return_when=asyncio.FIRST_COMPLETED)
        if not writer.done():
            writer.cancel()
            exchange.left.set()
        leaver.cancel()

    async def _write(self, steps: Sequence[Step], send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for step in steps:
            if isinstance(step, Gate):
                await self._gate.acquire()
            elif isinstance(step, Pause):
                await asyncio.sleep(step.seconds)
            elif isinstance(step, HangUp):
                return
            else:
                await send({"type": "http.response.body", "body": step, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _wait_for_leaving(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
