"""Pictures of the page for the documentation, and what must hold in every one: nothing is cut off."""

from pathlib import Path

from playwright.sync_api import Page

WIDE = {"width": 1280, "height": 800}
PHONE = {"width": 390, "height": 844}

# Names what sticks out of the window or hides a part of its own text. An ellipsis is meant, and so is text for
# screen readers alone.
_CUT_OFF = """
() => {
  const found = [];
  const name = (e) => e.tagName.toLowerCase() + (e.id && '#' + e.id) + [...e.classList].map((c) => '.' + c).join('');
  const scrolls = (e) => ['auto', 'scroll'].includes(getComputedStyle(e).overflowX);
  if (document.documentElement.scrollWidth > innerWidth) found.push('the page scrolls sideways');
  for (const element of document.body.querySelectorAll('*')) {
    if (!element.checkVisibility({ visibilityProperty: true, contentVisibilityAuto: true })) continue;
    if (element.closest('.unseen, .katex-mathml, svg')) continue;
    const style = getComputedStyle(element);
    const box = element.getBoundingClientRect();
    if (box.width <= 1 || box.height <= 1) continue;
    let inScroller = false;
    for (let up = element.parentElement; up; up = up.parentElement) inScroller ||= scrolls(up) && up.scrollWidth > up.clientWidth;
    if (!inScroller && (box.right > innerWidth + 1 || box.left < -1) && box.right > 0 && box.left < innerWidth) {
      found.push(`${name(element)} sticks out sideways`);
    }
    const hides = ['hidden', 'clip'].includes(style.overflowX) || ['hidden', 'clip'].includes(style.overflowY);
    if (!hides || style.textOverflow === 'ellipsis' || style.webkitLineClamp !== 'none') continue;
    if (element.scrollWidth > element.clientWidth + 1) found.push(`${name(element)} hides some of its width`);
    if (element.scrollHeight > element.clientHeight + 1) found.push(`${name(element)} hides some of its height`);
  }
  return found;
}
"""


def cut_off(page: Page) -> list[str]:
    """What a reader cannot see of the page, though nothing scrolls to it."""
    return list(page.evaluate(_CUT_OFF))


def take(page: Page, folder: Path, name: str) -> None:
    """Writes `name`-light.png and `name`-dark.png."""
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")  # type: ignore[arg-type]
        page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        page.screenshot(path=folder / f"{name}-{scheme}.png", animations="disabled", caret="hide")
    page.emulate_media(color_scheme="light", reduced_motion="no-preference")
