"""Weights of eight bits on the device: products against float64, the engine against a rounded model, and
memory."""

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from engine.async_engine import AsyncEngine
from engine.eight_bits import rounded_model
from engine.messages import EngineConfig, SamplingParams
from engine.messages.config import WeightName
from engine.model import GPT
from engine.text import load_tokenizer
from kernels.device_linear import DeviceLinear, LinearScratch, through_cublas
from kernels.linear_families import families
from kernels.probe import Choices, Projection, choose
from kernels.product import Product
from kernels.quantize import Kind8, Weight8, dequantize, quantize
from kernels.skinny import Activation, Variant, prepare_all, skinny_linear, variants
from kernels.triton import dequantize as on_device
from tests.engine.checkpoints import make_model
from tests.engine.golden import G1
from tests.engine.serving import Answer, Ask, answers, started
from tests.gpu.test_engine import TOLERANCE, agree
from tests.kernels.test_skinny import exact

EPS = 1e-5
ROWS = (1, 2, 4, 8, 16)
Shape = tuple[int, int, bool, Activation, bool]
# d32's and some Llamas' projections, then some that cut badly.
SHAPES: list[Shape] = [
    (6144, 2048, True, "none", False),
    (2048, 2048, False, "none", True),
    (8192, 2048, True, "relu2", False),
    (2048, 8192, False, "none", True),
    (65536, 2048, False, "none", False),
    (11008, 2048, True, "swiglu", False),
    (16, 64, True, "none", False),
    (112, 576, True, "swiglu", False),
    (48, 320, False, "none", True),
]
KINDS: tuple[Kind8, ...] = ("int8", "fp8")
both = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def hopper(cuda: None) -> None:
    """Compiles what the products below need, on all cores."""
    if torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("needs compute capability 9.0")
    wanted = [
        (k, variant)
        for n, k, _, activation, _ in SHAPES
        for m in (*ROWS, 64)
        for kind in KINDS
        for variant in variants(m, n, k, activation, kind=kind)[:3]
    ]
    prepare_all(wanted, torch.device("cuda"))()


def tensors(m: int, shape: Shape, kind: Kind8) -> tuple[torch.Tensor, Weight8, torch.Tensor]:
    """x as rows of a wider, poisoned buffer; a weight whose rows differ in size; residual."""
    n, k = shape[:2]
    torch.manual_seed(n + k + m)
    x = torch.full((m + 2, k + 64), float("nan"), dtype=torch.bfloat16, device="cuda")
    x[:m, :k] = torch.randn(m, k, device="cuda")
    weight = torch.empty(n, k, dtype=torch.bfloat16, device="cuda").normal_(std=k**-0.5)
    weight *= 1 + torch.arange(n, device="cuda")[:, None] % 5
    return x[:m, :k], quantize(weight, kind), torch.randn(m, n, device="cuda").bfloat16()


def product(
    x: torch.Tensor, weight: Weight8, shape: Shape, variant: Variant, before: torch.Tensor, pdl: bool = False
) -> torch.Tensor:
    """Into a poisoned buffer with a margin, which must stay as it is."""
    n, _, norm, activation, accumulate = shape
    m, columns = x.size(0), n // 2 if activation == "swiglu" else n
    buffer = torch.full((m + 1, columns + 16), float("nan"), dtype=torch.bfloat16, device="cuda")
    out = buffer[:m, :columns]
    if accumulate:
        out.copy_(before)
    eps = EPS if norm else None
    skinny_linear(
        x, weight, out, eps=eps, activation=activation, accumulate=accumulate, variant=variant, pdl=pdl
    )
    assert buffer[m:].isnan().all() and buffer[:, columns:].isnan().all()
    return out


@both
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_float64(shape: Shape, kind: Kind8, hopper: None) -> None:
    """Of what the numbers and scales stand for; bit-equal for any number of rows and by any variant."""
    n, k, norm, activation, accumulate = shape
    x, weight, residual = tensors(64, shape, kind)
    want = exact(x, weight, EPS if norm else None, activation, residual if accumulate else None)
    whole = product(x, weight, shape, variants(64, n, k, activation, kind=kind)[0], residual)
    for m in (*ROWS, 64):
        for variant in variants(m, n, k, activation, kind=kind)[:3]:
            out = product(x[:m], weight, shape, variant, residual[:m], pdl=m % 2 == 0)
            error = ((out.double() - want[:m]).norm() / want[:m].norm()).item()
            assert error < 3e-3, f"{variant}, {m} rows: {error}"
            worst = (out.double() - want[:m]).abs().max().item()
            assert worst < 1e-2 * max(1.0, want[:m].abs().max().item()), f"{variant}, {m} rows: {worst}"
            assert torch.equal(out, whole[:m]), f"{variant}, {m} rows"


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_dequantised_on_the_device(kind: Kind8, dtype: torch.dtype, cuda: None) -> None:
    for outputs, inputs in ((2048, 2048), (300, 5504), (1, 64)):
        made_of = torch.randn(outputs, inputs, device="cuda", dtype=dtype)
        weight, on_a_cpu = quantize(made_of, kind), quantize(made_of.cpu(), kind)
        out = torch.full((outputs, inputs), float("nan"), device="cuda", dtype=dtype)
        on_device.dequantize(weight, out)
        assert torch.equal(out, dequantize(weight))
        assert torch.equal(weight.values.view(torch.int8).cpu(), on_a_cpu.values.view(torch.int8))
        assert torch.equal(weight.scales.cpu(), on_a_cpu.scales)


@both
def test_by_choice(kind: Kind8, hopper: None, tmp_path: Path) -> None:
    """Whatever is chosen, at any number of rows, in a graph too, one projection behind the other."""
    shapes = [SHAPES[i] for i in (0, 1, 2, 3, 5)]
    full = max(n * k for n, k, *_ in shapes)
    scratch = LinearScratch.allocate(300, 2048, 11008, torch.bfloat16, torch.device("cuda"), full)
    weights = [tensors(1, shape, kind)[1] for shape in shapes]
    projections = [
        Projection("p", Product(*shape, kind), [weight] * 2)
        for shape, weight in zip(shapes, weights, strict=True)
    ]
    cache = tmp_path / "c.json"
    library, ours = through_cublas(scratch, True), families(scratch, True)
    measured = choose(projections, library, ours, pdl=True, cache=cache)
    for row in measured.explain():
        print(*row, sep="  ")
    assert all(measured.pick(one.product, 1) is not None for one in projections)
    for choices in (measured, Choices()):
        for m in (1, 5, 16, 64, 300):
            for shape, weight in zip(shapes, weights, strict=True):
                n, k, norm, activation, accumulate = shape
                x, before = torch.randn(m, k, device="cuda").bfloat16(), torch.randn(m, n, device="cuda")
                linear = DeviceLinear(weight, choices=choices, scratch=scratch, pdl=True)
                width = n // 2 if activation == "swiglu" else n
                out = torch.full((m, width), float("nan"), dtype=torch.bfloat16, device="cuda")
                if accumulate:
                    out.copy_(before)
                    linear.linear_residual(x, out)
                elif norm:
                    linear.norm_linear_activation(x, out, EPS, activation)
                residual = before.bfloat16() if accumulate else None
                want = exact(x, weight, EPS if norm else None, activation, residual)
                assert (out.double() - want).norm() / want.norm() < 8e-3, (str(linear.choices), m, shape)


# -- the engine


@pytest.fixture(scope="module", params=["G1", "G5"])
def model(request: pytest.FixtureRequest, cuda: None) -> Iterator[GPT]:
    window = "L" if request.param == "G1" else "SSL"
    sizes = {"sequence_len": 64, "vocab_size": 512, "n_layer": 3, "n_head": 4, "n_kv_head": 4, "n_embd": 256}
    made = make_model(request.param, 1, window_pattern=window, **sizes)
    yield made.to("cuda", torch.bfloat16).requires_grad_(False).eval()


async def greedy(model: GPT, **settings: object) -> list[Answer]:
    params = SamplingParams(max_tokens=16, temperature=0, ignore_eos=True, logprobs=8)
    asks = [Ask([(7 * i + n) % 503 for i in range(n)], params) for n in (2, 17, 33, 64, 120)]
    engine = await started(
        model, load_tokenizer(G1 / "tokenizer"), num_blocks=512, max_batched_tokens=256, **settings
    )
    try:
        found = [choices[0] for choices in await answers(engine, asks, together=True)]
        again = [choices[0] for choices in await answers(engine, asks, together=False)]
        tolerance = TOLERANCE[torch.bfloat16]
        assert all(agree(a, b, tolerance) for a, b in zip(again, found, strict=True))
        return found
    finally:
        await engine.close()


@both
@pytest.mark.parametrize("graphs", [True, False], ids=["graphs", "no graphs"])
async def test_the_engine_answers_as_the_rounded_model(model: GPT, kind: Kind8, graphs: bool) -> None:
    """Whose weights are rounded to bfloat16 once more, which is less than the products round."""
    flags = {"use_cuda_graphs": graphs}
    reference = rounded_model(model, kind)
    assert isinstance(reference, GPT)
    want = await greedy(reference, flags=flags)
    for backend in ("auto", "cublas"):
        got = await greedy(model, flags=flags, weight_dtype=kind, linear_backend=backend)
        assert all(agree(a, b, TOLERANCE[torch.bfloat16]) for a, b in zip(got, want, strict=True)), backend


async def test_float32_goes_through_cublas(cuda: None) -> None:
    """No kernel of ours serves it; what is dequantised is exact."""
    model = make_model("G1", 1, n_embd=256, n_head=4, n_kv_head=4, vocab_size=512).to("cuda")
    reference = rounded_model(model, "int8")
    assert isinstance(reference, GPT)
    want, got = await greedy(reference), await greedy(model, weight_dtype="int8")
    assert all(agree(a, b, TOLERANCE[torch.float32]) for a, b in zip(got, want, strict=True))


@both
async def test_memory_halves(kind: Kind8, cuda: None) -> None:
    """What the budget says of the weights, and what the device has left of a model that nobody else holds."""

    async def bytes_of(asked: WeightName) -> tuple[int, int]:
        sizes = {"n_layer": 8, "n_embd": 2048, "n_head": 16, "n_kv_head": 16, "vocab_size": 512}
        model = make_model("G1", 1, **sizes).to("cuda", torch.bfloat16)
        gc.collect()
        torch.cuda.empty_cache()
        config = EngineConfig(weight_dtype=asked, num_blocks=64, max_rows=4, max_batched_tokens=64)
        engine = AsyncEngine(model, load_tokenizer(G1 / "tokenizer"), config, consume=True)
        del model
        gc.collect()
        try:
            weights = engine.backend.memory["weights"]
            rows = {name: rest for name, *rest in engine.info.features}
            assert rows["weight dtype"][1] == ("bfloat16" if asked == "auto" else asked)
            assert asked == "auto" or engine.info.weights_bytes == weights
            return weights, torch.cuda.memory_allocated()
        finally:
            await engine.close()

    plain, plain_held = await bytes_of("auto")
    gc.collect()
    eight, eight_held = await bytes_of(kind)
    assert 0.5 <= eight / plain < 0.52
    # One full projection stays, for products with many rows, and cuBLAS, which has those, its workspaces.
    assert plain_held - eight_held > (plain - eight) - 2 * 8192 * 2048 - (96 << 20)
