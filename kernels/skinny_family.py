"""Products of few rows (kernels.skinny), as kernels.probe chooses them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from kernels import skinny
from kernels.product import CUBLAS, Config, Product
from kernels.quantize import Weight
from kernels.triton.gemm_config import MIN_ROWS

MOST_VARIANTS = 4  # measured for each projection and row count
FEW_VARIANTS = 1  # where the tensor cores are expected to win


@dataclass(frozen=True, slots=True)
class Skinny:
    """kernels.skinny. multiprocessors: instead of the device's."""

    device: torch.device
    pdl: bool = False
    multiprocessors: int | None = None
    name = "skinny"

    def refuses(self, product: Product, dtype: torch.dtype, capability: tuple[int, int]) -> str | None:
        p = product
        return skinny.unsupported(p.n, p.k, p.activation, p.accumulate, dtype, capability, p.kind)

    def candidates(self, product: Product, rows: int, rivals: Sequence[str]) -> list[skinny.Variant]:
        p = product
        count = self.multiprocessors
        if count is None:
            count = torch.cuda.get_device_properties(self.device).multi_processor_count
        tensor_cores = rows >= MIN_ROWS and any(rival != CUBLAS for rival in rivals)
        most = FEW_VARIANTS if tensor_cores else MOST_VARIANTS
        return skinny.variants(rows, p.n, p.k, p.activation, count, p.kind)[:most]

    def compile(self, wanted: Sequence[tuple[Product, int, Config]]) -> Callable[[], None]:
        return skinny.prepare_all(
            [(product.k, _variant(config)) for product, _, config in wanted], self.device
        )

    def prepare(self, product: Product, rows: range, config: Config) -> None:
        skinny.prepare(product.k, _variant(config), self.device)

    def run(
        self,
        product: Product,
        x: torch.Tensor,
        weight: Weight,
        out: torch.Tensor,
        eps: float,
        config: Config,
    ) -> None:
        skinny.skinny_linear(
            x,
            weight,
            out,
            eps=eps if product.norm else None,
            activation=product.activation,
            accumulate=product.accumulate,
            variant=_variant(config),
            pdl=self.pdl,
        )

    def config(self, fields: Mapping[str, object]) -> skinny.Variant:
        return skinny.Variant(**fields)  # type: ignore[arg-type]

    def code(self) -> str:
        return skinny.source() + Path(skinny.__file__).read_text()


def _variant(config: Config) -> skinny.Variant:
    assert isinstance(config, skinny.Variant)
    return config
