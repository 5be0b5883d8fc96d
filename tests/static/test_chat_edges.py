"""What happens when a reader does two things at once, or comes back at an awkward moment."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import expect

from tests.static.chat_page import ChatPage
from tests.static.scripted_server import DONE, GATE, ROLE, Refusal, ScriptedServer, delta, event
from tests.static.test_chat import kept, messages, says, stuck

pytestmark = pytest.mark.browser

BUSY = Refusal(429, "queue_full", "Queue is full.", {"Retry-After": "1"})
BROKEN = Refusal(500, "internal", "It broke.")

# Reading a conversation takes until `goOn()` is called: once for each reading, in order.
SLOW_READS = """async () => {
  const { Library } = await import('/static/keep/library.js');
  const read = Library.prototype.read;
  const waiting = [];
  window.goOn = (at) => waiting[at]();
  window.reads = () => waiting.length;
  Library.prototype.read = async function (id) {
    await new Promise((done) => waiting.push(done));
    return read.call(this, id);
  };
}"""


@pytest.fixture
def second(tab: ChatPage) -> Iterator[ChatPage]:
    """Another tab of the same browser."""
    page = tab.page.context.new_page()
    yield ChatPage(page)
    page.close()


def talk(chat: ChatPage, scripted: ScriptedServer, message: str, answer: str) -> str:
    """Says something in a new chat and gives back its address."""
    scripted.script(message, says(answer))
    chat.new_chat()
    chat.send(message)
    expect(chat.body).to_have_text(answer)
    chat.wait_until_settled()
    return chat.page.url


def go(chat: ChatPage, address: str) -> None:
    chat.page.evaluate("address => { location.href = address }", address)


@pytest.mark.slow
def test_the_way_to_the_message_box_leaves_the_chat_open(chat: ChatPage, scripted: ScriptedServer) -> None:
    address = talk(chat, scripted, "Hello", "Hi.")
    chat.page.locator("a.skip").focus()
    chat.page.keyboard.press("Enter")
    expect(chat.draft).to_be_focused()
    chat.page.evaluate("() => new Promise(requestAnimationFrame)")
    expect(chat.users).to_have_text(["Hello"])
    assert chat.page.url == address


@pytest.mark.slow
def test_trying_again_takes_nothing_away_that_followed(chat: ChatPage, scripted: ScriptedServer) -> None:
    scripted.script("One", BROKEN, says("First."))
    scripted.script("Two", says("Second."))
    chat.send("One")
    expect(chat.problem).to_contain_text("It broke")
    chat.send("Two")
    expect(chat.body).to_have_text("Second.")
    chat.wait_until_settled()
    chat.answers.first.get_by_role("button", name="Try again").click()
    expect(chat.body).to_have_text("First.")
    chat.wait_until_settled()
    chat.answers.first.locator(".variants .prev").click()
    expect(chat.users).to_have_text(["One", "Two"])
    expect(chat.body).to_have_text("Second.")


@pytest.mark.slow
def test_undo_of_a_deletion_keeps_what_was_said_since(chat: ChatPage, scripted: ScriptedServer) -> None:
    scripted.script("One", says("First."))
    scripted.script("Two", says("Second."))
    scripted.script("Three", stuck("Third."))
    for message in ("One", "Two"):
        chat.send(message)
        chat.wait_until_settled()
    chat.users.last.hover()
    chat.page.get_by_role("button", name="Delete this message").last.click()
    chat.send("Three")
    expect(chat.body).to_have_text("Third.")
    chat.page.get_by_role("button", name="Undo").click()
    expect(chat.users).to_have_text(["One", "Three"])
    expect(chat.page.locator(".user .variants").last).to_contain_text("2/2")
    scripted.release()
    expect(chat.body).to_have_text("Third. The end.")
    kept(chat.page, "Third. The end.")
    chat.page.reload()
    expect(chat.body).to_have_text("Third. The end.")
    chat.page.locator(".user .variants .prev").last.click()
    expect(chat.users).to_have_text(["One", "Two"])
    expect(chat.body).to_have_text("Second.")


@pytest.mark.slow
def test_a_slow_chat_does_not_replace_a_later_one(chat: ChatPage, scripted: ScriptedServer) -> None:
    one = talk(chat, scripted, "One", "First.")
    two = talk(chat, scripted, "Two", "Second.")
    chat.new_chat()
    chat.page.evaluate(SLOW_READS)
    go(chat, one)
    go(chat, two)
    chat.page.wait_for_function("() => reads() === 2")
    chat.page.evaluate("goOn(1)")
    expect(chat.body).to_have_text("Second.")
    chat.page.evaluate("goOn(0)")
    chat.page.evaluate("() => new Promise((done) => setTimeout(done, 100))")
    expect(chat.body).to_have_text("Second.")
    assert chat.page.url == two
    go(chat, one)
    chat.page.wait_for_function("() => reads() === 3")
    chat.new_chat()
    chat.page.evaluate("goOn(2)")
    chat.page.evaluate("() => new Promise((done) => setTimeout(done, 100))")
    expect(chat.users).to_have_count(0)
    assert "#/chat" not in chat.page.url


@pytest.mark.slow
def test_a_busy_chat_that_is_deleted_comes_back_whole(chat: ChatPage, scripted: ScriptedServer) -> None:
    scripted.script("Go on", stuck("Once upon a time"))
    chat.send("Go on")
    expect(chat.body).to_have_text("Once upon a time")
    chat.page.keyboard.press("Control+Shift+D")
    expect(chat.users).to_have_count(0)
    chat.page.get_by_role("button", name="Undo").click()
    expect(chat.body).to_have_text("Once upon a time")
    chat.wait_until_settled()
    expect(chat.stats).to_contain_text("stopped")
    expect(chat.problem).to_be_hidden()


@pytest.mark.slow
def test_an_empty_tab_does_not_wipe_out_another_ones_draft(chat: ChatPage, second: ChatPage) -> None:
    second.page.goto(chat.url)
    expect(second.page.locator("#model")).to_have_text("scripted-model")
    chat.draft.fill("A long thought")
    chat.draft.blur()
    second.page.close()
    third = chat.page.context.new_page()
    third.goto(chat.url)
    expect(third.locator("#draft")).to_have_value("A long thought")
    third.close()


@pytest.mark.slow
def test_a_refused_continuation_is_tried_again_as_one(chat: ChatPage, scripted: ScriptedServer) -> None:
    scripted.script("Tell", says("Once upon", finish="length"))
    scripted.script("Once upon", BUSY, says(" a time."))
    chat.send("Tell")
    chat.wait_until_settled()
    facts = chat.stats.inner_text()
    chat.answers.last.hover()
    chat.answers.last.get_by_role("button", name="Continue the answer").click()
    expect(chat.problem).to_contain_text("by itself in 1 s")
    assert chat.stats.inner_text() == facts
    expect(chat.body).to_have_text("Once upon a time.")
    expect(chat.answers.last.locator(".variants")).to_be_hidden()


@pytest.mark.slow
def test_two_answers_are_tried_again_together(chat: ChatPage, scripted: ScriptedServer) -> None:
    def piece(index: int, text: str) -> bytes:
        choice = {"index": index, "delta": {"content": text}, "finish_reason": "stop"}
        return event({"choices": [choice]})

    scripted.script("Hello", says("Once."), BUSY, [ROLE, piece(0, "A"), piece(1, "B"), DONE])
    chat.send("Hello")
    chat.wait_until_settled()
    chat.users.last.hover()
    chat.page.get_by_role("button", name="Answer twice").click()
    expect(chat.page.locator(".pair .answer .body")).to_have_text(["A", "B"])
    chat.page.locator(".pair .choose").last.click()
    expect(chat.answers.last.locator(".variants")).to_contain_text("3/3")


@pytest.mark.slow
def test_the_end_of_another_answer_leaves_a_countdown_alone(chat: ChatPage, scripted: ScriptedServer) -> None:
    scripted.script("Go on", stuck("Once"))
    scripted.script("Hello", BUSY, says("Hi."))
    chat.send("Go on")
    expect(chat.body).to_have_text("Once")
    chat.new_chat()
    chat.send("Hello")
    expect(chat.problem).to_contain_text("by itself in 1 s")
    scripted.release()
    expect(chat.body).to_have_text("Hi.")


@pytest.mark.slow
def test_a_countdown_that_is_given_up_says_so(chat: ChatPage, scripted: ScriptedServer) -> None:
    scripted.script("Hello", Refusal(429, "queue_full", "Full.", {"Retry-After": "60"}))
    chat.send("Hello")
    expect(chat.problem).to_contain_text("by itself in 60 s")
    chat.page.keyboard.press("Control+Shift+E")
    expect(chat.problem.get_by_role("button", name="Try again")).to_have_text("Try again")


def test_a_failed_answer_still_says_so_after_a_reload(chat: ChatPage, scripted: ScriptedServer) -> None:
    scripted.script("Hello", BROKEN, says("Hi."))
    chat.send("Hello")
    expect(chat.problem).to_contain_text("It broke")
    chat.page.reload()
    expect(chat.users).to_have_text(["Hello"])
    chat.problem.get_by_role("button", name="Try again").click()
    expect(chat.body).to_have_text("Hi.")
    expect(chat.answers.last.locator(".variants")).to_be_hidden()


@pytest.mark.slow
def test_a_message_ends_a_comparison(chat: ChatPage, scripted: ScriptedServer) -> None:
    scripted.script("Hello", says("First."), says("Second."))
    scripted.script("And?", says("More."))
    chat.send("Hello")
    chat.wait_until_settled()
    chat.answers.last.get_by_role("button", name="Compare").click()
    expect(chat.page.locator(".pair .answer .body")).to_have_text(["First.", "Second."])
    expect(chat.page.locator(".pair [aria-busy=true]")).to_have_count(0)
    chat.send("And?")
    expect(chat.body).to_have_text("More.")
    expect(chat.page.locator(".pair")).to_have_count(0)
    assert messages(scripted)[1]["content"] == "Second."


def test_an_error_of_the_page_is_told(chat: ChatPage) -> None:
    chat.page.evaluate("() => { Promise.reject(new Error('A wheel came off')) }")
    expect(chat.page.get_by_role("alert")).to_contain_text("A wheel came off")


def test_buttons_of_a_busy_chat_say_why_nothing_happens(chat: ChatPage, scripted: ScriptedServer) -> None:
    scripted.script("Go on", stuck("Once"))
    chat.send("Go on")
    expect(chat.body).to_have_text("Once")
    chat.users.last.hover()
    chat.page.get_by_role("button", name="Delete this message").click()
    expect(chat.page.get_by_role("status").first).to_contain_text("Stop the answer")
    expect(chat.users).to_have_count(1)


@pytest.mark.slow
def test_a_name_from_another_tab(chat: ChatPage, second: ChatPage, scripted: ScriptedServer) -> None:
    address = talk(chat, scripted, "Hello", "Hi.")
    second.page.goto(address)
    expect(second.body).to_have_text("Hi.")
    chat.page.evaluate(
        """async (id) => {
          const { Library } = await import('/static/keep/library.js');
          const library = await Library.open();
          await library.changeHead(id, { title: 'Greetings', named: true });
        }""",
        address.rsplit("/", 1)[1],
    )
    expect(second.page).to_have_title("Greetings · Fastpath")


def test_a_tab_takes_over_from_one_that_is_gone(
    chat: ChatPage, second: ChatPage, scripted: ScriptedServer
) -> None:
    scripted.resumable = True
    scripted.script("Go on", stuck("Once"))
    chat.page.reload()
    expect(chat.page.locator("#model")).to_have_text("scripted-model")
    chat.send("Go on")
    expect(chat.body).to_have_text("Once")
    kept(chat.page, "Once")
    second.page.goto(chat.page.url)
    expect(second.problem).to_contain_text("Another tab")
    chat.page.goto("about:blank")
    expect(second.problem).to_be_hidden()
    scripted.release()
    expect(second.body).to_have_text("Once The end.")
    second.wait_until_settled()
    request = second.page.evaluate(
        """async () => {
          const { Library } = await import('/static/keep/library.js');
          const [{ messages }] = await (await Library.open()).all();
          return messages.at(-1).facts.request;
        }"""
    )
    assert request["model"] == "scripted-model" and request["temperature"] == 0.7


# The places at which a reader finds the page, frame by frame, from the one where it is now.
_WATCH_PLACES = """() => {
  const scroller = document.getElementById('scroller');
  window.places = new Set();
  const look = () => {
    places.add(Math.round(scroller.scrollTop));
    requestAnimationFrame(look);
  };
  look();
}"""


@pytest.mark.slow
def test_who_reads_along_in_another_tab_stays_where_they_are(
    chat: ChatPage, second: ChatPage, scripted: ScriptedServer
) -> None:
    """That tab is told each second what there is of the answer, of which it shows what is new."""
    many = "Some words of a long answer, with **bold** ones.\n\n" * 500
    steps = [ROLE, delta(many), *[step for at in range(3) for step in (GATE, delta(f"More: {at}.\n\n"))]]
    scripted.script("Go on", [*steps, delta("", "stop"), DONE])
    chat.send("Go on")
    expect(chat.answers).to_have_count(1)
    kept(chat.page, many)
    second.page.goto(chat.page.url)
    expect(second.body.locator("p")).to_have_count(500)
    second.page.mouse.move(400, 300)
    second.page.mouse.wheel(0, -2_000)
    second.page.wait_for_function("() => document.getElementById('jump').hidden === false")
    second.page.evaluate(_WATCH_PLACES)
    for at in range(3):
        scripted.release()
        expect(second.body).to_contain_text(f"More: {at}.")
    chat.wait_until_settled()
    second.wait_until_settled()
    assert second.page.evaluate("places.size") == 1


def test_a_message_goes_out_when_the_network_is_back(chat: ChatPage, scripted: ScriptedServer) -> None:
    scripted.script("Hello", says("Hi."))
    chat.page.context.set_offline(True)
    try:
        chat.send("Hello")
        expect(chat.problem).to_contain_text("You are offline")
    finally:
        chat.page.context.set_offline(False)
    expect(chat.body).to_have_text("Hi.")


def test_the_keyboard_stays_in_the_chat(chat: ChatPage, scripted: ScriptedServer) -> None:
    scripted.script("Hello", BROKEN, says("First."), says("Second."))
    chat.send("Hello")
    chat.problem.get_by_role("button", name="Try again").press("Enter")
    expect(chat.body).to_have_text("First.")
    expect(chat.answers.last).to_be_focused()
    chat.wait_until_settled()
    chat.answers.last.locator(".regenerate").press("Enter")
    expect(chat.body).to_have_text("Second.")
    expect(chat.answers.last).to_be_focused()
