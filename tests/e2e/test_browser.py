"""The chat page against the real server, in a browser."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.app.server_process import Server
from tests.e2e.conftest import start
from tests.static.chat_page import (
    ChatPage,
    check_growing_answer,
    check_new_chat,
    check_regenerate,
    check_stop,
)
from tests.static.conftest import CHROMIUM_FLAGS, find_chromium

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = find_chromium()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server(browser: Browser, slow_model: Path) -> Iterator[Server]:
    """Behind the browser, so that a machine without one starts no server either."""
    with start(slow_model) as server:
        yield server


def test_conversation(browser: Browser, server: Server) -> None:
    """The reader's whole way through, as against the scripted server."""
    chat = ChatPage(browser.new_page())
    # Greedy random weights: an answer that goes on until its limit, and the same one again.
    chat.open(f"http://127.0.0.1:{server.port}/", temperature=0, max_tokens=60)
    answer = check_growing_answer(chat, "Go on")
    assert check_regenerate(chat) == answer
    chat.open(f"http://127.0.0.1:{server.port}/", temperature=0, max_tokens=900)
    kept = check_stop(chat, "Go on")
    assert kept
    check_new_chat(chat)
    chat.check_clean()
