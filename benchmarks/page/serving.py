"""The servers that the page is measured against: the real one, and one that answers by script."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.static.scripted_server import ScriptedServer

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def real_server(model: str) -> Iterator[str]:
    """The address of `python -m app` with `model`, once it is ready to answer."""
    command = [sys.executable, "-m", "app", "--model", model, "--port", "0", "--log-format", "json"]
    log: list[str] = []
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            log.append(line)
            if line.startswith("{") and (event := json.loads(line)).get("event") == "ready":
                yield event["url"] + "/"
                return
        raise SystemExit("the server ended early:\n" + "".join(log[-30:]))
    finally:
        os.kill(process.pid, signal.SIGTERM)
        process.wait(30)


@contextmanager
def scripted_server() -> Iterator[ScriptedServer]:
    """The page's own files and headers, and answers of a script, from a thread of this process."""
    server = ScriptedServer()
    try:
        yield server
    finally:
        server.close()
