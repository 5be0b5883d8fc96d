"""Products of up to 64 rows with weights that stream (kernels.streamed), as kernels.probe chooses them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from kernels import streamed, tensor_map
from kernels.product import Config, Product
from kernels.quantize import Weight

MOST_CONFIGS = 4  # measured for each projection and row count
FEW_ROWS = 4  # left to kernels.skinny


@dataclass(frozen=True, slots=True)
class Streamed:
    """kernels.streamed. multiprocessors: instead of the device's."""

    device: torch.device
    pdl: bool = False
    multiprocessors: int | None = None
    name = "streamed"

    def refuses(self, product: Product, dtype: torch.dtype, capability: tuple[int, int]) -> str | None:
        p = product
        if p.kind != "bf16":
            return f"takes no weights of kind {p.kind}"
        return streamed.unsupported(p.n, p.k, p.activation, p.accumulate, dtype, capability)

    def candidates(self, product: Product, rows: int, rivals: Sequence[str]) -> list[streamed.Config]:
        """The fewest rows are left to kernels.skinny, where that is measured, too: by itself it is the slower
        one, but in a whole step the faster."""
        if rows <= FEW_ROWS and "skinny" in rivals:
            return []
        count = self.multiprocessors
        if count is None:
            count = torch.cuda.get_device_properties(self.device).multi_processor_count
        found = streamed.configs(rows, product.n, product.k, count)
        return [config for config in found if config.gates or product.activation != "swiglu"][:MOST_CONFIGS]

    def compile(self, wanted: Sequence[tuple[Product, int, Config]]) -> Callable[[], None]:
        return streamed.prepare_all([(p.k, rows, _config(config)) for p, rows, config in wanted], self.device)

    def prepare(self, product: Product, rows: range, config: Config) -> None:
        for height in sorted({streamed.height_of(m) for m in rows}):
            streamed.prepare(product.k, height, _config(config), self.device)

    def run(
        self,
        product: Product,
        x: torch.Tensor,
        weight: Weight,
        out: torch.Tensor,
        eps: float,
        config: Config,
    ) -> None:
        assert isinstance(weight, torch.Tensor)
        streamed.streamed_linear(
            x,
            weight,
            out,
            eps=eps if product.norm else None,
            activation=product.activation,
            accumulate=product.accumulate,
            config=_config(config),
            pdl=self.pdl,
        )

    def config(self, fields: Mapping[str, object]) -> streamed.Config:
        return streamed.Config(**fields)  # type: ignore[arg-type]

    def code(self) -> str:
        files = (streamed.__file__, tensor_map.__file__)
        return streamed.source() + "".join(Path(file).read_text() for file in files)


def _config(config: Config) -> streamed.Config:
    assert isinstance(config, streamed.Config)
    return config
