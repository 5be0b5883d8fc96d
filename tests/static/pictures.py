"""Pictures of the page for the documentation, and what must hold in every one: nothing is cut off."""

from pathlib import Path

from playwright.sync_api import Page

from tests.static.chat_page import until_at_rest
from tests.static.palette import small

WIDE = {"width": 1280, "height": 880}
PHONE = {"width": 390, "height": 844}

# Names what sticks out of the window or hides a part of its own text. An ellipsis is meant, and so is text
# for screen readers alone.
_CUT_OFF = """
() => {
  const found = [];
  const name = (e) => [e.tagName.toLowerCase() + (e.id && '#' + e.id), ...e.classList].join('.');
  const scrolls = (e) => /auto|scroll/.test(getComputedStyle(e).overflowX) && e.scrollWidth > e.clientWidth;
  const inScroller = (e) => e !== null && (scrolls(e) || inScroller(e.parentElement));
  if (document.documentElement.scrollWidth > innerWidth) found.push('the page scrolls sideways');
  for (const element of document.body.querySelectorAll('*')) {
    if (!element.checkVisibility({ visibilityProperty: true, contentVisibilityAuto: true })) continue;
    if (element.closest('.unseen, .katex-mathml, svg')) continue;
    const style = getComputedStyle(element);
    const { left, right, width, height } = element.getBoundingClientRect();
    if (width <= 1 || height <= 1) continue;
    const outside = right <= 0 || left >= innerWidth; // a drawer that is shut
    if (!outside && (right > innerWidth + 1 || left < -1) && !inScroller(element.parentElement)) {
      found.push(`${name(element)} sticks out sideways`);
    }
    const hides = /hidden|clip/.test(style.overflowX + style.overflowY);
    if (!hides || style.textOverflow === 'ellipsis' || style.webkitLineClamp !== 'none') continue;
    const { scrollWidth, clientWidth, scrollHeight, clientHeight } = element;
    if (scrollWidth > clientWidth + 1) found.push(`${name(element)} hides some of its width`);
    if (scrollHeight > clientHeight + 1) found.push(`${name(element)} hides some of its height`);
  }
  return found;
}
"""


def cut_off(page: Page) -> list[str]:
    """What a reader cannot see of the page, though nothing scrolls to it."""
    until_at_rest(page)
    return list(page.evaluate(_CUT_OFF))


def take(page: Page, folder: Path, name: str) -> None:
    """Writes `name`-light.png and `name`-dark.png."""
    folder.mkdir(parents=True, exist_ok=True)
    browser = page.context.browser
    assert browser is not None
    desk = browser.new_page()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")  # type: ignore[arg-type]
        page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        picture = page.screenshot(animations="disabled", caret="hide")
        (folder / f"{name}-{scheme}.png").write_bytes(small(desk, picture))
    desk.close()
    page.emulate_media(color_scheme="light", reduced_motion="no-preference")
