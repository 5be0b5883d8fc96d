"""OpenAI's routes: /v1/chat/completions, /v1/completions, /v1/models, /v1/embeddings."""

import hashlib
import time
from copy import copy
from functools import partial
from typing import Generic, TypeVar

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app.answers.calling import CallingChoice, CallingFormat
from app.answers.choices import Choice
from app.answers.generation import Generation
from app.answers.interval import IntervalStream
from app.answers.openai import ChatFormat, CompletionFormat, Format, Writer
from app.answers.record import record_of
from app.answers.resume import stream_name
from app.answers.stream import Answer, EventStream, JsonAnswer
from app.http.body import read_object
from app.http.errors import ApiError, ClientGone, NotImplementedHere
from app.http.fields import shown
from app.http.middleware import key_id
from app.requests.openai import (
    ChatRequest,
    CompletionRequest,
    Delivery,
    parse_chat,
    parse_completion,
    served_names,
)
from app.requests.sampling import Sampling
from app.requests.tool_grammar import tool_constraint, with_token_ids
from app.requests.words import forbid
from app.routes.context import Context
from app.routes.prompts import Prompt, submit
from engine.messages import EngineUnavailable, ModelInfo

F = TypeVar("F", bound=Format)
R = TypeVar("R", bound=ChatRequest)

INTEGER_DEFAULTS = ("top_k", "max_tokens", "seed")


class Endpoint:
    """An ASGI application that turns a JSON body into an answer.

    Not a function endpoint, because Starlette puts a layer around every event that those send.
    """

    def __init__(self, context: Context) -> None:
        self.context = context

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        with self.context.entering(scope) as context:
            request = copy(self)
            request.context = context
            try:
                body = await read_object(scope, receive, context.settings, context.uploads)
            except ClientGone:
                context.metrics.disconnected("body")
                return
            info = await context.model()
            name = stream_name(scope)
            if name is None:
                answer = await request.prepare(body, info, started)
                self._record(scope, answer, body, info)
            else:
                with context.streams.reserve(name, key_id(scope), body) as place:
                    inner = await request.prepare(body, info, started)
                    self._record(scope, inner, body, info)
                    answer = place.take(inner) if isinstance(inner, Answer) else inner
            del body  # not to be kept as long as the answer takes
            await answer(scope, receive, send)

    def _record(self, scope: Scope, answer: ASGIApp, body: dict[str, object], info: ModelInfo) -> None:
        if isinstance(answer, Answer):
            content = self.context.settings.log_content
            record = record_of(scope)
            record.answers(answer.generation, body, info.name, answer.format.id, with_content=content)

    async def prepare(self, body: dict[str, object], info: ModelInfo, started: float) -> ASGIApp:
        """Validates and submits. What it submitted is owned by the answer, so submitting comes last."""
        raise NotImplementedError

    def format(self, kind: type[F], info: ModelInfo, sampling: Sampling, delivery: Delivery) -> F:
        return kind(
            delivery=delivery,
            text=self.context.text,
            seed=sampling.seed,
            fingerprint=fingerprint(info, self.context.settings.version),
            wants_logprobs=sampling.logprobs is not None,
        )

    def answer(self, choices: list[Choice], format: Writer, started: float) -> Answer:
        context = self.context
        generation = Generation(context.client, choices, context.metrics, started, context.replays)
        kind: type[Answer] = EventStream if format.delivery.stream else JsonAnswer
        if kind is EventStream and format.delivery.interval > 1:
            kind = IntervalStream
        return kind(generation, format, context.settings, context.lifecycle, context.metrics, context.gate)


class Conversation(Endpoint, Generic[R]):
    """A route that answers a conversation. `field` is where a body of the route has it."""

    field = "messages"

    async def prepare(self, body: dict[str, object], info: ModelInfo, started: float) -> ASGIApp:
        context = self.context
        chat = self.parse(body, info)
        use = chat.tools
        sampling = await forbid(chat.sampling, context.text)
        prompt = await self.prompt(chat, info)
        grammar = await self._grammar(chat)
        params = sampling.params(len(prompt), info, self.field, grammar)
        make = Choice if use is None else partial(CallingChoice, use=use)
        writer = self.writer(chat, info, sampling)
        tools = context.settings.tools and grammar is None
        choices = submit(context, info, [(prompt, "")], [params], sampling, tools=tools, make=make)
        return self.answer(choices, writer, started)

    def parse(self, body: dict[str, object], info: ModelInfo) -> R:
        raise NotImplementedError

    def writer(self, chat: R, info: ModelInfo, sampling: Sampling) -> Writer:
        """Of the answer."""
        raise NotImplementedError

    async def prompt(self, chat: R, info: ModelInfo) -> list[int]:
        """What the model is given."""
        shown = [function.shown() for function in chat.tools.functions] if chat.tools is not None else []
        rendered = await self.context.render(
            chat.messages, continue_final=chat.continue_final, tools=shown, field=self.field
        )
        return chat.sampling.cut(rendered, info)

    async def _grammar(self, chat: ChatRequest) -> str | None:
        """Raises RequestError."""
        context, use, wanted = self.context, chat.tools, chat.sampling.constraint
        if use is None:
            return await context.grammar(wanted)
        grammar = await context.grammar(tool_constraint(use, wanted))
        ids = context.text.ids_of(use.format.marks)
        return with_token_ids(use, wanted, ids) if grammar is not None and ids else grammar


class ChatCompletions(Conversation[ChatRequest]):
    def parse(self, body: dict[str, object], info: ModelInfo) -> ChatRequest:
        return parse_chat(body, info, self.context.settings, self.context.text.template.tool_source)

    def writer(self, chat: ChatRequest, info: ModelInfo, sampling: Sampling) -> Writer:
        kind = ChatFormat if chat.tools is None else CallingFormat
        return self.format(kind, info, sampling, chat.delivery)


class Completions(Endpoint):
    async def prepare(self, body: dict[str, object], info: ModelInfo, started: float) -> Answer:
        context = self.context
        wanted = parse_completion(body, info, context.settings)
        sampling = await forbid(wanted.sampling, context.text)
        prompts = [self._cut(prompt, wanted, info) for prompt in await self._encode(wanted)]
        grammar = await context.grammar(sampling.constraint)
        params = []
        if not wanted.score_only or wanted.sampling.prompt_logprobs is not None:
            for k, (prompt, _) in enumerate(prompts):
                name = f"prompt[{k}]" if len(prompts) > 1 else "prompt"
                params.append(sampling.params(len(prompt), info, name, grammar))
        format = self.format(CompletionFormat, info, sampling, wanted.delivery)
        format.keep, format.wants_logprobs = wanted.keep, wanted.logprobs is not None
        format.echoed_logprobs = wanted.logprobs if wanted.echo else None
        choices = submit(context, info, prompts, params, sampling)
        return self.answer(choices, format, started)

    def _cut(self, prompt: Prompt, wanted: CompletionRequest, info: ModelInfo) -> Prompt:
        """An echo shows what is left of the prompt."""
        ids, echoed = prompt
        kept = wanted.sampling.cut(ids, info)
        return kept, self.context.text.decode(kept) if echoed and len(kept) < len(ids) else echoed

    async def _encode(self, wanted: CompletionRequest) -> list[Prompt]:
        """Texts get a BOS in front, token ids are used as given. With echo, the texts come along."""
        text = self.context.text
        encoded = iter(
            await text.encode([p for p in wanted.prompts if isinstance(p, str)], bos=wanted.add_bos)
        )
        prompts: list[Prompt] = []
        for prompt in wanted.prompts:
            if isinstance(prompt, str):
                prompts.append((next(encoded), prompt if wanted.echo else ""))
            else:
                prompts.append((prompt, text.decode(prompt) if wanted.echo else ""))
        return prompts


async def embeddings(request: HttpRequest) -> Response:
    """There are none: the models that are served here write text."""
    raise NotImplementedHere("This server has no embeddings; its models generate text.")


class Models:
    """GET /v1/models and /v1/models/{id}."""

    def __init__(self, context: Context) -> None:
        self.context = context

    async def list(self, request: HttpRequest) -> Response:
        info = self._info()
        names = served_names(info, self.context.settings) if info is not None else ()
        data = [self._card(name, info) for name in names if info is not None]
        return _json({"object": "list", "data": data})

    async def show(self, request: HttpRequest) -> Response:
        name = str(request.path_params["id"])
        info = self._info()
        if info is None or name not in (*served_names(info, self.context.settings), info.name):
            message = f"The model '{shown(name)}' does not exist."
            raise ApiError(404, "model_not_found", message, type="not_found_error", param="model")
        return _json(self._card(name, info))

    def _card(self, name: str, info: ModelInfo) -> dict[str, object]:
        return model_card(name, info, resumable=self.context.settings.resumable)

    def _info(self) -> ModelInfo | None:
        """With as many KV blocks as there are now: the pool may have grown."""
        client = self.context.client
        try:
            info = client.info
        except EngineUnavailable:
            return None
        return msgspec.structs.replace(info, num_blocks=client.stats().blocks_total or info.num_blocks)


def model_card(name: str, info: ModelInfo, *, resumable: bool) -> dict[str, object]:
    """A model as /v1/models shows it; `meta.sampling_defaults` is what its card recommends,
    `meta.resumable_streams` whether its streams can outlive their connection.
    """
    return {
        "id": name,
        "object": "model",
        "created": info.created,
        "owned_by": "fastpath",
        "root": info.name,
        "parent": None,
        "max_model_len": info.max_model_len,
        "meta": {
            "n_vocab": info.vocab_size,
            "n_ctx_train": info.max_model_len,
            "n_params": info.parameters,
            "size": info.weights_bytes,
            "generation": info.generation,
            "device": info.device,
            "dtype": info.dtype,
            "max_rows": info.max_rows,
            "block_size": info.block_size,
            "num_blocks": info.num_blocks,
            "max_num_blocks": info.max_num_blocks,
            "sampling_defaults": {
                # The wire between the processes makes floats of whole numbers; to every client top_k is
                # an integer.
                name: int(value) if float(value).is_integer() and name in INTEGER_DEFAULTS else value
                for name, value in info.sampling_defaults.items()
            },
            "resumable_streams": resumable,
            "features": [
                dict(zip(("feature", "asked", "used", "why"), row, strict=True)) for row in info.features
            ],
        },
    }


def fingerprint(info: ModelInfo, version: str) -> str:
    """Changes when the model or the code does."""
    facts = (
        version,
        info.name,
        info.path,
        info.generation,
        info.dtype,
        info.device,
        info.parameters,
        info.created,
    )
    return "fp_" + hashlib.blake2b(repr(facts).encode(), digest_size=6).hexdigest()


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
