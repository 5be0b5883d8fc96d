"""A Llama's weights as the GPU's forward pass takes them, which needs no GPU to look at."""

from importlib.util import find_spec

import pytest
import torch

from engine.decoder import Decoder
from engine.eight_bits import rounded_model
from engine.llama import Llama
from engine.llama_config import llama_config
from kernels.quantize import Kind8, Weight8, dequantize, quantize, stored_bytes
from tests.engine.checkpoints import GENERATIONS, make_model
from tests.optional import missing

SIZES: dict[str, object] = {
    "model_type": "qwen3",
    "vocab_size": 96,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
}


def make(inner: int) -> Llama:
    torch.manual_seed(0)
    model = Llama(llama_config("qwen3", SIZES | {"intermediate_size": inner})).requires_grad_(False)
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape) * 0.1 + (parameter.dim() == 1))
    return model


@pytest.mark.parametrize("inner", [160, 3800])  # the second is padded, and so a copy as well
def test_what_is_copied_is_freed_when_asked(inner: int) -> None:
    if find_spec("triton") is None:
        missing("needs triton")
    from engine.gpu.weights import network_weights

    kept, given = make(inner), make(inner)
    ours, theirs = network_weights(kept), network_weights(given, consume=True)
    for a, b in zip(ours.layers, theirs.layers, strict=True):
        for name in ("qkv", "o", "mlp_in", "mlp_out", "q_norm"):
            assert torch.equal(getattr(a, name), getattr(b, name)), name
    assert not any(parameter.is_meta for parameter in kept.parameters())
    gone = {name.split(".", 2)[2] for name, parameter in given.named_parameters() if parameter.is_meta}
    names = {f"self_attn.{part}_proj.weight" for part in "qkv"} | {
        f"mlp.{x}_proj.weight" for x in ("gate", "up")
    }
    if inner == 3800:
        names.add("mlp.down_proj.weight")
    assert {name.split(".", 1)[1] for name in gone} == names
    assert given.parameter_count() == kept.parameter_count()


NAMES = ("qkv", "o", "mlp_in", "mlp_out")


@pytest.mark.parametrize("kind", ["int8", "fp8"])
@pytest.mark.parametrize("family", [*GENERATIONS, "qwen3"])
def test_eight_bits(family: str, kind: Kind8) -> None:
    """Every matrix and the head are what quantising the full ones gives, and the same as the reference's."""
    if find_spec("triton") is None:
        missing("needs triton")
    from engine.gpu.weights import Keeper, network_weights

    def model() -> Decoder:
        return make(3800) if family == "qwen3" else make_model(family, 0)  # type: ignore[arg-type]

    kept, given = model(), model()
    full = network_weights(model())
    for one, consume in ((kept, False), (given, True)):
        eight = network_weights(one, consume, Keeper.eight_bits(kind))
        matrices = [
            (getattr(a, n), getattr(b, n))
            for a, b in zip(eight.layers, full.layers, strict=True)
            for n in NAMES
        ]
        for got, want in [*matrices, (eight.head, full.head)]:
            assert isinstance(got, Weight8) and torch.equal(dequantize(got), dequantize(quantize(want, kind)))
        stored = [stored_bytes(got) for got, _ in [*matrices, (eight.head, full.head)]]
        assert eight.bytes_per_step == sum(stored) < full.bytes_per_step / 3  # of float32
        tables = full.total_bytes - full.bytes_per_step
        assert eight.total_bytes == eight.bytes_per_step + tables and torch.equal(
            eight.embedding, full.embedding
        )
        reference = network_weights(rounded_model(model(), kind))
        for got, want in [
            *((a.qkv, b.qkv) for a, b in zip(eight.layers, reference.layers, strict=True)),
            *((a.mlp_out, b.mlp_out) for a, b in zip(eight.layers, reference.layers, strict=True)),
        ]:
            assert isinstance(got, Weight8) and torch.equal(dequantize(got), want)
    assert not any(parameter.is_meta for parameter in kept.parameters())
    assert given.parameter_count() == kept.parameter_count()
    left = [
        name for name, parameter in given.named_parameters() if not parameter.is_meta and parameter.dim() > 1
    ]  # type: ignore[attr-defined]
    gone = ("c_q", "c_k", "c_v", "c_proj", "c_fc", "_proj", "lm_head")
    assert left and not any(part in name for name in left for part in gone)


def test_a_tied_head_leaves_the_embedding() -> None:
    if find_spec("triton") is None:
        missing("needs triton")
    from engine.gpu.weights import Keeper, network_weights

    model = Llama(llama_config("qwen3", SIZES | {"intermediate_size": 160, "tie_word_embeddings": True}))
    model.requires_grad_(False).randomize(0)
    plain = network_weights(model)
    eight = network_weights(model, True, Keeper.eight_bits("int8"))
    assert isinstance(eight.head, Weight8) and not model.lm_head.weight.is_meta  # type: ignore[union-attr]
    assert torch.equal(eight.embedding, plain.embedding)
    assert plain.total_bytes == plain.bytes_per_step
    assert eight.total_bytes == eight.bytes_per_step + stored_bytes(eight.embedding)


def test_what_is_not_finite_is_named() -> None:
    if find_spec("triton") is None:
        missing("needs triton")
    from engine.gpu.weights import Keeper, network_weights

    model = make(160)
    model.layers[1].mlp.up_proj.weight[3, 5] = float("inf")  # type: ignore[index, operator]
    with pytest.raises(ValueError, match="mlp_in of layer 1: numbers are not finite"):
        network_weights(model, keeper=Keeper.eight_bits("fp8"))
