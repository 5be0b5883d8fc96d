"""What the HTTP layer costs and holds: `python -m benchmarks.http [PART ...] [--save]`.

Parts: events (processor time of the front end per streamed event at 32 and 256 streams, and the delay from
the moment a token was due to the client's read of it), idle (memory of 1,000 silent streams, and what they do
to 32 others), health (/health while prompts of 1,000 tokens are prefilled), goodput (0.5 to 3 times the
capacity in an open loop), soak (minutes of mixed load, and what is left afterwards).

The first, second and fourth run over an engine that is a clock (benchmarks/pulse.py), the others over the
embedded model. All of it shares the machine's cores with its clients.
"""

import argparse
import asyncio
from collections.abc import Sequence

import uvloop

from benchmarks.events import loaded
from benchmarks.http.goodput import goodput
from benchmarks.http.health import health
from benchmarks.http.idle import idle
from benchmarks.http.soak import soak
from benchmarks.report import save, table

PARTS = ("events", "idle", "health", "goodput", "soak")


async def events(seconds: float, rounds: int) -> list[dict[str, object]]:
    """The round with the least processor time of each load."""
    rows: list[dict[str, object]] = []
    for streams, rate in ((32, 500.0), (256, 157.0)):
        runs = [await loaded(streams, rate, 1, seconds) for _ in range(rounds)]
        rows.append({"case": "events", **min(runs, key=lambda run: run["us_per_event"])})
    return rows


def show(rows: Sequence[dict[str, object]]) -> None:
    if not rows:
        return
    names = [name for name in rows[0] if name not in ("case", "flags")]
    print(f"\n{rows[0]['case']}")
    print(table(names, [[row.get(name, "") for name in names] for row in rows]), flush=True)


async def run(options: argparse.Namespace) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []

    def keep(new: list[dict[str, object]]) -> None:
        for case in dict.fromkeys(str(row["case"]) for row in new):
            show([row for row in new if row["case"] == case])
        rows.extend(new)

    if "events" in options.parts:
        keep(await events(options.seconds, options.rounds))
    if "idle" in options.parts:
        keep([await idle(options.streams, options.seconds)])
    if "health" in options.parts:
        keep([await health(options.model, options.seconds)])
    if "goodput" in options.parts:
        keep(await goodput(2 * options.seconds, options.flags.split()))
    if "soak" in options.parts:
        keep(await soak(options.model, 60 * options.minutes))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="what the HTTP layer costs and holds")
    parser.add_argument("parts", nargs="*", default=[], metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of one measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--streams", type=int, default=1000, help="idle ones")
    parser.add_argument("--minutes", type=float, default=3.0, help="length of the soak")
    parser.add_argument("--model", default="models")
    parser.add_argument("--flags", default="", help="of the server whose goodput is measured")
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()
    unknown = [part for part in options.parts if part not in PARTS]
    if unknown:
        parser.error(f"unknown part {unknown[0]}; there are {', '.join(PARTS)}")
    options.parts = options.parts or list(PARTS)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        rows = runner.run(run(options))
    if options.save:
        settings = {name: value for name, value in vars(options).items() if name != "save"}
        print(save("http", rows, settings))


if __name__ == "__main__":
    main()
