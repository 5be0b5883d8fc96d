"""How many processor cores this process has to itself."""

import math
import os
from pathlib import Path

SYSTEM = Path("/sys/devices/system/cpu")
PROCESS = Path("/proc/self/cgroup")
GROUPS = Path("/sys/fs/cgroup")


def free_cores() -> int:
    """Cores of the processors that this process may run on, two threads of one core counting once, and no
    more than the quota of its control group, nor than OMP_NUM_THREADS, by which people limit all programs of
    this kind. At least 1.

    Two hyper-threads of a core share the units that a product keeps busy, and a team that shares a core waits
    for its slower half at every barrier.
    """
    if hasattr(os, "sched_getaffinity"):
        allowed = os.sched_getaffinity(0)
    else:
        allowed = set(range(os.cpu_count() or 1))
    count = cores_of(allowed, SYSTEM)
    quota = quota_of(PROCESS, GROUPS)
    limit = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    most = [math.floor(quota)] if quota is not None else []
    return max(1, min([count, *most, *([int(limit)] if limit.isdecimal() else [])]))


def cores_of(processors: set[int], system: Path) -> int:
    """Cores behind these processors, by the `topology` that the system describes; without one, each is a
    core.
    """
    cores: set[str] = set()
    for processor in processors:
        try:
            siblings = (system / f"cpu{processor}" / "topology" / "thread_siblings_list").read_text().strip()
        except OSError:
            siblings = str(processor)
        cores.add(siblings or str(processor))
    return len(cores)


def quota_of(process: Path, groups: Path) -> float | None:
    """Processors' worth of time that the process's control groups, of version 2 or 1, allow; None for no
    limit.
    """
    try:
        lines = process.read_text().splitlines()
    except OSError:
        return None
    found: list[float] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        # Inside a container its own group may be mounted as the root.
        if controllers == "":
            parts = [part for part in path.split("/") if part not in ("", "..")]
            for depth in range(len(parts) + 1):
                found += _limit(groups.joinpath(*parts[:depth]) / "cpu.max")
        elif "cpu" in controllers.split(","):
            for folder in (groups / "cpu" / path.lstrip("/"), groups / "cpu"):
                found += _limit_v1(folder)
    return min(found, default=None)


def _limit(file: Path) -> list[float]:
    try:
        most, period = file.read_text().split()
        return [] if most == "max" else [int(most) / int(period)]
    except (OSError, ValueError, ZeroDivisionError):
        return []


def _limit_v1(folder: Path) -> list[float]:
    try:
        most, period = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        return [most / period] if most > 0 else []
    except (OSError, ValueError, ZeroDivisionError):
        return []
