"""What the chat page costs a browser: `python -m benchmarks.page [PART ...] [--save | --out FILE]`.

Parts: sizes (what a first visit loads), stream (main-thread time of a 24 kB answer in 6,000 pieces, drawn
without a network), chat-stream (the same answer through the whole page), open (a conversation of 500
messages), lighthouse (its scores). sizes and lighthouse look at the real server, the others at the page's
files behind a server that answers by script. Everything shares the machine's cores with the browser.
"""

import argparse
import operator
from collections.abc import Callable
from pathlib import Path

from benchmarks.page import chat_stream, lighthouse, opening, sizes, stream
from benchmarks.page.browser import chromium
from benchmarks.page.serving import real_server, scripted_server
from benchmarks.report import save, table

PARTS = ("sizes", "stream", "chat-stream", "open", "lighthouse")
Compare = Callable[[float, float], bool]
# part, its figure, what it is called, the goal
GOALS: tuple[tuple[str, str, str, str, float], ...] = (
    ("sizes", "gzipped_kb", "first visit, gzipped kB", "<=", 120),
    ("stream", "total_ms", "24 kB answer in 6,000 pieces, main thread ms", "<=", 60),
    ("open", "median_ms", "500 messages opened, ms", "<", 300),
    ("lighthouse", "performance", "Lighthouse performance", ">=", 95),
    ("lighthouse", "accessibility", "Lighthouse accessibility", ">=", 100),
    ("lighthouse", "best-practices", "Lighthouse best practices", ">=", 100),
)
COMPARE: dict[str, Compare] = {"<=": operator.le, "<": operator.lt, ">=": operator.ge}


Row = dict[str, object]


def verdicts(rows: list[Row]) -> list[Row]:
    """Each goal beside what was measured; none for a part that was not run."""
    found = []
    for part, key, name, sign, goal in GOALS:
        row = next((row for row in rows if row["case"] == part), None)
        if row is None:
            continue
        if "skipped" in row:
            found.append({"what": name, "goal": f"{sign} {goal:g}", "is": "skipped", "met": row["skipped"]})
            continue
        value = float(str(row[key]))
        met = "met" if COMPARE[sign](value, goal) else "MISSED"
        found.append({"what": name, "goal": f"{sign} {goal:g}", "is": f"{value:,.1f}", "met": met})
    return found


def show(row: Row) -> None:
    """The figures of one part, then its lists."""
    print(f"\n{row['case']}")
    plain = {name: value for name, value in row.items() if not isinstance(value, list) and name != "case"}
    print(table(["", ""], [[name, value] for name, value in plain.items()]))
    for value in row.values():
        if isinstance(value, list) and value:
            print(table(list(value[0]), [list(item.values()) for item in value]))
    print(flush=True)


def run(options: argparse.Namespace) -> list[Row]:
    rows: list[Row] = []

    def keep(case: str, figures: Row) -> None:
        rows.append({"case": case, **figures})
        show(rows[-1])

    with chromium() as browser, scripted_server() as scripted:
        rows.append({"case": "browser", "version": browser.version})
        if "stream" in options.parts:
            keep("stream", stream.measure(scripted.url, browser))
        if "chat-stream" in options.parts:
            keep("chat-stream", chat_stream.measure(scripted, browser))
        if "open" in options.parts:
            keep("open", opening.measure(scripted.url, browser, options.repeats))
    if {"sizes", "lighthouse"} & set(options.parts):
        with real_server(options.model) as url:
            if "sizes" in options.parts:
                with chromium() as browser:
                    keep("sizes", sizes.measure(url, browser))
            if "lighthouse" in options.parts:
                keep("lighthouse", lighthouse.measure(url, options.lighthouse, options.lighthouse_runs))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="what the chat page costs a browser")
    parser.add_argument("parts", nargs="*", default=[], metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--model", default="models")
    parser.add_argument("--repeats", type=int, default=10, help="how often the long conversation is opened")
    parser.add_argument("--lighthouse", default=None, metavar="PATH", help="of the program; else npx gets it")
    parser.add_argument("--lighthouse-runs", type=int, default=3, help="the median counts")
    parser.add_argument("--out", type=Path, default=None, metavar="FILE", help="where the result is written")
    parser.add_argument("--save", action="store_true", help="writes it to benchmarks/results")
    options = parser.parse_args()
    unknown = [part for part in options.parts if part not in PARTS]
    if unknown:
        parser.error(f"unknown part {unknown[0]}; there are {', '.join(PARTS)}")
    options.parts = options.parts or list(PARTS)
    rows = run(options)
    print(table(["what", "goal", "is", "met"], [list(row.values()) for row in verdicts(rows)]))
    if options.save or options.out is not None:
        settings = {"parts": options.parts, "repeats": options.repeats, "model": options.model}
        print(save("page", [*rows, *verdicts(rows)], settings, out=options.out))


if __name__ == "__main__":
    main()
