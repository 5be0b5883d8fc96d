"""How much decoding must read, and how fast the device reads: the ceiling of tokens per second."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from benchmarks.workloads import Work

GPU_FLOATS = 1 << 30  # 4 GB
CPU_FLOATS = 1 << 28  # 1 GB
ROUNDS = 10


def read_bandwidth(device: torch.device) -> float:
    """Bytes per second of a sum over far more memory than any cache holds: 4 GB on a GPU, 1 GB on a CPU."""
    cuda = device.type == "cuda"
    values = torch.ones(GPU_FLOATS if cuda else CPU_FLOATS, device=device)
    size = values.numel() * values.element_size()
    timed = _cuda_seconds if cuda else _cpu_seconds
    timed(values.sum)
    median = statistics.median(timed(values.sum) for _ in range(ROUNDS if cuda else 3))
    del values
    if cuda:
        torch.cuda.empty_cache()
    return size / median


def _cuda_seconds(run: Callable[[], torch.Tensor]) -> float:
    started, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    started.record()
    run()
    ended.record()
    ended.synchronize()
    return started.elapsed_time(ended) / 1e3


def _cpu_seconds(run: Callable[[], torch.Tensor]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


@dataclass(frozen=True, slots=True)
class Reads:
    """Bytes that decoding must read. weights: once per step. kv: of one position in each layer.
    windows: keys that each layer sees to the left of a token, None for all.
    """

    weights: int
    kv_per_layer: int
    windows: tuple[int | None, ...]

    @classmethod
    def of(cls, model: nn.Module) -> "Reads":
        """For any model whose `config` names its layers and heads. Embedding tables are looked up by row, so
        they do not count, unless the head shares one.
        """
        config = model.config
        tables = {m.weight.data_ptr() for m in model.modules() if isinstance(m, nn.Embedding)}
        others = {
            tensor.data_ptr()
            for module in model.modules()
            if not isinstance(module, nn.Embedding)
            for tensor in module.parameters(recurse=False)
        }
        tied = bool(getattr(config, "tie_word_embeddings", False) or getattr(config, "tied", False))
        weights = 0
        counted: set[int] = set()
        for parameter in model.parameters():
            place = parameter.data_ptr()
            looked_up = place in tables and place not in others and not tied
            if place not in counted and not looked_up:
                weights += parameter.numel() * parameter.element_size()
            counted.add(place)
        kv = 2 * config.n_kv_head * config.head_dim * next(model.parameters()).element_size()
        return cls(weights, kv, tuple(config.window(layer) for layer in range(config.n_layer)))

    def context(self, tokens: int) -> int:
        """Bytes of keys and values that a token behind `tokens - 1` others reads, its own included."""
        return self.kv_per_layer * sum(
            tokens if window is None else min(tokens, window + 1) for window in self.windows
        )

    def total(self, work: Work, steps: int) -> int:
        """Bytes of a whole workload: the weights of each step, each prompt's KV once, and for every further
        token the KV before it.
        """
        bytes_read = self.weights * steps
        for prompt, new in zip(work.prompts, work.new, strict=True):
            length = len(prompt)
            if all(window is None for window in self.windows):
                # length + (length + 1) + ... + (length + new - 1)
                positions = new * length + new * (new - 1) // 2
                bytes_read += self.kv_per_layer * len(self.windows) * positions
            else:
                bytes_read += sum(self.context(length + index) for index in range(new))
        return bytes_read
