"""Compiles the step for this processor ahead of its first use: `python -m kernels.cpu`.

`python -m kernels.cpu compile` is the process that does it, for as long as its standard input is open.
"""

import os
import sys
import threading

from kernels.cpu.isa import NoVectors, host


def main() -> None:
    try:
        name = host().name
        from kernels.cpu.entry import NotPreparedError, prepared
    except (NoVectors, ImportError) as error:
        print(f"no compiled step here, torch serves instead: {error}")
        return
    try:
        _, seconds = prepared()
    except NotPreparedError as error:
        print(f"no compiled step here, torch serves instead: {error}")
        return
    print(f"the compiled step ({name}) is ready, after {seconds:.1f} s")


def compile_for_parent() -> None:
    from kernels.cpu.entry import compile_here

    def watch() -> None:
        os.read(0, 1)  # not sys.stdin, whose lock a thread may not hold when the interpreter ends
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    compile_here()


if __name__ == "__main__":
    if sys.argv[1:] == ["compile"]:
        compile_for_parent()
    else:
        main()
