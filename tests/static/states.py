"""The states that the page can be in, each reached as a reader would: for its pictures, and for whoever
checks every state (contrast, names, overflow).

A state begins on a freshly opened page with nothing stored, and leaves the page as it is to be looked at.
"""

import math
from collections.abc import Callable

from playwright.sync_api import expect

from tests.static.chat_page import ChatPage, until_at_rest
from tests.static.scripted_server import (
    DONE,
    GATE,
    Pause,
    Refusal,
    ScriptedServer,
    Step,
    delta,
    role,
    score,
    usage,
)

State = Callable[[ChatPage, ScriptedServer], None]

QUESTION = "How strongly does air scatter blue light, compared with red?"
ANSWER = r"""About **four and a half times** as strongly. Air scatters light by Rayleigh's law:

$$I \propto \frac{1}{\lambda^4}$$

## In numbers

| colour | wavelength $\lambda$ | scattered, red = 1 |
| --- | ---: | ---: |
| red | 680 nm | 1.0 |
| blue | 465 nm | 4.6 |

## In code

```python
def scattered(wavelength: float, than: float = 680.0) -> float:
    # How many times as much light as at another wavelength.
    return (than / wavelength) ** 4
```

- Violet is scattered *even more*, but the sun sends less of it, and we see it poorly.
- A low sun has lost its blue: see [Rayleigh scattering](https://en.wikipedia.org/wiki/Rayleigh_scattering).
"""
SECONDS = 0.004  # between two pieces


def pieces_of(text: str) -> list[str]:
    """Words with the space after them, as tokens are about."""
    cut = text.split(" ")
    return [word + " " for word in cut[:-1]] + cut[-1:]


def steps_of(text: str, seed: int = 20) -> list[Step]:
    """A whole answer at the pace of a fast model."""
    pieces = pieces_of(text)
    steps: list[Step] = [role(seed=seed)]
    for at in range(0, len(pieces), 8):
        steps += [b"".join(delta(piece) for piece in pieces[at : at + 8]), Pause(SECONDS)]
    return [*steps, delta("", "stop"), usage(len(pieces)), DONE]


def ask(chat: ChatPage, question: str) -> None:
    """Sends a message and waits for the whole answer."""
    chat.send(question)
    chat.wait_until_settled()


def empty(chat: ChatPage, server: ScriptedServer) -> None:
    """Nothing was said yet."""
    expect(chat.page.locator("#welcome")).to_be_visible()


def conversation(chat: ChatPage, server: ScriptedServer) -> None:
    """An answer with everything that markdown has."""
    server.script(QUESTION, steps_of(ANSWER))
    ask(chat, QUESTION)
    expect(chat.body.locator("pre")).to_have_count(1)
    expect(chat.body.locator(".katex").first).to_be_visible()
    expect(chat.body.locator("pre [class*=hljs-]").first).to_be_visible()


def streaming(chat: ChatPage, server: ScriptedServer) -> None:
    """An answer that grows, in the middle of a block of code."""
    begun = ANSWER[: ANSWER.index("    return")]
    server.script(QUESTION, [*steps_of(begun)[:-3], *[GATE] * 100])
    chat.send(QUESTION)
    expect(chat.body.locator("pre")).to_contain_text("How many times")
    expect(chat.answers.last).to_have_attribute("aria-busy", "true")


def settings(chat: ChatPage, server: ScriptedServer) -> None:
    """The sheet with the sampling fields."""
    chat.page.locator("#open-settings").click()
    expect(chat.page.locator("#settings")).to_be_visible()
    until_at_rest(chat.page)


def compare(chat: ChatPage, server: ScriptedServer) -> None:
    """Two answers side by side."""
    question = "Why is the sky blue?"
    first = "Air scatters **short waves** far more than long ones, so blue light reaches us from all sides."
    second = (
        "Sunlight holds all colours. Molecules of air turn *blue* aside most of all, into every direction."
    )
    more = "\n\n- Red passes almost straight through.\n- Violet is scattered too, but our eyes hardly see it."
    server.script(
        question, steps_of(first + more), steps_of(second + "\n\n> The evening sky shows the rest.")
    )
    ask(chat, question)
    chat.answers.last.hover()
    chat.page.locator(".answer .compare").last.click()
    expect(chat.page.locator(".pair .answer")).to_have_count(2)
    expect(chat.page.locator(".pair .answer[aria-busy=false]")).to_have_count(2)


def heat(chat: ChatPage, server: ScriptedServer) -> None:
    """Every token coloured by its probability."""
    question = "Name an animal that lives at sea."
    text = "A blue whale is the largest animal that has ever lived, and it eats very small krill."
    tokens = pieces_of(text)
    steps: list[Step] = [role(seed=20)]
    for at, token in enumerate(tokens):
        value = -0.02 - 2.4 * abs(math.sin(1.7 * at)) ** 3
        others = {"The ": value - 0.6, "One ": value - 1.5, "Some ": value - 2.2}
        steps.append(delta(token, logprobs=[score(token, value, others)]))
    server.script(question, [*steps, delta("", "stop"), usage(len(tokens)), DONE])
    ask(chat, question)
    chat.answers.last.hover()
    chat.page.locator(".answer .heat").last.click()
    chat.page.locator(".answer .heat[aria-pressed=true]").last.wait_for()


def error(chat: ChatPage, server: ScriptedServer) -> None:
    """The server is full: the page counts down."""
    question = "Is there room for one more?"
    server.script(question, Refusal(429, "rate_limit_exceeded", "The queue is full.", {"retry-after": "20"}))
    ask(chat, question)
    expect(chat.problem).to_be_visible()


def key_dialog(chat: ChatPage, server: ScriptedServer) -> None:
    """The server asks for a key."""
    server.script("Hello", steps_of("Hello!"))
    server.api_key = "sesame"
    chat.send("Hello")
    expect(chat.page.locator("dialog[open]")).to_be_visible()
    until_at_rest(chat.page)


def keys_sheet(chat: ChatPage, server: ScriptedServer) -> None:
    """All keys of the page."""
    chat.page.locator("#open-keys").click()
    expect(chat.page.locator("dialog[open]")).to_be_visible()
    until_at_rest(chat.page)


def sidebar(chat: ChatPage, server: ScriptedServer) -> None:
    """The chats that are kept."""
    _keep_chats(chat, server)
    _open_sidebar(chat)
    expect(chat.page.locator("#sidebar")).to_contain_text(_CHATS[0][0])


def search(chat: ChatPage, server: ScriptedServer) -> None:
    """What is found in the chats that are kept."""
    _keep_chats(chat, server)
    _open_sidebar(chat)
    chat.page.locator("#sidebar input[type=search]").fill("lighthouse")
    expect(chat.page.locator("#sidebar mark").first).to_be_visible()


def engine(chat: ChatPage, server: ScriptedServer) -> None:
    """The engine's state, and its last minutes."""
    chat.page.evaluate(_PAST)
    server.tell(running=6, blocks_used=74, waiting=2, tokens_per_second=812.5)
    chat.page.locator("#toggle-engine").click()
    expect(chat.page.locator("#engine-panel")).to_be_visible()
    expect(chat.page.locator("#engine")).to_contain_text("74")
    until_at_rest(chat.page)


# As if the panel had been open for some minutes.
_PAST = """
async () => {
  const { History } = await import('./static/seeing/history.js');
  const add = History.prototype.add;
  History.prototype.add = function (at, values) {
    History.prototype.add = add;
    for (let second = 240; second > 0; second -= 2) {
      const rows = Math.max(0, Math.round(4 + 3 * Math.sin(second / 17) + 1.5 * Math.sin(second / 5)));
      const speed = 130 * rows * (1 + 0.06 * Math.sin(second * 7));
      add.call(this, at - 1000 * second, [speed, rows, Math.min(1, 0.1 * rows + 0.05)]);
    }
    add.call(this, at, values);
  };
}
"""

_CHATS = [
    ("Why is the sky blue?", "Because air scatters blue light more than red."),
    ("Write a short story about a lighthouse.", "The lamp of the old lighthouse burned for ninety years."),
    ("Give me three tips for a good night's sleep.", "Keep the room dark, cool and quiet."),
    ("What does a keeper of a lighthouse do all day?", "He trims the lamp and writes down the weather."),
]


def _keep_chats(chat: ChatPage, server: ScriptedServer) -> None:
    for question, answer in reversed(_CHATS):
        server.script(question, steps_of(answer))
        ask(chat, question)
        if question != _CHATS[0][0]:
            chat.new_chat()


def _open_sidebar(chat: ChatPage) -> None:
    toggle = chat.page.locator("#toggle-sidebar")
    if toggle.get_attribute("aria-expanded") != "true":
        toggle.click()
    expect(chat.page.locator("#sidebar")).to_be_visible()
    until_at_rest(chat.page)


STATES: dict[str, State] = {
    "empty": empty,
    "conversation": conversation,
    "streaming": streaming,
    "settings": settings,
    "sidebar": sidebar,
    "search": search,
    "engine": engine,
    "compare": compare,
    "heat": heat,
    "error": error,
    "key": key_dialog,
    "keys": keys_sheet,
}
