"""Muon for the matrices inside the blocks, AdamW for the embeddings, the head, scalars and gates, behind one
`step`.
"""

from dataclasses import dataclass

import torch
from torch import nn

from training.settings import Settings

# Odd polynomial whose repeated application drives all singular values to about 1 (Keller Jordan, Muon, 2024).
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
GATE_ROWS = 16  # a matrix with fewer rows is a gate, not a projection


@torch.no_grad()
def orthogonalised(matrices: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Nearest semi-orthogonal matrices, roughly. matrices: [count, rows, columns], same dtype back."""
    a, b, c = _COEFFICIENTS
    x = matrices.bfloat16() if matrices.is_cuda else matrices.float()
    tall = x.size(1) > x.size(2)
    if tall:
        x = x.transpose(1, 2)
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.transpose(1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: torch.Tensor = (x.transpose(1, 2) if tall else x).to(matrices.dtype)
    return result


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised; matrices of one shape are treated as one batch.

    The update of a rows x columns matrix is scaled by sqrt(max(1, rows / columns)). Weights decay by lr times
    `decay`.
    """

    def __init__(
        self, params: list[nn.Parameter], lr: float, momentum: float = 0.95, decay: float = 0.0
    ) -> None:
        shapes: dict[torch.Size, list[nn.Parameter]] = {}
        for parameter in params:
            if parameter.dim() != 2:
                raise ValueError(f"Muon takes matrices, not a parameter of shape {tuple(parameter.shape)}")
            shapes.setdefault(parameter.shape, []).append(parameter)
        groups = [{"params": group} for group in shapes.values()]
        super().__init__(groups, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update from the gradients."""
        for group in self.param_groups:
            params: list[torch.Tensor] = group["params"]
            for parameter in params:
                if "momentum" not in self.state[parameter]:
                    self.state[parameter]["momentum"] = torch.zeros_like(parameter)
            buffers = [self.state[parameter]["momentum"] for parameter in params]
            grads = [parameter.grad for parameter in params if parameter.grad is not None]
            if len(grads) != len(params):
                raise ValueError("a matrix has no gradient")
            torch._foreach_lerp_(buffers, grads, 1 - group["momentum"])
            nesterov = torch._foreach_lerp(grads, buffers, group["momentum"])
            rows, columns = params[0].shape
            scale = max(1.0, rows / columns) ** 0.5
            updates = orthogonalised(torch.stack(nesterov)).unbind(0)
            torch._foreach_mul_(params, 1 - group["lr"] * group["decay"])
            torch._foreach_add_(params, list(updates), alpha=-group["lr"] * scale)


@dataclass(slots=True)
class Optimizers:
    """Both optimizers with the learning rates that a schedule scales."""

    muon: Muon
    adam: torch.optim.AdamW

    def scale(self, share: float, step: int) -> None:
        """Set every learning rate to `share` of its base; Muon's momentum warms up over 300 steps."""
        for optimizer in (self.muon, self.adam):
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * share
        for group in self.muon.param_groups:
            group["momentum"] = 0.85 + 0.10 * min(1.0, step / 300)

    def step(self) -> None:
        """Update and clear the gradients."""
        self.muon.step()
        self.adam.step()
        self.muon.zero_grad(set_to_none=True)
        self.adam.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, object]:
        return {"muon": self.muon.state_dict(), "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict[str, dict[str, object]]) -> None:
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])


def optimizers_for(model: nn.Module, settings: Settings, scale: float = 1.0) -> Optimizers:
    """Muon for the projections inside the blocks, AdamW for the rest; AdamW's rates of tables and head shrink
    with the width as nanochat's do.
    """
    named = dict(model.named_parameters())
    inside = [n for n, p in named.items() if n.startswith("transformer.h.") and min(p.shape) >= GATE_ROWS]
    tables = [n for n in named if n.startswith(("transformer.wte", "value_embeds"))]
    head = [n for n in named if n.startswith("lm_head")]
    rest = sorted(set(named) - {*inside, *tables, *head})
    width = (settings.n_embd / 768) ** -0.5 * scale
    muon = Muon(
        [named[n] for n in inside],
        lr=settings.matrix_lr * scale,
        decay=settings.weight_decay,
    )
    groups = [
        {"params": [named[n] for n in tables], "lr": settings.embedding_lr * width},
        {"params": [named[n] for n in head], "lr": settings.head_lr * width},
    ]
    if rest:
        groups.append({"params": [named[n] for n in rest], "lr": settings.scalar_lr * scale})
    adam = torch.optim.AdamW(groups, betas=(0.8, 0.95), eps=1e-10, weight_decay=0.0)
    for optimizer in (muon, adam):
        for group in optimizer.param_groups:
            group["base_lr"] = group["lr"]
    return Optimizers(muon, adam)
