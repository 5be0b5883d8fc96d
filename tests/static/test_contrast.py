"""Every text can be read: its contrast against what lies behind it, in light and in dark."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from tests.static.chat_page import ChatPage
from tests.static.pictures import WIDE
from tests.static.scripted_server import DONE, ROLE, Refusal, ScriptedServer, delta, usage

pytestmark = pytest.mark.browser

ENOUGH = 4.5  # WCAG 2.2, 1.4.3
ANSWER = '''\
Words with a [link](https://a.example), `code` and **strong** ones, and a formula $x^2$.

## A heading

> Quoted words with a [link](https://a.example) and `code`.

- an item
- [x] done

| head | other |
| --- | --- |
| cell | `code` |

```python
@decorator
class Thing(Base):
    """What it is."""  # a comment

    def grow(self, by: int = 12, name=None) -> str:
        return f"{by:.2f} {print(True)}" if by else r"\\d"
```

```json
{"key": "text", "number": -1.5, "list": [true, null]}
```

```html
<!-- a comment -->
<!DOCTYPE html>
<p class="a" id='b'>words &amp; <b>more</b></p>
<style>.a > #b:hover { color: #fff; margin: 1px !important }</style>
<script>const value = /[a-z]+/.test(`${x}`) ?? new Date(); // why</script>
```

```diff
@@ -1 +1 @@
-before
+after
 the same
```
'''
SAMPLES = 4  # of code

TEXTS = {
    "body text": ".body p",
    "heading": ".body h4",
    "list": ".body li",
    "link": ".body p > a",
    "inline code": ".body p > code",
    "formula": ".body .katex-html .mord",
    "blockquote": ".body blockquote p",
    "link in a blockquote": ".body blockquote a",
    "code in a blockquote": ".body blockquote code",
    "table head": ".body th",
    "table cell": ".body td",
    "code in a table": ".body td code",
    "code block": ".body pre code",
    "language of a code block": ".code-language",
    "line of facts": ".stats",
    "user bubble": ".user .bubble",
    "note": ".note",
    "title of an error": ".problem .title",
    "detail of an error": ".problem .detail",
    "button of an error": ".problem .retry",
    "line below the message box": "#bottom .link",
    "message": "#draft",
    "model": "#model",
    "chat": ".chat-row:not([aria-current]) .chat-title",
    "chat that is open": ".chat-row[aria-current] .chat-title",
    "group of chats": ".chat-list h3",
    "foot of the list of chats": ".keep-foot .link",
}
PLACEHOLDERS = {"placeholder of a message": "#draft", "placeholder of the search": ".chat-search input"}

# The smallest contrast of each kind of text. Colours with alpha lie on those behind them, up to the page's.
_CONTRASTS = """([texts, placeholders]) => {
  const canvas = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true });
  const parse = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    const [red, green, blue, alpha] = canvas.getImageData(0, 0, 1, 1).data;
    return [[red, green, blue], alpha / 255];
  };
  const over = (upper, alpha, lower) => upper.map((value, at) => alpha * value + (1 - alpha) * lower[at]);
  const ground = (element) => {
    if (element === null) return parse('Canvas')[0];
    const style = getComputedStyle(element);
    if (style.backgroundImage !== 'none') throw new Error(`a picture lies behind ${element.className}`);
    const [colour, alpha] = parse(style.backgroundColor);
    return alpha === 1 ? colour : over(colour, alpha, ground(element.parentElement));
  };
  const opacity = (element) =>
    element === null ? 1 : Number(getComputedStyle(element).opacity) * opacity(element.parentElement);
  const light = (colour) => {
    const [red, green, blue] = colour.map((value) => value / 255)
      .map((value) => value <= .04045 ? value / 12.92 : ((value + .055) / 1.055) ** 2.4);
    return .2126 * red + .7152 * green + .0722 * blue;
  };
  const contrast = (element, pseudo) => {
    const style = getComputedStyle(element, pseudo);
    const behind = ground(element);
    const [colour, alpha] = parse(style.webkitTextFillColor);
    const own = pseudo === undefined ? 1 : Number(style.opacity);
    const [dark, bright] = [light(behind), light(over(colour, alpha * own * opacity(element), behind))]
      .sort((a, b) => a - b);
    return (bright + .05) / (dark + .05);
  };
  const result = {};
  const note = (name, ratio) => { result[name] = Math.min(result[name] ?? Infinity, ratio); };
  for (const [name, selector] of Object.entries(texts)) {
    const seen = [...document.querySelectorAll(selector)].filter((element) => element.checkVisibility());
    for (const element of seen) note(name, contrast(element));
  }
  for (const [name, selector] of Object.entries(placeholders)) {
    note(name, contrast(document.querySelector(selector), '::placeholder'));
  }
  for (const element of document.querySelectorAll('pre [class*=hljs-]')) {
    note(element.className, contrast(element));
  }
  return result;
}"""


@pytest.fixture
def full(chat: ChatPage, scripted: ScriptedServer) -> Iterator[ChatPage]:
    """A page with every kind of text on it."""
    page = chat.page
    page.set_viewport_size(WIDE)  # type: ignore[arg-type]
    page.emulate_media(reduced_motion="reduce")
    scripted.script("One", [ROLE, delta("Yes."), delta("", "stop"), DONE])
    scripted.script("Two", [ROLE, delta(ANSWER), delta("", "stop"), usage(40), DONE])
    scripted.script("Three", Refusal(429, "rate_limit_exceeded", "The queue is full.", {"retry-after": "20"}))
    chat.send("One")
    chat.wait_until_settled()
    chat.new_chat()
    chat.send("Two")
    chat.wait_until_settled()
    samples = chat.body.locator("pre")
    expect(samples).to_have_count(SAMPLES)
    for sample in samples.all():
        sample.scroll_into_view_if_needed()
        expect(sample.locator("[class*=hljs-]").first).to_be_visible()
    expect(chat.body.locator(".katex")).to_have_count(1)
    chat.send("Three")
    expect(chat.problem).to_be_visible()
    chat.send("/temperature 0.5")
    expect(page.locator(".note")).to_be_visible()
    expect(page.locator(".chat-row")).to_have_count(2)
    page.mouse.move(0, 0)
    yield chat
    page.emulate_media(color_scheme="light", reduced_motion="no-preference")


def test_the_yardstick(modules: Page) -> None:
    """Contrasts that are known."""
    known = {
        "grey": ("rgb(119 119 119)", "#fff", 1, 4.48),
        "black": ("#000", "#fff", 1, 21.0),
        "clear": ("rgb(0 0 0 / 50%)", "#fff", 1, 3.98),
        "faint": ("#000", "#fff", 0.5, 3.98),
        "veiled": ("#000", "rgb(0 0 0 / 50%)", 1, 5.28),
    }
    modules.evaluate(
        """known => {
          document.body.style.background = '#fff';
          for (const [name, [color, background, opacity]] of Object.entries(known)) {
            const element = document.createElement('p');
            [element.id, element.textContent] = [name, name];
            Object.assign(element.style, { color, background, opacity });
            document.body.append(element);
          }
        }""",
        known,
    )
    found = modules.evaluate(_CONTRASTS, [{name: f"#{name}" for name in known}, {}])
    assert found == {name: pytest.approx(ratio, abs=0.05) for name, (*_, ratio) in known.items()}


def test_every_text_stands_out(full: ChatPage) -> None:
    for scheme in ("light", "dark"):
        full.page.emulate_media(color_scheme=scheme, reduced_motion="reduce")  # type: ignore[arg-type]
        found = full.page.evaluate(_CONTRASTS, [TEXTS, PLACEHOLDERS])
        assert set(TEXTS) - set(found) == set(), "these are not on the page"
        assert len([name for name in found if name.startswith("hljs-")]) > 15
        weak = {name: round(ratio, 2) for name, ratio in found.items() if not ratio >= ENOUGH}
        assert weak == {}, scheme
    full.page.locator(".chat-row:not([aria-current])").hover()
    for scheme in ("dark", "light"):
        full.page.emulate_media(color_scheme=scheme, reduced_motion="reduce")  # type: ignore[arg-type]
        found = full.page.evaluate(_CONTRASTS, [{"chat": TEXTS["chat"]}, {}])
        assert found["chat"] >= ENOUGH, scheme
