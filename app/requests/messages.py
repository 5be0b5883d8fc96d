"""From a JSON object to a typed request of /v1/messages, in Anthropic's words. Raises ApiError like
app/requests/openai.py.
"""

from dataclasses import dataclass, replace

from app.http.errors import RequestError, Unsupported
from app.http.fields import Fields, missing, shown
from app.requests.borrowed import borrowed_delivery, borrowed_sampling, check_end, refuse
from app.requests.constraints import Constraint
from app.requests.dialect_fields import COUNT_NAMES, COUNT_REFUSED, MESSAGE_NAMES, MESSAGE_REFUSED
from app.requests.openai import ChatRequest, check_model, check_names
from app.requests.sampling import LOWEST_TEMPERATURE, MAX_TOKENS, parse_stop
from app.requests.tools import ToolUse, parse_offer
from app.requests.turns import AnthropicSpelling, parse_turns
from app.settings.http import HttpSettings
from engine.messages import ModelInfo
from engine.text import ChatMessage


@dataclass(frozen=True, slots=True)
class Turns:
    """A conversation; `continued`: its last turn, an assistant's, is gone on with."""

    messages: list[ChatMessage]
    continued: bool
    tools: ToolUse | None


def parse_message(
    body: dict[str, object], info: ModelInfo, settings: HttpSettings, tool_source: str | None = None
) -> ChatRequest:
    """tool_source: the text of the model's chat template, if it knows tools. Raises ApiError (400, 404)."""
    fields = Fields(body)
    check_names(fields, MESSAGE_NAMES, settings)
    refuse(fields, MESSAGE_REFUSED)
    delivery = borrowed_delivery(fields, info, settings)
    turns = _turns(fields, settings, tool_source)
    limit = fields.integer("max_tokens", 1, MAX_TOKENS)
    if limit is None:
        raise missing("max_tokens")
    fields.items("stop_sequences")  # one string is not enough, as it is elsewhere
    temperature = fields.number("temperature", 0, 1)
    sampling = replace(
        borrowed_sampling(fields, info, settings, ("top_p", "top_k")),
        max_tokens=limit,
        stop=parse_stop(fields, "stop_sequences"),
        constraint=_constraint(fields),
    )
    if temperature is not None:
        sampling = replace(sampling, temperature=max(temperature, LOWEST_TEMPERATURE) if temperature else 0.0)
    check_end(sampling, turns.tools)
    return ChatRequest(turns.messages, turns.continued, sampling, delivery, turns.tools)


def parse_counted(
    body: dict[str, object], info: ModelInfo, settings: HttpSettings, tool_source: str | None = None
) -> Turns:
    """Of a request that only wants to know how many tokens it has. Raises ApiError (400, 404)."""
    fields = Fields(body)
    check_names(fields, COUNT_NAMES, settings)
    refuse(fields, COUNT_REFUSED)
    check_model(fields, info, settings)
    return _turns(fields, settings, tool_source)


def _turns(fields: Fields, settings: HttpSettings, tool_source: str | None) -> Turns:
    thinking = fields.nested("thinking")
    if thinking is not None and thinking.string("type") != "disabled":
        raise Unsupported("thinking", "the model does not think before it answers.")
    tools = parse_offer(fields, tool_source, settings.tool_call_parser, AnthropicSpelling())
    messages = parse_turns(fields, tool_source is not None)
    last = messages[-1]
    return Turns(messages, last.role == "assistant" and not last.tool_calls, tools)


def _constraint(fields: Fields) -> Constraint | None:
    """What `output_config.format` asks for."""
    config = fields.nested("output_config")
    format = config.nested("format") if config is not None else None
    if format is None:
        return None
    type = format.string("type")
    if type != "json_schema":
        if type is None:
            raise missing(format.name("type"))
        message = f"'{format.name('type')}' must be json_schema, got '{shown(type)}'."
        raise RequestError("invalid_value", message, format.name("type"))
    schema = format.get("schema")
    if schema is None:
        raise missing(format.name("schema"))
    return Constraint(format.name("schema"), "json_schema", schema)
