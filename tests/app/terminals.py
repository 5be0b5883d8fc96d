"""A program on a real terminal, as a person has it before them."""

import contextlib
import os
import pty
import re
import select
import signal
import time
from collections.abc import Iterator, Sequence

from tests.app.server_process import DEADLINE, ROOT, environment, gone

AGAIN = 2.0  # seconds after which a key that changed nothing is pressed once more
_MARKS = re.compile(r"\x1b\[[?0-9;]*[a-zA-Z]")  # what readline says to the terminal


class Terminal:
    """The keyboard and the screen of one program."""

    def __init__(self, pid: int, master: int) -> None:
        self.pid = pid
        self._master = master
        self._raw = b""
        self._seen = 0
        self.code: int | None = None

    @property
    def screen(self) -> str:
        """All that was shown, with plain line ends."""
        text = self._raw.decode(errors="replace")
        return _MARKS.sub("", text).replace("\r\n", "\n").replace("\r", "")

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def until(self, text: str) -> str:
        """Waits until something new holds this; gives what was shown since the last call."""
        end = time.monotonic() + DEADLINE
        while (at := self.screen.find(text, self._seen)) < 0:
            assert time.monotonic() < end and self._read(end), f"no {text!r} in {self.screen[self._seen :]!r}"
        shown = self.screen[self._seen : at + len(text)]
        self._seen = at + len(text)
        return shown

    def more(self) -> None:
        """Waits until something new is shown, whatever it is."""
        end = time.monotonic() + DEADLINE
        while not self.screen[self._seen :].strip():
            assert time.monotonic() < end and self._read(end), "nothing more was shown"

    def say(self, line: str) -> str:
        """Types a line, and waits for the next prompt; gives what was shown between the two."""
        self.type(line + "\n")
        shown = self.until("\n> ")
        return shown.removesuffix("\n> ").partition("\n")[2]

    def wait(self) -> int:
        """The exit code."""
        end = time.monotonic() + DEADLINE
        while self._read(end):
            pass
        return self._ended(end)

    def interrupt(self, text: str) -> None:
        """Ctrl-C until this is shown. One that comes between a prompt and the wait for the first key is seen
        by Python's input() with the next key only; a person presses again.
        """
        end = time.monotonic() + DEADLINE
        while text not in self.screen[self._seen :]:
            assert time.monotonic() < end, f"Ctrl-C changes nothing: {self.screen[self._seen :]!r}"
            self.type("\x03")
            again = time.monotonic() + AGAIN
            while text not in self.screen[self._seen :] and self._read(again):
                pass
        self.until(text)

    def leave(self) -> int:
        """Ctrl-C until the program has ended; its exit code."""
        end = time.monotonic() + DEADLINE
        while True:
            self.type("\x03")
            again = min(end, time.monotonic() + AGAIN)
            while self._read(again):
                pass
            if time.monotonic() < again or again == end:
                return self._ended(end)

    def _ended(self, end: float) -> int:
        assert time.monotonic() < end, f"it does not end: {self.screen[self._seen :]!r}"
        self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.code

    def _read(self, end: float) -> bool:
        """False at the end of the program's output, or when the time is over."""
        if not select.select([self._master], [], [], max(0.0, end - time.monotonic()))[0]:
            return False
        try:
            data = os.read(self._master, 1 << 16)
        except OSError:  # Linux: nobody holds the other end any more
            return False
        self._raw += data
        return bool(data)


@contextlib.contextmanager
def terminal(command: Sequence[str], **more: str) -> Iterator[Terminal]:
    """Runs the command in a terminal of its own; Ctrl-C is typed as \\x03."""
    pid, master = pty.fork()
    if pid == 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # who starts tests in the background may have it ignored
        os.chdir(ROOT)
        os.execve(command[0], list(command), environment() | {"TERM": "dumb", "COLUMNS": "200"} | more)
    running = Terminal(pid, master)
    try:
        yield running
    finally:
        if running.code is None:
            if not gone(pid):
                os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        os.close(master)
