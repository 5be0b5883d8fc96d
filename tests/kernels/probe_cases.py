"""A clock, and families of kernels that stand for real ones, for tests of the choice between products."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from kernels.nvrtc import CompileError
from kernels.product import Config, Product
from kernels.triton import gemm_config
from kernels.triton.gemm_config import GemmConfig, configs


class Clock:
    """Says how long each candidate takes; counts the measurements."""

    def __init__(self, skinny: Callable[[int], float], cublas: float) -> None:
        self.skinny, self.cublas = skinny, cublas
        self.running = ""
        self.rows = 0
        self.measured = 0

    def __call__(self, body: Callable[[], None]) -> float:
        self.measured += 1
        body()
        return self.cublas if self.running == "cublas" else self.skinny(self.rows)

    def library(
        self, product: Product, x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, eps: float
    ) -> None:
        self.running = "cublas"


class Third:
    """Stands for kernels.triton.gemm and says what was done with it."""

    name = "triton"

    def __init__(self, clock: Clock, broken: str = "") -> None:
        self.clock, self.broken = clock, broken
        self.compiled: list[Config] = []
        self.ready: list[Config] = []

    def refuses(self, product: Product, dtype: torch.dtype, capability: tuple[int, int]) -> str | None:
        p = product
        return gemm_config.unsupported(p.n, p.k, p.activation, p.accumulate, dtype, capability, p.kind)

    def candidates(self, product: Product, rows: int, rivals: Sequence[str]) -> list[GemmConfig]:
        return gemm_config.candidates(rows, product.n, product.k, product.norm, alone=not rivals)

    def run(
        self,
        product: Product,
        x: torch.Tensor,
        weight: object,
        out: torch.Tensor,
        eps: float,
        config: Config,
    ) -> None:
        # The second candidate is the fastest.
        second = configs(x.size(0), product.n, product.k, product.norm)[1] == config
        self.clock.running, self.clock.rows = "skinny", 5 if second else 15

    def prepare(self, product: Product, rows: range, config: Config) -> None:
        if self.broken:
            raise CompileError(self.broken)
        self.ready.append(config)

    def compile(self, wanted: Sequence[tuple[Product, int, Config]]) -> Callable[[], None]:
        self.compiled += [config for _, _, config in wanted]
        return lambda: None

    def config(self, fields: Mapping[str, object]) -> GemmConfig:
        return GemmConfig(**fields)  # type: ignore[arg-type]

    def code(self) -> str:
        return "triton"


@dataclass(frozen=True)
class Slices:
    """How the family below cuts a product."""

    count: int

    def __str__(self) -> str:
        return f"{self.count} slices"


class Fourth:
    """A family that the probe knows nothing of: a kernel for each number of rows, up to forty of them."""

    name = "sliced"

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.compiled: list[int] = []
        self.ready: list[tuple[Product, int]] = []

    def refuses(self, product: Product, dtype: torch.dtype, capability: tuple[int, int]) -> str | None:
        return "does not add" if product.accumulate else None

    def candidates(self, product: Product, rows: int, rivals: Sequence[str]) -> list[Slices]:
        assert set(rivals) == {"skinny", "cuBLAS"}
        return [Slices(2), Slices(3)] if rows <= 40 else []

    def compile(self, wanted: Sequence[tuple[Product, int, Config]]) -> Callable[[], None]:
        self.compiled += [rows for _, rows, _ in wanted]
        return self.ready.clear

    def prepare(self, product: Product, rows: range, config: Config) -> None:
        self.ready += [(product, count) for count in rows]

    def run(
        self,
        product: Product,
        x: torch.Tensor,
        weight: object,
        out: torch.Tensor,
        eps: float,
        config: Config,
    ) -> None:
        assert isinstance(config, Slices) and (product, x.size(0)) in self.ready
        self.clock.running, self.clock.rows = self.name, 12 + config.count

    def config(self, fields: Mapping[str, object]) -> Slices:
        return Slices(**fields)  # type: ignore[arg-type]

    def code(self) -> str:
        return "sliced"
