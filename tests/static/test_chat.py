"""What a reader does with a conversation: versions, branches, continuing, comparing, deleting."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from tests.static.chat_page import ChatPage
from tests.static.scripted_server import (
    DONE,
    GATE,
    ROLE,
    ScriptedServer,
    Step,
    delta,
    error,
    event,
    score,
    usage,
)

pytestmark = pytest.mark.browser


def says(*pieces: str, finish: str = "stop") -> list[Step]:
    return [ROLE, *(delta(piece) for piece in pieces), delta("", finish), usage(len(pieces)), DONE]


def stuck(*pieces: str) -> list[Step]:
    """Says something, then waits for the test before each further step."""
    return [ROLE, *(delta(piece) for piece in pieces), GATE, delta(" The end."), delta("", "stop"), DONE]


def messages(scripted: ScriptedServer, number: int = -1) -> list[dict[str, str]]:
    sent = scripted.exchanges[number].body["messages"]
    assert isinstance(sent, list)
    return sent


@pytest.fixture
def context(tab: ChatPage) -> BrowserContext:
    return tab.page.context


@pytest.fixture
def second(context: BrowserContext) -> Iterator[ChatPage]:
    """Another tab of the same browser."""
    page = context.new_page()
    yield ChatPage(page)
    page.close()


def test_a_new_answer_stands_beside_the_old_one(chat: ChatPage, scripted: ScriptedServer) -> None:
    scripted.script("Hello", says("First."), says("Second."))
    scripted.script("And?", says("More."))
    chat.send("Hello")
    chat.wait_until_settled()
    chat.regenerate()
    expect(chat.body).to_have_text("Second.")
    variants = chat.answers.last.locator(".variants")
    expect(variants).to_contain_text("2/2")
    chat.send("And?")
    chat.wait_until_settled()
    assert messages(scripted)[1]["content"] == "Second."
    first = chat.answers.first.locator(".variants")
    first.get_by_role("button", name="Previous").click()
    expect(chat.answers).to_have_count(1)  # what followed belongs to the other version
    expect(chat.body).to_have_text("First.")
    expect(chat.answers.last.locator(".variants .next")).to_be_focused()
    chat.send("And?")
    chat.wait_until_settled()
    assert messages(scripted)[1]["content"] == "First."
    chat.answers.first.locator(".variants .next").click()
    expect(chat.answers.first.locator(".body")).to_have_text("Second.")
    expect(chat.users).to_have_text(["Hello", "And?"])


def test_an_edit_is_a_branch(chat: ChatPage, scripted: ScriptedServer) -> None:
    for message in ("One", "Two", "Uno"):
        scripted.script(message, says(f"Answer to {message}"))
    for message in ("One", "Two"):
        chat.send(message)
        chat.wait_until_settled()
    chat.users.first.hover()
    chat.page.get_by_role("button", name="Edit this message").first.click()
    expect(chat.draft).to_have_value("One")
    chat.send("Uno")
    expect(chat.users).to_have_text(["Uno"])
    expect(chat.body).to_have_text("Answer to Uno")
    chat.page.locator(".user .variants .prev").click()
    expect(chat.users).to_have_text(["One", "Two"])
    expect(chat.answers).to_have_count(2)


@pytest.mark.slow
def test_an_edit_outlives_a_look_elsewhere_and_a_reload(chat: ChatPage, scripted: ScriptedServer) -> None:
    scripted.script("One", says("Answer."))
    chat.send("One")
    chat.wait_until_settled()
    chat.users.first.hover()
    chat.page.get_by_role("button", name="Edit this message").click()
    chat.draft.fill("One and a half")
    chat.new_chat()
    expect(chat.draft).to_have_value("")
    chat.page.go_back()
    expect(chat.draft).to_have_value("One and a half")
    expect(chat.page.locator("#editing")).to_be_visible()
    chat.page.reload()
    expect(chat.draft).to_have_value("One and a half")
    scripted.script("One and a half", says("Another answer."))
    chat.draft.press("Enter")
    expect(chat.body).to_have_text("Another answer.")
    expect(chat.page.locator(".user .variants")).to_contain_text("2/2")


def test_an_answer_is_continued_in_place(chat: ChatPage, scripted: ScriptedServer) -> None:
    scripted.script("Tell", says("Once upon", finish="length"))
    scripted.script("Once upon", says(" a time."))
    chat.send("Tell")
    chat.wait_until_settled()
    chat.answers.last.hover()
    chat.answers.last.get_by_role("button", name="Continue the answer").click()
    expect(chat.body).to_have_text("Once upon a time.")
    body = scripted.exchanges[-1].body
    assert body["continue_final_message"] is True
    assert body["add_generation_prompt"] is False
    assert messages(scripted)[-1] == {"role": "assistant", "content": "Once upon"}
    expect(chat.answers).to_have_count(1)


def test_an_answer_that_ended_by_itself_is_continued_from_its_menu(
    chat: ChatPage, scripted: ScriptedServer
) -> None:
    scripted.script("Tell", says("Once upon"))
    scripted.script("Once upon", says(" a time."))
    chat.send("Tell")
    chat.wait_until_settled()
    chat.answers.last.hover()
    expect(chat.answers.last.get_by_role("button", name="Continue the answer")).to_be_hidden()
    chat.answers.last.get_by_role("button", name="More for this answer").click()
    chat.page.get_by_role("menuitem", name="Continue the answer").click()
    expect(chat.body).to_have_text("Once upon a time.")


def test_a_broken_answer_can_be_continued(chat: ChatPage, scripted: ScriptedServer) -> None:
    scripted.script("Tell", [ROLE, delta("Half"), error("The engine stopped.", "engine_unavailable"), DONE])
    scripted.script("Half", says(" and half."))
    chat.send("Tell")
    chat.problem.get_by_role("button", name="Continue").click()
    expect(chat.body).to_have_text("Half and half.")
    expect(chat.problem).to_be_hidden()


@pytest.mark.slow
def test_a_deleted_message_comes_back(chat: ChatPage, scripted: ScriptedServer) -> None:
    scripted.script("Hello", says("Hi."))
    scripted.script("And?", says("More."))
    for message in ("Hello", "And?"):
        chat.send(message)
        chat.wait_until_settled()
    chat.users.last.hover()
    chat.page.get_by_role("button", name="Delete this message").last.click()
    expect(chat.users).to_have_text(["Hello"])
    chat.page.get_by_role("button", name="Undo").click()
    expect(chat.users).to_have_text(["Hello", "And?"])
    expect(chat.body).to_have_text("More.")
    chat.page.reload()
    expect(chat.users).to_have_text(["Hello", "And?"])


def test_two_answers_side_by_side(chat: ChatPage, scripted: ScriptedServer) -> None:
    scripted.script("Hello", says("First."), says("Second."))
    scripted.script("And?", says("More."))
    chat.send("Hello")
    chat.wait_until_settled()
    chat.answers.last.get_by_role("button", name="Compare").click()
    pair = chat.page.locator(".pair .answer")
    expect(pair.locator(".body")).to_have_text(["First.", "Second."])
    left, right = pair.nth(0).bounding_box(), pair.nth(1).bounding_box()
    assert left is not None and right is not None
    assert left["y"] == right["y"] and left["x"] + left["width"] <= right["x"]
    pair.first.get_by_role("button", name="Use this answer").click()
    expect(chat.page.locator(".pair")).to_have_count(0)
    expect(chat.body).to_have_text("First.")
    chat.send("And?")
    chat.wait_until_settled()
    assert messages(scripted)[1]["content"] == "First."


def test_two_answers_in_one_request(chat: ChatPage, scripted: ScriptedServer) -> None:
    def piece(index: int, text: str, finish: str | None = None) -> bytes:
        return event({"choices": [{"index": index, "delta": {"content": text}, "finish_reason": finish}]})

    both = [ROLE, piece(0, "A"), piece(1, "B"), piece(0, "a", "stop"), piece(1, "b", "stop"), usage(4), DONE]
    scripted.script("Hello", says("Once."), both)
    chat.send("Hello")
    chat.wait_until_settled()
    chat.users.last.hover()
    chat.page.get_by_role("button", name="Answer twice").click()
    expect(chat.page.locator(".pair .answer .body")).to_have_text(["Aa", "Bb"])
    assert scripted.exchanges[-1].body["n"] == 2


def test_an_answer_goes_on_behind_another_chat(chat: ChatPage, scripted: ScriptedServer) -> None:
    scripted.script("Go on", stuck("Once"))
    scripted.script("Hello", says("Hi."))
    chat.send("Go on")
    expect(chat.body).to_have_text("Once")
    address = chat.page.url
    chat.page.keyboard.press("Control+Shift+O")
    expect(chat.answers).to_have_count(0)
    chat.send("Hello")
    expect(chat.body).to_have_text("Hi.")
    assert len(messages(scripted)) == 1
    chat.page.evaluate("address => { location.href = address }", address)
    expect(chat.body).to_have_text("Once")
    expect(chat.answers.last).to_have_attribute("aria-busy", "true")
    scripted.release()
    expect(chat.body).to_have_text("Once The end.")
    chat.wait_until_settled()
    chat.page.go_back()
    expect(chat.body).to_have_text("Hi.")
    chat.new_chat()
    expect(chat.users).to_have_count(0)
    chat.page.go_back()
    expect(chat.body).to_have_text("Hi.")


def test_everything_is_there_after_a_reload(chat: ChatPage, scripted: ScriptedServer) -> None:
    scripted.script("Hello", says("Some *words*."), says("Others."))
    chat.send("Hello")
    chat.wait_until_settled()
    chat.regenerate()
    chat.wait_until_settled()
    facts = chat.stats.inner_text()
    chat.page.reload()
    expect(chat.users).to_have_text(["Hello"])
    expect(chat.body).to_have_text("Others.")
    expect(chat.answers.last.locator(".variants")).to_contain_text("2/2")
    assert chat.stats.inner_text() == facts
    chat.answers.last.locator(".variants .prev").click()
    expect(chat.body.locator("em")).to_have_text("words")


def test_a_reload_in_mid_answer_goes_on_with_it(chat: ChatPage, scripted: ScriptedServer) -> None:
    scripted.resumable = True
    steps = [ROLE, delta("Once "), delta("upon "), GATE, delta("a "), delta("time."), delta("", "stop"), DONE]
    scripted.script("Go on", steps)
    chat.page.reload()
    expect(chat.page.locator("#model")).to_have_text("scripted-model")
    chat.send("Go on")
    expect(chat.body).to_have_text("Once upon")
    kept(chat.page, "Once upon ")
    chat.page.reload()
    expect(chat.body).to_have_text("Once upon")
    scripted.release()
    expect(chat.body).to_have_text("Once upon a time.")
    chat.wait_until_settled()
    assert len(scripted.exchanges) == 1
    assert [last for _, last in scripted.resumed] == ["3"]


@pytest.mark.slow
def test_a_reload_right_after_an_answer_has_begun_goes_on_with_it(
    chat: ChatPage, scripted: ScriptedServer
) -> None:
    """Also right behind another answer, whose last write is then still to be followed by a pause."""
    scripted.resumable = True
    scripted.script("Hello", says("Hi."))
    scripted.script("Go on", [ROLE, delta("Once "), GATE, delta("more."), delta("", "stop"), DONE])
    chat.page.reload()
    expect(chat.page.locator("#model")).to_have_text("scripted-model")
    chat.send("Hello")
    chat.wait_until_settled()
    chat.send("Go on")
    chat.page.wait_for_function("() => document.getElementById('log').textContent.includes('Once')")
    chat.page.reload()
    expect(chat.body).to_contain_text("Once")
    scripted.release()
    expect(chat.body).to_have_text("Once more.")
    chat.wait_until_settled()


@pytest.mark.slow
def test_a_reload_in_mid_answer_without_resumption_offers_to_continue(
    chat: ChatPage, scripted: ScriptedServer
) -> None:
    scripted.script("Go on", stuck("Once"))
    scripted.script("Once", says(" more."))
    chat.send("Go on")
    expect(chat.body).to_have_text("Once")
    kept(chat.page, "Once")
    chat.page.reload()
    expect(chat.body).to_have_text("Once")
    expect(chat.problem).to_contain_text("interrupted")
    chat.problem.get_by_role("button", name="Continue").click()
    expect(chat.body).to_have_text("Once more.")


@pytest.mark.slow
def test_two_tabs_in_step(chat: ChatPage, second: ChatPage, scripted: ScriptedServer) -> None:
    scripted.script("Hello", stuck("Hi."))
    chat.send("Hello")
    expect(chat.body).to_have_text("Hi.")
    kept(chat.page, "Hi.")
    second.page.goto(chat.page.url)
    expect(second.body).to_have_text("Hi.")
    expect(second.problem).to_contain_text("Another tab")
    scripted.release()
    expect(second.body).to_have_text("Hi. The end.")
    expect(second.problem).to_be_hidden()
    assert len(scripted.exchanges) == 1


@pytest.mark.slow
def test_token_probabilities_are_recorded_and_shown(chat: ChatPage, scripted: ScriptedServer) -> None:
    scripted.script("Hello", [ROLE, delta("Hi", logprobs=[score("Hi", -0.1)]), delta("", "stop"), DONE])
    chat.send("Hello")
    chat.wait_until_settled()
    chat.answers.last.hover()
    heat = chat.answers.last.get_by_role("button", name="Show how likely")
    heat.click()
    expect(heat).to_have_attribute("aria-pressed", "true")
    expect(chat.answers.last).to_contain_text("perplexity")
    heat.click()
    expect(chat.body).to_be_visible()


@pytest.mark.slow
def test_the_request_can_be_copied(chat: ChatPage, scripted: ScriptedServer, context: BrowserContext) -> None:
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    scripted.script("It's", says("Hi."))
    chat.send("It's")
    chat.wait_until_settled()
    chat.answers.last.get_by_role("button", name="More").click()
    chat.page.get_by_role("menuitem", name="Copy as curl").click()
    expect(chat.page.get_by_role("status").first).to_contain_text("Copied")
    text = chat.page.evaluate("navigator.clipboard.readText()")
    assert "curl" in text and "v1/chat/completions" in text and "scripted-model" in text


@pytest.mark.slow
def test_the_list_of_chats_follows(chat: ChatPage, scripted: ScriptedServer) -> None:
    page = chat.page
    for message in ("Hello", "Goodbye"):
        scripted.script(message, says(f"Answer to {message}"))
        chat.send(message)
        chat.wait_until_settled()
        page.keyboard.press("Control+Shift+O")
    chats = page.locator("#sidebar")
    chats.get_by_text("Hello", exact=True).click()
    expect(chat.body).to_have_text("Answer to Hello")
    expect(page).to_have_title("Hello · Fastpath")
    expect(chats.locator("[aria-current]")).to_contain_text("Hello")
    page.keyboard.press("Control+Shift+D")
    expect(chats.get_by_text("Hello", exact=True)).to_have_count(0)
    expect(chat.users).to_have_count(0)
    page.get_by_role("button", name="Undo").click()
    expect(chat.body).to_have_text("Answer to Hello")
    page.keyboard.press("Control+K")
    page.keyboard.type("goodbye")
    chats.get_by_text("Answer to").click()
    expect(chat.body).to_have_text("Answer to Goodbye")
    chat.check_clean()


def kept(page: Page, content: str) -> None:
    """Waits until the browser's database holds an answer with this text."""
    page.evaluate(
        """async (content) => {
          const { Library } = await import('/static/keep/library.js');
          const library = await Library.open();
          const there = async () =>
            (await library.all()).some(({ messages }) => messages.some((each) => each.content === content));
          while (!(await there())) await new Promise(requestAnimationFrame);
        }""",
        content,
    )
