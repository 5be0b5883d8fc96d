"""Which vector instructions the compiled kernels may use on this processor."""

from dataclasses import dataclass
from functools import cache

OUTPUTS = 32  # of a tile, on every processor: packed weights look the same everywhere


@dataclass(frozen=True, slots=True)
class Isa:
    """name: for the start-up table. lanes: 32-bit numbers in a vector. rows: activation rows that a tile's
    registers hold. dot: how four products of bytes are added to a 32-bit lane ("vnni512", "vnni256", "madd",
    "plain"); the sums are exact, so all give the same numbers.
    """

    name: str
    lanes: int
    rows: int
    dot: str


ISAS = {
    isa.name: isa
    for isa in (
        Isa("AVX-512 VNNI", 16, 8, "vnni512"),
        Isa("AVX-512", 16, 8, "madd"),
        Isa("AVX-VNNI", 8, 2, "vnni256"),
        Isa("AVX2", 8, 2, "madd"),
        Isa("128 bits", 4, 2, "plain"),
    )
}


class NoVectors(Exception):
    """This processor lacks what the kernels take for granted."""


def choose(features: dict[str, bool], x86: bool) -> Isa:
    """The widest of a processor with these features, as LLVM names them. Raises NoVectors."""
    has = {name for name, there in features.items() if there}
    if not x86:
        return ISAS["128 bits"]
    if not {"avx2", "fma"} <= has:
        raise NoVectors("the processor has no AVX2 and FMA")
    if {"avx512f", "avx512bw", "avx512vl"} <= has:
        return ISAS["AVX-512 VNNI" if "avx512vnni" in has else "AVX-512"]
    return ISAS["AVX-VNNI" if "avxvnni" in has else "AVX2"]


@cache
def host() -> Isa:
    """Of this machine. Raises NoVectors, and ImportError where there is no llvmlite."""
    import platform

    import llvmlite.binding as llvm

    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return choose(dict(llvm.get_host_cpu_features()), x86)
