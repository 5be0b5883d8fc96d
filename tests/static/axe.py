"""axe-core in a page: it is evaluated there, so the page's Content-Security-Policy has no say in it."""

from pathlib import Path
from typing import Any

from playwright.sync_api import Page

AXE = Path(__file__).parent / "vendor" / "axe.min.js"

_RUN = """
async (rules) => {
  const { violations } = await axe.run(document, { resultTypes: ['violations'], rules });
  return violations.flatMap(({ id, help, nodes }) =>
    nodes.map(({ target, failureSummary }) => `${id} (${help}): ${target.join(' ')}\\n${failureSummary}`));
}
"""
# Half-visible things of an animation have no contrast of their own yet.
_STILL = "() => document.getAnimations().every(({ playState, effect }) => playState !== 'running' || \
    effect.getTiming().iterations === Infinity)"


def check_axe(page: Page, *off: str) -> None:
    """No rule of axe-core finds anything, best practices included, but for those that are switched off."""
    page.wait_for_function(_STILL)
    if not page.evaluate("() => 'axe' in window"):
        page.evaluate(AXE.read_text())
    rules: dict[str, Any] = {"color-contrast-enhanced": {"enabled": False}}
    rules |= {"target-size": {"enabled": True}}
    rules |= {rule: {"enabled": False} for rule in off}
    found = page.evaluate(_RUN, rules)
    assert found == [], "\n\n".join(found)
