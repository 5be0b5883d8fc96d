"""Messages between front end and engine, and their framing on a byte stream.

One message is a 4-byte little-endian length and a msgpack body. Towards the engine go an `EngineConfig`
once, then `Submit`, `Abort` and `Shutdown`; back come `Ready` or `Failed` once, then one `Frame` per step
(and one whenever the counters changed without a step, and at least every `HEARTBEAT_SECONDS`).
"""

from bisect import bisect_left
from collections.abc import Iterator
from typing import Literal

import msgspec

from engine.messages.config import EngineConfig

HEARTBEAT_SECONDS = 0.5
MAX_MESSAGE_BYTES = 256 * 1024 * 1024

# Upper bounds of the histograms that the engine counts itself.
STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
STEP_SECONDS = (
    *(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05),
    *(0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0),
)

FinishReason = Literal["stop", "length", "abort", "error"]
FaultCode = Literal[  # faults that a client is told by name
    "engine_unavailable", "out_of_memory", "grammar_failed"
]


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """How one request samples. Every field has a neutral default, so rows mix freely in one batch.

    temperature 0 is greedy (lowest id wins ties). top_k 0, top_p 1, min_p 0, penalties 0 or 1 mean "off".
    `logprobs` is None for none, else how many alternatives to report beside the sampled token (0..20); they
    are the log-softmax of the model's logits before penalties, bias, temperature, filters and grammar.
    `prompt_logprobs`, likewise, asks for those of the prompt's tokens, each given the ones before it.
    `grammar` is text of llguidance's (its Lark, or its JSON): the output is a text that it generates, ended
    by one of the model's terminals where it may end.
    """

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    seed: int = 0
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    grammar: str | None = None


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One request: a prompt of token ids and `n` continuations of it.

    Choice k streams under id `id + k`; the caller hands out ids so that these ranges never overlap while the
    engine lives. `tools` turns on the calculator between python_start and python_end. Sequences share cached
    prompt blocks only within one `cache_salt`. A smaller `priority` goes first.
    """

    id: int
    prompt: list[int]
    params: SamplingParams
    n: int = 1
    tools: bool = False
    cache_salt: bytes = b""
    priority: int = 0


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Logprobs of one emitted token: its own, and the `top` alternatives, best first."""

    index: int  # position in Frame.tokens
    logprob: float
    top_ids: list[int]
    top_logprobs: list[float]


class PromptLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Logprobs of consecutive prompt tokens of one request, `first` being the index of the first one.

    The prompt's first token has none, so they begin at index 1; a request's records follow each other without
    gap or overlap, under the stream id of its choice 0, before any of its tokens. Lists run over the tokens:
    each one's logprob, its rank among all ids (1 is the best), and its alternatives, best first.
    """

    stream: int
    first: int
    logprobs: list[float]
    ranks: list[int]
    top_ids: list[list[int]]
    top_logprobs: list[list[float]]

    def since(self, first: int) -> "PromptLogprobs":
        """Without the tokens before index `first`."""
        skipped = first - self.first
        if skipped <= 0:
            return self
        lists = self.logprobs, self.ranks, self.top_ids, self.top_logprobs
        return PromptLogprobs(self.stream, first, *(values[skipped:] for values in lists))  # type: ignore[arg-type]


class Started(msgspec.Struct, frozen=True, array_like=True):
    """A choice got a row for the first time, `queue_seconds` after the engine had taken its request."""

    stream: int
    queue_seconds: float
    cached_tokens: int  # prompt tokens that the prefix cache had


class Finish(msgspec.Struct, frozen=True, array_like=True):
    """End of one choice. `stop_token` is the terminal or stop id behind it, `message` explains an error.

    prefill_seconds: from its row to its first token; decode_seconds: from there to its last. Both are the
    engine's own times, None where it did not come so far. batch_rows: rows of the average step between its
    row and its end. `code` is set where more is known about an error: the engine went away, or had no memory
    for the request.
    """

    stream: int
    reason: FinishReason
    stop_token: int | None = None
    cached_tokens: int = 0
    message: str | None = None
    prefill_seconds: float | None = None
    decode_seconds: float | None = None
    preemptions: int = 0
    batch_rows: float | None = None
    code: FaultCode | None = None


class StepHistograms(msgspec.Struct, array_like=True):
    """Steps by size and duration: how many up to each bound of `STEP_TOKENS`, `STEP_SECONDS`, and beyond."""

    tokens: list[int] = msgspec.field(default_factory=lambda: [0] * (len(STEP_TOKENS) + 1))
    token_total: int = 0
    seconds: list[int] = msgspec.field(default_factory=lambda: [0] * (len(STEP_SECONDS) + 1))
    second_total: float = 0.0

    def observe(self, tokens: int, seconds: float) -> None:
        self.tokens[bisect_left(STEP_TOKENS, tokens)] += 1
        self.token_total += tokens
        self.seconds[bisect_left(STEP_SECONDS, seconds)] += 1
        self.second_total += seconds


class EngineStats(msgspec.Struct, frozen=True, array_like=True):
    """Counters of the engine at one moment. Totals count from the engine's start."""

    running: int = 0  # sequences that hold a row
    waiting: int = 0  # sequences that wait for one
    blocks_used: int = 0  # blocks in some block table
    blocks_cached: int = 0  # unreferenced blocks that the prefix cache may serve again
    blocks_total: int = 0
    steps: int = 0
    prompt_tokens: int = 0  # prompt tokens computed or taken from the cache
    cached_tokens: int = 0  # of those, taken from the prefix cache
    prefix_queries: int = 0  # prompt tokens looked up in the prefix cache
    generated_tokens: int = 0
    preemptions: int = 0
    batch_rows: int = 0  # rows in the last step
    batch_tokens: int = 0  # tokens in the last step
    step_seconds: float = 0.0  # duration of the last step
    late_tokens: int = 0  # sampled tokens dropped because their row had been released
    kv_growths: int = 0  # times that the KV pool became larger
    graph_recaptures: int = 0  # times that captured graphs were given up, because the pool had moved
    deferred: int = 0  # of those that wait, held back although there is room: an idle engine gathers a batch
    oldest_wait_seconds: float = 0.0  # how long the one that waits longest has been there
    nonfinite: int = 0  # sequences that ended because their logits were not finite
    resident_bytes: int = 0  # memory of the engine's process, where it has one of its own
    step_histograms: StepHistograms = msgspec.field(default_factory=StepHistograms)
    step_age_seconds: float = 0.0  # for how long work has waited for a step to end; 0 while there is none
    path_failures: int = 0  # times that the kernels of a decode path failed and were given up


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine loaded; the front end validates requests against it."""

    name: str
    path: str  # folder that holds the tokenizer and the chat template
    generation: str  # "G1".."G5"
    vocab_size: int
    max_model_len: int  # prompt and output tokens together
    terminal_ids: list[int]
    max_rows: int
    block_size: int
    num_blocks: int  # at the start; EngineStats.blocks_total is what there is now
    device: str
    dtype: str
    parameters: int
    weights_bytes: int = 0
    sampling_defaults: dict[str, float] = {}  # what the model card recommends
    features: list[tuple[str, str, str, str]] = []  # start-up table: feature, asked for, used, why
    created: int = 0
    memory: dict[str, int] = {}  # bytes on the device by purpose, where they were measured
    max_num_blocks: int = 0  # what the pool may grow to


class Submit(msgspec.Struct, frozen=True, tag="submit"):
    request: Request


class Abort(msgspec.Struct, frozen=True, tag="abort"):
    """Ends the given streams with reason "abort"; unknown or finished ones are ignored."""

    streams: list[int]


class Shutdown(msgspec.Struct, frozen=True, tag="shutdown"):
    pass


class Ready(msgspec.Struct, frozen=True, tag="ready", array_like=True):
    info: ModelInfo


class Failed(msgspec.Struct, frozen=True, tag="failed", array_like=True):
    """The engine could not start. `exit_code` follows the command line's table (2 usage, 3 model load)."""

    message: str
    exit_code: int = 3


class Frame(msgspec.Struct, frozen=True, tag="frame", array_like=True):
    """One step's outputs. Parallel lists `streams` and `tokens` hold each emitted token in order.

    A stream can occur more than once (the tool machine emits its forced tokens together); `forced` lists the
    positions of such tokens. Tokens of a stream always come before its `Finish`.
    """

    streams: list[int]
    tokens: list[int]
    forced: list[int]
    logprobs: list[TokenLogprobs]
    finished: list[Finish]
    stats: EngineStats
    prompts: list[PromptLogprobs] = []
    started: list[Started] = []


ToEngine = EngineConfig | Submit | Abort | Shutdown
FromEngine = Ready | Failed | Frame

_encoder = msgspec.msgpack.Encoder()
to_engine = msgspec.msgpack.Decoder(ToEngine)
from_engine = msgspec.msgpack.Decoder(FromEngine)


def encode(message: ToEngine | FromEngine) -> bytes:
    """The message as it goes on the wire, length first."""
    body = _encoder.encode(message)
    return len(body).to_bytes(4, "little") + body


def merge(first: Frame, second: Frame) -> Frame:
    """Both frames as one, with the later counters; extends the lists of `first`."""
    shift = len(first.tokens)
    first.streams.extend(second.streams)
    first.tokens.extend(second.tokens)
    first.forced.extend(index + shift for index in second.forced)
    first.logprobs.extend(
        TokenLogprobs(item.index + shift, item.logprob, item.top_ids, item.top_logprobs)
        for item in second.logprobs
    )
    first.finished.extend(second.finished)
    return Frame(
        *(first.streams, first.tokens, first.forced, first.logprobs, first.finished),
        second.stats,
        first.prompts + second.prompts,
        first.started + second.started,
    )


class Unframer:
    """Cuts a byte stream into message bodies, whatever the sizes of its reads."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yields each complete body. Raises ValueError when a length exceeds `MAX_MESSAGE_BYTES`."""
        buffer = self._buffer
        buffer += data
        start = 0
        while len(buffer) - start >= 4:
            size = int.from_bytes(buffer[start : start + 4], "little")
            if size > MAX_MESSAGE_BYTES:
                raise ValueError(f"message of {size} bytes on the engine socket")
            if len(buffer) - start - 4 < size:
                break
            yield bytes(buffer[start + 4 : start + 4 + size])
            start += 4 + size
        del buffer[:start]
