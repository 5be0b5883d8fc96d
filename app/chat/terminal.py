"""The conversation on a terminal: lines in, answers out, and commands that begin with a slash."""

import difflib
import json
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TextIO

from app.chat.client import Card, ChatFailed, Client, Measured, Stream
from app.chat.conversation import BadFile, Conversation

# What a model writes may not move the cursor or change the terminal; tabs and line ends are text.
_CONTROLS = dict.fromkeys([*range(9), *range(11, 32), *range(127, 160)], None)

HELP = """\
/new               begin anew; the system message stays
/system [TEXT]     show or set the system message; /system - takes it away
/save FILE         write the conversation as JSON
/load FILE         go on with one
/regenerate        answer the last question again
/undo              take back the last question and its answer
/stats             what the server and this conversation have come to
/exit              leave; so do Ctrl-D, and Ctrl-C at an empty prompt
Ctrl-C stops an answer. A line that ends with \\ goes on in the next one; \"\"\" opens and closes a message of
several lines. A message that begins with a slash is written with two."""


def visible(text: str) -> str:
    """Text without control characters."""
    return text.translate(_CONTROLS)


def told(measured: Measured, stopped: bool = False) -> str:
    """One line about an answer."""
    parts = [f"{measured.tokens} tokens"] if measured.tokens else []
    if measured.pace:
        parts.append(f"{measured.pace:,.0f} tokens/s")
    if measured.first:
        parts.append(f"first after {1e3 * measured.first:,.1f} ms")
    if stopped:
        parts.append("stopped")
    elif measured.finish == "length":
        parts.append("cut: no room left, or --max-tokens")
    return "[" + ", ".join(parts) + "]"


class Terminal:
    """One conversation. read: a line for a prompt, as `input` does; pending: what is written there already
    when Ctrl-C comes.
    """

    def __init__(
        self,
        client: Client,
        card: Card,
        conversation: Conversation,
        sampling: Mapping[str, object],
        out: TextIO,
        read: Callable[[str], str] = input,
        pending: Callable[[], str] = str,
    ) -> None:
        self.client = client
        self.card = card
        self.conversation = conversation
        self.fields = {"model": card.name, **card.sampling, **sampling}
        self.out = out
        self._read = read
        self._pending = pending
        self._answers = 0
        self._tokens = 0
        self._commands: dict[str, Callable[[str], None]] = {
            "/new": self._new,
            "/system": self._system,
            "/save": self._save,
            "/load": self._load,
            "/regenerate": self._regenerate,
            "/undo": self._undo,
            "/stats": self._stats,
            "/help": lambda _: self._say(HELP),
        }

    @property
    def commands(self) -> list[str]:
        return [*self._commands, "/exit"]

    def run(self) -> None:
        """Until the user leaves."""
        self._say(f"{self.card.name} at {self.client.url}. /help lists what can be done here.")
        while True:
            try:
                message = self._message()
            except EOFError:
                self._say("")
                return
            except KeyboardInterrupt:
                self._say("")
                if not self._pending():
                    return
                continue
            except UnicodeDecodeError:
                self._say("That is not UTF-8.")
                continue
            if not message.strip():
                continue
            if message.strip() in ("/exit", "/quit"):
                return
            try:
                self._do(message)
            except (ChatFailed, BadFile) as error:
                self._say(f"error: {error}")
            except KeyboardInterrupt:
                self._say("")

    def _say(self, text: str) -> None:
        print(visible(text), file=self.out, flush=True)

    def _message(self) -> str:
        """What the user writes, on one line or several; Ctrl-C on a later line drops it."""
        line = self._read("> ")
        try:
            if line.lstrip().startswith('"""'):
                return self._block(line.lstrip()[3:])
            while line.endswith("\\"):
                line = line[:-1] + "\n" + self._read(". ")
        except KeyboardInterrupt:
            self._say("")
            return ""
        return line

    def _block(self, line: str) -> str:
        lines = [line]
        while not lines[-1].rstrip().endswith('"""'):
            lines.append(self._read(". "))
        return "\n".join([*lines[:-1], lines[-1].rstrip()[:-3]]).strip("\n")

    def _do(self, message: str) -> None:
        if not message.startswith("/"):
            self._ask(message)
        elif message.startswith("//"):
            self._ask(message[1:])
        else:
            name, _, rest = message.partition(" ")
            if name not in self._commands:
                near = difflib.get_close_matches(name, self.commands, n=1)
                self._say(f"There is no {name}" + (f"; did you mean {near[0]}?" if near else "; see /help."))
                return
            self._commands[name](rest.strip())

    def _ask(self, question: str) -> None:
        self.conversation.add("user", question)
        if not self._answer(self.fields):
            self.conversation.undo()

    def _answer(self, fields: Mapping[str, object]) -> bool:
        """Streams the answer to what was said; false where nothing of one came."""
        pieces: list[str] = []
        stream: Stream | None = None
        stopped = False
        failure: ChatFailed | None = None
        try:
            stream = self.client.ask(self.conversation.sent(), fields)
            for piece in stream:
                pieces.append(piece)
                self.out.write(visible(piece))
                self.out.flush()
        except KeyboardInterrupt:
            stopped = True
        except ChatFailed as error:
            failure = error
        finally:
            if stream is not None:
                stream.close()
        measured = Measured() if stream is None else stream.measured
        self._say("")
        if failure is not None:
            self._say(f"error: {failure}")
        else:
            self._say(told(measured, stopped))
        self._answers += 1
        self._tokens += measured.tokens
        if pieces:
            self.conversation.add("assistant", "".join(pieces))
        return bool(pieces) or measured.finish is not None

    # Commands

    def _new(self, _: str) -> None:
        self.conversation.messages.clear()
        self._say("A new conversation.")

    def _system(self, text: str) -> None:
        if text:
            self.conversation.system = None if text == "-" else text
        self._say(f"system: {self.conversation.system or 'none'}")

    def _save(self, name: str) -> None:
        path = _file(name, "/save")
        self.conversation.save(path, self.card.name)
        self._say(f"{len(self.conversation.messages)} messages in {path}")

    def _load(self, name: str) -> None:
        path = _file(name, "/load")
        loaded = Conversation.load(path)
        self.conversation.system, self.conversation.messages = loaded.system, loaded.messages
        for message in loaded.messages:
            mark = "you: " if message["role"] == "user" else ""
            self._say(f"{mark}{message['content']}")

    def _regenerate(self, _: str) -> None:
        if not self.conversation.messages:
            self._say("There is no question to answer again.")
            return
        before = list(self.conversation.messages)
        self.conversation.drop_answer()
        # A seed of its own: with one and the same the answer would be the same, too.
        if not self._answer({**self.fields, "seed": secrets.randbelow(2**31)}):
            self.conversation.messages = before

    def _undo(self, _: str) -> None:
        if not self.conversation.undo():
            self._say("There is nothing to take back.")
            return
        left = self.conversation.messages
        self._say(f"Back to: {left[-1]['content'][-200:]}" if left else "Back to the beginning.")

    def _stats(self, _: str) -> None:
        count = len(self.conversation.messages)
        self._say(f"here: {self._answers} answers, {self._tokens} tokens, {count} messages kept")
        for name, value in self.client.get("/stats").items():
            self._say(f"{name}: {json.dumps(value)}")


def _file(name: str, command: str) -> Path:
    if not name:
        raise BadFile(f"{command} needs the name of a file")
    return Path(name).expanduser()
