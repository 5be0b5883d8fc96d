"""The tables of docs/settings.md from the flag table: `python -m benchmarks.settings_table` writes them."""

from pathlib import Path

from app.chat.settings import command_line as chat_line
from app.settings.config import Config
from app.settings.options import Entry, table

DOCS = Path(__file__).parents[1] / "docs" / "settings.md"
START, END = "<!-- settings -->\n", "<!-- end of settings -->"


def row(entry: Entry) -> str:
    """One setting: how it is called, its default, what it does."""
    flag = entry.flag
    value = flag.metavar or ("" if flag.is_switch else entry.field.rsplit("_", 1)[-1].upper())
    value += " ..." if flag.is_many else ""
    names = [f"`{entry.on_strings[0]}{' ' * bool(value)}{value}`"]
    names += [f"`{name}`" for name in entry.on_strings[1:]]
    names += [f"`{name}`" for name in entry.off_strings]
    if entry.default in (None, ()):
        default = flag.shown or "-"
    elif flag.is_switch:
        default = "on" if entry.default else "off"
    else:
        default = f"`{entry.default}`" if entry.default != "" else "none"
    about = flag.help.replace("|", "\\|")
    return f"| {', '.join(names)} | `{entry.env}` | {default} | {about} |"


def tables() -> str:
    """All sections, the terminal client's own behind them."""
    sections: dict[str, list[Entry]] = {}
    for entry in table(Config()):
        sections.setdefault(entry.section, []).append(entry)
    sections["chat"] = [entry for entry in chat_line().entries if entry.section == "chat"]
    base = chat_line().base
    parts: list[str] = []
    for section, entries in sections.items():
        doc = getattr(base, section).__doc__ or ""
        parts += ["", f"## {section}", "", " ".join(doc.partition("\n\n")[0].split()), ""]
        parts += ["| flag | environment | default | what it does |", "| --- | --- | --- | --- |"]
        parts += [row(entry) for entry in entries]
    return "\n".join(parts[1:])


def with_tables(page: str) -> str:
    """The page with its tables as they are now."""
    before, _, rest = page.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}{tables()}\n{END}{after}"


if __name__ == "__main__":
    DOCS.write_text(with_tables(DOCS.read_text()))
