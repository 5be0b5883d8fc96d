"""Logprobs of tokens that are known already: how likely the model finds a given text.

Plain torch on any device. No row looks at another, so a row's result does not depend on its company.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Scored:
    """logprobs: [rows] float32, NaN where the logits held a NaN or no finite value. ranks: [rows] int64, 1
    for the best id. top_ids int64 and top_logprobs float32: [rows, count], best first.
    """

    logprobs: torch.Tensor
    ranks: torch.Tensor
    top_ids: torch.Tensor
    top_logprobs: torch.Tensor


def score(logits: torch.Tensor, targets: torch.Tensor, count: int) -> Scored:
    """Of one target id per row. logits: [rows, vocab] float32. targets: [rows] int64. count: alternatives."""
    values = torch.log_softmax(logits, dim=-1)
    chosen = values.gather(1, targets.unsqueeze(1))
    ranks = (values > chosen).sum(dim=-1) + 1
    top_logprobs, top_ids = values.topk(max(count, 1), dim=-1)
    return Scored(chosen.squeeze(1), ranks, top_ids[:, :count], top_logprobs[:, :count])
