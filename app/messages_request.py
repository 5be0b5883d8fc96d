"""From a JSON object to a typed request of /v1/messages, in Anthropic's words. Raises ApiError like
app/schema.py.
"""

from dataclasses import replace

from app.borrowed import borrowed_delivery, borrowed_sampling, refuse
from app.dialect_fields import COUNT_NAMES, COUNT_REFUSED, MESSAGE_NAMES, MESSAGE_REFUSED
from app.errors import RequestError, Unsupported
from app.fields import Fields, as_object, missing, shown
from app.sampling import LOWEST_TEMPERATURE, MAX_TOKENS, parse_stop
from app.schema import MAX_MESSAGES, ChatRequest, check_model, check_names, parse_content
from app.settings import HttpSettings
from engine.messages import ModelInfo
from engine.text import ChatMessage

ROLES = ("user", "assistant")
BETWEEN_TURNS = "\n\n"


def parse_message(body: dict[str, object], info: ModelInfo, settings: HttpSettings) -> ChatRequest:
    """Raises ApiError (400, 404)."""
    fields = Fields(body)
    check_names(fields, MESSAGE_NAMES, settings)
    refuse(fields, MESSAGE_REFUSED)
    delivery = borrowed_delivery(fields, info, settings)
    messages = _conversation(fields)
    limit = fields.integer("max_tokens", 1, MAX_TOKENS)
    if limit is None:
        raise missing("max_tokens")
    if fields.get("stop_sequences") is not None:
        fields.items("stop_sequences")
    temperature = fields.number("temperature", 0, 1)
    sampling = replace(
        borrowed_sampling(fields, info, settings, ("top_p", "top_k")),
        max_tokens=limit,
        stop=parse_stop(fields, "stop_sequences"),
    )
    if temperature is not None:
        sampling = replace(sampling, temperature=max(temperature, LOWEST_TEMPERATURE) if temperature else 0.0)
    return ChatRequest(messages, _continued(messages), sampling, delivery)


def parse_counted(
    body: dict[str, object], info: ModelInfo, settings: HttpSettings
) -> tuple[list[ChatMessage], bool]:
    """A conversation whose tokens are wanted, and whether its last turn is left open. Raises ApiError."""
    fields = Fields(body)
    check_names(fields, COUNT_NAMES, settings)
    refuse(fields, COUNT_REFUSED)
    check_model(fields, info, settings)
    messages = _conversation(fields)
    return messages, _continued(messages)


def _continued(messages: list[ChatMessage]) -> bool:
    return messages[-1].role == "assistant"


def _conversation(fields: Fields) -> list[ChatMessage]:
    thinking = fields.nested("thinking")
    if thinking is not None and thinking.string("type") != "disabled":
        raise Unsupported("thinking", "the model does not think before it answers.")
    system = fields.get("system")
    text = "" if system is None else parse_content(system, "system")
    items = fields.items("messages")
    if items is None:
        raise missing("messages")
    if not items:
        raise RequestError("invalid_value", "'messages' must not be empty.", "messages")
    if len(items) > MAX_MESSAGES:
        raise RequestError("out_of_range", f"'messages' holds more than {MAX_MESSAGES} messages.", "messages")
    messages = [ChatMessage("system", text)] if text else []
    for k, item in enumerate(items):
        _add(messages, _turn(as_object(item, f"messages[{k}]")))
    return messages


def _add(messages: list[ChatMessage], turn: ChatMessage) -> None:
    """Turns of one role that follow each other are one."""
    last = messages[-1] if messages else None
    if last is not None and last.role == turn.role:
        messages[-1] = replace(last, content=last.content + BETWEEN_TURNS + turn.content)
    else:
        messages.append(turn)


def _turn(fields: Fields) -> ChatMessage:
    role = fields.string("role")
    if role is None:
        raise missing(fields.name("role"))
    if role not in ROLES:
        hint = "; a system message is in 'system'" if role == "system" else ""
        message = f"'{fields.name('role')}' must be user or assistant, got '{shown(role)}'{hint}."
        raise RequestError("invalid_value", message, fields.name("role"))
    content = fields.get("content")
    if content is None:
        raise missing(fields.name("content"))
    return ChatMessage(role, parse_content(content, fields.name("content")))
