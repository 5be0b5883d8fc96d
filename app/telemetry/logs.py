"""Log lines for people, or one JSON object per line for machines; both on standard error.

Whoever reads them can stop reading at any time: a line that nobody takes waits in a bounded buffer, and is
dropped when that is full. The service never waits for its log.
"""

import contextlib
import json
import logging
import os
import select
import sys
import time
from typing import TextIO

from app.settings.sections import LogFormat, LogLevel

_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}
_CONTROLS |= {code: f"\\u{code:04x}" for code in (0x2028, 0x2029)}

HELD_BYTES = 1 << 20  # of lines that wait for their reader
_AT_ONCE = 4096  # bytes that a pipe which can be written to takes without waiting (POSIX: PIPE_BUF)


class RequestLine:
    """The message of a record that is about one HTTP request: its fields, and a line for people."""

    __slots__ = ("fields",)

    def __init__(self, fields: dict[str, object]) -> None:
        self.fields = fields

    def __str__(self) -> str:
        about = self.fields
        words = [f"{about['client']} {about['method']} {about['route']} {about['status']}"]
        words.append(f"{about['duration_ms']} ms")
        for name in ("finish_reason", "n_prompt", "n_cached", "n_out", "queue_ms", "ttft_ms", "itl_p50_ms"):
            if about.get(name) is not None:
                words.append(f"{name}={about[name]}")
        for name in ("tok_s", "batch_mean", "aborted", "error", "key_id", "user", "trace_id", "request_id"):
            if about.get(name):
                words.append(f"{name}={about[name]}")
        if "content" in about:
            words.append(f"content={json.dumps(about['content'])}")
        return " ".join(words)


class TextFormatter(logging.Formatter):
    """One line per record; control characters in it are spelled out, so that nobody can forge a line."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:
        return super().formatMessage(record).translate(_CONTROLS)


class JsonFormatter(logging.Formatter):
    """One object per record. JSON's escapes leave ASCII only, and no control character."""

    def format(self, record: logging.LogRecord) -> str:
        second = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, object] = {
            "ts": f"{second}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        message: object = record.msg
        if isinstance(message, RequestLine):
            line |= message.fields
        else:
            line["message"] = record.getMessage()
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


class PatientHandler(logging.Handler):
    """Writes lines where that does not mean waiting, and keeps them for a while where it does.

    stream: None where the process was started without that output. `dropped` counts lines that are lost.
    """

    def __init__(self, stream: TextIO | None) -> None:
        super().__init__()
        self._held = bytearray()
        self._inside = False  # what was written last ended inside a line
        self.dropped = 0
        self._fd: int | None = None
        with contextlib.suppress(OSError, ValueError, AttributeError):
            self._fd = stream.fileno() if stream is not None else None
        self._poll = select.poll()
        if self._fd is not None:
            self._poll.register(self._fd, select.POLLOUT)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record).encode("utf-8", "backslashreplace") + b"\n"
        except Exception:
            self.dropped += 1
            return
        if self._fd is None or len(self._held) + len(line) > HELD_BYTES:
            self.dropped += 1
        else:
            self._held += line
        self.flush()

    def flush(self) -> None:
        """Writes what can be written now."""
        with self.lock or contextlib.nullcontext():
            fd, held = self._fd, self._held
            try:
                while held and fd is not None and self._poll.poll(0):
                    written = os.write(fd, held[:_AT_ONCE])
                    self._inside = held[written - 1 : written] != b"\n"
                    del held[:written]
            except OSError:  # closed, or no room on the disk: whoever comes later may have more luck
                self.dropped += held.count(b"\n")
                held[:] = b"\n" if self._inside else b""


def set_up_logging(level: LogLevel, format: LogFormat) -> None:
    """Sends all logs to standard error. A closed or full error output never disturbs the service."""
    logging.raiseExceptions = False
    handler = PatientHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    # Each request gets its line, whatever else is told.
    logging.getLogger("fastpath.access").setLevel("INFO")
    # Starting and stopping are told in our own words.
    logging.getLogger("uvicorn.error").setLevel("DEBUG" if level == "debug" else "WARNING")
    logging.getLogger("asyncio").setLevel("WARNING")
