"""The command `chat`: who answers, once or in turns."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence

from app.chat.client import ChatFailed, Client
from app.chat.conversation import Conversation
from app.chat.own import NoServer, own_server
from app.chat.settings import ChatConfig, command_line, refuse
from app.chat.terminal import Terminal, told, visible
from app.processes.console import EXIT_FAULT, EXIT_OK, EXIT_USAGE
from app.settings.access import read_keys
from app.settings.options import UsageError

EXIT_INTERRUPTED = 130


def main(argv: Sequence[str]) -> int:
    """Chats; returns the exit code: 0 clean, 1 no answer, 2 usage, that of a server that did not start, 130
    for an only answer that was stopped.
    """
    line = command_line()
    try:
        config, actions = line.parse(argv, os.environ)
        if "help" in actions:
            print(line.help(), end="")
            return EXIT_OK
        refuse(line, argv, config)
        for name in line.secrets(argv):
            warning = f"{name}: everybody on this machine can read it; use a file, or APP_API_KEY"
            print(warning, file=sys.stderr)
        once = _once(config)
        with _server(config) as url:
            client = Client(url, _key(config))
            return _chat(client, config) if once is None else _answer(client, config, once)
    except UsageError as error:
        print(f"{line.prog}: {error}\nSee {line.prog} --help", file=sys.stderr)
        return EXIT_USAGE
    except (ChatFailed, NoServer) as error:
        print(f"{line.prog}: {error}", file=sys.stderr)
        return error.code if isinstance(error, NoServer) else EXIT_FAULT
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAULT


def _once(config: ChatConfig) -> str | None:
    """The only question, if there is no conversation."""
    if config.chat.prompt is not None:
        return config.chat.prompt
    if sys.stdin.isatty():
        return None
    question = sys.stdin.read().strip()
    if not question:
        raise UsageError("standard input is no terminal and holds no question; give one with --prompt")
    return question


@contextlib.contextmanager
def _server(config: ChatConfig) -> Iterator[str]:
    if config.chat.url is not None:
        yield config.chat.url
        return
    if sys.stderr.isatty():
        print("Starting a server ...", file=sys.stderr, flush=True)
    with own_server(config.own_server()) as url:
        yield url


def _key(config: ChatConfig) -> str:
    """The key for the server: the first of the file, else of the environment; "" for none.

    Raises UsageError.
    """
    path = config.chat.api_key_file
    keys = config.access.api_key if path is None else read_keys(path)
    return keys[0] if keys else ""


def _answer(client: Client, config: ChatConfig, question: str) -> int:
    """Answers once: the text alone on standard output, what it took on a terminal's error output."""
    card = client.card()
    conversation = Conversation(config.chat.system)
    conversation.add("user", question)
    fields = {"model": card.name, **card.sampling, **config.sampling()}
    shown: Callable[[str], str] = visible if sys.stdout.isatty() else str
    stream = client.ask(conversation.sent(), fields)
    try:
        for piece in stream:
            sys.stdout.write(shown(piece))
            sys.stdout.flush()
    finally:
        stream.close()
    print(flush=True)
    if sys.stderr.isatty():
        print(told(stream.measured), file=sys.stderr)
    return EXIT_OK


def _chat(client: Client, config: ChatConfig) -> int:
    pending: Callable[[], str] = str
    terminal = Terminal(
        client,
        client.card(),
        Conversation(config.chat.system),
        config.sampling(),
        sys.stdout,
        input,
        lambda: pending(),
    )
    try:
        import readline
    except ImportError:  # plain lines then
        pass
    else:
        pending = readline.get_line_buffer
        readline.set_completer_delims(" ")
        readline.set_completer(_completer(terminal.commands))
        readline.parse_and_bind("tab: complete")
    terminal.run()
    return EXIT_OK


def _completer(words: Sequence[str]) -> Callable[[str, int], str | None]:
    def complete(begun: str, at: int) -> str | None:
        fitting = [word for word in words if begun and word.startswith(begun)]
        return fitting[at] if at < len(fitting) else None

    return complete
