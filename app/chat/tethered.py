"""`python -m app.chat.tethered [settings]`: a server that ends when its standard input does.

That is when the program that started it has ended, however that came.
"""

import os
import signal
import sys
import threading

from app.__main__ import command_line, launch


def _end_with_input() -> None:
    try:
        while os.read(0, 1 << 12):
            pass
    finally:
        os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=_end_with_input, daemon=True).start()
    sys.exit(launch(command_line(), sys.argv[1:]))
