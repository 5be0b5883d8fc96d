"""What an engine is started with; sent to the engine process as its first message."""

from typing import Literal

import msgspec

BatchingMode = Literal["continuous", "static", "single"]
AttentionName = Literal["auto", "cuda", "triton", "triton-rotating", "fa2", "fa3", "fa4", "sdpa", "torch"]
LinearName = Literal["auto", "cublas", "skinny", "streamed", "triton"]
DecodePathName = Literal["auto", "graph", "chained", "persistent"]
WeightName = Literal["auto", "bf16", "fp8", "int8"]
KvName = Literal["auto", "bf16", "fp8"]
LoadFormat = Literal["auto", "dummy"]


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True, tag="start"):
    """Where the model is and how the engine serves it.

    model: a nanochat base directory, a checkpoint folder, a transformers folder or a hub id; None finds one.
    source, tag, step: which checkpoint of a nanochat base directory (None: nanochat's own guesses).
    load_format: "auto" reads the model's weights, "dummy" makes random ones from its description alone.
    dtype: "auto" is bfloat16 on a GPU; on a CPU it is float32, unless the file keeps int8, and "float32" asks
    for the reference path there. weight_dtype: what projections and head are kept in; "auto" is the model's
    dtype, on a CPU the file's int8; "fp8" and "int8" have a scale for each output channel (kernels.quantize).
    kv_dtype: what keys and values are kept in; "auto" is the model's dtype; "fp8", on a GPU and of a model in
    bfloat16, has a scale for each token and head (kernels.kv8).
    threads: CPU threads of the engine process (None: as many as cores are free, see engine.cores).
    max_rows: most sequences that run at once (None: 8 on a CPU, 256 on a GPU).
    block_size: tokens per KV block (None: the model's kv_block_size, else 16). num_blocks: blocks that
    sequences can hold (None: sized from memory and max_rows). max_num_blocks: as many may the pool grow to
    while serving, from num_blocks at the start (None: it has its size for good).
    kv_page_size: the pool is rounded up to a multiple of this many tokens (None: the model's own, if any).
    max_batched_tokens: most tokens in one step (None: 2,048 on a CPU, 8,192 on a GPU). max_chunk: most prompt
    tokens of one sequence in one step.
    prefill_stretch: how many times longer than its decoding rows alone a step may take because of prompts
    beside them, as predicted (0: no such limit; None: 1.75 on a GPU, 0 on a CPU). max_model_len: most tokens
    of a sequence, prompt and output (None: what the model was trained for). batch_timeout_ms: longest that an
    idle engine waits for company before its first step. lookahead: launch step N+1 before looking at the
    tokens of step N. attention_backend, linear_backend: which kernels a GPU uses; auto chooses by what is
    installed and by measurement. decode_path: how steps that only decode run on a GPU; auto measures for each
    number of rows, with profile "fast". kv_bytes: memory of the KV pool on a GPU (None: what the device has
    left). trace: a file that gets a Perfetto trace of every step. overrides: model constants that a
    checkpoint cannot tell, by name (see engine.flags.OVERRIDES). profile: where the seed's flags start from,
    "fast" (each that the device can) or "seed" (the seed's defaults). flags: those that were asked for, by
    name (see engine.flags); what of them cannot be had is an error.
    """

    model: str | None = None
    source: str | None = None
    tag: str | None = None
    step: int | None = None
    load_format: LoadFormat = "auto"
    served_name: str | None = None
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    weight_dtype: WeightName = "auto"
    kv_dtype: KvName = "auto"
    threads: int | None = None
    max_rows: int | None = None
    block_size: int | None = None
    num_blocks: int | None = None
    max_num_blocks: int | None = None
    kv_page_size: int | None = None
    max_batched_tokens: int | None = None
    max_chunk: int | None = None
    prefill_stretch: float | None = None
    max_model_len: int | None = None
    batching: BatchingMode = "continuous"
    batch_timeout_ms: float = 0.0
    enable_prefix_caching: bool = True
    lookahead: bool = True
    attention_backend: AttentionName = "auto"
    linear_backend: LinearName = "auto"
    decode_path: DecodePathName = "auto"
    kv_bytes: int | None = None
    trace: str | None = None
    overrides: dict[str, float | str] = {}
    profile: Literal["fast", "seed"] = "fast"
    flags: dict[str, bool | int | str] = {}


def check_pool(num_blocks: int | None, max_num_blocks: int | None) -> None:
    """Raises ValueError, naming both settings, for a largest pool that is none."""
    if max_num_blocks is None:
        return
    if num_blocks is None:
        raise ValueError(
            f"max_num_blocks {max_num_blocks} needs num_blocks, the size to start with; "
            "a pool that is sized from memory takes all of it at once"
        )
    if max_num_blocks < num_blocks:
        raise ValueError(f"max_num_blocks {max_num_blocks} is less than num_blocks {num_blocks}")
