"""`python -m training.ablation --data DIR --variants "A;B" --tokens N`: which model and recipe learn most.

Every variant is pretrained on the same tokens in the same order and is measured by held-out bits per byte,
all prose and all chat. Architectures are of equal size once rounded to int8, within a few percent. Results
are added to training/ablation.json with the machine and the date; the model card shows them.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch

from training import data, settings, tokenizer
from training.checkpoint import CheckpointError, Checkpoints
from training.devices import device_name
from training.evaluate.loss import MEASURE, bits_per_byte
from training.files import ReadError, WriteError, read_table, write_text
from training.loop import build
from training.pretrain import pretrain
from training.settings import Settings
from training.shards import DataError

Row = Mapping[str, object]


def variants() -> dict[str, Settings]:
    """Name -> settings; what the name does not say is as in the first model's recipe."""
    base = replace(
        settings.full(), generation="G1", n_layer=10, n_kv_head=4, n_head=4, n_embd=512, dropout=0.0,
        weight_decay=0.1,
    )  # fmt: skip
    return {
        "G1 10x512": base,
        "G2 10x512": replace(base, generation="G2"),
        "G3 8x512, 2 key heads": replace(base, generation="G3", n_layer=8, n_kv_head=2),
        "G4 8x512, 2 key heads": replace(base, generation="G4", n_layer=8, n_kv_head=2),
        "G5 8x512, 2 key heads": replace(base, generation="G5", n_layer=8, n_kv_head=2),
        "G5 10x512, 1 key head": replace(base, generation="G5", n_layer=10, n_kv_head=1),
        "G1 11x512, 2 key heads": replace(base, n_layer=11, n_kv_head=2),
        "G1 6x640": replace(base, n_layer=6, n_embd=640, n_head=5, n_kv_head=5),
        "G1 13x448, 7 heads": replace(base, n_layer=13, n_embd=448, n_head=7, n_kv_head=7),
        "G1 10x512, 8 heads": replace(base, n_head=8, n_kv_head=8),
        "G1 10x512, decay 1.0": replace(base, weight_decay=1.0),
        "G1 10x512, dropout 0.1": replace(base, dropout=0.1),
    }


def measure(name: str, chosen: Settings, args: argparse.Namespace, tokens: Path) -> dict[str, object]:
    """Pretrain one variant and measure it."""
    share = args.tokens / sum(phase.tokens for phase in chosen.phases)
    chosen = settings.scaled(chosen, share)
    folder = args.work / "variants" / f"{''.join(c if c.isalnum() else '-' for c in name)}-{args.tokens}"
    began = time.monotonic()
    torch.compiler.reset()  # or the compiler gives up after a handful of models
    model = build(chosen, args.device)
    pretrain(model, chosen, tokens, folder)
    trained = json.loads((folder / "pretrain.json").read_text())
    Checkpoints(folder, "pretrain").drop()  # the stage is done: nothing goes on from them
    model.eval()
    bits = bits_per_byte(model, tokenizer.load(args.work), args.data)
    return {
        "variant": name,
        "parameters": model.parameter_count(),
        "tokens": trained["tokens"],
        "tokens_per_second": trained["tokens_per_second"],
        "mfu": trained["mfu"],
        "training_loss": trained["losses"][-1][1],
        "prose": bits["prose"],
        "chat": bits["chat"],
        "bits_per_byte": bits,
        "seconds": round(time.monotonic() - began, 1),
    }


def main(argv: list[str] | None = None) -> int:
    known = variants()
    parser = argparse.ArgumentParser(prog="python -m training.ablation", description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/embedded"), help="tokenizer and token files")
    parser.add_argument("--variants", default=";".join(known), help="names with semicolons between them")
    parser.add_argument("--tokens", type=int, default=100_000_000)
    parser.add_argument("--device", type=device_name, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "ablation.json")
    args = parser.parse_args(argv)
    names = args.variants.split(";")
    if unknown := sorted(set(names) - set(known)):
        parser.error(f"--variants: there is no {unknown[0]!r}; known are {'; '.join(known)}")
    if args.tokens < 1:
        parser.error(f"--tokens is {args.tokens}, not 1 or more")
    if not args.data.is_dir():
        parser.error(f"--data: there is no folder {args.data}")
    try:
        _measured(args, {name: known[name] for name in names})
    except (DataError, CheckpointError, ReadError, WriteError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _measured(args: argparse.Namespace, chosen: Mapping[str, Settings]) -> None:
    """Measure these variants and add them to --out. Raises DataError where that has another machine's, or
    figures of another measure.
    """
    device = torch.cuda.get_device_name() if args.device.startswith("cuda") else "CPU"
    kept_with = {"device": device, "torch": torch.__version__, "loss": MEASURE}
    rows: list[Row] = []
    if args.out.exists():
        before = read_table(args.out)
        if other := [str(before.get(name)) for name, now in kept_with.items() if before.get(name) != now]:
            raise DataError(
                f"{args.out} has rows of other conditions ({', '.join(other)}): choose another --out"
            )
        rows = cast(list[Row], before["rows"])
    tokens = args.work / "tokens"
    if not (tokens / data.SIZES_FILE).exists():
        full = settings.full()
        if not (args.work / tokenizer.CONFIG_FILE).exists():
            data.check_sources(args.data, full)
            tokenizer.save(tokenizer.train(data.tokenizer_texts(args.data, full), full.vocab_size), args.work)
        data.prepare(args.data, full, args.work, tokens, len(os.sched_getaffinity(0)))
    torch.set_float32_matmul_precision("high")
    for name, variant in chosen.items():
        row = measure(name, variant, args, tokens)
        print(json.dumps({k: v for k, v in row.items() if k != "bits_per_byte"}), flush=True)
        rows = merged(rows, row)
        kept = {"date": time.strftime("%Y-%m-%d"), **kept_with, "rows": rows}
        write_text(args.out, json.dumps(kept, indent=1) + "\n")


def merged(rows: Sequence[Row], new: Row) -> list[Row]:
    """The rows with the new one, in the place of that of the same variant and tokens."""
    key = (new["variant"], new["tokens"])
    return [row for row in rows if (row["variant"], row["tokens"]) != key] + [new]


if __name__ == "__main__":
    raise SystemExit(main())
