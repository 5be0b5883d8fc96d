"""Products of some dozens of rows (kernels.triton.gemm), as kernels.probe chooses them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from kernels.device_linear import LinearScratch
from kernels.product import Config, Product
from kernels.quantize import Weight
from kernels.triton import gemm
from kernels.triton.gemm_config import GemmConfig, candidates


@dataclass(frozen=True, slots=True)
class TritonGemm:
    """kernels.triton.gemm, the norm inside it or in front. Takes no weights of eight bits."""

    scratch: LinearScratch
    pdl: bool = False
    name = "triton"

    def refuses(self, product: Product, dtype: torch.dtype, capability: tuple[int, int]) -> str | None:
        p = product
        return gemm.unsupported(p.n, p.k, p.activation, p.accumulate, dtype, capability, p.kind)

    def candidates(self, product: Product, rows: int, rivals: Sequence[str]) -> list[GemmConfig]:
        return candidates(rows, product.n, product.k, product.norm, alone=not rivals)

    def compile(self, wanted: Sequence[tuple[Product, int, Config]]) -> Callable[[], None]:
        kinds = [self._kind(product, _gemm_config(config)) for product, _, config in wanted]
        gemm.prepare_all(kinds, self.scratch.normed.device)
        return lambda: None

    def prepare(self, product: Product, rows: range, config: Config) -> None:
        gemm.prepare(self._kind(product, _gemm_config(config)), self.scratch.normed.device)

    def _kind(self, product: Product, config: GemmConfig) -> gemm.Kind:
        norm = product.norm and config.norm_inside
        return config, norm, product.activation == "swiglu", self.pdl

    def run(
        self,
        product: Product,
        x: torch.Tensor,
        weight: Weight,
        out: torch.Tensor,
        eps: float,
        config: Config,
    ) -> None:
        how = _gemm_config(config)
        assert isinstance(weight, torch.Tensor)
        if product.norm and not how.norm_inside:
            x = self.scratch.normed_rows(x, eps, self.pdl)
        gemm.fused_gemm(
            x,
            weight,
            out,
            eps=eps if product.norm and how.norm_inside else None,
            activation=product.activation,
            accumulate=product.accumulate,
            config=how,
            workspace=self.scratch.parts,
            pdl=self.pdl,
        )

    def config(self, fields: Mapping[str, object]) -> GemmConfig:
        return GemmConfig(**fields)  # type: ignore[arg-type]

    def code(self) -> str:
        folder = Path(gemm.__file__).parent
        return "".join(file.read_text() for file in [*sorted(folder.glob("gemm*.py")), folder / "parts.py"])


def _gemm_config(config: Config) -> GemmConfig:
    assert isinstance(config, GemmConfig)
    return config
