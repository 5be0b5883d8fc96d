"""The page's frame: panels, theme, notices, dialogs, menus, keys."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, Route, expect

from tests.static.chat_page import ChatPage
from tests.static.page_clock import hold_timers, pass_timers, until_held
from tests.static.pictures import PHONE, WIDE
from tests.static.scripted_server import DONE, ROLE, ScriptedServer, delta
from tests.tiers import tiered

pytestmark = pytest.mark.browser

HI = [ROLE, delta("Hi."), delta("", "stop"), DONE]


@pytest.fixture(autouse=True)
def wide(tab: ChatPage) -> None:
    tab.page.set_viewport_size(WIDE)  # type: ignore[arg-type]


@pytest.fixture
def page(chat: ChatPage) -> Iterator[Page]:
    yield chat.page
    chat.check_clean()


def call(page: Page, module: str, body: str) -> None:
    """Runs a line of JavaScript with a module's exports as `m`."""
    page.evaluate(f"async () => {{ const m = await import('./static/shell/{module}.js'); {body} }}")


def _nothing(route: Route) -> None:
    route.fulfill(body="", content_type="text/javascript")


@pytest.mark.slow
def test_sidebar_is_remembered_and_there_before_the_first_paint(page: Page) -> None:
    side, toggle = page.locator("#side"), page.locator("#toggle-sidebar")
    expect(side).to_be_visible()
    page.keyboard.press("Control+b")
    expect(side).to_be_hidden()
    expect(toggle).to_have_attribute("aria-expanded", "false")
    page.route("**/static/app.js", _nothing)  # what is there without the page's modules
    page.reload()
    expect(side).to_be_hidden()
    page.unroute("**/static/app.js")
    page.reload()
    expect(toggle).to_have_attribute("aria-expanded", "false")
    toggle.click()
    expect(side).to_be_visible()


@pytest.mark.slow
def test_engine_panel_is_remembered(page: Page) -> None:
    panel = page.locator("#engine-panel")
    expect(panel).to_be_hidden()
    page.keyboard.press("Control+Shift+S")
    expect(panel).to_be_visible()
    page.reload()
    expect(panel).to_be_visible()
    page.locator("#close-engine").click()
    expect(panel).to_be_hidden()
    expect(page.locator("#toggle-engine")).to_be_focused()


@pytest.mark.parametrize(("name", "panel"), tiered([("sidebar", "side"), ("engine", "engine-panel")], {0}))
def test_overlay_keeps_the_focus_and_escape_closes_it(page: Page, name: str, panel: str) -> None:
    page.set_viewport_size(PHONE)  # type: ignore[arg-type]
    toggle = page.locator(f"#toggle-{name}")
    expect(page.locator(f"#{panel}")).to_be_hidden()
    toggle.click()
    expect(page.locator(f"#close-{name}")).to_be_focused()
    for _ in range(8):
        page.keyboard.press("Tab")
        inside = f"document.getElementById('{panel}').contains(document.activeElement)"
        assert page.evaluate(f"document.activeElement === document.body || {inside}")
    page.keyboard.press("Escape")
    expect(page.locator(f"#{panel}")).to_be_hidden()
    expect(toggle).to_be_focused()
    toggle.click()
    page.locator("#scrim").click(position={"x": 380, "y": 10})
    expect(page.locator(f"#{panel}")).to_be_hidden()
    page.set_viewport_size(WIDE)  # type: ignore[arg-type]
    expect(page.locator("#side")).to_be_visible()  # what an overlay was is not remembered


def test_theme_is_chosen_and_there_before_the_first_paint(page: Page) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    meta = page.locator("meta[name=theme-color]")
    light = page.evaluate(ground)
    page.locator("#open-settings").click()
    page.get_by_role("radio", name="Dark").check(force=True)
    dark = page.evaluate(ground)
    assert dark != light
    expect(meta).to_have_attribute("content", "#161715")
    page.route("**/static/app.js", _nothing)
    page.reload()
    assert page.evaluate(ground) == dark
    expect(meta).to_have_attribute("content", "#161715")
    page.unroute("**/static/app.js")
    page.reload()
    page.locator("#open-settings").click()
    page.get_by_role("radio", name="As the system").check(force=True)
    assert page.evaluate(ground) == light
    page.emulate_media(color_scheme="dark")
    expect(meta).to_have_attribute("content", "#161715")
    assert page.evaluate(ground) == dark
    page.emulate_media(color_scheme="light")
    expect(meta).to_have_attribute("content", "#fbfbf9")


def test_meta_colour_is_that_of_the_page(page: Page) -> None:
    """first.js and theme.js name the colours that base.css has."""
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        same = """() => { const probe = document.createElement('p');
          probe.style.color = document.querySelector('meta[name=theme-color]').content;
          return probe.style.color === getComputedStyle(document.body).backgroundColor; }"""
        page.wait_for_function(same)
    page.emulate_media(color_scheme="light")


def test_notice_takes_no_focus_and_stays_while_it_is_pointed_at(page: Page) -> None:
    page.locator("#draft").focus()
    hold_timers(page)
    call(page, "toast", "m.toast('Saved.', {seconds: 4})")
    notice = page.locator(".toast")
    expect(page.locator("#draft")).to_be_focused()
    expect(page.locator("#status")).to_have_text("Saved.")
    expect(notice).to_be_visible()
    pass_timers(page)
    expect(notice).to_have_count(0)
    call(page, "toast", "m.toast('Lost.', {kind: 'problem', seconds: 7})")
    expect(page.get_by_role("alert")).to_have_text("Lost.")
    until_held(page, 7, 1)
    notice.hover()
    until_held(page, 7, 0)
    pass_timers(page)
    expect(notice).to_be_visible()
    page.mouse.move(0, 0)
    until_held(page, 7, 1)
    pass_timers(page)
    expect(notice).to_have_count(0)


@pytest.mark.slow
def test_notice_above_a_dialog_can_be_used(page: Page) -> None:
    page.locator("#open-keys").click()
    expect(page.locator("dialog[open]")).to_be_visible()
    call(page, "toast", "m.toast('Gone.', {action: {label: 'Undo', run: () => (window.undone = true)}})")
    page.get_by_role("button", name="Undo").click()
    assert page.evaluate("undone") is True
    call(page, "toast", "m.toast('Kept.')")
    page.keyboard.press("Escape")
    expect(page.locator("dialog[open]")).to_have_count(0)
    expect(page.locator(".toast")).to_be_visible()
    page.get_by_role("button", name="Dismiss").click()
    expect(page.locator(".toast")).to_have_count(0)


def test_question_is_answered(page: Page) -> None:
    page.locator("#draft").focus()
    for key, answer in (("Escape", False), ("Enter", False), ("Yes", True)):
        question = "m.ask('Delete it?', {confirm: 'Delete', danger: true, detail: 'For good.'})"
        call(page, "dialog", f"window.answer = undefined; {question}.then((a) => (window.answer = a))")
        dialog = page.get_by_role("alertdialog", name="Delete it?")
        expect(dialog.get_by_role("button", name="Cancel")).to_be_focused()  # something would be lost
        if key == "Yes":
            dialog.get_by_role("button", name="Delete").click()
        else:
            page.keyboard.press(key)
        page.wait_for_function("() => window.answer !== undefined")
        assert page.evaluate("answer") is answer
        expect(page.locator("#draft")).to_be_focused()


def test_menu_by_keyboard(page: Page) -> None:
    body = """const button = document.getElementById('open-keys');
      const item = (label) => ({label, run: () => (window.ran = label)});
      button.focus();
      m.openMenu(button, [item('Rename'), item('Pin'), 'line', item('Print'), item('Delete')]);"""
    call(page, "menu", body)
    steps = [("ArrowDown", "Pin"), ("End", "Delete"), ("ArrowDown", "Rename"), ("ArrowUp", "Delete")]
    steps += [("Home", "Rename"), ("p", "Pin"), ("r", "Print")]
    for key, name in steps:
        page.keyboard.press(key)
        expect(page.get_by_role("menuitem", name=name)).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_role("menu")).to_have_count(0)
    expect(page.locator("#open-keys")).to_be_focused()
    call(page, "menu", body)
    page.keyboard.press("Enter")
    assert page.evaluate("ran") == "Rename"
    call(page, "menu", body)
    page.mouse.click(5, 400)
    expect(page.get_by_role("menu")).to_have_count(0)
    expect(page.locator("#open-keys")).to_have_attribute("aria-expanded", "false")


def test_key_sheet_lists_all_and_single_keys_can_be_switched_off(page: Page) -> None:
    draft, sheet = page.locator("#draft"), page.get_by_role("dialog", name="Keys of this page")
    draft.press("?")
    expect(draft).to_have_value("?")  # in a text it is a character
    draft.fill("")
    page.locator("#toggle-sidebar").focus()
    page.keyboard.press("?")
    expect(sheet).to_be_visible()
    for keys in (
        "CtrlShiftO",
        "CtrlK",
        "CtrlB",
        "CtrlShiftE",
        "CtrlShiftD",
        "CtrlShiftS",
        "Esc",
        "Alt↑",
        "[",
    ):
        assert keys in sheet.locator("dd").all_text_contents()
    sheet.get_by_role("checkbox").uncheck()
    page.keyboard.press("Escape")
    expect(page.locator("#toggle-sidebar")).to_be_focused()
    page.keyboard.press("?")
    page.keyboard.press("/")
    expect(sheet).to_have_count(0)
    expect(page.locator("#toggle-sidebar")).to_be_focused()
    page.keyboard.press("Control+/")
    sheet.get_by_role("checkbox").check()
    page.keyboard.press("Escape")
    expect(sheet).to_have_count(0)
    page.keyboard.press("/")
    expect(draft).to_be_focused()


def test_keys_count_by_place_on_a_keyboard_without_latin(page: Page) -> None:
    press = "new KeyboardEvent('keydown', {key: 'И', code: 'KeyB', ctrlKey: true, bubbles: true})"
    page.evaluate(f"document.body.dispatchEvent({press})")
    expect(page.locator("#side")).to_be_hidden()


def test_from_message_to_message(chat: ChatPage, scripted: ScriptedServer) -> None:
    scripted.script("Hello", HI)
    chat.send("Hello")
    chat.wait_until_settled()
    page = chat.page
    expect(chat.draft).to_be_focused()
    page.keyboard.press("Alt+ArrowUp")
    expect(chat.answers.last).to_be_focused()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('.answer') !== null")
    page.keyboard.press("Alt+ArrowUp")
    expect(page.locator("article.user")).to_be_focused()
    expect(page.locator("article.user .edit")).to_be_visible()
    page.keyboard.press("Alt+ArrowDown")
    page.keyboard.press("Alt+ArrowDown")
    expect(chat.draft).to_be_focused()
    chat.draft.fill("a text")
    page.keyboard.press("Alt+ArrowUp")  # moves in the text, on some systems
    expect(chat.draft).to_be_focused()


def test_paper_has_the_conversation_alone(chat: ChatPage, scripted: ScriptedServer) -> None:
    scripted.script("Hello", HI)
    chat.send("Hello")
    chat.wait_until_settled()
    chat.page.emulate_media(media="print")
    expect(chat.body).to_be_visible()
    for name in ("#side", "#composer", ".answer .tools", "#toggle-engine"):
        expect(chat.page.locator(name).first).to_be_hidden()
    chat.page.emulate_media(media="screen")


def test_a_dialog_that_has_closed_does_not_take_the_focus_back(page: Page) -> None:
    """Its `close` event comes a little after it; who has gone on in the meantime stays there."""
    page.locator("#toggle-sidebar").focus()
    page.keyboard.press("Control+/")
    expect(page.get_by_role("dialog", name="Keys of this page")).to_be_visible()
    focused = page.evaluate(
        """async () => {
          const dialog = document.querySelector('dialog:modal');
          const closed = new Promise((done) => dialog.addEventListener('close', () => setTimeout(done)));
          dialog.close();
          const given = document.activeElement.id;
          document.getElementById('draft').focus();
          await closed;
          return [given, document.activeElement.id];
        }"""
    )
    assert focused == ["toggle-sidebar", "draft"]
