"""A tab for each test module, a fresh page for each test, and a server that answers by script."""

import shutil
from collections.abc import Generator, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Playwright, sync_playwright

from tests.optional import missing
from tests.static.chat_page import ChatPage
from tests.static.scripted_server import ScriptedServer

CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--screenshots", metavar="FOLDER", help="writes pictures of the page's states into FOLDER"
    )


def find_chromium() -> str:
    """The system's chromium; without one the test is skipped, or fails where a browser is required."""
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next((found for name in names if (found := shutil.which(name))), None)
    if path is not None:
        return path
    reason = "no chromium on this machine (tried: " + ", ".join(names) + ")"
    missing(reason)


class _Running:
    """The browser that one module after another uses. While its driver lives it holds the thread's event
    loop, and no asynchronous test could run: it ends when a test of another folder comes next.
    """

    def __init__(self) -> None:
        self._driver: Playwright | None = None
        self._browser: Browser | None = None

    def get(self) -> Browser:
        if self._browser is None or not self._browser.is_connected():
            self.end()
            path = find_chromium()
            self._driver = sync_playwright().start()
            self._browser = self._driver.chromium.launch(executable_path=path, args=CHROMIUM_FLAGS)
        return self._browser

    def end(self) -> None:
        if self._browser is not None:
            self._browser.close()
        if self._driver is not None:
            self._driver.stop()
        self._browser = self._driver = None


_RUNNING = _Running()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None]:
    try:
        return (yield)
    finally:
        if nextitem is None or nextitem.path.parent != item.path.parent:
            _RUNNING.end()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Each module has contexts of its own in it."""
    browser = _RUNNING.get()
    yield browser
    for context in browser.contexts:
        context.close()


def without_worker(browser: Browser, **options: Any) -> BrowserContext:
    """A context whose pages do not keep their files for days offline: to fetch all of them once more after
    each load takes a fifth of a test's time. test_offline.py does so, and tests/e2e with a real server.
    """
    context = browser.new_context(**options)
    context.add_init_script("delete Navigator.prototype.serviceWorker")
    return context


@pytest.fixture(scope="module")
def scripted_server() -> Iterator[ScriptedServer]:
    server = ScriptedServer(lasting_files=True)
    yield server
    server.close()


@pytest.fixture
def scripted(scripted_server: ScriptedServer) -> Iterator[ScriptedServer]:
    """The scripted server, without scripts and requests of earlier tests."""
    scripted_server.reset()
    yield scripted_server
    scripted_server.release(100)


@pytest.fixture(scope="module")
def tab(browser: Browser) -> ChatPage:
    """One tab for a whole module: opening the page anew costs far less than a new tab."""
    return ChatPage(without_worker(browser).new_page())


@pytest.fixture(scope="module")
def modules(browser: Browser, scripted_server: ScriptedServer) -> Page:
    """A page to import the page's modules in; it keeps no state that a test could leave behind."""
    page = browser.new_page()
    page.goto(scripted_server.url)
    return page


@pytest.fixture
def server_url(scripted: ScriptedServer) -> str:
    """Where the page is served. A module that drives a real server overrides this fixture."""
    return scripted.url


@pytest.fixture
def chat(tab: ChatPage, server_url: str) -> Iterator[ChatPage]:
    """The page, freshly loaded, with nothing stored by an earlier test."""
    tab.open(server_url)
    yield tab
    tab.page.goto("about:blank")  # closes what an unfinished answer keeps open
