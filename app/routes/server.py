"""The ASGI application: routes, error handlers, lifespan.

    app = create_app(client, TextService(), HttpSettings())
    app.state.context.lifecycle   # draining, see app.http.lifecycle

The application neither starts nor closes the engine: whoever made the client does.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from sse_starlette.sse import AppStatus
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from app.admission.board import Board
from app.admission.gate import Gate
from app.answers.resume import StreamRoute
from app.http.dialects import error_answer
from app.http.errors import ApiError, QueueFull, Unavailable
from app.http.fields import shown
from app.http.keys import Keys
from app.http.middleware import Faults, RequestIds, key_id
from app.http.origins import Origins
from app.http.page import docs_routes, page_routes, static_folder
from app.requests.text import TextService
from app.routes.about import About
from app.routes.context import Context
from app.routes.messages import CountTokens, Messages
from app.routes.nanochat import NanochatCompletions
from app.routes.observe import Observed
from app.routes.openai import ChatCompletions, Completions, Models, embeddings
from app.routes.openapi import Description
from app.routes.probe import GenerationProbe
from app.routes.responses import Responses
from app.routes.status import Status
from app.routes.tokens import Detokenize, Render, Tokenize
from app.settings.http import HttpSettings
from app.telemetry.lag import LoopLag
from engine.messages import EngineClient


def create_app(
    client: EngineClient,
    text: TextService,
    settings: HttpSettings | None = None,
    board: Board | None = None,
) -> Starlette:
    """The server over one engine. `app.state.context` gives access to its parts.

    `board` is what several front-end processes count on together.
    """
    settings = settings or HttpSettings()
    context = Context(client, text, settings, Gate(client, settings, board))

    async def on_api_error(request: HttpRequest, error: Exception) -> Response:
        if not isinstance(error, ApiError):
            raise error
        if isinstance(error, Unavailable | QueueFull):
            context.metrics.rejected(error.code)
        return error_answer(error, request.scope)

    app = Starlette(
        routes=_routes(context),
        middleware=[
            Middleware(Observed, context=context),
            Middleware(RequestIds, context.lifecycle),
            Middleware(Faults),
            Middleware(Origins, settings.access),
            Middleware(Keys, settings.access.keys),
        ],
        exception_handlers={ApiError: on_api_error, HTTPException: _on_http_error},
        lifespan=partial(_lifespan, context),
    )
    app.router.redirect_slashes = False
    app.state.context = context
    return app


def _routes(context: Context) -> list[BaseRoute]:
    status = Status(context)
    models = Models(context)
    about = About(context)
    return [
        Route("/v1/chat/completions", ChatCompletions(context), methods=["POST"]),
        Route("/v1/completions", Completions(context), methods=["POST"]),
        Route("/v1/chat/completions/render", Render(context), methods=["POST"]),
        Route("/v1/responses", Responses(context), methods=["POST"]),
        Route("/v1/messages", Messages(context), methods=["POST"]),
        Route("/v1/messages/count_tokens", CountTokens(context), methods=["POST"]),
        Route("/v1/embeddings", embeddings, methods=["POST"]),
        Route("/v1/requests/{id}/cancel", about.cancel, methods=["POST"]),
        Route("/tokenize", Tokenize(context), methods=["POST"]),
        Route("/detokenize", Detokenize(context), methods=["POST"]),
        Route("/v1/models", models.list),
        Route("/v1/models/{id:path}", models.show),
        Route("/v1/streams/{id}", StreamRoute(context.streams, key_id), methods=["GET", "DELETE"]),
        Route("/chat/completions", NanochatCompletions(context), methods=["POST"]),
        Route("/health", status.health),
        Route("/ping", status.health),
        Route("/ready", status.ready),
        Route("/health_generate", GenerationProbe(context).show),
        Route("/version", about.version),
        Route("/stats", status.stats),
        Route("/stats/stream", status.stats_stream),
        Route("/metrics", status.metrics),
        *_docs(context.settings),
        *page_routes(static_folder() if context.settings.ui else None),
    ]


def _docs(settings: HttpSettings) -> list[BaseRoute]:
    if not settings.docs:
        return []
    return [Route("/openapi.json", Description(settings).show), *docs_routes(static_folder())]


@asynccontextmanager
async def _lifespan(context: Context, app: Starlette) -> AsyncIterator[None]:
    # By default sse-starlette cuts its streams 0.4 s after SIGTERM; ours end through the lifecycle.
    AppStatus.disable_automatic_graceful_drain()  # type: ignore[no-untyped-call]
    if context.settings.otlp_endpoint is not None:
        from app.routes.otlp import OtlpSpans  # of the extra `otel`

        context.spans = OtlpSpans(context.settings.otlp_endpoint)
    lag = LoopLag(context.metrics)
    yield
    lag.close()
    if context.spans is not None:
        await context.spans.close()


async def _on_http_error(request: HttpRequest, error: Exception) -> Response:
    """Starlette's own errors (unknown path, wrong method) in our shape."""
    if not isinstance(error, HTTPException):
        raise error
    path = shown(request.url.path, 100)
    if error.status_code == 404:
        answer = ApiError(404, "not_found", f"There is nothing at {path}.", type="not_found_error")
    elif error.status_code == 405:
        message = f"{request.method} is not allowed on {path}."
        answer = ApiError(405, "method_not_allowed", message, headers=error.headers)
    else:
        answer = ApiError(error.status_code, "http_error", str(error.detail), headers=error.headers)
    return error_answer(answer, request.scope)
