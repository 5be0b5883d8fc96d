"""The newest text stays in view while an answer grows, and whoever reads something else is left alone."""

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.static.chat_page import ChatPage
from tests.static.scripted_server import DONE, GATE, ROLE, ScriptedServer, Step, delta, usage

pytestmark = pytest.mark.browser

PARAGRAPH = "Water that falls on the hills runs down to the sea, and rises from it again. " * 3 + "\n\n"
QUIET = "Six words stand here, no more."

# Resolves when nothing has moved for some frames: all that had to be laid out is.
_STILL = """() => new Promise((done) => {
  const scroller = document.getElementById('scroller');
  let last = '', same = 0;
  const look = () => {
    const now = scroller.scrollTop + ' ' + scroller.scrollHeight;
    same = now === last ? same + 1 : 0;
    last = now;
    if (same >= 4) done(scroller.scrollTop); else requestAnimationFrame(look);
  };
  look();
})"""

_LEFT = """() => {
  const { scrollHeight, clientHeight, scrollTop } = document.getElementById('scroller');
  return scrollHeight - clientHeight - scrollTop;
}"""

# A conversation whose messages have another height with markdown than without.
_KEEP = """async () => {
  const { Library } = await import('./static/keep/library.js');
  const { Conversation, newHead } = await import('./static/core/conversation.js');
  const one = new Conversation({ head: newHead(), messages: [] });
  const table = '| a | b |\\n|---|---|\\n' + '| *some words* | `1` |\\n'.repeat(5);
  const answers = [
    'Some **words** about it.\\n\\n- one\\n- two\\n- three\\n\\n'.repeat(3),
    '## Heading\\n\\n' + table + '\\n\\nAnd a line.\\n\\n',
    'Before\\n\\n```js\\n' + 'const value = call(1, "two");\\n'.repeat(12) + '```\\n\\nAfter\\n',
    '> quoted words\\n\\n1. first\\n\\n2. second\\n\\n$$x^2$$\\n\\n' + 'One long line of it. '.repeat(30),
  ];
  for (let at = 0; at < 100; at++) {
    one.add(one.head.leaf, { role: 'user', content: `Question ${at}` });
    one.add(one.head.leaf, { role: 'assistant', content: `Answer ${at}\\n\\n` + answers[at % 4] });
  }
  const library = await Library.open();
  await library.write(one.records());
  library.close();
  return one.head.id;
}"""

# Where the message is that stands in the middle of the view.
_MIDDLE = """() => {
  const { top, height, left, width } = document.getElementById('scroller').getBoundingClientRect();
  const middle = top + height / 2;
  const messages = [...document.querySelectorAll('#log > .message')];
  const message = messages.findLast((element) => element.getBoundingClientRect().top <= middle);
  return [message.dataset.id, message.getBoundingClientRect().top];
}"""
_TOP = "id => document.querySelector(`.message[data-id='${id}']`).getBoundingClientRect().top"


def still(page: Page) -> float:
    """Waits until nothing moves, and says how far down the page is."""
    return float(page.evaluate(_STILL))


def left(page: Page) -> float:
    """How far the end is below what is seen."""
    return float(page.evaluate(_LEFT))


def top_of(element: Locator) -> float:
    return float(element.evaluate("element => element.getBoundingClientRect().top"))


@pytest.fixture
def growing(chat: ChatPage, scripted: ScriptedServer) -> ChatPage:
    """An answer that fills the page; each release adds five paragraphs."""
    steps: list[Step] = [ROLE, *[delta(PARAGRAPH)] * 12]
    for _ in range(6):
        steps += [GATE, *[delta(PARAGRAPH)] * 5]
    scripted.script("Tell me", [*steps, GATE, delta("The end."), delta("", "stop"), usage(40), DONE])
    chat.send("Tell me")
    expect(chat.body.locator("p")).to_have_count(12)
    still(chat.page)
    assert left(chat.page) <= 1, "the newest text is in view"
    return chat


def grow(chat: ChatPage, scripted: ScriptedServer) -> None:
    """Lets five more paragraphs come."""
    before = chat.body.locator("p").count()
    scripted.release()
    expect(chat.body.locator("p")).to_have_count(before + 5)
    still(chat.page)


def check_left_alone(chat: ChatPage, scripted: ScriptedServer) -> None:
    """The page does not move under the reader, who is told of more and can go there."""
    jump = chat.page.locator("#jump")
    before = still(chat.page)
    grow(chat, scripted)
    assert still(chat.page) == before
    expect(jump).to_be_visible()
    expect(jump).to_have_class("jump unread")
    expect(jump).to_have_accessible_name("Jump to the newest text, there is more below")
    jump.click()
    expect(jump).to_be_hidden()
    assert left(chat.page) <= 1
    grow(chat, scripted)
    assert left(chat.page) <= 1, "the jump takes hold again"
    expect(jump).to_have_attribute("aria-label", "Jump to the newest text")


def wheel(page: Page, pixels: int) -> None:
    box = page.locator("#scroller").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.wheel(0, pixels)


def test_the_wheel_lets_go_at_once(growing: ChatPage, scripted: ScriptedServer) -> None:
    wheel(growing.page, -30)  # still near the end
    growing.page.wait_for_function(f"() => ({_LEFT})() > 5")
    check_left_alone(growing, scripted)


@pytest.mark.slow
def test_the_wheel_takes_hold_at_the_end(growing: ChatPage, scripted: ScriptedServer) -> None:
    wheel(growing.page, -400)
    growing.page.wait_for_function(f"() => ({_LEFT})() > 300")
    grow(growing, scripted)
    assert left(growing.page) > 300
    wheel(growing.page, 5000)
    growing.page.wait_for_function(f"() => ({_LEFT})() <= 1")
    expect(growing.page.locator("#jump")).to_be_hidden()
    grow(growing, scripted)
    assert left(growing.page) <= 1


@pytest.mark.slow
def test_a_finger_lets_go_at_once(growing: ChatPage, scripted: ScriptedServer) -> None:
    cdp = growing.page.context.new_cdp_session(growing.page)
    for kind, y in [("touchStart", 200), *(("touchMove", 200 + 30 * step) for step in range(1, 7))]:
        cdp.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": 700, "y": y}]})
    cdp.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    cdp.detach()
    growing.page.wait_for_function(f"() => ({_LEFT})() > 50")
    check_left_alone(growing, scripted)


@pytest.mark.slow
def test_page_up_lets_go_at_once(growing: ChatPage, scripted: ScriptedServer) -> None:
    growing.page.locator("#scroller").focus()
    growing.page.keyboard.press("PageUp")
    growing.page.wait_for_function(f"() => ({_LEFT})() > 100")
    check_left_alone(growing, scripted)


@pytest.mark.slow
def test_marking_text_lets_go_at_once(growing: ChatPage, scripted: ScriptedServer) -> None:
    marked = growing.body.locator("p").nth(11)
    marked.click(click_count=3)
    place = top_of(marked)
    grow(growing, scripted)
    assert top_of(marked) == place
    growing.page.mouse.click(*[round(value) for value in (600, place + 10)])  # marks nothing any more
    check_left_alone(growing, scripted)


def test_a_question_goes_to_the_top_and_its_answer_below(growing: ChatPage, scripted: ScriptedServer) -> None:
    growing.stop()
    growing.wait_until_settled()
    more, much = [delta(PARAGRAPH)] * 2, [delta(PARAGRAPH)] * 12
    scripted.script("Next", [ROLE, delta(QUIET + "\n\n"), GATE, *more, GATE, *much, GATE])
    growing.send("Next")
    expect(growing.body).to_contain_text(QUIET)
    place = still(growing.page)
    question = growing.page.locator(".message.user").last
    below = top_of(question) - top_of(growing.page.locator("#scroller"))
    assert -1 <= below <= 24
    expect(growing.page.locator("#jump")).to_be_hidden()
    scripted.release()
    expect(growing.body.locator("p")).to_have_count(3)
    assert still(growing.page) == place, "the page stands while there is room"
    scripted.release()
    expect(growing.body.locator("p")).to_have_count(15)
    assert still(growing.page) > place
    assert left(growing.page) <= 1, "then it follows"


@pytest.mark.slow
def test_old_messages_get_their_markdown_without_a_jump(chat: ChatPage) -> None:
    page = chat.page
    identity = page.evaluate(_KEEP)
    page.goto(f"{chat.url}#/chat/{identity}")
    page.reload()
    expect(page.locator("#log > .message")).to_have_count(200)
    still(page)
    assert left(page) <= 1
    assert page.locator(".message.plain").count() > 150, "far away there is only text"
    moves = []
    for step in (120, 240, 480, 360, 700) * 3:
        message, before = page.evaluate(_MIDDLE)
        wheel(page, -step)
        page.wait_for_function(f"([id, before]) => ({_TOP})(id) > before + 1", arg=[message, before])
        still(page)
        moves.append(page.evaluate(_TOP, message) - before - step)
    assert page.locator(".message.plain").count() < 180
    assert [round(move) for move in moves if abs(move) > 16] == []
