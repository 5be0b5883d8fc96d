"""Conversations to prompt ids.

Roles are `system` (and `developer`, the same thing), `user` and `assistant`, and `tool` where the template
knows tools. Message text never becomes a special token, whatever it spells.

nanochat's template: bos, then each turn between its start and end token, then assistant_start for the answer.
It has no system turn: a system message is put before the next user message with a blank line between (several
are joined the same way), and one that no user message follows becomes a user turn of its own. Any order of
turns is rendered as it stands: two user turns in a row, or an assistant turn last (a new answer then follows
it, or with `continue_final` its text goes on).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from engine.text.files import CONFIG, HUGGING_FACE, read_json
from engine.text.tokenizer import NANOCHAT_SPECIALS, Tokenizer, TokenizerError


class TemplateError(ValueError):
    """A conversation cannot be rendered: an unknown role, or a rule of the model's own template."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that an assistant made in an earlier turn; `arguments` is the object that its JSON says."""

    id: str
    name: str
    arguments: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """`tool_calls` are an assistant's; a message of role `tool` answers the call `tool_call_id` of a function
    called `name`.
    """

    role: str
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None


Tool = Mapping[str, object]  # {"type": "function", "function": {"name", "description", "parameters"}}


class ChatTemplate(Protocol):
    """Renders conversations for one model. `terminal_ids` are the special ids that end an answer.

    `tool_source` is the template's text if it can show tools to the model, else None.
    """

    terminal_ids: list[int]
    tool_source: str | None

    def render(
        self, messages: Sequence[ChatMessage], *, continue_final: bool = False, tools: Sequence[Tool] = ()
    ) -> list[int]:
        """Prompt ids, ready for the answer. `continue_final` leaves the last message, an assistant's, open.

        Raises TemplateError, also for tools where there is no `tool_source`.
        """
        ...


def load_chat_template(folder: Path | str, tokenizer: Tokenizer) -> ChatTemplate:
    """The template in `folder` (chat_template.jinja, or in tokenizer_config.json), else nanochat's.

    A Hugging Face folder of a model that was never taught to chat gets one that refuses every conversation.
    Raises TokenizerError when any other folder has none and the tokenizer lacks nanochat's special tokens.
    """
    sources = _template_sources(Path(folder))
    if "default" in sources:
        from engine.text.jinja import JinjaTemplate  # nanochat's own checkpoints start without jinja

        return JinjaTemplate(sources["default"], tokenizer, Path(folder), sources.get("tool_use"))
    if (Path(folder) / HUGGING_FACE).is_file() and NANOCHAT_SPECIALS[1] not in tokenizer.special_tokens:
        return NoTemplate(terminal_ids(Path(folder), tokenizer))
    return NanochatTemplate(tokenizer)


def terminal_ids(folder: Path, tokenizer: Tokenizer) -> list[int]:
    """The end-of-turn id, those that generation_config.json or config.json name, and bos.

    Configurations name wrong ones often enough (library defaults), so only special ids are believed.
    """
    named: list[object] = [tokenizer.encode_special(tokenizer.eos)] if tokenizer.eos is not None else []
    for file in ("generation_config.json", "config.json"):
        if (folder / file).is_file():
            value = read_json(folder / file).get("eos_token_id")
            named += value if isinstance(value, list) else [value]
    named.append(tokenizer.get_bos_token_id())
    return list(dict.fromkeys(id for id in named if isinstance(id, int) and tokenizer.is_special(id)))


def _template_sources(folder: Path) -> dict[str, str]:
    """By name: `default`, and perhaps one of its own for conversations with tools, `tool_use`."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        try:
            return {"default": file.read_text(encoding="utf-8")}
        except (OSError, UnicodeDecodeError) as error:
            raise TokenizerError(f"cannot read {file}: {error}") from error
    if not (folder / CONFIG).is_file():
        return {}
    template = read_json(folder / CONFIG).get("chat_template")
    if not isinstance(template, list):
        template = [{"name": "default", "template": template}]
    named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
    return {str(name): source for name, source in named.items() if isinstance(source, str)}


def checked(
    messages: Sequence[ChatMessage], continue_final: bool, *, tools: bool = False
) -> list[ChatMessage]:
    """`messages` with developer turned into system. `tools`: calls and their results may be among them.
    Raises TemplateError.
    """
    if not messages:
        raise TemplateError("the conversation has no messages")
    roles = ("system", "developer", "user", "assistant", *(("tool",) if tools else ()))
    for message in messages:
        if message.role not in roles:
            raise TemplateError(f"the model's chat template has no role {message.role!r}")
        if message.tool_calls and not tools:
            raise TemplateError("the model's chat template has no tools")
    if continue_final and messages[-1].role != "assistant":
        raise TemplateError("only an assistant's message can be continued, and the last one is not")
    return [
        replace(message, role="system") if message.role == "developer" else message for message in messages
    ]


def refuse_tools(tools: Sequence[Tool]) -> None:
    """For templates that cannot show any."""
    if tools:
        raise TemplateError("the model's chat template has no tools")


class NoTemplate:
    """Of a base model: it goes on with text, and knows no turns."""

    tool_source: str | None = None

    def __init__(self, terminal_ids: list[int]) -> None:
        self.terminal_ids = terminal_ids

    def render(
        self, messages: Sequence[ChatMessage], *, continue_final: bool = False, tools: Sequence[Tool] = ()
    ) -> list[int]:
        raise TemplateError("this model has no chat template; it can only complete text")


class NanochatTemplate:
    """nanochat's own wrapping, for a tokenizer that has its special tokens (TokenizerError otherwise)."""

    tool_source: str | None = None

    def __init__(self, tokenizer: Tokenizer) -> None:
        missing = [token for token in NANOCHAT_SPECIALS[:5] if token not in tokenizer.special_tokens]
        if missing:
            raise TokenizerError(f"no chat template, and the tokenizer lacks {', '.join(missing)}")
        self._encode = tokenizer.encode
        self._bos, *turns = (tokenizer.encode_special(token) for token in NANOCHAT_SPECIALS[:5])
        self._start = {"user": turns[0], "assistant": turns[2]}
        self._end = {"user": turns[1], "assistant": turns[3]}
        self.terminal_ids = [self._end["assistant"], self._bos]

    def render(
        self, messages: Sequence[ChatMessage], *, continue_final: bool = False, tools: Sequence[Tool] = ()
    ) -> list[int]:
        refuse_tools(tools)
        ids = [self._bos]
        for message in _merge_system(checked(messages, continue_final)):
            ids += [self._start[message.role], *self._encode(message.content), self._end[message.role]]
        if continue_final:
            ids.pop()
        else:
            ids.append(self._start["assistant"])
        return ids


def _merge_system(messages: list[ChatMessage]) -> list[ChatMessage]:
    """System messages moved into user turns, as the module's docstring says."""
    last_user = max((i for i, message in enumerate(messages) if message.role == "user"), default=-1)
    turns: list[ChatMessage] = []
    waiting: list[str] = []
    for i, message in enumerate(messages):
        if message.role == "system":
            waiting.append(message.content)
            follower = messages[i + 1].role if i + 1 < len(messages) else None
            if i > last_user and follower != "system":
                turns.append(ChatMessage("user", "\n\n".join(waiting)))
                waiting = []
        elif message.role == "user":
            turns.append(ChatMessage("user", "\n\n".join([*waiting, message.content])))
            waiting = []
        else:
            turns.append(message)
    return turns
