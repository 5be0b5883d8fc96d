"""`python -m engine.precheck JSON`: whether the flags that were asked for can be had here, before a server
takes its port.

JSON: an object with "profile", "flags", "device" and "dtype", as on the command line. Exit code 2 with one
line on standard error that names the flag where it cannot. What only the model can tell is said when it is
loaded.
"""

import json
import sys

import torch

from engine.fastpath import refuse
from engine.flags import resolve
from engine.hooks import KernelHooks


def main() -> int:
    asked = json.loads(sys.argv[1])
    device = asked["device"]
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.float32 if asked["dtype"] == "float32" else torch.bfloat16
    flags = resolve(None, asked["profile"], asked["flags"])
    try:
        refuse(flags, device.partition(":")[0], dtype)
        KernelHooks.of(flags.values)
    except Exception as error:  # a module of the user's may raise anything while it is imported
        own = isinstance(error, ValueError | ImportError | AttributeError | TypeError)
        kind = "" if own else f"{type(error).__name__}: "
        print(f"{kind}{error}".replace("\n", " "), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
