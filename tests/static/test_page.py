"""The chat page in a real browser, against a server that answers by script."""

import pytest
from playwright.sync_api import expect

from tests.app.server_process import DEADLINE
from tests.static.chat_page import (
    ChatPage,
    check_growing_answer,
    check_new_chat,
    check_regenerate,
    check_stop,
)
from tests.static.scripted_server import (
    DONE,
    GATE,
    ROLE,
    SAMPLING_DEFAULTS,
    HangUp,
    Pause,
    Refusal,
    ScriptedServer,
    Step,
    delta,
    error,
    usage,
)

pytestmark = pytest.mark.browser

PIECES = [
    "Der Himmel ist blau, ",
    "weil Luft blaues Licht streut. ",
    "空は青い。",
    " 🌤️ ",
    "<b>kein</b>",
    " Fett.",
]


def cut_badly(pieces: list[str]) -> list[Step]:
    """A whole stream, cut inside events and inside characters, with pings and with events that share a write.

    A gate stands behind each of the first three pieces, so that the page is seen with each of them.
    """
    first, second, third, *rest = (delta(piece) for piece in pieces)
    inside_character = third.index("空".encode()) + 1
    tail = b"".join(rest) + delta("", "stop") + usage(17) + DONE
    return [
        b": ping\n",
        ROLE + first[:9],
        first[9:-1],
        first[-1:],
        GATE,
        b": ping\n" + second[:30],
        second[30:],
        GATE,
        third[:inside_character],
        third[inside_character:],
        GATE,
        tail[:-4],
        tail[-4:],
    ]


def talk(*pieces: str, pause: float = 0.02) -> list[Step]:
    """A healthy answer at the pace of a model."""
    steps: list[Step] = [ROLE]
    for piece in pieces:
        steps += [delta(piece), Pause(pause)]
    return [*steps, delta("", "stop"), usage(len(pieces)), DONE]


def endless(*pieces: str) -> list[Step]:
    """An answer that gets stuck after some pieces."""
    steps: list[Step] = [ROLE]
    for piece in pieces:
        steps += [delta(piece), Pause(0.1)]
    return [*steps, *[GATE] * 1000]


def test_answer_grows_through_awkward_cuts(chat: ChatPage, scripted: ScriptedServer) -> None:
    scripted.script("Warum?", cut_badly(PIECES))
    chat.send("Warum?")
    for shown in ("".join(PIECES[:1]), "".join(PIECES[:2]), "".join(PIECES[:3])):
        expect(chat.body).to_have_text(shown.strip())
        expect(chat.answers.last).to_have_attribute("aria-busy", "true")
        scripted.release()
    chat.wait_until_settled()
    assert chat.body.text_content() == "".join(PIECES)  # markup stays text
    expect(chat.stats).to_contain_text("17 tokens")
    expect(chat.stats).to_contain_text("finished")
    assert len(chat.growth()) >= 4
    chat.check_clean()


def test_conversation(chat: ChatPage, scripted: ScriptedServer) -> None:
    """The reader's whole way through: the same steps run against the real server."""
    words = [f"word{k} " for k in range(30)]
    scripted.script("Hello", talk(*words), talk("Another ", "answer ", "this time."))
    scripted.script("Go on", endless("It ", "was ", "a ", "dark "))
    assert check_growing_answer(chat, "Hello") == "".join(words)
    assert check_regenerate(chat) == "Another answer this time."
    kept = check_stop(chat, "Go on")
    assert kept.startswith("It was ")
    assert scripted.exchanges[-1].left.wait(DEADLINE), "the request stayed open at the server"
    sent = scripted.exchanges[-1].body["messages"]
    assert sent == [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Another answer this time."},
        {"role": "user", "content": "Go on"},
    ]
    check_new_chat(chat)
    chat.check_clean()


def test_a_calculation_is_shown_as_one_and_sent_as_it_came(chat: ChatPage, scripted: ScriptedServer) -> None:
    marked = "<|python_start|>347+286<|python_end|><|output_start|>633<|output_end|>347 + 286 is 633."
    scripted.script("347 + 286?", talk(marked[:25], marked[25:60], marked[60:]))
    scripted.script("Thanks", talk("You're welcome!"))
    chat.send("347 + 286?")
    chat.wait_until_settled()
    expect(chat.answers.last.locator(".calculation")).to_have_text("347+286 = 633")
    assert chat.body.text_content() == "347+286 = 633\n347 + 286 is 633."
    chat.send("Thanks")
    chat.wait_until_settled()
    assert scripted.exchanges[-1].body["messages"][1] == {"role": "assistant", "content": marked}
    chat.check_clean()


def test_escape_stops_and_the_partial_answer_counts(chat: ChatPage, scripted: ScriptedServer) -> None:
    scripted.script("Go on", endless("Once"))
    scripted.script("And then?", talk("The ", "end."))
    chat.send("Go on")
    expect(chat.body).to_have_text("Once")
    chat.page.keyboard.press("Escape")
    chat.wait_until_settled()
    assert scripted.exchanges[0].left.wait(DEADLINE)
    chat.send("And then?")
    expect(chat.body).to_have_text("The end.")
    assert scripted.exchanges[1].body["messages"][1] == {"role": "assistant", "content": "Once"}


def test_error_event_keeps_the_text_and_offers_a_retry(chat: ChatPage, scripted: ScriptedServer) -> None:
    broken = [ROLE, delta("Half an "), error("The engine stopped.", "engine_unavailable"), DONE]
    scripted.script("Hello", broken, talk("A whole ", "answer."))
    chat.send("Hello")
    expect(chat.problem).to_contain_text("The engine stopped.")
    expect(chat.body).to_have_text("Half an")
    chat.problem.get_by_role("button", name="Try again").click()
    expect(chat.body).to_have_text("A whole answer.")
    expect(chat.answers).to_have_count(1)
    assert scripted.exchanges[1].body["messages"] == [{"role": "user", "content": "Hello"}]
    chat.check_clean()


@pytest.mark.parametrize("end", [[], [HangUp()]], ids=["ended", "cut"])
@pytest.mark.slow
def test_stream_without_a_finish_is_a_lost_connection(
    chat: ChatPage, scripted: ScriptedServer, end: list[Step]
) -> None:
    half = [ROLE, delta("Half"), b'data: {"choices":[{"delta":{"con', GATE, *end]
    scripted.script("Hello", half, talk("A whole answer."))
    chat.send("Hello")
    expect(chat.body).to_have_text("Half")
    scripted.release()
    expect(chat.problem).to_contain_text("connection was lost")
    expect(chat.body).to_have_text("Half")
    chat.problem.get_by_role("button", name="Try again").click()
    expect(chat.body).to_have_text("A whole answer.")


@pytest.mark.slow
def test_unreachable_server_keeps_the_message(chat: ChatPage, scripted: ScriptedServer) -> None:
    scripted.script("Hello", talk("Hi."))
    chat.page.route("**/v1/chat/completions", lambda route: route.abort(), times=1)
    chat.send("Hello")
    expect(chat.problem).to_contain_text("cannot be reached")
    expect(chat.users).to_have_text(["Hello"])
    chat.problem.get_by_role("button", name="Try again").click()
    expect(chat.body).to_have_text("Hi.")


def test_busy_server_is_asked_again_after_its_wait(chat: ChatPage, scripted: ScriptedServer) -> None:
    busy = Refusal(429, "queue_full", "Queue is full (128 waiting).", {"Retry-After": "1"})
    scripted.script("Hello", busy, talk("Hi."))
    chat.send("Hello")
    expect(chat.problem).to_contain_text("Queue is full")
    expect(chat.problem).to_contain_text("by itself in 1 s")
    expect(chat.body).to_have_text("Hi.")
    expect(chat.problem).to_be_hidden()


@pytest.mark.slow
def test_length_setting_yields_to_the_room_left(chat: ChatPage, scripted: ScriptedServer) -> None:
    full = Refusal(400, "context_length_exceeded", "2100 tokens do not fit into 2048.")
    scripted.script("Long", full, talk("Fits."))
    scripted.script("Longer", full)
    chat.send("Long")
    expect(chat.body).to_have_text("Fits.")
    assert "max_tokens" in scripted.exchanges[0].body
    assert "max_tokens" not in scripted.exchanges[1].body
    chat.send("Longer")
    expect(chat.problem).to_contain_text("too long for the model")


def test_edit_replaces_what_follows(chat: ChatPage, scripted: ScriptedServer) -> None:
    for message in ("One", "Two", "Uno"):
        scripted.script(message, talk(f"Answer to {message}"))
    for message in ("One", "Two"):
        chat.send(message)
        chat.wait_until_settled()
    chat.draft.fill("a draft")
    chat.users.first.hover()
    chat.page.get_by_role("button", name="Edit this message").first.click()
    expect(chat.draft).to_have_value("One")
    chat.page.keyboard.press("Escape")
    expect(chat.draft).to_have_value("a draft")
    expect(chat.users).to_have_count(2)
    chat.page.get_by_role("button", name="Edit this message").first.click()
    chat.send("Uno")
    expect(chat.users).to_have_text(["Uno"])
    expect(chat.body).to_have_text("Answer to Uno")
    expect(chat.draft).to_have_value("a draft")
    assert scripted.exchanges[-1].body["messages"] == [{"role": "user", "content": "Uno"}]


@pytest.mark.slow
def test_commands_are_notes_and_no_messages(chat: ChatPage, scripted: ScriptedServer) -> None:
    scripted.script("Hello", talk("Hi."), talk("Hi again."))
    chat.send("/temperature 0.3")
    chat.send("/topk 7")
    chat.send("/temperature 9")
    chat.send("/nonsense")
    notes = chat.page.locator(".note")
    expect(notes).to_have_count(4)
    expect(notes.nth(0)).to_have_text("temperature is 0.3")
    expect(notes.nth(2)).to_contain_text("between 0 and 2")
    expect(notes.nth(3)).to_contain_text("no command /nonsense")
    expect(chat.draft).to_have_value("/nonsense")
    chat.send("Hello")
    chat.wait_until_settled()
    chat.send("/help")
    expect(notes.last).to_contain_text("/clear")
    chat.regenerate()
    expect(chat.body).to_have_text("Hi again.")
    assert scripted.exchanges[-1].body["messages"] == [{"role": "user", "content": "Hello"}]
    assert scripted.exchanges[-1].body["temperature"] == 0.3
    assert scripted.exchanges[-1].body["top_k"] == 7
    chat.send("/clear")
    expect(chat.answers).to_have_count(0)


def test_settings_start_from_the_model_card_and_are_kept(chat: ChatPage, scripted: ScriptedServer) -> None:
    scripted.script("Hello", talk("Hi."))
    page = chat.page
    chat.send("Hello")
    chat.wait_until_settled()
    first = scripted.exchanges[0].body
    assert {name: first[name] for name in SAMPLING_DEFAULTS} == SAMPLING_DEFAULTS
    assert first["model"] == "scripted-model"
    assert first["stream_options"] == {"include_usage": True}
    page.get_by_role("button", name="Settings").click()
    temperature = page.get_by_label("Temperature", exact=True)
    expect(temperature).to_have_value("0.7")
    temperature.fill("0")
    page.get_by_label("Seed", exact=True).fill("42")
    page.get_by_label("Top p", exact=True).fill("3")  # out of range: not taken
    page.get_by_label("System prompt").fill("Be brief.")
    page.keyboard.press("Escape")
    page.reload()
    expect(page.locator("#model")).to_have_text("scripted-model")
    chat.send("Hello")
    expect(chat.answers).to_have_count(2)
    chat.wait_until_settled()
    body = scripted.exchanges[1].body
    assert (body["temperature"], body["seed"], body["top_k"]) == (0, 42, 40)
    assert "top_p" not in body
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    page.get_by_role("button", name="Settings").click()
    page.get_by_role("button", name="Reset to the model").click()
    expect(temperature).to_have_value("0.7")
    chat.check_clean()


def test_shift_enter_and_composition_do_not_send(chat: ChatPage, scripted: ScriptedServer) -> None:
    chat.draft.fill("one")
    chat.draft.press("Shift+Enter")
    chat.draft.press_sequentially("two")
    expect(chat.draft).to_have_value("one\ntwo")
    chat.draft.evaluate(
        "e => e.dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter', isComposing: true, bubbles: true}))"
    )
    expect(chat.draft).to_have_value("one\ntwo")
    expect(chat.users).to_have_count(0)


def test_scrolling_follows_only_a_reader_at_the_bottom(chat: ChatPage, scripted: ScriptedServer) -> None:
    lines = "".join(f"line {k}\n" for k in range(100))
    scripted.script(
        "Go on", [ROLE, delta(lines), GATE, delta(lines), GATE, delta(lines), delta("", "stop"), DONE]
    )
    distance = "() => { const s = document.getElementById('scroller');"
    distance += " return s.scrollHeight - s.clientHeight - s.scrollTop; }"
    chat.send("Go on")
    chat.wait_until_grown(1)
    chat.page.wait_for_function(f"() => ({distance})() <= 1")
    # A small step upwards, still near the bottom, must be enough to be left alone.
    chat.page.evaluate("document.getElementById('scroller').scrollTop -= 40")
    chat.page.wait_for_function(f"() => ({distance})() === 40")
    chat.page.evaluate("() => new Promise(requestAnimationFrame)")
    scripted.release()
    chat.page.wait_for_function(f"() => ({distance})() > 1000")
    chat.page.get_by_role("button", name="Jump to the newest text").click()
    assert chat.page.evaluate(distance) <= 1
    scripted.release()
    chat.wait_until_settled()
    chat.page.wait_for_function(f"() => ({distance})() <= 1")


def test_load_line_shows_the_batch(chat: ChatPage) -> None:
    expect(chat.page.locator("#load")).to_have_text("2 in the batch, 1 waiting")


def test_example_question_is_sent(chat: ChatPage, scripted: ScriptedServer) -> None:
    example = chat.page.locator("#examples button").first
    question = example.text_content() or ""
    scripted.script(question, talk("Because."))
    example.click()
    expect(chat.body).to_have_text("Because.")
    expect(chat.users).to_have_text([question])
