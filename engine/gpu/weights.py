"""A model's weights as the GPU's forward pass wants them: fused projections, norm weights folded in.

A norm's weight multiplies the input channels of the projection behind it, so it is folded into that
projection once; every norm inside the network is then a plain RMS norm. Gate and up rows of a SwiGLU are
interleaved in groups of eight, so that one tensor-core tile holds both halves of a channel
(kernels.triton.activation).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch

from engine.config import GPTConfig
from engine.decoder import Decoder
from engine.eight_bits import fold
from engine.llama import DecoderLayer, GatedMLP, Llama
from engine.llama_config import LlamaConfig
from engine.model import GPT, Block
from kernels.linear import Projection
from kernels.quantize import Kind8, Weight, quantize, stored_bytes
from kernels.te_linear import TeWeight
from kernels.triton.rope import RotarySpec

INTERLEAVE = 8
EVEN_INPUTS = 2048

Activation = Literal["relu2", "swiglu"]
Held: TypeAlias = Weight | TeWeight
MATRICES = ("qkv", "o", "mlp_in", "mlp_out")


@dataclass(frozen=True, slots=True)
class Keeper:
    """What becomes of projections that are not kept as they are. names: which, of MATRICES and "head". make:
    from the full weight and its name, for errors.
    """

    names: frozenset[str]
    make: Callable[[torch.Tensor, str], Held]

    @classmethod
    def eight_bits(cls, kind: Kind8) -> "Keeper":
        return cls(frozenset((*MATRICES, "head")), lambda weight, name: quantize(weight, kind, name))


@dataclass(slots=True)
class LayerWeights:
    """One block. Matrices are [outputs, inputs]: in the model's dtype, of eight bits, or Transformer
    Engine's.

    qkv: query, key and value rows one behind the other. mlp_in: for SwiGLU the interleaved gate and up rows.
    value_embedding: [vocab, kv_heads * head_dim] with its gate [kv_heads, channels] (nanochat, some layers).
    """

    qkv: Held
    o: Held
    mlp_in: Held
    mlp_out: Held
    window: int | None
    rotary: RotarySpec
    rotated: bool = True
    qkv_bias: torch.Tensor | None = None
    o_bias: torch.Tensor | None = None
    mlp_in_bias: torch.Tensor | None = None
    mlp_out_bias: torch.Tensor | None = None
    q_norm: torch.Tensor | None = None
    k_norm: torch.Tensor | None = None
    value_embedding: torch.Tensor | None = None
    value_gate: torch.Tensor | None = None


@dataclass(slots=True)
class NanochatExtras:
    """What nanochat's later generations add around the blocks; each part may be None."""

    residual: tuple[torch.Tensor, torch.Tensor] | None = None  # lambdas of x and of the first x, [layers]
    value_gate_scale: float = 0.0
    smear: tuple[torch.Tensor, torch.Tensor] | None = None  # gate [1, channels] and lambda [1]
    backout: torch.Tensor | None = None  # lambda [1]; the residual stream after layer n // 2 is subtracted


@dataclass(slots=True)
class NetworkWeights:
    """own, other: rotary table, each [positions, head_dim] float32 (kernels.rope). inner: channels inside the
    MLP; mlp_out may have more inputs, whose weights are zero.
    """

    embedding: torch.Tensor
    layers: list[LayerWeights]
    head: Held
    own: torch.Tensor
    other: torch.Tensor
    eps: float
    activation: Activation
    inner: int
    final_norm: torch.Tensor | None
    normalise_embedding: bool
    softcap: float | None
    vocab_size: int
    extras: NanochatExtras

    @property
    def width(self) -> int:
        return self.embedding.size(1)

    @property
    def unrotated(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The rotary table of layers that do not rotate."""
        return torch.ones_like(self.own), torch.zeros_like(self.other)

    @property
    def bytes_per_step(self) -> int:
        """Weight bytes that every decode step must read."""
        return sum(map(held_bytes, [*self.matrices, self.head]))

    @property
    def matrices(self) -> list[Held]:
        """Every projection inside the blocks."""
        return [m for layer in self.layers for m in (layer.qkv, layer.o, layer.mlp_in, layer.mlp_out)]

    @property
    def total_bytes(self) -> int:
        """All that the weights take, embeddings included."""
        tied = isinstance(self.head, torch.Tensor) and self.embedding.data_ptr() == self.head.data_ptr()
        tables = [self.embedding] if not tied else []
        tables += [layer.value_embedding for layer in self.layers if layer.value_embedding is not None]
        return self.bytes_per_step + sum(t.numel() * t.element_size() for t in tables)


def held_bytes(weight: Held) -> int:
    """What a projection takes in memory, and what a product must read of it."""
    return weight.stored_bytes if isinstance(weight, TeWeight) else stored_bytes(weight)


def network_weights(model: Decoder, consume: bool = False, keeper: Keeper | None = None) -> NetworkWeights:
    """Reads a model of any family. Its own parameters keep their values, or with `consume` may lose their
    storage as soon as they have been copied.

    keeper: how projections and head are kept, made one layer after the other; embeddings and norms stay.
    Raises ValueError for weights of which that cannot be made.
    """
    keeper = keeper or Keeper(frozenset(), _unchanged)
    if isinstance(model, GPT):
        return _nanochat(model, consume, keeper)
    if isinstance(model, Llama):
        return _llama(model, consume, keeper)
    raise TypeError(f"no GPU forward pass for a {type(model).__name__}")


def _unchanged(weight: torch.Tensor, name: str) -> Held:
    return weight


def _nanochat(model: GPT, consume: bool, keeper: Keeper) -> NetworkWeights:
    config = model.config
    embedding = model.transformer["wte"].weight
    assert isinstance(embedding, torch.Tensor)
    own, other = model.rope(embedding.device)
    extras = NanochatExtras(value_gate_scale=config.value_gate_scale or 0.0)
    if config.constants.residual_scalars:
        extras.residual = (model.resid_lambdas.detach(), model.x0_lambdas.detach())
    if config.constants.smear:
        extras.smear = (model.smear_gate.weight.detach(), model.smear_lambda.detach())
        extras.backout = model.backout_lambda.detach()
    blocks: list[Block] = list(model.transformer["h"])  # type: ignore[call-overload]
    layers = []
    for index, block in enumerate(blocks):
        layer = _nanochat_layer(model, config, index, block)
        _convert(layer, index, keeper)
        if consume:
            attn, mlp = block.attn, block.mlp
            sources = {"qkv": (attn.c_q, attn.c_k, attn.c_v), "o": (attn.c_proj,)}
            sources |= {"mlp_in": (mlp.c_fc,), "mlp_out": (mlp.c_proj,)}
            _forget(*(projection for name in keeper.names & set(sources) for projection in sources[name]))
        layers.append(layer)
    return NetworkWeights(
        embedding=embedding.detach(),
        layers=layers,
        head=_head(model, consume, keeper),
        own=own,
        other=other,
        eps=config.rms_eps,
        activation="relu2",
        inner=layers[0].mlp_out.size(1),
        final_norm=None,
        normalise_embedding=True,
        softcap=config.softcap,
        vocab_size=config.vocab_size,
        extras=extras,
    )


def _nanochat_layer(model: GPT, config: GPTConfig, index: int, block: Block) -> LayerWeights:
    attn, mlp = block.attn, block.mlp
    projections = [attn.c_q, attn.c_k, attn.c_v, attn.c_proj, mlp.c_fc, mlp.c_proj]
    q, k, v, o, fc, proj = map(_matrix, projections)
    spec = RotarySpec(
        config.n_head, config.n_kv_head, config.head_dim, "rope_norm", config.rms_eps, config.qk_scale or 1.0
    )
    fused = torch.cat((q, k, v))
    # The model keeps its three projections as parts of the fused one, so that the same numbers are held once.
    for projection, part in zip(
        projections, torch.split(fused, [q.size(0), k.size(0), v.size(0)]), strict=False
    ):
        assert isinstance(projection.weight, torch.nn.Parameter)
        projection.weight.data = part
    layer = LayerWeights(fused, o, fc, proj, config.window(index), spec)
    if config.has_value_embedding(index):
        table = model.value_embeds[str(index)].weight
        assert isinstance(table, torch.Tensor)
        layer.value_embedding, layer.value_gate = table.detach(), attn.ve_gate.weight.detach()
    return layer


def _llama(model: Llama, consume: bool, keeper: Keeper) -> NetworkWeights:
    config = model.config
    embedding = model.model.embed_tokens.weight.detach()
    own, other = model.rope(embedding.device)
    return NetworkWeights(
        embedding=embedding,
        layers=[
            _llama_layer(config, index, layer, consume, keeper) for index, layer in enumerate(model.layers)
        ],
        head=_head(model, consume, keeper),
        own=own,
        other=other,
        eps=config.rms_eps,
        activation="swiglu",
        inner=config.inner_width,
        final_norm=model.model.norm.weight.detach(),
        normalise_embedding=False,
        softcap=None,
        vocab_size=config.vocab_size,
        extras=NanochatExtras(),
    )


def _llama_layer(
    config: LlamaConfig, index: int, layer: DecoderLayer, consume: bool, keeper: Keeper
) -> LayerWeights:
    attn, mlp = layer.self_attn, layer.mlp
    qkv = torch.cat([_matrix(p) for p in (attn.q_proj, attn.k_proj, attn.v_proj)])
    biases = [bias for p in (attn.q_proj, attn.k_proj, attn.v_proj) if (bias := _bias(p)) is not None]
    gate_up = interleave(_matrix(mlp.gate_proj), _matrix(mlp.up_proj))
    spec = RotarySpec(
        config.n_head,
        config.n_kv_head,
        config.head_dim,
        "norm_rope" if attn.q_norm is not None else "rope",
        config.rms_eps,
        1.0,
    )
    down = padded(_matrix(mlp.down_proj))
    made = LayerWeights(
        qkv=fold(qkv, layer.input_layernorm.weight.detach()),
        o=_matrix(attn.o_proj),
        mlp_in=fold(gate_up, layer.post_attention_layernorm.weight.detach()),
        mlp_out=down,
        window=config.window(index),
        rotary=spec,
        rotated=config.rotated[index],
        qkv_bias=torch.cat(biases) if biases else None,
        o_bias=_bias(attn.o_proj),
        mlp_in_bias=_interleaved_bias(mlp),
        mlp_out_bias=_bias(mlp.down_proj),
        q_norm=attn.q_norm.weight.detach() if attn.q_norm is not None else None,
        k_norm=attn.k_norm.weight.detach() if attn.k_norm is not None else None,
    )
    _convert(made, index, keeper)
    if consume:
        _forget(attn.q_proj, attn.k_proj, attn.v_proj, mlp.gate_proj, mlp.up_proj)
        if "o" in keeper.names:
            _forget(attn.o_proj)
        if "mlp_out" in keeper.names or down.data_ptr() != _matrix(mlp.down_proj).data_ptr():
            _forget(mlp.down_proj)
    return made


def _head(model: GPT | Llama, consume: bool, keeper: Keeper) -> Held:
    head = _matrix(model.lm_head)
    if "head" not in keeper.names:
        return head
    made = keeper.make(head, "the head")
    if consume and not (isinstance(model, Llama) and model.config.tied):  # the embedding stays as it is
        _forget(model.lm_head)
    return made


def _convert(layer: LayerWeights, index: int, keeper: Keeper) -> None:
    for name in MATRICES:
        if name in keeper.names:
            setattr(layer, name, keeper.make(getattr(layer, name), f"{name} of layer {index}"))


def _forget(*projections: Projection) -> None:
    """Frees their weights, as far as nobody else holds them; names and shapes stay."""
    for projection in projections:
        projection.weight = torch.nn.Parameter(_matrix(projection).to("meta"), requires_grad=False)


def _matrix(projection: Projection) -> torch.Tensor:
    weight = projection.weight
    assert isinstance(weight, torch.Tensor)
    return weight.detach()


def _bias(projection: Projection) -> torch.Tensor | None:
    bias = getattr(projection, "bias", None)
    assert bias is None or isinstance(bias, torch.Tensor)
    return None if bias is None else bias.detach()


def _interleaved_bias(mlp: GatedMLP) -> torch.Tensor | None:
    gate, up = _bias(mlp.gate_proj), _bias(mlp.up_proj)
    return interleave(gate, up) if gate is not None and up is not None else None


def padded(weight: torch.Tensor) -> torch.Tensor:
    """[outputs, inputs] with zero columns added where that lets kernels.skinny cut the inputs into equal
    parts with all loads in flight (8 parts of whole runs of 8 blocks of 32), and costs at most an eighth.
    """
    inputs = weight.size(1)
    wanted = -(-inputs // EVEN_INPUTS) * EVEN_INPUTS
    if inputs % (EVEN_INPUTS // 2) == 0 or wanted > inputs * 9 // 8:
        return weight
    return torch.nn.functional.pad(weight, (0, wanted - inputs))


def interleave(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Rows of two equal matrices (or biases), eight of the one, then eight of the other."""
    rest = gate.shape[1:]
    groups = [part.reshape(-1, INTERLEAVE, *rest) for part in (gate, up)]
    return torch.stack(groups, dim=1).reshape(-1, *rest)
