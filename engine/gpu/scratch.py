"""What a step of the network computes on its way, in buffers that last."""

from dataclasses import dataclass

import torch

from engine.gpu.weights import NetworkWeights


@dataclass(slots=True)
class Scratch:
    """Activations of one step, sized for the largest bucket; every step uses their leading rows.

    ids, previous, positions, slots: [tokens] int32. x: the residual stream [tokens, width]. qkv: [tokens,
    (heads + 2 kv_heads) * head_dim]. attended: attention's output. inner: the MLP's inside. last, logits,
    entry_positions: per sampling entry. first, middle, gates: nanochat's later generations only.
    """

    ids: torch.Tensor
    previous: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    x: torch.Tensor
    qkv: torch.Tensor
    attended: torch.Tensor
    inner: torch.Tensor
    last: torch.Tensor
    logits: torch.Tensor
    entry_positions: torch.Tensor
    first: torch.Tensor | None = None
    middle: torch.Tensor | None = None
    gates: torch.Tensor | None = None

    @classmethod
    def allocate(cls, weights: NetworkWeights, tokens: int, entries: int) -> "Scratch":
        layer, extras = weights.layers[0], weights.extras
        device, dtype = weights.embedding.device, weights.embedding.dtype

        def ints(count: int) -> torch.Tensor:
            return torch.zeros(count, dtype=torch.int32, device=device)

        def floats(rows: int, width: int) -> torch.Tensor:
            return torch.zeros(rows, width, dtype=dtype, device=device)

        scratch = cls(
            ids=ints(tokens),
            previous=ints(tokens),
            positions=ints(tokens),
            slots=ints(tokens),
            x=floats(tokens, weights.width),
            qkv=floats(tokens, layer.qkv.size(0)),
            attended=floats(tokens, layer.o.size(1)),
            inner=floats(tokens, layer.mlp_out.size(1)),
            last=floats(entries, weights.width),
            logits=floats(entries, weights.head.size(0)),
            entry_positions=ints(entries),
        )
        if extras.residual is not None:
            scratch.first = floats(tokens, weights.width)
        if extras.backout is not None:
            scratch.middle = floats(tokens, weights.width)
        if any(layer.value_gate is not None for layer in weights.layers):
            scratch.gates = floats(tokens, layer.rotary.kv_heads)
        return scratch
