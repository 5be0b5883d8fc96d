"""Paged attention of chunks against exact attention."""

from itertools import product

import pytest
import torch

from kernels.triton.prefill import FEW_CHUNKS, PrefillWorkspace, paged_prefill
from kernels.triton.prefill_config import PrefillConfig, config_for
from tests.kernels.triton.paged import (
    DEVICE,
    also_eight_bits,
    assert_close,
    assert_near_the_whole,
    exact_attention,
    fused_queries,
    ints,
    paged,
    poisoned,
)
from tests.tiers import tiered

SMALL = PrefillConfig(block_m=16, block_n=16, num_warps=4, num_stages=1)
Chunk = tuple[int, int]  # queries, and cached positions before them


def check(
    chunks: list[Chunk],
    heads: int,
    kv_heads: int,
    *,
    head_dim: int = 32,
    block_size: int = 16,
    dtype: torch.dtype = torch.bfloat16,
    heads_first: bool = False,
    window: int | None = None,
    config: PrefillConfig | None = SMALL,
    before: int = 0,
    unused: int = 0,
    slots: int | None = None,
    eight_bits: bool = False,
) -> None:
    """before: single positions in front of the chunks. unused: chunks of length 0 behind them. slots: of a
    workspace, which must be left as it was for the next call."""
    contexts = [sum(chunk) for chunk in chunks]
    cache = paged(
        contexts, kv_heads, head_dim, block_size, dtype, heads_first=heads_first, eight_bits=eight_bits
    )
    if window is not None:  # blocks that the window has left behind are no longer the row's
        for row, (_, cached) in enumerate(chunks):
            cache.tables[row, : max(0, cached - window) // block_size] = 0
    starts = [before]
    for count, _ in chunks:
        starts.append(starts[-1] + count)
    tokens = starts[-1] + 3
    query = fused_queries(tokens, heads, kv_heads, head_dim, dtype)
    out = poisoned(tokens, heads * head_dim, dtype=dtype)
    workspace = None if slots is None else PrefillWorkspace.allocate(head_dim, DEVICE, slots)
    for _ in range(1 if workspace is None else 2):
        paged_prefill(
            query,
            cache.k_pages,
            cache.v_pages,
            cache.tables,
            ints([*range(len(chunks)), *[-1] * unused]),
            ints([*starts, *[starts[-1]] * unused]),
            ints([*(sum(chunk) for chunk in chunks), *[0] * unused]),
            out,
            scale=head_dim**-0.5,
            window=window,
            scales=cache.scales,
            workspace=workspace,
            config=config,
        )
    assert workspace is None or not workspace.counters.any()
    whole: list[torch.Tensor] = []
    for row, (count, cached) in enumerate(chunks):
        mine = slice(starts[row], starts[row] + count)
        keys, values = cache.keys[row], cache.values[row]
        assert_close(out[mine], exact_attention(query[mine], keys, values, cached, head_dim**-0.5, window))
        if eight_bits:
            before_rounding = (cache.whole_keys[row], cache.whole_values[row])
            whole.append(exact_attention(query[mine], *before_rounding, cached, head_dim**-0.5, window))
    if whole:
        assert_near_the_whole(out[before : starts[-1]], torch.cat(whole))
    assert out[:before].isnan().all() and out[starts[-1] :].isnan().all(), "wrote what is not its own"


BORDERS: list[Chunk] = [(1, 0), (15, 1), (16, 0), (17, 16), (2, 47), (33, 31)]


HEADS = [(2, 2), (8, 1), (3, 1)]


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dtype", "eight_bits"),
    [
        *((*heads, torch.float32, False) for heads in HEADS),
        *also_eight_bits([(*heads, torch.bfloat16) for heads in HEADS], every=2),
    ],
    ids=str,
)
def test_ragged_chunks(heads: int, kv_heads: int, dtype: torch.dtype, eight_bits: bool) -> None:
    check(BORDERS, heads, kv_heads, dtype=dtype, before=3, unused=2, eight_bits=eight_bits)


@pytest.mark.parametrize(
    ("block_size", "heads_first", "eight_bits"), also_eight_bits(product((1, 4, 32, 64), (False, True)))
)
def test_block_sizes_and_layouts(block_size: int, heads_first: bool, eight_bits: bool) -> None:
    config = PrefillConfig(block_m=32, block_n=32, num_warps=4, num_stages=1)
    sizes = {"block_size": block_size, "heads_first": heads_first}
    check([(40, 0), (9, 65)], 2, 1, **sizes, config=config, eight_bits=eight_bits)


@pytest.mark.parametrize(
    ("window", "heads", "eight_bits"), also_eight_bits(product((0, 15, 16, 33, 500), (1, 4)))
)
def test_windows(window: int, heads: int, eight_bits: bool) -> None:
    check([(1, 40), (20, 61), (40, 16)], heads, 1, window=window, eight_bits=eight_bits)


CONFIGS = {
    "default": None,
    "wide": PrefillConfig(block_m=64, block_n=32, num_warps=4),
    "long keys": PrefillConfig(block_m=16, block_n=128, num_warps=4),
    "a head each": PrefillConfig(block_m=16, block_n=32, num_warps=4, pack=False, section=3),
}


@pytest.mark.parametrize(("name", "window", "eight_bits"), also_eight_bits(product(CONFIGS, (None, 20))))
def test_configurations(name: str, window: int | None, eight_bits: bool) -> None:
    about = {"head_dim": 64, "config": CONFIGS[name], "window": window, "before": 1}
    check([(70, 0), (5, 90), (16, 16)], 2, 1, **about, eight_bits=eight_bits)


def test_one_long_chunk() -> None:
    check([(150, 150)], 1, 1, block_size=64, config=PrefillConfig(block_m=64, block_n=64))


def test_no_chunk_at_all() -> None:
    check([], 2, 2, before=2, unused=2)


def test_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="do not fit a tile"):
        check([(2, 0)], 32, 1)
    with pytest.raises(ValueError, match="power of two"):
        PrefillConfig(block_m=48)
    with pytest.raises(ValueError, match="splits"):
        PrefillConfig(block_m=128, splits=2)


SPLIT = PrefillConfig(block_m=16, block_n=64, num_warps=4, num_stages=1, splits=4)
LONG: list[Chunk] = [(20, 1100), (5, 600), (40, 300), (17, 0)]


# Each of both types, and each of both groupings, once: the interpreter walks long contexts slowly.
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dtype"),
    [
        pytest.param(2, 2, torch.float32, marks=pytest.mark.slow),
        pytest.param(4, 1, torch.bfloat16),
        pytest.param(2, 2, torch.bfloat16, marks=pytest.mark.slow),
        pytest.param(4, 1, torch.float32, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_programs_share_long_contexts(heads: int, kv_heads: int, dtype: torch.dtype) -> None:
    check(LONG, heads, kv_heads, dtype=dtype, config=SPLIT, slots=64, before=2, unused=1)


@pytest.mark.slow
def test_programs_share_long_contexts_of_eight_bits() -> None:
    check(LONG[1:], 4, 1, config=SPLIT, slots=64, before=2, unused=1, eight_bits=True)


# None has a slot; some have, and 7 is no multiple of a tile's four; in the test above all have.
@pytest.mark.parametrize("slots", tiered([0, 7, 8, 16, 24], {1}))
def test_tiles_without_a_slot_are_walked_by_one_program(slots: int) -> None:
    check(LONG, 2, 2, config=SPLIT, slots=slots)


# A window longer than any context is none, but for the code that plans it: the shorter ones reach that, too.
@pytest.mark.parametrize("window", tiered([0, 15, 270, 700, 5000], {0, 2}))
def test_windows_over_stretches(window: int) -> None:
    check(LONG, 2, 1, config=SPLIT, slots=64, window=window)


@pytest.mark.slow
def test_more_chunks_than_the_grid_is_made_for() -> None:
    chunks = [(2 + number % 20, number) for number in range(2 * FEW_CHUNKS)]
    check(chunks, 2, 1, unused=5)
    check([*chunks, (3, 900)], 2, 1, config=SPLIT, slots=64)


@pytest.mark.parametrize("itemsize", [2, 4])
def test_there_is_a_configuration_for_every_shape(itemsize: int) -> None:
    for group in (1, 2, 3, 8, 71):
        for head_dim in (32, 128, 256):
            for tokens in (16, 512, 1024, 8192):
                config = config_for(group, 4 * group, head_dim, tokens, itemsize)
                assert config.queries(group) * group <= config.block_m


def test_tiles_grow_with_the_step_and_share_keys_until_the_device_is_full() -> None:
    configs = [config_for(1, 16, 128, tokens, 2) for tokens in (16, 64, 128, 256, 512, 896, 1024, 8192)]
    assert [config.block_m for config in configs] == [16, 64, 64, 64, 64, 64, 128, 128]
    assert [config.splits for config in configs] == [8, 8, 8, 4, 2, 1, 1, 1]


assert DEVICE
