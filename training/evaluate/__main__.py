"""`python -m training.evaluate --model models/ --data DIR`: measure a shipped folder; report and card are
written into it.

What only training knows (tokens, seconds, the loss before rounding) is kept from the report that is there.
"""

import argparse
import json
import sys
from pathlib import Path

import torch

from engine.checkpoint import CheckpointError
from training import card
from training.devices import device_name
from training.evaluate.report import measure, summary
from training.files import ReadError, WriteError, read_table, write_text
from training.shards import DataError


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder with the shipped files")
    parser.add_argument("--data", type=Path, required=True, help="folder with the held-out files")
    parser.add_argument("--device", type=device_name, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument(
        "--every", type=int, default=1, help="bits per byte on every so many-th item; 0: on none"
    )
    parser.add_argument("--report", type=Path, help="write the report here, and no card")
    args = parser.parse_args(argv)
    if args.every < 0:
        parser.error(f"--every is {args.every}, not 0 or more")
    if not args.data.is_dir():
        parser.error(f"--data: there is no folder {args.data}")
    if args.report is not None and not args.report.parent.is_dir():
        parser.error(f"--report: there is no folder {args.report.parent}")
    return args


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    old = args.model / "report.json"
    target = args.report or old
    try:
        before = read_table(old) if old.exists() else {}  # first: measuring takes minutes
        measured = measure(args.model, args.data, args.device, args.dtype, args.every)
        write_text(target, json.dumps(before | measured, indent=1) + "\n")
        if args.report is None:
            card.write(target, args.model)
    except (CheckpointError, DataError, ReadError, WriteError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join(summary(measured)))
    print(f"{target}: measured in {measured['measured_in_seconds']} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
