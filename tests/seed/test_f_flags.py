"""Rows G0, F4 to F10, and what is refused: each flag alone, and what the start-up table says of it."""

import pytest
import torch

from app.__main__ import command_line
from app.checks import check
from app.settings.options import UsageError
from benchmarks.flag_modes import MODES
from engine import fastpath, precheck
from engine.config import GPTConfig
from engine.detect import assume
from engine.flags import ABOUT, DEFAULTS, FastPathFlags, Setting, check_flags, resolve
from engine.gpu.flags import graphs_for, outcomes
from engine.messages import SamplingParams
from engine.model import GPT
from kernels import stubs
from kernels.backends.base import AttentionBackend
from kernels.backends.clustered import ClusteredBackend
from kernels.backends.reference import TorchBackend
from kernels.caps import DeviceCaps
from kernels.cluster import cluster_hint
from kernels.clustered_attention import clustered_attention
from kernels.registry import Unavailable, first_library, select
from kernels.spec import AttentionSpec
from tests.engine.checkpoints import make_model
from tests.engine.serving import Answer, Ask, answers, started
from tests.seed.test_k_stubs import FiveMethods, flagged

PARAMS = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True, logprobs=2)
ASKS = [Ask(list(range(40, 40 + length)), PARAMS) for length in (37, 5, 18)]


@pytest.fixture(scope="module")
def model() -> GPT:
    return make_model(
        "G3", 1, sequence_len=64, vocab_size=512, n_layer=3, n_head=4, n_kv_head=2, n_embd=64,
        window_pattern="SSL",
    )  # fmt: skip


async def run(
    model: GPT, flags: dict[str, object] | None = None, **config: object
) -> tuple[dict[str, tuple[str, str, str]], list[list[Answer]]]:
    """The start-up table by feature, and the answers."""
    config = {"max_rows": 4, "num_blocks": 64} | config
    engine = await started(model, FiveMethods(), flags=flags or {}, **config)
    try:
        rows = {name: (asked, used, why) for name, asked, used, why in engine.info.features}
        return rows, await answers(engine, ASKS, together=True)
    finally:
        await engine.close()


def content(result: list[list[Answer]]) -> list[tuple[object, ...]]:
    return [answer.content for choices in result for answer in choices]


TOGGLES: dict[str, object] = {
    "use_padded_attention": True,
    "use_flash_sdp": False,
    "use_fp32_logits": False,
    "use_flash3": False,
    "flash3_block_size": 64,
    "use_cta_clustering": False,
    "cta_cluster_size": 4,
    "cta_cluster_seq_threshold": 256,
    "kv_block_size": 32,
    "kv_page_size": 100,
    "enable_persistent_decode": False,
    "use_cuda_graphs": False,
    "te_weight_dtype": "bf16",
    "allow_kernel_stub_fallback": True,
}


async def test_g0_every_flag_has_its_row(model: GPT) -> None:
    rows, _ = await run(model)
    assert set(ABOUT) <= set(rows)
    assert all(used and why for name, (_, used, why) in rows.items() if name in ABOUT)


@pytest.mark.parametrize("name", TOGGLES)
async def test_g0_one_flag_changes_nothing_else(model: GPT, name: str) -> None:
    """Neither answers, bit for bit, nor any other row of the start-up table."""
    plain, expected = await run(model)
    rows, result = await run(model, {name: TOGGLES[name]})
    assert content(result) == content(expected)
    changed = {feature for feature in plain if rows[feature] != plain[feature]}
    assert changed - {"start"} <= {name} | ({"kv pool"} if name.startswith("kv_") else set())
    assert set(rows) == set(plain)
    assert rows[name][0] == str(TOGGLES[name])


async def test_f4_a_default_falls_back_with_a_reason_and_a_request_does_not(model: GPT) -> None:
    assert model.config.use_flash3
    rows, _ = await run(model)
    assert rows["use_flash3"] == ("auto", "off", "needs a CUDA device")
    with pytest.raises(fastpath.FlagUnavailable, match="use_flash3 was asked for"):
        await run(model, {"use_flash3": True})


HOPPER = AttentionSpec(16, 16, 128, 16, torch.bfloat16, 8, 1024, torch.device("cuda"))


def caps(compute: tuple[int, int] | None, *packages: str) -> DeviceCaps:
    return DeviceCaps(
        name="a device",
        compute=compute,
        torch_version="2.11.0",
        triton_version="3.6.0",
        nvrtc=True,
        packages=dict.fromkeys(packages, "1"),
    )


@pytest.mark.parametrize(
    ("compute", "packages", "chosen"),
    [
        ((9, 0), ("flash_attn_interface", "flash_attn.cute"), "fa3"),
        ((9, 0), ("vllm.vllm_flash_attn",), "fa3"),
        ((9, 0), ("flash_attn.cute",), "fa4"),
        ((10, 0), ("flash_attn_interface", "flash_attn.cute"), "fa4"),
    ],
)
def test_f4_the_best_library_of_the_device(
    compute: tuple[int, int], packages: tuple[str, ...], chosen: str
) -> None:
    assert first_library("attention.prefill", caps(compute, *packages), HOPPER).name == chosen


def test_f4_a_request_without_a_library_names_all_reasons() -> None:
    with pytest.raises(Unavailable, match=r"fa3: not installed.*fa4: not installed.*fa2: not installed"):
        first_library("attention.prefill", caps((9, 0)), HOPPER)


def test_f4_off_leaves_the_libraries_out() -> None:
    there = caps((9, 0), "flash_attn_interface")
    assert select("attention.prefill", there, HOPPER).name == "fa3"
    choice = select("attention.prefill", there, HOPPER, libraries=False)
    assert choice.name == "triton" and ("fa3", "use_flash3 is off") in choice.rejected


async def test_f5_the_tile_is_reported_as_unused(model: GPT) -> None:
    rows, _ = await run(flagged(model, flash3_block_size=64))
    asked, used, _ = rows["flash3_block_size"]
    assert (asked, used) == ("64 (model)", "off")
    for wrong in (0, -1, 1.5, True, "128"):
        with pytest.raises(ValueError, match="flash3_block_size"):
            GPTConfig(flash3_block_size=wrong)  # type: ignore[arg-type]


def test_f6_the_hint_by_length() -> None:
    assert cluster_hint(5000, 2, 1024, enabled=False) is None
    assert cluster_hint(1023, 2, 1024, enabled=True) is None
    assert [cluster_hint(keys, 2, 1024, enabled=True) for keys in (1024, 2047, 2048, 4095, 4096)] == [
        2,
        2,
        3,
        3,
        4,
    ]
    assert [cluster_hint(keys, 8, 1024, enabled=True) for keys in (1024, 4096)] == [8, 8]
    assert cluster_hint(64, 1, 1, enabled=True) == 1


async def test_f6_the_hint_reaches_the_kernel_and_changes_no_answer(model: GPT) -> None:
    hints: list[tuple[int, int | None]] = []

    def kernel(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, attn_mask: torch.Tensor | None, causal: bool,
        num_sm_clusters: int | None, enable_gqa: bool,
    ) -> torch.Tensor:  # fmt: skip
        hints.append((k.size(2), num_sm_clusters))
        return clustered_attention(q, k, v, attn_mask=attn_mask, causal=causal, enable_gqa=enable_gqa)

    stubs.register_clustered_attention_kernel(kernel)
    try:
        mine = {"use_clustered_attention_kernel": True}
        off, expected = await run(model, {**mine, "use_cta_clustering": False})
        assert {hint for _, hint in hints} == {None}
        hints.clear()
        clusters = {"use_cta_clustering": True, "cta_cluster_size": 5, "cta_cluster_seq_threshold": 20}
        on, result = await run(model, {**mine, **clusters})
    finally:
        stubs.reset_kernel_overrides()
    assert content(result) == content(expected)
    assert {hint for keys, hint in hints if keys < 20} == {None}
    assert {hint for keys, hint in hints if keys >= 20} == {5}
    assert off["use_cta_clustering"][1] == "off" and on["use_cta_clustering"][1] == "True"


async def test_f6_without_a_kernel_that_takes_it_the_request_is_refused(model: GPT) -> None:
    with pytest.raises(fastpath.FlagUnavailable, match="use_cta_clustering"):
        await run(model, {"use_cta_clustering": True})
    await run(flagged(model, use_cta_clustering=True))  # the model's own wish is no request


@pytest.mark.parametrize("size", [1, 7, 16, 32, 64])
async def test_f7_blocks_that_divide_no_prompt(model: GPT, size: int) -> None:
    _, expected = await run(model)
    for made, flags in ((model, {"kv_block_size": size}), (flagged(model, kv_block_size=size), None)):
        rows, result = await run(made, flags, num_blocks=-(-512 // size))
        assert content(result) == content(expected)
        assert rows["kv_block_size"][1] == str(size)


async def test_f7_the_pool_is_rounded_to_blocks_and_then_to_pages(model: GPT) -> None:
    engine = await started(
        model, FiveMethods(), max_rows=2, num_blocks=9, flags={"kv_block_size": 16, "kv_page_size": 100}
    )
    try:
        assert engine.info.block_size == 16
        pool = engine.core.scheduler.pool
        assert pool.usable == 13, "nine blocks are 144 tokens, two pages are 200, and those 13 blocks"
    finally:
        await engine.close()


def test_a_file_hints_at_numbers_and_switches_only() -> None:
    described: dict[str, object] = {
        "sequence_len": 64, "vocab_size": 512, "n_layer": 2, "n_head": 4, "n_kv_head": 4, "n_embd": 64,
        "kv_block_size": 32, "use_flash3": False, "use_cta_clustering": True, "cta_cluster_size": 3,
        "clustered_attention_impl": "os:system", "persistent_decode_impl": "os:system",
        "allow_kernel_stub_fallback": True, "te_weight_dtype": "fp16",
    }  # fmt: skip
    config = assume(described).config
    assert isinstance(config, GPTConfig)
    assert (config.kv_block_size, config.use_flash3, config.cta_cluster_size) == (32, False, 3)
    assert config.clustered_attention_impl is None and config.persistent_decode_impl is None
    assert not config.allow_kernel_stub_fallback and config.te_weight_dtype == "fp8"
    flags = resolve(config, "fast", {"kv_block_size": 8})
    assert flags.values.kv_block_size == 8 and flags.origin("use_flash3") == "False (model)"


def test_what_a_file_says_stands_above_the_profile() -> None:
    """Also where it says what the seed's default is."""
    hints = {"use_cuda_graphs": False, "enable_persistent_decode": False}
    flags = resolve(GPTConfig(**hints), "fast", {}, hints)  # type: ignore[arg-type]
    assert not flags.values.use_cuda_graphs and not flags.values.enable_persistent_decode
    assert flags.origin("use_cuda_graphs") == "False (model)"
    asked = resolve(GPTConfig(**hints), "fast", {"use_cuda_graphs": True}, hints)  # type: ignore[arg-type]
    assert asked.values.use_cuda_graphs


def test_rows_of_a_gpu_say_what_a_hook_leaves_out() -> None:
    hooked = resolve(None, "fast", {"use_clustered_attention_kernel": True})
    rows = {name: (used, why) for name, _, used, why in fastpath.flag_rows(hooked, "cuda", 16, {})}
    for name in ("use_cuda_graphs", "use_flash3", "enable_persistent_decode"):
        assert rows[name] == ("off", fastpath.PLAIN)
    for name in ("use_cuda_graphs", "use_flash3", "enable_persistent_decode"):
        with pytest.raises((fastpath.FlagUnavailable, ValueError), match=name):
            both = {"use_clustered_attention_kernel": True, name: True}
            fastpath.refuse(resolve(None, "fast", both), "cuda", torch.bfloat16)
    plain = {name: used for name, _, used, _ in fastpath.flag_rows(resolve(None, "fast", {}), "cuda", 16, {})}
    assert plain["te_weight_dtype"] == plain["allow_kernel_stub_fallback"] == "off"


OURS = {"use_persistent_decode_kernel": True, "persistent_decode_impl": "kernels.persistent_decode"}


def test_our_decode_kernel_is_a_path_of_the_gpu() -> None:
    """On a CPU it is a function that is called as another's is."""
    for impl in ("kernels.persistent_decode", "kernels.persistent_decode:persistent_decode_step"):
        ours = resolve(None, "fast", OURS | {"persistent_decode_impl": impl, "use_cuda_graphs": True})
        assert not ours.hooked("cuda") and ours.hooked("cpu")
        fastpath.refuse(ours, "cuda", torch.bfloat16)
        for asked in ("auto", "persistent"):
            assert fastpath.resident_path(ours, "cuda", asked) == "persistent"
            assert fastpath.resident_path(ours, "cpu", asked) == asked
        for asked in ("graph", "chained"):
            with pytest.raises(
                fastpath.FlagUnavailable, match=f"decode_path {asked}.*persistent_decode_impl"
            ):
                fastpath.resident_path(ours, "cuda", asked)
    off = fastpath.FlagUnavailable("decode_path is persistent, but it cannot be")
    assert "persistent_decode_impl kernels.persistent_decode: decode" in str(
        fastpath.named(resolve(None, "fast", OURS), "cuda", off)
    )
    assert fastpath.named(resolve(None, "fast", {}), "cuda", off) is off
    asked = {"profile": "fast", "flags": OURS, "device": "cpu", "dtype": "float32", "decode_path": "graph"}
    assert precheck.verdict(asked) == ""


@pytest.mark.parametrize(
    "flags",
    [
        OURS | {"persistent_decode_impl": "kernels.clustered_attention:clustered_attention"},
        OURS | {"use_clustered_attention_kernel": True},
        {"use_persistent_decode_kernel": True, "allow_kernel_stub_fallback": True},
    ],
    ids=["another's", "beside another's attention", "the fallback"],
)
def test_other_kernels_are_called(flags: dict[str, Setting]) -> None:
    resolved = resolve(None, "fast", flags)
    assert resolved.hooked("cuda")
    assert fastpath.resident_path(resolved, "cuda", "graph") == "graph"
    with pytest.raises(fastpath.FlagUnavailable, match="decode_path is persistent"):
        fastpath.refuse_path("persistent", resolved, "cuda")


async def test_a_setting_and_its_flag_must_agree(model: GPT) -> None:
    with pytest.raises(ValueError, match="kv_block_size is asked for twice"):
        await run(model, {"kv_block_size": 8}, block_size=32)
    rows, _ = await run(model, block_size=32, kv_page_size=100)
    assert rows["kv_block_size"] == ("32", "32", "as asked") and rows["kv_page_size"][:2] == ("100", "100")


def test_profiles() -> None:
    seed, fast = (resolve(GPTConfig(), profile, {}).values for profile in ("seed", "fast"))  # type: ignore[arg-type]
    assert {name: getattr(seed, name) for name in DEFAULTS} == DEFAULTS
    assert fast.use_cuda_graphs and fast.enable_persistent_decode and fast.use_cta_clustering
    hook = {"use_clustered_attention_kernel": True}
    assert not resolve(None, "fast", hook).values.use_cta_clustering, "no hint that nobody asked for"
    assert resolve(None, "fast", hook | {"use_cta_clustering": True}).values.use_cta_clustering
    assert not resolve(None, "fast", {"use_cuda_graphs": False}).values.use_cuda_graphs


REFUSED = [
    (["--kv-block-size", "-1"], "--kv-block-size"),
    (["--flash3-block-size", "0"], "--flash3-block-size"),
    (["--te-weight-dtype", "int7"], "--te-weight-dtype"),
    (["--cta-cluster-size", "17"], "--cta-cluster-size"),
    (["--use-clustered-attention-kernel", "--clustered-attention-impl", "a b"], "--clustered-attention-impl"),
    (["--clustered-attention-impl", "a:b"], "--use-clustered-attention-kernel"),
    (["--persistent-decode-impl", "a:b"], "--use-persistent-decode-kernel"),
    (["--use-persistent-decode-kernel", "--use-cuda-graphs"], "--use-cuda-graphs excludes"),
    (["--profile", "slow"], "--profile"),
]


@pytest.mark.parametrize(("argv", "named"), REFUSED, ids=lambda value: " ".join(value)[:40])
def test_bad_input_is_refused_with_the_flags_name(argv: list[str], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        check(command_line().parse(argv, {})[0])


def test_every_flag_is_on_the_command_line() -> None:
    """And reaches the engine under its own name."""
    values = {"int": "7", "bool": None, "str": "mxfp8"}
    for name, default in DEFAULTS.items():
        if name in ("kv_block_size", "kv_page_size"):
            continue  # settings of their own, tested elsewhere
        flag = "--" + name.replace("_", "-")
        kind = "str" if default is None else type(default).__name__
        value = "a.module:f" if name.endswith("_impl") else values[kind]
        config, _ = command_line().parse([flag, *([value] if value else [])], {})
        given = config.engine_config().flags
        assert given == {name: True if value is None else int(value) if kind == "int" else value}


def test_flags_of_a_library_are_checked_too() -> None:
    check_flags(FastPathFlags())
    with pytest.raises(ValueError, match="there is no flag"):
        resolve(None, "fast", {"use_magic": True})


class Served(TorchBackend):
    """An attention backend by its name, which graphs can hold."""

    capture_safe = True

    def __init__(self, name: str) -> None:
        self.name = name


class Few(TorchBackend):
    """Clusters for one row."""

    def __init__(self) -> None:
        pass

    def serves(self, entries: int) -> bool:
        return entries == 1


def on_a_gpu(
    asked: dict[str, Setting], attention: AttentionBackend, graphs: int
) -> dict[str, tuple[str, str]]:
    """The flags' rows of an engine with our own kernels."""
    flags = resolve(None, "fast", asked)
    rows = [("attention.decode", "auto", attention.name, "why"), ("attention.prefill", "auto", "fa3 3", "")]
    known = outcomes(flags, attention, rows, graphs, 100 << 20)
    return {name: (used, why) for name, _, used, why in fastpath.flag_rows(flags, "cuda", 16, known)}


def test_f8_to_f10_what_a_gpu_says() -> None:
    rows = on_a_gpu({"enable_persistent_decode": False}, Served("triton"), 45)
    assert rows["use_cuda_graphs"] == ("45 graphs", "100 MiB")
    assert rows["enable_persistent_decode"] == ("on", "graphs hold the addresses of every buffer")
    assert rows["use_flash3"][0] == "fa3 3" and rows["use_flash_sdp"][0] == "off"
    eager = {"use_cuda_graphs": False, "enable_persistent_decode": False}
    assert on_a_gpu(eager, Served("triton"), 0)["enable_persistent_decode"][0] == "off"
    assert on_a_gpu({"use_cuda_graphs": False}, Served("triton"), 0)["enable_persistent_decode"][0] == "on"


def test_f6_the_table_tells_the_sizes_that_serve() -> None:
    on = on_a_gpu({}, ClusteredBackend(Few(), Served("triton"), "4 for 1 row"), 45)
    assert on["use_cta_clustering"][0] == "on" and on["cta_cluster_size"][0] == "4 for 1 row"
    off = on_a_gpu({}, Served("triton"), 45)
    assert off["use_cta_clustering"] == ("off", "another kernel was asked for")


def test_f9_attention_that_reads_on_the_host_has_no_graphs() -> None:
    plain = TorchBackend(HOPPER)
    assert not graphs_for(resolve(None, "fast", {}), plain)
    assert on_a_gpu({}, plain, 0)["use_cuda_graphs"] == (
        "off",
        "attention by torch reads lengths on the host",
    )
    with pytest.raises(fastpath.FlagUnavailable, match="use_cuda_graphs was asked for"):
        graphs_for(resolve(None, "fast", {"use_cuda_graphs": True}), plain)


def test_the_sweeps_rows_look_for_what_a_gpu_says() -> None:
    """Each row's sign that it has measured what it says is one that the start-up table can show."""
    clustered = ClusteredBackend(Few(), Served("triton"), "4 for 1 row")
    shown = {
        "flash_sdp": on_a_gpu({}, Served("sdpa"), 0),
        "flash3": {"attention.prefill": ("fa3 3", "")},
        "flash3_block": {"kv_block_size": ("32", "")},
        "persistent": on_a_gpu({"use_cuda_graphs": False}, Served("triton"), 0),
        "graphs": on_a_gpu({}, Served("triton"), 45),
        "clusters": on_a_gpu({"use_cta_clustering": True}, clustered, 45),
    }
    for mode in MODES:
        if mode.expects is not None and mode.name in shown:
            feature, sign = mode.expects
            assert sign in shown[mode.name][feature][0], mode.name
    assert set(shown) <= {mode.name for mode in MODES if mode.expects is not None}
