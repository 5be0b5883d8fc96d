"""What the server says at its start and its end, and its exit codes."""

import contextlib
import json
import logging
import sys

from app.processes.supervisor import EngineFailed
from app.settings.config import Config
from engine.flags import ABOUT
from engine.messages import ModelInfo

log = logging.getLogger("fastpath")

EXIT_OK = 0
EXIT_FAULT = 1
EXIT_USAGE = 2
EXIT_MODEL = 3
EXIT_PORT = 98


def summary(info: ModelInfo) -> list[str]:
    """What people look for in the start-up lines. Flags that nobody asked for and that are off are told by
    /v1/models only.
    """
    tokens = info.num_blocks * info.block_size
    lines = [
        f"model {info.name} ({info.generation}, {info.parameters / 1e6:.1f} M parameters, {info.dtype}) "
        f"on {info.device}",
        f"KV cache: {tokens:,} tokens in {info.num_blocks} blocks of {info.block_size}, "
        f"{tokens / info.max_model_len:.1f} sequences of {info.max_model_len} tokens; {info.max_rows} rows",
    ]
    if info.features:
        told = [row for row in info.features if not (row[0] in ABOUT and row[1:3] == ("auto", "off"))]
        rows = [("feature", "asked for", "used", "why"), *told]
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        for row in rows:
            lines.append("  ".join(map(str.ljust, row, widths)).rstrip())
    return lines


def say(text: str) -> None:
    """A line on standard output; a closed output is no reason to stop."""
    with contextlib.suppress(OSError, ValueError):
        print(text, flush=True)


def complain(error: Exception) -> int:
    """Says why there is no engine; returns the exit code."""
    code = error.exit_code if isinstance(error, EngineFailed) else EXIT_MODEL
    what = {EXIT_MODEL: "The model cannot be served", EXIT_USAGE: "This cannot be had"}.get(code, "Stopping")
    with contextlib.suppress(OSError, ValueError):
        print(f"{what}: {error}", file=sys.stderr, flush=True)
    return code


def announce(config: Config, info: ModelInfo, url: str, port: int) -> None:
    """The lines that say that requests are answered."""
    for line in summary(info):
        log.info("%s", line)
    if config.server.log_format == "json":
        say(json.dumps({"event": "ready", "port": port, "url": url, "model": info.name}))
    else:
        say(f"Ready: {info.name} at {url}")
