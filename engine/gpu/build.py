"""Puts an engine together on a GPU: weights, kernels by measurement, memory by measurement, graphs.

Order matters: everything of fixed size is allocated first, every kind of step runs once against a tiny KV
pool for what it needs compiled, the largest are captured to see what graphs take, then keys and values get
what is left, and the graphs are captured for good.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch

from engine.backend import DEFAULT_BLOCK_SIZE, Backend, Feature, most_tokens
from engine.decoder import Decoder, weight_of
from engine.eight_bits import kind8, weight_row
from engine.fastpath import flag_rows
from engine.faults import PathFailed
from engine.flags import Resolved
from engine.forced import forced_blocks
from engine.gpu.cache import PagedKV
from engine.gpu.flags import cluster_rule, flash_use, graphs_for, outcomes, paths_blocked
from engine.gpu.graphs import Buckets
from engine.gpu.linears import Linears, build_linears
from engine.gpu.memory import GRAPH_MARGIN, MEMORY_SHARE, RESERVE, MemoryBudget, kv_bytes, used
from engine.gpu.network import Network, programmatic_launch
from engine.gpu.path_choice import Wanted, choose_paths
from engine.gpu.paths import installed
from engine.gpu.product_choice import choose_products
from engine.gpu.rows import DeviceRows
from engine.gpu.runner import GpuRunner
from engine.gpu.staging import StepStaging
from engine.gpu.te import describe, groups, keeper_of, maker_of, prepare
from engine.gpu.weights import Keeper, NetworkWeights, network_weights
from engine.kv8 import kv_format, kv_row
from engine.memory import block_bytes, largest_pool, whole_pages
from engine.messages import EngineConfig
from engine.rehearsal import rehearse
from kernels.backends import select_backend
from kernels.backends.base import short_keys
from kernels.kv8 import FORMAT
from kernels.te_linear import TeMaker

DEFAULT_ROWS = 256
DEFAULT_TOKENS = 8192
TRIAL_BLOCKS = 2


@dataclass(slots=True)
class Clock:
    """Seconds of each part of the start, for the start-up table."""

    parts: dict[str, float] = field(default_factory=dict)
    _last: float = field(default_factory=time.perf_counter)

    def lap(self, part: str) -> None:
        now = time.perf_counter()
        self.parts[part] = now - self._last
        self._last = now

    def __str__(self) -> str:
        return ", ".join(f"{part} {seconds:.1f} s" for part, seconds in self.parts.items())


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the configuration says about an engine's size, defaults filled in."""

    max_rows: int
    max_tokens: int
    max_model_len: int
    block_size: int

    @classmethod
    def of(cls, model: Decoder, config: EngineConfig) -> "Sizes":
        rows = config.max_rows or DEFAULT_ROWS
        return cls(
            rows,
            max(config.max_batched_tokens or DEFAULT_TOKENS, rows),
            most_tokens(model.config, config.max_model_len),
            config.block_size or model.config.kv_block_size or DEFAULT_BLOCK_SIZE,
        )

    @property
    def blocks_per_sequence(self) -> int:
        return -(-self.max_model_len // self.block_size)


def build(
    model: Decoder,
    config: EngineConfig,
    flags: Resolved,
    terminal_ids: tuple[int, ...],
    consume: bool,
    passages: Sequence[list[int]],
) -> Backend:
    """consume: what is copied of the model is freed there. passages: what Transformer Engine's projections
    are calibrated with (engine.calibration). Raises ValueError for settings that do not fit the model or the
    device.
    """
    clock = Clock()
    sizes = Sizes.of(model, config)
    weight = weight_of(model)
    device, dtype = weight.device, weight.dtype
    torch.cuda.set_device(device)
    kept = kv_format(config.kv_dtype, dtype, device)
    maker = maker_of(flags, device, dtype)
    keeper = _keeper(config, flags, maker, dtype)
    weights = network_weights(model, consume, keeper)
    before = used(device)
    linears = build_linears(
        weights, config.linear_backend, sizes.max_tokens, programmatic_launch(device), maker
    )
    clock.lap("linear probe")
    network, attention = _network(weights, linears, sizes, config, flags, kept)
    use_graphs = graphs_for(flags, network.attention)
    # Graphs hold the addresses of what they were captured with, whatever the flag says.
    network.persistent = use_graphs or flags.values.enable_persistent_decode
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    buckets = Buckets.up_to(sizes.max_rows, sizes.max_tokens, partial(short_keys, network.attention))
    staging = StepStaging(buckets, device)
    runner = GpuRunner(network, staging, terminal_ids, stream, use_graphs)
    network.cache = _cache(model, TRIAL_BLOCKS, sizes, kept, device)
    # Kernels are compiled for what is known to be chosen, and measuring the rest needs them.
    choose = partial(_choose_products, network, config, use_graphs, sizes)
    choose(None)
    compiled = runner.compile()
    clock.lap("kernels")
    with torch.cuda.stream(stream):
        measured = choose(partial(_cache, model, sizes=sizes, kept=kept, device=device))
    compiled += runner.compile() if measured else 0
    clock.lap("products")
    if maker is not None:
        _prepare_te(runner, network, linears, passages, sizes, model, kept)
        clock.lap("calibration")
    blocked = paths_blocked(config, flags, use_graphs)
    paths = _choose_paths(network, staging.buckets, config, blocked, sizes, model, kept, stream)
    clock.lap("decode paths")
    if not network.persistent:
        network.reserve()
    budget, blocks, most = _size_pool(runner, network, sizes, model, config, before, kept)
    clock.lap("memory")
    network.cache = _cache(model, blocks, sizes, kept, device)
    runner.capture()
    clock.lap("graphs")
    _rehearse(runner)
    clock.lap("rehearsal")
    known = outcomes(flags, network.attention, attention, runner.graphs, budget.graphs)
    step_bytes = f"{weights.bytes_per_step / 2**30:.2f} GiB of weights in each decode step"
    te_rows, te_known = describe(maker, flags, step_bytes)
    return Backend(
        runner=runner,
        device=device,
        dtype=dtype,
        blocks=blocks,
        max_blocks=most,
        block_size=sizes.block_size,
        max_rows=sizes.max_rows,
        max_batched_tokens=sizes.max_tokens,
        max_model_len=sizes.max_model_len,
        spread=1,
        features=[
            *attention,
            *(te_rows or [weight_row(config.weight_dtype, dtype, step_bytes)]),
            kv_row(config.kv_dtype, dtype, kept, block_bytes(model.config, 1, kept)),
            *linears.features,
            *paths,
            ("start", "", str(clock), f"{compiled} kernels compiled on {len(os.sched_getaffinity(0))} cores"),
            *(("memory", "", f"{part} {size / 2**30:.2f} GiB", "") for part, size in budget.parts().items()),
            *flag_rows(flags, "cuda", sizes.block_size, known | te_known),
        ],
        memory=budget.parts(),
        weights_bytes=weights.total_bytes if keeper else 0,
        step_bytes=weights.bytes_per_step if keeper else 0,
    )


def _keeper(
    config: EngineConfig, flags: Resolved, maker: TeMaker | None, dtype: torch.dtype
) -> Keeper | None:
    """What becomes of projections that are not kept as they are; None if all are."""
    if maker is not None:
        return keeper_of(maker, flags)
    kind = kind8(config.weight_dtype, dtype)
    return None if kind is None else Keeper.eight_bits(kind)


def _network(
    weights: NetworkWeights,
    linears: Linears,
    sizes: Sizes,
    config: EngineConfig,
    flags: Resolved,
    kept: torch.dtype,
) -> tuple[Network, list[Feature]]:
    device = weights.embedding.device
    rows = DeviceRows(sizes.max_rows, sizes.blocks_per_sequence + 1, weights.vocab_size, device)
    rotary = weights.layers[0].rotary
    attention, features = select_backend(
        config.attention_backend,
        heads=rotary.heads,
        kv_heads=rotary.kv_heads,
        head_dim=rotary.head_dim,
        block_size=sizes.block_size,
        dtype=weights.embedding.dtype,
        max_rows=sizes.max_rows,
        max_context=sizes.max_model_len,
        device=device,
        fp8_kv=kept == FORMAT,
        flash=flash_use(flags),
        flash_sdp=flags.values.use_flash_sdp,
        clusters=cluster_rule(flags),
    )
    network = Network(weights, linears, rows, attention, sizes.max_tokens, sizes.max_rows)
    return network, features


def _prepare_te(
    runner: GpuRunner,
    network: Network,
    linears: Linears,
    passages: Sequence[list[int]],
    sizes: Sizes,
    model: Decoder,
    kept: torch.dtype,
) -> None:
    """With a cache of its own, after which there is the trial's again."""
    device = network.weights.embedding.device
    batches = groups(passages, sizes.max_rows, sizes.max_model_len)
    blocks = max(forced_blocks(batch, sizes.block_size) for batch in batches)
    network.cache = _cache(model, blocks, sizes, kept, device)
    prepare(runner, linears, batches, sizes.block_size)
    network.cache = _cache(model, TRIAL_BLOCKS, sizes, kept, device)


def _choose_products(
    network: Network,
    config: EngineConfig,
    use_graphs: bool,
    sizes: Sizes,
    make_cache: Callable[[int], PagedKV] | None,
) -> bool:
    """See choose_products. Without graphs, or where kernels do not start early, neighbours hardly matter."""
    if config.linear_backend != "auto" or not use_graphs or not network.pdl or network.linears.te:
        return False
    return choose_products(network, network.linears.choices, sizes.max_rows, sizes.max_model_len, make_cache)


def _choose_paths(
    network: Network,
    buckets: Buckets,
    config: EngineConfig,
    blocked: str | None,
    sizes: Sizes,
    model: Decoder,
    kept: torch.dtype,
    stream: torch.cuda.Stream,
) -> list[Feature]:
    """With a cache of its own, after which there is the trial's again. kept: what keys and values are in."""
    device = network.weights.embedding.device
    linear = f"{config.linear_backend} {network.linears.choices.fingerprint()}"
    wanted = Wanted(config.decode_path, blocked, buckets.decode, sizes.max_model_len, linear)
    with torch.cuda.stream(stream):
        choices = choose_paths(
            network, wanted, lambda blocks: _cache(model, blocks, sizes, kept, device), installed()
        )
    torch.cuda.synchronize(device)
    return choices.explain(config.decode_path)


def _rehearse(runner: GpuRunner) -> None:
    """Kernels that give up in it are as good as those that do while serving: not used any more."""
    try:
        rehearse(runner)
    except PathFailed:
        runner.leave_paths()
        rehearse(runner)


def _size_pool(
    runner: GpuRunner,
    network: Network,
    sizes: Sizes,
    model: Decoder,
    config: EngineConfig,
    before: int,
    kept: torch.dtype,
) -> tuple[MemoryBudget, int, int]:
    """Measures what everything but keys and values takes; the budget, the pool's blocks, and those that it
    may grow to. Raises ValueError where they do not fit.
    """
    weights = network.weights
    device = weights.embedding.device
    allocated = used(device)
    runner.capture(largest_only=True)
    # The largest of both kinds; what the others' nodes take is small, and comes out of the reserve.
    graphs = int((used(device) - allocated) * GRAPH_MARGIN)
    runner.forget_graphs()
    network.cache = None
    per_block = block_bytes(model.config, sizes.block_size, kept)
    page = config.kv_page_size or model.config.kv_page_size
    if config.num_blocks is not None:
        if config.num_blocks < 1:
            raise ValueError(f"num_blocks is {config.num_blocks}; at least 1 is needed")
        blocks = 1 + config.num_blocks
    else:
        room = config.kv_bytes or kv_bytes(device, MEMORY_SHARE, used(device) + graphs)
        blocks = room // per_block
        if blocks <= (sizes.blocks_per_sequence if config.max_model_len is not None else 1):
            raise ValueError(
                f"a sequence of {sizes.max_model_len} tokens needs {sizes.blocks_per_sequence} KV blocks and "
                f"memory holds {blocks - 1}; lower max_model_len or set num_blocks"
            )
    blocks = whole_pages(blocks, sizes.block_size, page)
    most = largest_pool(config, blocks, sizes.block_size, page)
    if most > blocks:
        _check_largest(
            most, per_block, config.kv_bytes or kv_bytes(device, MEMORY_SHARE, used(device) + graphs)
        )
    _, total = torch.cuda.mem_get_info(device)
    taken = weights.total_bytes
    budget = MemoryBudget(
        total=total,
        other=before - taken,
        weights=taken,
        activations=allocated - before,
        graphs=graphs,
        reserve=RESERVE,
        kv=blocks * per_block,
    )
    return budget, blocks, most


def _check_largest(blocks: int, per_block: int, room: int) -> None:
    """Raises ValueError where so many blocks of `per_block` bytes take more than `room`."""
    if blocks * per_block > room:
        raise ValueError(
            f"max_num_blocks: {blocks - 1} KV blocks, and one to write off, take "
            f"{blocks * per_block / 2**30:.2f} GiB; memory holds {max(room // per_block - 1, 0)} in "
            f"{room / 2**30:.2f} GiB"
        )


def _cache(model: Decoder, blocks: int, sizes: Sizes, kept: torch.dtype, device: torch.device) -> PagedKV:
    shape = model.config
    return PagedKV(shape.n_layer, blocks, sizes.block_size, shape.n_kv_head, shape.head_dim, kept, device)
