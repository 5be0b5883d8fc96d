"""Where measurements of whole steps are kept from one start to the next."""

import hashlib
import re
from pathlib import Path

import torch

import kernels
from kernels.caps import DeviceCaps
from kernels.nvrtc import CompileError, cache_folder, load_nvrtc


def step_file(kind: str, device: torch.device) -> Path:
    """Of a kind of measurements, for this kind of device, its driver, torch, the compiler, and all sources of
    kernels and of what chooses between them.
    """
    caps = DeviceCaps.of(device)
    try:
        nvrtc = load_nvrtc().version
    except CompileError:
        nvrtc = "none"
    folder, here = Path(kernels.__file__).parent, Path(__file__).parent
    sources = sorted(path for path in folder.rglob("*") if path.suffix in (".py", ".cu", ".cuh", ".h"))
    sources += [
        here / name for name in ("network.py", "path_choice.py", "path_trial.py", "product_choice.py")
    ]
    text = "\0".join(path.read_text() for path in sources)
    versions = [caps.name, caps.driver or "", torch.__version__, nvrtc]
    name = re.sub(r"[^\w.]+", "-", "-".join(versions))
    return cache_folder() / f"{kind}-{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
