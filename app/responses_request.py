"""From a JSON object to a typed request of /v1/responses. Raises ApiError like app/schema.py."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from app.borrowed import borrowed_delivery, borrowed_sampling, refuse
from app.dialect_fields import INCLUDABLE, OUTPUT_LOGPROBS, RESPONSE_NAMES, RESPONSE_REFUSED
from app.errors import RequestError, Unsupported
from app.fields import Fields, as_object, missing, shown, wrong_type
from app.sampling import MAX_LOGPROBS, MAX_TOKENS
from app.schema import MAX_MESSAGES, ROLES, ChatRequest, check_names, parse_content
from app.settings import HttpSettings
from engine.messages import ModelInfo
from engine.text import ChatMessage

_SAMPLING = ("temperature", "top_p", "top_k", "stop")


@dataclass(frozen=True, slots=True)
class ResponseRequest(ChatRequest):
    """`echoed` are the fields that the response repeats."""

    echoed: Mapping[str, object]


def parse_response(body: dict[str, object], info: ModelInfo, settings: HttpSettings) -> ResponseRequest:
    """Raises ApiError (400, 404)."""
    fields = Fields(body)
    check_names(fields, RESPONSE_NAMES, settings)
    refuse(fields, RESPONSE_REFUSED)
    delivery = borrowed_delivery(fields, info, settings)
    options = fields.nested("stream_options")
    if options is not None and not delivery.stream:
        raise RequestError("invalid_value", "'stream_options' needs 'stream' to be true.", "stream_options")
    messages = _messages(fields)
    limit = fields.integer("max_output_tokens", 1, MAX_TOKENS)
    logprobs = _logprobs(fields)
    sampling = replace(
        borrowed_sampling(fields, info, settings, _SAMPLING, logprobs),
        max_tokens=limit,
        max_tokens_field="max_output_tokens",
    )
    fields.boolean("store")
    metadata = fields.nested("metadata")
    echoed: dict[str, object] = {
        "instructions": fields.string("instructions"),
        "max_output_tokens": limit,
        "metadata": {} if metadata is None else metadata.values,
        "parallel_tool_calls": fields.boolean("parallel_tool_calls", True),
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "service_tier": "default",
        "store": False,
        "temperature": sampling.temperature,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_logprobs": logprobs or 0,
        "top_p": sampling.top_p,
        "truncation": "disabled",
        "user": fields.string("user"),
    }
    return ResponseRequest(messages, False, sampling, delivery, echoed)


def _logprobs(fields: Fields) -> int | None:
    """How many alternatives to report; None without logprobs."""
    include = fields.items("include") or []
    for k, item in enumerate(include):
        if not isinstance(item, str):
            raise wrong_type(f"include[{k}]", "a string", item)
        if item not in INCLUDABLE:
            raise Unsupported(f"include[{k}]", f"there is no '{shown(item)}' here.")
    top = fields.integer("top_logprobs", 0, MAX_LOGPROBS)
    if OUTPUT_LOGPROBS in include:
        return top or 0
    if top:
        message = f"'top_logprobs' needs 'include' to have '{OUTPUT_LOGPROBS}'."
        raise RequestError("invalid_value", message, "top_logprobs")
    return None


def _messages(fields: Fields) -> list[ChatMessage]:
    instructions = fields.string("instructions")
    messages = [ChatMessage("system", instructions)] if instructions else []
    value = fields.get("input")
    if value is None:
        raise missing("input")
    if isinstance(value, str):
        return [*messages, ChatMessage("user", value)]
    if not isinstance(value, list):
        raise wrong_type("input", "a string or a list of items", value)
    if not value:
        raise RequestError("invalid_value", "'input' must not be empty.", "input")
    if len(value) > MAX_MESSAGES:
        raise RequestError("out_of_range", f"'input' holds more than {MAX_MESSAGES} items.", "input")
    for k, item in enumerate(value):
        messages.append(_item(as_object(item, f"input[{k}]")))
    return messages


def _item(fields: Fields) -> ChatMessage:
    type = fields.string("type") or "message"
    if type != "message":
        raise Unsupported(fields.name("type"), f"there are no items of type '{shown(type)}' here.")
    role = fields.string("role")
    if role is None:
        raise missing(fields.name("role"))
    if role not in ROLES:
        message = f"'{fields.name('role')}' must be one of {', '.join(ROLES)}, got '{shown(role)}'."
        raise RequestError("invalid_value", message, fields.name("role"))
    content = fields.get("content")
    if content is None:
        raise missing(fields.name("content"))
    return ChatMessage(role, parse_content(content, fields.name("content"), ("input_text", "output_text")))
