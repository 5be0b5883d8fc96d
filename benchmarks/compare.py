"""What differs between two results: `python -m benchmarks.compare A.json B.json`.

Rows are matched by the fields that say what was measured (system, mode, model, workload, streams, clients
and the like). A figure differs when it moved by more than the larger spread of the two rows, where they have
one, and never by less than --tolerance (5 % without a spread). Exit code 0; 1 with --fail-on-regression when
a figure became worse; 2 when the files cannot be compared.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report import table

IDENTITY = (
    "system",
    "model",
    "mode",
    "workload",
    "kind",
    "kernel",
    "name",
    "start",
    "shape",
    "backend",
    "dtype",
    "weights",
    "sampling",
    "streams",
    "clients",
    "rows",
    "prompt",
    "context",
    "number",
)
# What results from before there was a choice leave out.
UNSAID = {("sampling", "greedy")}
# By the end of a figure's name: better when larger, or when smaller. Anything else only differs.
LARGER = ("tok_s", "mbu", "gb_s", "tb_s", "tflops", "share")
SMALLER = ("_ms", "_s", "_us", "ms_step", "us_step", "errors", "ratio", "overhead", "seconds")
# No figures of this run, or made from figures that are compared themselves.
BESIDE = {"spread", "vllm", "target", "requests", "gaps", "runs"}
BESIDE |= {"prefill_pct", "decode_pct", "gain_pct", "p50_ratio", "p90_ratio"}
TOLERANCE = 0.05

Row = Mapping[str, object]
Key = tuple[tuple[str, object], ...]


class NotComparable(Exception):
    """The two results are about different machines, or are no results."""


@dataclass(frozen=True, slots=True)
class Change:
    """One figure that moved. ratio: after / before. verdict: better, worse or differs."""

    row: str
    figure: str
    before: float
    after: float
    allowed: float
    verdict: str

    @property
    def ratio(self) -> float:
        return self.after / self.before if self.before else float("inf")


def identity(row: Row) -> Key:
    said = ((name, row[name]) for name in IDENTITY if isinstance(row.get(name), str | int))
    return tuple(pair for pair in said if pair not in UNSAID)


def label(key: Key) -> str:
    return " ".join(str(value) for _, value in key) or "the only row"


def direction(figure: str) -> int:
    """1 where more is better, -1 where less is, 0 where nobody can say."""
    if figure.endswith(LARGER):
        return 1
    return -1 if figure.endswith(SMALLER) else 0


def figures(row: Row) -> dict[str, float]:
    """The row's own numbers; those nested one level down are `outer.inner`."""
    found: dict[str, float] = {}
    named = {name for name, _ in identity(row)} | BESIDE
    for name, value in row.items():
        if name in named or isinstance(value, bool):
            continue
        if isinstance(value, int | float):
            found[name] = float(value)
        elif isinstance(value, dict):
            found |= {f"{name}.{inner}": number for inner, number in figures(value).items()}
    return found


def compare(before: Row, after: Row, tolerance: float | None = None) -> list[Change]:
    """The figures that moved by more than their spread, or `tolerance` if that is given or larger."""
    spreads = [row["spread"] for row in (before, after) if isinstance(row.get("spread"), int | float)]
    allowed = max([float(str(spread)) for spread in spreads] + [tolerance or 0.0])
    if not spreads and tolerance is None:
        allowed = TOLERANCE
    changes: list[Change] = []
    others = figures(after)
    for name, old in figures(before).items():
        new = others.get(name)
        if new is None or abs(new - old) <= allowed * max(abs(old), 1e-12):
            continue
        toward = direction(name) * (1 if new > old else -1)
        verdict = {1: "better", -1: "worse", 0: "differs"}[toward]
        changes.append(Change(label(identity(before)), name, old, new, allowed, verdict))
    return changes


def index(rows: list[Row]) -> dict[Key, Row]:
    """By identity; equal ones are numbered in their order."""
    found: dict[Key, Row] = {}
    for row in rows:
        key, again = identity(row), 2
        while key in found:
            key = (*identity(row), ("occurrence", again))
            again += 1
        found[key] = row
    return found


def read(path: Path) -> dict[str, object]:
    """A result as `report.save` wrote it. Raises NotComparable."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise NotComparable(f"{path}: {error}") from None
    if not isinstance(found, dict) or not isinstance(found.get("rows"), list):
        raise NotComparable(f"{path} is no result of a benchmark: it has no rows")
    return found


def check_machines(before: Mapping[str, object], after: Mapping[str, object]) -> None:
    """Raises NotComparable for results of different processors or GPUs."""
    first, second = before.get("machine"), after.get("machine")
    if not isinstance(first, dict) or not isinstance(second, dict):
        raise NotComparable("a result does not say what machine it is of")
    # On a GPU the processor is the lesser part, but its pace is in every figure all the same.
    for part in ("gpu", "cpu", "cores"):
        if first.get(part) != second.get(part):
            raise NotComparable(
                f"different {part}: {first.get(part)} and {second.get(part)}; --force compares"
            )


def report(
    before: Mapping[str, object], after: Mapping[str, object], tolerance: float | None
) -> list[Change]:
    """Prints what differs, and what only one of them has; returns the changes."""
    old, new = (index(_rows(result)) for result in (before, after))
    changes = [
        change for key, row in old.items() if key in new for change in compare(row, new[key], tolerance)
    ]
    if changes:
        cells: list[list[object]] = [
            [
                c.row,
                c.figure,
                f"{c.before:,.4g}",
                f"{c.after:,.4g}",
                f"{c.ratio:.3f}",
                f"{c.allowed:.1%}",
                c.verdict,
            ]
            for c in changes
        ]
        print(table(["row", "figure", "before", "after", "ratio", "allowed", "verdict"], cells))
    matched = sum(key in new for key in old)
    print(f"{matched} rows in both, {len(changes)} figures differ by more than their spread")
    for name, one, other in (("before", old, new), ("after", new, old)):
        for key in one:
            if key not in other:
                print(f"only {name}: {label(key)}")
    for key, row in new.items():
        if row.get("error") and not old.get(key, {}).get("error"):
            print(f"failed after: {label(key)}: {row['error']}")
    return changes


def _rows(result: Mapping[str, object]) -> list[Row]:
    rows = result["rows"]
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", type=Path, metavar="A.json")
    parser.add_argument("after", type=Path, metavar="B.json")
    parser.add_argument("--tolerance", type=float, help="share that a figure may move at least")
    parser.add_argument(
        "--fail-on-regression", action="store_true", help="exit code 1 when a figure is worse"
    )
    parser.add_argument("--force", action="store_true", help="compare results of different machines, too")
    args = parser.parse_args(argv)
    try:
        before, after = read(args.before), read(args.after)
        if not args.force:
            check_machines(before, after)
    except NotComparable as error:
        print(error, file=sys.stderr)
        return 2
    changes = report(before, after, args.tolerance)
    worse = any(change.verdict == "worse" for change in changes)
    failed = {key for key, row in index(_rows(after)).items() if row.get("error")}
    failed -= {key for key, row in index(_rows(before)).items() if row.get("error")}
    return 1 if args.fail_on_regression and (worse or failed) else 0


if __name__ == "__main__":
    sys.exit(main())
