"""The file in which kernels.probe keeps what it has measured."""

import contextlib
import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch

from kernels import quantize
from kernels.nvrtc import cache_folder, write_atomically
from kernels.product import CUBLAS, Family, Pick, Product

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Choice:
    """A measurement's result. variant: None for cuBLAS. times: microseconds of a product by what served it,
    of a family its fastest kernel's, in the order in which they are shown. near: others that were not much
    slower by themselves, the fastest first."""

    variant: Pick | None
    times: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""
    near: tuple[Pick | None, ...] = ()

    def row(self, name: str, rows: int) -> tuple[str, str, str]:
        """For the start-up table: what, which, why."""
        measured = ", ".join(f"{served} {us:.1f} us" for served, us in self.times.items())
        why = "; ".join(part for part in (measured, self.reason) if part)
        return f"linear {name} M={rows}", str(self.variant or CUBLAS), why


def cache_file(device: torch.device, families: Sequence[Family]) -> Path:
    """Where choices for this kind of device, torch and kernels are kept."""
    name = re.sub(r"\W+", "-", torch.cuda.get_device_name(device))
    kinds = Path(quantize.__file__)
    library = [kinds, kinds.parent / "triton" / "dequantize.py"]
    text = "".join([*(family.code() for family in families), *(file.read_text() for file in library)])
    kernel = hashlib.sha256(text.encode()).hexdigest()[:16]
    return cache_folder() / f"linear-{name}-{torch.__version__}-{kernel}.json"


def cache_key(product: Product, rows: int, pdl: bool) -> str:
    return f"{product} M={rows}{' pdl' if pdl else ''}"


def read_cache(path: Path, families: Sequence[Family]) -> dict[str, Choice]:
    """Choices by key; an entry with another family's kernel is none."""
    by_name = {family.name: family for family in families}
    return read_entries(path, lambda entry: _decode(entry, by_name))


def read_entries(path: Path, decode: Callable[[Mapping[str, object]], T]) -> dict[str, T]:
    """What `decode` makes of a file's entries, by key. A file that is missing or damaged knows nothing, nor
    does an entry of which decode says KeyError, TypeError or ValueError."""
    found: dict[str, T] = {}
    try:
        entries: Mapping[str, Mapping[str, object]] = json.loads(path.read_text())
        items = list(entries.items())
    except (OSError, ValueError, AttributeError):
        return {}
    for key, entry in items:
        with contextlib.suppress(ValueError, TypeError, AttributeError, KeyError):
            found[key] = decode(entry)
    return found


def _decode(entry: Mapping[str, object], families: Mapping[str, Family]) -> Choice:
    times, near = entry["times"], entry["near"]
    if not isinstance(times, dict) or not isinstance(near, list):
        raise TypeError("times are an object, and near is a list")
    measured = {str(served): float(us) for served, us in times.items()}
    others = tuple(decode_pick(other, families) for other in near)
    return Choice(decode_pick(entry["pick"], families), measured, near=others)


def decode_pick(entry: object, families: Mapping[str, Family]) -> Pick | None:
    """From `encode_pick`. TypeError, KeyError, ValueError: an entry of another form, or of no family here."""
    if entry is None:
        return None
    if not isinstance(entry, dict):
        raise TypeError("a kernel is an object")
    name, fields = entry["family"], entry["config"]
    if not isinstance(name, str) or not isinstance(fields, dict):
        raise TypeError("a family has a name, and a configuration is an object")
    return Pick(name, families[name].config(fields))


def encode_pick(pick: Pick | None) -> dict[str, object] | None:
    return None if pick is None else {"family": pick.family, "config": dataclasses.asdict(pick.config)}


def write_cache(path: Path, choices: Mapping[str, Choice]) -> None:
    """Failures that may be gone the next time are not kept."""
    entries = {key: _encode(choice) for key, choice in choices.items() if not choice.reason}
    write_atomically(path, (json.dumps(entries, indent=1) + "\n").encode())


def _encode(choice: Choice) -> dict[str, object]:
    return {
        "pick": encode_pick(choice.variant),
        "times": dict(choice.times),
        "near": [encode_pick(pick) for pick in choice.near],
    }
