"""What keys and values are kept in: the model's own type, or eight bits with a scale for each token and head
(kernels.kv8), which halves what attention reads and lets the pool hold nearly twice the tokens.
"""

import torch

from engine.backend import Feature, short
from engine.messages.config import KvName
from kernels.kv8 import FORMAT, FP8_COMPUTE


def kv_format(asked: KvName, own: torch.dtype, device: torch.device, hooked: bool = False) -> torch.dtype:
    """What keys and values are kept in, FORMAT for eight bits. own: what they are in where nothing is asked
    for. hooked: some kernel is the user's own. Raises ValueError, naming kv_dtype, for what cannot be had.
    """
    if asked == "auto":
        return own
    if asked == "bf16":
        if own != torch.bfloat16:
            raise ValueError(f"kv_dtype is bf16, but the model is in {short(own)}; ask for dtype bfloat16")
        return own
    if asked != "fp8":
        raise ValueError(f"kv_dtype is {asked!r}, none of auto, bf16, fp8")
    reason = refusal(own, device, hooked)
    if reason is not None:
        raise ValueError(f"kv_dtype is fp8, but {reason}")
    return FORMAT


def refusal(dtype: torch.dtype, device: torch.device, hooked: bool) -> str | None:
    """Why keys and values of a model in this dtype cannot be kept in eight bits here; None if they can."""
    if device.type != "cuda":
        return f"that needs a CUDA device, and this is a {device.type}"
    if hooked:
        return "kernels of your own read keys and values in the model's dtype"
    if dtype != torch.bfloat16:
        return f"the model is in {short(dtype)}; ask for dtype bfloat16"
    capability = torch.cuda.get_device_capability(device)
    if capability < FP8_COMPUTE:
        need, have = (f"{major}.{minor}" for major, minor in (FP8_COMPUTE, capability))
        return f"that needs a device of compute capability {need}, and this one has {have}"
    return None


def kv_row(asked: KvName, own: torch.dtype, kept: torch.dtype, token_bytes: int) -> Feature:
    """For the start-up table. token_bytes: of a token's keys and values in all layers."""
    says = f"{token_bytes:,} bytes a token"
    if kept == FORMAT:
        return "kv dtype", asked, "fp8", f"e4m3 with a scale for each token and head; {says}"
    why = "the model's own" if kept == own and asked == "auto" else "as asked"
    return "kv dtype", asked, short(kept), f"{why}; {says}"
