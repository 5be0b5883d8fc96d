"""What batch size and batch timeout trade: `python -m benchmarks.tuning`, on a CPU, with the embedded model.

Two sets of servers, all of a set running at once and taking turns in each round, so that a machine whose pace
varies treats them alike:

- sizes: continuous batching with each `--batch-size`, under `--clients` closed loops of streams;
- timeouts: static and continuous batching with each `--batch-timeout-ms`, batch size 8, eight closed loops.

A figure is the median of the rounds; `spread` says how far they were apart. `--save` keeps the result in
benchmarks/results, draws docs/tuning.svg and writes the tables of docs/tuning.md; `--draw FILE` does so from
a kept result.
"""

import argparse
import asyncio
import json
import statistics
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.client import Orders
from benchmarks.load import Row, closed_loop, stream
from benchmarks.plot import Panel, Series, panels_svg
from benchmarks.report import save, table
from benchmarks.server import ROOT, Server, server

PICTURE, PAGE = ROOT / "docs" / "tuning.svg", ROOT / "docs" / "tuning.md"
START, END = "<!-- measured -->\n", "<!-- end of measured -->"
VOCABULARY = 8000  # the embedded model's ordinary tokens lie below
STATIC_SIZE = 8
COLUMNS = "tok/s, all | spread | TTFT p50 ms | ms per token of one stream"
SHORT_ROUNDS = 3  # a round of the second set takes a fraction of one of the first


@dataclass(frozen=True, slots=True)
class Point:
    """One setting's figures: medians of the rounds, times in milliseconds. spread: of tok_s, slowest to
    fastest over the median.
    """

    kind: str
    mode: str
    batch_size: int
    timeout_ms: float
    clients: int
    tok_s: float
    spread: float
    ttft_p50_ms: float
    ttft_p99_ms: float
    tpot_ms: float


@dataclass(frozen=True, slots=True)
class Setting:
    """A server's settings, and how many clients it gets at a time."""

    kind: str
    mode: str
    batch_size: int
    timeout_ms: float
    clients: int

    @property
    def flags(self) -> list[str]:
        """Without the prefix cache, which would know the prompts of an earlier round."""
        return [
            *("--batching", self.mode),
            *("--batch-size", str(self.batch_size)),
            *("--batch-timeout-ms", str(self.timeout_ms)),
            *("--device", "cpu", "--no-prefix-caching"),
        ]


def settings(args: argparse.Namespace) -> list[list[Setting]]:
    """The two sets."""
    sizes = [Setting("sizes", "continuous", size, 0.0, args.clients) for size in args.sizes]
    waits = [
        Setting("timeouts", mode, STATIC_SIZE, wait, STATIC_SIZE)
        for mode in ("static", "continuous")
        for wait in args.timeouts
    ]
    return [sizes, waits]


async def measure(chosen: Sequence[Setting], args: argparse.Namespace) -> list[Point]:
    """All servers of one set, taking turns."""
    rows: dict[Setting, list[Row]] = {setting: [] for setting in chosen}
    async with AsyncExitStack() as stack:
        running: dict[Setting, Server] = {}
        for setting in chosen:
            running[setting] = await stack.enter_async_context(server(args.model, setting.flags))
            await stream(_orders(running[setting].url, 2, 4, 0, args))
        rounds = args.rounds * (1 if chosen[0].kind == "sizes" else SHORT_ROUNDS)
        for number in range(1, rounds + 1):
            for setting in chosen:
                load = _orders(
                    running[setting].url, setting.clients, args.turns * setting.clients, number, args
                )
                rows[setting].append(await closed_loop(running[setting], setting.mode, load))
    return [_point(setting, rows[setting]) for setting in chosen]


def _orders(url: str, clients: int, count: int, seed: int, args: argparse.Namespace) -> Orders:
    return Orders(url, clients, args.new, seed, count, args.prompt, args.prompt, VOCABULARY)


def _point(setting: Setting, rows: Sequence[Row]) -> Point:
    """Raises RuntimeError where a request failed: such a figure is none."""
    for row in rows:
        if row.errors:
            raise RuntimeError(f"{row.errors} requests failed: {row.error}")
    pace = [row.tok_s for row in rows]
    return Point(
        **asdict(setting),
        tok_s=statistics.median(pace),
        spread=(max(pace) - min(pace)) / statistics.median(pace),
        ttft_p50_ms=statistics.median(row.ttft_p50_ms for row in rows),
        ttft_p99_ms=statistics.median(row.ttft_p99_ms for row in rows),
        tpot_ms=statistics.median(row.tpot_ms for row in rows),
    )


def picture(points: Sequence[Mapping[str, object]], machine: str) -> str:
    """Throughput and time to the first token over batch size, and over batch timeout."""

    def series(kind: str, mode: str, across: str, up: str, name: str) -> Series:
        kept = [point for point in points if point["kind"] == kind and point["mode"] == mode]
        return Series(name, [(float(str(p[across])), float(str(p[up]))) for p in kept])

    pace, first = "tokens per second, all streams", "time to first token, p50, ms"
    sizes = [p for p in points if p["kind"] == "sizes"]
    clients = f"{sizes[0]['clients']} clients" if sizes else ""
    return panels_svg(
        "Batch size and batch timeout of the embedded model",
        [
            Panel("--batch-size", pace, [series("sizes", "continuous", "batch_size", "tok_s", clients)]),
            Panel(
                "--batch-size", first, [series("sizes", "continuous", "batch_size", "ttft_p50_ms", clients)]
            ),
            Panel(
                "--batch-timeout-ms",
                pace,
                [series("timeouts", mode, "timeout_ms", "tok_s", mode) for mode in ("static", "continuous")],
            ),
            Panel(
                "--batch-timeout-ms",
                first,
                [series("timeouts", m, "timeout_ms", "ttft_p50_ms", m) for m in ("static", "continuous")],
            ),
        ],
        machine,
    )


def about(machine: Mapping[str, object]) -> str:
    return f"{machine['cpu']}, {machine['cores']} cores, torch {machine['torch']}, {machine['date']}"


def figures(kept: Mapping[str, object]) -> str:
    """A kept result as Markdown: where it comes from, and a table for each set."""
    machine, told, points = kept["machine"], kept["settings"], kept["rows"]
    assert isinstance(machine, dict) and isinstance(told, dict) and isinstance(points, list)
    rounds = f"{told['rounds']} rounds, {SHORT_ROUNDS * told['rounds']} in the second table"
    work = f"prompts of {told['prompt']} tokens, {told['new']} new"
    lines = [
        f"`python -m benchmarks.tuning` on {about(machine)}:",
        f"the embedded model over HTTP, {work}; medians of {rounds}.",
        "Other programs shared the machine; *spread* is how far the rounds were apart, over their median.",
        "",
        f"| `--batch-size`, {told['clients']} clients | {COLUMNS} |",
        "| --- | --- | --- | --- | --- |",
    ]
    for point in points:
        if point["kind"] == "sizes":
            lines.append(f"| {point['batch_size']} | {_measured(point)} |")
    lines += [
        "",
        f"| `--batch-timeout-ms`, {STATIC_SIZE} clients, batch size {STATIC_SIZE} | {COLUMNS} |",
        "| --- | --- | --- | --- | --- |",
    ]
    for point in points:
        if point["kind"] == "timeouts":
            lines.append(f"| {point['mode']}, {point['timeout_ms']:g} | {_measured(point)} |")
    return "\n".join(lines) + "\n"


def _measured(point: Mapping[str, float]) -> str:
    return (
        f"{point['tok_s']:,.0f} | {100 * point['spread']:.0f} % | {point['ttft_p50_ms']:.1f} | "
        f"{point['tpot_ms']:.2f}"
    )


def with_figures(page: str, kept: Mapping[str, object]) -> str:
    """The page with the figures of a kept result between its marks."""
    before, _, rest = page.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}{figures(kept)}{END}{after}"


def _draw(kept: Mapping[str, object]) -> None:
    machine, points = kept["machine"], kept["rows"]
    assert isinstance(machine, dict) and isinstance(points, list)
    PICTURE.write_text(picture(points, about(machine)))
    PAGE.write_text(with_figures(PAGE.read_text(), kept))


def _numbers(value: str) -> list[float]:
    return [float(part) for part in value.split(",")]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=str(ROOT / "models"))
    parser.add_argument(
        "--sizes", type=lambda value: [int(n) for n in _numbers(value)], default=[1, 2, 4, 8, 16]
    )
    parser.add_argument("--timeouts", type=_numbers, default=[0.0, 5.0, 20.0])
    parser.add_argument("--clients", type=int, default=16, help="closed loops of the first set")
    parser.add_argument("--prompt", type=int, default=32, help="tokens")
    parser.add_argument("--new", type=int, default=64, help="tokens")
    parser.add_argument("--turns", type=int, default=2, help="requests of each client in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--save", action="store_true", help="keep the result, and put it into the page")
    parser.add_argument("--draw", type=Path, metavar="FILE", help="put a kept result into the page")
    args = parser.parse_args(argv)
    if args.draw is not None:
        _draw(json.loads(args.draw.read_text()))
        return
    rows: list[dict[str, object]] = []
    for chosen in settings(args):
        rows += [asdict(point) for point in asyncio.run(measure(chosen, args))]
    print(table(list(rows[0]), [list(row.values()) for row in rows]))
    if args.save:
        told = {name: value for name, value in vars(args).items() if name not in ("save", "draw", "model")}
        path = save("tuning-cpu", rows, told)
        _draw(json.loads(path.read_text()))
        print("kept in", path.relative_to(ROOT))


if __name__ == "__main__":
    main()
