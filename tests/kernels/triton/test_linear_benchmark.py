"""What the benchmark of products of some dozens of rows compares, with a clock that counts calls."""

from collections.abc import Callable

import pytest
import torch

from benchmarks import linear_medium
from benchmarks.linear_medium import Medium
from benchmarks.linear_shapes import EPS, Shape

SHAPES = [Shape("behind a norm", 128, 256, EPS, "relu2"), Shape("alone", 128, 256, accumulate=True)]


@pytest.mark.skipif(torch.cuda.is_available(), reason="the program itself runs there")
def test_every_kind_has_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """The best of each kind, right where it is checked; each also behind a product of the library."""
    for name, value in (("ROWS", (32,)), ("ROTATION", 1 << 16), ("MOST", 4)):
        monkeypatch.setattr(linear_medium, name, value)

    def timer(body: Callable[[], None]) -> float:
        body()
        return 1e-6

    run = Medium(torch.device("cpu"), timer, 1.0, float("inf"))
    run.measure(SHAPES)
    failed = [row for row in run.rows if "failed" in row]
    assert not failed
    lines = [(line[0], line[2]) for line in run.lines]
    assert lines == [
        ("behind a norm", "cublas"),
        ("behind a norm", "norm + triton"),
        ("behind a norm", "norm inside"),
        ("alone", "cublas"),
        ("alone", "triton"),
    ]
    # The clock does not know of the product in front: nothing is added to it.
    assert {line[4] for line in run.lines} == {"0.00"}
    for row in run.rows:
        assert str(row.get("config")).endswith("norm inside") == str(row["kind"]).startswith("norm inside")
