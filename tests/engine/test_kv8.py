"""`kv_dtype`: what it is on each device, what cannot be had, and what the pool gains by it."""

import pytest
import torch

from app.checks import check_device
from app.settings.options import UsageError
from engine.async_engine import AsyncEngine
from engine.gpu.cache import PagedKV
from engine.kv8 import kv_format, kv_row
from engine.memory import block_bytes
from engine.messages import EngineConfig
from engine.precheck import verdict
from engine.text import load_tokenizer
from kernels.kv8 import FORMAT, quantize_kv
from tests.app.test_config import parse
from tests.engine.checkpoints import make_model
from tests.engine.golden import G1

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
TOKENIZER = load_tokenizer(G1 / "tokenizer")


def test_without_a_wish_keys_and_values_are_the_models() -> None:
    assert kv_format("auto", torch.float32, CPU) == torch.float32
    assert (
        kv_format("auto", torch.bfloat16, CUDA) == kv_format("bf16", torch.bfloat16, CUDA) == torch.bfloat16
    )
    with pytest.raises(ValueError, match="kv_dtype is bf16, but the model is in float32"):
        kv_format("bf16", torch.float32, CUDA)
    with pytest.raises(ValueError, match="kv_dtype is 'int4', none of auto, bf16, fp8"):
        kv_format("int4", torch.bfloat16, CUDA)  # type: ignore[arg-type]


def test_eight_bits_need_a_gpu_that_converts_them_and_a_model_in_bfloat16(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    capability = (9, 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert kv_format("fp8", torch.bfloat16, CUDA) == FORMAT
    with pytest.raises(ValueError, match="kv_dtype is fp8, but that needs a CUDA device, and this is a cpu"):
        kv_format("fp8", torch.bfloat16, CPU)
    with pytest.raises(ValueError, match="kv_dtype is fp8, but the model is in float32"):
        kv_format("fp8", torch.float32, CUDA)
    with pytest.raises(ValueError, match="kv_dtype is fp8, but kernels of your own"):
        kv_format("fp8", torch.bfloat16, CUDA, hooked=True)
    capability = (8, 0)
    with pytest.raises(ValueError, match=r"kv_dtype is fp8, but .* 8\.9, and this one has 8\.0"):
        kv_format("fp8", torch.bfloat16, CUDA)


def test_a_cpu_engine_says_so_and_shows_what_it_keeps() -> None:
    model = make_model("G1", 1)
    with pytest.raises(ValueError, match="kv_dtype is fp8, but that needs a CUDA device"):
        AsyncEngine(model, TOKENIZER, EngineConfig(kv_dtype="fp8", device="cpu"))
    engine = AsyncEngine(model, TOKENIZER, EngineConfig(dtype="float32", num_blocks=8))
    (row,) = (row for row in engine.info.features if row[0] == "kv dtype")
    shape = model.config
    assert row[1:3] == ("auto", "float32")
    assert f"{2 * 4 * shape.n_layer * shape.n_kv_head * shape.head_dim:,} bytes a token" in row[3]


def test_the_server_says_so_before_it_takes_a_port() -> None:
    assert parse("--kv-dtype", "fp8").engine_config().kv_dtype == "fp8"
    assert parse().engine_config().kv_dtype == "auto"
    with pytest.raises(UsageError, match="--kv-dtype"):
        parse("--kv-dtype", "int4")
    with pytest.raises(UsageError, match=r"^--kv-dtype is fp8, but that needs a CUDA device, and this"):
        check_device(parse("--kv-dtype", "fp8", "--device", "cpu"))
    asked = {"profile": "fast", "flags": {}, "device": "cpu", "dtype": "auto", "kv_dtype": "auto"}
    assert verdict(asked) == "" and "kv_dtype is fp8" in verdict(asked | {"kv_dtype": "fp8"})


def test_the_row_of_the_table() -> None:
    assert kv_row("fp8", torch.bfloat16, FORMAT, 1040)[1:3] == ("fp8", "fp8")
    assert kv_row("auto", torch.bfloat16, torch.bfloat16, 2048)[2:] == (
        "bfloat16",
        "the model's own; 2,048 bytes a token",
    )
    assert "as asked" in kv_row("bf16", torch.bfloat16, torch.bfloat16, 2048)[3]


@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_a_pool_holds_nearly_twice_the_tokens(head_dim: int) -> None:
    shape = make_model("G1", 1, n_head=2, n_kv_head=2, n_embd=2 * head_dim).config
    assert shape.head_dim == head_dim
    more = block_bytes(shape, 16, torch.bfloat16) / block_bytes(shape, 16, FORMAT)
    assert 2 > more == pytest.approx(2 * head_dim / (head_dim + 2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, FORMAT])
def test_what_a_cache_takes_is_what_the_pool_was_sized_by(dtype: torch.dtype) -> None:
    shape = make_model("G1", 1, n_head=2, n_kv_head=2, n_embd=128).config
    cache = PagedKV(shape.n_layer, 5, 16, shape.n_kv_head, shape.head_dim, dtype, CPU)
    kept = [*cache.layers, *(scales for scales in cache.scales if scales is not None)]
    assert sum(x.numel() * x.element_size() for pair in kept for x in pair) == 5 * block_bytes(
        shape, 16, dtype
    )
    assert cache.bytes_to_grow(9) == (4 + 5 / shape.n_layer) * block_bytes(shape, 16, dtype)


def test_scales_move_with_a_cache() -> None:
    cache = PagedKV(2, 3, 4, 2, 8, FORMAT, CPU)
    before = []
    for (keys, values), scales in zip(cache.layers, cache.scales, strict=True):
        assert scales is not None
        for pages, kept in ((keys, scales[0]), (values, scales[1])):
            assert kept.shape == pages.shape[:-1] and not kept.any()
            numbers, own = quantize_kv(torch.randn(pages.shape))
            pages.view(torch.uint8).copy_(numbers.view(torch.uint8))
            kept.copy_(own)
            before.append((numbers, own))
    cache.grow(7)
    after = [
        (pages, kept)
        for pair, scales in zip(cache.layers, cache.scales, strict=True)
        for pages, kept in zip(pair, scales or (), strict=True)
    ]
    assert len(after) == len(before) == 4
    for (pages, kept), (numbers, own) in zip(after, before, strict=True):
        assert pages.shape == (7, 4, 2, 8) and kept.shape == (7, 4, 2)
        assert pages.stride()[:3] == tuple(8 * step for step in kept.stride())
        assert torch.equal(pages[:3].view(torch.uint8), numbers.view(torch.uint8)) and torch.equal(
            kept[:3], own
        )
        assert not pages[3:].view(torch.uint8).any() and not kept[3:].any()
