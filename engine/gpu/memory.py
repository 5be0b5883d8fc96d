"""Who gets the GPU's memory: weights, activations and graphs are measured, keys and values get the rest."""

from dataclasses import dataclass

import torch

MEMORY_SHARE = 0.92  # of the device, for everything
RESERVE = 256 << 20  # for what libraries allocate later
GRAPH_MARGIN = 1.1


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    """Bytes on the device. other: what was taken before the model was loaded, by whoever."""

    total: int
    other: int
    weights: int
    activations: int
    graphs: int
    reserve: int
    kv: int

    def parts(self) -> dict[str, int]:
        return {
            "total": self.total,
            "other": self.other,
            "weights": self.weights,
            "activations": self.activations,
            "graphs": self.graphs,
            "reserve": self.reserve,
            "kv": self.kv,
        }


def used(device: torch.device) -> int:
    """Bytes of the device that are taken, by this process or others; what torch keeps for itself is given
    back.
    """
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    return total - free


def check_room(device: torch.device, needed: int) -> None:
    """Raises MemoryError where fewer than `needed` bytes of the device are free, the reserve left aside."""
    _, total = torch.cuda.mem_get_info(device)
    free = total - used(device) - RESERVE
    if needed > free:
        raise MemoryError(f"{needed / 2**30:.2f} GiB more are needed, and {free / 2**30:.2f} are free")


def kv_bytes(device: torch.device, share: float, spent: int) -> int:
    """What is left for keys and values when `spent` bytes are taken. Raises ValueError when nothing is."""
    _, total = torch.cuda.mem_get_info(device)
    left = int(total * share) - spent - RESERVE
    if left <= 0:
        raise ValueError(
            f"the GPU has {total / 2**30:.1f} GiB, of which {spent / 2**30:.1f} are taken before any keys "
            f"and values: nothing of the share of {share:g} is left for them"
        )
    return left
