"""The operators of training: forward and backward against float64, and against plain torch's own autograd."""

import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from engine.config import Generation
from kernels import activation as kernel_activation
from kernels import autograd, rope
from kernels import norm as kernel_norm
from kernels.triton import activation, norm, training
from tests.engine.checkpoints import GENERATIONS, make_model
from tests.kernels.triton.device import DEVICE, DTYPES, REL_L2, poisoned, randn
from tests.tiers import tiered

EPS = 1e-6
bits = pytest.mark.parametrize("dtype", DTYPES, ids=["bf16", "fp32"])


def gradient(
    function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, up: torch.Tensor
) -> torch.Tensor:
    """Of (function(x) * up).sum(), by torch's autograd in float64."""
    wide = x.double().requires_grad_(True)
    (found,) = torch.autograd.grad(function(wide), wide, up.double())
    return found


def assert_close(got: torch.Tensor, want: torch.Tensor) -> None:
    """Within rounding, as a whole and number by number."""
    assert torch.isfinite(got).all()
    error = got.double() - want
    assert error.norm() <= REL_L2[got.dtype] * want.norm()
    assert error.abs().max() <= 3 * REL_L2[got.dtype] * want.abs().max()


def plain_norm(x: torch.Tensor) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt()


@bits
@pytest.mark.parametrize(("tokens", "width"), [(1, 512), (5, 96), (3, 2048)])
def test_rms_norm_backward(dtype: torch.dtype, tokens: int, width: int) -> None:
    x, up = randn(tokens, width, dtype=dtype), randn(tokens, width, dtype=dtype, seed=1)
    out = poisoned(tokens, width, dtype=dtype)
    training.rms_norm_backward(x, up, EPS, out)
    assert_close(out, gradient(plain_norm, x, up))


@bits
@pytest.mark.parametrize(("tokens", "heads", "width"), [(1, 1, 16), (7, 3, 32), (5, 16, 128)])
@pytest.mark.parametrize("scale", [1.0, 1.2])
def test_rotate_norm(dtype: torch.dtype, tokens: int, heads: int, width: int, scale: float) -> None:
    x, up = (randn(tokens, heads, width, dtype=dtype, seed=seed) for seed in (0, 1))
    table = rope.rope_table(64, width, 1e4, torch.float32, DEVICE)
    places = torch.arange(3, 3 + tokens, device=DEVICE)
    own, other = (part[places].unsqueeze(1) for part in table)
    out = poisoned(tokens, heads, width, dtype=dtype)
    training.rotate_norm(x, own, other, EPS, scale, out)
    assert_close(out, rope.rotate_and_norm(x, own, other, EPS, scale).double())

    def plain(wide: torch.Tensor) -> torch.Tensor:
        swapped = torch.cat(wide.chunk(2, dim=-1)[::-1], dim=-1)
        return plain_norm(wide * own.double() + swapped * other.double()) * scale

    down = poisoned(tokens, heads, width, dtype=dtype)
    training.rotate_norm_backward(x, own, other, up, EPS, scale, down)
    assert_close(down, gradient(plain, x, up))


@bits
@pytest.mark.parametrize("shape", [(1, 8), (3, 700)])
def test_relu_squared_backward(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    x, up = randn(*shape, dtype=dtype), randn(*shape, dtype=dtype, seed=1)
    x[0, 0] = 0.0
    out = poisoned(*shape, dtype=dtype)
    training.relu_squared_backward(x, up, out)
    assert_close(out, gradient(lambda wide: wide.relu().square(), x, up))
    assert out[0, 0] == 0


def exact_losses(raw: torch.Tensor, targets: torch.Tensor, cap: float, vocab: int) -> torch.Tensor:
    capped = cap * torch.tanh(raw[:, :vocab] / cap)
    return torch.nn.functional.cross_entropy(capped, targets, ignore_index=-1, reduction="none")


@bits
@pytest.mark.parametrize(
    ("rows", "vocab", "columns", "scale"),
    [(1, 16, 16, 1.0), (6, 1000, 1024, 4.0), (3, 9001, 9001, 60.0)],
    ids=["small", "padded", "several blocks, saturated"],
)
def test_losses(dtype: torch.dtype, rows: int, vocab: int, columns: int, scale: float) -> None:
    raw, up = randn(rows, columns, dtype=dtype, scale=scale), randn(rows, dtype=torch.float32, seed=1)
    targets = torch.randint(vocab, (rows,), generator=torch.Generator().manual_seed(2)).to(DEVICE)
    targets[rows // 2] = -1
    out, sums = poisoned(rows, dtype=torch.float32), poisoned(rows, dtype=torch.float32)
    training.losses(raw, targets, 15.0, vocab, out, sums)
    exact = exact_losses(raw.double(), targets, 15.0, vocab)
    assert (out.double() - exact).abs().max() < 2e-5
    down = poisoned(rows, columns, dtype=dtype)
    training.losses_backward(raw, targets, sums, up, 15.0, vocab, down)
    if rows > 1:
        wanted = gradient(lambda wide: exact_losses(wide, targets, 15.0, vocab), raw, up)
        assert (down.double() - wanted).norm() <= 2 * REL_L2[dtype] * wanted.norm() + 1e-6
    assert not down[:, vocab:].any() and not down[rows // 2].any()


def test_losses_of_targets_that_do_not_exist_are_no_numbers() -> None:
    raw = randn(3, 32, dtype=torch.float32)
    out, sums = poisoned(3, dtype=torch.float32), poisoned(3, dtype=torch.float32)
    training.losses(raw, torch.tensor([31, 32, -2], device=DEVICE), 15.0, 32, out, sums)
    assert math.isfinite(out[0].item()) and out[1:].isnan().all()


class _Kept:
    """What an operator keeps on the way there, without autograd, which would not call it for a CPU."""

    saved_tensors: tuple[torch.Tensor, ...] = ()
    eps = scale = cap = 0.0
    vocab = 0

    def save_for_backward(self, *tensors: torch.Tensor) -> None:
        self.saved_tensors = tensors


def test_operators_pass_on_what_their_kernels_compute() -> None:
    """Of inputs that are not contiguous, too."""
    x = randn(6, 4, 32, dtype=torch.float32)[:, 1:3]
    up = randn(6, 2, 64, dtype=torch.float32, seed=1)[..., ::2]
    own, other = (part[:6].unsqueeze(1) for part in rope.rope_table(8, 32, 1e4, torch.float32, DEVICE))
    swap = [*range(16, 32), *range(16)]
    cases: list[tuple[type[torch.autograd.Function], tuple[object, ...], Callable[..., torch.Tensor]]] = [
        (autograd.RmsNorm, (EPS,), plain_norm),
        (
            autograd.RotateAndNorm,
            (own, other, EPS, 1.2),
            lambda w: plain_norm(w * own.double() + w[..., swap] * other.double()) * 1.2,
        ),
    ]
    for operator, more, plain in cases:
        kept = _Kept()
        assert_close(operator.forward(kept, x, *more), plain(x.double()))
        assert_close(operator.backward(kept, up)[0], gradient(plain, x, up))
    kept = _Kept()
    flat, flat_up = x[:, 0], up[:, 0]
    assert_close(autograd.ReluSquared.forward(kept, flat), flat.double().relu().square())
    down = autograd.ReluSquared.backward(kept, flat_up)
    assert_close(down, gradient(lambda wide: wide.relu().square(), flat, flat_up))


def test_forward_kernels_are_those_of_serving() -> None:
    x = randn(4, 64, dtype=torch.bfloat16)
    for kept, function, expected in (
        (
            _Kept(),
            lambda kept: autograd.RmsNorm.forward(kept, x, EPS),
            lambda out: norm.rms_norm(x, None, EPS, out),
        ),
        (
            _Kept(),
            lambda kept: autograd.ReluSquared.forward(kept, x),
            lambda out: activation.relu_squared(x, out),
        ),
    ):
        out = poisoned(4, 64, dtype=torch.bfloat16)
        expected(out)
        assert torch.equal(function(kept), out)


@pytest.mark.parametrize("generation", tiered(GENERATIONS, {0, 4}))
def test_a_model_trains_through_them_as_through_plain_torch(
    generation: Generation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU they would not be asked; here they are made to serve a whole model."""
    model = make_model(generation, 5, use_fp32_logits=False, padded_vocab_size=576).to(DEVICE)
    model.requires_grad_(True).train()
    tokens = torch.randint(512, (2, 13), generator=torch.Generator().manual_seed(3)).to(DEVICE)
    targets = tokens[:, 1:].clone()
    targets[0, 4] = -1

    def trained() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        model.zero_grad(set_to_none=True)
        loss = model(tokens[:, :-1], targets)
        loss.backward()
        return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    with autograd.plain_operators():
        plain_loss, plain = trained()
    calls: list[str] = []
    applied = autograd.applied

    def noted(operator: type[torch.autograd.Function], *inputs: torch.Tensor | float) -> torch.Tensor:
        calls.append(operator.__name__)
        return applied(operator, *inputs)

    for module in (kernel_norm, rope, kernel_activation, autograd):
        monkeypatch.setattr(module, "applied", noted)
    monkeypatch.setattr(autograd, "_can_fuse", lambda x: True)
    loss, gradients = trained()
    layers = model.config.n_layer
    assert calls.count("RotateAndNorm") == 2 * layers and calls.count("ReluSquared") == layers
    assert calls.count("RmsNorm") >= 2 * layers + 2 and calls.count("CrossEntropies") == 1
    torch.testing.assert_close(loss, plain_loss, rtol=1e-6, atol=1e-6)
    assert set(gradients) == set(plain)
    for name, gradient in gradients.items():
        assert (gradient - plain[name]).norm() <= 1e-4 * plain[name].norm(), name


def test_every_operator_compiles_for_an_h200(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.triton.compile_training"],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["6 6", "6 6"]  # in bfloat16, then in float32
