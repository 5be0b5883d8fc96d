"""What a training step costs in arithmetic, and what a device could do at most."""

import torch

from engine.config import GPTConfig

# Dense bf16 peak in FLOP/s by the driver's name: of NVIDIA's data sheets of each, the SXM part, half of what
# they state with sparsity. Boards of like name (H100 PCIe, H200 NVL, GB200) have other peaks.
PEAK_FLOPS = {
    "NVIDIA B200": 2250e12, "NVIDIA H200": 989e12, "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA A100-SXM4-40GB": 312e12, "NVIDIA A100-SXM4-80GB": 312e12,
}  # fmt: skip


def peak_flops(device: torch.device) -> float | None:
    """Dense bf16 peak of a device; None where it is not known."""
    if device.type != "cuda":
        return None
    return PEAK_FLOPS.get(torch.cuda.get_device_name(device))


def flops_per_token(config: GPTConfig, time: int) -> float:
    """FLOPs of a token's forward and backward pass in a row of `time` tokens.

    Two for each weight of a matrix product forward, four backward; looking up embeddings costs nothing.
    Attention counts the keys that a token sees, (time + 1) / 2 on average where it sees all before it:
    2 x 2 x heads x head_dim for each forward, twice that backward. What is computed again on the way back
    does not count. (The definition of PaLM, Chowdhery et al. 2022, appendix B, but with causal attention.)
    """
    width = config.n_embd
    kv_width = config.n_kv_head * config.head_dim
    weights = config.n_layer * (2 * width * width + 2 * width * kv_width + 8 * width * width)
    weights += (config.padded_vocab_size or config.vocab_size) * width
    keys = 0.0
    for layer in range(config.n_layer):
        window = config.window(layer)
        seen = time if window is None else min(time, window + 1)  # the current one comes on top
        keys += seen * (seen + 1) / 2 / time + seen * (time - seen) / time
    return 6 * weights + 12 * width * keys
