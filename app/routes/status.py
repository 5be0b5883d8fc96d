"""How the server is: /health, /ready, /stats, /stats/stream, /metrics."""

import asyncio
from collections.abc import AsyncIterator

import msgspec
from sse_starlette import EventSourceResponse
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from app.http.errors import Draining, EngineGone, Unavailable
from app.routes.context import Context
from app.telemetry.prometheus import CONTENT_TYPE, Exporter, Watched
from engine.messages import EngineState, EngineUnavailable, ModelInfo


class Status:
    """The routes' handlers. None of them waits for the engine, and none shows a prompt.

    With several front-end processes each of them answers for all.
    """

    def __init__(self, context: Context) -> None:
        self.context = context
        self.exporter = Exporter(context.client, context.lifecycle)

    async def health(self, request: HttpRequest) -> Response:
        """200 while the process lives."""
        context = self.context
        total, available = self._workers()
        return _json(
            {
                "status": "ok",
                "ready": context.ready,
                "num_gpus": total,
                "available_workers": available,
                "version": context.settings.version,
            }
        )

    async def ready(self, request: HttpRequest) -> Response:
        """200 when a request would be taken now, else 503 with the reason."""
        context = self.context
        if context.ready:
            return _json({"ready": True, "state": "ready"})
        lifecycle = context.lifecycle
        draining = lifecycle.leaving or lifecycle.draining
        error: Unavailable = Draining() if draining else EngineGone()
        state = "draining" if draining else str(context.client.state)
        if state == EngineState.READY:
            state = "stuck"
        body = {"ready": False, "state": state, "error": error.payload()}
        return _json(body, 503, {"retry-after": "2"})

    async def stats(self, request: HttpRequest) -> Response:
        return _json(await self.snapshot())

    async def stats_stream(self, request: HttpRequest) -> Response:
        """One snapshot per interval, until the client leaves or the server shuts down."""
        return EventSourceResponse(self._snapshots(), ping=0, sep="\n")

    async def metrics(self, request: HttpRequest) -> Response:
        return Response(
            self.exporter.render(await self.context.counts()), headers={"content-type": CONTENT_TYPE}
        )

    async def snapshot(self) -> dict[str, object]:
        """nanochat's keys, then the engine's counters, then what this layer measured."""
        context = self.context
        info = self._info()
        total, available = self._workers()
        counts = await context.counts()
        p50, p95 = counts.ttft_quantiles(0.5, 0.95)
        stats: dict[str, object] = {
            "total_workers": total,
            "available_workers": available,
            "busy_workers": total - available,
            "workers": [] if info is None else [{"gpu_id": 0, "device": info.device}],
            "state": "draining" if context.lifecycle.draining else str(context.client.state),
            "model": None if info is None else info.name,
            "max_rows": 0 if info is None else info.max_rows,
            **self._engine(),
            "open_answers": counts.open_answers,
            "open_choices": counts.open_choices,
            "tokens_per_second": round(counts.tokens_per_second, 2),
            "ttft_p50_seconds": p50,
            "ttft_p95_seconds": p95,
            "disconnects": counts.disconnects,
            "slow_reader_aborts": counts.slow_readers,
            "replays": counts.replays,
            "resumable_streams": len(context.streams),
        }
        return stats

    def _engine(self) -> dict[str, object]:
        """The engine's counters; its histograms and its memory are for /metrics."""
        client = self.context.client
        stats = msgspec.structs.asdict(client.stats())
        for name in ("step_histograms", "resident_bytes"):
            del stats[name]
        if isinstance(client, Watched):
            stats |= {"heartbeat_age_seconds": client.heartbeat_age, "engine_restarts": client.revivals}
        return stats

    async def _snapshots(self) -> AsyncIterator[bytes]:
        closing = self.context.lifecycle.closing
        while True:
            yield b"data: " + msgspec.json.encode(await self.snapshot()) + b"\n\n"
            try:
                async with asyncio.timeout(self.context.settings.stats_interval):
                    await closing.wait()
                return
            except TimeoutError:
                continue

    def _info(self) -> ModelInfo | None:
        try:
            return self.context.client.info
        except EngineUnavailable:
            return None

    def _workers(self) -> tuple[int, int]:
        """(workers, workers that could start a request at once): one engine is one worker of nanochat's."""
        info = self._info()
        if info is None:
            return 0, 0
        client = self.context.client
        return 1, int(client.state == EngineState.READY and client.stats().running < info.max_rows)


def _json(value: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    headers = {"cache-control": "no-store", **(headers or {})}
    return Response(msgspec.json.encode(value), status, headers=headers, media_type="application/json")
