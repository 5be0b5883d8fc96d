"""Random weights for a model of any family, made on its device: for benchmarks without a checkpoint."""

import torch

from engine.llama import Llama
from engine.model import GPT

# Vectors that multiply the residual stream or a norm are near one, the others (biases, nanochat's other
# scalars) near zero.
_NEAR_ONE = ("norm.weight", "resid_lambdas")


def dummy_state(
    model: GPT | Llama, device: torch.device, dtype: torch.dtype, seed: int
) -> dict[str, torch.Tensor]:
    """A state dict of seeded normal numbers for a model without storage. A tied head is left out.

    Matrices have a standard deviation of one over the root of their inputs, so activations stay of order one
    at any size. The numbers depend on the kind of device. nanochat's vectors are float32 (see engine.loader).
    """
    generator = torch.Generator(device).manual_seed(seed)
    vectors = torch.float32 if isinstance(model, GPT) else dtype
    state: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():  # a tied head is no parameter of its own
        vector = parameter.dim() == 1
        tensor = torch.empty(parameter.shape, dtype=vectors if vector else dtype, device=device)
        mean = float(vector and name.endswith(_NEAR_ONE))
        std = 0.1 if vector else parameter.size(-1) ** -0.5
        state[name] = tensor.normal_(mean, std, generator=generator)
    return state
