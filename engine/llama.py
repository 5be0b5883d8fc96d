"""The decoder of Llama, Mistral, SmolLM, Qwen2 and Qwen3, written once; `LlamaConfig` says what differs.

Parameter names are transformers' own. A model as loaded has plain modules:

    model.model.embed_tokens.weight                     [vocab, width]
    model.layers[i].input_layernorm.weight              [width], likewise post_attention_layernorm
    model.layers[i].self_attn.q_proj.weight             [heads * head_dim, width], likewise k_proj, v_proj
    model.layers[i].self_attn.q_proj.bias               None, or [heads * head_dim]
    model.layers[i].self_attn.o_proj.weight             [width, heads * head_dim]
    model.layers[i].self_attn.q_norm.weight             [head_dim], k_norm too; the attribute is None without
    them model.layers[i].mlp.gate_proj.weight                [inner, width], likewise up_proj
    model.layers[i].mlp.down_proj.weight                [width, inner] model.model.norm.weight
    [width] model.lm_head.weight                                [vocab, width]; tied models: the embedding
    itself

`packed` gives a model whose projections are fused (queries, keys and values; gate and up) and packed.
Queries and keys are normed first and rotated then, scores are scaled by head_dim ** -0.5.
"""

import torch
from torch import nn

from engine.decoder import Attend, Rope
from engine.llama_config import LlamaConfig
from engine.llama_rope import rope_frequencies
from engine.skeleton import skeleton
from kernels.activation import swiglu
from kernels.linear import PackedLinear, Projection, project_add
from kernels.norm import rms_norm
from kernels.rope import rotate, rotation_table


class Norm(nn.Module):
    """RMS norm over the last dimension, times a weight."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return rms_norm(x, self.eps, self.weight)


class SelfAttention(nn.Module):
    """Rotary attention over grouped key-value heads."""

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.config = config
        self.layer = layer
        width, head_dim, bias = config.width, config.head_dim, config.qkv_bias
        self.q_proj: Projection = nn.Linear(width, config.n_head * head_dim, bias=bias)
        self.k_proj: Projection = nn.Linear(width, config.n_kv_head * head_dim, bias=bias)
        self.v_proj: Projection = nn.Linear(width, config.n_kv_head * head_dim, bias=bias)
        self.o_proj: Projection = nn.Linear(config.n_head * head_dim, width, bias=config.output_bias)
        self.q_norm = Norm(head_dim, config.rms_eps) if config.qk_norm else None
        self.k_norm = Norm(head_dim, config.rms_eps) if config.qk_norm else None
        self.qkv: Biased | None = None  # the first three in one product, in a model packed for serving

    def forward(self, x: torch.Tensor, rope: Rope, attend: Attend, residual: torch.Tensor) -> torch.Tensor:
        """residual plus attention's value at x, its normalised form; both [tokens, width]."""
        config, tokens = self.config, x.size(0)
        heads = [config.n_head, config.n_kv_head, config.n_kv_head]
        qkv = self.qkv(x) if self.qkv is not None else self._separate(x)
        q, k, v = qkv.view(tokens, sum(heads), config.head_dim).split_with_sizes(heads, dim=1)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm.forward(q), self.k_norm.forward(k)
        if config.rotated[self.layer]:
            q, k = rotate(q, *rope), rotate(k, *rope)
        attended = attend(self.layer, q.contiguous(), k, v).reshape(tokens, -1)
        return project_add(self.o_proj, attended, residual)

    def _separate(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat((self.q_proj(x), self.k_proj(x), self.v_proj(x)), dim=-1)


class GatedMLP(nn.Module):
    """silu(gate) * up, projected back (SwiGLU)."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        width, inner, bias = config.width, config.inner_width, config.mlp_bias
        self.gate_proj: Projection = nn.Linear(width, inner, bias=bias)
        self.up_proj: Projection = nn.Linear(width, inner, bias=bias)
        self.down_proj: Projection = nn.Linear(inner, width, bias=bias)
        self.gate_up: Biased | None = None  # both in one product, in a model packed for serving

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """residual plus the network's value at x, its normalised form; both [tokens, width]."""
        if self.gate_up is not None:
            gate, up = self.gate_up(x).chunk(2, dim=-1)
        else:
            gate, up = self.gate_proj(x), self.up_proj(x)
        return project_add(self.down_proj, swiglu(gate, up), residual)


class DecoderLayer(nn.Module):
    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = SelfAttention(config, layer)
        self.mlp = GatedMLP(config)
        self.input_layernorm = Norm(config.width, config.rms_eps)
        self.post_attention_layernorm = Norm(config.width, config.rms_eps)

    def forward(self, x: torch.Tensor, rope: Rope, attend: Attend) -> torch.Tensor:
        # forward() rather than a call: the hooks that a call looks for do not exist, and cost time per token.
        x = self.self_attn.forward(self.input_layernorm.forward(x), rope, attend, x)
        return self.mlp.forward(self.post_attention_layernorm.forward(x), x)


class Stack(nn.Module):
    """Everything below the head."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(DecoderLayer(config, layer) for layer in range(config.n_layer))
        self.norm = Norm(config.width, config.rms_eps)


class Llama(nn.Module):
    """A model of one of these families. Weights are uninitialised until a state dict comes (engine/loader.py)
    or `randomize`. A `Decoder`.
    """

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Stack(config)
        self.lm_head: Projection = nn.Linear(config.width, config.vocab_size, bias=False)
        self.tie()
        self._rope: tuple[torch.Tensor, torch.Tensor] | None = None

    def tie(self) -> None:
        """Makes the head the embedding, in a model that shares them; again after either was replaced."""
        if self.config.tied:
            self.lm_head.weight = self.model.embed_tokens.weight

    @property
    def layers(self) -> list[DecoderLayer]:
        layers: list[DecoderLayer] = list(self.model.layers)  # type: ignore[arg-type]
        return layers

    def hidden(
        self, ids: torch.Tensor, previous_ids: torch.Tensor, positions: torch.Tensor, attend: Attend
    ) -> torch.Tensor:
        """The normalised residual stream after the last layer, [tokens, width]. ids, positions: [tokens]
        int64.
        """
        own, other = self.rope(ids.device)
        rope = own[positions].unsqueeze(1), other[positions].unsqueeze(1)
        x: torch.Tensor = self.model.embed_tokens(ids)
        for layer in self.model.layers:
            assert isinstance(layer, DecoderLayer)
            x = layer.forward(x, rope, attend)
        return self.model.norm.forward(x)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """float32 logits. hidden: [rows, width] -> [rows, vocab_size]."""
        raw: torch.Tensor = self.lm_head(hidden)
        return raw.float()

    def rope(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """The rotary table, two times [rope_len, head_dim] float32, made on first use."""
        if self._rope is None or self._rope[0].device != device:
            config = self.config
            scale = config.rope_scaling.attention_factor
            self._rope = rotation_table(config.rope_len, rope_frequencies(config), scale, device)
        return self._rope

    @torch.no_grad()
    def randomize(self, seed: int) -> None:
        """Seeded random weights with every path alive, for tests: norm weights around 1, small biases."""
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in sorted(self.named_parameters()):
            values = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                values = 0.3 * values + (0.0 if name.endswith(".bias") else 1.0)
            elif self.config.tied or "embed_tokens" not in name:
                values = values * parameter.size(-1) ** -0.5
            parameter.copy_(values)

    def parameter_count(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    def packed(self) -> "Llama":
        """For inference: fused, packed projections. Embedding and norms are shared with this model, which is
        unchanged; the caller may drop it to free its projections.
        """
        with skeleton():
            served = Llama(self.config)
        served.model.embed_tokens = self.model.embed_tokens
        served.model.norm = self.model.norm
        _replace(served, "lm_head", self.lm_head)
        for source, target in zip(self.layers, served.layers, strict=True):
            target.input_layernorm = source.input_layernorm
            target.post_attention_layernorm = source.post_attention_layernorm
            attn, mlp = source.self_attn, source.mlp
            target.self_attn.q_norm, target.self_attn.k_norm = attn.q_norm, attn.k_norm
            target.self_attn.qkv = Biased(attn.q_proj, attn.k_proj, attn.v_proj)
            target.mlp.gate_up = Biased(mlp.gate_proj, mlp.up_proj)
            del target.self_attn.q_proj, target.self_attn.k_proj, target.self_attn.v_proj
            del target.mlp.gate_proj, target.mlp.up_proj
            _replace(target.self_attn, "o_proj", attn.o_proj)
            _replace(target.mlp, "down_proj", mlp.down_proj)
        return served.eval()


class Biased(PackedLinear):
    """Several projections of the same inputs in one packed product, with their biases if they have any."""

    def __init__(self, *projections: Projection) -> None:
        super().__init__(torch.cat([weight_of(projection) for projection in projections]))
        biases = [bias for bias in map(bias_of, projections) if bias is not None]
        self.bias = torch.cat(biases) if biases else None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        out = super().__call__(x)
        return out if self.bias is None else out + self.bias

    def add(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return super().add(x, residual) if self.bias is None else residual + self(x)


def weight_of(projection: Projection) -> torch.Tensor:
    """[outputs, inputs], of a model that has not been packed."""
    assert isinstance(projection.weight, torch.Tensor)
    return projection.weight.detach()


def bias_of(projection: Projection) -> torch.Tensor | None:
    """[outputs], of a model that has not been packed."""
    bias = getattr(projection, "bias", None)
    assert bias is None or isinstance(bias, torch.Tensor)
    return None if bias is None else bias.detach()


def _replace(target: nn.Module, name: str, source: Projection) -> None:
    delattr(target, name)  # a module's place takes no plain attribute while the module is registered
    setattr(target, name, Biased(source))
