"""nanochat's GPT, all five generations, written once.

The same modules train (`forward`), and serve from a paged cache (`hidden` with an `attend` callback, then
`logits`). Everything works on a flat token axis: a token's position and its predecessor's id are inputs, so a
chunk may start anywhere in a sequence. Parameter names are those of nanochat's checkpoints.

Sources of the formulas: karpathy/nanochat, nanochat/gpt.py at the commits named in engine/config.py.
"""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import nn

from engine.config import GPTConfig
from engine.decoder import Attend, Rope
from engine.dense import DenseAttention, KeptTokens, PaddedAttention
from engine.skeleton import skeleton
from kernels.activation import sigmoid, softcap
from kernels.autograd import cross_entropies
from kernels.linear import PackedLinear, Projection, project_add, project_relu_squared
from kernels.norm import rms_norm
from kernels.rope import rope_table, rotate_and_norm

SMEAR_CHANNELS = 24
LossReduction = Literal["mean", "sum", "none"]
LOSS_REDUCTIONS: tuple[str, ...] = get_args(LossReduction)


class Attention(nn.Module):
    """Query-key-normed rotary attention; values may carry a gated embedding of the token itself."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.config = config
        self.layer = layer
        width, head_dim = config.n_embd, config.head_dim
        self.c_q: Projection = nn.Linear(width, config.n_head * head_dim, bias=False)
        self.c_k: Projection = nn.Linear(width, config.n_kv_head * head_dim, bias=False)
        self.c_v: Projection = nn.Linear(width, config.n_kv_head * head_dim, bias=False)
        self.c_proj: Projection = nn.Linear(width, width, bias=False)
        self.c_qkv: PackedLinear | None = None  # the three in one product, in a model packed for serving
        if config.has_value_embedding(layer):
            channels = config.value_gate_channels
            assert channels is not None
            self.ve_gate = nn.Linear(channels, config.n_kv_head, bias=False)

    def forward(
        self,
        x: torch.Tensor,
        rope: Rope,
        value_embedding: torch.Tensor | None,
        attend: Attend,
        residual: torch.Tensor,
    ) -> torch.Tensor:
        """What attention adds to `residual`, [tokens, width], and that itself.

        x: the normalised residual stream. value_embedding: [tokens, kv_heads * head_dim] or None.
        """
        config = self.config
        assert config.qk_scale is not None and config.value_gate_scale is not None
        tokens, head_dim = x.size(0), config.head_dim
        if self.c_qkv is not None:
            sizes = [(config.n_head + config.n_kv_head) * head_dim, config.n_kv_head * head_dim]
            qk, v = torch.split_with_sizes(self.c_qkv(x), sizes, dim=-1)
            qk = rotate_and_norm(qk.view(tokens, -1, head_dim), *rope, config.rms_eps, config.qk_scale)
            q, k = torch.split_with_sizes(qk, [config.n_head, config.n_kv_head], dim=1)
        else:
            q, k, v = self.c_q(x), self.c_k(x), self.c_v(x)
            q, k = (
                rotate_and_norm(one.view(tokens, -1, head_dim), *rope, config.rms_eps, config.qk_scale)
                for one in (q, k)
            )
        v = v.reshape(tokens, config.n_kv_head, head_dim)
        if value_embedding is not None:
            gate = config.value_gate_scale * sigmoid(_gate(self.ve_gate, x))  # [tokens, kv_heads]
            v = v + gate.unsqueeze(-1) * value_embedding.view_as(v)
        return project_add(self.c_proj, attend(self.layer, q, k, v).reshape(tokens, -1), residual)


class MLP(nn.Module):
    """Squared ReLU between two projections."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_fc: Projection = nn.Linear(config.n_embd, 4 * config.n_embd, bias=False)
        self.c_proj: Projection = nn.Linear(4 * config.n_embd, config.n_embd, bias=False)

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """residual plus the network's value at x, its normalised form; both [tokens, width]."""
        return project_add(self.c_proj, project_relu_squared(self.c_fc, x), residual)


class Block(nn.Module):
    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.eps = config.rms_eps
        self.attn = Attention(config, layer)
        self.mlp = MLP(config)

    def forward(
        self,
        x: torch.Tensor,
        rope: Rope,
        value_embedding: torch.Tensor | None,
        attend: Attend,
    ) -> torch.Tensor:
        # forward() rather than a call: the hooks that a call looks for do not exist, and cost time per token.
        x = self.attn.forward(rms_norm(x, self.eps), rope, value_embedding, attend, x)
        return self.mlp.forward(rms_norm(x, self.eps), x)


class GPT(nn.Module):
    """A nanochat model. Weights are uninitialised until `init_weights`, `randomize` or a state dict."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        rows, width, layers = config.padded_vocab_size, config.n_embd, config.n_layer
        assert rows is not None
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(rows, width),
                "h": nn.ModuleList([Block(config, layer) for layer in range(layers)]),
            }
        )
        self.lm_head: Projection = nn.Linear(width, rows, bias=False)
        if config.constants.residual_scalars:
            self.resid_lambdas = nn.Parameter(torch.ones(layers))
            self.x0_lambdas = nn.Parameter(torch.zeros(layers))
        if config.value_gate_channels:
            kv_width = config.n_kv_head * config.head_dim
            self.value_embeds = nn.ModuleDict(
                {
                    str(layer): nn.Embedding(rows, kv_width)
                    for layer in range(layers)
                    if config.has_value_embedding(layer)
                }
            )
        if config.constants.smear:
            self.smear_gate = nn.Linear(SMEAR_CHANNELS, 1, bias=False)
            self.smear_lambda = nn.Parameter(torch.zeros(1))
            self.backout_lambda = nn.Parameter(torch.full((1,), 0.2))
        self._rope: tuple[torch.Tensor, torch.Tensor] | None = None

    # -- the network
    # ------------------------------------------------------------------------------------------

    def hidden(
        self, ids: torch.Tensor, previous_ids: torch.Tensor, positions: torch.Tensor, attend: Attend
    ) -> torch.Tensor:
        """The normalised residual stream after the last block, [tokens, width].

        ids, positions: [tokens] int64. previous_ids: the id before each token in its own sequence (any id
        where the position is 0); only models with smear look at it.
        """
        config, eps = self.config, self.config.rms_eps
        own, other = self.rope(ids.device)
        rope = own[positions].unsqueeze(1), other[positions].unsqueeze(1)
        x = rms_norm(self._embed(ids), eps)
        if config.constants.smear:
            x = self._smear(x, previous_ids, positions)
        x0, middle = x, x
        for layer, block in enumerate(self._blocks()):
            if config.constants.residual_scalars:
                x = self.resid_lambdas[layer] * x + self.x0_lambdas[layer] * x0
            embedding = self._value_embedding(layer, ids) if config.has_value_embedding(layer) else None
            assert isinstance(block, Block)
            x = block.forward(x, rope, embedding, attend)
            if layer == config.n_layer // 2:
                middle = x
        if config.constants.smear:
            x = x - self.backout_lambda.to(x.dtype) * middle
        return rms_norm(x, eps)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Soft-capped float32 logits over the real vocabulary. hidden: [rows, width] -> [rows,
        vocab_size].
        """
        raw: torch.Tensor = self.lm_head(hidden)
        if raw.size(1) > self.config.vocab_size:  # else no slice: its way back would copy all of them
            raw = raw[:, : self.config.vocab_size]
        return softcap(raw, self.config.softcap)

    def _smear(self, x: torch.Tensor, previous_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Mixes the previous token's embedding in. It is a function of that token's id alone, so chunked
        prefill, prefix hits and preemption need no carried state.
        """
        previous = rms_norm(self._embed(previous_ids), self.config.rms_eps)
        gate = self.smear_lambda.to(x.dtype) * sigmoid(_gate(self.smear_gate, x))  # [tokens, 1]
        return x + torch.where(positions.unsqueeze(1) > 0, gate * previous, 0.0)

    def _embed(self, ids: torch.Tensor) -> torch.Tensor:
        x: torch.Tensor = self.transformer["wte"](ids)
        return x

    def _value_embedding(self, layer: int, ids: torch.Tensor) -> torch.Tensor:
        x: torch.Tensor = self.value_embeds[str(layer)](ids)
        return x

    def _blocks(self) -> nn.ModuleList:
        blocks = self.transformer["h"]
        assert isinstance(blocks, nn.ModuleList)
        return blocks

    def rope(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """The rotary table, two times [10 * sequence_len, head_dim] float32, made on first use."""
        if self._rope is None or self._rope[0].device != device:
            config = self.config
            assert config.rope_base is not None
            rounding = torch.bfloat16 if config.rope_dtype == "bfloat16" else torch.float32
            self._rope = rope_table(config.rope_len, config.head_dim, config.rope_base, rounding, device)
        return self._rope

    # -- training
    # ---------------------------------------------------------------------------------------------

    def forward(
        self,
        ids: torch.Tensor,
        targets: torch.Tensor | None = None,
        *,
        attention_mask: torch.Tensor | None = None,
        loss_reduction: LossReduction = "mean",
    ) -> torch.Tensor:
        """Logits [batch, time, vocab_size] float32, or with targets their cross entropy in nats (a target of
        -1 is ignored): its mean over the targets, their sum, or with "none" one of each, [batch * time], 0
        where it is ignored.

        ids, targets: [batch, time] int64; every row starts at position 0. attention_mask: [batch, time],
        True for the tokens and False for padding on either side of them, where use_padded_attention is on;
        each row then gives what it gives alone, its padding has logits of zero and no part in the loss.
        Raises ValueError for a mask with the flag off, for one that does not fit, for targets of another
        shape than the ids, and for an unknown loss_reduction.
        """
        if loss_reduction not in LOSS_REDUCTIONS:
            known = ", ".join(LOSS_REDUCTIONS)
            raise ValueError(f"loss_reduction is {loss_reduction!r}, none of {known}")
        if targets is not None and targets.shape != ids.shape:
            raise ValueError(f"targets are {tuple(targets.shape)}, the ids are {tuple(ids.shape)}")
        if attention_mask is not None:
            return self._forward_padded(ids, targets, attention_mask, loss_reduction)
        batch, time = ids.shape
        self._check_positions(time)
        positions = torch.arange(time, device=ids.device).repeat(batch)
        previous = F.pad(ids[:, :-1], (1, 0)).reshape(-1)
        attend = DenseAttention(self.config, batch, time)
        x = self.hidden(ids.reshape(-1), previous, positions, attend)
        if targets is None:
            return self.logits(x).view(batch, time, -1)
        return self._loss(x, targets.reshape(-1), loss_reduction)

    def _forward_padded(
        self, ids: torch.Tensor, targets: torch.Tensor | None, mask: torch.Tensor, reduction: LossReduction
    ) -> torch.Tensor:
        """`forward` of the tokens that the mask keeps."""
        if not self.config.use_padded_attention:
            raise ValueError("attention_mask needs use_padded_attention, which is off in this model's config")
        kept = KeptTokens.of(mask, *ids.shape)
        self._check_positions(kept.longest)
        tokens = ids[kept.keep]
        attend = PaddedAttention(self.config, kept)
        x = self.hidden(tokens, kept.previous(tokens), kept.positions, attend)
        if targets is None:
            return kept.spread(self.logits(x))
        loss = self._loss(x, targets[kept.keep], reduction)
        return loss if reduction != "none" else kept.spread(loss.unsqueeze(1)).reshape(-1)

    def _check_positions(self, time: int) -> None:
        if time > self.config.rope_len:
            raise ValueError(f"{time} positions exceed the rotary table of {self.config.rope_len}")

    def _loss(self, hidden: torch.Tensor, targets: torch.Tensor, reduction: LossReduction) -> torch.Tensor:
        """Cross entropy of the targets, float32. hidden: [tokens, width]. targets: [tokens]."""
        if self.config.use_fp32_logits:
            return F.cross_entropy(self.logits(hidden), targets, ignore_index=-1, reduction=reduction)
        losses = cross_entropies(self.lm_head(hidden), targets, self.config.softcap, self.config.vocab_size)
        if reduction == "none":
            return losses
        return losses.sum() if reduction == "sum" else losses.sum() / (targets != -1).sum()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Weights for training, as nanochat starts: outputs of every block and the head begin at zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                fan_out, fan_in = module.weight.shape
                std = fan_in**-0.5 * min(1.0, (fan_out / fan_in) ** 0.5)
                nn.init.normal_(module.weight, mean=0.0, std=std)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, mean=0.0, std=1.0)
        zeroed: list[Projection] = [self.lm_head]
        for block in self._blocks():
            assert isinstance(block, Block)
            zeroed += [block.attn.c_proj, block.mlp.c_proj]
            if hasattr(block.attn, "ve_gate"):
                zeroed.append(block.attn.ve_gate)
        if self.config.constants.smear:
            zeroed.append(self.smear_gate)
        for projection in zeroed:
            _weight(projection).zero_()
        if self.config.constants.residual_scalars:
            self.resid_lambdas.fill_(1.0)
            self.x0_lambdas.fill_(0.1)

    @torch.no_grad()
    def randomize(self, seed: int) -> None:
        """Seeded random weights with every path alive: what benchmarks and tests run on without a
        checkpoint.
        """
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in sorted(self.named_parameters()):
            std = parameter.size(-1) ** -0.5 if parameter.dim() == 2 and "wte" not in name else 1.0
            if parameter.dim() == 1:
                std = 0.3
            values = torch.randn(parameter.shape, generator=generator) * std
            parameter.copy_(values + 1.0 if name == "resid_lambdas" else values)

    def parameter_count(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    def packed(self) -> "GPT":
        """A model for inference with fused, packed projections. Embeddings are shared with this one, which is
        unchanged; the caller may drop it to free its projections.
        """
        with skeleton():
            served = GPT(self.config)
        served.transformer["wte"] = self.transformer["wte"]
        _pack(served, "lm_head", self.lm_head)
        for name in (
            "value_embeds",
            "smear_gate",
            "resid_lambdas",
            "x0_lambdas",
            "smear_lambda",
            "backout_lambda",
        ):
            if hasattr(self, name):
                setattr(served, name, getattr(self, name))
        for source, target in zip(self._blocks(), served._blocks(), strict=True):
            assert isinstance(source, Block) and isinstance(target, Block)
            attn = source.attn
            target.attn.c_qkv = PackedLinear(torch.cat([_weight(m) for m in (attn.c_q, attn.c_k, attn.c_v)]))
            del target.attn.c_q, target.attn.c_k, target.attn.c_v
            _pack(target.attn, "c_proj", attn.c_proj)
            _pack(target.mlp, "c_fc", source.mlp.c_fc)
            _pack(target.mlp, "c_proj", source.mlp.c_proj)
            if hasattr(attn, "ve_gate"):
                target.attn.ve_gate = attn.ve_gate
        return served.eval()


def _gate(linear: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The first channels of x through a tiny projection, [tokens, outputs].

    As a sum over channels rather than a matrix product: with a handful of inputs and outputs a library picks
    its kernel by the number of tokens, and results would change with the company a token has.
    """
    weight = linear.weight
    assert isinstance(weight, torch.Tensor)
    return (x[:, None, : weight.size(1)] * weight.to(x.dtype)).sum(-1)


def _pack(target: nn.Module, name: str, source: Projection) -> None:
    delattr(target, name)  # a module's place takes no plain attribute while the module is registered
    setattr(target, name, PackedLinear(_weight(source)))


def _weight(module: Projection) -> torch.Tensor:
    assert isinstance(module.weight, torch.Tensor)
    return module.weight
