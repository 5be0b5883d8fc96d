"""Projections with weights of eight bits (kernels.quantize): when they are wanted, and what they do.

A GPU keeps them so (engine.gpu.weights), and a CPU those of nanochat's models (engine.compiled). Everywhere
else, and where float32 is asked for, the model is rounded once, to the same numbers, and served as ever: the
reference that the others' answers are compared with.
"""

import re

import torch

from engine.backend import Feature, short
from engine.decoder import Decoder
from engine.llama import Llama
from engine.messages.config import WeightName
from engine.model import GPT
from engine.skeleton import skeleton
from kernels.quantize import FORMATS, Kind8, rounded

HEAD = "lm_head.weight"
_GPT_PROJECTION = re.compile(r"transformer\.h\.\d+\.(attn\.c_(q|k|v|proj)|mlp\.c_(fc|proj))\.weight")
_LLAMA_PROJECTION = re.compile(r"(model\.layers\.\d+\.)(self_attn\.[qkvo]|mlp\.(gate|up|down))_proj\.weight")
# The norm in front of a projection, whose weight is part of what is rounded.
_NORMS = {
    "self_attn.q": "input_layernorm.weight",
    "self_attn.k": "input_layernorm.weight",
    "self_attn.v": "input_layernorm.weight",
    "mlp.gate": "post_attention_layernorm.weight",
    "mlp.up": "post_attention_layernorm.weight",
}


def kind8(asked: WeightName, dtype: torch.dtype) -> Kind8 | None:
    """Which eight bits were asked for; None for the model's own dtype. Raises ValueError where neither is
    what was asked for.
    """
    if asked == "int8" or asked == "fp8":
        return asked
    if asked not in ("auto", "bf16"):
        raise ValueError(f"weight_dtype is {asked!r}, none of auto, bf16, {', '.join(FORMATS)}")
    if asked == "bf16" and dtype != torch.bfloat16:
        raise ValueError(f"weight_dtype is bf16, but the model is in {short(dtype)}; ask for dtype bfloat16")
    return None


def weight_row(asked: WeightName, dtype: torch.dtype, why: str, own: str = "the model's own") -> Feature:
    """For the start-up table. why: how eight bits serve on this device; own: why weights stay in `dtype`
    where nothing was asked for.
    """
    if kind8(asked, dtype) is None:
        return "weight dtype", asked, short(dtype), own if asked == "auto" else "as asked"
    return "weight dtype", asked, asked, why


def fold(weight: torch.Tensor, norm: torch.Tensor | None) -> torch.Tensor:
    """A projection [outputs, inputs] with the weight of the norm in front of it multiplied in."""
    if norm is None:
        return weight
    return (weight.float() * norm.float()).to(weight.dtype)


@torch.no_grad()
def rounded_model(model: Decoder, kind: Kind8) -> Decoder:
    """A copy whose projections and head have been through eight bits, in the dtype that they had.

    As on a GPU the weights of the norms in front are multiplied in first, and are ones afterwards. Embeddings
    and what is left as it is are shared; `model` is unchanged. Raises ValueError for weights that are not
    finite, TypeError for a model of another family.
    """
    if not isinstance(model, GPT | Llama):
        raise TypeError(f"no weights of eight bits for a {type(model).__name__}")
    state: dict[str, torch.Tensor] = dict(model.state_dict())
    change = _gpt_projection if isinstance(model, GPT) else _llama_projection
    changed = {
        name: rounded(weight, kind, name) for name in state if (weight := change(name, state)) is not None
    }
    if isinstance(model, Llama):
        norms = [name for name in state if name.endswith(tuple(set(_NORMS.values())))]
        changed |= {name: torch.ones_like(state[name]) for name in norms}
    with skeleton():
        copy = type(model)(model.config)  # type: ignore[arg-type]
    # Not tied again: the embedding stays as it is, and a head that shared it has become another.
    copy.load_state_dict(state | changed, strict=True, assign=True)
    return copy.requires_grad_(False).eval()


def _gpt_projection(name: str, state: dict[str, torch.Tensor]) -> torch.Tensor | None:
    return state[name] if name == HEAD or _GPT_PROJECTION.fullmatch(name) else None


def _llama_projection(name: str, state: dict[str, torch.Tensor]) -> torch.Tensor | None:
    """The weight to be rounded, the norm in front of it multiplied in; None for what is no projection."""
    if name == HEAD:
        return state[name]
    found = _LLAMA_PROJECTION.fullmatch(name)
    if found is None:
        return None
    norm = _NORMS.get(found[2])
    return fold(state[name], state[found[1] + norm] if norm is not None else None)
