"""Logprobs of sampled tokens and the best alternatives, from what the sampler knows of each group."""

import triton
import triton.language as tl

from kernels.triton.parts import begin
from kernels.triton.sampling_groups import GROUP, group_tops, raw_values

MAX_LOGPROBS = 20


@triton.jit
def logprobs_kernel(
    logits,
    entry_rows,
    logprobs,
    raw_max,
    raw_sum,
    tokens,
    token_logprobs,
    top_ids,
    top_logprobs,
    stride_logits,
    stride_groups,
    stride_top,
    softcap,
    VOCAB: tl.constexpr,
    GROUP_BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Log-softmax of the raw logits at the token, and the best ids by it, for entries whose rows ask."""
    GROUPS: tl.constexpr = (VOCAB + GROUP - 1) // GROUP
    entry = tl.program_id(0).to(tl.int64)
    begin(PDL)
    row = tl.load(entry_rows + entry)
    wanted = -1
    if row >= 0:
        wanted = tl.load(logprobs + row)
    if wanted >= 0:
        source = logits + entry * stride_logits
        place = tl.arange(0, GROUP_BLOCK)
        tops = group_tops(raw_max + entry * stride_groups, VOCAB, GROUP_BLOCK)
        sums = tl.load(raw_sum + entry * stride_groups + place, mask=place < GROUPS, other=0.0)
        best = tl.max(tops, axis=0)
        masses = sums.to(tl.float64) * tl.exp((tops - best).to(tl.float64))
        total = best.to(tl.float64) + tl.log(tl.sum(masses, axis=0))
        token = tl.load(tokens + entry)
        own = tl.max(raw_values(source, token + tl.arange(0, 1), tl.arange(0, 1) == 0, softcap), axis=0)
        tl.store(token_logprobs + entry, (own.to(tl.float64) - total).to(tl.float32))
        # Largest first, lowest id first among equals: what is left is what comes after the last one taken.
        last, last_id = tl.maximum(best, float("inf")), -1
        for rank in range(0, tl.minimum(wanted, VOCAB)):
            group = tl.min(tl.where(tops == tl.max(tops, axis=0), place, GROUPS - 1), axis=0)
            ids = group * GROUP + tl.arange(0, GROUP)
            x = raw_values(source, ids, ids < VOCAB, softcap)
            left = (ids < VOCAB) & ((x < last) | ((x == last) & (ids > last_id)))
            last = tl.max(tl.where(left, x, float("-inf")), axis=0)
            last_id = tl.min(tl.where(left & (x == last), ids, VOCAB - 1), axis=0)
            tl.store(top_ids + entry * stride_top + rank, last_id)
            tl.store(top_logprobs + entry * stride_top + rank, (last.to(tl.float64) - total).to(tl.float32))
            left = left & ((x < last) | ((x == last) & (ids > last_id)))
            tops = tl.where(place == group, tl.max(tl.where(left, x, float("-inf")), axis=0), tops)
