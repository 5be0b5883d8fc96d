"""docs/tuning.md has the figures of the kept result, and the picture is drawn from them."""

import json
import xml.etree.ElementTree as ElementTree

import pytest

from benchmarks.plot import Panel, Series, panels_svg
from benchmarks.report import RESULTS
from benchmarks.tuning import PAGE, PICTURE, about, picture, with_figures

KEPT = json.loads(max(RESULTS.glob("tuning-cpu-*.json")).read_text())


def test_page_and_picture_are_those_of_the_newest_result() -> None:
    assert with_figures(PAGE.read_text(), KEPT) == PAGE.read_text(), "python -m benchmarks.tuning --draw FILE"
    assert picture(KEPT["rows"], about(KEPT["machine"])) == PICTURE.read_text()


def test_a_panel_shows_every_point_in_its_place() -> None:
    points = [(1.0, 10.0), (2.0, 30.0), (16.0, 20.0)]
    panel = Panel("across <&>", "up", [Series("one", points), Series("two", points[:1])])
    root = ElementTree.fromstring(panels_svg("a title", [panel, panel, panel], "a machine"))
    dots = [node for node in root.iter() if node.tag.endswith("circle")]
    assert len(dots) == 3 * (len(points) + 1)
    across = [float(dot.attrib["cx"]) for dot in dots[:3]]
    up = [float(dot.attrib["cy"]) for dot in dots[:3]]
    assert across[1] - across[0] == pytest.approx(across[2] - across[1], abs=0.2)  # places, not values
    assert up[0] > up[2] > up[1]  # more is higher
    with pytest.raises(ValueError, match="nothing to draw"):
        panels_svg("a title", [Panel("x", "y", [])], "")
