"""The page without its server: kept files open it, answers of the API are never kept."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.static.scripted_server import ScriptedServer

pytestmark = pytest.mark.browser

STATIC = Path(__file__).resolve().parents[2] / "static"
INSTALL = """async () => {
  const { serviceWorker } = navigator;
  const told = new Promise((done) => serviceWorker.addEventListener('message', done, { once: true }));
  await (await import('./static/shell/install.js')).install();
  await told;
}"""


@pytest.fixture(scope="module")
def scripted_server() -> Iterator[ScriptedServer]:
    """One whose files no browser keeps of itself."""
    server = ScriptedServer()
    yield server
    server.close()


@pytest.fixture
def visitor(browser: Browser) -> Iterator[Page]:
    """A tab of a browser that has never been here."""
    context = browser.new_context()
    yield context.new_page()
    context.close()


def test_the_page_opens_without_its_server(visitor: Page) -> None:
    server = ScriptedServer()
    try:
        visitor.goto(server.url)
        expect(visitor.locator("#model")).to_contain_text("scripted-model")
        visitor.evaluate(INSTALL)
        kept = visitor.evaluate(
            "async () => (await (await caches.open('fastpath-page-1')).keys()).map(({url}) => url)"
        )
        assert server.url in kept and f"{server.url}static/vendor/katex/katex.min.js" in kept
        assert not [url for url in kept if "/v1/" in url or "stats" in url or "tokenize" in url]
    finally:
        server.close()
    visitor.reload()
    expect(visitor.locator("#draft")).to_be_editable()
    expect(visitor.locator("#welcome h2")).to_be_visible()
    outcome = visitor.evaluate(
        """async () => {
          const script = await import('./static/reading/highlight.js');
          const answered = await fetch('v1/models').then(() => true, () => false);
          return [typeof script, answered];
        }"""
    )
    assert outcome == ["object", False]


@pytest.mark.slow
def test_a_new_version_is_taken_with_the_next_load(visitor: Page, scripted: ScriptedServer) -> None:
    """What is kept stands back behind what the server has."""
    visitor.goto(scripted.url)
    visitor.evaluate(INSTALL)
    visitor.evaluate(
        """async () => {
          const kept = await caches.open('fastpath-page-1');
          await kept.put(new URL('./static/words/words.js', location.href), new Response('broken('));
        }"""
    )
    visitor.reload()
    expect(visitor.locator("#model")).to_contain_text("scripted-model")


def test_only_the_pages_own_workers_may_run(modules: Page) -> None:
    refused = modules.evaluate(
        """async () => {
          const { workerAddress } = await import('./static/shell/trusted.js');
          const attempts = [
            () => new Worker('static/app.js'),
            () => workerAddress('https://example.org/sw.js'),
            () => workerAddress('static/app.js'),
            () => trustedTypes.createPolicy('another', { createHTML: (text) => text }),
            () => { document.body.innerHTML = '<b>no</b>'; },
          ];
          return attempts.map((attempt) => {
            try { attempt(); return false; } catch { return true; }
          });
        }"""
    )
    assert refused == [True] * 5


def test_the_manifest_names_what_is_there() -> None:
    manifest = json.loads((STATIC / "manifest.webmanifest").read_text())
    for icon in manifest["icons"]:
        file = STATIC / icon["src"].removeprefix("static/")
        assert file.is_file()
        if icon["type"] == "image/png":
            header = file.read_bytes()[16:24]  # width and height
            size = f"{int.from_bytes(header[:4])}x{int.from_bytes(header[4:])}"
            assert size == icon["sizes"]
    wanted = re.search(r"const WANTED = \[(.*?)\];", (STATIC / "shell/install.js").read_text(), re.S)
    assert wanted is not None
    files = re.findall(r'"([^"]+)"', wanted[1])
    assert files and all((STATIC / file).is_file() for file in files)
