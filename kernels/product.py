"""A network's products, and the families of kernels that kernels.probe has to choose from.

Whatever differs between the families is behind `Family`; kernels.linear_families lists them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

import torch

from kernels.quantize import Weight, WeightKind
from kernels.skinny import Activation

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Config: TypeAlias = DataclassInstance
else:
    Config = object

CUBLAS = "cuBLAS"  # what serves where no family does


@dataclass(frozen=True, slots=True)
class Product:
    """What is computed: act(norm(x) W^T) for W [n, k], stored or added to what is there. kind: of W; where it
    has eight bits the library's route makes a full one of it first, and not every family serves.
    """

    n: int
    k: int
    norm: bool
    activation: Activation
    accumulate: bool
    kind: WeightKind = "bf16"

    @property
    def columns(self) -> int:
        """Of the result."""
        return self.n // 2 if self.activation == "swiglu" else self.n

    def __str__(self) -> str:
        parts = [
            f"{self.n}x{self.k}",
            "norm" if self.norm else "",
            self.activation,
            "add" if self.accumulate else "",
            self.kind if self.kind != "bf16" else "",
        ]
        return " ".join(part for part in parts if part and part != "none")


@dataclass(frozen=True, slots=True)
class Pick:
    """A family's kernel. config: a frozen dataclass of the family's, how its kernel cuts the product."""

    family: str
    config: Config

    def __str__(self) -> str:
        return f"{self.family} ({self.config})"


# Queues one product through cuBLAS, everything around it included: product, x, weight, out, eps.
Library = Callable[[Product, torch.Tensor, Weight, torch.Tensor, float], None]


class Family(Protocol):
    """A kind of kernels, on one device and with one way to launch them. Configurations that its methods are
    given are its own."""

    @property
    def name(self) -> str:
        """As --linear-backend and the start-up table have it."""
        ...

    def refuses(self, product: Product, dtype: torch.dtype, capability: tuple[int, int]) -> str | None:
        """Why such products cannot be served on such a device, or None. dtype: of x."""
        ...

    def candidates(self, product: Product, rows: int, rivals: Sequence[str]) -> Sequence[Config]:
        """What is worth measuring for a product that is not refused, the most promising first. rivals: names
        of what is measured beside it, cuBLAS included; none where the family has been asked for.
        """
        ...

    def compile(self, wanted: Sequence[tuple[Product, int, Config]]) -> Callable[[], None]:
        """Compiles for products of so many rows on all cores; `prepare` finds the results. May only begin:
        what it returns waits for the end. What cannot be compiled is left to `prepare`. CompileError.
        """
        ...

    def prepare(self, product: Product, rows: range, config: Config) -> None:
        """Makes the kernels for these numbers of rows ready to be captured. CompileError, DriverError."""
        ...

    def run(
        self,
        product: Product,
        x: torch.Tensor,
        weight: Weight,
        out: torch.Tensor,
        eps: float,
        config: Config,
    ) -> None:
        """Queues a product with everything around it. x: [rows, k]. eps: of the norm, where there is one."""
        ...

    def config(self, fields: Mapping[str, object]) -> Config:
        """A configuration from its fields. TypeError: it has others."""
        ...

    def code(self) -> str:
        """Text that changes when a measurement may: sources of the kernels, and of how they are cut."""
        ...
