"""The card: what a report has is in it, what it lacks is left out, and failures are said."""

import json
from pathlib import Path

import pytest

from training.ablation import merged, variants
from training.card import ABLATION, FIRST_MODEL, MOST_LOST, PLOT_FILE, card, write
from training.comparison import parameters, tried
from training.evaluate.loss import MEASURE

SHIPPED = Path(__file__).parents[2] / "models"
CONFIG: dict[str, object] = {
    "parameters": 38_000_000,
    "model_config": {
        "sequence_len": 1024, "vocab_size": 8192, "n_layer": 8, "n_head": 4, "n_kv_head": 1, "n_embd": 512,
        "generation": "G5",
    },
    "sampling_defaults": {"temperature": 0.7, "top_k": 40, "repetition_penalty": 1.1},
}  # fmt: skip


@pytest.fixture(scope="module")
def first() -> dict[str, object]:
    return json.loads(FIRST_MODEL.read_text("utf-8"))


def test_the_first_models_figures_are_whole(first: dict[str, object]) -> None:
    assert first["parameters"] == parameters(
        {"model_config": {"vocab_size": 8192, "n_embd": 512, "n_layer": 10}}
    )
    for part in (
        "bits_per_byte",
        "choices",
        "short_answers",
        "required",
        "calculator",
        "spelling",
        "repetition",
    ):
        assert first[part], part


def test_both_models_stand_side_by_side(first: dict[str, object]) -> None:
    """The first model's report beside itself has equal cells; a changed figure changes one cell."""
    text = card(first, CONFIG | {"parameters": first["parameters"]}, first, 30.0)
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    compared = [row for row in rows if len(row) == 3 and row[0] not in ("---",) and "first model" not in row]
    compared = [row for row in compared if row[2] not in ("pass", "**fail**")]
    assert len(compared) > 40 and all(row[1] == row[2] for row in compared)
    better = first | {"spelling": {"letters counted": {"right": 39, "of": 40, "used_tool": 0}}}
    before = first["spelling"]["letters counted"]["right"]  # type: ignore[index]
    assert f"| letters counted | {before}/40 | 39/40 |" in card(better, CONFIG, first, 30.0)


@pytest.mark.parametrize("missing", ["required", "bits_per_byte", "choices", "repetition", "served_loss"])
def test_what_is_missing_is_left_out(first: dict[str, object], missing: str) -> None:
    report = {name: value for name, value in first.items() if name != missing}
    whole, less = (card(one, CONFIG, first, 30.0) for one in (first, report))
    assert len(less) < len(whole) and less.startswith("# Fastpath")


@pytest.mark.parametrize("change", [0.5, 0.999, 1.001, 3.0])
def test_rounding_is_judged_by_its_limit(first: dict[str, object], change: float) -> None:
    report = dict(first)
    report["bits_per_byte_unrounded"] = {"prose": 1.0, "chat": 1.0}
    report["bits_per_byte"] = {"prose": 1.0, "chat": 1 + change * MOST_LOST}
    text = card(report, CONFIG, first, 30.0)
    assert ("within the 0.5% allowed" in text) == (change <= 1) != ("**more than** the" in text)


def test_leaks_and_failures_are_said(first: dict[str, object]) -> None:
    leaks: dict[str, object] = {
        "prompts": {"fixed prompts": 40}, "characters_read": 5_000_000, "found": [],
        "left_out": {"wiki: document": 7, "talk: prompt": 2},
    }  # fmt: skip
    text = card(first | {"leaks": leaks}, CONFIG, first, 30.0)
    assert "none occurs" in text and "7 items that share" in text and "2 that hold" in text
    text = card(first | {"leaks": leaks | {"found": ["wiki: who are you"]}}, CONFIG, first, 30.0)
    assert "**1 occur**: wiki: who are you" in text and "none occurs" not in text
    failed = {"its own name": {"right": 1, "of": 2, "used_tool": 0, "wrong": [["Who?", "I am\nBob."]]}}
    text = card(first | {"required": failed}, CONFIG, first, 30.0)
    assert "| its own name | 1/2 | **fail** |" in text and "- Who? — I am / Bob." in text


def test_the_plot_is_shown_where_there_is_one(first: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "model.safetensors.index.json").write_text('{"metadata": {"total_size": 1048576}}')
    (tmp_path / "report.json").write_text("{}")
    write(tmp_path / "report.json", tmp_path)
    assert PLOT_FILE not in (tmp_path / "README.md").read_text()
    assert "1.0 MiB in all" in (tmp_path / "README.md").read_text()
    (tmp_path / PLOT_FILE).write_text("<svg/>")
    write(tmp_path / "report.json", tmp_path)
    assert f"]({PLOT_FILE})" in (tmp_path / "README.md").read_text()


def test_the_shipped_card_is_that_of_the_shipped_report(tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors.index.json", PLOT_FILE):
        (tmp_path / name).write_bytes((SHIPPED / name).read_bytes())
    write(SHIPPED / "report.json", tmp_path)
    assert (tmp_path / "README.md").read_text("utf-8") == (SHIPPED / "README.md").read_text("utf-8")


def test_models_stand_beside_those_of_as_many_tokens() -> None:
    """Every row once, in the table of its tokens, by a name that the command knows."""
    ablation = json.loads(ABLATION.read_text("utf-8"))
    first, *tables = tried(ablation).split("\nAfter ")
    assert "| G" not in first
    budgets = sorted({row["tokens"] for row in ablation["rows"]})
    assert len(tables) == len(budgets)
    for tokens, part in zip(budgets, tables, strict=True):
        assert part.startswith(f"{tokens / 1e6:.0f} M tokens:")
        names = [line.split(" | ")[0][2:] for line in part.splitlines() if line.startswith("| G")]
        assert names == [row["variant"] for row in ablation["rows"] if row["tokens"] == tokens]
        assert set(names) <= variants().keys()


def test_figures_of_another_measure_are_said_to_be_such() -> None:
    ablation = json.loads(ABLATION.read_text("utf-8"))
    assert "of another measure" not in tried(ablation | {"loss": MEASURE})
    assert "compare with each other alone: by guess." in tried(ablation | {"loss": "by guess"})


def test_a_new_row_takes_the_place_of_its_own_alone() -> None:
    rows = [{"variant": name, "tokens": tokens, "prose": 1.0} for name in "ab" for tokens in (1, 2)]
    assert merged(rows, rows[0] | {"prose": 0.5}) == [*rows[1:], rows[0] | {"prose": 0.5}]
    other = {"variant": "c", "tokens": 1, "prose": 0.7}
    assert merged(rows, other) == [*rows, other]
