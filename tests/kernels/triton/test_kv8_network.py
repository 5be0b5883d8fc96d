"""A network's steps over keys and values of eight bits, in the interpreter: how a prompt came does not count.

What a step stores of a token is compared bit for bit where the arithmetic in front of it is the same, and
logits with those over keys and values in full.
"""

import pytest
import torch

from engine.blocks import BlockId
from engine.config import Generation
from engine.gpu.cache import PagedKV
from engine.gpu.graphs import Buckets
from engine.gpu.inputs import device_inputs
from engine.gpu.linears import build_linears
from engine.gpu.network import Network
from engine.gpu.rows import DeviceRows
from engine.gpu.staging import StepStaging
from engine.gpu.weights import network_weights
from engine.messages import Request, SamplingParams
from engine.model import GPT
from engine.plan import Chunk, Plan
from engine.sequence import Sequence
from kernels.backends.base import AttentionBackend, AttentionSpec
from kernels.backends.reference import TorchBackend
from kernels.backends.triton import TritonBackend
from kernels.kv8 import FORMAT, dequantize_kv
from tests.engine.checkpoints import make_model

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu/test_kv8.py has the engine")
CPU, BLOCK, ROWS, TOKENS = torch.device("cpu"), 16, 4, 64
TEXTS = [[(7 * i + 11 * row) % 90 for i in range(length)] for row, length in enumerate((25, 18, 5))]
SIZES = Buckets((1, 2, 4), (5, 18, 25, 36), ROWS)  # of steps; the interpreter works on padding as on tokens
Pieces = list[list[tuple[int, int, int]]]  # steps of (row, first position, how many)
WAYS: dict[str, Pieces] = {
    "one step each": [[(0, 0, 25)], [(1, 0, 18)], [(2, 0, 5)]],
    "in company": [[(0, 0, 19), (1, 0, 17)], [(1, 17, 1), (2, 0, 5), (0, 19, 6)]],
    "token by token at the end": [
        [(0, 0, 17), (1, 0, 16), (2, 0, 3)],
        [(0, 17, 7), (1, 16, 1), (2, 3, 1)],
        [(0, 24, 1), (1, 17, 1), (2, 4, 1)],
    ],
}


class Steps:
    """A network that has seen TEXTS, in these pieces."""

    def __init__(
        self, model: GPT, backend: type[TorchBackend | TritonBackend], kept: torch.dtype, first_block: int = 1
    ) -> None:
        weights, shape = network_weights(model), model.config
        rotary, dtype = weights.layers[0].rotary, weights.embedding.dtype
        sizes = rotary.heads, rotary.kv_heads, rotary.head_dim
        spec = AttentionSpec(*sizes, BLOCK, dtype, ROWS, 128, CPU, kept == FORMAT)
        linears, rows = (
            build_linears(weights, "auto", TOKENS, False),
            DeviceRows(ROWS, 9, weights.vocab_size, CPU),
        )
        attention: AttentionBackend = backend(spec)
        self.network = Network(weights, linears, rows, attention, TOKENS, ROWS)
        self.cache = PagedKV(shape.n_layer, 20, BLOCK, shape.n_kv_head, shape.head_dim, kept, CPU)
        self.network.cache = self.cache
        self.staging = StepStaging(SIZES, CPU)
        self.sequences = [self._sequence(row, first_block) for row in range(len(TEXTS))]

    def _sequence(self, row: int, first_block: int) -> Sequence:
        params = SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True)
        made = Sequence(Request(id=row, prompt=TEXTS[row], params=params))
        made.row, made.block_table = row, [BlockId(first_block + 3 * row + block) for block in range(3)]
        return made

    @torch.inference_mode()
    def run(self, steps: Pieces) -> dict[int, torch.Tensor]:
        """Logits behind each text."""
        found: dict[int, torch.Tensor] = {}
        for pieces in steps:
            chunks = tuple(
                Chunk(s, row, 0, first, count, first + count == len(s.tokens), False, s.block_table)
                for row, first, count in pieces
                for s in [self.sequences[row]]
            )
            admitted = tuple(self.sequences[row] for row, first, _ in pieces if not first)
            plan = Plan(chunks, admitted, (), (), sum(chunk.length for chunk in chunks))
            self.network.rows.stage(plan, ())
            staged = self.staging.stage(plan)
            buffer = self.staging.decode if staged.decode else self.staging.mixed
            self.network.step(staged.shape, device_inputs(buffer, staged.shape), False)
            for entry, chunk in enumerate(staged.entries):
                found[chunk.row] = self.network.scratch.logits[entry].float().clone()
        return found

    def stored(self, layer: int, row: int) -> list[torch.Tensor]:
        """Numbers and scales of a row's keys and values."""
        table, length = torch.tensor(self.sequences[row].block_table).long(), len(TEXTS[row])
        scales = self.cache.scales[layer]
        assert scales is not None
        parts = [pages.view(torch.uint8) for pages in self.cache.layers[layer]]
        return [part[table].flatten(0, 1)[:length] for part in (*parts, *scales)]


def model_of(generation: Generation) -> GPT:
    heads = {"G1": 2, "G3": 1}[generation]
    made = make_model(generation, 1, n_embd=128, n_head=2, n_kv_head=heads, n_layer=2)
    return made.to(torch.bfloat16)


@pytest.fixture(scope="module", params=["G3", pytest.param("G1", marks=pytest.mark.slow)])
def model(request: pytest.FixtureRequest) -> GPT:
    return model_of(request.param)


@pytest.fixture(scope="module")
def expected(model: GPT) -> tuple[Steps, dict[int, torch.Tensor]]:
    """By the reference, which reads what the pages stand for."""
    steps = Steps(model, TorchBackend, FORMAT)
    return steps, steps.run(WAYS["one step each"])


def off(ours: dict[int, torch.Tensor], theirs: dict[int, torch.Tensor]) -> float:
    assert ours.keys() == theirs.keys() == set(range(len(TEXTS)))
    return max(float((ours[row] - theirs[row]).norm() / theirs[row].norm()) for row in ours)


def check(
    ours: Steps, logits: dict[int, torch.Tensor], expected: tuple[Steps, dict[int, torch.Tensor]]
) -> None:
    """What a network stored, and its logits behind each text."""
    reference, right_logits = expected
    assert off(logits, right_logits) < 2e-2
    for row in range(len(TEXTS)):
        for mine, right in zip(ours.stored(0, row), reference.stored(0, row), strict=True):
            # In front of the first layer's keys and values nothing sees other tokens, so they are the same.
            assert torch.equal(mine, right)
        numbers = [
            dequantize_kv(pages.view(FORMAT), scales)
            for steps in (ours, reference)
            for pages, scales in [steps.stored(1, row)[0::2], steps.stored(1, row)[1::2]]
        ]
        for mine, right in zip(numbers[:2], numbers[2:], strict=True):
            assert (mine - right).norm() <= 3e-2 * right.norm()


# Pieces token by token come below, too, in a cache that grows.
@pytest.mark.parametrize(
    "way", [way if way == "in company" else pytest.param(way, marks=pytest.mark.slow) for way in WAYS]
)
def test_how_a_prompt_came_does_not_count(
    model: GPT, expected: tuple[Steps, dict[int, torch.Tensor]], way: str
) -> None:
    ours = Steps(model, TritonBackend, FORMAT, first_block=4)
    check(ours, ours.run(WAYS[way]), expected)


@pytest.mark.slow  # attention alone is tested in each run
def test_answers_are_nearly_those_over_keys_and_values_in_full(
    model: GPT, expected: tuple[Steps, dict[int, torch.Tensor]]
) -> None:
    whole = Steps(model, TorchBackend, torch.bfloat16).run(WAYS["one step each"])
    assert 1e-4 < off(expected[1], whole) < 6e-2


@pytest.mark.slow
def test_a_row_goes_on_in_a_cache_that_has_grown(
    model: GPT, expected: tuple[Steps, dict[int, torch.Tensor]]
) -> None:
    ours = Steps(model, TritonBackend, FORMAT)
    first, *rest = WAYS["token by token at the end"]
    logits = ours.run([first])
    before = [part.clone() for part in ours.stored(1, 1)]
    ours.cache.grow(33)
    assert all(torch.equal(a[:16], b[:16]) for a, b in zip(ours.stored(1, 1), before, strict=True))
    check(ours, logits | ours.run(rest), expected)
