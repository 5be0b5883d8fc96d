"""Conversations to prompt ids.

Roles are `system` (and `developer`, the same thing), `user` and `assistant`. Message text never becomes a
special token, whatever it spells.

nanochat's template: bos, then each turn between its start and end token, then assistant_start for the answer.
It has no system turn: a system message is put before the next user message with a blank line between (several
are joined the same way), and one that no user message follows becomes a user turn of its own. Any order of
turns is rendered as it stands: two user turns in a row, or an assistant turn last (a new answer then follows
it, or with `continue_final` its text goes on).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from engine.text.files import CONFIG, HUGGING_FACE, read_json
from engine.text.tokenizer import NANOCHAT_SPECIALS, Tokenizer, TokenizerError


class TemplateError(ValueError):
    """A conversation cannot be rendered: an unknown role, or a rule of the model's own template."""


@dataclass(frozen=True, slots=True)
class ChatMessage:
    role: str
    content: str


class ChatTemplate(Protocol):
    """Renders conversations for one model. `terminal_ids` are the special ids that end an answer."""

    terminal_ids: list[int]

    def render(self, messages: Sequence[ChatMessage], *, continue_final: bool = False) -> list[int]:
        """Prompt ids, ready for the answer. `continue_final` leaves the last message, an assistant's, open.

        Raises TemplateError.
        """
        ...


def load_chat_template(folder: Path | str, tokenizer: Tokenizer) -> ChatTemplate:
    """The template in `folder` (chat_template.jinja, or in tokenizer_config.json), else nanochat's.

    A Hugging Face folder of a model that was never taught to chat gets one that refuses every conversation.
    Raises TokenizerError when any other folder has none and the tokenizer lacks nanochat's special tokens.
    """
    source = _template_source(Path(folder))
    if source is not None:
        from engine.text.jinja import JinjaTemplate  # nanochat's own checkpoints start without jinja

        return JinjaTemplate(source, tokenizer, Path(folder))
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


def _template_source(folder: Path) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise TokenizerError(f"cannot read {file}: {error}") from error
    if not (folder / CONFIG).is_file():
        return None
    template = read_json(folder / CONFIG).get("chat_template")
    if isinstance(template, list):  # several named ones
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def checked(messages: Sequence[ChatMessage], continue_final: bool) -> list[ChatMessage]:
    """`messages` with developer turned into system. Raises TemplateError."""
    if not messages:
        raise TemplateError("the conversation has no messages")
    for message in messages:
        if message.role not in ("system", "developer", "user", "assistant"):
            raise TemplateError(f"the model's chat template has no role {message.role!r}")
    if continue_final and messages[-1].role != "assistant":
        raise TemplateError("only an assistant's message can be continued, and the last one is not")
    return [
        ChatMessage("system", message.content) if message.role == "developer" else message
        for message in messages
    ]


class NoTemplate:
    """Of a base model: it goes on with text, and knows no turns."""

    def __init__(self, terminal_ids: list[int]) -> None:
        self.terminal_ids = terminal_ids

    def render(self, messages: Sequence[ChatMessage], *, continue_final: bool = False) -> list[int]:
        raise TemplateError("this model has no chat template; it can only complete text")


class NanochatTemplate:
    """nanochat's own wrapping, for a tokenizer that has its special tokens (TokenizerError otherwise)."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        missing = [token for token in NANOCHAT_SPECIALS[:5] if token not in tokenizer.special_tokens]
        if missing:
            raise TokenizerError(f"no chat template, and the tokenizer lacks {', '.join(missing)}")
        self._encode = tokenizer.encode
        self._bos, *turns = (tokenizer.encode_special(token) for token in NANOCHAT_SPECIALS[:5])
        self._start = {"user": turns[0], "assistant": turns[2]}
        self._end = {"user": turns[1], "assistant": turns[3]}
        self.terminal_ids = [self._end["assistant"], self._bos]

    def render(self, messages: Sequence[ChatMessage], *, continue_final: bool = False) -> list[int]:
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
