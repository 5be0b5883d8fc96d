"""Every source of kernels/cuda goes through the CUDA compiler for each architecture, which needs no GPU."""

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import pytest

from kernels import cluster, decode_shape, decode_step, nvrtc, paged_decode, skinny, streamed
from kernels.nvrtc import SOURCES, CompileError, Nvrtc, compile_cubin, compile_many, load_nvrtc
from kernels.quantize import WeightKind
from kernels.step_spec import StepPath, StepSpec
from tests.kernels.cubin import resources
from tests.kernels.decode_cases import D32, LLAMA_D32
from tests.optional import missing

ARCHITECTURES = ("sm_90a", "sm_100a")
REGISTERS = 65536  # of a multiprocessor
# What a thread may put aside: of a weight of eight bits; of a product of many rows. Such variants are
# measured, as all are, before they are used.
A_FEW_BYTES, SOME_BYTES = 8, 160
PAGED_BYTES = 32  # outside of the loop over keys
STEP_BYTES = 320  # of a whole step, around what it calls


@dataclass(frozen=True, slots=True)
class Case:
    """A kernel in one form that is used. threads: of a block. blocks: that shall fit on a multiprocessor.
    aside: bytes a thread that may go to memory and back because registers do not suffice."""

    name: str
    source: str
    defines: dict[str, int]
    threads: int
    blocks: int
    aside: int = 0
    only: str = ""  # an architecture, if it is for no other

    def __str__(self) -> str:
        return f"{self.name} {self.defines}"


def skinny_cases() -> Iterator[Case]:
    """What the probe measures first, for the shapes of a d32 and of a Llama of its size."""
    kinds: tuple[WeightKind, ...] = ("bf16", "int8", "fp8")
    shapes = (6144, 2048), (2048, 8192), (2048, 5632)
    for kind, (m, count) in product(kinds, ((1, 3), (12, 2), (64, 1))):
        aside = SOME_BYTES if m > 16 else 0 if kind == "bf16" else A_FEW_BYTES
        for n, k in shapes[:count]:
            for variant in skinny.variants(m, n, k, kind=kind)[:count]:
                constants = skinny.defines(k, variant)
                yield Case("skinny", skinny.source(), constants, skinny.THREADS, variant.blocks, aside)


def cluster_cases() -> Iterator[Case]:
    for group, head_dim, block in ((1, 128, 16), (4, 128, 32), (8, 64, 48)):
        for size, (warps, blocks) in product((1, 2, 8), ((cluster.WARPS, 1), (4, 3))):
            for fp8_kv in (False, True):
                shape = cluster.Shape(8 * group, 8, head_dim, block, fp8_kv)
                constants = cluster.defines(shape, cluster.Variant(size, warps, blocks))
                yield Case("cluster_decode", cluster.source(), constants, warps * 32, blocks)


def paged_cases() -> Iterator[Case]:
    """Every way that a batch is run, for one query head of a kv head and several."""
    for group, head_dim, block in ((1, 128, 16), (4, 128, 32), (8, 64, 48)):
        for fp8_kv, entries in product((False, True), (1, 20, 60, 500)):
            shape = cluster.Shape(8 * group, 8, head_dim, block, fp8_kv)
            variant = paged_decode.variant_for(shape, entries, 132)
            if variant is None:
                continue
            constants, threads = paged_decode.defines(shape, variant), variant.warps * 32
            source, blocks = paged_decode.source(), variant.blocks
            yield Case("paged_decode", source, constants, threads, blocks, PAGED_BYTES)


def decode_cases() -> Iterator[Case]:
    """A d32, a Llama of its size with fewer kv heads, and every number of rows in one form or other; of
    persistent ones both ways through the MLP."""
    forms: list[tuple[StepSpec, StepPath, int]] = [
        *((D32, "persistent", rows) for rows in (4, 2, 1)),
        (replace(D32, kind="int8"), "chained", 2),
        *((D32, "chained", rows) for rows in (1, 4)),
        (replace(LLAMA_D32, kind="fp8", fp8_kv=True, order="norm_rope", biased=True), "persistent", 4),
        (LLAMA_D32, "persistent", 2),
        *((D32, "chained", rows) for rows in (8, 16)),
        (replace(D32, fp8_kv=True), "persistent", 1),
    ]
    for spec, path, rows in forms:
        team = decode_step.team_of(spec, 132)
        assert isinstance(team, int)
        own = decode_step.cut_of(spec, path, rows, team)
        cuts: list[decode_shape.Cut | None] = [own]
        if path == "persistent":
            cuts.append(decode_shape.fitted(spec, replace(own, mlp_out_whole=not own.mlp_out_whole)))
        for cut in cuts:
            assert cut is not None and decode_shape.shared_bytes(spec, cut) <= decode_shape.SHARED_LIMIT
            constants = decode_shape.defines(spec, cut)
            yield Case("decode_step", decode_step.source(), constants, cut.threads, 1, STEP_BYTES)


def streamed_cases() -> Iterator[Case]:
    """Of every height the shapes of a d32's first and last product; no other device has such products."""
    for m, (n, k) in product((8, 16, 32, 64), ((6144, 2048), (2048, 8192), (65536, 2048))):
        for config in streamed.configs(m, n, k)[:4]:
            constants = streamed.defines(k, m, config)
            yield Case(
                "streamed", streamed.source(), constants, streamed.THREADS, config.blocks, only="sm_90a"
            )


FAMILIES = (
    ("skinny", skinny_cases()),
    ("streamed", streamed_cases()),
    ("cluster", cluster_cases()),
    ("paged", paged_cases()),
    ("decode", decode_cases()),
)
CASES = {name: list(cases) for name, cases in FAMILIES}
# Every so manieth case is compiled in each run: each size, path, kind of numbers and variant is among them.
STRIDES = {"skinny": 5, "streamed": 9, "cluster": 7, "paged": 5, "decode": 3}
TIERS = [pytest.param(False, id="some"), pytest.param(True, id="all", marks=pytest.mark.slow)]


@pytest.fixture(autouse=True)
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Nvrtc:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    try:
        return load_nvrtc()
    except CompileError as error:
        missing(str(error))


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("every", TIERS)
def test_compiles_and_fits(every: bool, name: str, arch: str) -> None:
    chosen = CASES[name][:: 1 if every else STRIDES[name]]
    unique = {(case.source, *case.defines.items()): case for case in chosen if case.only in ("", arch)}
    assert unique or all(case.only for case in chosen)
    for case in unique.values():
        found = resources(compile_cubin(case.source, case.name, arch, case.defines))[case.name]
        assert found.frame <= case.aside, f"{case}: {found}"
        assert 0 < found.registers * case.threads * case.blocks <= REGISTERS, f"{case}: {found}"


def compile_log(case: Case, source: str) -> str:
    """What the compiler has to say, also of what it compiles."""
    nvrtc_, program = load_nvrtc(), ctypes.c_void_p()
    options = [*nvrtc._options("sm_90a", case.defines), "--ptxas-options=-v"]
    encoded = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    library = nvrtc_.library
    library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), case.name.encode(), 0, None, None)
    assert library.nvrtcCompileProgram(program, len(options), encoded) == 0
    log = nvrtc_._text(program, "nvrtcGetProgramLog").decode(errors="replace")
    library.nvrtcDestroyProgram(ctypes.byref(program))
    return log


def test_products_out_of_shared_memory_run_side_by_side() -> None:
    """What the compiler says where something else touches their sums: then they come one after the other."""
    case = CASES["streamed"][0]
    spoilt = case.source.replace("i + k > 0", "true").replace(
        "commit_products();\n", "commit_products();\n        sums[0][0] += 1.0f;\n", 1
    )
    assert spoilt != case.source
    for source, side_by_side in ((case.source, True), (spoilt, False)):
        assert ("serialized" not in compile_log(case, source)) == side_by_side


def test_no_source_is_forgotten() -> None:
    texts = [case.source for cases in CASES.values() for case in cases]
    for path in SOURCES.glob("*.cu"):
        assert any(path.read_text() in text for text in texts), f"{path.name} is compiled by no test"


def test_what_is_put_aside_is_seen() -> None:
    """The same kernel, of which more blocks shall fit than its registers allow."""
    case = CASES["cluster"][0]
    bound = "__launch_bounds__(WARPS * 32, BLOCKS)"
    assert bound in case.source
    tight = case.source.replace(bound, "__launch_bounds__(WARPS * 32, 6)")
    found = resources(compile_cubin(tight, case.name, "sm_90a", case.defines))[case.name]
    assert found.frame > 0 and found.registers <= REGISTERS // (6 * case.threads)


def test_errors_say_why() -> None:
    lines = "\n" * 2000
    with pytest.raises(
        CompileError, match=r'NVRTC .* cannot compile bad .*-DK=3(.|\n)*"missing" is undefined'
    ):
        compile_cubin(
            f"__device__ int x = 1;{lines}__global__ void f() {{ missing(); }}", "bad", "sm_90a", {"K": 3}
        )
    with pytest.raises(CompileError, match="sm_12345"):
        compile_cubin("", "bad", "sm_12345", {})


def test_processes_fill_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also beside a source that cannot be compiled, and where a file is damaged."""
    source = 'extern "C" __global__ void fill(int* x) { *x = VALUE; }'
    wanted = [{"VALUE": value} for value in range(6)]
    (damaged,) = [nvrtc._cubin_path(source, nvrtc._options("sm_90a", wanted[0]), load_nvrtc())]
    nvrtc.write_atomically(damaged, b"\x7fELF")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    compile_many(source, "fill", "sm_90a", [{"VALUE": 0, "bad-name": 1}, *wanted])()
    monkeypatch.setattr(Nvrtc, "compile", lambda *_: pytest.fail("is in the cache"))
    cubins = [compile_cubin(source, "fill", "sm_90a", defines) for defines in wanted]
    assert len(set(cubins)) == 6 and all(cubin.startswith(b"\x7fELF") for cubin in cubins)
