"""What other engines reach on the same work, and what this one set out to reach.

Source: measured on one H200 on 2026-11-22 (torch 2.11.0+cu130, driver 580.159, 16 CPU cores), vLLM 0.26.0
with FlashAttention-3, CUDA graphs, torch.compile, prefix cache off, max_num_seqs 256; random weights, greedy,
ignore_eos, token ids as prompts. The d32 rows are those of a Llama of the d32's size (hidden 2048,
intermediate 5504, 32 layers, 16 heads, head_dim 128, vocabulary 65,536, untied): the same bytes of weights
and KV.
"""

from dataclasses import dataclass

SOURCE = "vLLM 0.26.0, one H200, 2026-11-22"


@dataclass(frozen=True, slots=True)
class Figure:
    """vllm: its figure. target: what was set as a goal for this project."""

    vllm: float
    target: float | None = None

    def ratio(self, ours: float) -> float:
        return ours / self.vllm


# (model class, workload, streams) -> output tokens per second. "d32" is also its Llama twin's class.
OFFLINE: dict[tuple[str, str, int], Figure] = {
    ("d32", "seed8", 8): Figure(3_233, 5_000),
    ("d32", "one", 1): Figure(447, 650),
    ("d32", "streams", 8): Figure(3_114),
    ("d32", "streams", 32): Figure(10_096),
    ("d32", "streams", 64): Figure(16_400, 25_000),
    ("d32", "streams", 128): Figure(23_866),
    ("d32", "streams", 256): Figure(30_548, 42_000),
    ("d32", "c256", 256): Figure(20_744, 28_000),
    ("qwen", "qwen", 256): Figure(23_946, 29_000),
    ("qwen", "one", 1): Figure(422),
}


@dataclass(frozen=True, slots=True)
class Streamed:
    """A row of the HTTP load (see benchmarks/serve.py): tokens per second, then milliseconds."""

    tok_s: float
    ttft_p50_ms: float
    ttft_p99_ms: float
    tpot_ms: float
    itl_p50_ms: float
    itl_p99_ms: float


# Clients at a time -> vLLM's row.
HTTP: dict[int, Streamed] = {
    1: Streamed(433, 14.3, 17.0, 2.21, 2.19, 3.4),
    8: Streamed(2_808, 49.8, 57.0, 2.48, 2.48, 3.7),
    64: Streamed(12_235, 143, 163, 4.19, 4.02, 10.2),
    256: Streamed(16_176, 376, 620, 12.66, 10.0, 55.5),
}
HTTP_SPEEDUP = 1.4  # the goal in tokens per second, times vLLM's
HTTP_TTFT_SHARE = 0.5  # the goal in TTFT p50, of vLLM's
HTTP_ITL_P99_MS = {256: 20.0}

# Seconds until a server is ready: vLLM cold, and the goals.
STARTUP_COLD = Figure(43.3, 25.0)
STARTUP_WARM_TARGET = 10.0

# ITL p99 over p50 while a 2,000-token prompt prefills beside 32 streams.
LONG_PROMPT_RATIO_TARGET = 2.0

MODEL_CLASSES = {"d32": "d32", "llama-d32": "d32", "qwen3-0.6b": "qwen"}


def offline(model: str, workload: str, streams: int) -> Figure | None:
    """vLLM's figure for a row of benchmarks/decode.py, where there is one."""
    return OFFLINE.get((MODEL_CLASSES.get(model, ""), workload, streams))


def http_target(clients: int) -> Streamed | None:
    """What the issue asks of an HTTP row; figures it does not name are vLLM's."""
    peer = HTTP.get(clients)
    if peer is None:
        return None
    return Streamed(
        peer.tok_s * HTTP_SPEEDUP,
        peer.ttft_p50_ms * HTTP_TTFT_SHARE,
        peer.ttft_p99_ms,
        peer.tpot_ms,
        peer.itl_p50_ms,
        HTTP_ITL_P99_MS.get(clients, peer.itl_p99_ms),
    )
