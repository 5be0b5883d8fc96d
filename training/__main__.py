"""`python -m training --data DIR --out models/`: every stage from the shards to the shipped files.

A stage that is done is skipped; one that was interrupted, at whatever moment, goes on from its last intact
checkpoint, and the outcome is the same. The work folder (`--work`, default `runs/embedded`) holds both;
`--no-resume` starts over.
"""

import argparse
import json
import os
import shutil
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch

from engine.model import GPT
from training import card, data, leaks, settings, tokenizer
from training.chat_tune import chat_tune
from training.checkpoint import CheckpointError, Checkpoints
from training.devices import device_name
from training.evaluate.documents import PROSE
from training.evaluate.loss import bits_per_byte
from training.evaluate.report import measure, summary
from training.export import ExportError, export
from training.files import ReadError, WriteError, read_table, write_text
from training.loop import build
from training.plot import STAGES, curves, losses_svg
from training.pretrain import pretrain
from training.shards import DataError


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m training", description="Train the embedded model.")
    parser.add_argument("--data", type=Path, required=True, help="folder with the .jsonl.xz shards")
    parser.add_argument("--out", type=Path, required=True, help="folder for the shipped files, e.g. models/")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/embedded"), help="checkpoints and token files"
    )
    parser.add_argument("--preset", choices=("full", "tiny"), default="full")
    parser.add_argument("--share", type=float, default=1.0, help="train on this share of the tokens")
    parser.add_argument("--device", type=device_name, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="go on with what the work folder holds (the default), or start over",
    )
    parser.add_argument(
        "--checkpoint-seconds", type=float, help="between two checkpoints; default: as the preset has it"
    )
    args = parser.parse_args(argv)
    if not 0 < args.share <= 1:
        parser.error(f"--share {args.share:g} is not above 0 and at most 1")
    if args.workers < 1:
        parser.error(f"--workers {args.workers} is not positive")
    if args.checkpoint_seconds is not None and not args.checkpoint_seconds >= 0:
        parser.error(f"--checkpoint-seconds {args.checkpoint_seconds:g} is negative")
    return args


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    chosen = settings.full() if args.preset == "full" else settings.tiny()
    if args.share != 1.0:
        chosen = settings.scaled(chosen, args.share)
    if args.checkpoint_seconds is not None:
        chosen = replace(chosen, checkpoint_seconds=args.checkpoint_seconds)
    try:
        data.check_sources(args.data, chosen)
        _claim(args.work, chosen, args.resume)
        _stages(args, chosen)
    except (DataError, ExportError, CheckpointError, ReadError, WriteError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:  # a full disk, above all
        print(f"error: {error}; what was finished is intact, and is not done again", file=sys.stderr)
        return 1
    return 0


def _claim(work: Path, chosen: settings.Settings, resume: bool) -> None:
    """Makes the folder one of these settings. Raises DataError where it holds a run with others, ReadError
    for a damaged file.
    """
    path = work / "settings.json"
    own = asdict(chosen)
    del own["checkpoint_seconds"]  # which changes nothing of the outcome
    own = json.loads(json.dumps(own))
    if not resume:
        shutil.rmtree(work / "tokens", ignore_errors=True)
        for stage in STAGES:
            Checkpoints(work, stage).drop()
            for kind in ("pt", "json"):
                (work / f"{stage}.{kind}").unlink(missing_ok=True)
        for name in (tokenizer.CONFIG_FILE, tokenizer.RANKS_FILE, path.name, "pretrained_bits.json"):
            (work / name).unlink(missing_ok=True)
    if path.exists():
        kept = read_table(path)
        if changed := sorted(name for name in own.keys() | kept.keys() if own.get(name) != kept.get(name)):
            raise DataError(
                f"{work} holds a run with other settings ({', '.join(changed)}): choose another --work, or "
                "start over with --no-resume"
            )
    write_text(path, json.dumps(own, indent=1) + "\n")


def _stages(args: argparse.Namespace, chosen: settings.Settings) -> None:
    work, tokens = args.work, args.work / "tokens"
    pretrained, tuned = (Checkpoints(work, stage) for stage in STAGES)
    torch.set_float32_matmul_precision("high")
    if not (work / tokenizer.CONFIG_FILE).exists():
        with _timed("tokenizer"):
            tokenizer.save(tokenizer.train(data.tokenizer_texts(args.data, chosen), chosen.vocab_size), work)
    encoder = tokenizer.load(work)
    if not (tokens / data.SIZES_FILE).exists():
        with _timed("tokenising"):
            print(data.prepare(args.data, chosen, work, tokens, args.workers), flush=True)
    model = build(chosen, args.device)
    if not pretrained.finished():
        with _timed("pretraining"):
            pretrain(model, chosen, tokens, work)
    if not tuned.finished():
        pretrained.load(model)
        if (
            args.data / PROSE
        ).exists():  # what tuning costs in plain text is the difference to the final figures
            before = bits_per_byte(model, encoder, args.data)
            print(before, flush=True)
            write_text(work / "pretrained_bits.json", json.dumps(before))
        with _timed("chat tuning"):
            chat_tune(model, chosen, encoder, tokens, work)
    tuned.load(model)
    with _timed("export"):
        shards = export(model.state_dict(), model.config, work, args.out)
    print(f"{len(shards)} shards, {sum(path.stat().st_size for path in shards) / 2**20:.1f} MiB", flush=True)
    with _timed("evaluation"):
        report = _evaluated(model, encoder, args)
    with _timed("leak check"):
        report["leaks"] = leaks.check(args.data, chosen, args.workers)
    if (work / "pretrained_bits.json").exists():
        report["bits_per_byte_before_tuning"] = json.loads((work / "pretrained_bits.json").read_text())
    for stage in STAGES:
        report[stage] = json.loads((work / f"{stage}.json").read_text())
    report["sources"] = json.loads((tokens / data.SIZES_FILE).read_text())
    write_text(args.out / "report.json", json.dumps(report, indent=1) + "\n")
    write_text(args.out / card.PLOT_FILE, losses_svg(curves(report)))
    card.write(args.out / "report.json", args.out)
    for kept in (pretrained, tuned):  # nothing is left that they could be wanted for
        kept.drop()


def _evaluated(model: GPT, encoder: tokenizer.Encoder, args: argparse.Namespace) -> dict[str, object]:
    """Held-out loss before rounding to int8, and everything of what ships."""
    model.eval()
    report: dict[str, object] = {}
    if (args.data / PROSE).exists():
        report["bits_per_byte_unrounded"] = bits_per_byte(model, encoder, args.data)
    report |= measure(args.out, args.data, args.device)
    print("\n".join(summary(report)))
    print(f"measured in {report['measured_in_seconds']} s", flush=True)
    return report


class _timed:
    """Print how long a stage took."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        print(f"== {self.name}", flush=True)
        self.began = time.monotonic()

    def __exit__(self, *failure: object) -> None:
        print(f"== {self.name}: {time.monotonic() - self.began:.1f} s", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
