"""A network whose decode attention rotates for itself gives the tokens, and keeps the keys and values, of one
with a kernel for that. Batches of three rows have one of padding.
"""

from collections.abc import Callable

import pytest
import torch

from engine.decoder import Decoder
from engine.gpu import network
from engine.llama import Llama
from engine.llama_config import llama_config
from engine.messages import Request, SamplingParams
from engine.plan import Plan
from engine.steps import StepHandle
from kernels.backends.base import AttentionBackend, AttentionSpec
from kernels.backends.clustered import ClusteredBackend
from kernels.backends.reference import TorchBackend
from kernels.backends.triton import RotatingTritonBackend, TritonBackend
from kernels.kv8 import FORMAT
from kernels.triton.decode import Fresh
from kernels.triton.rope import rotate_and_store
from tests.engine.checkpoints import make_model
from tests.kernels.quick_network import quicken
from tests.kernels.triton.test_masked_steps import Steps, run
from tests.tiers import tiered

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu/test_engine.py has the real one")
BF16 = torch.bfloat16
Backend = Callable[[AttentionSpec], AttentionBackend]
LLAMA = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
}


def gpt(generation: str) -> Decoder:
    made = make_model(
        generation, 1, n_embd=64, n_head=2, n_kv_head=2, n_layer=2, sequence_len=64, vocab_size=512
    )
    return made.to(BF16)


def llama(family: str) -> Decoder:
    model = Llama(llama_config(family, LLAMA)).requires_grad_(False)  # type: ignore[arg-type]
    model.randomize(2)
    return model.to(BF16).eval()


# With biases (Qwen2), weights in the query-key norm (Qwen3), and value embeddings in some layers (G3).
MODELS: dict[str, Callable[[], Decoder]] = {
    "G1": lambda: gpt("G1"),
    "qwen2": lambda: llama("qwen2"),
    "qwen3": lambda: llama("qwen3"),
    "G3": lambda: gpt("G3"),
}


class Counted(Steps):
    """calls: of the rotation's kernel, in each step of single positions."""

    def __init__(self, model: Decoder, backend: Backend, kept: torch.dtype) -> None:
        super().__init__(model, backend, kept)
        self.calls: list[int] = []
        self.step = 0

    def launch(self, plan: Plan) -> StepHandle:
        self.step = 0
        handle = super().launch(plan)
        if plan.num_tokens == len(plan.chunks):
            self.calls.append(self.step)
        return handle

    def rotate(self, *given: object, **options: object) -> None:
        self.step += 1
        rotate_and_store(*given, **options)  # type: ignore[arg-type]


# Of single tokens, which the interpreter has soon; and beside chunks, across the border of a block.
SHORT, LONG = (1, 1, 1), (14, 1, 20)
CASES = [(name, kept, LONG) for kept in (BF16, FORMAT) for name in MODELS]


@pytest.mark.parametrize(
    ("name", "kept", "lengths"),
    tiered([("qwen2", FORMAT, SHORT), *CASES], {0}),
    ids=str,
)
def test_tokens_are_those_of_two_kernels(
    name: str, kept: torch.dtype, lengths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = MODELS[name]()
    if name != "G3":  # whose extras only Triton's kernels have
        quicken(monkeypatch)
    prompts = [[(7 * k + 11 * row) % 500 for k in range(length)] for row, length in enumerate(lengths)]
    params = SamplingParams(max_tokens=5 if lengths == LONG else 3, temperature=0, ignore_eos=True)
    found: list[tuple[dict[int, list[int]], Counted]] = []
    for backend in (TritonBackend, RotatingTritonBackend):
        steps = Counted(model, backend, kept)
        monkeypatch.setattr(network, "rotate_and_store", steps.rotate)
        requests = [Request(id=row, prompt=prompt, params=params) for row, prompt in enumerate(prompts)]
        found.append((run(requests, steps)[0], steps))
    (right, plain), (tokens, rotating) = found
    assert tokens == right and all(len(given) == params.max_tokens for given in tokens.values())
    layers = plain.network.weights.layers
    others = sum(layer.value_embedding is not None for layer in layers)
    assert plain.calls == [len(layers)] * len(plain.calls)
    assert rotating.calls == [others] * len(plain.calls) and plain.calls and others < len(layers)
    for ours, theirs in zip(rotating.cache.layers, plain.cache.layers, strict=True):
        for mine, stored in zip(ours, theirs, strict=True):
            assert torch.equal(mine.contiguous().view(torch.uint8), stored.contiguous().view(torch.uint8))


class Alone(TorchBackend):
    """In the place of clusters, for steps of one entry."""

    def serves(self, entries: int) -> bool:
        return entries == 1


def test_what_clusters_serve_is_rotated_first(monkeypatch: pytest.MonkeyPatch) -> None:
    quicken(monkeypatch)
    model = MODELS["qwen2"]()
    layers = model.config.n_layer

    def backend(spec: AttentionSpec) -> AttentionBackend:
        return ClusteredBackend(Alone(spec), RotatingTritonBackend(spec))

    steps = Counted(model, backend, BF16)
    monkeypatch.setattr(network, "rotate_and_store", steps.rotate)
    lengths = (3, 7)  # of two rows, of which one is soon alone
    params = [SamplingParams(max_tokens=most, temperature=0, ignore_eos=True) for most in lengths]
    requests = [Request(id=row, prompt=[5 + row], params=of) for row, of in enumerate(params)]
    tokens, _, _ = run(requests, steps)
    assert [len(given) for given in tokens.values()] == list(lengths)
    inside = [calls == 0 for calls in steps.calls]
    assert inside == sorted(inside, reverse=True) and set(steps.calls) == {0, layers}


def test_steps_of_short_rows_have_a_form_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which a step of any longer row has not, nor one of another number of rows; and a graph of their own."""
    quicken(monkeypatch)
    said: list[tuple[bool, int, int]] = []

    class Short(RotatingTritonBackend):
        def short_keys(self, entries: int) -> int:
            return 12 if entries == 2 else 0

        def decode_fresh(
            self, fresh: Fresh, *given: torch.Tensor, short: bool = False, **how: object
        ) -> None:  # type: ignore[override]
            rows, positions = given[3:5]
            said.append((short, len(rows), 1 + int(positions.max())))
            super().decode_fresh(fresh, *given, short=short, **how)  # type: ignore[arg-type]

    steps = Steps(MODELS["qwen2"](), Short, BF16)
    assert [shape.short for shape in steps.staging.buckets.shapes() if shape.tokens == 2] == [False, True]
    prompts = ([5], [6, 7, 8])
    params = SamplingParams(max_tokens=14, temperature=0, ignore_eos=True)
    tokens, _, _ = run(
        [Request(id=row, prompt=prompt, params=params) for row, prompt in enumerate(prompts)], steps
    )
    assert [len(given) for given in tokens.values()] == [14, 14]
    assert all(short == (entries == 2 and keys <= 12) for short, entries, keys in said)
    assert {(short, entries) for short, entries, _ in said} == {(True, 2), (False, 2)}
    assert {keys for short, _, keys in said if short} >= {11, 12}
