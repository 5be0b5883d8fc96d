"""The server's configuration: every setting, its default, its flag and its meaning.

The fields below are the flag table (see app/options.py): the command line, the environment twins, the TOML
file, `--help` and `--print-config` are generated from them.
"""
# ruff: noqa: RUF009  (each default is made by a function that returns a dataclass field)

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal
from urllib.parse import urlsplit

from app import settings
from app.access import allowed_hosts, key, origin, read_keys, root_path
from app.catalogue import MAX_INTERVAL
from app.fastpath import FastPath
from app.options import choice, many, option, real, switch, text, whole
from app.settings import CallFormatName, HttpSettings, SamplingDefaults
from engine.flags import (
    OVERRIDES,
    OverrideKind,
    Setting,
)
from engine.messages import AttentionName, BatchingMode, EngineConfig, LinearName
from engine.messages.config import LoadFormat, WeightName

Dtype = Literal["auto", "float32", "bfloat16"]
Source = Literal["base", "mid", "sft", "rl"]
Transport = Literal["process", "inline"]
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["text", "json"]

_source: Callable[[str], Source] = choice("base", "mid", "sft", "rl")
_mode: Callable[[str], BatchingMode] = choice("continuous", "static", "single")


def _device(value: str) -> str:
    """nanochat's empty device means "find out"."""
    if value == "mps":
        raise ValueError("mps has no float64, which sampling needs; use cpu")
    if value and not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
        raise ValueError(f"{value!r} is none of auto, cpu, cuda, cuda:N")
    return value or "auto"


def _windows(value: str) -> str:
    if not re.fullmatch("[SLsl]+", value):
        raise ValueError(f"{value!r} may hold the letters S and L only")
    return value


def _stretch(value: str) -> float:
    number = real(0, 1e6)(value)
    if 0 < number < 1:
        raise ValueError(f"{value} is less than 1: the running streams alone take as long as that")
    return number


def _collector(value: str) -> str:
    try:
        url = urlsplit(value)
        sound = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        sound = False
    if not sound:
        raise ValueError(f"{value!r} is no URL of the form http://HOST:PORT")
    return value


_constant: dict[OverrideKind, Callable[[str], int | float | str]] = {
    "whole": whole(0),
    "real": real(-1e12, 1e12),
    "dtype": choice("bfloat16", "float32"),
    "windows": _windows,
}


def _assignment(value: str) -> str:
    name, separator, constant = value.partition("=")
    if not separator:
        raise ValueError(f"{value!r} is not of the form NAME=VALUE")
    if name not in OVERRIDES:
        raise ValueError(f"there is no model constant {name!r}; there are {', '.join(OVERRIDES)}")
    _constant[OVERRIDES[name]](constant)
    return value


def _overrides(assignments: tuple[str, ...]) -> dict[str, float | str]:
    pairs = (item.split("=", 1) for item in assignments)
    return {name: _constant[OVERRIDES[name]](constant) for name, constant in pairs}


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
        "auto", _device, "auto, cpu, cuda or cuda:N; auto is cuda where there is one", "--device-type"
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
    threads: int | None = option(None, whole(1, 1024), "CPU threads of the model", shown="one per free core")
    model_override: tuple[str, ...] = many(
        _assignment, "model constants that a checkpoint cannot tell", metavar="NAME=VALUE"
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
        _stretch,
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
        choice("auto", "triton", "fa2", "fa3", "fa4", "sdpa", "torch"),
        "attention kernels: auto, triton, fa2, fa3, fa4, sdpa or torch; see python -m app kernels",
        metavar="NAME",
    )
    linear_backend: LinearName = option(
        "auto",
        choice("auto", "cublas", "skinny", "triton"),
        "products of small batches: auto measures at start; cublas, skinny and triton force one",
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
        _collector,
        "send a span of each request to this OpenTelemetry collector, over HTTP",
        metavar="URL",
        shown="none",
    )
    trace: str | None = option(
        None, text, "write a trace of every step there, for ui.perfetto.dev", metavar="FILE", shown="none"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything that a server is started with."""

    model: Model = field(default_factory=Model)
    batching: Batching = field(default_factory=Batching)
    gpu: Gpu = field(default_factory=Gpu)
    fastpath: FastPath = field(default_factory=FastPath)
    requests: Requests = field(default_factory=Requests)
    access: Access = field(default_factory=Access)
    server: Server = field(default_factory=Server)

    def mode(self) -> tuple[BatchingMode, int | None]:
        """The batching mode and the most rows that it allows (None: no limit but the batch size).

        The seed's two flags: dynamic batching is continuous batching, batch decoding alone takes requests
        one by one through the batched path, neither is the single-request path.
        """
        batching = self.batching
        decode, dynamic = batching.enable_batch_decode, batching.enable_dynamic_batching
        if batching.batching is not None:
            return batching.batching, 1 if batching.batching == "single" else None
        if dynamic:
            return "continuous", None
        if decode is False:
            return "single", 1
        if dynamic is False:
            return "continuous", 1
        return "continuous", None

    def engine_config(self) -> EngineConfig:
        """What the engine is told."""
        model, batching = self.model, self.batching
        mode, limit = self.mode()
        rows = batching.batch_size
        return EngineConfig(
            model=model.model,
            source=model.source,
            tag=model.model_tag,
            step=model.step,
            load_format=model.load_format,
            served_name=model.served_model_name[0] if model.served_model_name else None,
            device=model.device,
            dtype=model.dtype,
            weight_dtype=model.weight_dtype,
            threads=model.threads,
            max_rows=limit if limit is not None else rows,
            block_size=batching.block_size,
            num_blocks=batching.num_blocks,
            max_num_blocks=batching.max_num_blocks,
            kv_page_size=batching.kv_page_size,
            max_batched_tokens=batching.max_num_batched_tokens,
            max_chunk=batching.prefill_chunk,
            prefill_stretch=batching.prefill_stretch,
            max_model_len=model.max_model_len,
            batching=mode,
            batch_timeout_ms=0.0 if limit == 1 else batching.batch_timeout_ms,
            enable_prefix_caching=batching.enable_prefix_caching,
            lookahead=batching.lookahead,
            attention_backend=self.gpu.attention_backend,
            linear_backend=self.gpu.linear_backend,
            kv_bytes=self.gpu.kv_bytes,
            trace=self.server.trace,
            overrides=_overrides(model.model_override),
            profile=self.fastpath.profile,
            flags=self._flags(),
        )

    def _flags(self) -> dict[str, Setting]:
        """The seed's flags that were given, those that have a setting of their own among them."""
        flags = self.fastpath.asked()
        if self.gpu.use_cuda_graphs is not None:
            flags["use_cuda_graphs"] = self.gpu.use_cuda_graphs
        return flags

    def http_settings(self) -> HttpSettings:
        """What the HTTP layer is told."""
        requests = self.requests

        def filled(own: SamplingDefaults) -> SamplingDefaults:
            return replace(
                own,
                temperature=own.temperature if requests.temperature is None else requests.temperature,
                top_k=own.top_k if requests.top_k is None else requests.top_k,
                max_tokens=own.max_tokens if requests.max_tokens is None else requests.max_tokens,
                seed=requests.seed,
            )

        own = HttpSettings()
        return HttpSettings(
            served_names=self.model.served_model_name,
            sampling=filled(own.sampling),
            chat=filled(own.chat),
            max_body_bytes=requests.max_body_bytes,
            max_queue=requests.max_queue,
            max_queued_tokens=requests.max_queued_tokens,
            max_concurrent_per_key=requests.max_concurrent_per_key,
            queue_timeout=requests.queue_timeout,
            request_timeout=requests.request_timeout,
            body_timeout=self.access.body_timeout,
            cache_salt_per_key=self.access.cache_salt_per_key,
            access=self._access(),
            ping_interval=requests.sse_ping_interval,
            stream_interval=requests.stream_interval,
            tool_call_parser=requests.tool_call_parser,
            send_timeout=requests.send_timeout,
            resume_grace=requests.resume_grace,
            resumable=self.server.api_workers == 1,
            ui=self.server.ui,
            docs=self.server.docs,
            strict_fields=requests.strict_fields,
            allow_priority=requests.allow_priority,
            access_log=self.server.log_format == "json"
            if self.server.access_log is None
            else self.server.access_log,
            log_content=self.server.log_content,
            otlp_endpoint=self.server.otlp_endpoint,
        )

    def with_keys_read(self) -> "Config":
        """The same with the keys of `api_key_file` among `api_key`, each once. Raises UsageError."""
        access = self.access
        keys = access.api_key
        if access.api_key_file is not None:
            keys += read_keys(access.api_key_file)
        return replace(self, access=replace(access, api_key=tuple(dict.fromkeys(keys)), api_key_file=None))

    def _access(self) -> settings.Access:
        access = self.access
        return settings.Access(
            keys=tuple(settings.Key.of(key) for key in self.with_keys_read().access.api_key),
            hosts=allowed_hosts(self.server.host, access.allowed_hosts) if access.uds is None else None,
            origins=frozenset(access.allowed_origins),
        )

    def connection_limits(self) -> settings.ConnectionLimits:
        """Those of one front-end process, which gets its share of the connections."""
        access, workers = self.access, self.server.api_workers
        own = settings.ConnectionLimits()
        return settings.ConnectionLimits(
            connections=-(-access.max_connections // workers),
            message=max(own.message, 8 * self.requests.max_body_bytes),
            head_timeout=access.header_timeout,
            body_timeout=access.body_timeout,
            keep_alive=access.keep_alive_timeout,
        )
