"""Transformer Engine itself on the device: products against float64, graphs, the engine against a full one.

Skipped where the package is not installed; one that is there and cannot be imported fails.
"""

import argparse
import asyncio
import gc
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from benchmarks import accuracy
from engine.async_engine import AsyncEngine
from engine.fastpath import FlagUnavailable
from engine.llama import Llama
from engine.llama_config import llama_config
from engine.messages import EngineConfig, SamplingParams
from engine.model import GPT
from engine.text import load_tokenizer
from kernels import te
from kernels.te_linear import TeLinear, TeMaker, TeScratch
from tests.engine.checkpoints import make_model
from tests.engine.golden import G1
from tests.engine.serving import Answer, Ask, answers, started
from tests.gpu.forced import forced
from tests.gpu.test_engine import TOLERANCE, agree

EPS = 1e-5
WIDTH = 2048
BF16 = torch.bfloat16
TE = {"use_te_weight_only": True}
# A difference in bfloat16's last bit can put an input on the other side of a step of e4m3, 1 part in 16.
LOOSE = 3 * TOLERANCE[BF16]
TOKENIZER = load_tokenizer(G1 / "tokenizer")


@pytest.fixture(scope="module")
def engine(cuda: None) -> te.TransformerEngine:
    if find_spec("transformer_engine") is None:
        pytest.skip("needs transformer_engine")
    return te.load()


def able(engine: te.TransformerEngine, name: te.Name) -> TeMaker:
    try:
        return TeMaker.of(engine, te.precision(name, torch.cuda.get_device_capability(), BF16))
    except ValueError as error:
        pytest.skip(str(error))


def weight(outputs: int, inputs: int = WIDTH) -> torch.Tensor:
    torch.manual_seed(outputs)
    return torch.empty(outputs, inputs, dtype=BF16, device="cuda").normal_(std=inputs**-0.5)


def inputs(rows: int, width: int = WIDTH) -> torch.Tensor:
    """The first rows of whatever number are the same."""
    torch.manual_seed(1)
    return torch.randn(512, width, device="cuda").to(BF16)[:rows]


@torch.inference_mode()
def linear(maker: TeMaker, outputs: int, bias: torch.Tensor | None = None) -> TeLinear:
    scratch = TeScratch(maker.precision.rows, torch.zeros(512 * WIDTH, dtype=BF16, device="cuda"))
    with torch.inference_mode(False):  # as an engine does it
        made = maker.make(weight(outputs), "a weight")
    one = TeLinear(made, bias, maker=maker, scratch=scratch, pdl=True)
    scratch.calibrating = True
    one.linear(inputs(64), torch.empty(64, outputs, dtype=BF16, device="cuda"))
    scratch.calibrating = False
    one.settle()
    return one


def exact(x: torch.Tensor, outputs: int, eps: float | None = None) -> torch.Tensor:
    x = x.double()
    if eps is not None:
        x = x * (x.square().mean(1, keepdim=True) + eps).rsqrt()
    return x @ weight(outputs).double().t()


def error(out: torch.Tensor, want: torch.Tensor) -> float:
    return float((out.double() - want).norm() / want.norm())


@pytest.mark.parametrize("name", ["fp8", "fp8_current", "fp8_block", "bf16", "mxfp8", "nvfp4"])
@pytest.mark.parametrize("outputs", [6144, 65536, 500])
@torch.inference_mode()
def test_products_against_float64(name: te.Name, outputs: int, engine: te.TransformerEngine) -> None:
    """At row counts that are padded and others; an odd head, too. Nothing beside the rows is written."""
    one = linear(able(engine, name), outputs)
    most = {"bf16": 4e-3, "nvfp4": 0.25}.get(name, 0.06)
    for rows in (1, 2, 4, 8, 12, 64, 300):
        x = inputs(rows)
        buffer = torch.full((rows + 1, outputs + 16), float("nan"), dtype=BF16, device="cuda")
        out = buffer[:rows, :outputs]
        one.linear(x, out)
        assert error(out, exact(x, outputs)) < most, rows
        one.norm_linear(x, out, EPS)
        want = exact(x, outputs, EPS)
        assert error(out, want) < most, rows
        one.norm_linear_activation(x, out, EPS, "relu2")
        assert error(out, want.relu().square()) < 2 * most, rows
        out.copy_(x[:, :1])
        one.linear_residual(x, out)
        assert error(out, exact(x, outputs) + x[:, :1]) < most, rows
        assert buffer[rows:].isnan().all() and buffer[:, outputs:].isnan().all()


@torch.inference_mode()
def test_swiglu_and_a_bias(engine: te.TransformerEngine) -> None:
    bias = torch.randn(5504, device="cuda").to(BF16)
    one, x = linear(able(engine, "fp8"), 5504, bias), inputs(5)
    out = torch.empty(5, 2752, dtype=BF16, device="cuda")
    one.norm_linear_activation(x, out, EPS, "swiglu")
    gate, up = (exact(x, 5504, EPS) + bias).reshape(5, -1, 2, 8).unbind(2)
    assert error(out, (torch.nn.functional.silu(gate) * up).reshape(5, -1)) < 0.12


@torch.inference_mode()
def test_a_row_is_the_same_alone_padded_and_in_a_batch(engine: te.TransformerEngine) -> None:
    """Bit for bit, whatever is beside it: a scale that is set once knows no neighbours."""
    one = linear(able(engine, "fp8"), 6144)
    x = inputs(8).clone()
    x[3:] *= 50
    together, alone = (torch.empty(rows, 6144, dtype=BF16, device="cuda") for rows in (8, 1))
    one.linear(x, together)
    one.linear(x[:1], alone)
    assert torch.equal(alone, together[:1])
    one.norm_linear(x, together, EPS)
    one.norm_linear(x[:1], alone, EPS)
    assert torch.equal(alone, together[:1])


@pytest.mark.parametrize("name", ["fp8", "fp8_current", "fp8_block"])
@torch.inference_mode()
def test_a_graph_replays_what_runs_outside(name: te.Name, engine: te.TransformerEngine) -> None:
    """Again and again, with other inputs in between, and no scale moves."""
    one = linear(able(engine, name), 6144)
    x, out = inputs(4).clone(), torch.empty(4, 6144, dtype=BF16, device="cuda")
    first = x.clone()
    one.linear(x, out)
    want = out.clone()
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        graph.capture_begin(capture_error_mode="thread_local")
        one.linear(x, out)
        graph.capture_end()
    torch.cuda.synchronize()
    state = one.weight.module.fp8_meta["scaling_fwd"]
    scale = state.scale.clone() if name == "fp8" else None
    for factor in (1.0, 100.0, 1.0):
        x.copy_(first * factor)
        out.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        assert factor != 1.0 or torch.equal(out, want)
    one.linear(x, out)
    assert torch.equal(out, want)
    assert scale is None or torch.equal(state.scale, scale)


def test_what_is_kept_of_a_weight(engine: te.TransformerEngine) -> None:
    """One byte for each number, no transposed copy, and a scale that fits."""
    made = able(engine, "fp8").make(weight(6144), "a weight")
    assert made.stored_bytes <= 6144 * WIDTH + 64
    with torch.inference_mode():
        kept = made.module.weight.dequantize()
    assert kept.dtype == BF16 and error(kept, weight(6144).double()) < 0.04


# -- the engine


def tiny(family: str) -> GPT | Llama:
    if family == "qwen2":
        sizes: dict[str, object] = {
            "model_type": "qwen2",
            "vocab_size": 503,  # a head whose outputs must be padded
            "hidden_size": 512,
            "intermediate_size": 1408,
            "num_hidden_layers": 3,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": True,
        }
        torch.manual_seed(0)
        llama = Llama(llama_config("qwen2", sizes)).requires_grad_(False)
        for name, parameter in llama.named_parameters():
            spread = 0.04 if parameter.dim() > 1 else 0.1
            parameter.copy_(torch.randn(parameter.shape) * spread + ("norm" in name))
        return llama.to("cuda", BF16).eval()
    window = "L" if family == "G1" else "SSL"
    sizes_g = {"sequence_len": 256, "vocab_size": 512, "n_layer": 4, "n_head": 8, "n_kv_head": 8}
    made = make_model(family, 1, window_pattern=window, n_embd=512, **sizes_g)
    return made.to("cuda", BF16).requires_grad_(False).eval()


@pytest.fixture(scope="module", params=["G1", "G5", "qwen2"])
def model(request: pytest.FixtureRequest, engine: te.TransformerEngine) -> Iterator[GPT | Llama]:
    yield tiny(request.param)


ROOM: dict[str, object] = {"num_blocks": 512, "max_batched_tokens": 256, "enable_prefix_caching": False}


def engine_of(model: GPT | Llama, **settings: object) -> AsyncEngine:
    config = EngineConfig(**(ROOM | {"max_rows": 8} | settings))  # type: ignore[arg-type]
    return AsyncEngine(model, TOKENIZER, config)  # type: ignore[arg-type]


def cosines(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cosine_similarity(a, b, dim=-1)


async def test_f11_logits_are_the_full_models(model: GPT | Llama) -> None:
    """Close, not equal; and of the same path twice, in a graph and outside, equal bit for bit."""
    plain = engine_of(model)
    want = forced(plain, 8)
    await plain.close()
    for flags in (TE, TE | {"te_include_mlp": True}):
        served = engine_of(model, flags=flags)
        rows = {name: (used, why) for name, _, used, why in served.info.features}
        assert "fp8 primary weights (W8A8, delayed scaling" in rows["linear backend"][0]
        assert rows["te_weight_dtype"][0] == "fp8" and rows["use_cuda_graphs"][0].endswith("graphs")
        got = forced(served, 8)
        near = cosines(got, want)
        # With the MLP, too, a random model of few layers comes down to 0.989 (Qwen2 with biases).
        assert near.mean() > 0.985 and near.min() > 0.97, (float(near.mean()), float(near.min()))
        assert not torch.equal(got, want)
        assert torch.equal(forced(served, 8), got), "replayed once more"
        assert torch.equal(forced(served, 8, eager=True), got), "outside of a graph"
        assert torch.equal(forced(served, 8), got)
        alone = forced(served, 1)
        assert cosines(alone[:, 0], got[:, 0]).min() > 0.999
        await served.close()


async def test_f11_without_quantisation_it_is_the_full_model(model: GPT | Llama) -> None:
    plain, served = engine_of(model), engine_of(model, flags=TE | {"te_weight_dtype": "bf16"})
    assert cosines(forced(served, 8), forced(plain, 8)).min() > 0.9995
    await plain.close()
    await served.close()


@pytest.mark.parametrize("name", ["fp8_current", "fp8_block"])
async def test_f11_other_scalings(name: te.Name, model: GPT | Llama, engine: te.TransformerEngine) -> None:
    able(engine, name)
    plain, served = engine_of(model), engine_of(model, flags=TE | {"te_weight_dtype": name})
    assert cosines(forced(served, 8), forced(plain, 8)).mean() > 0.99
    await plain.close()
    await served.close()


async def greedy(model: GPT | Llama, **settings: object) -> list[Answer]:
    """Together; they must be what they are alone."""
    params = SamplingParams(max_tokens=16, temperature=0, ignore_eos=True, logprobs=8)
    asks = [Ask([(7 * i + n) % 503 for i in range(n)], params) for n in (2, 17, 33, 64, 120)]
    served = await started(model, TOKENIZER, **(ROOM | settings))  # type: ignore[arg-type]
    try:
        found = [choices[0] for choices in await answers(served, asks, together=True)]
        again = [choices[0] for choices in await answers(served, asks, together=False)]
        assert all(agree(a, b, LOOSE) for a, b in zip(again, found, strict=True))
        return found
    finally:
        await served.close()


async def test_f11_answers_of_a_batch_are_those_alone(model: GPT | Llama) -> None:
    with_graphs = await greedy(model, flags=TE)
    without = await greedy(model, flags=TE | {"use_cuda_graphs": False})
    anew = await greedy(model, flags=TE | {"use_cuda_graphs": False, "enable_persistent_decode": False})
    for other in (without, anew):
        assert all(agree(a, b, LOOSE) for a, b in zip(other, with_graphs, strict=True))


async def test_f11_three_rows_at_most(model: GPT | Llama) -> None:
    """Buckets that are no multiple of eight, and a sequence shorter than a passage."""
    await greedy(model, flags=TE, max_rows=3, max_model_len=160)


def test_f11_what_a_gpu_refuses(engine: te.TransformerEngine) -> None:
    model = tiny("G1")
    capability = torch.cuda.get_device_capability()
    for name in ("mxfp8", "nvfp4", "fp4") if capability < (10, 0) else ():
        with pytest.raises(ValueError, match=f"te_weight_dtype {name} needs .* capability 10.0"):
            engine_of(model, flags=TE | {"te_weight_dtype": name})
    with pytest.raises(FlagUnavailable, match="te_weight_dtype is fp16"):
        engine_of(model, flags=TE | {"te_weight_dtype": "fp16"})
    with pytest.raises(ValueError, match="excludes weight_dtype int8"):
        engine_of(model, flags=TE, weight_dtype="int8")
    with pytest.raises(FlagUnavailable, match="use_te_weight_only needs a model in bfloat16"):
        engine_of(model.float(), flags=TE)


def test_f11_memory_halves(engine: te.TransformerEngine) -> None:
    """What the budget says of the weights, and what the device has left of a model that nobody else holds."""

    async def bytes_of(flags: dict[str, object]) -> tuple[int, int]:
        sizes = {"n_layer": 8, "n_embd": 2048, "n_head": 16, "n_kv_head": 16, "vocab_size": 512}
        model = make_model("G1", 1, **sizes).to("cuda", BF16)
        gc.collect()
        torch.cuda.empty_cache()
        config = EngineConfig(flags=flags, num_blocks=64, max_rows=4, max_batched_tokens=64)  # type: ignore[arg-type]
        served = AsyncEngine(model, TOKENIZER, config, consume=True)
        del model
        gc.collect()
        try:
            return served.backend.memory["weights"], torch.cuda.memory_allocated()
        finally:
            await served.close()

    plain, plain_held = asyncio.run(bytes_of({}))
    gc.collect()
    eight, eight_held = asyncio.run(bytes_of(TE | {"te_include_mlp": True}))
    assert 0.5 <= eight / plain < 0.52
    assert plain_held - eight_held > (plain - eight) - (96 << 20)  # TE's cuBLAS has 32 MiB of its own


def test_f11_the_embedded_model(engine: te.TransformerEngine, tmp_path: Path) -> None:
    """A trained one, loaded as any checkpoint: it loses next to nothing."""
    sizes = "--rows 16 --length 128 --tokens 8192 --device cuda --dtype bfloat16 --systems full,te,te_mlp"
    args: argparse.Namespace = accuracy.arguments([*sizes.split(), "--streams", ""])
    full, *others = asyncio.run(accuracy.run(args))
    assert full.error is None
    for row in others:
        assert row.error is None, row.error
        assert row.cosine_mean > 0.99 and abs(row.nats_more) < 0.1, row
