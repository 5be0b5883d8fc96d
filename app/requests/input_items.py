"""The items of /v1/responses' `input`, as the messages of a conversation."""

from dataclasses import replace

from app.http.errors import RequestError, Unsupported
from app.http.fields import Fields, as_object, missing, shown, wrong_type
from app.requests.openai import MAX_MESSAGES, ROLES, parse_content
from app.requests.tools import NO_TOOLS, function_name, parse_arguments, tool_call_id
from engine.text import ChatMessage, ToolCall

PARTS = ("input_text", "output_text")


def parse_input(fields: Fields, knows_tools: bool) -> list[ChatMessage]:
    """`instructions` and `input`. Calls belong to the assistant's message in front of them. Raises
    RequestError.
    """
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
    called: dict[str, str] = {}  # the function of each call so far, by the call's id
    for k, item in enumerate(value):
        _add(messages, as_object(item, f"input[{k}]"), knows_tools, called)
    return messages


def _add(messages: list[ChatMessage], item: Fields, knows_tools: bool, called: dict[str, str]) -> None:
    type = item.string("type") or "message"
    if type == "message":
        messages.append(_message(item))
        return
    if type not in ("function_call", "function_call_output"):
        raise Unsupported(item.name("type"), f"there are no items of type '{shown(type)}' here.")
    if not knows_tools:
        raise Unsupported(item.name("type"), NO_TOOLS)
    id = tool_call_id(item, "call_id")
    if type == "function_call_output":
        output = item.get("output")
        if output is None:
            raise missing(item.name("output"))
        text = parse_content(output, item.name("output"), PARTS)
        messages.append(ChatMessage("tool", text, tool_call_id=id, name=called.get(id)))
        return
    text = item.string("arguments") or ""
    call = ToolCall(id, function_name(item), parse_arguments(text, item.name("arguments")))
    called[id] = call.name
    last = messages[-1] if messages else None
    if last is not None and last.role == "assistant":
        messages[-1] = replace(last, tool_calls=(*last.tool_calls, call))
    else:
        messages.append(ChatMessage("assistant", "", (call,)))


def _message(item: Fields) -> ChatMessage:
    role = item.string("role")
    if role is None:
        raise missing(item.name("role"))
    if role not in ROLES:
        message = f"'{item.name('role')}' must be one of {', '.join(ROLES)}, got '{shown(role)}'."
        raise RequestError("invalid_value", message, item.name("role"))
    content = item.get("content")
    if content is None:
        raise missing(item.name("content"))
    return ChatMessage(role, parse_content(content, item.name("content"), PARTS))
