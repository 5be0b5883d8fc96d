"""The pages hang together: links lead somewhere, flags exist, and every page is found from the index."""

import re
from pathlib import Path

import pytest

from app import chat_web
from app.__main__ import command_line
from app.chat.settings import command_line as chat_line
from app.settings.options import CommandLine
from app.survey import command_line as check_line

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
# Of pip, docker, compose and lm_eval, which the pages mention, too.
FOREIGN = {
    "--no-build-isolation",
    "--read-only",
    "--tmpfs",
    "--build",
    "--time",
    "--system-site-packages",
    "--tasks",
}


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def anchors(page: Path) -> set[str]:
    """As the usual renderers make them of headings."""
    kept = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in _HEADING.findall(text_of(page))]
    return {heading.strip().replace(" ", "-") for heading in kept}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    plain = re.sub(r"```.*?```", "", text_of(page), flags=re.DOTALL)
    for link in _LINK.findall(plain):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor:
            assert anchor in anchors(target), f"{page.name}: {link}"


def test_the_index_has_every_page() -> None:
    linked = set(_LINK.findall(text_of(DOCS / "README.md")))
    assert {page.name for page in DOCS.glob("*.md")} - {"README.md"} <= linked


def known_flags() -> set[str]:
    """Of the server and its commands, and what the other programs of the project name in their sources."""
    known = set(FOREIGN)
    lines: list[CommandLine[object]] = [command_line(), chat_web.command_line(), chat_line(), check_line()]  # type: ignore[list-item, type-var]
    for line in lines:
        known |= {string for entry in line.entries for string in entry.on_strings + entry.off_strings}
        known |= {"--config", *("--" + action.name for action in line.actions)}
    for folder in ("benchmarks", "training", "kernels", "engine", "tests/static"):
        for source in (ROOT / folder).rglob("*.py"):
            known |= set(re.findall(r'"(--[a-z][a-z0-9-]*)"', source.read_text(encoding="utf-8")))
    return known


def test_flags_that_are_named_exist() -> None:
    known = known_flags()
    for page in PAGES:
        for flag in _FLAG.findall(text_of(page)):
            assert flag in known or flag.endswith("-"), f"{page.name}: {flag}"
