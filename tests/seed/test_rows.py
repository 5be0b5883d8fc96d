"""Every row of the seed's checklist has a test that is named after it."""

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
ROWS = {
    *("g0", "c1", "c2", "x1", "x2"),
    *(f"s{number}" for number in range(1, 6)),
    *(f"t{number}" for number in range(1, 12)),
    *(f"f{number}" for number in range(1, 15)),
    *(f"u{number}" for number in range(1, 5)),
    *(f"k{number}" for number in range(1, 4)),
    *(f"b{number}" for number in range(1, 11)),
    *(f"w{number}" for number in range(1, 5)),
}


def rows_of(name: str) -> set[str]:
    """test_f8_to_f10_what: f8, f9, f10; test_f12_f13_what: both."""
    found: set[str] = set()
    parts = name.split("_")[1:]
    for place, part in enumerate(parts):
        if part == "to" and place and found:
            kind, first, last = parts[place - 1][0], parts[place - 1][1:], parts[place + 1][1:]
            found |= {f"{kind}{number}" for number in range(int(first), int(last) + 1)}
        elif re.fullmatch(r"[gfukcbwxst]\d+", part):
            found.add(part)
        else:
            break
    return found


def test_names() -> None:
    assert rows_of("test_f8_to_f10_what_a_gpu_says") == {"f8", "f9", "f10"}
    assert rows_of("test_s3_u3_the_command_lines") == {"s3", "u3"}
    assert rows_of("test_the_row_f1") == set()


def test_every_row_has_a_test() -> None:
    names = {
        name
        for file in TESTS.rglob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", file.read_text(), re.MULTILINE)
    }
    assert sorted(ROWS - set().union(*map(rows_of, names))) == []
