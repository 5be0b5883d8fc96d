"""The engine on a CPU: a compiled step in int8 or bfloat16, or torch's packed projections with the reference
kernels.
"""

import logging
from dataclasses import dataclass

import msgspec
import torch

from engine.backend import DEFAULT_BLOCK_SIZE, Backend, Feature, most_tokens, short
from engine.cores import free_cores
from engine.decoder import Decoder, weight_of
from engine.eight_bits import kind8, rounded_model, weight_row
from engine.fastpath import flag_rows
from engine.flags import Resolved
from engine.hooks import KernelHooks
from engine.kv8 import kv_format, kv_row
from engine.memory import block_bytes, largest_pool, pool_blocks
from engine.messages import EngineConfig
from engine.model import GPT
from engine.rehearsal import rehearse
from engine.runner import ModelRunner
from kernels.attention import KVCache
from kernels.quantize import Kind8
from kernels.spec import CompiledKind

DEFAULT_ROWS = 8
DEFAULT_TOKENS = 2048
KEPT: dict[CompiledKind, str] = {"int8": "int8", "bf16": "bfloat16"}
SLOW_COMPILATION = 3.0  # seconds that loading what is compiled does not take

_log = logging.getLogger("fastpath.engine")


@dataclass(frozen=True, slots=True)
class Way:
    """How a model is served. compiled: what its weights are kept in, None for torch. rounded: eight bits that
    torch's weights have been through. why: for the start-up table; own: for it, where nothing was asked for.
    """

    compiled: CompiledKind | None
    rounded: Kind8 | None
    why: str
    own: str = "the model's own"


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a runner is made for."""

    blocks: int
    block_size: int
    max_rows: int
    max_model_len: int
    threads: int


def build(
    model: Decoder,
    config: EngineConfig,
    flags: Resolved,
    terminal_ids: tuple[int, ...],
    stored: str = "",
) -> Backend:
    """Also serves other devices, on plain torch. stored: see CheckpointMeta. Raises ValueError for settings
    that do not fit the model, and whatever a kernel of the user's own raises in its first steps.
    """
    hooks = KernelHooks.of(flags.values)
    weight = weight_of(model)
    device, dtype = weight.device, weight.dtype
    way = _way(model, config, stored, flags.hooked(device.type))
    cached = dtype if way.compiled is None else torch.bfloat16
    kv_format(config.kv_dtype, cached, device, flags.hooked(device.type))
    max_rows = config.max_rows or DEFAULT_ROWS
    block_size = config.block_size or model.config.kv_block_size or DEFAULT_BLOCK_SIZE
    max_model_len = most_tokens(model.config, config.max_model_len)
    if device.type == "cuda":
        config = _fitting(model, config, block_size, dtype, device)
    blocks = pool_blocks(model.config, config, block_size, max_rows, max_model_len, cached)
    threads = config.threads or free_cores()
    sizes = Sizes(blocks, block_size, max_rows, max_model_len, threads)
    shape = model.config
    cache = KVCache.allocate(
        shape.n_layer, blocks, block_size, shape.n_kv_head, shape.head_dim, cached, device
    )
    if way.compiled is not None:
        assert isinstance(model, GPT)
        runner, rows, step_bytes = _compiled(model, way.compiled, cache, sizes, config, terminal_ids)
        weights_bytes = step_bytes + looked_up(model)
    else:
        runner, rows = _plain(model, way.rounded, cache, sizes, config, terminal_ids, hooks)
        weights_bytes = step_bytes = 0
    try:
        if flags.hooked(device.type):
            rehearse(runner, strict=True)
        return Backend(
            runner=runner,
            device=device,
            dtype=dtype,
            kept="" if way.compiled is None else KEPT[way.compiled],
            blocks=blocks,
            max_blocks=largest_pool(config, blocks, block_size, config.kv_page_size or shape.kv_page_size),
            block_size=block_size,
            max_rows=max_rows,
            max_batched_tokens=config.max_batched_tokens or DEFAULT_TOKENS,
            max_model_len=max_model_len,
            spread=-(-max_model_len // block_size),
            features=[
                *rows,
                _weight_row(way, config, dtype),
                kv_row(config.kv_dtype, cached, cached, block_bytes(shape, 1, cached)),
                *flag_rows(flags, device.type, block_size, hooks.used),
            ],
            weights_bytes=weights_bytes,
            step_bytes=step_bytes,
        )
    except BaseException:
        runner.close()
        raise


def _weight_row(way: Way, config: EngineConfig, dtype: torch.dtype) -> Feature:
    if way.compiled is None:
        return weight_row(config.weight_dtype, dtype, way.why, way.own)
    return "weight dtype", config.weight_dtype, way.compiled, way.why


def _way(model: Decoder, config: EngineConfig, stored: str, hooked: bool) -> Way:
    """Raises ValueError for a weight_dtype that cannot be had."""
    dtype = weight_of(model).dtype
    wanted, why = _wanted(model, config, stored)
    reason = None
    if wanted is not None:
        reason = "kernels of your own are called by torch's path" if hooked else _refusal(model)
        if reason is None:
            return Way(wanted, None, why)
        if config.weight_dtype == "bf16" and dtype != torch.bfloat16:
            raise ValueError(f"weight_dtype is bf16, and {reason}")
        if isinstance(model, GPT) or config.weight_dtype != "auto":
            _log.warning("the compiled path for %s weights is not used: %s", wanted, reason)
    kind = kind8(config.weight_dtype, dtype)
    said = f"rounded once, then computed with in {short(dtype)}"
    if reason is None:
        return Way(None, kind, said)
    return Way(None, kind, f"{said}: {reason}", f"the compiled path for {wanted} is not used: {reason}")


def _wanted(model: Decoder, config: EngineConfig, stored: str) -> tuple[CompiledKind | None, str]:
    """What compiled weights are asked for, or are the best that there is, and why."""
    weight = weight_of(model)
    if weight.device.type != "cpu" or config.dtype == "float32":
        return None, ""
    match config.weight_dtype:
        case "int8":
            return "int8", "as asked; activations are rounded to int8, too, token by token"
        case "bf16":
            return "bf16", "as asked; activations in float32"
        case "auto" if stored == "int8" and config.dtype == "auto":
            return "int8", "the file's own, and the fastest here; --dtype float32 is the reference"
        case "auto" if weight.dtype == torch.bfloat16:
            return "bf16", "the model's own; activations in float32"
    return None, ""


def _refusal(model: Decoder) -> str | None:
    """Why there is no compiled path for this model here; None if there is."""
    try:
        from kernels.cpu.isa import NoVectors, host
    except ImportError as error:
        return f"numba cannot be imported: {error}"
    try:
        host()
        from engine.compiled import refusal
        from kernels.cpu.entry import NotPreparedError, prepared
    except NoVectors as error:
        return str(error)
    except ImportError as error:
        return f"numba cannot be imported: {error}"
    reason = refusal(model)
    if reason is None:
        try:
            prepared()
        except NotPreparedError as error:
            return str(error)
    return reason


def _compiled(
    model: GPT,
    kind: CompiledKind,
    cache: KVCache,
    sizes: Sizes,
    config: EngineConfig,
    terminal_ids: tuple[int, ...],
) -> tuple[ModelRunner, list[Feature], int]:
    """The runner, its rows of the start-up table, and the bytes of weights that a step reads."""
    from engine.compiled import CompiledModel, useful_threads
    from engine.compiled_runner import CompiledRunner
    from kernels.cpu.entry import prepared
    from kernels.cpu.isa import host

    _, seconds = prepared()
    compiled_now = f"; compiled in {seconds:.0f} s" if seconds > SLOW_COMPILATION else ""
    threads = sizes.threads if config.threads else useful_threads(model, kind, sizes.threads)
    compiled = CompiledModel(
        model, kind, cache, sizes.max_rows, sizes.max_model_len, threads, adapt=config.threads is None
    )
    try:
        runner = CompiledRunner(compiled, sizes.max_rows, sizes.max_model_len, terminal_ids)
    except BaseException:
        compiled.close()
        raise
    rows: list[Feature] = [
        ("attention", "auto", "compiled", "read from the pages where they lie, keys and values in bfloat16"),
        (
            "linear",
            "auto",
            f"compiled, {host().name}",
            f"one call for a step; rows are bit-equal in any batch{compiled_now}",
        ),
        (
            "cpu threads",
            str(config.threads or "auto"),
            str(threads),
            "as asked" if config.threads else "at most; fewer while other programs take a core",
        ),
    ]
    return runner, rows, compiled.weight_bytes


def looked_up(model: GPT) -> int:
    """Bytes of what a step takes single rows of."""
    tables = [part.weight for part in model.modules() if isinstance(part, torch.nn.Embedding)]
    return sum(table.numel() * table.element_size() for table in tables)


def _plain(
    model: Decoder,
    kind: Kind8 | None,
    cache: KVCache,
    sizes: Sizes,
    config: EngineConfig,
    terminal_ids: tuple[int, ...],
    hooks: KernelHooks,
) -> tuple[ModelRunner, list[Feature]]:
    served = (model if kind is None else rounded_model(model, kind)).packed()
    runner = ModelRunner(served, cache, sizes.max_rows, terminal_ids, sizes.threads, hooks)
    return runner, _features(served, sizes.threads, config, hooks)


def _fitting(
    model: Decoder, config: EngineConfig, block_size: int, dtype: torch.dtype, device: torch.device
) -> EngineConfig:
    """With as many KV blocks as memory holds, where no number was asked for. Raises ValueError where a pool
    could not grow as far as was asked.
    """
    if config.num_blocks is not None and config.max_num_blocks is None:
        return config
    fitting = _that_fit(model, config, block_size, dtype, device)
    if config.num_blocks is None:
        return msgspec.structs.replace(config, num_blocks=fitting)
    if config.max_num_blocks is not None and config.max_num_blocks > fitting:
        raise ValueError(f"max_num_blocks {config.max_num_blocks}: memory holds {fitting} KV blocks")
    return config


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
