"""A Llama's weights as the GPU's forward pass takes them, which needs no GPU to look at."""

from importlib.util import find_spec

import pytest
import torch

from engine.llama import Llama
from engine.llama_config import llama_config
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
