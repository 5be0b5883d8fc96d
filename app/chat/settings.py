"""The settings of the terminal client, beside those of the server that it may start."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from urllib.parse import urlsplit

from app.settings.config import Config
from app.settings.options import Action, CommandLine, UsageError, option, text, to_toml
from app.settings.sections import Server

# What only matters to others than the client itself: its own server has these as it needs them.
_OWN = frozenset({"host", "port", "ui", "docs", "api_workers", "log_level", "log_format", "access_log"})
_OTHERS = frozenset(
    {
        *("api_key", "api_key_file", "allowed_hosts", "allowed_origins", "uds", "root_path"),
        *("ssl_certfile", "ssl_keyfile", "metrics_port", "otlp_endpoint", "log_content"),
    }
)
# What a running server is asked for with each request, and what it needs to know whom it answers.
_ASKED = ("temperature", "top_k", "max_tokens", "seed")
_SHOWN = "api_key"

ACTIONS = (Action("help", "show this and end"),)


def _url(value: str) -> str:
    try:
        parts = urlsplit(value)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        sound = False
    if not sound or parts.query or parts.fragment or parts.username:
        raise ValueError(f"{value!r} is no address of the form http://HOST:PORT")
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """Whom to talk to, and how to begin. Without --url a server of its own is started and ended."""

    url: str | None = option(
        None,
        _url,
        "a running server, such as http://127.0.0.1:8000",
        metavar="URL",
        shown="a server of its own",
    )
    api_key_file: str | None = option(
        None,
        text,
        "file whose first line that is no comment is the server's key; or APP_API_KEY",
        metavar="FILE",
        shown="none",
    )
    system: str | None = option(None, text, "system message", metavar="TEXT", shown="none")
    prompt: str | None = option(
        None,
        text,
        "answer this once and end; so does a standard input that is no terminal",
        "-p",
        metavar="TEXT",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatConfig(Config):
    chat: Chat = field(default_factory=Chat)

    def sampling(self) -> dict[str, object]:
        """The fields of a request that settings decide."""
        given = {name: getattr(self.requests, name) for name in _ASKED}
        return {name: value for name, value in given.items() if value is not None}

    def own_server(self) -> str:
        """The settings of a server for this client alone, as TOML."""
        quiet = replace(
            self.server,
            host="127.0.0.1",
            port=0,
            ui=False,
            docs=False,
            api_workers=1,
            log_level="error",
            log_format="json",
            access_log=False,
        )
        sections = {part.name: getattr(self, part.name) for part in fields(Config)}
        return to_toml(Config(**sections | {"server": quiet}), without=_OTHERS)


def command_line() -> CommandLine[ChatConfig]:
    about = (
        "Talks to a model in the terminal: to a running server with --url, else to one of its own, "
        "which takes the settings below."
    )
    return CommandLine("python -m app chat", about, ChatConfig(server=Server()), ACTIONS, lead="chat")


def refuse(line: CommandLine[ChatConfig], argv: Sequence[str], config: ChatConfig) -> None:
    """Raises UsageError for flags on the command line that would have no effect."""
    typed = line.typed(argv)
    chat = {part.name for part in fields(Chat)}
    if config.chat.url is not None:
        chat.add(_SHOWN)
        for name in sorted(typed - chat - set(_ASKED)):
            raise UsageError(f"{_flag(name)} is for a server that is started here; leave it out, or --url")
    for name in sorted(typed & (_OWN | _OTHERS) - chat):
        raise UsageError(
            f"{_flag(name)}: the server of a chat is for the chat alone; use python -m app and --url"
        )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
