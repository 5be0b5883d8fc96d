"""Every row of docs/faults.md has its tests, and the page tells them as they are."""

import ast
import re
from collections import defaultdict
from pathlib import Path

from tests.app.server_process import ROOT

FOLDER = Path(__file__).parent
PAGE = ROOT / "docs" / "faults.md"
ROWS = range(1, 48)
SLOW = " (slow)"


def defined() -> dict[int, dict[str, bool]]:
    """Row -> its tests -> whether they are slow; each test must run inside the check of the server."""
    found: dict[int, dict[str, bool]] = defaultdict(dict)
    for file in FOLDER.glob("test_*.py"):
        tree = ast.parse(file.read_text())
        for node in tree.body:
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            match = re.match(r"test_(\d\d)_", node.name)
            if match is None:
                continue
            arguments = {argument.arg for argument in node.args.args}
            body = ast.unparse(node)
            assert "service" in arguments or "unharmed(" in body, f"{node.name} checks no server"
            marks = [ast.unparse(decorator) for decorator in node.decorator_list]
            assert not any("skip" in mark or "xfail" in mark for mark in marks), node.name
            found[int(match[1])][node.name] = "pytest.mark.slow" in marks
    return found


def told() -> dict[int, dict[str, bool]]:
    """The same, as the page has it."""
    found: dict[int, dict[str, bool]] = {}
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0].isdecimal():
            names = [name.strip() for name in cells[-1].split(",")]
            found[int(cells[0])] = {name.removesuffix(SLOW): name.endswith(SLOW) for name in names}
    return found


def test_every_row_has_a_test() -> None:
    assert sorted(defined()) == list(ROWS)


def test_the_page_names_every_test() -> None:
    assert told() == dict(defined())
