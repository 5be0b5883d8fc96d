"""`python -m app.chat_web`: the command line of nanochat's web server, with its defaults.

Without a flag it serves one request at a time; `--enable-batch-decode` takes the batched path with a batch of
one, `--enable-dynamic-batching` lets requests share it.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from app.__main__ import ACTIONS, launch
from app.settings.config import Config
from app.settings.options import CommandLine, option, switch
from app.settings.sections import Batching, Server


def _one(value: str) -> int:
    if value != "1":
        raise ValueError("one server drives one device; start a server for each")
    return 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Nanochat:
    """What nanochat's script has and this server has no choice in."""

    num_gpus: int = option(1, _one, "copies of the model; this server has one", "-n")
    reuse_ids_buffer: bool | None = switch(
        None, "reuse the buffer of token ids; it is never allocated per step here", shown="always"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatWebConfig(Config):
    nanochat: Nanochat = field(default_factory=Nanochat)


def command_line() -> CommandLine[Config]:
    base = ChatWebConfig(
        batching=Batching(
            enable_batch_decode=False, enable_dynamic_batching=False, batch_size=4, batch_timeout_ms=10.0
        ),
        server=Server(host="0.0.0.0"),
    )
    return CommandLine(
        "python -m app.chat_web", "Serves a nanochat model, with nanochat's own flags.", base, ACTIONS
    )


def main(argv: Sequence[str] | None = None) -> int:
    """As `app.__main__.main`."""
    return launch(command_line(), sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
