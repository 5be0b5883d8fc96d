"""Paged attention of single queries against exact attention."""

from itertools import product

import pytest
import torch

from kernels.triton.decode import DecodeConfig, DecodeWorkspace, paged_decode, plan_decode
from kernels.triton.decode_config import config_for
from tests.kernels.triton.paged import (
    DEVICE,
    Paged,
    also_eight_bits,
    assert_close,
    assert_near_the_whole,
    exact_attention,
    fused_queries,
    ints,
    paged,
    poisoned,
)

TINY = DecodeConfig(block_keys=16, min_chunk=16, units_per_sm=64)  # many units, whatever the work


def workspace(
    entries: int, heads: int, kv_heads: int, head_dim: int, config: DecodeConfig | None
) -> DecodeWorkspace:
    space = DecodeWorkspace.allocate(
        entries, heads, kv_heads, head_dim, 4096, DEVICE, config=config, multiprocessors=4
    )
    # What is not meant to be read must not be needed.
    space.partials.fill_(float("nan"))
    space.stats.fill_(float("nan"))
    return space


def decode(
    cache: Paged,
    query: torch.Tensor,
    rows: list[int],
    positions: list[int],
    space: DecodeWorkspace,
    window: int | None,
) -> torch.Tensor:
    out = poisoned(len(rows), query.size(1) * query.size(2), dtype=query.dtype)
    plan_decode(ints(rows), ints(positions), space, window=window)
    paged_decode(
        query,
        cache.k_pages,
        cache.v_pages,
        cache.tables,
        ints(rows),
        ints(positions),
        out,
        space,
        scale=query.size(-1) ** -0.5,
        window=window,
        scales=cache.scales,
    )
    assert (space.counters == 0).all()
    return out


def check(
    cache: Paged,
    query: torch.Tensor,
    rows: list[int],
    positions: list[int],
    space: DecodeWorkspace,
    window: int | None = None,
) -> torch.Tensor:
    out = decode(cache, query, rows, positions, space, window)
    whole: list[torch.Tensor] = []
    for entry, (row, position) in enumerate(zip(rows, positions, strict=True)):
        if row < 0:
            assert out[entry].isnan().all()
            continue
        keys, values = (x[row][: position + 1] for x in (cache.keys, cache.values))
        exact = exact_attention(
            query[entry : entry + 1], keys, values, position, query.size(-1) ** -0.5, window
        )
        assert_close(out[entry : entry + 1], exact)
        if cache.scales is not None:
            keys, values = (x[row][: position + 1] for x in (cache.whole_keys, cache.whole_values))
            whole.append(
                exact_attention(
                    query[entry : entry + 1], keys, values, position, query.size(-1) ** -0.5, window
                )
            )
    if whole:
        assert_near_the_whole(out[[row >= 0 for row in rows]], torch.cat(whole))
    return out


HEADS = [(1, 1), (2, 1), (8, 2), (8, 1), (3, 1), (20, 1)]
CONFIGS = {"default": None, "many units": TINY}


@pytest.mark.parametrize(
    ("heads", "kv_heads", "config", "dtype", "eight_bits"),
    [
        *((*heads, config, torch.float32, False) for heads in HEADS for config in CONFIGS),
        *also_eight_bits((*heads, config, torch.bfloat16) for heads in HEADS for config in CONFIGS),
    ],
    ids=str,
)
def test_ragged_rows(heads: int, kv_heads: int, config: str, dtype: torch.dtype, eight_bits: bool) -> None:
    contexts = [1, 15, 16, 17, 48, 49, 130]
    cache = paged(contexts, kv_heads, 32, 16, dtype, eight_bits=eight_bits)
    query = fused_queries(len(contexts), heads, kv_heads, 32, dtype)
    space = workspace(len(contexts), heads, kv_heads, 32, CONFIGS[config])
    check(cache, query, list(range(len(contexts))), [context - 1 for context in contexts], space)


@pytest.mark.parametrize(
    ("block_size", "heads_first", "heads", "eight_bits"),
    also_eight_bits(product((1, 4, 32, 64, 256), (False, True), (1, 4))),
)
def test_block_sizes_and_layouts(block_size: int, heads_first: bool, heads: int, eight_bits: bool) -> None:
    contexts = [31, 33, 64, 101]
    cache = paged(contexts, 1, 32, block_size, torch.bfloat16, heads_first=heads_first, eight_bits=eight_bits)
    query = fused_queries(len(contexts), heads, 1, 32, torch.bfloat16)
    space = workspace(len(contexts), heads, 1, 32, DecodeConfig(block_keys=16, min_chunk=32, units_per_sm=2))
    check(cache, query, list(range(len(contexts))), [context - 1 for context in contexts], space)


@pytest.mark.parametrize(
    ("heads", "window", "units_per_sm", "eight_bits"),
    also_eight_bits(product((1, 4), (0, 15, 16, 40, 500), (1, 64))),
)
def test_windows(heads: int, window: int, units_per_sm: int, eight_bits: bool) -> None:
    contexts = [1, 41, 97]
    cache = paged(contexts, 1, 32, 16, torch.bfloat16, eight_bits=eight_bits)
    for row, context in enumerate(contexts):  # blocks that a window has left behind are no longer the row's
        cache.tables[row, : max(0, context - 1 - window) // 16] = 0
    query = fused_queries(len(contexts), heads, 1, 32, torch.bfloat16)
    config = DecodeConfig(block_keys=32, min_chunk=32, units_per_sm=units_per_sm)
    space = workspace(len(contexts), heads, 1, 32, config)
    check(cache, query, list(range(len(contexts))), [context - 1 for context in contexts], space, window)


VARIANTS = {
    "prefetch": DecodeConfig(block_keys=16, prefetch=True),
    "prefetch, several units": DecodeConfig(block_keys=16, prefetch=True, min_chunk=32, units_per_sm=16),
    "persistent": DecodeConfig(block_keys=16, persistent=True, min_chunk=16, units_per_sm=1),
    "persistent, few programs": DecodeConfig(block_keys=16, persistent=True, min_chunk=32, units_per_sm=2),
    "stages": DecodeConfig(block_keys=16, num_warps=4, num_stages=3),
    "large tiles": DecodeConfig(block_keys=128, min_chunk=64, units_per_sm=16),
}


@pytest.mark.parametrize(("name", "heads", "eight_bits"), also_eight_bits(product(VARIANTS, (1, 4))))
def test_variants(name: str, heads: int, eight_bits: bool) -> None:
    contexts, head_dim = [1, 63, 129, 300], 64 if eight_bits else 32
    cache = paged(contexts, 1, head_dim, 16, torch.bfloat16, eight_bits=eight_bits)
    query = fused_queries(len(contexts), heads, 1, head_dim, torch.bfloat16)
    space = workspace(len(contexts), heads, 1, head_dim, VARIANTS[name])
    check(cache, query, list(range(len(contexts))), [context - 1 for context in contexts], space)


def test_padding_and_rows_in_any_order() -> None:
    contexts = [20, 40, 60]
    cache = paged(contexts, 2, 32, 16, torch.bfloat16)
    query = fused_queries(5, 2, 2, 32, torch.bfloat16)
    check(cache, query, [2, -1, 0, -1, 1], [59, 7, 12, -1, 39], workspace(8, 2, 2, 32, TINY))
    check(cache, query[:2], [-1, -1], [0, 0], workspace(8, 2, 2, 32, TINY))


def test_one_workspace_serves_step_after_step() -> None:
    cache = paged([100, 77, 5, 130], 2, 32, 16, torch.bfloat16)
    space = workspace(4, 4, 2, 32, TINY)
    query = fused_queries(4, 4, 2, 32, torch.bfloat16)
    for rows, positions, window in (
        ([0, 1, 2, 3], [99, 76, 4, 129], None),
        ([3, 0], [128, 98], None),
        ([0, 1, 2, 3], [99, 76, 4, 129], 20),
        ([-1, 3, 1], [0, 100, 70], None),
    ):
        check(cache, query[: len(rows)], rows, positions, space, window)


def test_windows_planned_together_do_not_disturb_each_other() -> None:
    cache = paged([100, 77], 2, 32, 16, torch.bfloat16)
    query, space = fused_queries(2, 2, 2, 32, torch.bfloat16), workspace(2, 2, 2, 32, TINY)
    expected = {window: decode(cache, query, [0, 1], [99, 76], space, window) for window in (None, 20)}
    rows, positions = ints([0, 1]), ints([99, 76])
    for window in expected:
        plan_decode(rows, positions, space, window=window)
    for window, before in expected.items():
        out = torch.empty_like(before)
        pages = (cache.k_pages, cache.v_pages, cache.tables)
        paged_decode(query, *pages, rows, positions, out, space, scale=32**-0.5, window=window)
        assert torch.equal(out, before)


def test_the_units_stay_within_the_grid_and_cover_every_key() -> None:
    for heads, lengths in ((1, [1] * 40), (1, [4000, 1, 1]), (4, [257, 1024, 33, 900, 17])):
        config = DecodeConfig(block_keys=32, min_chunk=32, units_per_sm=3)
        space = workspace(len(lengths), heads, heads, 32, config)
        rows, positions = ints(list(range(len(lengths)))), ints([length - 1 for length in lengths])
        plan_decode(rows, positions, space, window=None)
        work = space.work_list(None)
        live = int(work.live)
        assert live <= space.units(len(lengths)) <= work.items.size(0)
        reached = dict.fromkeys(range(len(lengths)), 0)
        for unit, item in enumerate(work.items[:live].tolist()):
            entry, row, start, end, _, base, units, _ = item
            assert row == entry and start == reached[entry] < end and base <= unit < base + units
            assert start % config.block_keys == 0
            reached[entry] = end
        assert list(reached.values()) == lengths


def test_shapes_that_do_not_fit() -> None:
    cache = paged([5], 2, 32, 16, torch.bfloat16)
    space = workspace(1, 2, 2, 32, None)
    with pytest.raises(ValueError, match="do not fit the workspace"):
        decode(cache, fused_queries(1, 4, 2, 32, torch.bfloat16), [0], [4], space, None)
    with pytest.raises(ValueError, match="rows"):
        plan_decode(ints([0, 0]), ints([1, 1]), space, window=None)
    with pytest.raises(ValueError, match="multiple"):
        DecodeWorkspace.allocate(1, 3, 2, 32, 64, DEVICE)
    with pytest.raises(ValueError, match="power of two"):
        DecodeConfig(block_keys=24)


@pytest.mark.parametrize("itemsize", [1, 2, 4])
def test_there_is_a_configuration_for_every_shape(itemsize: int) -> None:
    for group in (1, 2, 3, 8, 16):
        for head_dim in (16, 32, 64, 128, 256):
            for entries in (1, 4, 5, 64, 1024):
                assert config_for(group, head_dim, entries, itemsize).block_keys >= (1 if group == 1 else 16)
