"""Which kernels a device gets, and libraries behind our interface; libraries are played by fakes."""

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from kernels import backends
from kernels.attention import KVCache, Span, paged_attention, table_blocks
from kernels.backends import AttentionBackend, AttentionSpec, Unavailable, build, flash, select_backend
from kernels.backends.base import rotating
from kernels.backends.clustered import ClusteredBackend, ClusterRule
from kernels.backends.pair import PairBackend
from kernels.backends.reference import TorchBackend
from kernels.backends.sdpa import SdpaBackend
from kernels.backends.selftest import fault
from kernels.caps import DeviceCaps, found_packages
from kernels.cuda_driver import DriverError
from kernels.nvrtc import CompileError
from kernels.registry import CANDIDATES, Op, explain, select
from tests.optional import missing
from tests.tiers import tiered

ROOT = Path(__file__).parent.parent.parent
CPU = torch.device("cpu")
H200 = DeviceCaps(
    "NVIDIA H200",
    (9, 0),
    "2.11.0",
    "3.6.0",
    "13.0",
    "580",
    True,
    132,
    60 << 20,
    141 << 30,
    {"triton": "3.6.0"},
)
SPEC = AttentionSpec(4, 2, 32, 16, torch.bfloat16, 8, 256, CPU)
SHAPE: dict[str, Any] = {
    "heads": 4,
    "kv_heads": 2,
    "head_dim": 32,
    "block_size": 16,
    "dtype": torch.bfloat16,
    "max_rows": 8,
    "max_context": 256,
    "device": CPU,
}


def with_packages(caps: DeviceCaps, **found: str) -> DeviceCaps:
    return replace(caps, packages={**caps.packages, **found})


# -- the registry


def test_a_gpu_without_libraries_runs_our_own() -> None:
    wanted: dict[Op, str] = {"attention.decode": "triton-rotating", "attention.prefill": "triton"}
    for op, name in wanted.items():
        choice = select(op, H200, SPEC)
        assert choice.name == name
        assert any(name == "fa3" and "not installed" in reason for name, reason in choice.rejected)


def test_flash_attention_3_prefills_on_hopper_only() -> None:
    found = with_packages(H200, flash_attn_interface="3.0.0")
    assert select("attention.prefill", found, SPEC).name == "fa3"
    assert select("attention.decode", found, SPEC).name == "triton-rotating"
    assert select("attention.decode", found, SPEC, "fa3").name == "fa3"
    blackwell = replace(found, compute=(10, 0))
    choice = select("attention.prefill", blackwell, SPEC)
    assert choice.name == "triton"
    assert ("fa3", "runs on compute capability 9.x, not 10.0") in choice.rejected


def test_what_is_asked_for_and_cannot_be_had_is_an_error_with_the_reason() -> None:
    found = with_packages(H200, flash_attn="2.8.3")
    with pytest.raises(Unavailable, match="multiple of 256 tokens, not 16"):
        select("attention.decode", found, SPEC, "fa2")
    assert select("attention.decode", found, replace(SPEC, block_size=256), "fa2").name == "fa2"
    with pytest.raises(Unavailable, match="not installed"):
        select("attention.decode", found, SPEC, "fa4")
    with pytest.raises(Unavailable, match="float32 is not supported"):
        fa3 = with_packages(H200, flash_attn_interface="3.0.0")
        select("attention.prefill", fa3, replace(SPEC, dtype=torch.float32), "fa3")
    with pytest.raises(Unavailable, match="is not one of"):
        select("attention.decode", found, SPEC, "magic")


def test_triton_needs_powers_of_two() -> None:
    choice = select("attention.decode", H200, replace(SPEC, head_dim=96))
    assert choice.name == "torch"
    assert any(name == "triton" and "96" in reason for name, reason in choice.rejected)


def test_products_by_device() -> None:
    assert select("linear", H200).name == "skinny"
    assert select("linear", replace(H200, nvrtc=False)).name == "cublas"
    assert select("linear", replace(H200, compute=(8, 0))).name == "cublas"
    assert select("linear", DeviceCaps.of(CPU)).name == "onednn"


def test_every_operation_is_explained_everywhere() -> None:
    for caps in (H200, replace(H200, triton_version=None), DeviceCaps.of(CPU)):
        choices = explain(caps)
        assert [choice.op for choice in choices] == list(CANDIDATES)
        for choice in choices:
            names = [name for name, _ in choice.rejected]
            assert sorted([*names, choice.name]) == sorted(c.name for c in CANDIDATES[choice.op])


@pytest.mark.parametrize("flags", tiered([[], ["--json"]], {1}))
def test_the_report(flags: list[str]) -> None:
    command = [sys.executable, "-m", "kernels", *flags, "--device", "cpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    if flags:
        report = json.loads(done.stdout)
        assert report["device"]["name"] == "cpu"
        assert {choice["op"] for choice in report["choices"]} == set(CANDIDATES)
    else:
        assert "attention.decode" in done.stdout and "needs a CUDA device" in done.stdout


def test_packages_are_found_without_being_imported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "vllm" / "vllm_flash_attn"
    package.mkdir(parents=True)
    (tmp_path / "vllm" / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    fake = ModuleType("flash_attn_interface")
    fake.__version__ = "3.9"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn_interface", fake)
    found = found_packages()
    assert found["flash_attn_interface"] == "3.9"
    assert "vllm.vllm_flash_attn" in found
    assert "transformer_engine" not in found


# -- the reference


@pytest.mark.parametrize("window", [None, 7])
def test_the_reference_backend_agrees_with_the_cpu_engines(window: int | None) -> None:
    cache = KVCache.allocate(1, 12, 16, 2, 32, torch.float32, CPU)
    table = torch.tensor([3, 7, 1, 9], dtype=torch.int32)
    slots = torch.cat([torch.arange(16) + 16 * block for block in table.tolist()])[:50]
    cache.write(0, slots, torch.randn(50, 2, 32), torch.randn(50, 2, 32))
    query = torch.randn(20, 4, 32)
    padded = torch.cat([table, torch.zeros(table_blocks(50, 16) - 4, dtype=torch.int32)])
    expected = paged_attention(query, cache, 0, [Span(0, 20, 50, padded)], window).flatten(1)
    pages = [pool[0].view(12, 16, 2, 32) for pool in (cache.keys, cache.values)]
    backend, out = TorchBackend(replace(SPEC, dtype=torch.float32)), torch.zeros(20, 128)
    tables, zero = table[None], torch.zeros(1, dtype=torch.int32)
    borders, contexts = torch.tensor([0, 20]), torch.tensor([50])
    backend.prefill(query, *pages, tables, zero, borders, contexts, out, scale=32**-0.5, window=window)
    torch.testing.assert_close(out, expected)
    last = torch.zeros(1, 128)
    backend.decode(query[-1:], *pages, tables, zero, torch.tensor([49]), last, scale=32**-0.5, window=window)
    torch.testing.assert_close(last, expected[-1:])


# -- libraries


def solve(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    table: torch.Tensor,
    cu_queries: torch.Tensor,
    lengths: torch.Tensor,
    scale: float,
    window: int | None,
) -> torch.Tensor:
    """What each library computes; rows of nobody hold garbage, as they do there."""
    assert table.dtype == lengths.dtype == cu_queries.dtype == torch.int32
    assert (lengths >= 0).all() and table.size(0) == lengths.size(0) == cu_queries.size(0) - 1
    out = torch.full((q.size(0), q.size(1) * q.size(2)), float("nan"), dtype=q.dtype)
    rows = torch.arange(table.size(0), dtype=torch.int32)
    rows[lengths == 0] = -1
    TorchBackend(SPEC).prefill(q, k, v, table, rows, cu_queries, lengths, out, scale=scale, window=window)
    return out.view(q.shape)


def left(window_size: Any) -> int | None:
    """The left window of FlashAttention's pair."""
    if window_size is None or window_size[0] in (-1, None):
        return None
    assert window_size[1] == 0
    return int(window_size[0])


# The parameters of each library's function, in order: what is not among them is an error there.
FA3 = (
    "q k_cache v_cache k v qv rotary_cos rotary_sin cache_seqlens cache_batch_idx cache_leftpad page_table "
    "cu_seqlens_q cu_seqlens_k_new max_seqlen_q rotary_seqlens q_descale k_descale v_descale softmax_scale "
    "causal window_size attention_chunk softcap rotary_interleaved scheduler_metadata num_splits pack_gqa "
    "sm_margin return_softmax_lse"
)
FA3_OF_VLLM = (
    "q k v max_seqlen_q cu_seqlens_q max_seqlen_k cu_seqlens_k seqused_k q_v dropout_p softmax_scale causal "
    "window_size softcap alibi_slopes deterministic return_attn_probs block_table return_softmax_lse out "
    "scheduler_metadata q_descale k_descale v_descale num_splits output_scale fa_version"
)
FA4 = (
    "q k v qv cu_seqlens_q cu_seqlens_k max_seqlen_q max_seqlen_k min_seqlen_k seqused_q seqused_k "
    "gather_kv_indices page_table softmax_scale causal window_size learnable_sink softcap num_splits pack_gqa"
)
FA2 = (
    "q k v cu_seqlens_q cu_seqlens_k max_seqlen_q max_seqlen_k dropout_p softmax_scale causal window_size "
    "softcap alibi_slopes deterministic return_attn_probs block_table"
)


def bound(parameters: str, given: tuple[Any, ...], named: dict[str, Any]) -> dict[str, Any]:
    """Arguments by name, as Python would bind them."""
    names = parameters.split()
    assert set(named) <= set(names[len(given) :]), set(named) - set(names[len(given) :])
    return {**dict(zip(names, given, strict=False)), **named}


def fake_fa3() -> ModuleType:
    module = ModuleType("flash_attn_interface")

    def flash_attn_with_kvcache(*given: Any, **named: Any) -> torch.Tensor:
        a = bound(FA3, given, named)
        assert a["causal"] and a["max_seqlen_q"] >= 1
        pages = (a["k_cache"], a["v_cache"], a["page_table"])
        lengths = (a["cu_seqlens_q"], a["cache_seqlens"])
        return solve(a["q"], *pages, *lengths, a["softmax_scale"], left(a["window_size"]))

    module.flash_attn_with_kvcache = flash_attn_with_kvcache  # type: ignore[attr-defined]
    return module


def fake_fa3_of_vllm() -> ModuleType:
    module = ModuleType("vllm.vllm_flash_attn")

    def flash_attn_varlen_func(*given: Any, **named: Any) -> torch.Tensor:
        a = bound(FA3_OF_VLLM, given, named)
        assert a["causal"] and a["fa_version"] == 3 and a["max_seqlen_k"] >= int(a["seqused_k"].max())
        pages, lengths = (a["k"], a["v"], a["block_table"]), (a["cu_seqlens_q"], a["seqused_k"])
        result = solve(a["q"], *pages, *lengths, a["softmax_scale"], left(a["window_size"]))
        # Into the given tensor, only what a sequence owns.
        mine = slice(int(lengths[0][0]), int(lengths[0][-1]))
        out: torch.Tensor = a["out"]
        out[mine] = result[mine]
        return out

    module.flash_attn_varlen_func = flash_attn_varlen_func  # type: ignore[attr-defined]
    module.FA3_AVAILABLE = True  # type: ignore[attr-defined]
    return module


def fake_fa4() -> ModuleType:
    module = ModuleType("flash_attn.cute")

    def flash_attn_varlen_func(*given: Any, **named: Any) -> tuple[torch.Tensor, None]:
        a = bound(FA4, given, named)
        assert a["causal"] and a["num_splits"] == 1
        pages, lengths = (a["k"], a["v"], a["page_table"]), (a["cu_seqlens_q"], a["seqused_k"])
        return solve(a["q"], *pages, *lengths, a["softmax_scale"], left(a["window_size"])), None

    module.flash_attn_varlen_func = flash_attn_varlen_func  # type: ignore[attr-defined]
    return module


def fake_fa2() -> ModuleType:
    module = ModuleType("flash_attn")

    def flash_attn_varlen_func(*given: Any, **named: Any) -> torch.Tensor:
        a = bound(FA2, given, named)
        assert a["causal"] and a["cu_seqlens_k"].dtype == torch.int32
        pages, lengths = (a["k"], a["v"], a["block_table"]), (a["cu_seqlens_q"], a["cu_seqlens_k"].diff())
        return solve(a["q"], *pages, *lengths, a["softmax_scale"], left(a["window_size"]))

    module.flash_attn_varlen_func = flash_attn_varlen_func  # type: ignore[attr-defined]
    return module


FAKES = {
    "flash_attn_interface": ("fa3", fake_fa3),
    "vllm.vllm_flash_attn": ("fa3", fake_fa3_of_vllm),
    "flash_attn.cute": ("fa4", fake_fa4),
    "flash_attn": ("fa2", fake_fa2),
}


@pytest.mark.parametrize("module", FAKES)
def test_each_library_is_called_by_its_own_names(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, make = FAKES[module]
    monkeypatch.setitem(sys.modules, module, make())
    backend = build(name, SPEC)
    assert not isinstance(backend, str), backend
    assert backend.name == name and module in backend.version and backend.capture_safe
    assert fault(backend, SPEC) is None


def test_a_missing_or_broken_library_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("flash_attn_interface", "flash_attn_3.flash_attn_interface", "vllm.vllm_flash_attn"):
        monkeypatch.setitem(sys.modules, module, None)
    outcome = flash.load("fa3")
    assert isinstance(outcome, str) and outcome.count("ModuleNotFoundError") == 3
    monkeypatch.setitem(sys.modules, "flash_attn_interface", ModuleType("flash_attn_interface"))
    assert "has no flash_attn_with_kvcache" in str(flash.load("fa3"))


def test_a_library_serves_chunks_beside_our_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    needs_triton()
    monkeypatch.setitem(sys.modules, "flash_attn_interface", fake_fa3())
    caps = with_packages(H200, flash_attn_interface="3.0.0")
    backend, rows = select_backend("auto", caps=caps, **SHAPE)
    assert isinstance(backend, PairBackend) and backend.capture_safe
    assert backend.name == "triton-rotating + fa3" and rotating(backend, 1) is backend.single
    assert "triton shares out the keys of up to 256 tokens" in rows[1][3]
    assert [row[:2] for row in rows] == [("attention.decode", "auto"), ("attention.prefill", "auto")]
    assert rows[1][2].startswith("fa3 ")
    only, _ = select_backend("fa3", caps=caps, **SHAPE)
    assert only.name == "fa3"


def test_a_library_that_computes_wrongly_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    needs_triton()
    module = fake_fa3()
    right = module.flash_attn_with_kvcache
    module.flash_attn_with_kvcache = lambda *args, **kwargs: right(*args, **kwargs) * 1.1  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn_interface", module)
    caps = with_packages(H200, flash_attn_interface="3.0.0")
    backend, rows = select_backend("auto", caps=caps, **SHAPE)
    assert backend.name == "triton-rotating" and rows[1][2].startswith("triton ")
    assert "the self-test failed: decode with window None is off by 0.1" in rows[1][3]
    with pytest.raises(Unavailable, match="--attention-backend fa3: the self-test failed"):
        select_backend("fa3", caps=caps, **SHAPE)


def test_the_flag_is_named_where_its_value_cannot_be_had() -> None:
    with pytest.raises(Unavailable, match=r"--attention-backend triton.*needs a CUDA device"):
        select_backend("triton", **SHAPE)
    backend, rows = select_backend("auto", **SHAPE)
    assert backend.name == "torch" and not backend.capture_safe and len(rows) == 2


def test_steps_that_decode_rotate_inside_of_attention() -> None:
    """By default, and where that is asked for; one backend with its buffers is there for chunks, too."""
    needs_triton()
    backend, rows = select_backend("auto", caps=H200, **SHAPE)
    assert backend.name == "triton-rotating" and backend.capture_safe and rotating(backend, 8) is backend
    assert [row[2].split()[0] for row in rows] == ["triton-rotating", "triton"]
    asked, rows = select_backend("triton-rotating", caps=H200, **SHAPE)
    assert asked.name == "triton-rotating" and rotating(asked, 8) is asked
    assert [row[2].split()[0] for row in rows] == ["triton-rotating"] * 2
    plain, rows = select_backend("triton", caps=H200, **SHAPE)
    assert plain.name == "triton" and rotating(plain, 8) is None
    assert [row[2].split()[0] for row in rows] == ["triton"] * 2
    with pytest.raises(Unavailable, match=r"--attention-backend triton-rotating.*needs a CUDA device"):
        select_backend("triton-rotating", **SHAPE)


def test_where_nothing_rotates_inside_plain_triton_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    needs_triton()
    right = backends.build

    def built(name: str, *given: Any) -> AttentionBackend | str:
        return "does not fit" if name == "triton-rotating" else right(name, *given)

    monkeypatch.setattr(backends, "build", built)
    backend, rows = select_backend("auto", caps=H200, **SHAPE)
    assert backend.name == "triton" and rotating(backend, 8) is None
    assert rows[0][2].startswith("triton ") and rows[0][3] == "triton-rotating: does not fit"
    with pytest.raises(Unavailable, match="--attention-backend triton-rotating: does not fit"):
        select_backend("triton-rotating", caps=H200, **SHAPE)


def test_cuda_decodes_where_it_can_be_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clusters then serve only if they are required; where it cannot be had Triton decodes, and says why."""
    needs_triton()
    from kernels.backends.triton import RotatingTritonBackend

    class Built(RotatingTritonBackend):
        name = "cuda"

    right, whole = backends.build, replace(H200, nvrtc=True)
    asked: list[str] = []

    def built(name: str, spec: AttentionSpec, *given: Any) -> AttentionBackend | str:
        return Built(spec) if name == "cuda" else right(name, spec, *given)

    def clustered(plain: AttentionBackend, *_: Any) -> AttentionBackend:
        asked.append(plain.name)
        return plain

    shape = SHAPE | {"head_dim": 64}
    backend, rows = select_backend("auto", caps=whole, **SHAPE)
    assert backend.name == "triton-rotating" and "cuda: head_dim 32 is neither" in rows[0][3]
    backend, rows = select_backend("auto", caps=whole, **shape)
    assert backend.name == "triton-rotating" and rows[0][3] == "cuda: needs a CUDA device, not cpu"
    with pytest.raises(Unavailable, match="--attention-backend cuda: needs a CUDA device"):
        select_backend("cuda", caps=whole, **shape)
    monkeypatch.setattr(backends, "build", built)
    monkeypatch.setattr(backends, "with_clusters", clustered)
    merely = ClusterRule(2, 64, required=False)
    backend, rows = select_backend("auto", caps=whole, clusters=merely, **shape)
    assert backend.name == "cuda" and not asked and "clusters: cuda shares" in rows[0][3]
    assert [row[2].split()[0] for row in rows] == ["cuda", "triton"]
    select_backend("auto", caps=whole, clusters=replace(merely, required=True), **shape)
    select_backend("auto", caps=replace(H200, nvrtc=False), clusters=merely, **shape)
    assert asked == ["cuda", "triton-rotating"]
    for wrong, reason in ({"head_dim": 96}, "96"), ({"dtype": torch.float16}, "bfloat16"):
        with pytest.raises(Unavailable, match=reason):
            select_backend("cuda", caps=whole, **(shape | wrong))


def needs_triton() -> None:
    if importlib.util.find_spec("triton") is None:
        missing("triton is not installed")


def test_every_layer_sees_tables_wider_than_the_self_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two layers of one step over rows longer than anything that the library was tried with."""
    monkeypatch.setitem(sys.modules, "flash_attn_interface", fake_fa3())
    backend, reference = build("fa3", SPEC), TorchBackend(SPEC)
    assert not isinstance(backend, str), backend
    generator = torch.Generator().manual_seed(1)
    tables = torch.arange(1, 33, dtype=torch.int32).view(2, 16)
    rows, positions = torch.tensor([0, 1], dtype=torch.int32), torch.tensor([250, 130], dtype=torch.int32)
    backend.plan(rows, positions, window=None)
    for layer in range(2):
        pages = [torch.randn(33, 16, 2, 32, generator=generator).bfloat16() for _ in range(2)]
        query = torch.randn(2, 4, 32, generator=generator).bfloat16()
        outs = [torch.zeros(2, 128, dtype=torch.bfloat16) for _ in range(2)]
        for attention, out in zip((backend, reference), outs, strict=True):
            attention.decode(query, *pages, tables, rows, positions, out, scale=32**-0.5, window=None)
        assert (outs[0] - outs[1]).float().norm() <= 1e-2 * outs[1].float().norm(), layer


@pytest.mark.parametrize("flash", [True, False])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_torchs_own_attention_agrees_with_the_reference(flash: bool, kv_heads: int) -> None:
    """Decode and prefill, windows, cached prefixes, padding: the self-test that libraries must pass."""
    spec = replace(SPEC, heads=4, kv_heads=kv_heads, dtype=torch.float32)
    assert fault(SdpaBackend(spec, flash), spec) is None


def test_chunks_of_small_steps_may_be_the_firsts() -> None:
    class Records(TorchBackend):
        def __init__(self) -> None:
            self.tokens: list[int] = []

        def prefill(self, q: torch.Tensor, *pages: torch.Tensor, **options: Any) -> None:
            self.tokens.append(q.size(0))

    first, second = Records(), Records()
    empty = torch.zeros(0)
    for tokens in (1, 256, 257):
        pair = PairBackend(first, second, few=256)
        pair.prefill(torch.zeros(tokens), *[empty] * 6, empty, scale=1.0, window=None)
    assert (first.tokens, second.tokens) == ([1, 256], [257])


def test_a_required_library_that_fails_makes_room_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """And is named; where none works, all are."""
    needs_triton()
    broken = ModuleType("flash_attn_interface")
    monkeypatch.setitem(sys.modules, "flash_attn_interface", broken)
    monkeypatch.setitem(sys.modules, "flash_attn.cute", fake_fa4())
    caps = with_packages(with_packages(H200, flash_attn_interface="3.0.0"), **{"flash_attn.cute": "4.0.0"})
    backend, rows = select_backend("auto", caps=caps, flash="required", **SHAPE)
    assert backend.name == "triton-rotating + fa4"
    assert "use_flash3 was asked for; fa3: " in rows[1][3] and "has no flash_attn_with" in rows[1][3]
    monkeypatch.setitem(sys.modules, "flash_attn.cute", ModuleType("flash_attn.cute"))
    with pytest.raises(Unavailable, match=r"--use-flash3: fa3: .*; fa4: .*has no flash_attn_varlen_func"):
        select_backend("auto", caps=caps, flash="required", **SHAPE)


class WrongFrom(TorchBackend):
    """Doubles what it finds for a query behind so many keys."""

    keys = 0

    def decode(self, *given: torch.Tensor, **options: Any) -> None:
        super().decode(*given, **options)
        *_, positions, out = given
        out[positions >= self.keys] *= 2


@pytest.mark.parametrize("max_rows", [1, 2, 8])
def test_the_self_test_decodes_at_the_end_of_its_longest_row(max_rows: int) -> None:
    spec = replace(SPEC, max_rows=max_rows)
    backend = WrongFrom(spec)
    for longest, keys in ((70, 69), (700, 699)):
        backend.keys = keys
        assert "decode with window None is off" in (fault(backend, spec, longest) or "")
        backend.keys = keys + 1
        assert fault(backend, spec, longest) is None


class Calls(TorchBackend):
    """Counts what it is asked for, by the number of entries or tokens."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []

    def serves(self, entries: int) -> bool:
        return 0 < entries <= 2

    def plan(self, rows: torch.Tensor, positions: torch.Tensor, **options: Any) -> None:
        self.seen.append(("plan", rows.size(0)))

    def decode(self, q: torch.Tensor, *pages: torch.Tensor, **options: Any) -> None:
        self.seen.append(("decode", q.size(0)))

    def prefill(self, q: torch.Tensor, *pages: torch.Tensor, **options: Any) -> None:
        self.seen.append(("prefill", q.size(0)))


def test_what_clusters_and_libraries_leave_is_rotated_inside() -> None:
    needs_triton()
    whole, plain = build("triton-rotating", SPEC), build("triton", SPEC)
    assert not isinstance(whole, str) and not isinstance(plain, str)
    for first in (whole, PairBackend(whole, TorchBackend(SPEC))):
        found = [rotating(ClusteredBackend(Calls(), first), entries) for entries in (0, 1, 2, 3)]
        assert found == [whole, None, None, whole]
    for other in (plain, TorchBackend(SPEC), PairBackend(TorchBackend(SPEC), whole)):
        assert rotating(other, 3) is None and rotating(ClusteredBackend(Calls(), other), 3) is None


def test_clusters_serve_steps_of_few_rows() -> None:
    clusters, plain = Calls(), Calls()
    backend = ClusteredBackend(clusters, plain)
    for entries in (0, 1, 2, 3):
        q, rows = torch.zeros(entries, 1, 1), torch.zeros(entries, dtype=torch.int32)
        backend.plan(rows, rows, window=None)
        backend.decode(q, q, q, rows, rows, rows, q, scale=1.0, window=None)
    backend.prefill(q, q, q, rows, rows, rows, rows, q, scale=1.0, window=None)
    assert clusters.seen == [("decode", 1), ("decode", 2)]
    # Every step is announced to the other backend, with the rows that it decodes.
    plans = [("plan", 0), ("decode", 0), ("plan", 0), ("plan", 0), ("plan", 3), ("decode", 3), ("prefill", 3)]
    assert plain.seen == plans


def test_clusters_that_cannot_be_had_are_an_error_only_where_they_are_required(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old = replace(H200, compute=(8, 0))
    shape = SHAPE | {"head_dim": 128}
    wanted = ClusterRule(2, 64, required=True)
    with pytest.raises(Unavailable, match=r"--use-cta-clustering: needs compute capability 9\.0"):
        select_backend("torch", **shape, caps=old, clusters=wanted)
    with pytest.raises(Unavailable, match="no row gets as many as 5000 keys"):
        select_backend("torch", **shape, caps=H200, clusters=replace(wanted, threshold=5000))
    merely = replace(wanted, required=False)
    # What cannot be compiled or loaded is a reason, too.
    for error in (CompileError("no libnvrtc"), DriverError("134080 bytes of shared memory")):

        class Broken:
            def __init__(self, *given: object, **named: object) -> None:
                pass

            def prepare(self, max_entries: int, error: Exception = error) -> None:
                raise error

            def serves(self, entries: int, error: Exception = error) -> bool:
                raise error

        monkeypatch.setattr("kernels.backends.clustered.ClusterDecode", Broken)
        backend, rows = select_backend("auto", **shape, caps=H200, clusters=merely)
        assert backend.name == "triton-rotating" and f"clusters: {error}" in rows[0][3]
        with pytest.raises(Unavailable, match=str(error)):
            select_backend("auto", **shape, caps=H200, clusters=wanted)
    backend, rows = select_backend("auto", **shape, caps=old, clusters=merely)
    assert backend.name == "triton-rotating" and "clusters: needs compute capability 9.0" in rows[0][3]
    backend, rows = select_backend("torch", **shape, caps=H200, clusters=merely)
    assert backend.name == "torch" and "clusters" not in rows[0][3], "another was asked for"
