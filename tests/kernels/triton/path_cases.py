"""Small networks on the CPU with decode paths, for which plain torch stands."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.decoder import Decoder
from engine.gpu.cache import PagedKV
from engine.gpu.linears import build_linears
from engine.gpu.network import Network
from engine.gpu.path_choice import Choices, Wanted, choose_paths
from engine.gpu.rows import DeviceRows
from engine.gpu.weights import Keeper, network_weights
from engine.llama import Llama
from engine.llama_config import llama_config
from engine.messages.config import DecodePathName
from kernels.backends.base import AttentionSpec
from kernels.kv8 import FORMAT
from kernels.quantize import Kind8
from kernels.step_spec import StepPath
from tests.engine.checkpoints import make_model
from tests.kernels.plain_step import PlainStep, library
from tests.kernels.quick_network import ExactBackend

CPU, BF16, BLOCK, ROWS, TOKENS, LENGTH = torch.device("cpu"), torch.bfloat16, 16, 5, 48, 64
BUCKETS = (1, 2, 4, 5)
LLAMA = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": LENGTH,
    "rms_norm_eps": 1e-5,
}


def gpt(generation: str = "G1", **sizes: object) -> Decoder:
    small = {"sequence_len": LENGTH, "n_layer": 2, "n_embd": 64, "n_head": 2, "n_kv_head": 2} | sizes
    return make_model(generation, 1, **small).to(BF16)  # type: ignore[arg-type]


def llama(family: str = "llama", **sizes: object) -> Decoder:
    model = Llama(llama_config(family, LLAMA | sizes)).requires_grad_(False)  # type: ignore[arg-type]
    model.randomize(2)
    return model.to(BF16).eval()


def network_of(
    model: Decoder, kind: Kind8 | None = None, kept: torch.dtype | None = None, most: int = ROWS
) -> Network:
    """On the CPU, with a cache of one block. kept: what keys and values are kept in, if not the model's."""
    weights = network_weights(model, keeper=Keeper.eight_bits(kind) if kind else None)
    rotary, dtype = weights.layers[0].rotary, weights.embedding.dtype
    spec = AttentionSpec(
        *(rotary.heads, rotary.kv_heads, rotary.head_dim, BLOCK, dtype, most, LENGTH, CPU), kept == FORMAT
    )
    rows = DeviceRows(most, 1 + LENGTH // BLOCK, weights.vocab_size, CPU)
    linears = build_linears(weights, "auto", TOKENS, False)
    network = Network(weights, linears, rows, ExactBackend(spec), TOKENS, most)
    network.cache = cache_of(model, 2, kept or dtype)
    return network


def cache_of(model: Decoder, blocks: int, dtype: torch.dtype = BF16) -> PagedKV:
    config = model.config
    return PagedKV(config.n_layer, blocks, BLOCK, config.n_kv_head, config.head_dim, dtype, CPU)


@dataclass
class Clock:
    """Seconds that steps of each path take; counts the measurements. gives_up: who fails while measured."""

    seconds: dict[StepPath, float]
    measured: int = 0
    gives_up: tuple[StepPath, torch.Tensor] | None = None

    def __call__(self, body: Callable[[], None]) -> float:
        body()
        self.measured += 1
        (path,) = body.args  # type: ignore[attr-defined]
        if self.gives_up is not None and path == self.gives_up[0]:
            self.gives_up[1].fill_(1)
        return self.seconds[path]


CLOCK: dict[StepPath, float] = {"graph": 3e-3, "chained": 2e-3, "persistent": 1e-3}


def choose(
    model: Decoder,
    network: Network,
    file: Path,
    asked: DecodePathName = "auto",
    timer: Clock | None = None,
    reason: str | None = None,
    blocked: str | None = None,
    buckets: tuple[int, ...] = BUCKETS,
    **options: object,
) -> tuple[Choices, PlainStep | None]:
    given, made = library(reason, **options)
    assert network.cache is not None
    kept = network.cache.layers[0][0].dtype
    wanted = Wanted(asked, blocked, buckets, LENGTH, "auto")
    choices = choose_paths(
        network,
        wanted,
        lambda blocks: cache_of(model, blocks, kept),
        given,
        timer=timer or Clock(CLOCK),
        capability=(9, 0),
        file=file / "times.json",
    )
    return choices, made[-1] if made else None


KINDS: dict[str, Callable[[], tuple[Decoder, Kind8 | None]]] = {
    "G1": lambda: (gpt(), None),
    "G1 int8": lambda: (gpt(), "int8"),
    "G1 grouped": lambda: (gpt(n_head=4, n_kv_head=2), None),
    "llama": lambda: (llama(), None),
    "llama fp8": lambda: (llama(), "fp8"),
    "qwen2": lambda: (llama("qwen2"), None),
    "qwen3": lambda: (llama("qwen3", head_dim=32), None),
}
