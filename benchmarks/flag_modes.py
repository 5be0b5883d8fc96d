"""The rows of `benchmarks.flags`, and how one is measured."""

import argparse
import asyncio
import gc
import hashlib
import math
import random
import statistics
import time
from dataclasses import dataclass, field

from benchmarks.models import ByteTokenizer
from benchmarks.offline import run_once
from benchmarks.options import refuse_fallback
from benchmarks.workloads import SEED_PROMPTS, Work, seed8
from engine.async_engine import AsyncEngine
from engine.decoder import Decoder
from engine.messages import EngineConfig, Frame, Request, SamplingParams

OFF: dict[str, object] = {
    "attention_backend": "sdpa",
    "linear_backend": "cublas",
    "decode_path": "graph",  # the rows are about what other paths do without
    "use_flash_sdp": False,
    "use_flash3": False,
    "use_cuda_graphs": False,
    "enable_persistent_decode": False,
    "use_cta_clustering": False,
}


@dataclass(frozen=True, slots=True)
class Mode:
    """A row: what it adds to those above it. settings: flags and fields of EngineConfig. expects: a feature
    of the start-up table and what must be in it, or the row has not measured what it says. otherwise: what
    the rows below do when this one is not to be had. credited: what it gains over the row above it, or over
    that named by `over`, is its first flag's doing.
    """

    name: str
    settings: dict[str, object]
    expects: tuple[str, str] | None = None
    optional: bool = False
    otherwise: dict[str, object] = field(default_factory=dict)
    credited: bool = True
    over: str | None = None

    @property
    def flags(self) -> str:
        shown = {
            name: value for name, value in self.settings.items() if name not in OFF or value != OFF[name]
        }
        return ", ".join(f"{name}={value}" for name, value in shown.items()) or "none"


MODES = (
    Mode("baseline", OFF),
    Mode("flash_sdp", {"use_flash_sdp": True}, ("use_flash_sdp", "on"), True),
    Mode(
        "flash3",
        {"use_flash3": True, "attention_backend": "auto"},
        ("attention.prefill", "fa"),
        True,
        {"use_flash3": False, "attention_backend": "auto"},
        credited=False,  # our own decode attention comes in here, too
    ),
    Mode("flash3_block", {"kv_block_size": 32, "kv_page_size": 1024}, ("kv_block_size", "32")),
    Mode("persistent", {"enable_persistent_decode": True}, ("enable_persistent_decode", "on"), True),
    Mode("graphs", {"use_cuda_graphs": True}, ("use_cuda_graphs", "graphs"), True),
    Mode("linear", {"linear_backend": "auto"}),
    Mode(
        "clusters",
        {"use_cta_clustering": True, "cta_cluster_seq_threshold": 256},
        ("use_cta_clustering", "on"),
        True,
    ),
    # Each takes the place of the one above it.
    Mode("fp8_weights", {"weight_dtype": "fp8"}, ("weight dtype", "fp8")),
    Mode("int8_weights", {"weight_dtype": "int8"}, ("weight dtype", "int8")),
    Mode(
        "te_fp8",
        {"weight_dtype": "auto", "use_te_weight_only": True},
        ("linear backend", "TE "),
        True,
        over="clusters",
    ),
)
LONGEST = max(SEED_PROMPTS) + 64  # positions that the eight prompts need, answers included
BUFFERS = {"static, buffers anew": False, "static, buffers reused": True}
FIELDS = ("attention_backend", "linear_backend", "decode_path", "weight_dtype")


@dataclass(slots=True)
class SweepRow:
    """backend: what really served. Rates are means over the repetitions, as the seed's; percentages against
    the first row."""

    mode: str
    flags: str
    backend: str = ""
    prefill_tok_s: float = 0.0
    decode_tok_s: float = 0.0
    prefill_pct: float = 0.0
    decode_pct: float = 0.0
    prefill_s: list[float] = field(default_factory=list)
    decode_s: list[float] = field(default_factory=list)
    error: str | None = None


@dataclass(slots=True)
class PromptsRow:
    """The eight prompts in one mode: seconds of the runs, and new tokens over the mean of them. gain_pct:
    tokens a second beyond the first row's; p50_ratio, p90_ratio: how many times as long the first row takes.
    answers: a digest of each prompt's tokens.
    """

    mode: str
    tokens: int
    p50_s: float
    p90_s: float
    mean_s: float
    tok_s: float
    gain_pct: float = 0.0
    p50_ratio: float = 1.0
    p90_ratio: float = 1.0
    seconds: list[float] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)


def prompts_row(
    mode: str, tokens: int, seconds: list[float], answers: list[str], first: PromptsRow | None = None
) -> PromptsRow:
    """seconds, tokens: of each run, the new ones. first: what the row is set against; None: itself."""
    mean = statistics.mean(seconds)
    row = PromptsRow(mode, tokens, statistics.median(seconds), nearest_rank(seconds, 90), mean, tokens / mean)
    row.seconds, row.answers = seconds, answers
    if first is not None:
        row.gain_pct = 100 * (row.tok_s / first.tok_s - 1)
        row.p50_ratio, row.p90_ratio = first.p50_s / row.p50_s, first.p90_s / row.p90_s
    return row


def nearest_rank(values: list[float], percent: int) -> float:
    """The least value that at least `percent` % of them do not exceed."""
    return sorted(values)[math.ceil(percent * len(values) / 100) - 1]


def same(row: PromptsRow, other: PromptsRow) -> int:
    """How many prompts have the same answer in both."""
    return sum(one == two for one, two in zip(row.answers, other.answers, strict=True))


def config_of(settings: dict[str, object], **more: object) -> EngineConfig:
    """Raises Unfit where the reference may stand in for a kernel."""
    refuse_fallback(settings)
    fields = {name: settings[name] for name in FIELDS if name in settings}
    flags = {name: value for name, value in settings.items() if name not in FIELDS}
    return EngineConfig(profile="seed", flags=flags, enable_prefix_caching=False, **fields, **more)  # type: ignore[arg-type]


async def measure(
    model: Decoder, mode: Mode, settings: dict[str, object], args: argparse.Namespace
) -> SweepRow:
    """A fresh engine with these settings; its error, or what it lacks of the mode, is in the row."""
    row = SweepRow(mode.name, mode.flags)
    tokens = args.prompt_len + args.decode_len + 8
    config = config_of(
        settings,
        max_rows=args.batch_size,
        max_batched_tokens=max(2048, args.batch_size * args.prompt_len),
        max_model_len=min(tokens, model.config.rope_len),
        prefill_stretch=0.0,
    )
    try:
        engine = AsyncEngine(model, ByteTokenizer(model.config.vocab_size), config)
    except (ValueError, ImportError, NotImplementedError) as error:
        row.error = f"unavailable: {error}"
        return row
    await engine.start()
    try:
        used = {name: value for name, _, value, _ in engine.info.features}
        row.backend = backend_of(used)
        if mode.expects is not None and mode.expects[1] not in used.get(mode.expects[0], ""):
            row.error = f"unavailable: {mode.expects[0]} is {used.get(mode.expects[0], 'not there')}"
            return row
        await timed(engine, args, random.Random(0))  # what is compiled or captured on first use
        rng = random.Random(1)
        for _ in range(args.iters):
            prefill, decode = await timed(engine, args, rng)
            row.prefill_s.append(prefill)
            row.decode_s.append(decode)
    finally:
        await engine.close()
    batch = args.batch_size
    row.prefill_tok_s = statistics.mean(batch * args.prompt_len / seconds for seconds in row.prefill_s)
    row.decode_tok_s = statistics.mean(batch * args.decode_len / seconds for seconds in row.decode_s)
    return row


def backend_of(used: dict[str, str]) -> str:
    attention = used.get("attention") or f"{used['attention.decode']} / {used['attention.prefill']}"
    return f"{attention}, graphs {used['use_cuda_graphs']}, buffers {used['enable_persistent_decode']}"


async def timed(engine: AsyncEngine, args: argparse.Namespace, rng: random.Random) -> tuple[float, float]:
    """Seconds until every row has its first token, and from then to its last one, decode_len later."""
    vocabulary, owed = engine.info.vocab_size - 16, args.batch_size
    times: list[float] = []
    seen: set[int] = set()
    done = asyncio.Event()
    finished = 0

    def watch(frame: Frame) -> None:
        nonlocal finished
        seen.update(frame.streams)
        if len(seen) == owed and not times:
            times.append(time.perf_counter())
        for finish in frame.finished:
            if finish.reason != "length":
                raise RuntimeError(f"{finish.reason}: {finish.message}")
            finished += 1
        if finished == owed:
            times.append(time.perf_counter())
            done.set()

    engine.on_frame = watch
    params = SamplingParams(max_tokens=args.decode_len + 1, temperature=0.0, ignore_eos=True)
    prompts = [[rng.randrange(3, vocabulary) for _ in range(args.prompt_len)] for _ in range(owed)]
    started = time.perf_counter()
    for prompt in prompts:
        engine.enqueue(Request(id=engine.next_id(1), prompt=prompt, params=params))
    ended = asyncio.ensure_future(engine.wait_closed())
    waiting = asyncio.ensure_future(done.wait())
    await asyncio.wait({ended, waiting}, return_when=asyncio.FIRST_COMPLETED)
    if ended.done():
        waiting.cancel()
        await ended
    ended.cancel()
    return times[0] - started, times[1] - times[0]


async def prompts(model: Decoder, args: argparse.Namespace) -> list[PromptsRow]:
    """The seed's eight prompts: one at a time, as one batch, and continuously."""
    (work,) = seed8(model.config.vocab_size - 16)
    kinds: dict[str, dict[str, object]] = {
        "single": {"batching": "single", "max_rows": 1},
        "static": {"batching": "static", "max_rows": 8},
        "continuous": {"batching": "continuous", "max_rows": 8},
    }
    flags: dict[str, dict[str, object]] = {}
    if args.reuse_ids_buffer:
        for label, on in BUFFERS.items():
            if not on or args.device.startswith("cuda"):
                flags[label] = {"enable_persistent_decode": on, "use_cuda_graphs": False}
                kinds[label] = kinds["static"]
    rows: list[PromptsRow] = []
    for mode, more in kinds.items():
        seconds, answers = await _prompts(model, work, args.runs, flags.get(mode, {}), more)
        rows.append(prompts_row(mode, work.tokens, seconds, answers, rows[0] if rows else None))
    return rows


async def _prompts(
    model: Decoder, work: Work, runs: int, flags: dict[str, object], more: dict[str, object]
) -> tuple[list[float], list[str]]:
    """Seconds of each run, and a digest of each prompt's tokens in the last one."""
    gc.collect()  # the engine before this one: the next takes what memory is left
    config = EngineConfig(flags=flags, enable_prefix_caching=False, batch_timeout_ms=0.0, **more)  # type: ignore[arg-type]
    engine = AsyncEngine(model, ByteTokenizer(model.config.vocab_size), config)
    await engine.start()
    try:
        await run_once(engine, work)
        done = [await run_once(engine, work) for _ in range(runs)]
    finally:
        await engine.close()
    return [run.wall for run in done], [digest(answer) for answer in done[-1].answers]


def digest(tokens: list[int]) -> str:
    return hashlib.sha256(str(tokens).encode()).hexdigest()[:8]
