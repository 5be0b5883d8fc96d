"""The rows of `benchmarks.training`, and how one is measured."""

import gc
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.models import dummy_config
from engine.config import GPTConfig
from engine.dense import DenseAttention
from engine.model import GPT
from kernels.autograd import plain_operators
from training.flops import flops_per_token, peak_flops
from training.optimizer import Optimizers

Attention = Literal["math", "flash", "cudnn"]
Forward = Callable[..., torch.Tensor]
WARM_UP = 2


@dataclass(frozen=True, slots=True)
class Case:
    """A row to be measured. batch: rows of `time` tokens in one forward pass. wide: float32 logits.
    accumulate: such passes in a step; 0: as --grad-accum says. plain: without the fused operators. steps:
    timed ones; 0: as --steps says. seed: the seed's tokens a second, of a B200.
    """

    batch: int
    time: int
    attention: Attention = "flash"
    wide: bool = False
    accumulate: int = 0
    compiled: bool = False
    plain: bool = False
    steps: int = 0
    seed: float | None = None

    @property
    def name(self) -> str:
        parts = [f"{self.batch}x{self.time}", self.attention, "fp32" if self.wide else "bf16"]
        parts += [f"accum{self.accumulate}"] if self.accumulate else []
        parts += [f"{self.steps}steps"] if self.steps == 5 else []
        parts += ["compiled"] if self.compiled else []
        parts += ["plain"] if self.plain else []
        return "-".join(parts)

    def fits(self, wanted: str) -> bool:
        """Whether `wanted` is its name, or the first parts of it."""
        return self.name == wanted or self.name.startswith(f"{wanted}-")


# The seed's figures, each of one B200 with its d32 and bf16 autocast, of two, three or five timed steps.
CASES = (
    Case(1, 256, "math", steps=3, seed=822),
    Case(1, 256, "math", wide=True, steps=3, seed=937),
    Case(1, 256, steps=3, seed=972),
    Case(1, 256, wide=True, steps=3, seed=889),
    Case(1, 512, wide=True, seed=2_000),
    Case(1, 512, seed=6_600),
    Case(1, 512, wide=True, steps=5, seed=3_400),
    Case(2, 512, wide=True, seed=8_300),
    Case(2, 512, seed=9_600),
    Case(4, 512, wide=True, seed=14_500),
    Case(4, 512, seed=18_300),
    Case(8, 512, wide=True, seed=22_200),
    Case(8, 512, seed=30_900),
    Case(12, 512, wide=True),
    Case(12, 512, seed=18_200),
    Case(16, 512, wide=True),
    Case(16, 512, seed=31_600),
    Case(1, 1024, seed=4_000),
    Case(2, 1024, seed=15_700),
    Case(4, 1024, seed=24_600),
    Case(32, 512, seed=22_300),
    Case(8, 1536, seed=32_200),
    # Ours: what the seed speaks of without a figure, and what the figure above is made of.
    Case(8, 512, accumulate=4),
    Case(8, 1536, "cudnn"),
    Case(8, 1536, plain=True),
    Case(8, 1536, wide=True),
    # Last, for compiling takes longer than all others together.
    Case(1, 256, compiled=True, steps=3, seed=437),
)


@dataclass(slots=True)
class Row:
    """attention: torch's function that served. Rates over the timed steps. mfu: share of the device's dense
    bf16 peak; None where that is not known. peak_gib: most GPU memory at a time. seed_tok_s: the seed's on a
    B200. first_step_s: with compilation, where the row is compiled. loss, gradient_norm: of the last step;
    rows of one shape see the same tokens.
    """

    row: str
    batch: int
    time: int
    logits: str
    accumulate: int
    steps: int
    attention: str = ""
    tok_s: float = 0.0
    step_ms: float = 0.0
    mfu: float | None = None
    peak_gib: float | None = None
    seed_tok_s: float | None = None
    first_step_s: float = 0.0
    loss: float | None = None
    gradient_norm: float | None = None
    error: str | None = None


@dataclass(slots=True)
class Bench:
    """A model to train, and how. size: its name; the seed's figures are of a d32."""

    size: str
    model: GPT
    dtype: torch.dtype
    optimizers: Optimizers | None = None

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def autocast(self) -> AbstractContextManager[object]:
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def build(size: str, device: str, dtype: torch.dtype) -> GPT:
    """Seeded random weights, made on the device: float32 masters, but embeddings in `dtype`, as nanochat's,
    which makes the residual stream so. No weight is zero at the start, for zeros make a GPU faster.
    """
    described = dummy_config(size)["model_config"]
    assert isinstance(described, dict)
    torch.manual_seed(0)
    with torch.device(device):
        model = GPT(GPTConfig.for_generation(**described))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() == 2:
                    parameter.normal_(std=1.0 if "wte" in name else parameter.size(-1) ** -0.5)
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding):
            module.to(dtype)
    model.rope(next(model.parameters()).device)
    return model


def train_step(
    forward: Forward,
    ids: torch.Tensor,
    targets: torch.Tensor,
    parts: int,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> torch.Tensor:
    """Loss of a batch, whose gradients are added to the model's, in `parts` passes of equally many rows.

    ids, targets: [batch, time]. Each target weighs the same, however those that are ignored (-1) are spread.
    """
    learned = (targets != -1).sum()
    total = torch.zeros((), device=ids.device)
    for some_ids, some_targets in zip(ids.chunk(parts), targets.chunk(parts), strict=True):
        with autocast():
            loss = forward(some_ids, some_targets, loss_reduction="sum") / learned
        loss.backward()
        total += loss.detach()
    return total


def measure(bench: Bench, case: Case, steps: int, accumulate: int) -> Row:
    """A row; what goes wrong is part of it. steps, accumulate: where the case leaves them open."""
    row = Row(
        case.name,
        case.batch,
        case.time,
        "float32" if case.wide else str(bench.dtype).removeprefix("torch."),
        case.accumulate or accumulate,
        case.steps or steps,
        seed_tok_s=case.seed if bench.size == "d32" else None,
    )
    try:
        _measure(bench, case, row)
    except Exception as error:
        row.error = _said(error)
    bench.model.zero_grad(set_to_none=True)
    gc.collect()
    if bench.device.type == "cuda":
        torch.cuda.empty_cache()
    return row


def _said(error: Exception) -> str:
    text = f"{type(error).__name__}: {error}"
    lacking = isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in text
    return "out of memory" if lacking else text.strip().splitlines()[0][:300]


def _measure(bench: Bench, case: Case, row: Row) -> None:
    model, device = bench.model, bench.device
    model.config.use_flash_sdp = case.attention != "math"
    model.config.use_fp32_logits = case.wide
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    generator = torch.Generator(device).manual_seed(1)
    size = (case.batch * row.accumulate, case.time + 1)
    tokens = torch.randint(model.config.vocab_size, size, generator=generator, device=device)
    ids, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    forward: Forward = torch.compile(model, dynamic=False) if case.compiled else model

    def step() -> torch.Tensor:
        loss = train_step(forward, ids, targets, row.accumulate, bench.autocast)
        if bench.optimizers is not None:
            bench.optimizers.step()
        return loss

    with ExitStack() as stack:
        if case.plain:
            stack.enter_context(plain_operators())
        if case.attention == "cudnn":
            kernels = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
            stack.enter_context(sdpa_kernel(kernels, set_priority=True))
        row.attention = attention_served(bench, case)
        began = bench.now()
        for number in range(WARM_UP):
            step()
            if number == 0:
                row.first_step_s = bench.now() - began
            model.zero_grad(set_to_none=True)
        began = bench.now()
        for number in range(row.steps):
            loss = step()
            if number < row.steps - 1:
                model.zero_grad(set_to_none=True)
        seconds = bench.now() - began
    row.step_ms = 1e3 * seconds / row.steps
    row.tok_s = ids.numel() * row.steps / seconds
    peak = peak_flops(device)
    row.mfu = row.tok_s * flops_per_token(model.config, case.time) / peak if peak else None
    if device.type == "cuda":
        row.peak_gib = torch.cuda.max_memory_allocated(device) / 2**30
    row.loss = loss.item()
    grads = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    if grads:  # an optimizer has cleared them
        row.gradient_norm = torch.stack([grad.float().norm() for grad in grads]).norm().item()
    if not all(math.isfinite(value) for value in (row.loss, row.gradient_norm or 0.0)):
        raise RuntimeError(f"loss {row.loss}, norm of the gradient {row.gradient_norm}")


def attention_served(bench: Bench, case: Case) -> str:
    """Which of torch's attention functions takes this shape: it is on autograd's record."""
    config = bench.model.config
    shape = (case.time, config.n_head, config.head_dim)
    q = torch.zeros(shape, dtype=bench.dtype, device=bench.device, requires_grad=True)
    k = torch.zeros(
        case.time, config.n_kv_head, config.head_dim, dtype=bench.dtype, device=bench.device
    ).requires_grad_(True)
    waiting = [DenseAttention(config, 1, case.time)(config.n_layer - 1, q, k, k).grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None:
            continue
        if "ScaledDotProduct" in node.name():
            return node.name().removeprefix("ScaledDotProduct").split("Attention")[0].lower()
        waiting += [following for following, _ in node.next_functions]
    return "math"
