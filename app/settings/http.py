"""What the HTTP layer can be told; the command line fills it in."""

import hashlib
import secrets
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

MAX_INTERVAL = 1024  # tokens in one event of a stream

CallFormatName = Literal["auto", "hermes", "llama3", "mistral"]


def package_version() -> str:
    try:
        return version("fastpath")
    except PackageNotFoundError:
        return "0.0.0"


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """Used for a field that a request leaves out. `max_tokens` None means the room that is left, `seed` None
    one that is drawn for each request.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    max_tokens: int | None = None
    seed: int | None = None

    def draw_seed(self) -> int:
        return secrets.randbelow(2**31) if self.seed is None else self.seed


@dataclass(frozen=True, slots=True)
class Key:
    """An API key, as its sha256; the key itself is not kept. `id` is what logs and limits know it by."""

    digest: bytes

    @classmethod
    def of(cls, key: str) -> "Key":
        return cls(hashlib.sha256(key.encode()).digest())

    @property
    def id(self) -> str:
        return self.digest.hex()[:8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Who may ask.

    keys: without any, everybody may. hosts: names that a Host header may hold (None: any). origins: web
    origins, other than the server's own, whose pages may ask.
    """

    keys: tuple[Key, ...] = ()
    hosts: frozenset[str] | None = None
    origins: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """What a connection may cost before a request has arrived whole. Times are in seconds, sizes in bytes.

    head: request line and headers together; headers: how many; url: the request line's target. message: a
    request in all, framing included. head_timeout counts from the connection or from the request's first
    byte, body_timeout from the end of the headers; keep_alive: silence between two requests.
    """

    connections: int = 2048
    head: int = 64 * 1024
    headers: int = 100
    url: int = 8 * 1024
    message: int = 96 * 1024 * 1024
    head_timeout: float = 10.0
    body_timeout: float = 30.0
    keep_alive: float = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpSettings:
    """Limits and defaults of the HTTP layer. Times are in seconds, sizes in bytes.

    served_names: names a request may use for the model, the first one is reported; empty: the model's own
    name.
    sampling: defaults of the /v1 routes; chat: defaults of nanochat's /chat/completions.
    header_grace: how long a stream's headers wait for the first token, so that early failures get a real
    status.
    queue_grace: how long they wait for it while the request has no row. Then they go, and the stream says how
    many requests go before it (see `queue_notice`).
    ping_interval: silence after which a comment line keeps a stream alive (0: never).
    send_timeout: how long one write may wait for a reader that takes nothing before its request is aborted.
    resume_grace: how long a resumable stream goes on without a reader. resumable: whether there are any.
    stuck_seconds: how long a step may take before /ready says no.
    max_queue: choices that may wait beyond the engine's rows before new requests get 503.
    strict_fields: whether a field that nobody knows is an error. allow_priority: whether requests may say how
    urgent they are. docs: whether /openapi.json and /docs are served.
    stream_interval: tokens per event of a stream whose request does not say.
    tools: whether chat routes run the calculator. ui: whether the chat page is served.
    access_log: a log line for each request; log_content: with what the client wrote.
    otlp_endpoint: the collector that gets a span of each request.
    tool_call_parser: how the model writes function calls; auto: as its chat template shows.
    """

    served_names: tuple[str, ...] = ()
    version: str = field(default_factory=package_version)
    sampling: SamplingDefaults = SamplingDefaults()
    chat: SamplingDefaults = SamplingDefaults(temperature=0.8, top_k=50, max_tokens=512)
    max_body_bytes: int = 4 * 1024 * 1024
    body_timeout: float = 30.0
    header_grace: float = 1.0
    queue_grace: float = 0.25
    ping_interval: float = 15.0
    send_timeout: float = 30.0
    request_timeout: float = 600.0
    resume_grace: float = 30.0
    resumable: bool = True
    stuck_seconds: float = 10.0
    stats_interval: float = 0.5
    max_n: int = 8
    max_choices: int = 256
    max_queue: int = 128
    max_queued_tokens: int = 256 * 1024
    max_concurrent_per_key: int | None = None
    queue_timeout: float = 60.0
    cache_salt_per_key: bool = False
    tools: bool = True
    tool_call_parser: CallFormatName = "auto"
    ui: bool = True
    strict_fields: bool = False
    allow_priority: bool = False
    docs: bool = True
    stream_interval: int = 1
    access_log: bool = False
    log_content: bool = False
    otlp_endpoint: str | None = None
    access: Access = Access()

    @property
    def queue_notice(self) -> float:
        """Seconds after which a stream that waits says so: `queue_grace`. Where it would be refused within a
        second, it waits for that, so that the refusal keeps its real status and its Retry-After.
        """
        if 0 < self.queue_timeout <= 1.0:
            return max(self.queue_grace, self.queue_timeout + 0.1)
        return self.queue_grace
