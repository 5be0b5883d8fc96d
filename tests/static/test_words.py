"""Every word of the page is in its catalogue; the page can be in another language and another direction."""

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from tests.static.chat_page import ChatPage
from tests.static.conftest import without_worker
from tests.static.pictures import WIDE, cut_off
from tests.static.scripted_server import DONE, ROLE, STATIC, ScriptedServer, delta, usage
from tests.tiers import tiered

pytestmark = pytest.mark.browser

# The English messages between brackets: what stands outside of them was not looked up.
PSEUDO = """
import { messages as english } from '../en/all.js';
const wrap = (word) => typeof word === 'string' ? `⟦${word}⟧`
  : Object.fromEntries(Object.entries(word).map(([name, text]) => [name, `⟦${text}⟧`]));
export const messages = Object.fromEntries(Object.entries(english).map(([key, word]) => [key, wrap(word)]));
"""

# Names every visible text and every name, title and placeholder that is not (only) made of messages. What
# people and models wrote, names of models, and digits need none.
_UNWRAPPED = """
() => {
  const given = '[translate=no], .bubble, .body, #draft, kbd, time, code, .katex, option, svg, .chat-row,'
    + ' mark, .count';
  const bare = (text) => text.replace(/⟦[^⟦⟧]*(⟦[^⟦⟧]*⟧[^⟦⟧]*)*⟧/g, '').replace(/[\\s\\d\\p{P}\\p{S}]/gu, '');
  const found = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walk.nextNode(); node; node = walk.nextNode()) {
    const element = node.parentElement;
    if (element.closest(given + ', template, script, noscript') || !element.checkVisibility()) continue;
    if (bare(node.data) !== '') found.push(`${element.tagName}.${element.className}: ${node.data}`);
  }
  for (const element of document.body.querySelectorAll('*')) {
    for (const name of ['aria-label', 'title', 'placeholder', 'alt', 'aria-description', 'aria-valuetext']) {
      const value = element.getAttribute(name);
      if (value === null || !element.checkVisibility()) continue;
      if (element.closest('[translate=no], .chat-row')) continue;
      if (bare(value) !== '') found.push(`${element.tagName}.${element.className} ${name}: ${value}`);
    }
  }
  return [...new Set(found)];
}
"""


def _catalogue(page: Page) -> dict[str, object]:
    return dict(page.evaluate("async () => (await import('./static/words/en/all.js')).messages"))


def _foreign(browser: Browser, name: str) -> ChatPage:
    """A reader of another language, for which there is a folder of messages."""
    context = without_worker(browser, locale=name, viewport=WIDE)
    page = context.new_page()

    def words(route: Route) -> None:
        source = (STATIC / "words" / "words.js").read_text()
        changed = source.replace('LANGUAGES = ["en"]', f'LANGUAGES = ["en", "{name}"]')
        assert changed != source
        route.fulfill(body=changed, content_type="text/javascript")

    page.route("**/static/words/words.js", words)
    pseudo = f"**/static/words/{name}/all.js"
    page.route(pseudo, lambda route: route.fulfill(body=PSEUDO, content_type="text/javascript"))
    return ChatPage(page)


@pytest.fixture(scope="module")
def german(browser: Browser) -> ChatPage:
    return _foreign(browser, "de")


@pytest.fixture(scope="module")
def arabic(browser: Browser) -> ChatPage:
    return _foreign(browser, "ar")


@pytest.fixture
def pseudo(german: ChatPage, scripted: ScriptedServer) -> Iterator[ChatPage]:
    german.open(scripted.url)
    yield german
    german.page.goto("about:blank")


class _Written(HTMLParser):
    """What the page's HTML itself says for each of its keys."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str]] = []
        self._text: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self._text = given.get("data-t")
        for name, key in attrs:
            if name.startswith("data-t-"):
                self.found.append((key or "", given.get(name.removeprefix("data-t-")) or ""))

    def handle_data(self, data: str) -> None:
        if self._text is not None:
            self.found.append((self._text, data))
            self._text = None


def test_page_says_in_english_what_the_catalogue_has(modules: Page) -> None:
    """The words in index.html are there for the first paint: they are those of its keys."""
    written = _Written()
    written.feed((STATIC / "index.html").read_text())
    words = _catalogue(modules)
    assert len(written.found) > 50
    assert [(key, text) for key, text in written.found if words.get(key) != text] == []


def test_every_key_is_there_and_none_is_left_over(modules: Page) -> None:
    keys = set(_catalogue(modules))
    sources = [
        path for path in STATIC.rglob("*.js") if not {"vendor", "en"} & set(path.relative_to(STATIC).parts)
    ]
    text = "\n".join(path.read_text() for path in [*sources, STATIC / "index.html"])
    used = set(re.findall(r"\bt\(\s*[\"']([\w.]+)[\"']", text)) | set(
        re.findall(r'data-t[\w-]*="([\w.]+)"', text)
    )
    assert used - keys == set()
    quoted = set(re.findall(r"[\"'`]([\w-]+\.[\w.-]+)[\"'`]", text))  # also t(x ? "a.b" : "a.c")
    begun = tuple(re.findall(r"[`\"]([\w-]+\.[\w.-]*)(?:\$\{|\" \+)", text))  # `seeing.fact.${name}`
    assert {key for key in keys - quoted if not key.startswith(begun)} - used == set()


def test_folders_keep_to_their_own_words(modules: Page) -> None:
    """A catalogue names its keys after its folder; no two files have the same key."""
    seen: dict[str, str] = {}
    for path in sorted((STATIC / "words" / "en").glob("*.js")):
        if path.stem == "all":
            continue
        words = modules.evaluate(f"async () => (await import('./static/words/en/{path.name}')).{path.stem}")
        for key in words:
            assert key not in seen, f"{key} is in {seen[key]} and in {path.stem}"
            seen[key] = path.stem
    assert seen.keys() == _catalogue(modules).keys()


def test_nothing_is_said_outside_of_the_catalogue(pseudo: ChatPage, scripted: ScriptedServer) -> None:
    page = pseudo.page
    expect(page.locator("html")).to_have_attribute("lang", "de")
    expect(page.locator("#welcome h2")).to_have_text("⟦What shall we talk about?⟧")
    assert page.evaluate(_UNWRAPPED) == []
    scripted.script("Hello", [ROLE, delta("Hi."), delta("", "stop"), usage(2), DONE])
    pseudo.send("Hello")
    pseudo.wait_until_settled()
    assert page.evaluate(_UNWRAPPED) == []
    page.locator(".answer .facts-more").click()
    page.locator(".answer .more").click()
    assert page.evaluate(_UNWRAPPED) == []
    page.keyboard.press("Escape")


@pytest.mark.parametrize("opener", tiered(["open-settings", "open-keys", "toggle-engine"], {0}))
def test_nothing_is_said_outside_of_the_catalogue_in(opener: str, pseudo: ChatPage) -> None:
    pseudo.page.locator(f"#{opener}").click()
    places = {
        "open-settings": "#settings .content *",
        "open-keys": "dialog.key-sheet",
        "toggle-engine": "#engine *",
    }
    expect(pseudo.page.locator(places[opener]).first).to_be_visible()
    assert pseudo.page.evaluate(_UNWRAPPED) == []


@pytest.mark.slow
def test_language_from_right_to_left_turns_the_page_round(arabic: ChatPage, scripted: ScriptedServer) -> None:
    page = arabic.page
    arabic.open(scripted.url)
    expect(page.locator("html")).to_have_attribute("dir", "rtl")
    question, answer = "لماذا السماء زرقاء؟", "لأن الهواء يشتت الضوء الأزرق."
    scripted.script(question, [ROLE, delta(answer), delta("", "stop"), DONE])
    arabic.send(question)
    arabic.wait_until_settled()
    boxes = {
        name: page.locator(name).last.bounding_box()
        for name in ("#side", ".bubble", "#log", "#send", "#draft")
    }
    x = {name: box["x"] for name, box in boxes.items() if box is not None}
    middle = WIDE["width"] / 2
    assert x["#side"] > middle  # the list of chats at the right, the reader's own messages at the left
    assert x[".bubble"] < middle
    assert x["#send"] < x["#draft"]
    assert cut_off(page) == []
    page.locator("#toggle-engine").click()
    engine = page.locator("#engine-panel").bounding_box()
    assert engine is not None and engine["x"] < 1
    page.locator("#toggle-engine").click()
    page.goto("about:blank")


@pytest.mark.slow
def test_text_has_the_direction_of_its_own_words(chat: ChatPage, scripted: ScriptedServer) -> None:
    question = "لماذا السماء زرقاء؟"
    scripted.script(question, [ROLE, delta("لأن الهواء يشتت الضوء."), delta("", "stop"), DONE])
    chat.draft.fill(question)
    directions = "(e) => getComputedStyle(e).direction"
    assert chat.draft.evaluate(directions) == "rtl"
    chat.draft.press("Enter")
    chat.wait_until_settled()
    assert chat.users.last.evaluate(directions) == "rtl"
    paragraph = chat.body.locator("p").first if chat.body.locator("p").count() else chat.body
    assert paragraph.evaluate(directions) == "rtl"


def test_styles_know_no_left_and_right() -> None:
    """What stands at the start and what at the end depends on the language."""
    physical = re.compile(
        r"(?:margin|padding|border)-(?:left|right)\b|text-align:\s*(?:left|right)\b|float:\s*(?:left|right)\b"
        r"|(?:^|[;{\s])(?:left|right):"
    )
    found = {
        f"{path.name}: {line.strip()}"
        for path in sorted((STATIC / "styles").glob("*.css"))
        for line in path.read_text().splitlines()
        if physical.search(line) and "rtl" not in line
    }
    assert found == set(), json.dumps(sorted(found), indent=1)
