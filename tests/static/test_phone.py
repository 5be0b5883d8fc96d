"""The page on small and touched screens, with large text, and for those who want no motion."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.static.chat_page import ChatPage, until_at_rest
from tests.static.conftest import without_worker
from tests.static.pictures import cut_off
from tests.static.scripted_server import DONE, ROLE, ScriptedServer, delta

pytestmark = pytest.mark.browser

LONG_WORD = "Rindfleischetikettierungsüberwachungsaufgabenübertragungsgesetz" * 3
SMALL = {"width": 320, "height": 568}

# A target may be smaller where text flows around it, and where the label beside it belongs to it. Boxes are
# in single precision: 44 pixels at some distance from the page's corner may be 43.99998.
_TARGETS = """(least) => [...document.querySelectorAll('button, a[href], input, select, textarea, summary')]
  .filter((e) => e.checkVisibility({visibilityProperty: true, opacityProperty: false}) && !e.matches('.skip'))
  .map((e) => [e.closest('label') ?? e, e])
  .map(([e, of]) => [of.id || of.className || of.textContent, e.getBoundingClientRect()])
  .filter(([, {width, height}]) => width > 0 && Math.min(width, height) < least - 0.01)
  .map(([name, {width, height}]) => `${name}: ${width} x ${height}`)"""


@pytest.fixture(scope="module")
def tab(browser: Browser) -> ChatPage:
    """A phone: touched, not pointed at."""
    size = {"width": 360, "height": 740}
    context = without_worker(browser, viewport=size, has_touch=True, is_mobile=True)
    return ChatPage(context.new_page())


@pytest.fixture(autouse=True)
def usual(tab: ChatPage) -> Iterator[None]:
    yield
    tab.page.set_viewport_size({"width": 360, "height": 740})


def talk(chat: ChatPage, server: ScriptedServer) -> None:
    text = f"{LONG_WORD}\n\n```\n{'x' * 300}\n```\n\n| a | b |\n|-|-|\n"
    server.script(LONG_WORD, [ROLE, delta(text), delta("", "stop"), DONE])
    chat.draft.fill(LONG_WORD)
    chat.page.locator("#send").click()
    chat.wait_until_settled()


def too_small(page: Page, least: int) -> list[str]:
    """What is less than so many pixels high or wide."""
    until_at_rest(page)
    return list(page.evaluate(_TARGETS, least))


def test_nothing_scrolls_sideways_at_320_pixels(chat: ChatPage, scripted: ScriptedServer) -> None:
    page = chat.page
    page.set_viewport_size(SMALL)  # type: ignore[arg-type]
    assert cut_off(page) == []
    talk(chat, scripted)
    wide = "['html', '#scroller'].map((s) => document.querySelector(s))"
    wide += ".map((e) => e.scrollWidth - e.clientWidth)"
    assert page.evaluate(wide) == [0, 0]
    assert cut_off(page) == []
    for name in ("sidebar", "engine"):
        page.locator(f"#toggle-{name}").click()
        until_at_rest(page)
        assert page.evaluate(wide) == [0, 0]
        page.locator(f"#close-{name}").click()


@pytest.mark.slow
def test_targets_are_large_enough_to_touch(chat: ChatPage, scripted: ScriptedServer) -> None:
    page = chat.page
    talk(chat, scripted)
    assert too_small(page, 44) == []
    page.locator("#toggle-sidebar").click()
    assert too_small(page, 44) == []
    page.locator("#close-sidebar").click()
    page.locator("#open-settings").click()
    expect(page.locator("#settings")).to_be_visible()
    assert too_small(page, 24) == []  # a dense form


def test_tools_are_there_without_hovering(chat: ChatPage, scripted: ScriptedServer) -> None:
    talk(chat, scripted)
    for name in (".user .tools", ".answer .tools"):
        expect(chat.page.locator(name).last).to_have_css("opacity", "1")


def test_twice_the_text_size_is_usable(chat: ChatPage, scripted: ScriptedServer) -> None:
    page = chat.page
    cdp = page.context.new_cdp_session(page)
    cdp.send("Page.enable")
    cdp.send("Page.setFontSizes", {"fontSizes": {"standard": 32, "fixed": 26}})
    try:
        page.reload()
        assert page.evaluate("parseFloat(getComputedStyle(document.body).fontSize)") == 32
        talk(chat, scripted)
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
        for name in ("#draft", "#send", "#open-settings", "#toggle-sidebar", "#new-chat"):
            expect(page.locator(name)).to_be_in_viewport(ratio=1)
        assert page.evaluate("document.getElementById('scroller').clientHeight") > 150
    finally:
        cdp.send("Page.setFontSizes", {"fontSizes": {"standard": 16, "fixed": 13}})


def test_enter_is_a_new_line_and_nothing_opens_the_keyboard(chat: ChatPage) -> None:
    expect(chat.draft).not_to_be_focused()
    chat.draft.fill("one")
    chat.draft.press("Enter")
    expect(chat.draft).to_have_value("one\n")


def test_page_keeps_off_the_edges_and_gives_way_to_the_keyboard(chat: ChatPage) -> None:
    content = chat.page.locator("meta[name=viewport]").get_attribute("content") or ""
    assert "viewport-fit=cover" in content
    assert "interactive-widget=resizes-content" in content
    assert "maximum-scale" not in content and "user-scalable" not in content
    assert chat.page.evaluate("document.body.getBoundingClientRect().height === innerHeight")


@pytest.mark.slow
def test_nothing_moves_for_those_who_want_no_motion(chat: ChatPage) -> None:
    page = chat.page
    page.emulate_media(reduced_motion="reduce")
    page.locator("#toggle-sidebar").click()
    page.locator("#close-sidebar").click()
    page.locator("#open-settings").click()
    assert page.evaluate("document.getAnimations().length") == 0
    page.emulate_media(reduced_motion="no-preference")
