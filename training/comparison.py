"""Tables of the card: the first embedded model beside this one, by the same items and rules, and the models
that were tried on equal tokens.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import cast

from training.evaluate.loss import MEASURE

Table = Mapping[str, object]
_INTRO = """
## Beside the first embedded model
Both measured by `python -m training.evaluate`: the same items and the same rules. The items are held out by
document: no book, article, story passage or quiz question that one comes from is in this model's training
data (items {digest}). The first model was trained before that rule, which may flatter it in reading.

Multiple choice takes the likeliest option (chance in brackets). A short answer counts if it equals an
accepted one, case, punctuation and articles aside; beside it stands the mean overlap of words (F1).
Calculator and spelling questions come in forms that training never uses; the last number, or the letters,
must be right.

These sets guided the work on this model. The wrong answers of earlier runs were read, the data got more
forms of the kinds that failed (never the prompts themselves), and of three tunings the one that ships was
chosen with these figures in view. So for this model they are figures of a development set, better than those
on questions that nobody has looked at would be.

| | first model | this model |
| --- | --- | --- |
"""
_TRIED = """
## Which model
`python -m training.ablation` pretrained these ({device}, torch {torch},
{date}); all are of about the same size in int8, and those of one table saw the same tokens in the same order.
Held-out bits per byte, lower is better; reading is the answers to questions about a story that stands in the
prompt. What a name does not say is as in the first model's recipe.
"""
_OTHERWISE = """
These figures are of another measure than those above, and compare with each other alone: {loss}.
"""
_BUDGET = """
After {tokens:.0f} M tokens:

| | parameters | prose | chat | reading |
| --- | --- | --- | --- | --- |
"""


def compared(report: Table, config: Table, first: Table) -> str:
    """The section as markdown; a row for everything that this report has."""
    text = _INTRO.format(digest=str(report.get("items_digest", "none"))[:12])
    for name, before, now in _rows(report, config, first):
        text += f"| {name} | {before} | {now} |\n"
    return text


def tried(ablation: Table) -> str:
    """The section about other architectures and recipes as markdown, a table for each number of tokens."""
    text = _TRIED.format(**{name: ablation[name] for name in ("device", "torch", "date")})
    if ablation["loss"] != MEASURE:
        text += _OTHERWISE.format(loss=ablation["loss"])
    rows = cast(Sequence[Table], ablation["rows"])
    for tokens in sorted({cast(int, row["tokens"]) for row in rows}):
        text += _BUDGET.format(tokens=tokens / 1e6)
        for row in rows:
            if row["tokens"] != tokens:
                continue
            bits = cast(Mapping[str, float], row["bits_per_byte"])
            text += (
                f"| {row['variant']} | {_millions(row['parameters'])} | "
                f"{bits['prose']:.4f} | {bits['chat']:.4f} | {bits['chat/story_qa']:.4f} |\n"
            )
    return text


def parameters(config: Table) -> int:
    """As the description has them; older ones do not, and are of the first generation."""
    if "parameters" in config:
        return cast(int, config["parameters"])
    shape = cast(Mapping[str, int], config["model_config"])
    return 2 * shape["vocab_size"] * shape["n_embd"] + 12 * shape["n_layer"] * shape["n_embd"] ** 2


def count(found: Table) -> str:
    """Right answers of how many."""
    return f"{found['right']}/{found['of']}"


def share(value: float) -> str:
    return f"{value:.1%}"


def _rows(report: Table, config: Table, first: Table) -> Iterator[tuple[str, str, str]]:
    yield "parameters", _millions(first.get("parameters")), _millions(parameters(config))
    for name in _part(report, "bits_per_byte"):
        before, now = (_part(table, "bits_per_byte").get(name) for table in (first, report))
        yield f"bits per byte, {name}", _bits(before), _bits(now)
    for name, found in _part(report, "choices").items():
        chance = f" ({1 / cast(int, cast(Table, found)['options']):.0%})" if cast(Table, found)["of"] else ""
        yield f"multiple choice, {name}{chance}", *_pair(first, report, "choices", name, _percent)
    for name in _part(report, "short_answers"):
        yield f"short answers, {name}", *_pair(first, report, "short_answers", name, _overlap)
    for part, label in (("calculator", "calculator, "), ("spelling", ""), ("required", "")):
        for name in _part(report, part):
            yield label + name, *_pair(first, report, part, name, _tool if part == "calculator" else count)
    if "fixed_passed" in report:
        passed = [str(table.get("fixed_passed", "-")) for table in (first, report)]
        yield "fixed prompts, answer of the expected kind", passed[0], passed[1]
    for name in _part(report, "repetition"):
        ended = _pair(first, report, "repetition", name, _ended)
        repeated = _pair(first, report, "repetition", name, _repeated)
        yield f"{name} answers that end by themselves", *ended
        yield f"{name} answers, repeated runs of four words", *repeated


def _part(table: Table, name: str) -> Mapping[str, object]:
    return cast(Mapping[str, object], table.get(name, {}))


def _pair(
    first: Table, report: Table, part: str, name: str, shown: Callable[[Table], str]
) -> tuple[str, str]:
    """Both models' cells; a dash where the first has none."""
    found = [cast(Table | None, _part(table, part).get(name)) for table in (first, report)]
    before, now = ("-" if value is None else shown(value) for value in found)
    return before, now


def _millions(value: object) -> str:
    return f"{value / 1e6:.1f} M" if isinstance(value, int) else "-"


def _bits(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else "-"


def _percent(found: Table) -> str:
    right, of = cast(int, found["right"]), cast(int, found["of"])
    return f"{count(found)}, {right / of:.0%}" if of else count(found)


def _overlap(found: Table) -> str:
    return f"{count(found)}, F1 {cast(float, found['overlap']):.3f}"


def _tool(found: Table) -> str:
    return f"{count(found)}, {found['used_tool']} by calculator"


def _ended(found: Table) -> str:
    return share(cast(float, found["ended"]))


def _repeated(found: Table) -> str:
    return share(cast(float, found["repeated_4grams"]))
