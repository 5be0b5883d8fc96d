"""Prompt scores of a network's steps: those of the plain model, whichever tokens of a step they belong to."""

import pytest
import torch

from engine import scoring
from engine.blocks import BlockId
from engine.config import Generation
from engine.gpu.cache import PagedKV
from engine.gpu.graphs import Buckets
from engine.gpu.inputs import device_inputs
from engine.gpu.linears import build_linears
from engine.gpu.network import Network
from engine.gpu.rows import DeviceRows
from engine.gpu.scoring import ScoreBuffers, queue_scores
from engine.gpu.staging import StepStaging
from engine.gpu.weights import network_weights
from engine.messages import PromptLogprobs, Request, SamplingParams
from engine.model import GPT
from engine.plan import Chunk, Plan
from engine.sequence import Sequence
from kernels.backends.base import AttentionSpec
from kernels.backends.reference import TorchBackend
from tests.engine.checkpoints import make_model
from tests.tiers import tiered

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu/test_scoring.py has the runner")
CPU, BLOCK, ROWS, TOKENS = torch.device("cpu"), 16, 4, 64


class Steps:
    """A runner without a stream."""

    def __init__(self, model: GPT) -> None:
        weights = network_weights(model)
        linears = build_linears(weights, "auto", TOKENS, False)
        rotary, shape = weights.layers[0].rotary, model.config
        sizes = rotary.heads, rotary.kv_heads, rotary.head_dim
        spec = AttentionSpec(*sizes, BLOCK, torch.float32, ROWS, 128, CPU)
        rows = DeviceRows(ROWS, 9, weights.vocab_size, CPU)
        self.network = Network(weights, linears, rows, TorchBackend(spec), TOKENS, ROWS)
        self.network.cache = PagedKV(
            shape.n_layer, 20, BLOCK, shape.n_kv_head, shape.head_dim, torch.float32, CPU
        )
        self.staging = StepStaging(Buckets.up_to(ROWS, TOKENS), CPU)
        self.buffers = ScoreBuffers(self.network)

    @torch.inference_mode()
    def run(self, plan: Plan) -> tuple[list[int], list[PromptLogprobs]]:
        """What was sampled, and the scores."""
        self.network.rows.stage(plan, ())
        staged = self.staging.stage(plan)
        buffer = self.staging.decode if staged.decode else self.staging.mixed
        step = int(self.network.step_counter)
        self.network.step(staged.shape, device_inputs(buffer, staged.shape), False)
        scores = queue_scores(self.network, plan, self.buffers).results() if plan.scored else []
        return self.network.results[step % 4, 0, : len(staged.entries)].tolist(), scores


def sequence(row: int, prompt: list[int], alternatives: int | None) -> Sequence:
    params = SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True, prompt_logprobs=alternatives)
    made = Sequence(Request(id=row, prompt=prompt, params=params))
    made.row, made.block_table = row, [BlockId(1 + 3 * row + block) for block in range(3)]
    return made


def planned(pieces: list[tuple[Sequence, int, int]]) -> Plan:
    """pieces: sequence, first position, how many."""
    chunks = tuple(
        Chunk(s, s.row or 0, 0, start, length, start + length == len(s.tokens), False, s.block_table)
        for s, start, length in pieces
    )
    admitted = tuple(s for s, start, _ in pieces if not start)
    scored = tuple(chunk for chunk in chunks if chunk.scores)
    return Plan(chunks, admitted, (), (), sum(chunk.length for chunk in chunks), scored=scored)


@pytest.mark.parametrize("generation", tiered(["G5", "G1", "G3"], {1}))
def test_scores_are_those_of_the_model(generation: Generation, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(
        generation, 1, n_embd=64, n_head=4, n_kv_head=4 if generation == "G1" else 2, n_layer=3
    )
    # Fewer positions at a time than a step has entries, and fewer entries than a chunk has positions.
    monkeypatch.setattr(scoring, "LOGITS_AT_ONCE", 3 * model.config.vocab_size)
    texts = [[(7 * i + 11 * row) % 90 for i in range(length)] for row, length in enumerate((21, 9, 6))]
    long, plain, short = (
        sequence(row, text, k) for row, (text, k) in enumerate(zip(texts, (2, None, 0), strict=True))
    )
    steps = Steps(model)
    got: dict[int, list[tuple[float, int, list[int], list[float]]]] = {0: [], 2: []}
    sampled: list[int] = []
    for pieces in (
        [(long, 0, 10), (plain, 0, 8), (short, 0, 1)],
        [(plain, 8, 1), (long, 10, 1), (short, 1, 3)],  # single positions come first, scored or not
        [(long, 11, 10), (short, 4, 2)],
    ):
        tokens, scores = steps.run(planned(pieces))
        sampled += tokens
        for item in scores:
            assert item.first == 1 + len(got[item.stream])
            lists = item.logprobs, item.ranks, item.top_ids, item.top_logprobs
            got[item.stream] += zip(*lists, strict=True)
            (owner,) = (s for s, *_ in pieces if s.id == item.stream)
            owner.unscored = item.first + len(item.logprobs)
    assert [len(got[0]), len(got[2])] == [20, 5]
    best = []
    for row, text in enumerate(texts):
        with torch.inference_mode():
            wanted = torch.log_softmax(model(torch.tensor([text]))[0], -1)
        best.append(int(wanted[-1].argmax()))
        for place, (logprob, rank, ids, values) in enumerate(got.get(row, [])):
            line, target = wanted[place], text[place + 1]
            assert logprob == pytest.approx(float(line[target]), abs=2e-3)
            assert values == pytest.approx(line.topk(2 if row == 0 else 0).values.tolist(), abs=2e-3)
            assert values == pytest.approx(line[ids].tolist(), abs=2e-3)
            assert abs(rank - 1 - int((line > line[target]).sum())) <= int(
                (line - line[target]).abs().lt(4e-3).sum()
            )
    # What the steps sample is what they sample without scores: plain first, then long and short.
    assert sampled == [best[1], best[0], best[2]]


def test_a_longer_chunk_may_follow_where_steps_allocate_anew() -> None:
    """What scores land in is kept from the first scored step on, whatever that step's own size was."""
    steps = Steps(make_model("G1", 1, n_embd=64, n_head=4, n_kv_head=4, n_layer=1))
    steps.network.persistent = False
    lengths = (2, 40)
    for row, length in enumerate(lengths):
        _, (scores,) = steps.run(planned([(sequence(row, [5] * (length + 1), 20), 0, length)]))
        assert len(scores.logprobs) == length
