"""From logits to tokens, reference version: plain torch, per-row parameters, no row looks at another.

Order: logprobs of the raw logits; logit bias; repetition, presence and frequency penalties; what a grammar
allows; banned ids; then greedy rows take the argmax (lowest id wins ties), the others divide by temperature
and keep what passes top-k, top-p and min-p. All three filters are thresholds on the logit, so tokens that tie
at the border stay or go together, and the draw runs over the vocabulary in id order: one uniform number
against the cumulative sum, in float64.
"""

from dataclasses import dataclass

import torch

NUCLEUS_GUESS = 256
# Of one row, on a GPU: ids that are banned for a while, and biased ones.
MAX_STOP_IDS = 80
MAX_BIASES = 1024


@dataclass(slots=True)
class SamplingBatch:
    """Parameters of the rows that sample in one step; every tensor is [rows] unless said otherwise.

    A field is None when no row of the step needs it, which skips its work. Neutral values: temperature 0 is
    greedy, top_k 0, top_p 1, min_p 0, repetition 1, presence and frequency 0.
    """

    temperature: torch.Tensor  # float32
    top_k: torch.Tensor | None = None  # int64
    top_p: torch.Tensor | None = None  # float32
    min_p: torch.Tensor | None = None  # float32
    uniform: torch.Tensor | None = None  # float64 in [0, 1); None: all rows are greedy
    repetition: torch.Tensor | None = None  # float32; these three come together,
    presence: torch.Tensor | None = None  # float32
    frequency: torch.Tensor | None = None  # float32
    prompt_seen: torch.Tensor | None = None  # with [rows, vocab] bool
    output_counts: torch.Tensor | None = None  # and [rows, vocab] int32
    # Rows and ids, int64, of the logits that a value (float32) is added to, and of those that may not be
    # sampled.
    bias: tuple[torch.Tensor, ...] | None = None
    bias_values: torch.Tensor | None = None
    banned: tuple[torch.Tensor, ...] | None = None
    masked: torch.Tensor | None = None  # int64, rows that may sample only what is
    allowed: torch.Tensor | None = None  # true in [masked rows, vocab] bool
    logprob_rows: torch.Tensor | None = None  # int64, rows whose logprobs are wanted
    logprob_count: int = 0  # alternatives to report for them


@dataclass(slots=True)
class Sampled:
    """tokens: [rows] int64. valid: [rows] bool, False where the logits held a NaN or no finite value.

    For the rows of `logprob_rows`: logprob of the token [k], best ids and their logprobs [k, logprob_count].
    """

    tokens: torch.Tensor
    valid: torch.Tensor
    logprobs: torch.Tensor | None = None
    top_ids: torch.Tensor | None = None
    top_logprobs: torch.Tensor | None = None


def sample(logits: torch.Tensor, batch: SamplingBatch) -> Sampled:
    """logits: [rows, vocab] float32; may be overwritten. Returns one token per row."""
    best, tokens = logits.max(dim=-1)  # a NaN anywhere makes the best one NaN
    valid = torch.isfinite(best)
    raw = None
    if batch.logprob_rows is not None:
        raw = torch.log_softmax(logits[batch.logprob_rows], dim=-1)
    adjusted = _adjust(logits, batch)
    if adjusted is not logits:
        tokens = adjusted.argmax(dim=-1)
    if batch.uniform is not None:
        tokens = torch.where(batch.temperature > 0, _draw(adjusted, batch, batch.uniform), tokens)
    result = Sampled(tokens, valid)
    if raw is not None:
        assert batch.logprob_rows is not None
        chosen = tokens[batch.logprob_rows].unsqueeze(1)
        result.logprobs = raw.gather(1, chosen).squeeze(1)
        result.top_logprobs, result.top_ids = raw.topk(batch.logprob_count, dim=-1)
    return result


def _adjust(logits: torch.Tensor, batch: SamplingBatch) -> torch.Tensor:
    """Bias, penalties, masks, bans. A row with every id banned keeps its logits: it must still end."""
    if batch.bias is not None:
        assert batch.bias_values is not None
        logits = logits.index_put(batch.bias, batch.bias_values, accumulate=True)
    if batch.repetition is not None:
        assert batch.presence is not None and batch.frequency is not None
        assert batch.prompt_seen is not None and batch.output_counts is not None
        counts = batch.output_counts
        seen = batch.prompt_seen | (counts > 0)
        factor = torch.where(seen, batch.repetition.unsqueeze(1), 1.0)
        logits = torch.where(logits > 0, logits / factor, logits * factor)
        logits = logits - batch.frequency.unsqueeze(1) * counts
        logits = logits - batch.presence.unsqueeze(1) * (counts > 0)
    if batch.masked is not None:
        assert batch.allowed is not None
        kept = torch.where(batch.allowed, logits[batch.masked], float("-inf"))
        logits = logits.index_copy(0, batch.masked, kept)
    if batch.banned is not None:
        remaining = logits.index_put(batch.banned, logits.new_tensor(float("-inf")))
        possible = torch.isfinite(remaining).any(dim=-1, keepdim=True)
        logits = torch.where(possible, remaining, logits)
    return logits


def _draw(logits: torch.Tensor, batch: SamplingBatch, uniform: torch.Tensor) -> torch.Tensor:
    """Inverse-transform sampling over the ids that pass the filters; [rows] int64."""
    temperature = torch.where(batch.temperature > 0, batch.temperature, 1.0)
    # float64: exp is the same for every element wherever it lies (see kernels/activation.py), and a
    # temperature of 1e-9 does not overflow.
    scaled = logits.double() / temperature.double().unsqueeze(1)
    best = scaled.amax(dim=-1, keepdim=True)
    scaled = scaled - best  # best is 0, all others negative
    threshold = _threshold(scaled, batch)
    weights = torch.exp(scaled)
    if threshold is not None:
        weights = torch.where(scaled >= threshold.unsqueeze(1), weights, 0.0)
    cumulative = weights.cumsum(dim=-1)
    target = uniform.unsqueeze(1) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True).squeeze(1).clamp_(max=logits.size(1) - 1)


def _threshold(scaled: torch.Tensor, batch: SamplingBatch) -> torch.Tensor | None:
    """The lowest scaled logit that each row keeps, [rows]; None when no row filters."""
    rows, vocab = scaled.shape
    threshold: torch.Tensor | None = None
    if batch.min_p is not None:
        threshold = torch.log(batch.min_p.double())  # relative to the best, which is 0; min_p 0 keeps all
    kept = None
    if batch.top_k is not None:
        limit = torch.where(batch.top_k > 0, batch.top_k, vocab).clamp(max=vocab)
        # Rows without a limit need no sorted values here, so only the largest real limit is sorted out.
        limited = limit < vocab
        most = int(torch.where(limited, limit, 1).max())
        kept = scaled.topk(most, dim=-1).values
        last = kept.gather(1, (limit.clamp(max=most) - 1).unsqueeze(1)).squeeze(1)
        lowest = torch.where(limited, last, float("-inf"))
        threshold = lowest if threshold is None else torch.maximum(threshold, lowest)
    if batch.top_p is not None:
        active = (batch.top_p < 1).nonzero().squeeze(1)
        left = scaled[active]
        if threshold is not None:
            left = left.masked_fill(left < threshold[active].unsqueeze(1), float("-inf"))
        nucleus = torch.full((rows,), float("-inf"), dtype=scaled.dtype, device=scaled.device)
        nucleus[active] = _nucleus(left, batch.top_p[active].double())
        threshold = nucleus if threshold is None else torch.maximum(threshold, nucleus)
    return threshold


def _nucleus(scaled: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """The lowest scaled logit of the smallest set that holds a share top_p of the mass, [rows]."""
    vocab = scaled.size(1)
    wanted = top_p.unsqueeze(1) * torch.exp(scaled).cumsum(dim=-1)[:, -1:]
    # The nucleus is nearly always small, and picking the best few is much cheaper than sorting a vocabulary.
    # Either way a row's sorted prefix and its total are the same numbers, so the shortcut cannot change a
    # result.
    best = scaled.topk(min(NUCLEUS_GUESS, vocab), dim=-1).values
    mass = torch.exp(best).cumsum(dim=-1)
    if bool((mass[:, -1:] < wanted).any()):
        best = scaled.sort(dim=-1, descending=True).values
        mass = torch.exp(best).cumsum(dim=-1)
    index = torch.searchsorted(mass, wanted).clamp(max=best.size(1) - 1)
    return best.gather(1, index).squeeze(1)
