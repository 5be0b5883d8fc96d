"""The sections of the configuration: every setting, its default, its flag and its meaning.

The fields are the flag table (see app/settings/options.py): the command line, the environment twins, the TOML
file, `--help` and `--print-config` are generated from them.
"""
# ruff: noqa: RUF009  (each default is made by a function that returns a dataclass field)

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from app.settings.access import key, origin, root_path
from app.settings.http import MAX_INTERVAL, CallFormatName
from app.settings.options import choice, many, option, real, switch, text, whole
from app.settings.values import assignment, collector, device, stretch
from engine.messages import AttentionName, BatchingMode, DecodePathName, LinearName
from engine.messages.config import KvName, LoadFormat, WeightName

Dtype = Literal["auto", "float32", "bfloat16"]
Source = Literal["base", "mid", "sft", "rl"]
Transport = Literal["process", "inline"]
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["text", "json"]

_source: Callable[[str], Source] = choice("base", "mid", "sft", "rl")
_mode: Callable[[str], BatchingMode] = choice("continuous", "static", "single")


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """Which model, under which name, on which device."""

    model: str | None = option(
        None,
        text,
        "a nanochat base directory, a checkpoint folder, a Hugging Face folder or a hub id",
        metavar="MODEL",
        shown="nanochat's own folder if it holds any, else the embedded model",
        positional=True,
    )
    source: Source | None = option(
        None,
        _source,
        "which training stage of a nanochat base directory: base, mid, sft or rl",
        "-i",
        shown="the first of sft, rl, mid, base that is there",
    )
    model_tag: str | None = option(
        None, text, "which model of a nanochat base directory", "-g", shown="the deepest one"
    )
    step: int | None = option(None, whole(0), "which step of a checkpoint folder", "-s", shown="the last one")
    load_format: LoadFormat = option(
        "auto",
        choice("auto", "dummy"),
        "auto, or dummy for random weights of the model's config.json alone, for benchmarks",
        metavar="FORMAT",
    )
    served_model_name: tuple[str, ...] = many(
        text, "names that /v1/models and the `model` field of requests know the model by"
    )
    max_model_len: int | None = option(
        None, whole(2), "most tokens of a sequence, prompt and output", shown="what the model was trained for"
    )
    device: str = option(
        "auto", device, "auto, cpu, cuda or cuda:N; auto is cuda where there is one", "--device-type"
    )
    dtype: Dtype = option(
        "auto",
        choice("auto", "float32", "bfloat16"),
        "precision of weights and KV: auto, float32 or bfloat16; auto is bfloat16 on a GPU, and on a CPU "
        "float32 or the int8 that a model's file keeps",
        "-d",
    )
    weight_dtype: WeightName = option(
        "auto",
        choice("auto", "bf16", "fp8", "int8"),
        "what projections are kept in: auto (as --dtype), bf16, fp8 or int8 (half the bytes, a scale for "
        "each output; activations and KV stay as they are, but docs/cpu.md for int8 on a CPU)",
    )
    kv_dtype: KvName = option(
        "auto",
        choice("auto", "bf16", "fp8"),
        "what keys and values are kept in: auto (the model's type), bf16 or fp8 (on a GPU, of a model in "
        "bfloat16: half the bytes, nearly twice the tokens in the pool, a scale for each token and head)",
    )
    threads: int | None = option(None, whole(1, 1024), "CPU threads of the model", shown="one per free core")
    model_override: tuple[str, ...] = many(
        assignment, "model constants that a checkpoint cannot tell", metavar="NAME=VALUE"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Batching:
    """How requests share the model."""

    batching: BatchingMode | None = option(
        None,
        _mode,
        "continuous (requests join and leave at every step), static (a gathered batch runs to its end) or "
        "single (one request at a time); stands above the next two",
        metavar="MODE",
        shown="continuous",
    )
    enable_batch_decode: bool | None = switch(
        None, "decode several requests together; without it: single", shown="on"
    )
    enable_dynamic_batching: bool | None = switch(
        None, "form batches from waiting requests; without it: one request at a time", shown="on"
    )
    batch_size: int | None = option(
        None,
        whole(1, 4096),
        "most sequences that run at once",
        "--max-num-seqs",
        shown="8 on a CPU, 256 on cuda",
    )
    batch_timeout_ms: float = option(
        0.0,
        real(0, 60_000),
        "longest that an idle engine waits for company before its first step",
        metavar="MS",
    )
    max_num_batched_tokens: int | None = option(
        None, whole(1, 1 << 20), "most tokens in one step", shown="2048 on a CPU, 8192 on cuda"
    )
    prefill_chunk: int | None = option(
        None, whole(1, 1 << 20), "most prompt tokens of one sequence in one step", metavar="TOKENS"
    )
    prefill_stretch: float | None = option(
        None,
        stretch,
        "how many times longer than its running streams alone a step may take because of new prompts; 0: any",
        metavar="TIMES",
        shown="1.75 on cuda, 0 on a CPU",
    )
    block_size: int | None = option(
        None, whole(1, 4096), "tokens per KV block", "--kv-block-size", metavar="TOKENS", shown="16"
    )
    num_blocks: int | None = option(None, whole(1), "KV blocks in the pool", shown="sized from memory")
    max_num_blocks: int | None = option(None, whole(1), "blocks that the pool may grow to", shown="no growth")
    kv_page_size: int | None = option(
        None, whole(1, 1 << 20), "round the KV pool up to a multiple of this many tokens", metavar="TOKENS"
    )
    enable_prefix_caching: bool = switch(
        True, "reuse the KV of prompts that begin alike", off=["--no-prefix-caching"]
    )
    lookahead: bool = switch(True, "launch a step before the tokens of the last one were looked at")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """How a GPU is used."""

    use_cuda_graphs: bool | None = switch(
        None,
        "replay each step as one captured CUDA graph",
        "--cuda-graphs",
        off=["--no-cuda-graphs"],
        shown="on with --profile fast",
    )
    attention_backend: AttentionName = option(
        "auto",
        choice("auto", "cuda", "triton", "triton-rotating", "fa2", "fa3", "fa4", "sdpa", "torch"),
        "attention kernels: auto, cuda (decodes by tensor cores and rotates inside where steps only decode), "
        "triton, triton-rotating (so by Triton), fa2, fa3, fa4, sdpa or torch; see python -m app kernels",
        metavar="NAME",
    )
    linear_backend: LinearName = option(
        "auto",
        choice("auto", "cublas", "skinny", "streamed", "triton"),
        "products of small batches: auto measures at start; cublas, skinny, streamed (on a Hopper) and "
        "triton force one, up to 64 rows",
        metavar="NAME",
    )
    decode_path: DecodePathName = option(
        "auto",
        choice("auto", "graph", "chained", "persistent"),
        "how steps of 1 to 16 decoding rows run: auto measures at start with --profile fast; graph, chained "
        "(kernels that start early, up to 16 rows) and persistent (one kernel, up to 4) force one",
        metavar="NAME",
    )
    kv_bytes: int | None = option(
        None, whole(1 << 20), "bytes of the KV pool", metavar="BYTES", shown="what the GPU has left"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Requests:
    """What applies to requests that do not say otherwise, and their limits.

    None leaves the route's own default: OpenAI's on /v1, nanochat's (0.8, 50, 512) on /chat/completions.
    """

    temperature: float | None = option(
        None, real(0, 2), "default temperature", "-t", shown="by route: 1 or 0.8"
    )
    top_k: int | None = option(None, whole(0), "default top-k, 0 is off", "-k", shown="by route: off or 50")
    max_tokens: int | None = option(
        None, whole(1), "default limit on output tokens", "-m", shown="by route: the room left or 512"
    )
    seed: int | None = option(
        None, whole(0, 2**63 - 1), "seed of requests that bring none", shown="a new one for each"
    )
    max_queue: int = option(
        128,
        whole(0),
        "choices that may wait for a row before new requests get 503",
        "--max-num-queued-reqs",
        metavar="CHOICES",
    )
    max_queued_tokens: int = option(
        256 * 1024,
        whole(0),
        "prompt tokens that may wait before new requests get 503",
        "--max-num-queued-tokens",
        metavar="TOKENS",
    )
    max_concurrent_per_key: int | None = option(
        None,
        whole(1),
        "open requests of one API key, beyond which its next one gets 429",
        metavar="REQUESTS",
        shown="any number",
    )
    queue_timeout: float = option(
        60.0,
        real(0, 86_400),
        "seconds that a request may wait for its first step; one that would wait longer is refused at once; "
        "0: any time",
        metavar="SECONDS",
    )
    request_timeout: float = option(
        600.0, real(0.001, 86_400), "seconds that a request may take in all", metavar="SECONDS"
    )
    max_body_bytes: int = option(4 << 20, whole(1), "largest request body")
    strict_fields: bool = switch(False, "refuse requests with a field that nobody knows")
    allow_priority: bool = switch(False, "let requests choose their place in the queue with 'priority'")
    tool_call_parser: CallFormatName = option(
        "auto",
        choice("auto", "hermes", "llama3", "mistral"),
        "how the model writes function calls: auto (as its chat template shows), hermes, llama3 or mistral",
        metavar="NAME",
    )
    stream_interval: int = option(
        1, whole(1, MAX_INTERVAL), "tokens per event of streams whose request does not say", metavar="TOKENS"
    )
    sse_ping_interval: float = option(
        15.0,
        real(0, 3600),
        "seconds of silence before a stream gets a comment line; 0 is never",
        metavar="SECONDS",
    )
    send_timeout: float = option(
        30.0,
        real(0.1, 3600),
        "seconds that a stream's reader may take nothing before its request is aborted",
        metavar="SECONDS",
    )
    resume_grace: float = option(
        30.0,
        real(0, 3600),
        "seconds that a stream with an X-Stream-Id goes on without a reader",
        metavar="SECONDS",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Who may ask, from where, and what a connection may cost."""

    api_key: tuple[str, ...] = many(
        key,
        "keys, one of which a request needs; better in APP_API_KEY or a file, for others see command lines",
        metavar="KEY",
        secret=True,
    )
    api_key_file: str | None = option(
        None, text, "file with such keys, one a line, # begins a comment", metavar="FILE", shown="none"
    )
    cache_salt_per_key: bool = switch(False, "keep cached prompts of one key from requests of another")
    allowed_hosts: tuple[str, ...] = many(
        text,
        "further names that the server answers for, * for any; without them a server on a loopback address "
        "knows its own names only, and any other server does not look",
        metavar="NAME",
    )
    allowed_origins: tuple[str, ...] = many(
        origin, "origins whose pages may ask besides the server's own", metavar="ORIGIN"
    )
    max_connections: int = option(2048, whole(1), "connections at one time, idle ones too", metavar="COUNT")
    header_timeout: float = option(
        10.0, real(0.001, 3600), "seconds for a request's headers to arrive", metavar="SECONDS"
    )
    body_timeout: float = option(
        30.0, real(0.001, 3600), "seconds for a request's body to arrive", metavar="SECONDS"
    )
    keep_alive_timeout: float = option(
        15.0, real(0.001, 3600), "seconds that a connection may be idle between requests", metavar="SECONDS"
    )
    root_path: str = option("", root_path, "path that a proxy in front takes away", metavar="PATH")
    ssl_certfile: str | None = option(
        None, text, "certificate, for HTTPS; needs --ssl-keyfile", metavar="FILE", shown="none"
    )
    ssl_keyfile: str | None = option(
        None, text, "private key of the certificate", metavar="FILE", shown="none"
    )
    uds: str | None = option(
        None, text, "Unix socket to listen at, in place of --host and --port", metavar="PATH", shown="none"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """Where the server listens, how it ends, what it writes."""

    host: str = option("127.0.0.1", text, "address to listen on")
    port: int = option(8000, whole(0, 65535), "port to listen on, 0 takes a free one", "-p")
    ui: bool = switch(True, "serve the chat page at /")
    docs: bool = switch(True, "serve /openapi.json, and a page that shows it at /docs")
    engine: Transport = option(
        "process",
        choice("process", "inline"),
        "run the engine in a child process, or inline in the server's own",
        metavar="WHERE",
    )
    api_workers: int = option(
        1,
        whole(1, 64),
        "processes that answer HTTP, on one port and with one engine",
        "--api-server-count",
    )
    drain_timeout: float = option(
        30.0,
        real(0, 86_400),
        "seconds that open streams get to end after SIGTERM or Ctrl-C",
        "--shutdown-timeout",
        metavar="SECONDS",
    )
    drain_delay: float = option(
        0.0,
        real(0, 3600),
        "seconds after SIGTERM in which /ready says no and requests are still taken, for balancers",
        metavar="SECONDS",
    )
    engine_hang_timeout: float = option(
        20.0,
        real(2, 86_400),
        "seconds of silence after which the engine is killed and started again",
        metavar="SECONDS",
    )
    step_timeout: float = option(
        300.0,
        real(1, 86_400),
        "seconds that one step of the engine may take before it is killed and started again",
        metavar="SECONDS",
    )
    log_level: LogLevel = option(
        "info", choice("debug", "info", "warning", "error"), "debug, info, warning or error"
    )
    log_format: LogFormat = option("text", choice("text", "json"), "text, or json with one object per line")
    access_log: bool | None = switch(None, "log a line for each request", shown="on with --log-format json")
    log_content: bool = switch(
        False, "with the line of a request, log its messages, prompts and stop strings"
    )
    metrics_port: int | None = option(
        None,
        whole(0, 65535),
        "serve /metrics there, too, without a key; 0 takes a free port",
        shown="with the rest only",
    )
    otlp_endpoint: str | None = option(
        None,
        collector,
        "send a span of each request to this OpenTelemetry collector, over HTTP",
        metavar="URL",
        shown="none",
    )
    trace: str | None = option(
        None, text, "write a trace of every step there, for ui.perfetto.dev", metavar="FILE", shown="none"
    )
