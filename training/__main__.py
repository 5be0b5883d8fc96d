"""`python -m training --data DIR --out models/`: every stage from the shards to the shipped files.

A stage that is done is skipped; one that was interrupted goes on from its last checkpoint. The work folder
(`--work`, default `runs/embedded`) holds both.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

import torch

from engine.model import GPT
from training import card, data, leaks, settings, tokenizer
from training.chat_tune import chat_tune
from training.evaluate.documents import PROSE
from training.evaluate.loss import bits_per_byte
from training.evaluate.report import measure
from training.export import ExportError, export
from training.loop import build
from training.pretrain import pretrain


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m training", description="Train the embedded model.")
    parser.add_argument("--data", type=Path, required=True, help="folder with the .jsonl.xz shards")
    parser.add_argument("--out", type=Path, required=True, help="folder for the shipped files, e.g. models/")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/embedded"), help="checkpoints and token files"
    )
    parser.add_argument("--preset", choices=("full", "tiny"), default="full")
    parser.add_argument("--share", type=float, default=1.0, help="train on this share of the tokens")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    chosen = settings.full() if args.preset == "full" else settings.tiny()
    if args.share != 1.0:
        chosen = settings.scaled(chosen, args.share)
    try:
        _stages(args, chosen)
    except (data.DataError, ExportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _stages(args: argparse.Namespace, chosen: settings.Settings) -> None:
    work, tokens = args.work, args.work / "tokens"
    torch.set_float32_matmul_precision("high")
    if not (work / tokenizer.CONFIG_FILE).exists():
        with _timed("tokenizer"):
            tokenizer.save(tokenizer.train(data.tokenizer_texts(args.data, chosen), chosen.vocab_size), work)
    encoder = tokenizer.load(work)
    if not (tokens / "sizes.json").exists():
        with _timed("tokenising"):
            print(data.prepare(args.data, chosen, work, tokens, args.workers), flush=True)
    model = build(chosen, args.device)
    if not (work / "pretrain.pt").exists():
        with _timed("pretraining"):
            pretrain(model, chosen, tokens, work)
    if not (work / "tune.pt").exists():
        _load(model, work / "pretrain.pt")
        if (
            args.data / PROSE
        ).exists():  # what tuning costs in plain text is the difference to the final figures
            before = bits_per_byte(model, encoder, args.data)
            print(before, flush=True)
            (work / "pretrained_bits.json").write_text(json.dumps(before))
        with _timed("chat tuning"):
            chat_tune(model, chosen, encoder, tokens, work)
    _load(model, work / "tune.pt")
    with _timed("export"):
        shards = export(model.state_dict(), model.config, work, args.out)
    print(f"{len(shards)} shards, {sum(path.stat().st_size for path in shards) / 2**20:.1f} MiB", flush=True)
    with _timed("evaluation"):
        report = _evaluated(model, encoder, args)
    with _timed("leak check"):
        report["leaks"] = leaks.check(args.data, chosen, args.workers)
    if (work / "pretrained_bits.json").exists():
        report["bits_per_byte_before_tuning"] = json.loads((work / "pretrained_bits.json").read_text())
    for stage in ("pretrain", "tune"):
        report[stage] = json.loads((work / f"{stage}.json").read_text())
    report["sources"] = json.loads((tokens / "sizes.json").read_text())
    (args.out / "report.json").write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    card.write(args.out / "report.json", args.out)


def _evaluated(model: GPT, encoder: tokenizer.Encoder, args: argparse.Namespace) -> dict[str, object]:
    """Held-out loss before rounding to int8, and everything of what ships."""
    model.eval()
    report: dict[str, object] = {}
    if (args.data / PROSE).exists():
        report["bits_per_byte_unrounded"] = bits_per_byte(model, encoder, args.data)
    report |= measure(args.out, args.data, args.device)
    print(f"measured in {report['measured_in_seconds']} s: {report.get('bits_per_byte')}", flush=True)
    return report


def _load(model: torch.nn.Module, path: Path) -> None:
    saved = torch.load(path, map_location=next(model.parameters()).device, weights_only=True)
    model.load_state_dict(saved["model"])


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
