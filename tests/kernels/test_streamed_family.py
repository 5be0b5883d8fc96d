"""What kernels.probe hears of products whose weights stream."""

from dataclasses import replace

import pytest
import torch

from kernels import streamed
from kernels.product import CUBLAS, Product
from kernels.streamed_family import FEW_ROWS, MOST_CONFIGS, Streamed

QKV = Product(6144, 2048, True, "none", False)
FAMILY = Streamed(torch.device("cpu"), multiprocessors=132)
RIVALS = ("skinny", "triton", CUBLAS)


def test_refuses_other_devices_and_weights() -> None:
    assert FAMILY.refuses(QKV, torch.bfloat16, (9, 0)) is None
    assert "int8" in (FAMILY.refuses(replace(QKV, kind="int8"), torch.bfloat16, (9, 0)) or "")
    assert "9.0" in (FAMILY.refuses(QKV, torch.bfloat16, (10, 0)) or "")


def test_few_rows_are_left_to_another_unless_it_was_asked_for() -> None:
    for rows in (1, FEW_ROWS):
        assert not FAMILY.candidates(QKV, rows, RIVALS) and FAMILY.candidates(QKV, rows, ())
    assert FAMILY.candidates(QKV, FEW_ROWS + 1, RIVALS)
    assert not FAMILY.candidates(QKV, streamed.MAX_ROWS + 1, ())


def test_gates_stay_with_their_factors() -> None:
    for n in (64, 6144, 11008):
        found = FAMILY.candidates(Product(n, 2048, True, "swiglu", False), 32, RIVALS)
        assert len(found) == MOST_CONFIGS and all(config.gates for config in found)


def test_each_height_of_a_range_is_made_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    monkeypatch.setattr(streamed, "prepare", lambda k, m, config, device: made.append(m))
    FAMILY.prepare(QKV, range(9, 65), streamed.Config(1, 2, 5))
    assert made == [16, 32, 64]


def test_a_configuration_comes_back_from_its_fields() -> None:
    assert FAMILY.config({"tiles": 1, "split": 2, "stages": 5}) == streamed.Config(1, 2, 5)
    with pytest.raises(TypeError):
        FAMILY.config({"columns": 64})
