"""An answer's text becomes the same elements however it comes, and those that marked makes of it."""

import random

import pytest
from playwright.sync_api import Page

from tests.static.markdown_documents import DOCUMENTS, random_document

pytestmark = pytest.mark.browser

# What is coloured or laid out differently is still the same code.
_HELPERS = """async () => {
  const { AnswerBody, showText } = await import('/static/reading/body.js');
  const { Marked } = await import('/static/vendor/marked/marked.esm.js');
  const stage = document.getElementById('log');
  const fresh = () => {
    const element = document.createElement('div');
    stage.replaceChildren(element);
    return element;
  };
  const plain = (element) => {
    const copy = element.cloneNode(true);
    for (const code of copy.querySelectorAll('.code code')) code.textContent = code.textContent;
    for (const part of copy.querySelectorAll('.part')) part.replaceWith(...part.childNodes);
    return copy.innerHTML;
  };
  // Many formulas are made over several tasks of the page.
  const settled = async (element) => {
    while (element.querySelector('[data-formula]') !== null) await new Promise((done) => setTimeout(done));
    return plain(element);
  };
  window.shown = (text) => {
    const element = fresh();
    showText(element, text);
    return settled(element);
  };
  window.streamed = (pieces) => {
    const element = fresh();
    let now = performance.now();
    const clock = performance.now;
    performance.now = () => (now += 1000); // each piece is shown at once
    const body = new AnswerBody(element);
    for (const piece of pieces) body.append(piece);
    body.finish();
    performance.now = clock;
    return settled(element);
  };
  // Text that flows by and then stops: whether the words at its end are seen at once, and later.
  window.flowed = async (pieces, words) => {
    const element = fresh();
    let now = performance.now();
    const clock = performance.now;
    performance.now = () => (now += 100);
    const body = new AnswerBody(element);
    for (const piece of pieces) body.append(piece);
    performance.now = clock;
    const found = [element.textContent.includes(words)];
    for (let turns = 0; turns < 1000 && !element.textContent.includes(words); turns++)
      await new Promise((done) => setTimeout(done, 20));
    return [...found, element.textContent.includes(words)];
  };
  // The same words in the same elements, without what only one of both makes of them.
  const bare = (element) => {
    for (const text of element.querySelectorAll('code, .formula')) text.textContent = text.textContent.trim();
    for (const node of element.querySelectorAll('.code-head, thead:empty, tbody:empty')) node.remove();
    const wrappers = element.querySelectorAll('div, span, input, .lines');
    for (const node of wrappers) node.replaceWith(...node.childNodes);
    element.normalize();
    return element.innerHTML
      .replace(/<(\\/?)h([1-6])/g, (_, end, n) => `<${end}h${Math.min(6, Number(n))}`)
      .replace(/<(\\w+)[^>]*>/g, '<$1>').replace(/\\s+/g, ' ').replace(/ ?(<[^>]+>) ?/g, '$1').trim();
  };
  window.ours = (text) => {
    const element = fresh();
    showText(element, text);
    return bare(element.cloneNode(true));
  };
  // Headings and pictures are asked of marked as the page has them, markup as text.
  const marked = new Marked({ gfm: true, breaks: true });
  const escape = (text) => text.replace(/&/g, '&amp;').replace(/</g, '&lt;').replace(/>/g, '&gt;');
  marked.use({ renderer: {
    heading({ depth, tokens }) {
      const level = Math.min(6, depth + 2);
      return `<h${level}>${this.parser.parseInline(tokens)}</h${level}>`;
    },
    html: ({ text, block }) => block ? `<p>${escape(text)}</p>` : /^<br/.test(text) ? text : escape(text),
  } });
  window.theirs = (text) => {
    const element = document.createElement('div');
    element.append(DOMPurify.sanitize(marked.parse(text), { RETURN_DOM_FRAGMENT: true }));
    return bare(element);
  };
  // Before they are loaded, formulas are shown as they are written.
  showText(fresh(), '$x$');
  while (stage.querySelector('[data-formula]') !== null) await new Promise(requestAnimationFrame);
}"""


@pytest.fixture
def reading(modules: Page) -> Page:
    """A page with helpers that show a text at once or in pieces, and give back its elements as text."""
    modules.evaluate(_HELPERS)
    return modules


def cut(text: str, pick: random.Random) -> list[str]:
    """The text in pieces of 1 to 9 characters, as tokens are, sometimes more; long texts in longer ones."""
    pieces = []
    scale = 1 + len(text) // 1000
    while text:
        length = scale * pick.choice((1, 2, 3, 4, 5, 6, 9, 40))
        pieces.append(text[:length])
        text = text[length:]
    return pieces


def test_documents_are_the_same_streamed_and_at_once(reading: Page) -> None:
    pick = random.Random(1)
    for name, text in DOCUMENTS.items():
        shown = reading.evaluate("text => shown(text)", text)
        assert reading.evaluate("pieces => streamed(pieces)", cut(text, pick)) == shown, name


def test_random_documents_are_the_same_streamed_and_at_once(reading: Page) -> None:
    pick = random.Random(2)
    documents = [random_document(pick) for _ in range(120)]
    pieces = [cut(text, pick) for text in documents]
    pairs = reading.evaluate(
        """async ([texts, pieces]) => {
          const pairs = [];
          for (const [k, text] of texts.entries()) pairs.push([await shown(text), await streamed(pieces[k])]);
          return pairs;
        }""",
        [documents, pieces],
    )
    for text, (shown, streamed) in zip(documents, pairs, strict=True):
        assert streamed == shown, text


# Why these differ: formulas and pictures are no markdown of marked's; a relative address is no link here;
# markup that is shown as text keeps its lines; a very long paragraph is cut.
DIFFERENT = {"formulas", "escapes", "images", "references", "markup", "long paragraph", "odd labels"}


def test_documents_are_what_marked_makes_of_the_whole(reading: Page) -> None:
    different = {
        name: (ours, theirs)
        for name, text in DOCUMENTS.items()
        for ours, theirs in [reading.evaluate("text => [ours(text), theirs(text)]", text)]
        if ours != theirs
    }
    unexpected = {name: pair for name, pair in different.items() if name not in DIFFERENT}
    assert unexpected == {}


def test_only_languages_that_are_named_are_loaded(reading: Page) -> None:
    """Code without a name is just code, and what every object has is no language."""
    found = reading.evaluate(
        """async () => {
          const { languageOf } = await import('/static/reading/highlight.js');
          return ['', 'constructor', '__proto__', 'text', 'Py', 'c++', 'swift'].map(languageOf);
        }"""
    )
    assert found == [None, None, None, None, "python", "cpp", "swift"]


def test_what_is_not_whole_of_a_flow_of_text_is_seen_when_the_flow_stops(reading: Page) -> None:
    """While text flows by, changes that show whole blocks leave out the rest; nothing stays unseen."""
    block = "so many words " * 80 + "\n\n"
    begun = "- a list of\n- two items, the second of which goes on"
    for end in (
        "and the end",
        begun,
        "```\ncode goes on",
        "| a | b |\n|--|--|\n| c | goes on",
        "**it goes on",
    ):
        words = end.split("\n")[-1].split("|")[-1].strip("*- ")
        pieces = [block + "so"] + [" many words" + block + "so"] * 5 + [f" many words\n\n{end}"]
        at_once, later = reading.evaluate("([pieces, words]) => flowed(pieces, words)", [pieces, words])
        assert (at_once, later) == (False, True), end
