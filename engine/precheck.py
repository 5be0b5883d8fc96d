"""`python -m engine.precheck JSON FILE`: whether the flags that were asked for can be had here, before a
server takes its port.

JSON: an object with "profile", "flags", "device", "dtype", "kv_dtype" and "decode_path", as on the command
line. FILE gets one line that names the flag where it cannot, and stays empty where it can. What only the
model can tell, its own flags included, is said when it is loaded.
"""

import json
import os
import sys
from pathlib import Path

import torch

from engine.fastpath import refuse, refuse_path, resident_path
from engine.flags import resolve
from engine.hooks import KernelHooks
from engine.kv8 import kv_format


def verdict(asked: dict[str, object]) -> str:
    """Why not, or nothing."""
    device, flags = str(asked["device"]), asked["flags"]
    assert isinstance(flags, dict)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = device.partition(":")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        return f"--device {device}: torch {torch.__version__} sees no such device here"
    dtype = torch.float32 if asked["dtype"] == "float32" else torch.bfloat16
    # As a hint this flag goes to a kernel that the model's own flags may ask for.
    ours = {name: value for name, value in flags.items() if name != "use_cta_clustering" or kind == "cuda"}
    profile = "seed" if asked["profile"] == "seed" else "fast"
    try:
        resolved = resolve(None, profile, ours)  # type: ignore[arg-type]
        refuse(resolved, kind, dtype)
        if asked.get("kv_dtype") == "fp8":
            kv_format("fp8", dtype, torch.device(device), resolved.hooked(kind))
        path = resident_path(resolved, kind, asked.get("decode_path", "auto"))  # type: ignore[arg-type]
        if path not in ("auto", "graph"):
            refuse_path(path, resolved, kind)
        KernelHooks.of(resolved.values)
    except (Exception, SystemExit) as error:  # a module of the user's may raise anything while it is imported
        own = isinstance(error, ValueError | ImportError | AttributeError | TypeError)
        return " ".join(f"{'' if own else type(error).__name__ + ': '}{error}".split())
    return ""


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(verdict(json.loads(sys.argv[1])), encoding="utf-8")
    os._exit(0)  # whatever threads such a module has left behind
