"""The small kernels of a step on a GPU: `python -m benchmarks.kernels [--out FILE]`.

Microseconds of one call among many in a CUDA graph, with and without early launch of the next one (PDL); the
bytes it must move, and what that makes per second. Buffers are used in turn where they are large, so that the
cache does not serve what a real step would not find there; small ones stay in it, as they do in a step.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks.report import machine, table

TOKENS = (1, 8, 64, 256, 2048)
WIDTHS = (2048, 8192)
HEADS = ((16, 16), (32, 8))
VOCAB = 65536
HEAD_DIM = 128
CALLS = 64  # per graph
REPLAYS = 12
ROTATED = 128 * 2**20  # bytes that a large case's buffers cover together

Call = Callable[[bool], None]  # takes pdl


@dataclass(slots=True)
class Row:
    """One measurement; error instead of figures where it failed."""

    kernel: str
    shape: str
    tokens: int
    pdl: bool
    us: float | None = None
    bytes: int = 0
    gb_s: float | None = None
    error: str | None = None


@dataclass(slots=True)
class Case:
    """make() prepares fresh buffers and returns one call on them. Without `early` the kernel knows no PDL."""

    kernel: str
    shape: str
    tokens: int
    bytes: int
    make: Callable[[], Call]
    early: bool = True


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, device="cuda").bfloat16()


def ints(values: list[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, device="cuda")


def measure(case: Case, pdl: bool) -> float:
    """Median microseconds of one call."""
    copies = max(1, min(8, ROTATED // case.bytes)) if case.bytes > 2**22 else 1
    calls = [case.make() for _ in range(copies)]
    for call in calls:
        call(pdl)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for index in range(CALLS):
            calls[index % copies](pdl)
    times: list[float] = []
    for replay in range(REPLAYS + 2):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        if replay >= 2:
            times.append(start.elapsed_time(end) * 1e3 / CALLS)
    return statistics.median(times)


def row_cases(tokens: int, width: int) -> Iterator[Case]:
    """Kernels over rows of the residual stream or of the MLP's inside."""
    from kernels.triton.activation import relu_squared, swiglu
    from kernels.triton.nanochat import value_gate
    from kernels.triton.norm import rms_norm
    from kernels.triton.step import gather_rows, scale_add

    size = 2 * tokens * width

    def norm() -> Call:
        x, out = randn(tokens, width), randn(tokens, width)
        return lambda pdl: rms_norm(x, None, 1e-6, out, pdl=pdl)

    def add_norm() -> Call:
        x, out, residual, weight = (
            randn(tokens, width),
            randn(tokens, width),
            randn(tokens, width),
            randn(width),
        )
        return lambda pdl: rms_norm(x, weight, 1e-6, out, residual=residual, pdl=pdl)

    def relu() -> Call:
        x, out = randn(tokens, width), randn(tokens, width)
        return lambda pdl: relu_squared(x, out, pdl)

    def glu() -> Call:
        x, out = randn(tokens, 2 * width), randn(tokens, width)
        return lambda pdl: swiglu(x, out, pdl=pdl)

    def gather() -> Call:
        x, out, index = randn(tokens, width), randn(tokens, width), ints(list(range(tokens)))
        return lambda pdl: gather_rows(x, index, out, eps=1e-6, pdl=pdl)

    def mix() -> Call:
        x, first, scalars = (
            randn(tokens, width),
            randn(tokens, width),
            torch.tensor([0.9, 0.1], device="cuda"),
        )
        return lambda pdl: scale_add(x, first, scalars[:1], scalars[1:], pdl=pdl)

    def gate() -> Call:
        x, first, scalars = (
            randn(tokens, width),
            randn(tokens, width),
            torch.tensor([0.9, 0.1], device="cuda"),
        )
        weight, out = randn(16, 12), randn(tokens, 16)
        sources = (first, scalars[:1], scalars[1:])
        return lambda pdl: value_gate(x, weight, out, scale=3.0, eps=1e-6, mix=sources, pdl=pdl)

    shape = f"width {width}"
    yield Case("rms_norm", shape, tokens, 2 * size, norm)
    yield Case("rms_norm + residual", shape, tokens, 4 * size, add_norm)
    yield Case("relu_squared", shape, tokens, 2 * size, relu)
    yield Case("swiglu", shape, tokens, 3 * size, glu)
    yield Case("gather_rows + norm", shape, tokens, 2 * size, gather)
    yield Case("scale_add", shape, tokens, 3 * size, mix)
    yield Case("value_gate + scale_add", shape, tokens, 3 * size, gate)


def embed_cases(tokens: int, width: int) -> Iterator[Case]:
    from kernels.triton.embed import embed_norm
    from kernels.triton.nanochat import embed_smear

    size = 2 * tokens * width
    ids = torch.randint(VOCAB // 8, (tokens,), dtype=torch.int32, device="cuda")
    places = torch.arange(1, tokens + 1, dtype=torch.int32, device="cuda")
    weights = randn(VOCAB // 8, width)
    gate, factor = randn(1, 24), torch.ones(1, device="cuda")

    def embed() -> Call:
        out = randn(tokens, width)
        return lambda pdl: embed_norm(ids, weights, out, eps=1e-6, pdl=pdl)

    def smear() -> Call:
        out = randn(tokens, width)
        return lambda pdl: embed_smear(ids, ids, places, weights, gate, factor, out, eps=1e-6, pdl=pdl)

    yield Case("embed_norm", f"width {width}", tokens, 2 * size, embed)
    yield Case("embed_smear", f"width {width}", tokens, 3 * size, smear)


def rotary_cases(tokens: int, heads: int, kv_heads: int) -> Iterator[Case]:
    from kernels.rope import rope_table
    from kernels.triton.rope import Order, RotarySpec, rotate_and_store

    width, blocks = (heads + 2 * kv_heads) * HEAD_DIM, tokens // 16 + 2
    own, other = rope_table(max(TOKENS), HEAD_DIM, 1e4, torch.float32, "cuda")
    places = torch.arange(tokens, dtype=torch.int32, device="cuda")
    slots = places + 16  # block 0 belongs to nobody
    weight = randn(HEAD_DIM)

    def make(order: Order) -> Call:
        spec = RotarySpec(heads, kv_heads, HEAD_DIM, order, 1e-6, 1.0)
        qkv = randn(tokens, width)
        pages = [randn(blocks, kv_heads, 16, HEAD_DIM).transpose(1, 2) for _ in range(2)]
        scales = {"q_weight": weight, "k_weight": weight} if order == "norm_rope" else {}
        return lambda pdl: rotate_and_store(qkv, places, slots, own, other, *pages, spec, **scales, pdl=pdl)

    for order in ("rope_norm", "norm_rope"):
        size = 2 * 2 * tokens * width + 2 * 4 * tokens * HEAD_DIM
        shape = f"{heads}/{kv_heads} heads {order}"
        yield Case("rotate_and_store", shape, tokens, size, lambda order=order: make(order))


def state_cases(tokens: int) -> Iterator[Case]:
    from kernels.triton.step import apply_updates, finish_step, prepare_step

    rows = max(TOKENS)
    tables = torch.ones(rows, 512, dtype=torch.int32, device="cuda")
    order = torch.arange(tokens, dtype=torch.int32, device="cuda")
    unknown = torch.full_like(order, -1)

    def prepare() -> Call:
        state = [ints([5] * rows) for _ in range(3)]
        outs = [torch.zeros_like(order) for _ in range(4)]
        return lambda pdl: prepare_step(order, unknown, unknown, unknown, *state, tables, 16, *outs, pdl=pdl)

    def finish() -> Call:
        state = [ints([5] * rows) for _ in range(3)]
        ring, valid, counter = ints([0] * 4 * rows).view(4, rows), torch.ones_like(order), ints([0])
        return lambda pdl: finish_step(
            order, order, order, order, order, *state, ring, valid, ring, counter, pdl=pdl
        )

    def update() -> Call:
        updates = torch.stack((order, order % 512, order), dim=1).contiguous()
        return lambda pdl: apply_updates(updates, None, tables, pdl=pdl)

    yield Case("prepare_step", "", tokens, 48 * tokens, prepare)
    yield Case("finish_step", "", tokens, 48 * tokens, finish)
    yield Case("apply_updates", "", tokens, 16 * tokens, update)


def sampler_cases(entries: int) -> Iterator[Case]:
    """The common parameters: greedy, temperature with nothing else, top-k and top-p."""
    for name, values in (
        ("greedy", {"temperature": 0.0}),
        ("temperature", {"temperature": 0.8}),
        ("top_k 50, top_p 0.9", {"temperature": 0.8, "top_k": 50, "top_p": 0.9}),
    ):

        def make(values: dict[str, float] = values) -> Call:
            from kernels.triton.sampling import SampleOutput, SamplingRows, sample

            device = torch.device("cuda")
            rows = SamplingRows.allocate(entries, VOCAB, device)
            out = SampleOutput.allocate(entries, VOCAB, device)
            for field, value in values.items():
                getattr(rows, field).fill_(value)
            logits = randn(entries, VOCAB)
            order = torch.arange(entries, dtype=torch.int32, device="cuda")
            return lambda pdl: sample(logits, order, order, rows, out, vocab=VOCAB, softcap=15.0, full=False)

        yield Case("sample", f"vocab {VOCAB}, {name}", entries, 2 * entries * VOCAB, make, early=False)


def cases() -> Iterator[Case]:
    """The cheap ones first; each family is made only when its turn has come."""
    from kernels.triton.activation import relu_squared

    def least() -> Call:
        x = randn(1, 8)
        return lambda pdl: relu_squared(x, x, pdl)

    yield Case("least possible", "8 numbers", 1, 32, least)
    for heads, kv_heads in HEADS:
        for tokens in TOKENS:
            yield from rotary_cases(tokens, heads, kv_heads)
    for width in WIDTHS:
        for tokens in TOKENS:
            yield from row_cases(tokens, width)
            yield from embed_cases(tokens, width)
    for tokens in TOKENS:
        yield from state_cases(tokens)
        if tokens <= 256:
            yield from sampler_cases(tokens)


def run(seconds: float) -> list[Row]:
    deadline = time.monotonic() + seconds
    rows: list[Row] = []
    for case in cases():
        for pdl in (False, True) if case.early else (False,):
            row = Row(case.kernel, case.shape, case.tokens, pdl, bytes=case.bytes)
            rows.append(row)
            if time.monotonic() > deadline:
                row.error = "out of time"
                continue
            try:
                row.us = measure(case, pdl)
                row.gb_s = case.bytes / row.us / 1e3
            except Exception as error:  # one case that fails must not cost the others
                row.error = f"{type(error).__name__}: {error}"[:300]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="where to write the result as JSON")
    parser.add_argument("--seconds", type=float, default=55.0, help="cases beyond this time are left out")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(2, "benchmarks.kernels needs a CUDA device\n")
    rows = run(args.seconds)
    header = ("kernel", "shape", "tokens", "pdl", "us", "MB", "GB/s")
    shown = [
        (r.kernel, r.shape, r.tokens, r.pdl, r.error or r.us, r.bytes / 1e6, r.gb_s or "-") for r in rows
    ]
    print(table(header, shown))
    if args.out:
        settings = {"calls": CALLS, "replays": REPLAYS, "dtype": "bfloat16"}
        result = {"machine": machine(), "settings": settings, "rows": [asdict(row) for row in rows]}
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
