"""axe-core in a page: it is evaluated there, so the page's Content-Security-Policy has no say in it."""

from pathlib import Path
from typing import Any

from playwright.sync_api import Page

from tests.static.chat_page import until_at_rest

AXE = Path(__file__).parent / "vendor" / "axe.min.js"

_RUN = """
async (options) => {
  const { violations } = await axe.run(document, { resultTypes: ['violations'], ...options });
  return violations.flatMap(({ id, help, nodes }) =>
    nodes.map(({ target, failureSummary }) => `${id} (${help}): ${target.join(' ')}\\n${failureSummary}`));
}
"""


def check_axe(page: Page, *off: str) -> None:
    """No rule of axe-core finds anything, best practices included, but for those that are switched off."""
    rules: dict[str, Any] = {"color-contrast-enhanced": {"enabled": False}}
    rules |= {"target-size": {"enabled": True}}
    rules |= {rule: {"enabled": False} for rule in off}
    _check(page, {"rules": rules})


def check_colours(page: Page) -> None:
    """The rules that a theme alone can break, for a page that `check_axe` has seen in the other theme."""
    _check(page, {"runOnly": ["color-contrast", "link-in-text-block"]})


def _check(page: Page, options: dict[str, Any]) -> None:
    until_at_rest(page)  # half-visible things of an animation have no contrast of their own yet
    if not page.evaluate("() => 'axe' in window"):
        page.evaluate(AXE.read_text())
    found = page.evaluate(_RUN, options)
    assert found == [], "\n\n".join(found)
