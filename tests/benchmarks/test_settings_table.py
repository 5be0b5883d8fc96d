"""docs/settings.md is what the flag table says."""

from app.__main__ import command_line
from app.chat.settings import command_line as chat_line
from benchmarks.settings_table import DOCS, with_tables


def test_the_page_has_the_tables() -> None:
    assert with_tables(DOCS.read_text()) == DOCS.read_text(), "python -m benchmarks.settings_table"


def test_the_page_and_the_help_name_the_same_settings() -> None:
    page = DOCS.read_text()
    for line in (command_line(), chat_line()):
        shown = line.help()
        for entry in line.entries:
            if entry.section in ("chat",) or line.prog == "python -m app":
                assert f"`{entry.env}`" in page and entry.on_strings[0] in shown


def test_a_page_without_its_marks_is_not_lost() -> None:
    assert "<!-- settings -->" in DOCS.read_text() and "<!-- end of settings -->" in DOCS.read_text()
