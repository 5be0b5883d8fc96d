"""Looks at each HTTP request from outside: one record for its metrics, its log line and its span."""

import logging
import time
from collections.abc import Awaitable, Hashable

from starlette.applications import Starlette
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.answers.record import CLIENT_LEFT, RequestRecord
from app.http.middleware import request_id
from app.routes.context import Context
from app.telemetry.logs import RequestLine
from app.telemetry.trace_context import trace_context

log = logging.getLogger("fastpath.access")

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT")
QUIET = ("/health", "/ready", "/metrics")  # asked every few seconds: no line for them


class Observed:
    """ASGI middleware, outside of all others: it sees what they answer."""

    def __init__(self, app: ASGIApp, context: Context) -> None:
        self.app = app
        self.context = context
        self._routes: dict[Hashable, str] | None = None  # by endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        context = self.context
        metrics, spans = context.metrics, context.spans
        client = scope.get("client")
        method = scope["method"] if scope["method"] in METHODS else "OTHER"
        record = RequestRecord(method, scope["path"], client[0] if client else "")
        scope["record"] = record
        caller = trace_context(scope["headers"])
        record.trace = caller if spans is None else spans.begin(record, caller)
        trace = [] if record.trace is None else [(b"traceparent", record.trace.header())]

        # Not a coroutine function: body messages pass without a frame of their own.
        def watched(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                headers = message.get("headers", [])
                if any(k == b"content-type" and v.startswith(b"text/event-stream") for k, v in headers):
                    record.streamed = True
                    metrics.open_streams += 1
                message["headers"] = [*headers, *trace]
            return send(message)

        try:
            await self.app(scope, receive, watched)
        except BaseException:
            record.status = record.status or 500
            raise
        finally:
            metrics.open_streams -= record.streamed
            self._finish(record, scope)

    def _finish(self, record: RequestRecord, scope: Scope) -> None:
        record.seconds = time.perf_counter() - record.started
        record.status = record.status or CLIENT_LEFT
        record.route = self._route(scope)
        record.request_id = request_id(scope)
        key: object = scope.get("key_id")
        record.key_id = key if isinstance(key, str) else ""
        context = self.context
        record.count(context.metrics)
        if context.settings.access_log and record.route not in QUIET:
            level = logging.ERROR if record.status >= 500 and record.status != 503 else logging.INFO
            log.log(level, RequestLine(record.line(context.settings.log_content)))
        if context.spans is not None:
            context.spans.end(record)

    def _route(self, scope: Scope) -> str:
        """The pattern of the route that answered; "none" where no route did."""
        if self._routes is None:
            app = scope.get("app")
            self._routes = _patterns(app) if isinstance(app, Starlette) else {}
        endpoint = scope.get("endpoint")
        return self._routes.get(endpoint, "none") if isinstance(endpoint, Hashable) else "none"


def _patterns(app: Starlette) -> dict[Hashable, str]:
    found: dict[Hashable, str] = {}
    for route in app.routes:
        if isinstance(route, Mount):
            found[route.app] = route.path
        elif isinstance(route, Route):
            found.setdefault(route.endpoint, route.path)
    return found
