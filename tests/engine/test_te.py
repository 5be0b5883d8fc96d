"""Transformer Engine's projections in an engine, as far as that needs no GPU: weights, calibration, steps
over given tokens. The package is a stand-in (tests.kernels.fake_te)."""

from importlib.util import find_spec
from itertools import pairwise
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
import torch

from engine.calibration import COUNT, LENGTH, passages
from engine.decoder import Decoder
from engine.flags import Resolved, resolve
from engine.forced import forced_blocks, forced_plans
from engine.llama import Llama
from engine.llama_config import llama_config
from engine.model import GPT
from engine.runner import ModelRunner
from engine.text import load_tokenizer
from kernels import te
from kernels.attention import KVCache
from tests.engine.checkpoints import make_model
from tests.engine.golden import G1
from tests.kernels import fake_te
from tests.optional import missing

if TYPE_CHECKING:
    from kernels.te_linear import TeMaker

LLAMA: dict[str, object] = {
    "model_type": "qwen3",
    "vocab_size": 90,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
}


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch) -> fake_te.State:
    if find_spec("triton") is None:
        missing("needs triton")
    return fake_te.install(monkeypatch)


def make(family: str, tied: bool = False) -> Decoder:
    if family != "qwen3":
        return make_model(family, 1, n_embd=64, n_head=4, n_kv_head=2).to(torch.bfloat16)
    torch.manual_seed(0)
    model = Llama(llama_config("qwen3", LLAMA | {"tie_word_embeddings": tied})).requires_grad_(False)
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape) * 0.1 + (parameter.dim() == 1))
    return model.to(torch.bfloat16)


def maker() -> "TeMaker":
    from kernels.te_linear import TeMaker

    return TeMaker.of(te.load(), te.PRECISIONS["fp8"])


def te_flags(mlp: bool) -> Resolved:
    return resolve(None, "fast", {"use_te_weight_only": True, "te_include_mlp": mlp})


@pytest.mark.parametrize("mlp", [False, True])
@pytest.mark.parametrize("family", ["G1", "G5", "qwen3"])
def test_which_weights_it_keeps(family: str, mlp: bool, state: fake_te.State) -> None:
    """What it keeps stands for the plain network's fused weights, and what it was made of is dropped."""
    from engine.gpu.te import keeper_of
    from engine.gpu.weights import MATRICES, network_weights
    from kernels.te_linear import TeWeight

    plain, given = network_weights(make(family)), make(family)
    weights = network_weights(given, True, keeper_of(maker(), te_flags(mlp)))
    wanted = MATRICES if mlp else ("qkv", "o")
    pairs = [(weights.head, plain.head)]
    for ours, full in zip(weights.layers, plain.layers, strict=True):
        for name in MATRICES:
            one, other = getattr(ours, name), getattr(full, name)
            assert isinstance(one, TeWeight) == (name in wanted), name
            assert one.shape == other.shape
            if name in wanted:
                pairs.append((one, other))
            else:
                assert torch.equal(one, other), name
    for one, other in pairs:
        assert isinstance(one, TeWeight) and isinstance(other, torch.Tensor)
        kept = one.module.weight.dequantize()[: one.size(0)]
        assert (kept - other).norm() < 0.04 * other.norm()
    gone = {name for name, parameter in given.named_parameters() if parameter.is_meta}
    parts = {name.split(".")[-2] for name in gone}
    nanochat, llama = {"c_q", "c_k", "c_v", "lm_head"}, {"q_proj", "k_proj", "v_proj", "lm_head"}
    if family == "qwen3":  # gate and up are copies, so that they are dropped in any case
        assert parts == llama | {"o_proj", "gate_proj", "up_proj"} | ({"down_proj"} if mlp else set())
    else:
        assert {"attn.c_proj.weight"} <= {name.split(".", 3)[-1] for name in gone if "attn" in name}
        assert parts == nanochat | {"c_proj"} | ({"c_fc"} if mlp else set())
        assert any("mlp.c_proj" in name for name in gone) == mlp
    assert weights.total_bytes < plain.total_bytes
    assert not mlp or weights.bytes_per_step < 0.6 * plain.bytes_per_step


def test_a_tied_head_leaves_the_embedding(state: fake_te.State) -> None:
    from engine.gpu.te import keeper_of
    from engine.gpu.weights import network_weights

    plain = network_weights(make("qwen3", tied=True))
    weights = network_weights(make("qwen3", tied=True), True, keeper_of(maker(), te_flags(False)))
    assert torch.equal(weights.embedding, plain.embedding)


@pytest.mark.parametrize("mlp", [False, True])
def test_which_linears_serve(mlp: bool, state: fake_te.State) -> None:
    """Its own through it, all others by ours, which alone are measured."""
    from engine.gpu import linears as module
    from engine.gpu.te import keeper_of
    from engine.gpu.weights import network_weights
    from kernels.device_linear import DeviceLinear
    from kernels.te_linear import TeLinear

    made = maker()
    weights = network_weights(make("G1"), False, keeper_of(made, te_flags(mlp)))
    linears = module.build_linears(weights, "auto", 64, False, made)
    for layer in linears.layers:
        assert isinstance(layer.qkv, TeLinear) and isinstance(layer.o, TeLinear)
        assert isinstance(layer.mlp_in, TeLinear if mlp else DeviceLinear)
        assert isinstance(layer.mlp_out, TeLinear if mlp else DeviceLinear)
    assert isinstance(linears.head, TeLinear)
    assert len(linears.te) == len(state.modules) == 1 + (4 if mlp else 2) * len(linears.layers)
    assert all(one.scratch is linears.te_scratch for one in linears.te)
    measured = [projection.name for projection in module._projections(weights)]
    assert measured == ([] if mlp else ["mlp in", "mlp out"])


class Recorder:
    """A runner whose steps reach every projection, or fail."""

    def __init__(self, linears: object, fails: bool = False) -> None:
        self.linears, self.fails, self.plans = linears, fails, 0

    def force(self, plan: object) -> None:
        calibrating = self.linears.te_scratch.calibrating  # type: ignore[attr-defined]
        assert calibrating == (self.plans < 6), "and one step more as they serve"
        self.plans += 1
        if self.fails:
            raise RuntimeError("the device is gone")
        for linear in self.linears.te:  # type: ignore[attr-defined]
            linear.largest = torch.tensor(2.0)


@pytest.mark.parametrize("fails", [False, True])
def test_calibration_ends_with_scales_set(fails: bool, state: fake_te.State) -> None:
    from engine.gpu.linears import build_linears
    from engine.gpu.te import keeper_of, prepare
    from engine.gpu.weights import network_weights

    made = maker()
    linears = build_linears(
        network_weights(make("G1"), False, keeper_of(made, te_flags(True))), "auto", 64, False, made
    )
    runner = Recorder(linears, fails)
    batches = [[[1, 2, 3], [4, 5, 6]], [[7, 8, 9], [1, 1, 1]]]
    if fails:
        with pytest.raises(RuntimeError, match="the device is gone"):
            prepare(runner, linears, batches, 16)  # type: ignore[arg-type]
    else:
        prepare(runner, linears, batches, 16)  # type: ignore[arg-type]
        assert runner.plans == 7
        scales = [module.fp8_meta["scaling_fwd"].scale[0].item() for module in state.modules]
        assert scales == [448 / 2 / 2] * len(state.modules)
    assert linears.te_scratch is not None and not linears.te_scratch.calibrating


@pytest.mark.parametrize(
    ("max_rows", "longest", "shape"),
    [(256, 1024, (1, 16, 48)), (16, 48, (1, 16, 48)), (3, 20, (4, 3, 20)), (1, 1024, (4, 1, 48))],
)
def test_every_row_of_a_calibrating_step_is_live(
    max_rows: int, longest: int, shape: tuple[int, int, int], state: fake_te.State
) -> None:
    from engine.gpu.graphs import Buckets
    from engine.gpu.te import groups

    found = groups([[row] * 48 for row in range(16)], max_rows, longest)
    assert (len(found), len(found[0]), len(found[0][0])) == shape
    assert len({len(batch) for batch in found}) == 1
    assert Buckets.up_to(max_rows, 4096).decode_shape(shape[1]).tokens == shape[1]


def test_passages_begin_as_documents_and_cover_the_vocabulary() -> None:
    tokenizer = load_tokenizer(G1 / "tokenizer")
    vocabulary = tokenizer.get_vocab_size()
    found = passages(tokenizer, vocabulary)
    assert len(found) == COUNT and all(len(passage) == LENGTH for passage in found)
    assert {passage[0] for passage in found} == {tokenizer.get_bos_token_id()}
    ids = [id for passage in found for id in passage[1:]]
    assert all(0 <= id < vocabulary for id in ids)
    spread = sorted({id for passage in found[1::2] for id in passage[1:]})
    assert max(b - a for a, b in pairwise(spread)) < vocabulary / 50
    assert tokenizer.decode(found[0][1:]).startswith("The river was high")
    odd = SimpleNamespace(get_bos_token_id=lambda: 99998, encode=lambda text: [99999])
    assert all(id < 500 for passage in passages(odd, 500) for id in passage)  # type: ignore[arg-type]


@pytest.mark.parametrize("block_size", [1, 4, 16])
def test_steps_over_given_tokens(block_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through a real runner: each step's logits are those of the dense forward, for every passage."""
    model = make_model("G5", 1)
    texts = [[(7 * i + row) % 90 for i in range(9)] for row in range(3)]
    shape = model.config
    cache = KVCache.allocate(
        shape.n_layer,
        forced_blocks(texts, block_size),
        block_size,
        shape.n_kv_head,
        shape.head_dim,
        torch.float32,
        torch.device("cpu"),
    )
    runner = ModelRunner(model, cache, 4, (), 1)
    seen: list[torch.Tensor] = []
    logits = GPT.logits
    monkeypatch.setattr(GPT, "logits", lambda self, hidden: seen.append(logits(self, hidden)) or seen[-1])
    try:
        for plan in forced_plans(texts, block_size):
            runner.launch(plan).future.result()
    finally:
        runner.close()
    found = torch.stack(seen, dim=1)
    monkeypatch.undo()
    with torch.inference_mode():
        want = model(torch.tensor(texts))
    assert found.shape == want.shape
    assert torch.allclose(found, want.float(), atol=1e-4)
    with pytest.raises(ValueError, match="of one length"):
        next(forced_plans([[1, 2], [3]], block_size))
