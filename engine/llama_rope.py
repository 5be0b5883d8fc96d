"""Rotary frequencies of Llama-family models, with their ways to stretch a context.

Formulas and the order of their float32 operations are those of transformers, modeling_rope_utils.py.
"""

import math

import torch

from engine.llama_config import LlamaConfig, RopeScaling


def rope_frequencies(config: LlamaConfig) -> torch.Tensor:
    """Radians per position of each pair of channels, [head_dim / 2] float32, on the CPU."""
    exponent = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    periods = config.rope_base**exponent
    scaling = config.rope_scaling
    if scaling.kind == "linear":
        return 1.0 / periods / scaling.factor
    if scaling.kind == "llama3":
        return _llama3(1.0 / periods, scaling)
    if scaling.kind == "yarn":
        return _yarn(periods, config, scaling)
    return 1.0 / periods


def _llama3(frequencies: torch.Tensor, scaling: RopeScaling) -> torch.Tensor:
    """Slow channels are slowed by the factor, fast ones stay, those between are blended."""
    low, high, length = scaling.low_freq_factor, scaling.high_freq_factor, scaling.original_len
    wavelength = 2 * math.pi / frequencies
    slowed = torch.where(wavelength > length / low, frequencies / scaling.factor, frequencies)
    blend = (length / wavelength - low) / (high - low)
    smooth = (1 - blend) * slowed / scaling.factor + blend * slowed
    between = (wavelength >= length / high) & (wavelength <= length / low)
    return torch.where(between, smooth, slowed)


def _yarn(periods: torch.Tensor, config: LlamaConfig, scaling: RopeScaling) -> torch.Tensor:
    """Channels that turn often within the original length stay, those that turn rarely are slowed."""
    low, high = (
        _channel(turns, config.head_dim, config.rope_base, scaling.original_len)
        for turns in (scaling.beta_fast, scaling.beta_slow)
    )
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, config.head_dim - 1)
    if low == high:
        high += 0.001
    channel = torch.arange(config.head_dim // 2, dtype=torch.float32)
    kept = 1 - ((channel - low) / (high - low)).clamp(0, 1)
    return 1.0 / (scaling.factor * periods) * (1 - kept) + 1.0 / periods * kept


def _channel(turns: float, head_dim: int, base: float, length: int) -> float:
    """The channel, a fraction, that turns this often within `length` positions."""
    return (head_dim * math.log(length / (turns * 2 * math.pi))) / (2 * math.log(base))
