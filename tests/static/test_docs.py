"""The page at /docs, in a browser, against the real application."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect

from tests.app.contract import Contract, contract_server

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def contract() -> Iterator[Contract]:
    with contract_server() as contract:
        yield contract


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    page = browser.new_page()
    yield page
    page.close()


def test_the_page_shows_every_route_and_tries_one(page: Page, contract: Contract) -> None:
    said: list[str] = []

    def heard(message: ConsoleMessage) -> None:
        said.append(message.text)

    page.on("console", heard)
    page.goto(contract.url + "/docs")
    page.wait_for_selector("main[aria-busy=false]")
    routes = page.locator("main > details").count() - 1
    assert routes == sum(len(methods) for methods in contract.document["paths"].values())
    section = page.locator("#post-v1-completions")
    page.get_by_role("link", name="POST /v1/completions").click()
    row = section.locator("tr", has=page.locator("code", has_text="temperature")).inner_text()
    assert "number from 0 to 2" in row
    section.locator("textarea").fill('{"prompt": "x", "stream": true}')
    section.get_by_role("button", name="Send").click()
    expect(section.locator("pre")).to_contain_text("[DONE]")
    shown = section.locator("pre").inner_text()
    assert shown.startswith("200 text/event-stream") and '"text":"h"' in shown
    page.locator("#get-v1-models-id- summary").click()
    page.locator("#get-v1-models-id- input").fill("no/thing")
    page.locator("#get-v1-models-id- button").click()
    expect(page.locator("#get-v1-models-id- pre")).to_contain_text("no/thing")
    assert page.locator("#get-v1-models-id- pre").inner_text().startswith("404 application/json")
    assert not [line for line in said if "404" not in line], said
