"""Standard input, output and error, where the process was started without them."""

import os
import sys


def hold_standard_files() -> None:
    """Opens /dev/null for each that is closed: else a socket would get its number, which the event loop does
    not survive, and whatever is printed would go there.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it gets the lowest free number
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115  (for the process's life)
