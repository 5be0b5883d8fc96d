"""Code can be copied and wrapped; what is wider than the page scrolls by itself, by keyboard too."""

import re

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.static.chat_page import ChatPage
from tests.static.page_clock import hold_timers, pass_timers
from tests.static.pictures import PHONE, WIDE
from tests.static.scripted_server import DONE, GATE, ROLE, ScriptedServer, Step, delta

pytestmark = pytest.mark.browser

# What a copy could lose or change: tabs, blanks at a line's end, empty lines, markup, marks, other scripts.
CODE = "def f(x):\n\treturn '<b>' + x  \n\n\n# **not** bold &amp; `no` code, $x$\nprint(f'空 🌤️')"
LONG_LINE = "value = " + " + ".join(f"number_{at}" for at in range(60))
WIDE_ANSWER = "\n\n".join([
    f"```python\n{LONG_LINE}\n```",
    "|" + " a longer head |" * 16 + "\n|" + "---|" * 16 + "\n|" + " some words |" * 16,
    "$$" + " + ".join(f"x_{{{at}}}" for at in range(60)) + "$$",
    "Inside a paragraph $$" + " + ".join(f"y_{{{at}}}" for at in range(60)) + "$$ and after it.",
    "- " + "word" * 100 + f"\n- and `{LONG_LINE}`\n\n  ```\n  {LONG_LINE}\n  ```",
])  # fmt: skip

_BOXES = """elements => elements.map((element) => {
  const { left, right } = element.getBoundingClientRect();
  return [left, right, element.scrollWidth - element.clientWidth];
})"""
_SIDEWAYS = "element => element.scrollWidth - element.clientWidth"


def answer(chat: ChatPage, scripted: ScriptedServer, text: str) -> Locator:
    """Gets this answer, and gives back its body."""
    scripted.script("Go", [ROLE, delta(text), delta("", "stop"), DONE])
    chat.send("Go")
    chat.wait_until_settled()
    return chat.body


def clipboard(page: Page) -> str:
    return str(page.evaluate("navigator.clipboard.readText()"))


@pytest.fixture
def allowed(chat: ChatPage) -> None:
    chat.page.context.grant_permissions(["clipboard-read", "clipboard-write"])


@pytest.mark.usefixtures("allowed")
def test_exactly_the_code_is_copied(chat: ChatPage, scripted: ScriptedServer) -> None:
    body = answer(chat, scripted, f"Before\n\n```python\n{CODE}\n```\n\nAfter")
    expect(body.locator("pre [class*=hljs-]").first).to_be_visible()  # colours change nothing
    hold_timers(chat.page)
    button = body.locator(".copy-code")
    expect(button).to_have_accessible_name("Copy the code")
    button.click()
    expect(button).to_have_accessible_name("Copied")
    expect(button).to_have_attribute("title", "Copied")
    expect(chat.page.locator("#status")).to_have_text("Copied")
    assert clipboard(chat.page) == CODE
    pass_timers(chat.page)
    expect(button).to_have_accessible_name("Copy the code")
    expect(button).to_have_attribute("title", "Copy the code")
    # A browser that copies nothing: what to do instead is said.
    chat.page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(new Error('no')); }")
    button.click()
    expect(chat.page.locator("#status")).to_contain_text("Select the code")
    expect(button).to_have_accessible_name(re.compile("did not allow copying"))
    pass_timers(chat.page)
    expect(button).to_have_accessible_name("Copy the code")
    chat.check_clean()


@pytest.mark.usefixtures("allowed")
def test_code_that_grows_is_copied_as_far_as_it_is(chat: ChatPage, scripted: ScriptedServer) -> None:
    steps: list[Step] = [ROLE, delta("```\none\n  two"), GATE, delta("\nthree\n```"), delta("", "stop"), DONE]
    scripted.script("Go", steps)
    chat.send("Go")
    expect(chat.body.locator("pre")).to_contain_text("two")
    chat.body.locator(".copy-code").click()
    expect(chat.page.locator("#status")).to_have_text("Copied")
    assert clipboard(chat.page) == "one\n  two"
    scripted.release()
    chat.wait_until_settled()
    chat.body.locator(".copy-code").click()
    chat.page.wait_for_function(
        "navigator.clipboard.readText().then((text) => text === 'one\\n  two\\nthree')"
    )


@pytest.mark.slow
def test_long_lines_are_wrapped_on_demand(chat: ChatPage, scripted: ScriptedServer) -> None:
    body = answer(chat, scripted, f"```\n{LONG_LINE}\n{'x' * 900}\n```")
    code, button = body.locator("pre"), body.get_by_role("button", name="Wrap long lines")
    expect(button).to_have_attribute("aria-pressed", "false")
    assert code.evaluate(_SIDEWAYS) > 100
    button.click()
    expect(button).to_have_attribute("aria-pressed", "true")
    assert code.evaluate(_SIDEWAYS) == 0
    button.press("Enter")
    expect(button).to_have_attribute("aria-pressed", "false")
    assert code.evaluate(_SIDEWAYS) > 100


@pytest.mark.usefixtures("allowed")
@pytest.mark.slow
def test_a_line_too_long_to_be_laid_out_at_once_is_still_one_line(
    chat: ChatPage, scripted: ScriptedServer
) -> None:
    line = "a\u0301👩‍🚀 空 " * 9_000  # signs of several characters: none of them is cut apart
    text = f"before\n{line}end\nafter"
    body = answer(chat, scripted, f"```\n{text}\n```")
    code = body.locator("pre code")
    assert code.locator(".piece").count() > 2
    assert code.text_content() == text
    selected = "code => (getSelection().selectAllChildren(code), getSelection().toString())"
    assert code.evaluate(selected) == text
    body.locator(".copy-code").click()
    expect(chat.page.locator("#status")).to_have_text("Copied")
    assert clipboard(chat.page) == text
    begins = code.locator(".piece").evaluate_all("pieces => pieces.map((piece) => [...piece.textContent][0])")
    assert set(begins) <= {"a", "👩", " ", "空"}
    lines = "code => code.getBoundingClientRect().height / parseFloat(getComputedStyle(code).lineHeight)"
    assert 2.9 < code.evaluate(lines) < 3.6
    body.get_by_role("button", name="Wrap long lines").click()
    assert body.locator("pre").evaluate(_SIDEWAYS) == 0
    assert code.evaluate(selected) == text


@pytest.mark.slow
def test_what_is_wide_scrolls_by_itself(chat: ChatPage, scripted: ScriptedServer) -> None:
    page = chat.page
    body = answer(chat, scripted, WIDE_ANSWER)
    expect(body.locator(".katex-display")).to_have_count(2)
    frames = body.locator("pre, .table, .formula[data-display]")
    for size in (WIDE, PHONE):
        page.set_viewport_size(size)  # type: ignore[arg-type]
        for element in ("html", "body", "#scroller", ".answer .body"):
            assert page.locator(element).evaluate(_SIDEWAYS) == 0, element
        boxes = frames.evaluate_all(_BOXES)
        assert all(width > 100 for _, _, width in boxes), "each has more than it shows"
        assert all(left >= 0 and right <= size["width"] for left, right, _ in boxes)
    body.locator(".copy-code").first.focus()
    for name in ("Code, python", "Table", "Formula", "Formula"):
        page.keyboard.press("Tab")
        focused = page.locator(":focus")
        expect(focused).to_have_role("group")
        expect(focused).to_have_accessible_name(name)
        page.keyboard.press("ArrowRight")
        expect(focused).not_to_have_js_property("scrollLeft", 0)
