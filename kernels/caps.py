"""What the machine can do: the facts that implementations are chosen by."""

import importlib.util
import sys
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import torch

# Modules that a kernel may come from, and the distributions that bring them.
OPTIONAL: dict[str, tuple[str, ...]] = {
    "triton": ("triton",),
    "flash_attn_interface": ("flash-attn-3", "flash_attn_3"),
    "flash_attn_3.flash_attn_interface": ("flash-attn-3", "flash_attn_3"),
    "vllm.vllm_flash_attn": ("vllm",),
    "flash_attn.cute": ("flash-attn-4",),
    "flash_attn": ("flash-attn",),
    "transformer_engine": ("transformer-engine",),
}
FlashName = Literal["fa2", "fa3", "fa4"]
# Where each FlashAttention is looked for, in this order.
FLASH_MODULES: dict[FlashName, tuple[str, ...]] = {
    "fa3": ("flash_attn_interface", "flash_attn_3.flash_attn_interface", "vllm.vllm_flash_attn"),
    "fa4": ("flash_attn.cute",),
    "fa2": ("flash_attn",),
}


@dataclass(frozen=True, slots=True)
class DeviceCaps:
    """compute: the compute capability; None without a CUDA device, and then the sizes are 0. packages: the
    optional modules found, with their versions. nvrtc: CUDA's run-time compiler can be loaded."""

    name: str
    compute: tuple[int, int] | None
    torch_version: str
    triton_version: str | None
    cuda_version: str | None = None
    driver: str | None = None
    nvrtc: bool = False
    multiprocessors: int = 0
    l2_bytes: int = 0
    memory_bytes: int = 0
    packages: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, device: torch.device | str | None = None) -> "DeviceCaps":
        """Of a device; without one, of the CUDA device in use or else of the CPU."""
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        device = torch.device(device)
        packages = found_packages()
        if device.type != "cuda":
            return cls("cpu", None, torch.__version__, packages.get("triton"), packages=packages)
        about = torch.cuda.get_device_properties(device)
        return cls(
            name=about.name,
            compute=(about.major, about.minor),
            torch_version=torch.__version__,
            triton_version=packages.get("triton"),
            cuda_version=torch.version.cuda,
            driver=_driver(),
            nvrtc=_has_nvrtc(),
            multiprocessors=about.multi_processor_count,
            l2_bytes=about.L2_cache_size,
            memory_bytes=about.total_memory,
            packages=packages,
        )


def found_packages() -> dict[str, str]:
    """The optional modules that are there, without importing them, and their versions."""
    return {name: package_version(name) or "unknown" for name in OPTIONAL if _exists(name)}


def package_version(module: str) -> str | None:
    for distribution in OPTIONAL.get(module, (module,)):
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    loaded = getattr(sys.modules.get(module), "__version__", None)
    return str(loaded) if loaded is not None else None


def _exists(name: str) -> bool:
    """Whether a module can be found. Its parents are not run: some change the process when they are."""
    if name in sys.modules:
        return sys.modules[name] is not None
    parent, *rest = name.split(".")
    try:
        spec = importlib.util.find_spec(parent)
    except (ImportError, ValueError):
        return False
    if spec is None or not rest:
        return spec is not None
    folders = [Path(place, *rest) for place in spec.submodule_search_locations or ()]
    return any(folder.is_dir() or folder.with_suffix(".py").is_file() for folder in folders)


def _driver() -> str | None:
    """The driver's own version, as Linux tells it."""
    try:
        words = Path("/proc/driver/nvidia/version").read_text().split()
    except OSError:
        return None
    return next((word for word in words if word.count(".") >= 1 and word.replace(".", "").isdigit()), None)


def _has_nvrtc() -> bool:
    from kernels.nvrtc import load_nvrtc

    try:
        load_nvrtc()
    except Exception:  # whatever the loader says, the products then go through cuBLAS
        return False
    return True
