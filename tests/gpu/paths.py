"""Which of the tests' models the kernels of the decode paths serve on this device."""

import torch

from engine.decoder import Decoder
from engine.gpu.cache import PagedKV
from engine.gpu.paths import LIBRARY, installed, spec_of
from engine.gpu.weights import network_weights


def why_not(model: Decoder, block_size: int = 16) -> str | None:
    """Why a model on the device is not served by them; None where it is."""
    library, config = installed(), model.config
    if library is None:
        return f"{LIBRARY} is not there"
    weights = network_weights(model)
    device, dtype = weights.embedding.device, weights.embedding.dtype
    cache = PagedKV(1, 2, block_size, config.n_kv_head, config.head_dim, dtype, device)
    spec = spec_of(weights, cache)
    if isinstance(spec, str):
        return spec
    return library.unsupported(spec, torch.cuda.get_device_capability(device))
