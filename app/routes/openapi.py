"""GET /openapi.json: every route with its fields, answers and errors, as OpenAPI 3.1.

Bodies come from app/requests/catalogue.py, which the parsers are tested against; `operations` is tested
against the application's routes.
"""

from collections.abc import Mapping, Sequence

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from app.requests.catalogue import (
    STRING,
    Field,
    Schema,
    chat_fields,
    completion_fields,
    detokenize_fields,
    items,
    tokenize_fields,
)
from app.requests.dialect_fields import count_fields, message_fields, response_fields
from app.routes.shapes import ref, schemas
from app.settings.http import HttpSettings

JSON = "application/json"
EVENTS = "text/event-stream"

OBJECT: Schema = {"type": "object"}

# What can go wrong, by status; docs/errors.md lists the codes of each.
ERRORS = {
    400: "No proper HTTP, no JSON object, a field has a wrong type or value, or the context is too short.",
    401: "An API key is needed, and none or a wrong one came.",
    403: "The request comes from a place that may not ask.",
    404: "There is no such path, model or answer.",
    405: "The path does not take this method; Allow says which it takes.",
    408: "The body did not arrive in time.",
    409: "A stream of this name is under way.",
    410: "The stream was ended, or has forgotten the events asked for.",
    413: "The body is too large.",
    414: "The URL is too long.",
    415: "The body is not JSON.",
    429: "This client asks too much at once; Retry-After says when to come back.",
    431: "The headers are too large.",
    499: "The answer was cancelled.",
    500: "A fault of the server in this one request.",
    501: "Absent on purpose.",
    503: "Loading, draining, overloaded or without an engine; Retry-After says when to come back.",
    504: "The answer took too long.",
}
ALWAYS = (400, 401, 403, 414, 429, 431, 500)
WITH_BODY = (400, 408, 413, 415, 503)


def document(settings: HttpSettings) -> dict[str, object]:
    """The whole description, for a server with these settings."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Fastpath",
            "version": settings.version,
            "description": "OpenAI's and Anthropic's API for the model that this server holds. "
            "null counts as absent, and a field that is not listed is "
            + ("an error." if settings.strict_fields else "ignored."),
        },
        "paths": {path: dict(methods) for path, methods in operations(settings).items()},
        "components": {
            "schemas": schemas(),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


ANSWERING = (404, 409, 499, 504)
STREAM = (400, 404, 410)
_FROM: list[Schema] = [
    {
        "name": "Last-Event-ID",
        "in": "header",
        "description": "the last event that was seen; those after it follow",
        "schema": {"type": "string"},
    },
    {
        "name": "from",
        "in": "query",
        "description": "the first event that is wanted, for those who cannot set headers",
        "schema": {"type": "string"},
    },
]


def operations(settings: HttpSettings) -> dict[str, dict[str, object]]:
    """Path to method to operation."""
    chat, text = chat_fields(settings), completion_fields(settings)
    hello = {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 32}
    model_id = _parameter("id", "a served name, which may hold slashes")
    return {
        "/v1/chat/completions": _post(
            "Answers a conversation", chat, "ChatCompletion", hello, stream=True, extra=ANSWERING
        ),
        "/v1/chat/completions/render": _post(
            "Shows the prompt that a conversation becomes", chat, "Rendered", hello, extra=(404,)
        ),
        "/v1/completions": _post(
            "Goes on with a text",
            text,
            "Completion",
            {"prompt": "Once upon a time", "max_tokens": 32},
            stream=True,
            extra=ANSWERING,
        ),
        "/v1/responses": _post(
            "Answers a conversation, without a memory of earlier answers",
            response_fields(settings),
            "Response",
            {"input": "Hello!", "max_output_tokens": 32},
            stream=True,
            extra=ANSWERING,
        ),
        "/v1/messages": _post(
            "Answers a conversation, in Anthropic's words",
            message_fields(settings),
            "AnthropicMessage",
            {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 32},
            stream=True,
            extra=ANSWERING,
            error="AnthropicError",
        ),
        "/v1/messages/count_tokens": _post(
            "Counts the tokens of a conversation",
            count_fields(settings),
            "TokenCount",
            {"messages": [{"role": "user", "content": "Hello!"}]},
            extra=(404,),
            error="AnthropicError",
        ),
        "/v1/streams/{id}": _streams(),
        "/v1/models": _bare("Lists the names of the served model", "Models"),
        "/v1/models/{id}": _bare("Describes the served model", "Model", (404,), [model_id]),
        "/v1/embeddings": {"post": {"summary": "There are no embeddings", "responses": _errors((501,))}},
        "/v1/requests/{id}/cancel": _bare(
            "Ends an open answer of the same client",
            "Cancelled",
            (404,),
            [_parameter("id", "the answer's id")],
            method="post",
        ),
        "/tokenize": _post(
            "Turns a text or a conversation into token ids",
            tokenize_fields(settings),
            "Tokenized",
            {"prompt": "Hello!", "return_token_strs": True},
            extra=(404,),
        ),
        "/detokenize": _post(
            "Turns token ids into text",
            detokenize_fields(settings),
            "Detokenized",
            {"tokens": [72]},
            extra=(404,),
        ),
        "/chat/completions": {"post": _nanochat()},
        **_status_operations(),
    }


def _status_operations() -> dict[str, dict[str, object]]:
    """The routes that tell how the server is."""
    return {
        "/health": _bare("200 while the process lives", "Health"),
        "/ping": _bare("The same as /health", "Health"),
        "/ready": {
            "get": {
                "summary": "Whether a request would be taken now",
                "responses": {**_ok("Ready"), "503": _answer("Not now.", "Ready"), **_errors(())},
            }
        },
        "/health_generate": _bare("Whether the model writes: makes one token", "Generated", (503,)),
        "/version": _bare("What runs here", "Version"),
        "/stats": _bare("Counters of engine and server", "Stats"),
        "/stats/stream": {
            "get": {
                "summary": "The same again and again, until the client leaves",
                "responses": {"200": {"description": "OK", "content": {EVENTS: {}}}, **_errors(())},
            }
        },
        "/metrics": {
            "get": {
                "summary": "Counters for Prometheus",
                "responses": {
                    "200": {"description": "OK", "content": {"text/plain": {"schema": STRING}}},
                    **_errors(()),
                },
            }
        },
        "/openapi.json": {
            "get": {"summary": "This description", "responses": {**_plain(OBJECT), **_errors(())}}
        },
    }


def request_schema(fields: Sequence[Field]) -> dict[str, object]:
    """The fields as the JSON Schema of a body, null allowed wherever a field may be left out."""
    properties: dict[str, object] = {}
    for field in fields:
        schema: dict[str, object] = dict(field.schema if field.required else _or_null(field.schema))
        schema["description"] = field.about + (f" [{field.default}]" if field.default else "")
        properties[field.name] = schema
    required = [field.name for field in fields if field.required]
    body: dict[str, object] = {"type": "object", "properties": properties}
    return {**body, "required": required} if required else body


def _or_null(schema: Schema) -> Schema:
    if not schema or schema == {"type": "null"}:
        return schema
    return {"anyOf": [schema, {"type": "null"}]}


def _post(
    summary: str,
    fields: Sequence[Field],
    answer: str,
    example: Mapping[str, object],
    *,
    stream: bool = False,
    extra: Sequence[int] = (),
    error: str = "Error",
) -> dict[str, object]:
    body = {JSON: {"schema": request_schema(fields), "example": example}}
    parameters: dict[str, object] = {"parameters": [_STREAM_ID]} if stream else {}
    return {
        "post": {
            **parameters,
            "summary": summary,
            "requestBody": {"required": True, "content": body},
            "responses": {**_ok(answer, stream), **_errors((*WITH_BODY, *extra), error)},
        }
    }


def _streams() -> dict[str, object]:
    id = _parameter("id", "what its X-Stream-Id was")
    events: dict[str, object] = {"200": {"description": "OK", "content": {EVENTS: {}}}}
    get: dict[str, object] = {
        "summary": "Goes on with a stream that was asked for with X-Stream-Id",
        "parameters": [id, *_FROM],
        "responses": {**events, **_errors(STREAM)},
    }
    return {"get": get, **_bare("Ends such a stream", "Deleted", (400, 404), [id], method="delete")}


def _nanochat() -> dict[str, object]:
    message = {
        "type": "object",
        "properties": {"role": {"enum": ["user", "assistant"]}, "content": STRING},
        "required": ["role", "content"],
    }
    fields = [
        Field("messages", items(message, 500, 1), "the conversation", required=True),
        Field("temperature", {"type": "number", "minimum": 0, "maximum": 2}, "0 takes the best token", "0.8"),
        Field("top_k", {"type": "integer", "minimum": 0, "maximum": 200}, "0: all", "50"),
        Field("max_tokens", {"type": "integer", "minimum": 1, "maximum": 4096}, "most tokens", "512"),
    ]
    example = {"messages": [{"role": "user", "content": "Hello!"}]}
    return {
        "summary": "nanochat's own route: always a stream, of its events",
        "requestBody": {
            "required": True,
            "content": {JSON: {"schema": request_schema(fields), "example": example}},
        },
        "responses": {
            "200": {"description": "OK", "content": {EVENTS: {}}},
            **_errors((*WITH_BODY, 504)),
        },
    }


def _bare(
    summary: str,
    answer: str,
    extra: Sequence[int] = (),
    parameters: Sequence[Schema] = (),
    method: str = "get",
) -> dict[str, object]:
    """Without a body."""
    operation: dict[str, object] = {"summary": summary, "responses": {**_ok(answer), **_errors(extra)}}
    if parameters:
        operation["parameters"] = list(parameters)
    return {method: operation}


_STREAM_ID: Schema = {
    "name": "X-Stream-Id",
    "in": "header",
    "description": "a name under which the stream can be resumed, `auto` for the answer's id",
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,128}$"},
}


def _parameter(name: str, about: str) -> Schema:
    schema = {"type": "string", "minLength": 1}
    return {"name": name, "in": "path", "required": True, "description": about, "schema": schema}


def _ok(answer: str, stream: bool = False) -> dict[str, object]:
    events: dict[str, object] = {EVENTS: {}} if stream else {}
    return {"200": {"description": "OK", "content": {JSON: {"schema": ref(answer)}, **events}}}


def _plain(schema: Schema) -> dict[str, object]:
    return {"200": {"description": "OK", "content": {JSON: {"schema": schema}}}}


def _answer(description: str, name: str) -> dict[str, object]:
    return {"description": description, "content": {JSON: {"schema": ref(name)}}}


def _errors(statuses: Sequence[int], shape: str = "Error") -> dict[str, object]:
    """`shape` of all but those that are answered before the path is known."""
    return {
        str(status): _answer(ERRORS[status], "Error" if status in (414, 431) else shape)
        for status in sorted({*statuses, *ALWAYS})
    }


class Description:
    """The route's handler; the document is made when it is first asked for."""

    def __init__(self, settings: HttpSettings) -> None:
        self._settings = settings
        self._body: bytes | None = None

    async def show(self, request: HttpRequest) -> Response:
        if self._body is None:
            self._body = msgspec.json.encode(document(self._settings))
        return Response(self._body, media_type=JSON, headers={"cache-control": "no-cache"})
