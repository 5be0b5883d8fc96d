"""What a measurement ran on, and where it is kept."""

import datetime
import json
import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, object]:
    """Processor, cores, versions and date; a GPU's name where torch sees one."""
    import torch

    info: dict[str, object] = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": _version("transformers"),
        "numba": _version("numba"),
    }
    if torch.cuda.is_available():
        info["gpu"] = torch.cuda.get_device_name()
        info["cuda"] = torch.version.cuda
        info["triton"] = _version("triton")
        info["driver"] = _driver()
    return info


def device_name(device: str) -> str:
    """Of the processor or GPU that "cpu" or "cuda" names here."""
    about = machine()
    return str(about["gpu"] if device.startswith("cuda") else about["cpu"])


def save(
    name: str,
    rows: Sequence[object],
    settings: dict[str, object],
    folder: Path = RESULTS,
    out: Path | None = None,
) -> Path:
    """Writes results/<name>-<date>.json, or `out`, and returns its path."""
    about = machine()
    path = out or folder / f"{name}-{about['date']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = {"machine": about, "settings": settings, "rows": rows}
    path.write_text(json.dumps(kept, indent=1, default=str) + "\n")
    return path


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Aligned columns, numbers to the right."""
    cells = [list(header), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    )


def _cell(value: object) -> str:
    return f"{value:,.2f}" if isinstance(value, float) else str(value)


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _driver() -> str | None:
    try:
        return Path("/sys/module/nvidia/version").read_text().strip()
    except OSError:
        return None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
