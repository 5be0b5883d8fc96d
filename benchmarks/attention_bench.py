"""Layers of keys and values to measure attention over, and how a measurement is taken."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.attention_cases import Heads, KvKind, Row, Shape
from benchmarks.bandwidth import read_bandwidth
from kernels.backends.base import AttentionSpec
from kernels.kv8 import FORMAT, LARGEST, SCALE_FORMAT, Scales

HEAD_DIM = 128
BLOCK_SIZE = 16
NUMBERS = 320 << 20  # of keys and values, 2 bytes each, behind one timing: several times what L2 holds
MOST_LAYERS = 48
REPLAYS = 20


@dataclass(frozen=True, slots=True)
class Layer:
    """Keys and values of a layer, and their scales."""

    keys: torch.Tensor
    values: torch.Tensor
    scales: Scales | None = None


@dataclass(slots=True)
class Pool:
    """Layers of keys and values that share one block table."""

    spec: AttentionSpec
    layers: list[Layer]
    tables: torch.Tensor
    rows: torch.Tensor
    contexts: torch.Tensor
    bytes: int


class Timer:
    """Median time of one replay of a CUDA graph of what a function queues."""

    def __init__(self) -> None:
        self.stream = torch.cuda.Stream()
        self.start, self.end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def __call__(self, body: Callable[[], object]) -> float:
        """Seconds; the first replay does not count."""
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.stream(self.stream):
            body()
            self.stream.synchronize()
            graph.capture_begin()
            try:
                body()
            finally:
                graph.capture_end()  # whatever happened, so that the next capture can begin
            times = []
            for _ in range(REPLAYS + 1):
                self.start.record()
                graph.replay()
                self.end.record()
                self.end.synchronize()
                times.append(self.start.elapsed_time(self.end) / 1e3)
        return statistics.median(times[1:])


class Bench:
    def __init__(self, seconds: float) -> None:
        self.deadline = time.monotonic() + seconds
        self.device = torch.device("cuda")
        self.bandwidth = read_bandwidth(self.device)
        # Random once, cut up anew for every shape.
        self.memory = torch.empty(NUMBERS, dtype=torch.bfloat16, device=self.device).normal_()
        self.eight: torch.Tensor | None = None
        self.time = Timer()
        self.rows: list[Row] = []
        self.left_out = 0

    def numbers(self, count: int, kv: KvKind) -> torch.Tensor:
        """At least so many random ones, in what they are kept in."""
        if count > self.memory.numel():
            self.memory = torch.empty(count, dtype=torch.bfloat16, device=self.device).normal_()
        if kv == "bf16":
            return self.memory
        if self.eight is None or self.eight.numel() < self.memory.numel():
            # One in 130,000 is larger than the format's largest: some versions of torch make no number of it.
            self.eight = self.memory.mul(100).clamp_(-LARGEST, LARGEST).to(FORMAT)
        return self.eight

    def pool(self, heads: Heads, shape: Shape, kv: KvKind = "bf16") -> Pool:
        rows, context = shape
        per_row = -(-context // BLOCK_SIZE)
        blocks = rows * per_row + 1
        size = blocks * BLOCK_SIZE * heads[1] * HEAD_DIM
        memory = self.numbers(2 * size, kv)
        layers = max(1, min(MOST_LAYERS, memory.numel() // (2 * size)))
        parts = memory[: layers * 2 * size].view(layers, 2, blocks, heads[1], BLOCK_SIZE, HEAD_DIM)
        scales = torch.rand(parts.shape[:-1], device=self.device).add_(0.5).div_(100).to(SCALE_FORMAT)
        tables = (torch.randperm(blocks - 1, device=self.device) + 1).to(torch.int32).view(rows, per_row)
        spec = AttentionSpec(
            *heads,
            HEAD_DIM,
            BLOCK_SIZE,
            torch.bfloat16,
            rows,
            per_row * BLOCK_SIZE,
            self.device,
            kv == "fp8",
        )

        def views(pair: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return pair[0].transpose(1, 2), pair[1].transpose(1, 2)

        layered = [
            Layer(*views(part), views(own) if kv == "fp8" else None)
            for part, own in zip(parts, scales, strict=True)
        ]
        number = HEAD_DIM * parts.element_size() + (scales.element_size() if kv == "fp8" else 0)
        return Pool(
            spec,
            layered,
            tables,
            torch.arange(rows, dtype=torch.int32, device=self.device),
            torch.full((rows,), context, dtype=torch.int32, device=self.device),
            2 * rows * context * heads[1] * number,
        )

    def queries(self, tokens: int, heads: Heads) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries as a view of a fused product, and where the result goes."""
        qkv = torch.randn(tokens, (heads[0] + 2 * heads[1]) * HEAD_DIM, device=self.device).bfloat16()
        query = qkv[:, : heads[0] * HEAD_DIM].view(tokens, heads[0], HEAD_DIM)
        return query, torch.full_like(qkv[:, : heads[0] * HEAD_DIM], float("nan"))

    def attempt(self, row: Row, run: Callable[[], float]) -> Row:
        """Fills a row with what `run` measures, in seconds a layer, or with its error."""
        try:
            row.us = run() * 1e6
        except Exception as error:  # one shape's failure must not cost the others
            row.error = f"{type(error).__name__}: {str(error)[:300]}"
            torch.cuda.synchronize()
        return row

    @property
    def late(self) -> bool:
        return time.monotonic() > self.deadline


def relative(ours: torch.Tensor, right: torch.Tensor) -> float:
    return ((ours.float() - right.float()).norm() / right.float().norm()).item()
