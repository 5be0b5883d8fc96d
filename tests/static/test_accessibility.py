"""What axe-core cannot see: where the focus is, what is said, and in which order. Every state of the page is
shown to axe-core in test_screenshots.py."""

import hashlib
import re

import pytest
from playwright.sync_api import expect

from tests.static.axe import AXE, check_axe
from tests.static.chat_page import ChatPage
from tests.static.pictures import WIDE
from tests.static.scripted_server import DONE, GATE, ROLE, ScriptedServer, Step, delta
from tests.static.states import STATES

pytestmark = pytest.mark.browser

AXE_SHA256 = "29348999450cdf2849a8e70b7912fc2da85a849da39c0d0d5394f51d4a9ed95c"


def growing(*pieces: str) -> list[Step]:
    """An answer that waits for the test between its pieces."""
    steps: list[Step] = [ROLE]
    for piece in pieces:
        steps += [delta(piece), GATE]
    return [*steps, delta("", "stop"), DONE]


def test_axe_is_the_file_it_is_said_to_be() -> None:
    assert hashlib.sha256(AXE.read_bytes()).hexdigest() == AXE_SHA256


def test_menu_of_an_answer(chat: ChatPage, scripted: ScriptedServer) -> None:
    chat.page.set_viewport_size(WIDE)  # type: ignore[arg-type]
    STATES["conversation"](chat, scripted)
    chat.page.locator(".answer .more").click()
    expect(chat.page.get_by_role("menuitem").first).to_be_focused()
    check_axe(chat.page)


def test_what_is_said_while_an_answer_grows(chat: ChatPage, scripted: ScriptedServer) -> None:
    """The log is silent while it grows; one status line says that it begins and how it ended."""
    page = chat.page
    scripted.script("Hello", growing("One ", "two."))
    chat.send("Hello")
    log = page.get_by_role("log")
    expect(chat.body).to_have_text("One")
    expect(log).to_have_attribute("aria-live", "off")
    expect(chat.answers.last).to_have_attribute("aria-busy", "true")
    status = page.locator("#status")
    expect(status).not_to_have_text("")
    expect(page.locator("[role=status], [aria-live=polite]")).to_have_count(1)
    expect(chat.draft).to_be_focused()
    scripted.release(2)
    chat.wait_until_settled()
    expect(status).to_contain_text("finished")
    expect(chat.draft).to_be_focused()


def test_landmarks_and_headings(chat: ChatPage, scripted: ScriptedServer) -> None:
    page = chat.page
    page.set_viewport_size(WIDE)  # type: ignore[arg-type]
    expect(page.get_by_role("banner")).to_have_count(1)
    expect(page.get_by_role("main")).to_have_count(1)
    expect(page.get_by_role("navigation", name="Chats")).to_be_visible()
    expect(page.get_by_role("region", name="Your message")).to_be_visible()
    expect(page.get_by_role("heading", level=1)).to_have_text("Fastpath")
    expect(page.get_by_role("heading", level=2, name="What shall we talk about?")).to_be_visible()
    skip = page.get_by_role("link", name="Go to the message box")
    assert skip.evaluate("e => e === document.querySelector('a[href], button, input, textarea, [tabindex]')")
    skip.focus()
    expect(skip).to_be_in_viewport()
    skip.press("Enter")
    expect(chat.draft).to_be_focused()


def test_every_button_has_a_name_and_every_picture_is_defined(chat: ChatPage) -> None:
    """Also in the templates, which axe does not see."""
    html = chat.page.request.get(chat.url).text()
    symbols = set(re.findall(r'<symbol id="([^"]+)"', html))
    assert set(re.findall(r'<use href="#([^"]+)"', html)) <= symbols
    nameless = """() => [...document.querySelectorAll('template')].flatMap(({ content }) =>
      [...content.querySelectorAll('button')].filter((b) => !b.ariaLabel && !b.textContent.trim())
        .map((b) => b.className))"""
    assert chat.page.evaluate(nameless) == []
