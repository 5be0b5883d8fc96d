"""Rows K1 to K3 and F12 to F14: kernels of the user's own, in the seed's two places."""

import warnings
from collections.abc import Iterator

import pytest
import torch

from engine.async_engine import AsyncEngine
from engine.config import GPTConfig
from engine.loader import load_model
from engine.messages import EngineConfig, SamplingParams
from engine.model import GPT
from kernels import stubs
from kernels.clustered_attention import clustered_attention
from kernels.pages import PagedCache
from kernels.persistent_decode import Steppable, persistent_decode_step
from tests.engine.checkpoints import make_model
from tests.engine.golden import GOLDEN
from tests.engine.serving import Answer, Ask, answers, started

HOOKS = ("use_clustered_attention_kernel", "use_persistent_decode_kernel")
OURS = {
    "use_clustered_attention_kernel": {"clustered_attention_impl": "kernels.clustered_attention"},
    "use_persistent_decode_kernel": {"persistent_decode_impl": "kernels.persistent_decode"},
}
LAYERS, PROMPT, NEW = 3, list(range(40, 60)), 6
calls: list[tuple[str, tuple[int, ...], tuple[int, ...], int | None]] = []


def counting_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    attn_mask: torch.Tensor | None,
    causal: bool,
    num_sm_clusters: int | None,
    enable_gqa: bool,
) -> torch.Tensor:
    calls.append(("attention", tuple(q.shape), tuple(k.shape), num_sm_clusters))
    return clustered_attention(q, k, v, attn_mask=attn_mask, causal=causal, enable_gqa=enable_gqa)


def counting_step(
    model: Steppable,
    ids: torch.Tensor,
    kv_cache: PagedCache,
    *,
    attention_mask: torch.Tensor | None,
    token_mask: torch.Tensor | None,
) -> torch.Tensor:
    calls.append(("step", tuple(ids.shape), tuple(kv_cache.seq_lens.tolist()), None))
    return persistent_decode_step(model, ids, kv_cache)


def breaking_step(
    model: object, ids: torch.Tensor, kv_cache: PagedCache, *, attention_mask: object, token_mask: object
) -> torch.Tensor:
    raise ZeroDivisionError("of the user's own")


def late_breaking_step(
    model: Steppable, ids: torch.Tensor, kv_cache: PagedCache, *, attention_mask: object, token_mask: object
) -> torch.Tensor:
    if int(kv_cache.seq_lens.max()) > len(PROMPT) + 2:
        raise ZeroDivisionError("of the user's own")
    return persistent_decode_step(model, ids, kv_cache)


@pytest.fixture(autouse=True)
def _nothing_is_registered() -> Iterator[None]:
    stubs.reset_kernel_overrides()
    calls.clear()
    yield
    stubs.reset_kernel_overrides()


@pytest.fixture(scope="module", params=["G1", "G3", "G5"])
def model(request: pytest.FixtureRequest) -> GPT:
    """Grouped heads and windows among them."""
    made = make_model(
        request.param,
        1,
        sequence_len=64,
        vocab_size=512,
        n_layer=LAYERS,
        n_head=4,
        n_kv_head=4 if request.param == "G1" else 2,
        n_embd=64,
        window_pattern="L" if request.param == "G1" else "SSL",
        short_window=None if request.param == "G1" else 8,
    )
    return made


def flagged(model: GPT, **flags: object) -> GPT:
    """The same weights under a configuration with these flags."""
    values = {name: getattr(model.config, name) for name in GPTConfig.__dataclass_fields__}
    copy = GPT(GPTConfig(**(values | flags)))  # type: ignore[arg-type]
    copy.load_state_dict(model.state_dict())
    return copy.requires_grad_(False).eval()


class FiveMethods:
    """As much of a tokenizer as an engine asks for."""

    def encode_special(self, text: str) -> int:
        return 510

    def get_bos_token_id(self) -> int:
        return 511

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: list[int]) -> str:
        return bytes(i for i in ids if i < 256).decode(errors="replace")

    def get_vocab_size(self) -> int:
        return 512


async def run(model: GPT, *, together: bool = True, **flags: object) -> list[list[Answer]]:
    engine = await started(model, FiveMethods(), max_rows=4, num_blocks=64, max_chunk=9, flags=flags)
    params = SamplingParams(max_tokens=NEW, temperature=0, ignore_eos=True, logprobs=3)
    try:
        return await answers(
            engine, [Ask(PROMPT, params), Ask(PROMPT[:5], params), Ask([7], params)], together=together
        )
    finally:
        await engine.close()


def agree(ours: list[list[Answer]], theirs: list[list[Answer]]) -> None:
    for (a,), (b,) in zip(ours, theirs, strict=True):
        assert a.finish is not None and a.finish.reason == "length", a.finish
        assert a.tokens == b.tokens
        for x, y in zip(a.logprobs, b.logprobs, strict=True):
            assert x is not None and y is not None and abs(x[0] - y[0]) < 1e-4


def test_k1_a_module_that_registers_resolves_and_resets() -> None:
    """Under the seed's names; what was registered is found, and gone after the reset."""
    stubs.register_clustered_attention_kernel(counting_attention)
    stubs.register_persistent_decode_kernel(counting_step)
    assert stubs.resolve_clustered_attention_kernel() is counting_attention
    assert stubs.resolve_persistent_decode_kernel() is counting_step
    stubs.reset_kernel_overrides()
    for gone in (stubs.resolve_clustered_attention_kernel(), stubs.resolve_persistent_decode_kernel()):
        with pytest.raises(NotImplementedError, match="no kernel for"):
            gone()  # type: ignore[call-arg]


@pytest.mark.parametrize("hook", HOOKS)
async def test_f12_f13_without_a_kernel_nothing_starts(model: GPT, hook: str) -> None:
    with pytest.raises(NotImplementedError, match=r"kernels\.(clustered_attention|persistent_decode):"):
        await run(model, **{hook: True})
    with pytest.raises(NotImplementedError):
        AsyncEngine(flagged(model, **{hook: True}), FiveMethods(), EngineConfig())


async def test_f12_f13_off_means_never_called(model: GPT) -> None:
    stubs.register_clustered_attention_kernel(counting_attention)
    stubs.register_persistent_decode_kernel(counting_step)
    await run(model)
    assert not calls


async def test_f12_the_attention_kernel_gives_the_same_answers(model: GPT) -> None:
    stubs.register_clustered_attention_kernel(counting_attention)
    agree(await run(model, use_clustered_attention_kernel=True), await run(model))
    assert {kind for kind, *_ in calls} == {"attention"}


async def test_f12_a_call_for_each_layer_with_the_documented_shapes() -> None:
    model = make_model("G1", 1, sequence_len=64, vocab_size=512, n_layer=3, n_head=4, n_kv_head=4, n_embd=64)
    stubs.register_clustered_attention_kernel(counting_attention)
    engine = await started(
        model, FiveMethods(), max_rows=2, num_blocks=64, flags={"use_clustered_attention_kernel": True}
    )
    calls.clear()  # the rehearsal's
    params = SamplingParams(max_tokens=3, temperature=0, ignore_eos=True)
    await answers(engine, [Ask(PROMPT, params)], together=False)
    await engine.close()
    length = len(PROMPT)
    steps = [(length, length), (1, length + 1), (1, length + 2)]
    expected = [("attention", (1, 4, q, 16), (1, 4, k, 16), None) for q, k in steps for _ in range(3)]
    assert calls[: len(expected)] == expected


async def test_f13_the_decode_kernel_gives_the_same_answers_and_prefill_has_none(model: GPT) -> None:
    stubs.register_persistent_decode_kernel(counting_step)
    agree(await run(model, use_persistent_decode_kernel=True), await run(model))
    lengths = [length for kind, _, row_lengths, _ in calls for length in row_lengths if kind == "step"]
    assert lengths and min(lengths) > 1
    assert all(shape[1] == 1 for _, shape, _, _ in calls)


async def test_f13_both_hooks_at_once(model: GPT) -> None:
    flags = {**dict.fromkeys(HOOKS, True), **{k: v for impl in OURS.values() for k, v in impl.items()}}
    agree(await run(model, **flags), await run(model))


@pytest.mark.parametrize("size", [1, 2])
async def test_f12_f13_blocks_of_any_size(model: GPT, size: int) -> None:
    flags = {**dict.fromkeys(HOOKS, True), **{k: v for impl in OURS.values() for k, v in impl.items()}}
    agree(await run(model, kv_block_size=size, **flags), await run(model, kv_block_size=size))


async def test_f14_a_kernel_that_makes_no_numbers_does_not_start(model: GPT) -> None:
    def nothing(
        model: Steppable,
        ids: torch.Tensor,
        kv_cache: PagedCache,
        *,
        attention_mask: object,
        token_mask: object,
    ) -> torch.Tensor:
        return persistent_decode_step(model, ids, kv_cache) * float("nan")

    stubs.register_persistent_decode_kernel(nothing)
    with pytest.raises(ValueError, match=r"the rehearsal's decode step: .*not finite"):
        await run(model, use_persistent_decode_kernel=True)


async def test_g0_the_table_names_the_function_that_serves(model: GPT) -> None:
    stubs.register_clustered_attention_kernel(counting_attention)
    flags = {"use_clustered_attention_kernel": True, "use_persistent_decode_kernel": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        engine = AsyncEngine(
            flagged(model, allow_kernel_stub_fallback=True), FiveMethods(), EngineConfig(flags=flags)
        )
    rows = {name: used for name, _, used, _ in engine.info.features}
    engine.core.runner.close()
    assert rows["use_clustered_attention_kernel"] == "tests.seed.test_k_stubs:counting_attention"
    assert rows["use_persistent_decode_kernel"] == "kernels.persistent_decode:persistent_decode_step"


@pytest.mark.parametrize("name", ["g1", "g5"])
@pytest.mark.parametrize("hook", HOOKS)
async def test_f12_f13_upstreams_own_tokens(name: str, hook: str) -> None:
    """Golden greedy tokens through the references that ship (bug 6 of the fork: decode saw one key only)."""
    import json

    model, tokenizer, _ = load_model(GOLDEN / name, dtype="float32")
    cases = json.loads((GOLDEN / name / "expected.json").read_text())["prompts"]
    engine = await started(model, tokenizer, max_rows=4, flags={hook: True, **OURS[hook]})
    wanted = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
    try:
        asks = [Ask(case["prompt"], wanted) for case in cases]
        for choices, case in zip(await answers(engine, asks, together=True), cases, strict=True):
            assert choices[0].tokens == case["greedy"][:12]
    finally:
        await engine.close()


async def test_f13_what_the_kernel_raises_is_not_swallowed(model: GPT) -> None:
    stubs.register_persistent_decode_kernel(breaking_step)
    with pytest.raises(ZeroDivisionError, match="of the user's own"):
        await run(model, use_persistent_decode_kernel=True)


async def test_f14_a_kernel_that_breaks_later_ends_the_stream_with_an_error() -> None:
    model = make_model("G1", 1, sequence_len=64, vocab_size=512, n_layer=2, n_head=4, n_kv_head=4, n_embd=64)
    stubs.register_persistent_decode_kernel(late_breaking_step)
    ((answer,), *_) = await run(model, together=False, use_persistent_decode_kernel=True)
    assert answer.finish is not None and answer.finish.reason == "error"
    assert "of the user's own" in (answer.finish.message or "")


def test_k2_a_name_stands_above_a_registration() -> None:
    stubs.register_clustered_attention_kernel(counting_attention)
    resolve = stubs.resolve_clustered_attention_kernel
    assert resolve() is counting_attention
    assert resolve(impl="kernels.clustered_attention") is clustered_attention
    assert resolve(impl="kernels.clustered_attention:clustered_attention") is clustered_attention
    assert resolve() is counting_attention, "an imported kernel leaked"
    stubs.reset_kernel_overrides()
    with pytest.raises(NotImplementedError):
        resolve()(torch.zeros(1), torch.zeros(1), torch.zeros(1), attn_mask=None, causal=True,
                  num_sm_clusters=None, enable_gqa=False)  # fmt: skip


async def test_k2_nothing_leaks_from_one_engine_to_the_next(model: GPT) -> None:
    stubs.register_clustered_attention_kernel(counting_attention)
    first = await started(
        model, FiveMethods(), max_rows=2, num_blocks=32, flags={"use_clustered_attention_kernel": True}
    )
    stubs.reset_kernel_overrides()
    second = await started(model, FiveMethods(), max_rows=2, num_blocks=32)
    params = SamplingParams(max_tokens=2, temperature=0, ignore_eos=True)
    try:
        calls.clear()
        await answers(second, [Ask(PROMPT, params)], together=True)
        assert not calls
        await answers(first, [Ask(PROMPT, params)], together=True)
        assert calls
    finally:
        await first.close()
        await second.close()


@pytest.mark.parametrize(
    ("impl", "error"),
    [
        ("no_such_module_here:f", ModuleNotFoundError),
        ("math:no_such_function", AttributeError),
        ("math", AttributeError),
        (":f", ValueError),
        ("math:", ValueError),
        ("a b:c", ValueError),
        ("math:sqrt", TypeError),
        ("kernels.persistent_decode:persistent_decode_step", TypeError),
    ],
)
async def test_k2_bad_names_are_refused_when_the_engine_is_built(
    model: GPT, impl: str, error: type[Exception]
) -> None:
    with pytest.raises(error, match="clustered_attention_impl"):
        await run(model, use_clustered_attention_kernel=True, clustered_attention_impl=impl)


@pytest.mark.parametrize("hook", HOOKS)
async def test_k3_the_fallback_warns_once_when_it_is_used(model: GPT, hook: str) -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        agree(await run(model, allow_kernel_stub_fallback=True), await run(model))
        assert not [w for w in seen if issubclass(w.category, RuntimeWarning)]
        agree(await run(model, allow_kernel_stub_fallback=True, **{hook: True}), await run(model))
    told = [w for w in seen if issubclass(w.category, RuntimeWarning)]
    assert len(told) == 1 and "reference" in str(told[0].message)
