"""Small charts as SVG: panels of curves over even places, one for each value, because settings double."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from training.plot import COLOURS, number, ticks

WIDTH, HEIGHT = 420, 250
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 36, 48
HEAD = 30


@dataclass(frozen=True, slots=True)
class Series:
    """name: for the legend. points: in the order in which they stand from left to right."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Panel:
    """across, up: what the axes are."""

    across: str
    up: str
    series: Sequence[Series]


def panels_svg(title: str, panels: Sequence[Panel], about: str) -> str:
    """Two panels in a row, from top to bottom, each with its own axes; the vertical ones begin at zero.

    Raises ValueError for a panel without a point.
    """
    rows = -(-len(panels) // 2)
    width, height = 2 * WIDTH, HEAD + rows * HEIGHT + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" aria-label="{escape(title)}" font-family="sans-serif" '
        'font-size="12" fill="#333">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        _text(16, 22, title, "start", ' font-size="15" font-weight="bold"'),
    ]
    for at, panel in enumerate(panels):
        parts.append(f'<g transform="translate({at % 2 * WIDTH} {HEAD + at // 2 * HEIGHT})">')
        parts += [*_panel(panel), "</g>"]
    parts.append(_text(width - 16, height - 6, about, "end", ' fill="#777"'))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(panel: Panel) -> list[str]:
    places = sorted({x for series in panel.series for x, _ in series.points})
    if not places:
        raise ValueError(f"there is nothing to draw over {panel.across}")
    up = ticks(0.0, max(y for series in panel.series for _, y in series.points))
    bottom = HEIGHT - BOTTOM
    width = WIDTH - LEFT - RIGHT

    def x(value: float) -> float:
        return round(LEFT + (places.index(value) + 0.5) / len(places) * width, 1)

    def y(value: float) -> float:
        return round(bottom - value / up[-1] * (bottom - TOP), 1)

    parts = [_text(LEFT, 16, panel.up, "start", ' font-weight="bold"')]
    for value in up:
        parts.append(f'<path d="M{LEFT} {y(value)}h{width}" stroke="#e4e4e4"/>')
        parts.append(_text(LEFT - 8, y(value) + 4, number(value), "end"))
    parts += [_text(x(value), bottom + 18, number(value), "middle") for value in places]
    parts.append(f'<path d="M{LEFT} {TOP}V{bottom}h{width}" fill="none" stroke="#333"/>')
    parts.append(_text(LEFT + width / 2, HEIGHT - 10, panel.across, "middle"))
    for at, series in enumerate(panel.series):
        colour = COLOURS[at % len(COLOURS)]
        line = " ".join(f"{x(across)},{y(height)}" for across, height in series.points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x(a)}" cy="{y(h)}" r="3" fill="{colour}"/>' for a, h in series.points]
        left = LEFT + 8 + 110 * at
        parts.append(f'<path d="M{left} {TOP - 8}h18" stroke="{colour}" stroke-width="2"/>')
        parts.append(_text(left + 24, TOP - 4, series.name, "start"))
    return parts


def _text(x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    return f'<text x="{round(x, 1)}" y="{round(y, 1)}" text-anchor="{anchor}"{more}>{escape(text)}</text>'
