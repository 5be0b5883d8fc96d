"""`python -m app`: the command line of the server."""

import logging
import os
import subprocess
import sys
from collections.abc import Sequence

from app.checks import check, check_device
from app.processes.stdio import hold_standard_files
from app.settings.config import Config
from app.settings.http import package_version
from app.settings.options import Action, CommandLine, UsageError, to_toml

log = logging.getLogger("fastpath")

EXIT_OK = 0
EXIT_FAULT = 1
EXIT_USAGE = 2

# Subcommands that need torch, and the modules that do them; a folder of such a name is given as ./kernels.
TORCH_COMMANDS = {"kernels": "kernels", "convert": "engine.convert"}
COMMANDS = """
commands, as the first argument:
  chat                  talk to a model in the terminal (chat --help)
  check                 say what would be served, and what is wrong with it
  convert               turn a checkpoint into files that cannot run code
  kernels               which kernels this machine uses, and why
"""

ACTIONS = (
    Action("help", "show this and end"),
    Action("version", "print the version and end"),
    Action("print-config", "print the settings in force as TOML and end"),
    Action("dry-run", "load the model, print what would be served, and end"),
)


def command_line() -> CommandLine[Config]:
    about = "Serves a language model over HTTP, with a chat page."
    return CommandLine("python -m app", about, Config(), ACTIONS)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the server; returns the exit code: 0 clean, 1 fault, 2 usage, 3 model, 98 port in use.

    As the first argument, `chat` talks to a model in the terminal, `check` looks without serving, `kernels`
    reports which kernels this machine's device uses and why, `convert` turns a checkpoint into safetensors
    and JSON.
    """
    hold_standard_files()
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["chat"]:
        from app.chat.main import main as chat

        return chat(arguments[1:])
    if arguments[:1] == ["check"]:
        from app.survey import main as survey

        return survey(arguments[1:])
    if arguments and arguments[0] in TORCH_COMMANDS:
        return run_apart(TORCH_COMMANDS[arguments[0]], arguments[1:])
    return launch(command_line(), arguments)


def run_apart(module: str, arguments: Sequence[str]) -> int:
    """`python -m MODULE` in a process of its own: it needs torch, which this one never imports."""
    from app.processes.child import environment

    command = [sys.executable, "-P", "-m", module, *arguments]
    return subprocess.run(command, env=environment(), check=False).returncode


def launch(line: CommandLine[Config], argv: Sequence[str]) -> int:
    """What `line` says about `argv`, done."""
    try:
        return _launch(line, argv)
    except UsageError as error:
        print(f"{line.prog}: {error}", file=sys.stderr)
        print(f"See {line.prog} --help", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        return EXIT_OK
    except BrokenPipeError:
        return EXIT_FAULT
    finally:
        _let_go_of_output()


def _launch(line: CommandLine[Config], argv: Sequence[str]) -> int:
    config, actions = line.parse(argv, os.environ)
    if "help" in actions:
        print(line.help(), end="")
        if line.prog == "python -m app":
            print(COMMANDS, end="")
        return EXIT_OK
    if "version" in actions:
        print(f"fastpath {package_version()}")
        return EXIT_OK
    check(config)
    if "print-config" in actions:
        print(to_toml(config, masked=True), end="")
        return EXIT_OK
    check_device(config)

    # Only now: the web libraries take a third of a second to import.
    from app.processes.serve import dry_run, run
    from app.telemetry.logs import set_up_logging

    set_up_logging(config.server.log_level, config.server.log_format)
    for name in line.secrets(argv):
        log.warning("%s: everybody on this machine can read it; use a file, or the environment", name)
    return dry_run(config) if "dry-run" in actions else run(config)


def _let_go_of_output() -> None:
    """Flushes; where nobody reads any more, the interpreter's own flush at exit is kept from complaining."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


if __name__ == "__main__":
    sys.exit(main())
