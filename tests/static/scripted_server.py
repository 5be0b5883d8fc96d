"""A small HTTP server that serves the page and answers by script, as awkwardly as a network can.

It serves `static/` with the page's own headers, lists one model, and answers `/v1/chat/completions` with the
script that the last message names. It can do what no healthy server does: cut an event in the middle of a
character, break off, wait for the test between two writes. Where a test sets `resumable`, a stream with
`X-Stream-Id` goes on without its reader, as the real server's do.
"""

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from app.http.keys import is_open
from app.http.page import page_routes
from tests.app.server_process import DEADLINE
from tests.static.lasting import lasting
from tests.static.scripts import (
    DONE,
    GATE,
    ROLE,
    Gate,
    HangUp,
    Pause,
    Refusal,
    Script,
    Step,
    delta,
    error,
    event,
    queue,
    role,
    score,
    usage,
)

__all__ = [
    "DONE",
    "GATE",
    "ROLE",
    "SAMPLING_DEFAULTS",
    "STATS",
    "Exchange",
    "Gate",
    "HangUp",
    "Pause",
    "Refusal",
    "Script",
    "ScriptedServer",
    "Step",
    "delta",
    "error",
    "event",
    "queue",
    "role",
    "score",
    "usage",
]

STATIC = Path(__file__).resolve().parents[2] / "static"
PAGE = page_routes(STATIC)  # of all servers: each file is packed once
SAMPLING_DEFAULTS = {"temperature": 0.7, "top_k": 40, "min_p": 0.05, "max_tokens": 256}
STATS = {
    "state": "ready",
    "model": "scripted-model",
    "max_rows": 8,
    "running": 2,
    "waiting": 1,
    "blocks_total": 128,
    "blocks_used": 32,
    "blocks_cached": 16,
    "prompt_tokens": 900,
    "cached_tokens": 300,
    "generated_tokens": 4000,
    "tokens_per_second": 210.5,
    "open_answers": 3,
    "ttft_p50_seconds": 0.04,
    "ttft_p95_seconds": 0.2,
    "engine_restarts": 0,
    "resumable_streams": 0,
}


@dataclass(slots=True)
class Exchange:
    """One chat request that the server got. `left` is set when the client leaves early; where the stream can
    be resumed, when it is deleted.
    """

    body: dict[str, object]
    stream_id: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    left: threading.Event = field(default_factory=threading.Event)


class Kept:
    """What a resumable stream has said: numbered events and, between them, comments without a number.

    places: how much had been said after each event. cuts: how much at each HangUp that has not
    happened to a reader yet.
    """

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.said: list[bytes] = []
        self.places = [0]
        self.cuts: list[int] = []
        self.ended = False
        self.task: asyncio.Task[None] | None = None
        self.news = asyncio.Condition()
        self._partial = b""

    async def add(self, step: bytes) -> None:
        """Takes the events and comments that the step completes."""
        rest = self._partial + step
        async with self.news:
            while rest:
                comment = rest.startswith(b":")
                part, end, after = rest.partition(b"\n" if comment else b"\n\n")
                if not end:
                    break
                self.said.append(part + end if comment else b"id: %d\n%b%b" % (len(self.places), part, end))
                if not comment:
                    self.places.append(len(self.said))
                rest = after
            self._partial = rest
            self.news.notify_all()

    async def mark(self, *, cut: bool = False, ended: bool = False) -> None:
        async with self.news:
            self.cuts += [len(self.said)] * cut
            self.ended = self.ended or ended
            self.news.notify_all()


class ScriptedServer:
    """Runs in a thread of its own, on a port that the system picks.

    scripts: see `script`. load: what /stats says, see `tell`. resumable: whether `X-Stream-Id` is taken; the
    page learns it with the model. api_key: what every request but those for the page must carry. card: more
    fields of the model's card. counted: bodies that came to /tokenize. lasting_files: a browser need not
    ask again for the page's scripts and styles, eighty of them at each load.
    """

    def __init__(self, *, lasting_files: bool = False) -> None:
        self._lasting = lasting_files
        self.scripts: dict[str, list[Script]] = {}
        self.exchanges: list[Exchange] = []
        self.counted: list[dict[str, object]] = []
        self.resumed: list[tuple[str, str]] = []  # stream and last event id of each GET
        self.deleted: list[str] = []
        self.load: dict[str, object] = dict(STATS)
        self.card: dict[str, object] = {}
        self.resumable = False
        self.api_key: str | None = None
        self._kept: dict[str, Kept] = {}
        self._loop = asyncio.new_event_loop()
        self._gate = asyncio.Semaphore(0)
        self._told = asyncio.Condition()
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

    def tell(self, **stats: object) -> None:
        """Changes what /stats says, and sends it to those who follow /stats/stream."""

        async def tell() -> None:
            async with self._told:
                self.load = {**self.load, **stats}
                self._told.notify_all()

        self._call(tell())

    def forget_streams(self) -> None:
        """As if their time had run out: resuming gets 404."""
        self._loop.call_soon_threadsafe(self._kept.clear)

    def reset(self) -> None:
        """Forgets scripts, requests, and what a test has set."""
        self.scripts.clear()
        for seen in (self.exchanges, self.counted, self.resumed, self.deleted):
            seen.clear()
        self.resumable, self.api_key, self.card = False, None, {}
        self.tell(**STATS)

        async def close_gates() -> None:
            for kept in self._kept.values():
                if kept.task is not None:
                    kept.task.cancel()
            self._kept.clear()
            while not self._gate.locked():
                await self._gate.acquire()

        self._call(close_gates())

    def close(self) -> None:
        """Stops the server and waits for its thread."""
        self._server.should_exit = self._server.force_exit = True
        self._thread.join()

    def _call(self, coroutine: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(DEADLINE)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._server.serve([self._socket]))

    def _app(self) -> ASGIApp:
        app = Starlette(
            routes=[
                Route("/v1/models", self._models),
                Route("/tokenize", self._tokenize, methods=["POST"]),
                Route("/stats", self._stats),
                Route("/stats/stream", self._stats_stream),
                *PAGE,
            ]
        )

        async def route(scope: Scope, receive: Receive, send: Send) -> None:
            path, headers = scope["path"], dict(scope["headers"])
            sent = headers.get(b"authorization", b"").decode()
            target: ASGIApp = app
            if self.api_key is not None and not is_open(path) and sent != f"Bearer {self.api_key}":
                message = "The API key is not valid." if sent else "Send an API key in the header."
                target = Refusal(401, "invalid_api_key", message, {"www-authenticate": "Bearer"}).response()
            elif path == "/v1/chat/completions":
                target = self._chat
            elif path.startswith("/v1/streams/"):
                target = self._stream
            elif self._lasting and path.startswith("/static/"):
                send = lasting(send)
            await target(scope, receive, send)

        return route

    async def _models(self, request: Request) -> Response:
        card = {"id": "scripted-model", "object": "model", "max_model_len": 2048}
        meta = {"sampling_defaults": SAMPLING_DEFAULTS, "resumable_streams": self.resumable, **self.card}
        return JSONResponse({"data": [card | {"meta": meta}]})

    async def _tokenize(self, request: Request) -> Response:
        """Every word is a token, and each message has four more around it."""
        body = json.loads(await request.body())
        self.counted.append(body)
        messages = body.get("messages")
        text = body.get("prompt", "") if messages is None else " ".join(m["content"] for m in messages)
        count = len(text.split()) + 4 * len(messages or ())
        return JSONResponse({"count": count, "max_model_len": 2048, "tokens": list(range(count))})

    async def _stats(self, request: Request) -> Response:
        return JSONResponse(self.load)

    async def _stats_stream(self, request: Request) -> Response:
        async def snapshots() -> AsyncIterator[bytes]:
            while True:
                load = self.load
                yield event(load)
                async with self._told:
                    await self._told.wait_for(lambda seen=load: self.load is not seen)

        return StreamingResponse(snapshots(), media_type="text/event-stream")

    async def _chat(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        body = json.loads(await request.body())
        exchange = Exchange(body, request.headers.get("x-stream-id", ""), dict(request.headers))
        self.exchanges.append(exchange)
        if exchange.stream_id and not self.resumable:
            refusal = Refusal(
                400,
                "unsupported_parameter",
                "'X-Stream-Id' is not supported by this server.",
                param="X-Stream-Id",
            )
            await refusal.response()(scope, receive, send)
            return
        answers = self.scripts[body["messages"][-1]["content"]]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Refusal):
            await answer.response()(scope, receive, send)
            return
        if exchange.stream_id:
            kept = self._kept[exchange.stream_id] = Kept(exchange)
            kept.task = asyncio.create_task(self._keep(answer, kept))
            await self._until_left(self._follow(kept, 0, send), receive)
        elif not await self._until_left(self._write(answer, send), receive):
            exchange.left.set()

    async def _stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        id, last = scope["path"].rsplit("/", 1)[1], Request(scope).headers.get("last-event-id", "0")
        kept = self._kept.get(id)
        deletes = scope["method"] == "DELETE"
        if deletes:
            self.deleted.append(id)
        else:
            self.resumed.append((id, last))
        if kept is None:
            response = Refusal(404, "stream_not_found", "There is no such stream.").response()
            await response(scope, receive, send)
        elif deletes:
            await self._delete(kept)
            del self._kept[id]
            await JSONResponse({"id": id, "object": "stream", "deleted": True})(scope, receive, send)
        else:
            await self._until_left(self._follow(kept, int(last), send), receive)

    async def _delete(self, kept: Kept) -> None:
        if kept.task is not None and not kept.ended:
            kept.task.cancel()
            kept.exchange.left.set()
            await kept.add(error("The stream was ended.", "stream_cancelled") + DONE)
            await kept.mark(ended=True)

    async def _keep(self, steps: Sequence[Step], kept: Kept) -> None:
        for step in steps:
            if isinstance(step, Gate):
                await self._gate.acquire()
            elif isinstance(step, Pause):
                await asyncio.sleep(step.seconds)
            elif isinstance(step, HangUp):
                await kept.mark(cut=True)
            else:
                await kept.add(step)
        await kept.mark(ended=True)

    async def _follow(self, kept: Kept, at: int, send: Send) -> None:
        """Sends a resumable stream behind event `at`; a HangUp behind that ends it."""
        place = kept.places[at]
        await self._start(send, [(b"x-stream-id", kept.exchange.stream_id.encode())])
        while True:
            async with kept.news:
                while not (len(kept.said) > place or kept.ended or kept.cuts):
                    await kept.news.wait()
                cut = kept.cuts.pop(0) if kept.cuts else None
                data, ended = b"".join(kept.said[place:cut]), kept.ended
                place = len(kept.said)
            more = cut is not None or not ended
            await send({"type": "http.response.body", "body": data, "more_body": more})
            if cut is not None or ended:
                return

    async def _write(self, steps: Sequence[Step], send: Send) -> None:
        await self._start(send)
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

    async def _start(self, send: Send, more: Sequence[tuple[bytes, bytes]] = ()) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": 200, "headers": [*headers, *more]})

    async def _until_left(self, writing: Coroutine[Any, Any, None], receive: Receive) -> bool:
        """Writes until the end or until the client leaves; whether it came to its end."""
        writer = asyncio.create_task(writing)
        leaver = asyncio.create_task(self._wait_for_leaving(receive))
        await asyncio.wait({writer, leaver}, return_when=asyncio.FIRST_COMPLETED)
        done = writer.done()
        writer.cancel()
        leaver.cancel()
        return done

    async def _wait_for_leaving(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
