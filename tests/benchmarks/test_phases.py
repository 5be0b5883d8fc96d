"""Kernels of decode steps, told apart by their names and their places."""

import random

import pytest

from benchmarks import decode
from benchmarks.phases import Ran, by_phase, kind_of

# Of a step of two layers by the network's own kernels, with what each takes.
STEP = (
    ("_prepare_kernel", 1.0, "state"),
    ("_gather_kernel", 2.0, "embed"),
    ("_plan_kernel", 3.0, "plan"),
    ("skinny", 10.0, "qkv"),
    *(
        ("_rotate_and_store_kernel", 4.0, "rotate"),
        ("decode_kernel", 5.0, "attention"),
        ("skinny", 20.0, "o"),
        ("skinny", 30.0, "mlp in"),
        ("skinny", 40.0, "mlp out"),
        ("skinny", 10.0, "qkv"),
    ),
    *(
        ("_rotate_and_store_kernel", 4.0, "rotate"),
        ("cluster_decode", 5.0, "attention"),
        ("skinny", 20.0, "o"),
        ("skinny", 30.0, "mlp in"),
        ("skinny", 40.0, "mlp out"),
    ),
    ("_gather_kernel", 2.0, "embed"),
    ("nvjet_tst_64x8_64x16_4x1_v_bz_TNT", 50.0, "head"),
    ("groups_kernel", 6.0, "sample"),
    ("finish_kernel", 7.0, "sample"),
    ("_finish_kernel", 1.0, "state"),
)


def ran(step: tuple[tuple[str, float, str], ...], steps: int) -> list[Ran]:
    """In an order that says nothing."""
    kernels = [Ran(name, float(place), us) for place, (name, us, _) in enumerate(step * steps)]
    random.Random(0).shuffle(kernels)
    return kernels


def test_every_kernel_counts_for_its_phase() -> None:
    expected: dict[str, float] = {}
    for _, us, phase in STEP:
        expected[phase] = expected.get(phase, 0.0) + us
    found = by_phase(ran(STEP, 3), 3)
    assert found == pytest.approx(expected)
    assert list(found.values()) == sorted(found.values(), reverse=True)


def test_attention_that_rotates_stands_where_two_kernels_do() -> None:
    step = tuple(part for part in STEP if part[2] != "rotate")
    expected = by_phase(ran(STEP, 2), 2)
    del expected["rotate"]
    assert by_phase(ran(step, 2), 2) == pytest.approx(expected)


def test_products_of_several_kernels_are_not_told_apart() -> None:
    more = tuple(
        part
        for name, us, phase in STEP
        for part in (
            (("_rms_norm_kernel", 0.5, phase), (name, us, phase)) if phase == "qkv" else [(name, us, phase)]
        )
    )
    found = by_phase(ran(more, 2), 2)
    assert found["qkv"] == 10.5  # the first layer's stands alone
    assert found["products"] == 20 + 30 + 40 + 10.5
    assert sum(found.values()) == pytest.approx(sum(us for _, us, _ in more))


def test_kernels_of_other_paths_name_their_phase() -> None:
    assert kind_of("decode_mlp_in") == "mlp in"
    assert kind_of("decode_attention(Params)") == "attention"
    assert kind_of("void something<int>(float*)") == "void something"


@pytest.mark.parametrize(
    "argv",
    [["--path", "fastest"], ["--path", "graph", "--workload", "one"], ["--path", "graph", "--device", "cpu"]],
)
def test_a_path_that_cannot_be_measured_is_an_error(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        decode.arguments(argv)
    assert ended.value.code == 2 and "--path" in capsys.readouterr().err
