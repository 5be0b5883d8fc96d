"""The engine on a CPU: packed projections, the reference kernels, one step thread."""

import msgspec
import torch

from engine.backend import DEFAULT_BLOCK_SIZE, Backend, Feature, most_tokens
from engine.decoder import Decoder, weight_of
from engine.eight_bits import kind8, rounded_model, weight_row
from engine.fastpath import flag_rows
from engine.flags import Resolved
from engine.hooks import KernelHooks
from engine.memory import block_bytes, largest_pool, pool_blocks
from engine.messages import EngineConfig
from engine.rehearsal import rehearse
from engine.runner import ModelRunner
from kernels.attention import KVCache

DEFAULT_ROWS = 8
DEFAULT_TOKENS = 2048


def build(model: Decoder, config: EngineConfig, flags: Resolved, terminal_ids: tuple[int, ...]) -> Backend:
    """Also serves other devices, on plain torch. Raises ValueError for settings that do not fit the model,
    and whatever a kernel of the user's own raises in its first steps.
    """
    hooks = KernelHooks.of(flags.values)
    weight = weight_of(model)
    device, dtype = weight.device, weight.dtype
    max_rows = config.max_rows or DEFAULT_ROWS
    block_size = config.block_size or model.config.kv_block_size or DEFAULT_BLOCK_SIZE
    max_model_len = most_tokens(model.config, config.max_model_len)
    kind = kind8(config.weight_dtype, dtype)
    rounded = model if kind is None else rounded_model(model, kind)
    if device.type == "cuda" and (config.num_blocks is None or config.max_num_blocks is not None):
        fitting = _that_fit(model, config, block_size, dtype, device)
        if config.num_blocks is None:
            config = msgspec.structs.replace(config, num_blocks=fitting)
        elif config.max_num_blocks is not None and config.max_num_blocks > fitting:
            raise ValueError(f"max_num_blocks {config.max_num_blocks}: memory holds {fitting} KV blocks")
    blocks = pool_blocks(model.config, config, block_size, max_rows, max_model_len, dtype)
    page = config.kv_page_size or model.config.kv_page_size
    served = rounded.packed()
    shape = model.config
    cache = KVCache.allocate(
        shape.n_layer, blocks, block_size, shape.n_kv_head, shape.head_dim, dtype, device
    )
    threads = config.threads or torch.get_num_threads()
    runner = ModelRunner(served, cache, max_rows, terminal_ids, threads, hooks)
    if flags.hooked:
        try:
            rehearse(runner, strict=True)
        except BaseException:
            runner.close()
            raise
    return Backend(
        runner=runner,
        device=device,
        dtype=dtype,
        blocks=blocks,
        max_blocks=largest_pool(config, blocks, block_size, page),
        block_size=block_size,
        max_rows=max_rows,
        max_batched_tokens=config.max_batched_tokens or DEFAULT_TOKENS,
        max_model_len=max_model_len,
        spread=-(-max_model_len // block_size),
        features=[
            *_features(served, threads, config, hooks),
            weight_row(
                config.weight_dtype,
                dtype,
                f"rounded once, then computed with in {str(dtype).removeprefix('torch.')}",
            ),
            *flag_rows(flags, device.type, block_size, hooks.used),
        ],
    )


def _that_fit(
    model: Decoder, config: EngineConfig, block_size: int, dtype: torch.dtype, device: torch.device
) -> int:
    """KV blocks for the plain runner on a GPU: half of what is free there, unless bytes were asked for."""
    free, _ = torch.cuda.mem_get_info(device)
    return max(1, (config.kv_bytes or free // 2) // block_bytes(model.config, block_size, dtype))


def _features(served: Decoder, threads: int, config: EngineConfig, hooks: KernelHooks) -> list[Feature]:
    packed = getattr(getattr(served, "lm_head", None), "packed", False)
    return [
        ("attention", "auto", "paged reference (torch)", "the only one for this device")
        if hooks.clustered is None
        else ("attention", "auto", "clustered attention kernel", "your own, a call for each row"),
        (
            "linear",
            "auto",
            "oneDNN packed" if packed else "torch",
            "rows are bit-equal in any batch" if packed else "no packed layout for this device or dtype",
        ),
        ("cpu threads", str(config.threads or "auto"), str(threads), "torch's intra-op threads"),
    ]
