"""Projections through Transformer Engine: with a package that rounds as the real one and needs no GPU."""

from collections.abc import Iterator

import pytest
import torch

from kernels import te
from kernels.te_linear import LARGEST, TeLinear, TeMaker, TeScratch, TeWeight
from tests.kernels import fake_te

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu/test_te.py has the real one")
EPS = 1e-5
WIDTH, OUTPUTS = 64, 48
BF16 = torch.bfloat16


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch) -> Iterator[fake_te.State]:
    """Steps run in inference mode; so does everything here."""
    with torch.inference_mode():
        yield fake_te.install(monkeypatch)


def maker(name: te.Name = "fp8") -> TeMaker:
    return TeMaker.of(te.load(), te.PRECISIONS[name])


def weight(outputs: int = OUTPUTS, inputs: int = WIDTH) -> torch.Tensor:
    torch.manual_seed(outputs)
    return torch.randn(outputs, inputs).mul(inputs**-0.5).to(BF16)


def inputs(rows: int, scale: float = 1.0) -> torch.Tensor:
    torch.manual_seed(rows)
    return (scale * torch.randn(rows, WIDTH)).to(BF16)


def linear(name: te.Name = "fp8", bias: torch.Tensor | None = None, tokens: int = 64) -> TeLinear:
    """Calibrated with numbers of usual size."""
    made = maker(name)
    scratch = TeScratch(made.precision.rows, torch.zeros(tokens * WIDTH, dtype=BF16))
    one = TeLinear(made.make(weight(), "a weight"), bias, maker=made, scratch=scratch)
    scratch.calibrating = True
    one.linear(inputs(16), torch.empty(16, OUTPUTS, dtype=BF16))
    scratch.calibrating = False
    one.settle()
    return one


def poisoned(rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A buffer with a margin, and the part to be written."""
    buffer = torch.full((rows + 1, columns + 8), float("nan"), dtype=BF16)
    return buffer, buffer[:rows, :columns]


def near(out: torch.Tensor, want: torch.Tensor, tolerance: float = 0.06) -> bool:
    return bool((out.float() - want).norm() <= tolerance * want.norm())


def normed(x: torch.Tensor) -> torch.Tensor:
    return x.float() * (x.float().square().mean(1, keepdim=True) + EPS).rsqrt()


@pytest.mark.parametrize("rows", [1, 3, 8, 12, 40])
@pytest.mark.parametrize("biased", [False, True])
def test_all_four_products(rows: int, biased: bool, state: fake_te.State) -> None:
    bias = torch.linspace(-1, 1, OUTPUTS).to(BF16) if biased else None
    one, x = linear(bias=bias), inputs(rows)
    added = bias.float() if bias is not None else 0.0
    plain, behind_norm = (y.float() @ weight().float().t() + added for y in (x, normed(x)))
    buffer, out = poisoned(rows, OUTPUTS)
    one.linear(x, out)
    assert near(out, plain) and not torch.equal(out.float(), plain)
    one.norm_linear(x, out, EPS)
    assert near(out, behind_norm)
    one.norm_linear_activation(x, out, EPS, "relu2")
    assert near(out, behind_norm.relu().square(), 0.12)
    one.norm_linear_activation(x, out, EPS, "none")
    assert near(out, behind_norm)
    out.fill_(3.0)
    one.linear_residual(x, out)
    assert near(out - 3.0, plain, 0.08)
    assert buffer[rows:].isnan().all() and buffer[:, OUTPUTS:].isnan().all()
    half_buffer, half = poisoned(rows, OUTPUTS // 2)
    one.norm_linear_activation(x, half, EPS, "swiglu")
    gate, up = behind_norm.reshape(rows, -1, 2, 8).unbind(2)
    assert near(half, (torch.nn.functional.silu(gate) * up).reshape(rows, -1), 0.12)
    assert half_buffer[rows:].isnan().all() and half_buffer[:, OUTPUTS // 2 :].isnan().all()
    assert all(shape[0] % 8 == 0 and shape[0] - rows < 8 for shape in state.calls)


def test_padding_stays_zero_whatever_ran_before(state: fake_te.State) -> None:
    one = linear()
    for rows in (3, 40, 8, 3):
        y = torch.empty(rows, OUTPUTS, dtype=BF16)
        one.norm_linear(inputs(rows, 5.0), y, EPS)
        one.linear(inputs(rows, 5.0), y)
        one.linear_residual(inputs(rows, 5.0), y)
    room = one.scratch.room(3, WIDTH)
    assert room.shape == (8, WIDTH) and room[:3].any() and not room[3:].any()


@pytest.mark.parametrize("name", ["fp8", "fp8_current"])
def test_a_row_depends_on_its_neighbours_only_where_it_says_so(name: te.Name, state: fake_te.State) -> None:
    one, x = linear(name), inputs(8)
    x[5] *= 30
    together, alone = torch.empty(8, OUTPUTS, dtype=BF16), torch.empty(1, OUTPUTS, dtype=BF16)
    one.linear(x, together)
    one.linear(x[:1], alone)
    assert torch.equal(alone, together[:1]) != one.maker.precision.neighbours


def test_scales_are_set_once(state: fake_te.State) -> None:
    """From the largest that was seen, with room for twice that; the weight's fits exactly."""
    one = linear()
    scaling = state.modules[0].fp8_meta["scaling_fwd"]
    largest = inputs(16).abs().amax().float()
    assert torch.isclose(scaling.scale[0], LARGEST / largest / 2)
    assert torch.isclose(scaling.scale[1], LARGEST / weight().abs().amax().float())
    before, out = scaling.scale.clone(), torch.empty(8, OUTPUTS, dtype=BF16)
    one.linear(inputs(8), out)
    first = out.clone()
    one.linear(inputs(8, 100.0), torch.empty(8, OUTPUTS, dtype=BF16))
    one.linear(inputs(8), out)
    assert torch.equal(scaling.scale, before) and torch.equal(out, first)
    assert scaling.amax_history[0, 0] > 100, "it is noted all the same"


def test_the_largest_of_all_that_was_seen(state: fake_te.State) -> None:
    made = maker()
    scratch = TeScratch(8, torch.zeros(64 * WIDTH, dtype=BF16), calibrating=True)
    one = TeLinear(made.make(weight(), "a weight"), maker=made, scratch=scratch)
    for scale in (1.0, 7.0, 2.0):
        out = torch.empty(5, OUTPUTS, dtype=BF16)
        one.linear(inputs(5, scale), out)
        # Inputs are not rounded yet, weights are.
        assert near(out, inputs(5, scale).float() @ weight().float().t(), 0.04)
    assert not state.calls
    one.settle()
    largest = inputs(5, 7.0).abs().amax().float()
    assert torch.isclose(state.modules[0].fp8_meta["scaling_fwd"].scale[0], LARGEST / largest / 2)


def test_what_calibration_did_not_reach_is_an_error(state: fake_te.State) -> None:
    made = maker()
    scratch = TeScratch(8, torch.zeros(64 * WIDTH, dtype=BF16))
    one = TeLinear(made.make(weight(), "a weight"), maker=made, scratch=scratch)
    with pytest.raises(RuntimeError, match="not reached by its calibration"):
        one.settle()


def test_zeros_leave_the_scale_as_it_is(state: fake_te.State) -> None:
    made = maker()
    made.make(torch.zeros(OUTPUTS, WIDTH, dtype=BF16), "zeros")
    assert torch.equal(state.modules[0].fp8_meta["scaling_fwd"].scale, torch.ones(3))


@pytest.mark.parametrize("name", ["fp8", "fp8_current"])
def test_weights_take_half_and_are_near(name: te.Name, state: fake_te.State) -> None:
    """A head of an odd size gets outputs of zeros behind it, which nobody sees."""
    full = weight(50)
    made = maker(name).make(full, "the head")
    assert isinstance(made, TeWeight) and made.shape == (50, WIDTH) and made.size(0) == 50
    assert made.stored_bytes == 64 * WIDTH + 4
    module = state.modules[0]
    assert isinstance(module.weight, fake_te.Quantised)
    kept = module.weight.dequantize()
    assert near(kept[:50], full.float(), 0.04) and not kept[50:].any()
    assert not torch.equal(kept[:50], full)


def test_without_quantisation_it_is_the_plain_product(state: fake_te.State) -> None:
    one, x = linear("bf16"), inputs(3)
    out = torch.empty(3, OUTPUTS, dtype=BF16)
    one.linear(x, out)
    assert torch.equal(out, x @ weight().t()) and state.calls == [torch.Size((3, WIDTH))]
    assert one.weight.stored_bytes == 2 * OUTPUTS * WIDTH


def test_what_it_cannot_make(state: fake_te.State) -> None:
    with pytest.raises(ValueError, match=r"use_te_weight_only: o of layer 3 has 40 inputs.*multiples of 16"):
        maker().make(weight(inputs=40), "o of layer 3")
    spoiled = weight()
    spoiled[1, 2] = float("inf")
    with pytest.raises(ValueError, match="o of layer 3: numbers are not finite"):
        maker().make(spoiled, "o of layer 3")
    state.unable["is_fp8_available"] = "the device is too old"
    with pytest.raises(ValueError, match="te_weight_dtype fp8: the device is too old"):
        maker()


def test_a_head_of_an_odd_size(state: fake_te.State) -> None:
    one = linear()
    head = TeLinear(one.maker.make(weight(50), "the head"), maker=one.maker, scratch=one.scratch)
    state.modules[1].fp8_meta["scaling_fwd"].scale[0] = 64.0
    buffer, out = poisoned(3, 50)
    head.linear(inputs(3), out)
    assert near(out, inputs(3).float() @ weight(50).float().t()) and buffer[:, 50:].isnan().all()
