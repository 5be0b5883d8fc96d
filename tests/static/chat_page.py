"""Drives the chat page in a browser: what a reader does, and what a reader would see go wrong.

Nothing in here knows what the server is, so the same steps run against a script and against the real thing.
"""

import json
from dataclasses import dataclass, field
from itertools import pairwise
from urllib.parse import urlsplit

from playwright.sync_api import ConsoleMessage, Locator, Page, expect

# Guards against waiting for ever. A busy machine may take half a minute for a step, and not be wrong.
DEADLINE_MS = 30_000
expect.set_options(timeout=DEADLINE_MS)

# Notes each distinct text of the newest answer, and each breach of the Content-Security-Policy.
_WATCH = """
window.growth = [];
window.breaches = [];
document.addEventListener('securitypolicyviolation', (event) => {
  breaches.push(event.violatedDirective + ' ' + event.blockedURI);
});
document.addEventListener('DOMContentLoaded', () => {
  const note = () => {
    const text = [...document.querySelectorAll('.answer .body')].at(-1)?.textContent ?? '';
    if (text !== '' && text !== growth.at(-1)) growth.push(text);
  };
  const log = document.getElementById('log');
  new MutationObserver(note).observe(log, { subtree: true, childList: true, characterData: true });
});
"""

# Nothing moves or fades any more, but for what never rests.
_AT_REST = """() => document.getAnimations().every((animation) =>
  animation.playState !== 'running' || animation.effect.getComputedTiming().endTime === Infinity)"""


def until_at_rest(page: Page) -> None:
    """Waits until places, sizes and colours are what they are going to be."""
    page.wait_for_function(_AT_REST)


@dataclass(slots=True)
class ChatPage:
    """A browser's tab with the chat page, and everything that went wrong on it since it was opened."""

    page: Page
    url: str = ""
    requests: list[str] = field(default_factory=list)
    console: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.set_default_timeout(DEADLINE_MS)
        self.page.add_init_script(_WATCH)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.console.append(str(error)))
        self.page.on("console", lambda message: self._note_console(message))

    def open(self, url: str, **settings: float) -> None:
        """Loads the page and waits until it has tried to learn its model.

        Nothing is stored from before but these settings, named as in a request (`max_tokens=60`).
        """
        self.url = url
        self.requests.clear()
        self.console.clear()
        forget = {"origin": f"http://{urlsplit(url).netloc}", "storageTypes": "all"}
        cdp = self.page.context.new_cdp_session(self.page)
        cdp.send("Storage.clearDataForOrigin", forget)
        cdp.detach()
        self.page.goto(url)
        if settings:
            stored = ["fastpath.settings", json.dumps(settings)]
            self.page.evaluate("([key, value]) => localStorage.setItem(key, value)", stored)
            self.page.reload()
        expect(self.page.locator("#model")).not_to_have_text("")

    def _note_console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.console.append(message.text)

    # What is on the page

    @property
    def draft(self) -> Locator:
        return self.page.locator("#draft")

    @property
    def users(self) -> Locator:
        return self.page.locator(".user .bubble")

    @property
    def answers(self) -> Locator:
        return self.page.locator(".answer")

    @property
    def body(self) -> Locator:
        """The text of the newest answer."""
        return self.page.locator(".answer .body").last

    @property
    def stats(self) -> Locator:
        return self.page.locator(".answer .stats").last

    @property
    def problem(self) -> Locator:
        return self.page.locator(".answer .problem").last

    # What a reader does

    def send(self, text: str) -> None:
        """Types a message and presses Enter."""
        self.page.evaluate("growth.length = 0")
        self.draft.fill(text)
        self.draft.press("Enter")

    def regenerate(self) -> None:
        self.page.evaluate("growth.length = 0")
        self.answers.last.hover()
        self.page.locator(".answer .regenerate").last.click()

    def stop(self) -> None:
        self.page.get_by_role("button", name="Stop").click()

    def new_chat(self) -> None:
        self.page.get_by_role("button", name="New chat").click()

    # What a reader waits for

    def wait_until_settled(self, timeout_ms: float = DEADLINE_MS) -> None:
        """Waits until the newest answer grows no more."""
        expect(self.answers.last).to_have_attribute("aria-busy", "false", timeout=timeout_ms)

    def wait_until_grown(self, texts: int) -> None:
        """Waits until the newest answer has been seen in so many different lengths."""
        self.page.wait_for_function("n => growth.length >= n", arg=texts)

    def growth(self) -> list[str]:
        """The distinct texts of the newest answer, oldest first, since the last send or regenerate."""
        return list(self.page.evaluate("growth"))

    # What must hold at all times

    def check_clean(self) -> None:
        """No request left the origin, nothing broke the policy, nothing was logged as an error."""
        origin = urlsplit(self.url).netloc
        away = [url for url in self.requests if urlsplit(url).netloc not in (origin, "")]
        assert away == []
        assert self.page.evaluate("breaches") == []
        assert self.console == []


def check_growing_answer(chat: ChatPage, message: str) -> str:
    """Sends a message, sees the answer grow in the page, and gives back its final text."""
    chat.send(message)
    expect(chat.users.last).to_have_text(message)
    chat.wait_until_grown(2)
    chat.wait_until_settled()
    texts = chat.growth()
    assert len(texts) >= 3, "the answer did not appear piece by piece"
    assert all(later.startswith(earlier) for earlier, later in pairwise(texts))
    assert chat.body.text_content() == texts[-1]
    expect(chat.stats).to_contain_text("to first token")
    expect(chat.stats).to_contain_text("tok/s")
    expect(chat.page.get_by_role("status")).to_contain_text("Answer finished")
    return texts[-1]


def check_stop(chat: ChatPage, message: str) -> str:
    """Stops an answer (one that would go on for long) once it grows, and gives back what stayed of it."""
    chat.send(message)
    chat.wait_until_grown(2)
    chat.stop()
    chat.wait_until_settled()
    text = chat.body.text_content() or ""
    assert text.startswith(chat.growth()[1])
    expect(chat.stats).to_contain_text("stopped")
    expect(chat.page.get_by_role("button", name="Send")).to_be_visible()
    return text


def check_regenerate(chat: ChatPage) -> str:
    """Answers the last message again and gives back the new answer."""
    users, answers = chat.users.count(), chat.answers.count()
    chat.regenerate()
    chat.wait_until_grown(1)
    chat.wait_until_settled()
    assert (chat.users.count(), chat.answers.count()) == (users, answers)
    return chat.body.text_content() or ""


def check_new_chat(chat: ChatPage) -> None:
    """Starts anew: the conversation is gone and the examples are back."""
    chat.new_chat()
    expect(chat.answers).to_have_count(0)
    expect(chat.users).to_have_count(0)
    expect(chat.page.locator("#welcome")).to_be_visible()
