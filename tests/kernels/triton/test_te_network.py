"""A network's steps with Transformer Engine's projections, on a stand-in that rounds as the real one does."""

from collections.abc import Callable, Sequence

import pytest
import torch

from engine.flags import resolve
from engine.forced import forced_plans
from engine.gpu.cache import PagedKV
from engine.gpu.graphs import Buckets
from engine.gpu.inputs import device_inputs
from engine.gpu.linears import Linears, build_linears
from engine.gpu.network import Network
from engine.gpu.rows import DeviceRows
from engine.gpu.staging import StepStaging
from engine.gpu.te import groups, keeper_of, prepare
from engine.gpu.weights import network_weights
from engine.model import GPT
from engine.plan import Plan
from kernels import te
from kernels.backends.base import AttentionSpec
from kernels.backends.reference import TorchBackend
from kernels.te_linear import TeMaker
from tests.engine.checkpoints import make_model
from tests.kernels import fake_te

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu/test_te.py has the real one")
CPU, BF16, BLOCK = torch.device("cpu"), torch.bfloat16, 16
# Three positions: a step that begins texts, and two that go on with them.
TEXTS = [[(7 * i + 11 * row) % 90 for i in range(3)] for row in range(3)]


class Steps:
    """A runner without a stream."""

    def __init__(self, model: GPT, maker: TeMaker | None) -> None:
        flags = resolve(None, "fast", {"use_te_weight_only": True, "te_include_mlp": True})
        weights = network_weights(model, keeper=keeper_of(maker, flags) if maker is not None else None)
        self.linears: Linears = build_linears(weights, "auto", 64, False, maker)
        rotary, config = weights.layers[0].rotary, model.config
        spec = AttentionSpec(rotary.heads, rotary.kv_heads, rotary.head_dim, BLOCK, BF16, 4, 128, CPU)
        rows = DeviceRows(4, 9, weights.vocab_size, CPU)
        self.network = Network(weights, self.linears, rows, TorchBackend(spec), 64, 4)
        self.network.cache = PagedKV(config.n_layer, 20, BLOCK, config.n_kv_head, config.head_dim, BF16, CPU)
        self.staging = StepStaging(Buckets.up_to(4, 64), CPU)

    @torch.inference_mode()
    def force(self, plan: Plan) -> torch.Tensor:
        self.network.rows.stage(plan, ())
        shape = self.staging.stage(plan).shape
        self.network.step(shape, device_inputs(self.staging.decode, shape), False)
        return self.network.scratch.logits[: len(plan.chunks)].float().clone()

    def logits(self, texts: Sequence[list[int]]) -> torch.Tensor:
        """[positions, rows, vocabulary]"""
        return torch.stack([self.force(plan) for plan in forced_plans(texts, BLOCK)])


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Callable[[te.Name | None], Steps]:
    fake_te.install(monkeypatch)
    model = make_model("G3", 1, n_embd=64, n_head=4, n_kv_head=2, n_layer=3).to(BF16)

    def make(name: te.Name | None) -> Steps:
        if name is None:
            return Steps(model, None)
        made = Steps(model, TeMaker.of(te.load(), te.PRECISIONS[name]))
        passages = [[(3 * i + 5 * row) % 90 for i in range(5)] for row in range(4)]
        prepare(made, made.linears, groups(passages, 4, 5), BLOCK)  # type: ignore[arg-type]
        return made

    return make


@pytest.mark.slow
def test_near_the_full_network_and_the_same_in_any_company(
    steps: Callable[[te.Name | None], Steps],
) -> None:
    """Three rows in a bucket of four, padded to eight; then one of them alone, behind other steps."""
    served, want = steps("fp8"), steps(None).logits(TEXTS)
    got = served.logits(TEXTS)
    near = torch.nn.functional.cosine_similarity(got, want, dim=-1)
    assert near.min() > 0.99 and not torch.equal(got, want)
    for row in (0, 2):
        alone = served.logits(TEXTS[row : row + 1])
        assert torch.equal(alone[:, 0], got[:, row])
    assert torch.equal(served.logits(TEXTS), got)


def test_scales_of_each_step_see_the_neighbours(steps: Callable[[te.Name | None], Steps]) -> None:
    """What the start-up table says of fp8_current."""
    served = steps("fp8_current")
    assert not torch.equal(served.logits(TEXTS[:1])[:, 0], served.logits(TEXTS)[:, 0])
