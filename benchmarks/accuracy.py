"""What weights, keys and values of few bits cost in accuracy and bring in speed: `python -m
benchmarks.accuracy`.

Every system serves the same text through the engine's own steps (graphs on a GPU), one position of --rows
passages at a time, with the next token given. Against the first system, the model in its own dtype: the
cosine of its logits, how often the likeliest token is the same, and the loss, in nats per token and in bits
per byte of text. --streams adds the speed of decoding, everything submitted at once.

The model is the embedded one unless --model or --model-size names another. The text is README.md and
docs/architecture.md of this repository unless --text names files; a model is judged best by text of its kind.
"""

import argparse
import asyncio
import gc
import hashlib
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from benchmarks import options
from benchmarks.offline import load, run_once
from benchmarks.options import Unfit
from benchmarks.report import machine, save, table
from benchmarks.workloads import Work
from engine.async_engine import AsyncEngine
from engine.checkpoint import CheckpointError
from engine.decoder import Decoder
from engine.forced import forced_plans
from engine.loader import load_model
from engine.messages import EngineConfig
from engine.plan import Plan
from engine.runner import ModelRunner
from engine.text import TokenizerError
from engine.worker import new_event_loop

ROOT = Path(__file__).parents[1]
OWN_TEXT = (ROOT / "README.md", ROOT / "docs" / "architecture.md")
SPOKEN = 64  # tokens of a prompt where speed is measured
TE = "use_te_weight_only"
SYSTEMS: dict[str, dict[str, object]] = {
    "full": {},
    "int8": {"weight_dtype": "int8"},
    "bf16": {"weight_dtype": "bf16"},
    "fp8": {"weight_dtype": "fp8"},
    "kv8": {"kv_dtype": "fp8"},
    "kv8_fp8": {"kv_dtype": "fp8", "weight_dtype": "fp8"},
    "te": {"flags": {TE: True}},
    "te_mlp": {"flags": {TE: True, "te_include_mlp": True}},
    "te_current": {"flags": {TE: True, "te_weight_dtype": "fp8_current"}},
    "te_block": {"flags": {TE: True, "te_weight_dtype": "fp8_block"}},
    "te_bf16": {"flags": {TE: True, "te_weight_dtype": "bf16"}},
}


@dataclass(slots=True)
class Row:
    """One system. cosine_*: of its logits and the first system's, over all positions. same_top: share of
    positions at which both find the same token likeliest. nats: mean loss per token. nats_more: beyond the
    first system's. tok_s: by streams, tokens a second. served: its row of the start-up table.
    """

    system: str
    served: str = ""
    weights_gib: float = 0.0
    tokens: int = 0
    cosine_mean: float = 0.0
    cosine_min: float = 0.0
    same_top: float = 0.0
    nats: float = 0.0
    nats_more: float = 0.0
    bits_per_byte: float = 0.0
    tok_s: dict[str, float] = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Text:
    """windows: [batches][rows][length + 1] ids; all but the last of a window are given, all but the first
    are to be told. bytes_per_token: of the whole text."""

    windows: list[list[list[int]]]
    bytes_per_token: float


class Watched:
    """A model whose last logits are kept, for a runner that keeps none."""

    def __init__(self, model: Decoder) -> None:
        self.config, self.hidden, self._logits = model.config, model.hidden, model.logits
        self.last = torch.empty(0)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        self.last = self._logits(hidden)
        return self.last


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--systems", default="full,int8,fp8,te,te_mlp", help=f"of {', '.join(SYSTEMS)}")
    parser.add_argument("--model", help="a folder; without it the embedded model")
    parser.add_argument(
        "--model-size", dest="size", type=options.size, help="random weights of this size instead"
    )
    parser.add_argument("--text", action="append", type=options.text_file, metavar="FILE")
    parser.add_argument("--rows", type=int, default=16, help="passages at a time")
    parser.add_argument("--length", type=int, default=256, help="tokens of a passage")
    parser.add_argument("--tokens", type=int, default=16384, help="most of the text")
    parser.add_argument(
        "--streams", type=options.counts, default="1,8,64" if cuda else "", help="counts; empty: no speed"
    )
    parser.add_argument("--new", type=int, default=128, help="tokens of each stream")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--device", type=options.device, default="cuda" if cuda else "cpu")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16" if cuda else "float32")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the result there (and FILE.md)")
    parser.add_argument("--save", action="store_true", help="keep the result in benchmarks/results")
    args = parser.parse_args(argv)
    args.systems = args.systems.split(",")
    if unknown := sorted(set(args.systems) - set(SYSTEMS)):
        parser.error(f"--systems: there is no {', '.join(unknown)}; there are {', '.join(SYSTEMS)}")
    for name in ("rows", "length", "tokens", "new", "runs"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} {getattr(args, name)} is not positive")
    return args


def model_of(args: argparse.Namespace) -> tuple[Decoder, object, object]:
    """Anew for each system, which may take it apart. Raises Unfit for a folder without a checkpoint."""
    if args.size is not None:
        return load(args.size, args.device, args.dtype)  # type: ignore[return-value]
    try:
        return load_model(args.model, device=args.device, dtype=args.dtype)
    except (CheckpointError, TokenizerError) as error:
        raise Unfit(f"--model {args.model or 'was not given'}: {error}") from error


def config_of(system: str, args: argparse.Namespace, rope_len: int) -> EngineConfig:
    """Raises Unfit where the model has no positions for so many tokens, or the reference may stand in for a
    kernel. rope_len: positions of the model.
    """
    settings = SYSTEMS[system]
    flags = settings.get("flags", {})
    assert isinstance(flags, dict)
    options.refuse_fallback(flags)
    if args.length > rope_len:
        raise Unfit(f"--length {args.length}: the model has {rope_len} positions")
    if args.streams and SPOKEN + args.new > rope_len:
        raise Unfit(f"--new {args.new}, behind prompts of {SPOKEN}: the model has {rope_len} positions")
    rows = max([args.rows, *args.streams])
    longest = max(args.length, SPOKEN + args.new) + 1
    if system == "full":  # what the file is kept in decides otherwise, on a CPU
        settings = {"dtype": args.dtype}
    return EngineConfig(
        max_rows=rows,
        max_model_len=min(longest, rope_len),
        max_batched_tokens=max(2048, rows),
        num_blocks=rows * -(-longest // 16) + 1,
        block_size=16,
        enable_prefix_caching=False,
        **settings,  # type: ignore[arg-type]
    )


def text_of(args: argparse.Namespace, tokenizer: object, vocab_size: int) -> Text:
    """Raises Unfit for a text that does not fill one step's rows."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in args.text or OWN_TEXT)
    ids: list[int] = tokenizer.encode(text)  # type: ignore[attr-defined]
    per_token = len(text.encode()) / max(1, len(ids))
    bos: int = tokenizer.get_bos_token_id()  # type: ignore[attr-defined]
    ids = [id for id in ids[: args.tokens] if id < vocab_size]
    each, rows = args.length, args.rows
    windows = [[bos, *ids[first : first + each]] for first in range(0, len(ids) - each + 1, each)]
    batches = [windows[first : first + rows] for first in range(0, len(windows) - rows + 1, rows)]
    if not batches:
        raise Unfit(
            f"--rows {rows} and --length {each}: a text of {len(ids)} tokens does not fill {rows} passages "
            f"of {each}"
        )
    return Text(batches, per_token)


def logits_of(engine: AsyncEngine, vocab_size: int) -> Callable[[Plan], torch.Tensor]:
    """Runs a step as requests run, and gives its logits, [rows, vocabulary] float32."""
    runner = engine.backend.runner
    compiled = getattr(runner, "compiled", None)
    if compiled is not None:

        def at_once(plan: Plan) -> torch.Tensor:
            runner.launch(plan).future.result()
            logits: torch.Tensor = compiled.logits[: len(plan.chunks)]
            return logits

        return at_once
    if isinstance(runner, ModelRunner):
        watched = runner.model = Watched(runner.model)  # type: ignore[assignment]

        def plainly(plan: Plan) -> torch.Tensor:
            runner.launch(plan).future.result()
            return watched.last.float()  # type: ignore[attr-defined]

        return plainly
    network = runner.network  # type: ignore[attr-defined]
    cap = network.weights.softcap

    def run(plan: Plan) -> torch.Tensor:
        runner.launch(plan).future.result()
        logits = network.scratch.logits[: len(plan.chunks), :vocab_size].float()
        return logits if cap is None else cap * torch.tanh(logits / cap)

    return run


def positions(
    engine: AsyncEngine, text: Text, vocab_size: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Logits of one step after the other, and the tokens that came next, [rows]."""
    run = logits_of(engine, vocab_size)
    for windows in text.windows:
        targets = torch.tensor(windows)[:, 1:]
        plans = forced_plans([window[:-1] for window in windows], engine.info.block_size)
        for position, plan in enumerate(plans):
            yield run(plan), targets[:, position]


def judge(engine: AsyncEngine, text: Text, vocab_size: int, first: list[torch.Tensor], row: Row) -> None:
    """Fills in the row; the first system's logits are appended to `first` as it has none yet."""
    losses: list[torch.Tensor] = []
    cosines: list[torch.Tensor] = []
    same: list[torch.Tensor] = []
    own = not first
    for step, (logits, targets) in enumerate(positions(engine, text, vocab_size)):
        if own:
            first.append(logits.to(torch.float32, copy=True).cpu())
        base = first[step].to(logits.device)
        losses.append(torch.nn.functional.cross_entropy(logits, targets.to(logits.device), reduction="none"))
        cosines.append(torch.nn.functional.cosine_similarity(logits, base, dim=1))
        same.append((logits.argmax(1) == base.argmax(1)).float())
    row.tokens = sum(one.numel() for one in losses)
    row.nats = float(torch.cat(losses).double().mean())
    row.bits_per_byte = row.nats / math.log(2) / text.bytes_per_token
    row.cosine_mean, row.cosine_min = (
        float(torch.cat(cosines).double().mean()),
        float(torch.cat(cosines).min()),
    )
    row.same_top = float(torch.cat(same).mean())


async def speed(engine: AsyncEngine, args: argparse.Namespace, vocab_size: int, row: Row) -> None:
    await engine.start()
    for streams in args.streams:
        prompts = [[3 + (37 * i + j) % (vocab_size - 19) for j in range(SPOKEN)] for i in range(streams)]
        work = Work("accuracy", prompts, [args.new] * streams)
        await run_once(engine, work)
        walls = [(await run_once(engine, work)).wall for _ in range(args.runs)]
        row.tok_s[str(streams)] = work.tokens / statistics.median(walls)


async def measure(
    system: str, args: argparse.Namespace, first: list[torch.Tensor]
) -> tuple[Row, AsyncEngine | None]:
    """A fresh model and engine; why there is none is in the row."""
    row = Row(system)
    model, tokenizer, meta = model_of(args)
    vocab_size = model.config.vocab_size
    config = config_of(system, args, model.config.rope_len)
    text = text_of(args, tokenizer, vocab_size)
    try:
        engine = AsyncEngine(model, tokenizer, config, meta, consume=True)  # type: ignore[arg-type]
    except (ValueError, ImportError) as error:
        row.error = f"unavailable: {error}"
        return row, None
    used = {name: value for name, _, value, _ in engine.info.features}
    row.served = used.get("linear backend") or used.get("weight dtype", "")
    if config.kv_dtype != "auto":
        row.served += f", keys and values in {used['kv dtype']}"
    row.weights_gib = engine.info.weights_bytes / 2**30
    judge(engine, text, vocab_size, first, row)
    await speed(engine, args, vocab_size, row)
    return row, engine


async def run(args: argparse.Namespace) -> list[Row]:
    rows: list[Row] = []
    first: list[torch.Tensor] = []
    for system in args.systems:
        row, engine = await measure(system, args, first)
        if engine is not None:
            await engine.close()
        del engine
        rows.append(row)
        if row.error is None:
            row.nats_more = row.nats - rows[0].nats
        print(line(row), flush=True)
        gc.collect()
        if args.device.startswith("cuda"):
            torch.cuda.empty_cache()
    return rows


def line(row: Row) -> str:
    if row.error is not None:
        return f"{row.system:>10}  {row.error}"
    rates = ", ".join(f"{count} streams {rate:,.0f} tok/s" for count, rate in row.tok_s.items())
    return (
        f"{row.system:>10}  cosine {row.cosine_mean:.6f} (least {row.cosine_min:.6f}), same top "
        f"{row.same_top:.4f}, {row.nats:.4f} nats ({row.nats_more:+.4f}), {row.bits_per_byte:.4f} bits a byte"
        + (f"; {rates}" if rates else "")
    )


def described(path: Path) -> dict[str, object]:
    """A text, for the record: where it lies on this machine says nothing on another. bytes: its size."""
    data = path.read_bytes()
    return {"name": path.name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()[:16]}


HEADER = ["system", "weights GiB", "cosine", "least", "same top", "nats/token", "more", "bits/byte"]


def cells(row: Row) -> list[str]:
    numbers = [row.cosine_mean, row.cosine_min, row.same_top, row.nats]
    shown = [f"{row.weights_gib:.3f}", *(f"{value:.5f}" for value in numbers)]
    return [row.system, *shown, f"{row.nats_more:+.5f}", f"{row.bits_per_byte:.4f}"]


def markdown(args: argparse.Namespace, label: str, rows: list[Row]) -> str:
    about = machine()
    header = [*HEADER, *(f"{count} streams tok/s" for count in args.streams)]
    good = [row for row in rows if row.error is None]
    text = [
        f"# Accuracy and speed of weights\n\n{label}, {args.dtype}, on {about.get('gpu', about['cpu'])}, "
        f"{about['date']}; {good[0].tokens if good else 0:,} tokens of text, {args.rows} rows a step.\n",
        f"| {' | '.join(header)} |\n|{' --- |' * len(header)}",
    ]
    for row in good:
        rates = [f"{row.tok_s[str(count)]:,.0f}" for count in args.streams]
        text.append(f"| {' | '.join([*cells(row), *rates])} |")
    text += ["", *(f"- {row.system}: {row.error or row.served}" for row in rows)]
    return "\n".join(text) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(argv)
    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            rows = runner.run(run(args))
    except Unfit as error:
        options.refuse(error)
    print(table(HEADER, [cells(row) for row in rows if row.error is None]))
    if args.save or args.out:
        label = args.size or args.model or "the embedded model"
        settings = {name: value for name, value in vars(args).items() if name not in ("save", "out")}
        settings["text"] = [described(path) for path in args.text or OWN_TEXT]
        name = f"accuracy-{args.device}-{Path(label).name.replace(' ', '-')}-{args.dtype}"
        kept = save(name, [*map(asdict, rows)], settings | {"label": label}, out=args.out)
        kept.with_suffix(".md").write_text(markdown(args, label, rows))
        print("kept in", kept)


if __name__ == "__main__":
    main()
