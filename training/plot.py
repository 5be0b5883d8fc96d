"""A picture of the losses beside the model card: `python -m training.plot --report REPORT --out FILE.svg`."""

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from training.files import ReadError, WriteError, read_table, write_text

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 64, 20, 40, 56
STAGES = {"pretrain": "pretraining", "tune": "chat tuning"}
COLOURS = ("#1f5fa8", "#b4471a", "#2c7a3d", "#7a3d8f")
Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Curve:
    """name: for the legend. points: tokens seen and the loss in nats, in the order in which they came."""

    name: str
    points: Sequence[Point]


def curves(report: Mapping[str, object]) -> list[Curve]:
    """Both stages of a run's report, one behind the other. Raises ValueError where one has no losses."""
    found: list[Curve] = []
    before = 0.0
    for stage, name in STAGES.items():
        measured = report.get(stage)
        if not isinstance(measured, Mapping) or not measured.get("losses"):
            raise ValueError(f"the report has no losses of {name} ({stage})")
        per_step = measured["tokens"] / measured["steps"]
        points = [(before + (step + 1) * per_step, float(loss)) for step, loss in measured["losses"]]
        found.append(Curve(name, points))
        before += measured["tokens"]
    return found


def losses_svg(drawn: Sequence[Curve]) -> str:
    """The curves over a common axis of tokens. Raises ValueError where no point can be drawn."""
    kept = [Curve(c.name, [p for p in c.points if all(map(math.isfinite, p))]) for c in drawn]
    points = [point for curve in kept for point in curve.points]
    if not points:
        raise ValueError("there is no finite loss to draw")
    across = ticks(0.0, max(x for x, _ in points))
    up = ticks(min(y for _, y in points), max(y for _, y in points))
    scale, unit = (1e6, "million ") if across[-1] >= 1e6 else (1.0, "")
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
        f'height="{HEIGHT}" role="img" aria-label="Training loss over tokens" font-family="sans-serif" '
        'font-size="12" fill="#333">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
    ]
    for value in across:
        x = _x(value, across)
        parts.append(f'<path d="M{x} {TOP}V{HEIGHT - BOTTOM}" stroke="#e4e4e4"/>')
        parts.append(_text(x, HEIGHT - BOTTOM + 18, number(value / scale), "middle"))
    for value in up:
        y = _y(value, up)
        parts.append(f'<path d="M{LEFT} {y}H{WIDTH - RIGHT}" stroke="#e4e4e4"/>')
        parts.append(_text(LEFT - 8, y + 4, number(value), "end"))
    frame = f"M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}"
    parts.append(f'<path d="{frame}" fill="none" stroke="#333"/>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(_text(middle, HEIGHT - 14, f"{unit}tokens seen", "middle"))
    parts.append(
        f'<text transform="translate(18 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)" '
        'text-anchor="middle">loss, nats per token</text>'
    )
    for at, curve in enumerate(kept):
        colour = COLOURS[at % len(COLOURS)]
        line = " ".join(f"{_x(x, across)},{_y(y, up)}" for x, y in curve.points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        x = LEFT + 8 + 150 * at
        parts.append(f'<path d="M{x} {TOP - 18}h22" stroke="{colour}" stroke-width="2"/>')
        parts.append(_text(x + 28, TOP - 14, curve.name, "start"))
    return "\n".join([*parts, "</svg>"]) + "\n"


def ticks(low: float, high: float) -> list[float]:
    """Round numbers, evenly spaced, from at most `low` to at least `high`."""
    span = max(high - low, 1e-6 * max(abs(low), abs(high)))  # of nearly equal numbers a little more
    span = span if span > 1e-9 else 1.0
    step = 10.0 ** math.floor(math.log10(span / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (factor * step) <= 6)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * at for at in range(first, max(last, first + 1) + 1)]


def number(value: float) -> str:
    return f"{value:.6g}"


def _x(value: float, across: Sequence[float]) -> float:
    return round(LEFT + (value - across[0]) / (across[-1] - across[0]) * (WIDTH - LEFT - RIGHT), 1)


def _y(value: float, up: Sequence[float]) -> float:
    return round(HEIGHT - BOTTOM - (value - up[0]) / (up[-1] - up[0]) * (HEIGHT - TOP - BOTTOM), 1)


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{round(x, 1)}" y="{round(y, 1)}" text-anchor="{anchor}">{escape(text)}</text>'


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.plot", description=__doc__)
    parser.add_argument("--report", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    try:
        write_text(args.out, losses_svg(curves(read_table(args.report))))
    except ValueError as error:
        print(f"error: {args.report}: {error}", file=sys.stderr)
        return 1
    except (ReadError, WriteError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
