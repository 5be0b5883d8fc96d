"""What was said so far, and its file."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from app.chat.client import Message

ROLES = ("system", "developer", "user", "assistant")


class BadFile(Exception):
    """A file that cannot be read or written, or holds no conversation."""


@dataclass(slots=True)
class Conversation:
    """messages: questions and answers in turns, without the system message."""

    system: str | None = None
    messages: list[Message] = field(default_factory=list)

    def sent(self) -> list[Message]:
        """What a request carries."""
        head = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*head, *self.messages]

    def add(self, role: str, content: str) -> None:
        self.messages.append({"role": role, "content": content})

    def drop_answer(self) -> bool:
        """Takes back what came after the last question; false where there is no question."""
        while self.messages and self.messages[-1]["role"] != "user":
            self.messages.pop()
        return bool(self.messages)

    def undo(self) -> bool:
        """Takes back the last question with its answer; false where there is none."""
        if not self.drop_answer():
            return False
        self.messages.pop()
        return True

    def save(self, path: Path, model: str) -> None:
        """Writes {"model", "messages"} as JSON, or nothing at all. Raises BadFile."""
        document = json.dumps({"model": model, "messages": self.sent()}, indent=1, ensure_ascii=False)
        part = path.with_name(path.name + ".part")
        try:
            part.write_text(document + "\n", encoding="utf-8", errors="surrogatepass")
            part.replace(path)
        except OSError as error:
            raise BadFile(f"{path}: {error.strerror}") from None

    @classmethod
    def load(cls, path: Path) -> "Conversation":
        """A conversation that was saved, or a list of messages as a request has them. Raises BadFile."""
        try:
            document: object = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise BadFile(f"{path}: {error.strerror}") from None
        except (ValueError, RecursionError) as error:
            raise BadFile(f"{path} is not JSON: {error}") from None
        listed = document.get("messages") if isinstance(document, dict) else document
        if not isinstance(listed, list):
            raise BadFile(f"{path} has no list of messages")
        loaded = cls()
        for at, message in enumerate(listed):
            role = message.get("role") if isinstance(message, dict) else None
            content = message.get("content") if isinstance(message, dict) else None
            if role not in ROLES or not isinstance(content, str):
                raise BadFile(f"{path}: messages[{at}] is no message of text by {', '.join(ROLES)}")
            if at == 0 and role in ("system", "developer"):
                loaded.system = content
            else:
                loaded.add(role, content)
        return loaded
