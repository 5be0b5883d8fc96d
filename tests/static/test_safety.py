# ruff: noqa: E501
"""Whatever a model says, the page only shows it: nothing runs, nothing is fetched, nothing is foreign."""

import hashlib
import json
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Route

from tests.static.hostile_texts import HOSTILE
from tests.static.scripted_server import ScriptedServer

pytestmark = pytest.mark.browser

FIXTURES = Path(__file__).parent / "vendor" / "dompurify" / "expect.js"
FIXTURES_SHA256 = "deaac9755d84320fe61cee90db7e984f3e497e3b7a36517bd585788f8d626aa5"

_WATCH = """
window.breaches = [];
window.ran = [];
window.run = (value) => ran.push(value);
document.addEventListener('securitypolicyviolation', (event) => {
  breaches.push(event.violatedDirective + ' ' + event.blockedURI + ' ' + event.sample);
});
"""

# Shows all texts, each at once and in pieces of one to seven characters, and lists what should not be there.
_SHOW = """async (texts) => {
  const { AnswerBody, showText } = await import('/static/reading/body.js');
  const log = document.getElementById('log');
  const ELEMENTS = new Set(('div p h3 h4 h5 h6 ul ol li blockquote hr pre code table thead tbody tr th td strong em ' +
    'del br a img span button svg use').split(' '));
  const ATTRIBUTES = new Set(('href title target rel class start src alt tabindex role aria-label aria-pressed ' +
    'aria-hidden translate dir type data-align data-display data-formula data-language').split(' '));
  const strange = [];
  const inspect = (root, text) => {
    for (const element of root.querySelectorAll('*')) {
      if (element.closest('.katex, .katex-error') !== null) { formula(element, text); continue; }
      if (!ELEMENTS.has(element.localName)) strange.push([text, element.localName]);
      for (const { name, value } of element.attributes) {
        if (!ATTRIBUTES.has(name)) strange.push([text, element.localName, name]);
        if (name === 'href' && element.localName === 'a' && !/^(https?:\\/\\/|mailto:)/.test(value)) strange.push([text, value]);
        if (name === 'src' && !/^data:image\\/png;base64,/.test(value)) strange.push([text, value]);
      }
      if (element.localName === 'a' && (element.target !== '_blank' || element.rel !== 'noopener noreferrer nofollow'))
        strange.push([text, 'a link without its guards']);
    }
  };
  const formula = (element, text) => {
    if (/^(a|img|script|iframe|form|style|link)$/.test(element.localName)) strange.push([text, element.localName]);
    for (const { name, value } of element.attributes) {
      if (name === 'id' || name.startsWith('on') || name.startsWith('data-') || /url|script:/.test(name === 'style' ? value : ''))
        strange.push([text, element.localName, name]);
    }
  };
  const clock = performance.now;
  let now = clock.call(performance);
  for (const [place, text] of texts.entries()) {
    const whole = document.createElement('div');
    const streamed = document.createElement('div');
    log.append(whole, streamed);
    showText(whole, text);
    inspect(whole, text);
    performance.now = () => (now += 1000); // each piece is shown at once
    const body = new AnswerBody(streamed);
    for (let at = 0, step = 1 + (place % 7); at < text.length; at += step) {
      body.append(text.slice(at, at + step));
      inspect(streamed, text);
    }
    body.finish();
    performance.now = clock;
    inspect(streamed, text);
  }
  return strange;
}"""

# Has the browser read markup, as the page itself never does (no string may become markup in it), puts what each
# of the page's two guards leaves of it into the page, and lists what should not be there.
_GUARD = """async (addresses) => {
  const { clean, check } = await import('/static/reading/safety.js');
  const ELEMENTS = new Set(('div p h3 h4 h5 h6 ul ol li blockquote hr pre code table thead tbody tr th td strong em ' +
    'del br a img span').split(' '));
  const ATTRIBUTES = new Set(('href title target rel class start src alt loading dir data-language data-formula ' +
    'data-display data-align').split(' '));
  const strange = [];
  const log = document.getElementById('log');
  const parsed = (address) => new Promise((done, fail) => {
    const request = new XMLHttpRequest();
    request.open('GET', address);
    request.responseType = 'document';
    request.onload = () => done(request.response);
    request.onerror = fail;
    request.send();
  });
  const documents = await Promise.all(addresses.map(parsed));
  const find = Document.prototype.querySelector; // a document's own may be hidden by a payload
  let elements = 0;
  const boxes = documents.flatMap((read, place) => [clean, check].map((guard) => {
    const box = read.implementation.createHTMLDocument('').createElement('div');
    box.append(...[...find.call(read, 'body').childNodes].map((node) => node.cloneNode(true)));
    return { place, guard, box };
  }));
  // Handlers are reported when they are read already; what counts is what the guards leave.
  await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  if (breaches.length === 0) strange.push('nothing to guard against');
  breaches.length = 0;
  for (const { place, guard, box } of boxes) {
    elements += box.querySelectorAll('*').length;
    guard(box);
    log.append(document.adoptNode(box));
    for (const element of box.querySelectorAll('*')) {
      if (!ELEMENTS.has(element.localName)) strange.push([place, guard.name, element.localName]);
      for (const { name, value } of element.attributes) {
        if (!ATTRIBUTES.has(name)) strange.push([place, guard.name, element.localName, name]);
        if (name === 'href' && !/^(https?:\\/\\/|mailto:)/i.test(value)) strange.push([place, guard.name, value]);
        if (name === 'src' && !/^data:image\\/(?!svg)/i.test(value)) strange.push([place, guard.name, value]);
      }
    }
  }
  return [elements, strange];
}"""

_FORMULAS = """async () => {
  while (document.querySelector('[data-formula]') !== null) await new Promise(requestAnimationFrame);
}"""

_SETTLE = """async () => {
  await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  for (const link of document.querySelectorAll('#log a, #log span, #log img, #log li'))
    for (const type of ['mouseover', 'focus', 'load', 'error']) link.dispatchEvent(new Event(type));
}"""


class Hostile:
    """A page on which hostile texts were shown, and all that came of it."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.requests: list[str] = []
        self.dialogs: list[str] = []
        self.errors: list[str] = []
        page.add_init_script(_WATCH)
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("dialog", lambda dialog: (self.dialogs.append(dialog.message), dialog.dismiss()))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.goto(url)

    def check(self, texts: list[str]) -> None:
        """Shows the texts and expects that nothing comes of it."""
        strange = self.page.evaluate(_SHOW, texts)
        self.page.evaluate(_FORMULAS)  # are loaded and shown
        assert self.page.evaluate(_SHOW, texts[:40]) == []  # once more, with all of it loaded
        assert strange == []
        self.check_nothing_happened()

    def serve(self, payloads: list[str]) -> list[str]:
        """Where the page can get the payloads as documents."""
        address = f"{self.url}static/payload/"

        def fulfil(route: Route) -> None:
            payload = payloads[int(route.request.url.removeprefix(address))]
            route.fulfill(content_type="text/html; charset=utf-8", body=f"<!doctype html><body>{payload}")

        self.page.route(f"{address}*", fulfil)
        return [f"{address}{number}" for number in range(len(payloads))]

    def check_nothing_happened(self) -> None:
        """Touches all that is shown, and expects that nothing ran or was asked for."""
        self.page.evaluate(_SETTLE)
        assert self.page.evaluate("ran") == []
        assert self.page.evaluate("breaches") == []
        assert self.dialogs == []
        assert self.errors == []
        foreign = [url for url in self.requests if not url.startswith((self.url, "data:image/png"))]
        assert foreign == []
        fetched = {url.removeprefix(self.url).split("/")[0].split("?")[0] for url in self.requests}
        assert fetched <= {"", "static", "v1", "stats", "favicon.ico", "data:image"}
        assert self.page.url == self.url


@pytest.fixture
def hostile(browser: Browser, scripted: ScriptedServer) -> Hostile:
    """A fresh page that is watched from its first script on."""
    return Hostile(browser.new_page(service_workers="block"), scripted.url)


def test_hostile_texts_do_nothing(hostile: Hostile) -> None:
    hostile.check(HOSTILE)
    assert hostile.page.locator("#log a[href^='http']").count() > 20, "harmless links are links"
    assert hostile.page.locator("#log .katex").count() > 5, "harmless formulas are shown"


def fixtures() -> list[str]:
    """The payloads that DOMPurify was tested with."""
    data = FIXTURES.read_bytes()
    assert hashlib.sha256(data).hexdigest() == FIXTURES_SHA256
    text = data.decode().removeprefix("module.exports = ").rstrip().removesuffix(";")
    return [fixture["payload"] for fixture in json.loads(text)]


def test_the_fixtures_of_dompurify_do_nothing(hostile: Hostile) -> None:
    payloads = fixtures()
    assert len(payloads) == 185
    hostile.check(payloads)


@pytest.mark.slow
def test_each_guard_alone_stops_the_fixtures(hostile: Hostile) -> None:
    """Were an answer's text ever read as markup, what the guards take out of the elements would suffice."""
    elements, strange = hostile.page.evaluate(_GUARD, hostile.serve(fixtures() + HOSTILE))
    assert elements > 500
    assert strange == []
    hostile.check_nothing_happened()


def test_the_watch_sees_what_runs(hostile: Hostile) -> None:
    """What the other tests look for would be seen if it happened."""
    hostile.page.evaluate("document.getElementById('log').append(document.createElement('iframe'))")
    hostile.page.evaluate("document.getElementById('log').setAttribute('style', 'color: red')")
    hostile.page.wait_for_function("() => breaches.length > 0")
    with pytest.raises(Exception, match="TrustedHTML"):
        hostile.page.evaluate("document.getElementById('log').innerHTML = '<b>x</b>'")


@pytest.mark.slow
def test_marks_are_only_made_by_calculations(hostile: Hostile) -> None:
    """Characters that the page uses between its parts mean nothing when a model says them."""
    shown = hostile.page.evaluate(
        """async (text) => {
          const { showText } = await import('/static/reading/body.js');
          const element = document.createElement('div');
          showText(element, text);
          return [element.textContent, element.querySelectorAll('.calculation').length];
        }""",
        "\ufdd00\ufdd1 and <|python_start|>1+1<|python_end|>",
    )
    assert shown == ["\ufffd0\ufffd and 1+1", 1] or shown == ["\ufffd0\ufffd and 1+1 ", 1]
