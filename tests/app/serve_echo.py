"""Runs the real server over the stand-in engine: `serve_echo.py [worker flags] -- [flags]`."""

import sys
from pathlib import Path

from app.__main__ import command_line
from app.processes.serve import run
from app.processes.supervisor import Patience, ProcessEngine
from app.settings.config import Config
from app.telemetry.logs import set_up_logging

ECHO = Path(__file__).with_name("echo_worker.py")


def main() -> int:
    split = sys.argv.index("--")
    worker_flags, flags = sys.argv[1:split], sys.argv[split + 1 :]
    config, _ = command_line().parse(flags, {})
    set_up_logging(config.server.log_level, config.server.log_format)

    def make_engine(config: Config) -> ProcessEngine:
        command = [sys.executable, str(ECHO), *worker_flags]
        hang, step = config.server.engine_hang_timeout, config.server.step_timeout
        patience = Patience(hang=hang, step=step, backoff=(0.0, 0.0, 0.0))
        return ProcessEngine(config.engine_config(), command=command, patience=patience)

    return run(config, make_engine)


if __name__ == "__main__":
    sys.exit(main())
