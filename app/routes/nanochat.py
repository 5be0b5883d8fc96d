"""nanochat's own chat route, with its event format and its limits.

    POST /chat/completions {"messages": [{"role", "content"}...], "temperature"?, "max_tokens"?, "top_k"?}
    data: {"token": "...", "gpu": 0}   for each piece of text, then   data: {"done": true}

Errors answer in both dialects: `error` (nested) and `detail`. Tool markers are sent as literal text.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack

import msgspec
from sse_starlette import EventSourceResponse
from sse_starlette.sse import SendTimeoutError
from starlette.types import Receive, Scope, Send

from app.answers.deadlines import deadlines
from app.answers.generation import Generation, Update
from app.answers.record import record_of
from app.answers.stream import PING, departure
from app.http.body import read_object
from app.http.errors import (
    ApiError,
    ClientGone,
    InternalError,
    QueueFull,
    RequestError,
    Unavailable,
    error_body,
    error_response,
)
from app.http.fields import Fields, as_object, missing, shown, wrong_type
from app.requests.sampling import Sampling
from app.routes.context import Context
from app.routes.prompts import submit
from app.settings.http import HttpSettings
from engine.messages import ModelInfo
from engine.text import ChatMessage

log = logging.getLogger("fastpath.http")

MAX_MESSAGES = 500
MAX_MESSAGE_CHARS = 8000
MAX_TOTAL_CHARS = 32000
MAX_TOP_K = 200
MAX_NEW_TOKENS = 4096
ROLES = ("user", "assistant")


class NanochatCompletions:
    """ASGI endpoint of POST /chat/completions."""

    def __init__(self, context: Context) -> None:
        self.context = context

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        settings = self.context.settings
        generation: Generation | None = None
        with ExitStack() as stack:
            try:
                context = stack.enter_context(self.context.entering(scope))
                body = await read_object(scope, receive, settings, context.uploads)
                info = await context.model()
                generation = await self._submit(context, body, info, started)
                stack.callback(generation.close)
                record_of(scope).answers(generation, body, info.name, with_content=settings.log_content)
                del body  # not to be kept as long as the answer takes
                stack.enter_context(self.context.lifecycle.answering(generation, 1))
                stack.enter_context(deadlines(generation, settings, context.gate))
                updates = await _first(generation, receive, settings.header_grace)
            except ClientGone:
                if generation is None:
                    self.context.metrics.disconnected("body")
                else:
                    generation.leave()
                return
            except ApiError as error:
                if isinstance(error, Unavailable | QueueFull):
                    self.context.metrics.rejected(error.code)
                await error_response(error, detail=True)(scope, receive, send)
                return
            try:
                await self._stream(generation, updates)(scope, receive, send)
                if generation.abandoned:
                    generation.leave()
            except SendTimeoutError:
                generation.left = "slow_reader"
                self.context.metrics.slow_readers += 1

    def _stream(self, generation: Generation, updates: list[Update]) -> EventSourceResponse:
        settings = self.context.settings
        return EventSourceResponse(
            _events(generation, updates),
            ping=settings.ping_interval,
            ping_message_factory=_ping,  # type: ignore[arg-type]  # bytes pass through as they are
            sep="\n",
            send_timeout=settings.send_timeout,
        )

    async def _submit(
        self, context: Context, body: dict[str, object], info: ModelInfo, started: float
    ) -> Generation:
        messages, sampling = parse(Fields(body), info, context.settings)
        prompt = await context.render(messages)
        room = info.max_model_len - len(prompt)
        params = sampling.params(len(prompt), info, "messages")  # raises when there is no room at all
        params = msgspec.structs.replace(params, max_tokens=min(params.max_tokens, room))
        choices = submit(
            context,
            info,
            [(prompt, "")],
            [params],
            sampling,
            tools=context.settings.tools,
            hidden=frozenset(info.terminal_ids),
        )
        return Generation(context.client, choices, context.metrics, started, context.replays)


def parse(fields: Fields, info: ModelInfo, settings: HttpSettings) -> tuple[list[ChatMessage], Sampling]:
    """nanochat's checks in nanochat's order. Raises RequestError."""
    messages = _parse_messages(fields)
    temperature = fields.number("temperature", 0, 2)
    top_k = fields.integer("top_k", 0, MAX_TOP_K)
    max_tokens = fields.integer("max_tokens", 1, MAX_NEW_TOKENS)
    defaults = settings.chat
    if temperature is None:
        temperature = defaults.temperature
    sampling = Sampling(
        n=1,
        max_tokens=None,
        max_tokens_field="max_tokens",
        default_max_tokens=max_tokens or defaults.max_tokens,  # clamped to the room, never refused for it
        min_tokens=0,
        temperature=temperature,
        top_k=min(defaults.top_k if top_k is None else top_k, info.vocab_size),
        top_p=defaults.top_p,
        min_p=0.0,
        repetition_penalty=1.0,
        presence_penalty=0.0,
        frequency_penalty=0.0,
        logit_bias={},
        seed=defaults.draw_seed(),
        stop=(),
        include_stop=False,
        stop_token_ids=(),
        ignore_eos=False,
        logprobs=None,
        skip_special=False,
        cache_salt=b"",
    )
    return messages, sampling


def _parse_messages(fields: Fields) -> list[ChatMessage]:
    items = fields.items("messages")
    if items is None:
        raise missing("messages")
    if not items:
        raise RequestError("invalid_value", "At least one message is required.", "messages")
    if len(items) > MAX_MESSAGES:
        raise RequestError("out_of_range", f"At most {MAX_MESSAGES} messages are allowed.", "messages")
    messages = [_parse_message(as_object(item, f"messages[{k}]")) for k, item in enumerate(items)]
    for k, message in enumerate(messages):
        name = f"messages[{k}].content"
        if not message.content:
            raise RequestError("invalid_value", f"Message {k} is empty.", name)
        if len(message.content) > MAX_MESSAGE_CHARS:
            text = f"Message {k} is longer than {MAX_MESSAGE_CHARS} characters."
            raise RequestError("out_of_range", text, name)
    if sum(len(message.content) for message in messages) > MAX_TOTAL_CHARS:
        text = f"The conversation is longer than {MAX_TOTAL_CHARS} characters."
        raise RequestError("out_of_range", text, "messages")
    for k, message in enumerate(messages):
        if message.role not in ROLES:
            text = f"Message {k} has the role '{shown(message.role)}'; it must be user or assistant."
            raise RequestError("invalid_value", text, f"messages[{k}].role")
    return messages


def _parse_message(fields: Fields) -> ChatMessage:
    values = []
    for field in ("role", "content"):
        value = fields.get(field)
        if value is None:
            raise missing(fields.name(field))
        if not isinstance(value, str):
            raise wrong_type(fields.name(field), "a string", value)
        values.append(value)
    return ChatMessage(values[0], values[1])


async def _first(generation: Generation, receive: Receive, grace: float) -> list[Update]:
    """The first news, or nothing after `grace` seconds. Raises ClientGone, or the ApiError of an early
    failure.
    """
    first = asyncio.ensure_future(generation.next())
    gone = asyncio.ensure_future(departure(receive))
    try:
        await asyncio.wait((first, gone), timeout=grace, return_when=asyncio.FIRST_COMPLETED)
        if first.done():
            return first.result()
        if gone.done():
            raise ClientGone
        return []
    finally:
        first.cancel()
        gone.cancel()
        await asyncio.wait((first, gone))


async def _events(generation: Generation, updates: list[Update]) -> AsyncIterator[bytes]:
    try:
        while True:
            data = b"".join(_event(piece.text) for _, pieces in updates for piece in pieces if piece.text)
            if data:
                yield data
            if generation.done:
                break
            updates = await generation.next()
        yield b'data: {"done": true}\n\n'
    except ApiError as error:
        yield b"data: " + error_body(error, detail=True) + b"\n\n"
    except Exception:
        log.exception("a stream failed")
        yield b"data: " + error_body(InternalError(), detail=True) + b"\n\n"
    finally:
        generation.close()


def _event(text: str) -> bytes:
    return b'data: {"token": ' + msgspec.json.encode(text) + b', "gpu": 0}\n\n'


def _ping() -> bytes:
    return PING
