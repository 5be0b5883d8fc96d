"""The real server over the engine of faulty_worker.py: `serve_faulty.py [--wild-clock] [--no-names] [flags]`.

`--wild-clock`: the wall clock jumps a day to and fro. `--no-names`: no name can be looked up.
"""

import itertools
import socket
import sys
import time
from pathlib import Path

import app.processes.supervisor

DAY = 86_400.0
WILD_CLOCK, NO_NAMES = "--wild-clock", "--no-names"


def make_clock_wild() -> None:
    """Monotonic clocks go on; the date is now that of yesterday, now that of tomorrow."""
    real, real_ns = time.time, time.time_ns
    jumps = itertools.cycle((0.0, DAY, -DAY, 365 * DAY, -365 * DAY))
    time.time = lambda: real() + next(jumps)
    time.time_ns = lambda: real_ns() + int(next(jumps) * 1e9)


def forbid_names() -> None:
    real = socket.getaddrinfo

    def lookup(host: object, *rest: object, **named: object) -> object:
        if isinstance(host, str) and not host.replace(".", "").replace(":", "").isdigit():
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return real(host, *rest, **named)  # type: ignore[arg-type]

    socket.getaddrinfo = lookup  # type: ignore[assignment]
    socket.gethostbyname = lookup  # type: ignore[assignment]
    socket.getfqdn = lookup  # type: ignore[assignment]


def main() -> int:
    arguments = sys.argv[1:]
    if WILD_CLOCK in arguments:
        arguments.remove(WILD_CLOCK)
        make_clock_wild()
    if NO_NAMES in arguments:
        arguments.remove(NO_NAMES)
        forbid_names()
    from app.__main__ import launch

    worker = str(Path(__file__).with_name("faulty_worker.py"))
    command = (sys.executable, "-P", worker)
    init = app.processes.supervisor.ProcessEngine.__init__

    def init_faulty(self: app.processes.supervisor.ProcessEngine, config: object, **named: object) -> None:
        init(self, config, **{**named, "command": command})  # type: ignore[arg-type]

    app.processes.supervisor.ProcessEngine.__init__ = init_faulty  # type: ignore[method-assign]
    from app.__main__ import command_line

    return launch(command_line(), arguments)


if __name__ == "__main__":
    sys.exit(main())
