"""The turns of /v1/messages, as the messages of a conversation, and the tools that they may call."""

from collections.abc import Collection, Mapping
from dataclasses import replace

from app.http.errors import RequestError, Unsupported
from app.http.fields import Fields, as_object, missing, shown, wrong_type
from app.requests.openai import message_items, parse_content
from app.requests.tools import NO_TOOLS, Function, chosen, function_name, parse_function, tool_call_id
from engine.text import ChatMessage, ToolCall

ROLES = ("user", "assistant")
BETWEEN_TURNS = "\n\n"


class AnthropicSpelling:
    """A `Spelling`."""

    def function(self, fields: Fields) -> Function:
        type = fields.string("type")
        if type not in (None, "custom"):
            raise Unsupported(fields.name("type"), f"there is no tool '{shown(type)}' here.")
        if fields.get("input_schema") is None:
            raise missing(fields.name("input_schema"))
        return parse_function(fields, "input_schema")

    def harmless(self, choice: object) -> bool:
        return choice is None or (isinstance(choice, dict) and choice.get("type") in ("auto", "none"))

    def choice(self, fields: Fields, names: Collection[str]) -> tuple[str, Collection[str]]:
        choice = fields.nested("tool_choice")
        if choice is None:
            return "auto", names
        type = choice.string("type")
        if type is None:
            raise missing(choice.name("type"))
        if type == "tool":
            return "named", (chosen(choice, names),)
        modes = {"auto": "auto", "any": "required", "none": "none"}
        if type not in modes:
            message = f"'{choice.name('type')}' must be auto, any, tool or none, got '{shown(type)}'."
            raise RequestError("invalid_value", message, choice.name("type"))
        return modes[type], names

    def parallel(self, fields: Fields) -> bool:
        choice = fields.nested("tool_choice")
        return choice is None or not choice.boolean("disable_parallel_tool_use")


def parse_turns(fields: Fields, knows_tools: bool) -> list[ChatMessage]:
    """`system` and `messages`. Turns of one role that follow each other are one. Raises RequestError."""
    system = fields.get("system")
    text = "" if system is None else parse_content(system, "system")
    messages = [ChatMessage("system", text)] if text else []
    called: dict[str, str] = {}  # the function of each call so far, by the call's id
    for k, item in enumerate(message_items(fields)):
        for message in _turn(as_object(item, f"messages[{k}]"), knows_tools, called):
            called.update((call.id, call.name) for call in message.tool_calls)
            last = messages[-1] if messages else None
            if last is not None and last.role == message.role in ROLES:
                texts = [text for text in (last.content, message.content) if text]
                calls = (*last.tool_calls, *message.tool_calls)
                messages[-1] = replace(last, content=BETWEEN_TURNS.join(texts), tool_calls=calls)
            else:
                messages.append(message)
    return messages


def _turn(fields: Fields, knows_tools: bool, called: Mapping[str, str]) -> list[ChatMessage]:
    """The messages of one turn: several where it has the results of calls."""
    role = fields.string("role")
    if role is None:
        raise missing(fields.name("role"))
    if role not in ROLES:
        hint = "; a system message is in 'system'" if role == "system" else ""
        message = f"'{fields.name('role')}' must be user or assistant, got '{shown(role)}'{hint}."
        raise RequestError("invalid_value", message, fields.name("role"))
    content = fields.get("content")
    name = fields.name("content")
    if content is None:
        raise missing(name)
    if not isinstance(content, list):
        if not isinstance(content, str):
            raise wrong_type(name, "a string or a list of blocks", content)
        return [ChatMessage(role, content)]
    messages: list[ChatMessage] = []
    texts: list[str] = []
    calls: list[ToolCall] = []
    for k, item in enumerate(content):
        block = as_object(item, f"{name}[{k}]")
        type = block.string("type")
        if type not in ("tool_use", "tool_result"):
            texts.append(parse_content([item], name, first=k))
            continue
        if not knows_tools:
            raise Unsupported(block.name("type"), NO_TOOLS)
        if role != ("assistant" if type == "tool_use" else "user"):
            message = f"'{block.name('type')}' is '{type}', which does not belong to the role '{role}'."
            raise RequestError("invalid_value", message, block.name("type"))
        if type == "tool_use":
            calls.append(_call(block))
            continue
        if texts:
            messages.append(ChatMessage(role, "".join(texts)))
            texts = []
        messages.append(_result(block, called))
    if texts or calls or not messages:
        messages.append(ChatMessage(role, "".join(texts), tuple(calls)))
    return messages


def _call(block: Fields) -> ToolCall:
    arguments = block.nested("input")
    return ToolCall(
        tool_call_id(block, "id"), function_name(block), {} if arguments is None else arguments.values
    )


def _result(block: Fields, called: Mapping[str, str]) -> ChatMessage:
    id = tool_call_id(block, "tool_use_id")
    block.boolean("is_error")  # the text has to say so: templates have no place for it
    content = block.get("content")
    text = "" if content is None else parse_content(content, block.name("content"))
    return ChatMessage("tool", text, tool_call_id=id, name=called.get(id))
