"""A bar on a terminal, lines elsewhere; and the picture of the losses."""

import io
import json
import math
import os
import pty
import termios
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training import plot
from training.plot import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Curve, curves, losses_svg, ticks
from training.progress import Progress

REPORT = {
    "pretrain": {"steps": 100, "tokens": 5_000_000, "losses": [[49, 4.5], [99, 3.25]]},
    "tune": {"steps": 60, "tokens": 600_000, "losses": [[49, 2.0], [59, 1.5]]},
}


def test_lines_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    progress = Progress("pretrain", 100, 40, stream=stream)
    for _ in range(10):
        progress.step()
    progress.report(3.25, 1_234_567.0, 0.4321, 12.4)
    progress.report(3.0, 0.0, None, None)
    progress.say("pretrain: kept")
    progress.close()
    assert stream.getvalue().splitlines() == [
        "pretrain 50/100 loss 3.2500, 1235k tokens/s, MFU 43.2%, 12 s left",
        "pretrain 50/100 loss 3.0000",
        "pretrain: kept",
    ]


def test_one_line_on_a_terminal() -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    with os.fdopen(theirs, "w") as stream:
        progress = Progress("tune", 8, 2, stream=stream)
        for _ in range(6):
            progress.step()
        progress.report(1.5, 2e6, 0.5, 3.0)
        progress.say("a line of its own")
        progress.close()
        stream.flush()
        shown = ""
        while "of its own\r\n" not in shown:
            shown += os.read(ours, 65536).decode()
    os.close(ours)
    assert "tune:  25%" in shown and "tune: 100%" in shown and "8/8" in shown
    assert shown.count("\n") <= 3, "one line that is written over"
    assert "loss 1.5000, 2000k tokens/s, MFU 50.0%" in shown
    assert "a line of its own\r\n" in shown


def numbers(text: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in text.split())]


def test_both_stages_are_drawn_one_behind_the_other() -> None:
    drawn = curves(REPORT)
    assert drawn[0].points == [(2_500_000, 4.5), (5_000_000, 3.25)]
    assert drawn[1].points == [(5_500_000, 2.0), (5_600_000, 1.5)]
    root = ElementTree.fromstring(losses_svg(drawn))
    texts = [text.text for text in root.findall("{*}text")]
    assert {"pretraining", "chat tuning", "million tokens seen", "loss, nats per token"} <= set(texts)
    lines = [numbers(line.get("points", "")) for line in root.findall("{*}polyline")]
    assert [len(line) for line in lines] == [2, 2]
    flat = [point for line in lines for point in line]
    assert [x for x, _ in flat] == sorted(x for x, _ in flat)
    assert [y for _, y in flat] == sorted(y for _, y in flat), "a falling loss goes down"
    assert all(LEFT <= x <= WIDTH - RIGHT and TOP <= y <= HEIGHT - BOTTOM for x, y in flat)


@pytest.mark.parametrize("stage", ["pretrain", "tune"])
def test_a_report_without_losses_is_an_error(stage: str) -> None:
    with pytest.raises(ValueError, match=rf"no losses of .* \({stage}\)"):
        curves(REPORT | {stage: {"steps": 0, "tokens": 0, "losses": []}})


def test_what_cannot_be_drawn_is_left_out_or_an_error() -> None:
    drawn = losses_svg([Curve("<a & b>", [(0.0, math.nan), (10.0, 3.0), (20.0, math.inf)])])
    root = ElementTree.fromstring(drawn)
    (line,) = root.findall("{*}polyline")
    assert len(numbers(line.get("points", ""))) == 1
    assert "<a & b>" in [text.text for text in root.findall("{*}text")]
    with pytest.raises(ValueError, match="no finite loss"):
        losses_svg([Curve("a", [(1.0, math.nan)])])


@given(low=st.floats(-1e9, 1e9), span=st.floats(0, 1e9))
def test_ticks_are_few_and_around_everything(low: float, span: float) -> None:
    found = ticks(low, low + span)
    room = 1e-6 * max(1.0, abs(low), span)
    assert 2 <= len(found) <= 9
    assert found[0] <= low + room and found[-1] >= low + span - room
    assert all(one < two for one, two in pairwise(found))


def test_the_picture_of_a_report(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(json.dumps(REPORT))
    plot.main(["--report", str(tmp_path / "report.json"), "--out", str(tmp_path / "losses.svg")])
    assert (tmp_path / "losses.svg").read_text() == losses_svg(curves(REPORT))
