"""Logprobs of prompt tokens on a GPU, queued behind the step that computed their positions.

Nothing of this is in a captured graph: a step without such a request does not know of it. The residual
stream of a step stays in its buffers until the next one, so the head can be applied to more of its positions,
as many at a time as a step has sampling entries, into the buffers that its sampling no longer needs.
"""

from dataclasses import dataclass

import torch

from engine.gpu.network import Network
from engine.messages import PromptLogprobs
from engine.plan import Plan
from engine.sampler import MAX_LOGPROBS
from engine.scoring import ScoredSpan, positions_at_once, scored_span
from kernels.scoring import Scored, score


class ScoreBuffers:
    """Pinned memory that the scores of one step are copied to, made when it is first needed and then kept:
    given back by the thread that has read it, it would end a capture that is under way on the other one.
    """

    def __init__(self, network: Network) -> None:
        self._network = network
        self._kept: list[torch.Tensor] = []  # float32, int32

    def take(self, numbers: torch.Tensor, whole: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Where these two will be; the copies are queued on the current stream."""
        if not self._kept:
            size = self._network.max_tokens * (1 + MAX_LOGPROBS)  # its scratch may be as small as this step
            pinned = self._network.rows.device.type == "cuda"
            self._kept = [
                torch.empty(size, dtype=dtype, pin_memory=pinned) for dtype in (numbers.dtype, whole.dtype)
            ]
        first, second = (
            kept[: values.numel()].view(values.shape).copy_(values, non_blocking=True)
            for kept, values in zip(self._kept, (numbers, whole), strict=True)
        )
        return first, second


@dataclass(frozen=True, slots=True)
class PromptScores:
    """What some spans got, one behind the other, in pinned memory. numbers: [tokens, 1 + alternatives]
    float32, each token's logprob and those of its alternatives; whole: the same shape, int32, its rank and
    their ids. To be read when the copies have ended.
    """

    spans: list[ScoredSpan]
    numbers: torch.Tensor
    whole: torch.Tensor

    def results(self) -> list[PromptLogprobs]:
        results: list[PromptLogprobs] = []
        begin = 0
        for span in self.spans:
            end, columns = begin + len(span.targets), slice(1, 1 + span.alternatives)
            numbers, whole = self.numbers[begin:end], self.whole[begin:end]
            results.append(
                PromptLogprobs(
                    span.stream,
                    span.first,
                    numbers[:, 0].tolist(),
                    whole[:, 0].tolist(),
                    whole[:, columns].tolist(),
                    numbers[:, columns].tolist(),
                )
            )
            begin = end
        return results


def scored_spans(plan: Plan) -> list[ScoredSpan]:
    """Of the plan's scored chunks. In a step's tokens, single positions come first (StepStaging)."""
    spans: list[ScoredSpan] = []
    single, longer = 0, sum(chunk.length == 1 for chunk in plan.chunks)
    for chunk in plan.chunks:
        if chunk in plan.scored:
            spans.append(scored_span(chunk, single if chunk.length == 1 else longer))
        if chunk.length == 1:
            single += 1
        else:
            longer += chunk.length
    return spans


def queue_scores(network: Network, plan: Plan, buffers: ScoreBuffers) -> PromptScores:
    """Queues the scores of a plan with scored chunks on the current stream, right behind its step."""
    spans = scored_spans(plan)
    tokens = [token for span in spans for token in range(span.token, span.token + len(span.targets))]
    targets = _uploaded([id for span in spans for id in span.targets], torch.int64, network)
    most, count = network.scratch.last.size(0), max(span.alternatives for span in spans)
    parts: list[Scored] = []
    for first in range(0, len(tokens), most):
        some = tokens[first : first + most]
        index = _uploaded(some + [-1] * (most - len(some)), torch.int32, network)
        logits = network.logits_of(index)[: len(some)]
        parts += _scored(network, logits, targets[first : first + most], count)
    logprobs = torch.cat([part.logprobs for part in parts]).unsqueeze(1)
    ranks = torch.cat([part.ranks for part in parts]).unsqueeze(1)
    numbers = torch.cat([logprobs, torch.cat([part.top_logprobs for part in parts])], dim=1)
    whole = torch.cat([ranks, torch.cat([part.top_ids for part in parts])], dim=1).int()
    return PromptScores(spans, *buffers.take(numbers, whole))


def _scored(network: Network, logits: torch.Tensor, targets: torch.Tensor, count: int) -> list[Scored]:
    """A few positions at a time: what stands between logits and scores is float32, and several times as
    large.
    """
    cap, most = network.weights.softcap, positions_at_once(network.weights.vocab_size)
    parts: list[Scored] = []
    for first in range(0, len(targets), most):
        some = logits[first : first + most].float()
        if cap is not None:
            some = cap * torch.tanh(some / cap)
        parts.append(score(some, targets[first : first + most], count))
    return parts


def _uploaded(values: list[int], dtype: torch.dtype, network: Network) -> torch.Tensor:
    """A copy from pageable memory would wait for the device; pinning is fine for what is rare."""
    device = network.rows.device
    host = torch.tensor(values, dtype=dtype, pin_memory=device.type == "cuda")
    return host.to(device, non_blocking=True)
