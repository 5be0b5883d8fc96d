"""From a JSON object to a typed request of /v1/responses. Raises ApiError like app/requests/openai.py."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from app.http.errors import RequestError, Unsupported
from app.http.fields import Fields, missing, shown, wrong_type
from app.requests.borrowed import borrowed_delivery, borrowed_sampling, check_end, refuse
from app.requests.constraints import Constraint, schema_constraint
from app.requests.dialect_fields import INCLUDABLE, OUTPUT_LOGPROBS, RESPONSE_NAMES, RESPONSE_REFUSED
from app.requests.input_items import parse_input
from app.requests.openai import ChatRequest, check_names
from app.requests.sampling import MAX_LOGPROBS, MAX_TOKENS
from app.requests.tools import FlatSpelling, parse_offer
from app.settings.http import HttpSettings
from engine.messages import ModelInfo

_SAMPLING = ("temperature", "top_p", "top_k", "stop")


@dataclass(frozen=True, slots=True)
class ResponseRequest(ChatRequest):
    """`echoed` are the fields that the response repeats."""

    echoed: Mapping[str, object]


def parse_response(
    body: dict[str, object], info: ModelInfo, settings: HttpSettings, tool_source: str | None = None
) -> ResponseRequest:
    """tool_source: the text of the model's chat template, if it knows tools. Raises ApiError (400, 404)."""
    fields = Fields(body)
    check_names(fields, RESPONSE_NAMES, settings)
    refuse(fields, RESPONSE_REFUSED)
    delivery = borrowed_delivery(fields, info, settings)
    options = fields.nested("stream_options")
    if options is not None and not delivery.stream:
        raise RequestError("invalid_value", "'stream_options' needs 'stream' to be true.", "stream_options")
    tools = parse_offer(fields, tool_source, settings.tool_call_parser, FlatSpelling())
    messages = parse_input(fields, tool_source is not None)
    limit = fields.integer("max_output_tokens", 1, MAX_TOKENS)
    logprobs = _logprobs(fields)
    sampling = replace(
        borrowed_sampling(fields, info, settings, _SAMPLING, logprobs),
        max_tokens=limit,
        max_tokens_field="max_output_tokens",
        constraint=_constraint(fields),
    )
    check_end(sampling, tools)
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
        "text": _echoed_text(fields),
        "tool_choice": fields.get("tool_choice") or "auto",
        "tools": fields.items("tools") or [],
        "top_logprobs": logprobs or 0,
        "top_p": sampling.top_p,
        "truncation": "disabled",
        "user": fields.string("user"),
    }
    return ResponseRequest(messages, False, sampling, delivery, tools, echoed)


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


def _echoed_text(fields: Fields) -> dict[str, object]:
    text = fields.nested("text")
    given = {} if text is None else {name: value for name, value in text.values.items() if value is not None}
    return {"format": {"type": "text"}, **given}


def _constraint(fields: Fields) -> Constraint | None:
    """What `text.format` asks for."""
    text = fields.nested("text")
    format = text.nested("format") if text is not None else None
    if format is None:
        return None
    type = format.string("type")
    if type is None:
        raise missing(format.name("type"))
    if type == "text":
        return None
    if type == "json_object":
        return Constraint(format.path, "json_schema", {"type": "object"})
    if type != "json_schema":
        message = f"'{format.name('type')}' must be text, json_object or json_schema, got '{shown(type)}'."
        raise RequestError("invalid_value", message, format.name("type"))
    return schema_constraint(format)
