"""`python -m app check`: what would be served with these settings, and what is wrong with them.

No port stays taken and no weight is read, unless --load asks for it. The exit code is the one that the server
would end with: 0 where it would serve, 2 for settings and devices, 3 for the model, 98 for a port in use.
"""

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from app.checks import check
from app.processes.child import environment
from app.processes.console import EXIT_FAULT, EXIT_MODEL, EXIT_OK, EXIT_PORT, EXIT_USAGE, summary
from app.settings.config import Config
from app.settings.fastpath import spelled
from app.settings.options import Action, CommandLine, Entry, UsageError, table
from engine.messages.finding import Finding

_LOOPBACK = ("localhost", "::1")
SURVEY_SECONDS = 600  # a model of the hub is fetched within it
ACTIONS = (
    Action("help", "show this and end"),
    Action("json", "say it as one JSON object"),
    Action("load", "load the model, too, and say what the engine makes of it"),
)


def command_line() -> CommandLine[Config]:
    about = "Says what would be served with these settings, and what is wrong with them; serves nothing."
    return CommandLine("python -m app check", about, Config(), ACTIONS)


def main(argv: Sequence[str]) -> int:
    """Looks, tells, and returns the exit code."""
    line = command_line()
    as_json = "--json" in argv
    try:
        config, actions = line.parse(argv, os.environ)
    except UsageError as error:
        return _tell([_of_usage("settings", error)], as_json)
    if "help" in actions:
        print(line.help(), end="")
        return EXIT_OK
    findings = survey(config)
    if "load" in actions and not any(finding.code for finding in findings):
        findings.append(_load(config))
    return _tell(findings, as_json)


def survey(config: Config) -> list[Finding]:
    """In the order in which a server would come upon them."""
    try:
        check(config)
        findings = [Finding("settings", "ok", "consistent")]
    except UsageError as error:
        return [_of_usage("settings", error)]
    for entry in table(config):
        if entry.flag.metavar == "FILE" and isinstance(entry.default, str):
            findings.append(_file(entry, Path(entry.default).expanduser()))
    engine = _engine(config)
    # The engine's process looks at devices and models at once; a server takes its port between the two.
    early = [finding for finding in engine if finding.what in ("device", "fast paths")]
    findings += [_access(config), *early, *_addresses(config)]
    return [*findings, *(finding for finding in engine if finding not in early)]


def _of_usage(what: str, error: UsageError) -> Finding:
    """A refusal; its first words name the flag."""
    words = re.split(r"[\s:;,]+", str(error))
    flag = next((word for word in words if word.startswith("--")), "")
    return Finding(what, "wrong", str(error), flag, EXIT_USAGE)


def _file(entry: Entry, path: Path) -> Finding:
    """Whether a file that a flag names can be read, or, for a trace, written."""
    flag = entry.on_strings[0]
    if entry.field == "trace":
        parent = path.parent
        if path.is_dir() or not os.access(path if path.exists() else parent, os.W_OK):
            return Finding("files", "wrong", f"{path} cannot be written", flag, EXIT_USAGE)
        return Finding("files", "ok", f"{flag}: {path} can be written")
    if not path.is_file() or not os.access(path, os.R_OK):
        return Finding("files", "wrong", f"{path} cannot be read", flag, EXIT_USAGE)
    return Finding("files", "ok", f"{flag}: {path} can be read")


def _access(config: Config) -> Finding:
    """Who may ask."""
    keys, host = config.with_keys_read().access.api_key, config.server.host
    if keys:
        return Finding("access", "ok", f"{len(keys)} key{'s' * (len(keys) > 1)}")
    if config.access.uds is not None or host in _LOOPBACK or host.startswith("127."):
        return Finding("access", "ok", "no keys; only this machine reaches the server")
    return Finding("access", "note", f"no keys, and others reach {host}", "--api-key-file")


def _addresses(config: Config) -> list[Finding]:
    """Whether the places to listen at can be had; they are given back at once."""
    from app.processes.serve import listen, listen_at

    server, uds = config.server, config.access.uds
    if uds is not None:

        def at_path() -> socket.socket:
            listener = listen_at(uds)
            Path(uds).unlink()
            return listener

        findings = [_address("port", uds, "--uds", at_path)]
    else:
        where = f"{server.host}:{server.port}" if server.port else f"{server.host}, a free port"
        findings = [_address("port", where, "--port", lambda: listen(server.host, server.port))]
    if (port := server.metrics_port) is not None:
        where = f"{server.host}:{port}" if port else f"{server.host}, a free port"
        findings.append(_address("metrics port", where, "--metrics-port", lambda: listen(server.host, port)))
    return findings


def _address(what: str, where: str, flag: str, listen: Callable[[], socket.socket]) -> Finding:
    from app.processes.serve import PortInUse

    try:
        listen().close()
    except PortInUse:
        return Finding(what, "wrong", f"{where} is in use", flag, EXIT_PORT)
    except UsageError as error:
        return _of_usage(what, error)
    return Finding(what, "ok", where)


def _engine(config: Config) -> list[Finding]:
    """What a process with torch says."""
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder) / "said"
        command = [sys.executable, "-P", "-m", "engine.survey", str(said)]
        asked = msgspec.json.encode(config.engine_config())
        try:
            done = subprocess.run(
                command,
                input=asked,
                env=environment(),
                capture_output=True,
                timeout=SURVEY_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return [
                Finding("model", "wrong", f"no word after {SURVEY_SECONDS} seconds", "--model", EXIT_FAULT)
            ]
        if not said.exists():
            lines = done.stderr.decode(errors="replace").strip().splitlines()
            reason = lines[-1] if lines else f"it ended with exit code {done.returncode}"
            return [Finding("model", "wrong", f"looking at it failed: {reason}", "--model", EXIT_FAULT)]
        findings = msgspec.json.decode(said.read_bytes(), type=list[Finding])
    return [
        msgspec.structs.replace(found, says=spelled(found.says), flag=spelled(found.flag))
        for found in findings
    ]


def _load(config: Config) -> Finding:
    """What the engine says when it has loaded."""
    from app.processes.serve import loaded
    from app.processes.supervisor import EngineFailed

    try:
        model, cache = summary(loaded(config))[:2]
    except EngineFailed as error:
        return Finding("load", "wrong", str(error), "--model", error.exit_code)
    except (ValueError, OSError) as error:
        return Finding("load", "wrong", str(error), "--model", EXIT_MODEL)
    return Finding("load", "ok", f"{model}; {cache}")


def _tell(findings: Sequence[Finding], as_json: bool) -> int:
    """Prints what was found; returns the exit code."""
    code = next((finding.code for finding in findings if finding.code), EXIT_OK)
    if as_json:
        rows = msgspec.to_builtins(findings)
        print(json.dumps({"ok": code == EXIT_OK, "exit_code": code, "findings": rows}, indent=1))
        return code
    marks = {"ok": "ok", "note": "note", "wrong": "WRONG"}
    width = max(len(finding.what) for finding in findings)
    for finding in findings:
        mend = f"  (see {finding.flag})" if finding.state != "ok" and finding.flag not in finding.says else ""
        print(f"{marks[finding.state]:5}  {finding.what:{width}}  {finding.says}{mend}")
    print("This would be served." if code == EXIT_OK else f"This would not be served (exit code {code}).")
    return code
