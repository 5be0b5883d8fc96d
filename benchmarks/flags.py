"""What each of the seed's flags brings: `python -m benchmarks.flags`.

--workload sweep (the default): prefill and decode of one batch, with one flag more in each row, in the seed's
order and then ours. Every row names the backend that really served it; a row whose backend is not there says
so, and the next goes on without it.
--workload prompts: the seed's eight prompts of mixed length, 64 new tokens each, one at a time, as one static
batch, and continuously; --reuse-ids-buffer adds the persistent buffers off and on.

The model is nanochat's own checkpoint (NANOCHAT_BASE_DIR, stage sft) where there is one, else seeded random
weights: d32 on a GPU, tiny on a CPU.
"""

import argparse
import asyncio
import gc
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks import flag_modes, options
from benchmarks.flag_modes import MODES, PromptsRow, SweepRow
from benchmarks.offline import load
from benchmarks.options import Unfit
from benchmarks.report import device_name, machine, save, table
from engine.checkpoint import CheckpointError
from engine.decoder import Decoder
from engine.loader import load_model
from engine.text import TokenizerError
from engine.worker import new_event_loop

# The seed's own figures, of one B200 with its d32: seconds of 5 runs, and tokens a second.
SEED_PROMPTS = {"single": (6.55, 6.55, 6.61, 77.4), "static": (2.61, 2.61, 2.63, 194.5)}


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workload", choices=["sweep", "prompts", "all"], default="sweep")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--prompt-len", type=int, default=512)
    parser.add_argument("--decode-len", type=int, default=128)
    parser.add_argument(
        "--iters", type=int, default=3, help="timed repetitions of each row, behind a warm-up"
    )
    parser.add_argument("--runs", type=int, default=5, help="of the eight prompts")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16" if cuda else "float32")
    parser.add_argument("--device", type=options.device, default="cuda" if cuda else "cpu")
    parser.add_argument("--model", help="a checkpoint")
    parser.add_argument(
        "--model-size", dest="size", type=options.size, help="random weights of this size instead"
    )
    parser.add_argument("--modes", help="these rows only, with commas between them")
    parser.add_argument("--reuse-ids-buffer", action="store_true", help="prompts: buffers reused, off and on")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the result there (and FILE.md)")
    parser.add_argument("--save", action="store_true", help="keep the result in benchmarks/results")
    args = parser.parse_args(argv)
    for name in ("batch_size", "prompt_len", "decode_len", "iters", "runs"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} {getattr(args, name)} is not positive")
    known = [mode.name for mode in MODES]
    args.chosen = args.modes.split(",") if args.modes else known
    if unknown := sorted(set(args.chosen) - set(known)):
        parser.error(f"--modes: there is no {', '.join(unknown)}; there are {', '.join(known)}")
    return args


def model_of(args: argparse.Namespace) -> tuple[Decoder, str]:
    """The model and its label, with the stage and the step of a checkpoint. Raises Unfit for a folder without
    one.
    """
    if args.size is None:
        try:
            model, _, meta = load_model(
                args.model,
                device=args.device,
                dtype=args.dtype,
                source=None if args.model else "sft",
            )
            if args.model or meta.files.layout == "nanochat":
                stage = [f"source {meta.files.source}"] if meta.files.source else []
                step = [f"step {meta.files.step}"] if meta.files.step is not None else []
                return model, ", ".join([meta.name, *stage, *step])
        except (CheckpointError, TokenizerError) as error:
            if args.model or isinstance(error, TokenizerError):
                raise Unfit(f"--model {args.model or 'was not given'}: {error}") from error
    size = args.size or ("d32" if args.device.startswith("cuda") else "tiny")
    model, _, _ = load(size, args.device, args.dtype)
    return model, f"{size}, random weights"  # type: ignore[return-value]


async def sweep(model: Decoder, args: argparse.Namespace) -> list[SweepRow]:
    rows: list[SweepRow] = []
    settings: dict[str, object] = {}
    for mode in MODES:
        settings = settings | mode.settings
        if mode.name not in args.chosen:
            continue
        row = await flag_modes.measure(model, mode, settings, args)
        if row.error is not None and mode.optional:
            settings = {name: value for name, value in settings.items() if name not in mode.settings}
            settings |= mode.otherwise
        rows.append(row)
        print(line(row, rows[0]), flush=True)
        gc.collect()
        if args.device.startswith("cuda"):
            torch.cuda.empty_cache()
    for row in rows:
        row.prefill_pct, row.decode_pct = (
            gain(row.prefill_tok_s, rows[0].prefill_tok_s),
            gain(row.decode_tok_s, rows[0].decode_tok_s),
        )
    return rows


def gain(value: float, baseline: float) -> float:
    return 100 * (value / baseline - 1) if value and baseline else 0.0


def line(row: SweepRow, first: SweepRow) -> str:
    if row.error is not None:
        return f"{row.mode:>16}  {row.flags}: {row.error}"
    prefill, decode = (
        f"{value:,.1f} tok/s ({gain(value, base):+.1f}%)"
        for value, base in (
            (row.prefill_tok_s, first.prefill_tok_s),
            (row.decode_tok_s, first.decode_tok_s),
        )
    )
    return f"{row.mode:>16}  {row.flags}: prefill {prefill}, decode {decode}; {row.backend}"


def markdown(args: argparse.Namespace, label: str, rows: list[SweepRow], prompts: list[PromptsRow]) -> str:
    about = machine()
    where = device_name(args.device)
    text = [f"# Flags, one by one\n\n{label}, {args.dtype}, on {where}, {about['date']}.\n"]
    if rows:
        text.append(
            f"Batch {args.batch_size}, prompts of {args.prompt_len}, {args.decode_len} new tokens, "
            f"{args.iters} repetitions; each row has the flags of those above it.\n\n"
            "| row | adds | served by | prefill tok/s | decode tok/s |\n| --- | --- | --- | --- | --- |"
        )
        for row in rows:
            if row.error is not None:
                text.append(f"| {row.mode} | {row.flags} | {row.error} | | |")
                continue
            text.append(
                f"| {row.mode} | {row.flags} | {row.backend} | {row.prefill_tok_s:,.0f} "
                f"({row.prefill_pct:+.1f} %) | {row.decode_tok_s:,.0f} ({row.decode_pct:+.1f} %) |"
            )
    if prompts:
        text.append(
            f"\nThe seed's eight prompts, 64 new tokens each, {args.runs} runs; against {prompts[0].mode}: "
            "tokens a second more, how many times shorter p50 and p90 are, prompts with the same answer.\n\n"
            "| mode | p50 s | p90 s | mean s | tok/s | more | p50 | p90 | same | the seed's, B200: p50, p90, "
            f"mean s, tok/s |\n|{' --- |' * 10}"
        )
        for one in prompts:
            seed = ", ".join(f"{value:g}" for value in SEED_PROMPTS.get(one.mode, ()))
            text.append(
                f"| {one.mode} | {one.p50_s:.3f} | {one.p90_s:.3f} | {one.mean_s:.3f} | {one.tok_s:,.0f} | "
                f"{one.gain_pct:+.1f} % | {one.p50_ratio:.2f} x | {one.p90_ratio:.2f} x | "
                f"{flag_modes.same(one, prompts[0])} of {len(one.answers)} | {seed} |"
            )
    return "\n".join(text) + "\n"


async def run(args: argparse.Namespace) -> tuple[str, list[SweepRow], list[PromptsRow]]:
    model, label = model_of(args)
    print(
        f"{label}, {args.dtype}, on {device_name(args.device)}: batch {args.batch_size}, prompt "
        f"{args.prompt_len}, decode {args.decode_len}"
    )
    check_lengths(args, model.config.rope_len)
    rows = await sweep(model, args) if args.workload in ("sweep", "all") else []
    prompts = await flag_modes.prompts(model, args) if args.workload in ("prompts", "all") else []
    if prompts:
        show(prompts)
    return label, rows, prompts


def check_lengths(args: argparse.Namespace, rope_len: int) -> None:
    """Raises Unfit where the model, of so many positions, cannot hold what is asked for."""
    needed = args.prompt_len + args.decode_len + 1
    if args.workload != "prompts" and needed > rope_len:
        raise Unfit(
            f"--prompt-len {args.prompt_len} and --decode-len {args.decode_len} need {needed} positions, the "
            f"model has {rope_len}"
        )
    if args.workload != "sweep" and rope_len < flag_modes.LONGEST:
        raise Unfit(
            f"--workload {args.workload} needs {flag_modes.LONGEST} positions, the model has {rope_len}"
        )


def show(prompts: list[PromptsRow]) -> None:
    first = prompts[0]
    header = ["mode", "p50 s", "p90 s", "mean s", "tok/s", "tokens"]
    header += ["gain %", "p50 x", "p90 x", "same answers"]
    cells: list[list[object]] = [
        [
            *(one.mode, *(f"{value:.3f}" for value in (one.p50_s, one.p90_s, one.mean_s))),
            *(one.tok_s, one.tokens, f"{one.gain_pct:+.1f}", one.p50_ratio, one.p90_ratio),
            f"{flag_modes.same(one, first)} of {len(one.answers)}",
        ]
        for one in prompts
    ]
    print(table(header, cells))
    static = next(one for one in prompts if one.mode == "static")
    print(f"static against single: {1 + static.gain_pct / 100:.2f} x (the seed's: {194.5 / 77.4:.2f} x)")
    buffers = [one for one in prompts if one.mode in flag_modes.BUFFERS]
    if len(buffers) == 2:
        equal = flag_modes.same(*buffers)
        print(f"answers with buffers anew and reused: {equal} of {len(static.answers)} are the same")


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(argv)
    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            label, rows, prompts = runner.run(run(args))
    except Unfit as error:
        options.refuse(error)
    if args.save or args.out:
        settings = {name: value for name, value in vars(args).items() if name not in ("save", "out")}
        kept = save(
            f"flags-{args.device}-{args.dtype}",
            [*map(asdict, rows), *map(asdict, prompts)],
            settings | {"label": label},
            out=args.out,
        )
        kept.with_suffix(".md").write_text(markdown(args, label, rows, prompts))
        print("kept in", kept)


if __name__ == "__main__":
    main()
