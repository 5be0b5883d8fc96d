"""Training steps of the seed's measurements: `python -m benchmarks.training`.

A step is forward and backward of random tokens under autocast (--optimizer adds the update); two steps warm
up untimed. Rows are named by batch x time, attention and logits (8x1536-flash-bf16); --rows takes names or
the first parts of them. What does not fit into memory says so, and the next row goes on.

flash: torch chooses its attention, and the table says which it was; cudnn: NVIDIA's, where it can; math:
torch's plain one. fp32: the loss from float32 logits by plain torch; bf16: no float32 copy of them exists.
plain: without the project's fused operators (kernels.autograd). compiled: by torch.compile, whose one-time
cost is apart; --compile compiles every row.

MFU is FLOPs by training.flops.flops_per_token (6 for each weight of a matrix product and token, attention
counted causally) over the device's dense bf16 peak (training.flops.PEAK_FLOPS, of NVIDIA's data sheets).

The weights are random, in the shape of nanochat's d32 on a GPU and of the embedded model on a CPU.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from benchmarks import options
from benchmarks.models import CONFIGS
from benchmarks.report import device_name, machine, save
from benchmarks.training_rows import CASES, Bench, Row, build, measure
from engine.model import GPT
from training.optimizer import Optimizers, optimizers_for
from training.settings import Settings


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=_size, help="default: d32 on a GPU, tiny on a CPU")
    parser.add_argument("--device", type=options.device, default="cuda" if cuda else "cpu")
    parser.add_argument(
        "--dtype", choices=["bfloat16", "float32"], help="of autocast; default: bfloat16 on a GPU"
    )
    parser.add_argument("--rows", help="these rows only, with commas between them")
    parser.add_argument("--steps", type=int, default=4, help="timed ones, where a row does not say")
    parser.add_argument(
        "--grad-accum", type=int, default=1, help="passes that a step adds up, where a row does not say"
    )
    parser.add_argument("--optimizer", action="store_true", help="with the update, by Muon and AdamW")
    parser.add_argument("--compile", action="store_true", help="torch.compile for every row")
    parser.add_argument("--seconds", type=float, default=150.0, help="no row starts after this time")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the result there (and FILE.md)")
    parser.add_argument("--save", action="store_true", help="keep the result in benchmarks/results")
    args = parser.parse_args(argv)
    for name in ("steps", "grad_accum"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} {getattr(args, name)} is not positive")
    if not args.seconds > 0:
        parser.error(f"--seconds {args.seconds:g} is not positive")
    on_gpu = args.device.startswith("cuda")
    args.size = args.size or ("d32" if on_gpu else "tiny")
    args.dtype = args.dtype or ("bfloat16" if on_gpu else "float32")
    wanted = args.rows.split(",") if args.rows else [""]
    for name in wanted:
        if name and not any(case.fits(name) for case in CASES):
            parser.error(f"--rows: there is no {name!r}; there are {', '.join(case.name for case in CASES)}")
    args.cases = [case for case in CASES if any(not name or case.fits(name) for name in wanted)]
    if args.compile:
        args.cases = [replace(case, compiled=True) for case in args.cases]
    return args


def _size(text: str) -> str:
    if text in CONFIGS:
        raise argparse.ArgumentTypeError(f"{text} is none of nanochat's models, which alone can be trained")
    return options.size(text)


def show(row: Row) -> str:
    if row.error is not None:
        return f"{row.row:>28}  {row.error}"
    parts = [f"{row.tok_s:>9,.0f} tok/s", f"{row.step_ms:,.1f} ms a step", f"attention {row.attention}"]
    parts += [f"MFU {row.mfu:.1%}"] if row.mfu is not None else []
    parts += [f"{row.peak_gib:.1f} GiB"] if row.peak_gib is not None else []
    parts += [f"the seed's B200 {row.seed_tok_s:,.0f}"] if row.seed_tok_s else []
    parts += [f"first step {row.first_step_s:.1f} s", f"loss {row.loss:.4f}"]
    return f"{row.row:>28}  {', '.join(parts)}"


def markdown(args: argparse.Namespace, rows: list[Row]) -> str:
    about = machine()
    step = "forward, backward and update" if args.optimizer else "forward and backward"
    text = [
        f"# Training steps\n\n{args.size}, random weights, autocast to {args.dtype}, on "
        f"{device_name(args.device)}, torch {about['torch']}, {about['date']}. A step is {step}.\n",
        "| row | attention | tok/s | ms a step | MFU | peak GiB | loss | the seed's tok/s, B200 | against it "
        f"|\n|{' --- |' * 9}",
    ]
    for row in rows:
        seed = f"{row.seed_tok_s:,.0f}" if row.seed_tok_s else ""
        if row.error is not None:
            text.append(f"| {row.row} | {row.error} | | | | | | {seed} | |")
            continue
        mfu = f"{row.mfu:.1%}" if row.mfu is not None else ""
        peak = f"{row.peak_gib:.1f}" if row.peak_gib is not None else ""
        against = f"{row.tok_s / row.seed_tok_s:.2f} x" if row.seed_tok_s else ""
        text.append(
            f"| {row.row} | {row.attention} | {row.tok_s:,.0f} | {row.step_ms:,.1f} | {mfu} | {peak} | "
            f"{row.loss:.4f} | {seed} | {against} |"
        )
    if ratios := narrow_against_wide(rows):
        told = ", ".join(f"{shape} {ratio:.2f} x" for shape, ratio in ratios.items())
        text.append(f"\nbf16 logits against float32 ones, tok/s: {told}.")
    for row in rows:
        if row.error is None and row.row.endswith("compiled"):
            text.append(f"\n{row.row}: {row.first_step_s:.1f} s for the first step, compilation included.")
    return "\n".join(text) + "\n"


def narrow_against_wide(rows: Sequence[Row]) -> dict[str, float]:
    """Batch x time -> how many times as fast flash attention's row is without float32 logits."""
    rates = {row.row: row.tok_s for row in rows if row.error is None}
    shapes = [name.removesuffix("-flash-bf16") for name in rates if name.endswith("-flash-bf16")]
    wide = {shape: rates.get(f"{shape}-flash-fp32") for shape in shapes}
    return {shape: rates[f"{shape}-flash-bf16"] / rate for shape, rate in wide.items() if rate}


def run(args: argparse.Namespace) -> list[Row]:
    began = time.monotonic()
    torch.set_float32_matmul_precision("high")
    dtype = torch.bfloat16 if args.dtype == "bfloat16" else torch.float32
    model = build(args.size, args.device, dtype)
    bench = Bench(args.size, model, dtype, _optimizers(args, model))
    print(
        f"{args.size}, {model.parameter_count():,} random weights, autocast to {args.dtype}, on "
        f"{device_name(args.device)}; ready after {time.monotonic() - began:.1f} s",
        flush=True,
    )
    rows: list[Row] = []
    for case in args.cases:
        if time.monotonic() - began > args.seconds:
            logits = "float32" if case.wide else args.dtype
            left = f"left out after --seconds {args.seconds:g}"
            rows.append(Row(case.name, case.batch, case.time, logits, 0, 0, error=left))
        else:
            rows.append(measure(bench, case, args.steps, args.grad_accum))
        print(show(rows[-1]), flush=True)
        keep(args, rows)  # after each row, so that nothing is lost with a machine that is taken away
    return rows


def _optimizers(args: argparse.Namespace, model: GPT) -> Optimizers | None:
    if not args.optimizer:
        return None
    found = optimizers_for(model, replace(Settings(), n_embd=model.config.n_embd))
    found.scale(1e-4, 0)  # random tokens teach nothing, and the weights are to stay what they are
    return found


def keep(args: argparse.Namespace, rows: list[Row]) -> Path | None:
    """Writes the result where --save and --out want it, JSON and markdown."""
    if not (args.save or args.out):
        return None
    left_out = ("save", "out", "cases")
    settings = {name: value for name, value in vars(args).items() if name not in left_out}
    name = f"training-{args.device.split(':')[0]}-{args.size}-{args.dtype}"
    kept = save(name, [asdict(row) for row in rows], settings, out=args.out)
    kept.with_suffix(".md").write_text(markdown(args, rows))
    return kept


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(argv)
    rows = run(args)
    if (kept := keep(args, rows)) is not None:
        print("kept in", kept)
    harmless = ("out of memory", "left out")
    if any(row.error is not None and not row.error.startswith(harmless) for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
