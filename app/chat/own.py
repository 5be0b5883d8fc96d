"""The server that a chat starts for itself."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import IO

from app.processes.child import environment
from app.settings.options import ENV_PREFIX

COMMAND = (sys.executable, "-P", "-m", "app.chat.tethered")
END_SECONDS = 10.0


class NoServer(Exception):
    """The server did not start; it has said why, and with which exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


@contextlib.contextmanager
def own_server(settings: str) -> Iterator[str]:
    """The address of a server with these settings (TOML), which ends with the block, and with this process.

    Raises NoServer.
    """
    # It has all of its settings from here, through a pipe: they may hold secrets.
    kept = {name: value for name, value in environment().items() if not name.startswith(ENV_PREFIX)}
    reading, writing = os.pipe()
    with tempfile.TemporaryFile() as said:
        try:
            process = subprocess.Popen(
                [*COMMAND, "--config", f"/dev/fd/{reading}"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                pass_fds=[reading],
                env=kept,
                start_new_session=True,  # Ctrl-C is for the answer
            )
        except BaseException:
            os.close(writing)
            raise
        finally:
            os.close(reading)
        try:
            with contextlib.suppress(BrokenPipeError), open(writing, "w", encoding="utf-8") as file:
                file.write(settings)
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise NoServer(_reason(said), process.wait())
            yield str(json.loads(line)["url"])
        finally:
            _end(process)


def _end(process: "subprocess.Popen[bytes]") -> None:
    assert process.stdin is not None and process.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    try:
        process.wait(END_SECONDS)
    except BaseException as error:
        process.kill()
        process.wait()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
    finally:
        process.stdout.close()


def _reason(said: IO[bytes]) -> str:
    """What the server wrote to its error output, as text."""
    said.seek(0)
    lines = said.read().decode(errors="replace").splitlines()
    return "\n".join(_plain(line) for line in lines) or "the server did not start"


def _plain(line: str) -> str:
    try:
        return str(json.loads(line)["message"])
    except (ValueError, KeyError, TypeError):
        return line
