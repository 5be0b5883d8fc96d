"""The composer: drafts that are never lost, keys, edits, and counts."""

import pytest
from playwright.sync_api import Page, expect

from tests.static.chat_page import ChatPage
from tests.static.scripted_server import DONE, ROLE, ScriptedServer, delta, usage

pytestmark = pytest.mark.browser


def answer(text: str) -> list[bytes]:
    return [ROLE, delta(text, "stop"), usage(1), DONE]


def test_a_draft_outlives_reload_and_other_chats(chat: ChatPage, scripted: ScriptedServer) -> None:
    scripted.script("One", answer("Hi."))
    chat.send("One")
    chat.wait_until_settled()
    chat.draft.fill("of the first chat")
    address = chat.page.evaluate("location.hash")
    chat.new_chat()
    expect(chat.draft).to_have_value("")
    chat.draft.fill("of a new one")
    chat.page.evaluate("address => { location.hash = address; }", address)
    expect(chat.draft).to_have_value("of the first chat")
    chat.page.reload()
    expect(chat.users).to_have_text(["One"])
    expect(chat.draft).to_have_value("of the first chat")
    chat.new_chat()
    expect(chat.draft).to_have_value("of a new one")
    chat.page.reload()
    expect(chat.draft).to_have_value("of a new one")
    scripted.script("of a new one", answer("Ho."))
    chat.draft.press("Enter")
    chat.wait_until_settled()
    chat.new_chat()
    expect(chat.draft).to_have_value("")
    chat.check_clean()


def test_arrow_up_edits_the_last_message(chat: ChatPage, scripted: ScriptedServer) -> None:
    scripted.script("One", answer("Hi."))
    scripted.script("Two", answer("Ho."))
    chat.send("One")
    chat.wait_until_settled()
    chat.draft.fill("x")
    chat.draft.press("ArrowUp")
    expect(chat.draft).to_have_value("x")
    chat.draft.fill("")
    chat.draft.press("ArrowUp")
    expect(chat.draft).to_have_value("One")
    chat.send("Two")
    expect(chat.users).to_have_text(["Two"])


def test_enter_can_mean_a_new_line(chat: ChatPage, scripted: ScriptedServer) -> None:
    scripted.script("a\nb", answer("Hi."))
    chat.page.evaluate("localStorage.setItem('fastpath.enter-key', 'line')")
    chat.page.reload()
    expect(chat.page.locator(".hints .keys")).to_contain_text("Ctrl+Enter sends")
    chat.draft.press_sequentially("a")
    chat.draft.press("Enter")
    chat.draft.press_sequentially("b")
    expect(chat.draft).to_have_value("a\nb")
    chat.draft.press("Control+Enter")
    expect(chat.body).to_have_text("Hi.")


def test_the_draft_is_counted_and_gauged(chat: ChatPage) -> None:
    gauge = chat.page.locator("#gauge")
    chat.draft.fill("three words here")
    expect(gauge).to_contain_text("tokens")
    expect(gauge.locator("meter")).to_have_attribute("aria-label", "3 of 2,048 tokens of context")
    chat.draft.fill("/help")
    expect(gauge.locator("meter")).to_be_hidden()
    expect(gauge.locator(".tokens")).to_have_text("")
    chat.draft.fill("many " * 2000)
    expect(gauge).to_contain_text("Room for 48 more tokens")
    chat.draft.fill("many " * 3000)
    expect(gauge).to_contain_text("Too long for the model")
    chat.draft.fill("")
    expect(gauge.locator(".warning")).to_be_hidden()


# A composer of its own on a copy of the page's form, over a storage that lasts as long as the script.
SETUP = """
  const { Composer } = await import('/static/chat/composer.js');
  const { Drafts } = await import('/static/chat/drafts.js');
  const { Gauge } = await import('/static/chat/gauge.js');
  const form = document.querySelector('#composer').cloneNode(true);
  const draft = form.querySelector('textarea');
  const button = form.querySelector('.send');
  document.body.append(form);
  draft.value = '';
  const kept = new Map();
  const storage = {
    getItem: (k) => kept.get(k) ?? null, setItem: (k, v) => kept.set(k, v), removeItem: (k) => kept.delete(k),
  };
  const drafts = new Drafts(storage, storage);
  const sent = [];
  let takes = true;
  const make = () => new Composer({ draft, button, form }, {
    send: (text) => takes && (sent.push(text), true), stop: () => sent.push('stop'),
  }, { drafts });
  const composer = make();
  const type = (text) => { draft.value = text; draft.dispatchEvent(new Event('input')); };
"""


def run(modules: Page, script: str) -> object:
    return modules.evaluate("async () => {" + SETUP + script + "}")


def test_an_edit_puts_the_draft_aside(modules: Page) -> None:
    steps = run(
        modules,
        """
        type('aside');
        composer.edit('old words', { message: 'm1' });
        type('new words');
        composer.keep();
        const steps = [drafts.read(null)];
        composer.cancelEdit();
        steps.push(composer.text, composer.keptEdit);
        composer.edit('old words', { message: 'm1' });
        composer.submit();
        steps.push([...sent], composer.text);
        composer.submit();
        return [...steps, sent, composer.text, drafts.read(null).text];
        """,
    )
    kept = {"text": "aside", "edit": {"message": "m1", "text": "new words"}, "files": []}
    assert steps == [kept, "aside", None, ["old words"], "aside", ["old words", "aside"], "", ""]


def test_what_is_not_taken_stays(modules: Page) -> None:
    steps = run(
        modules,
        """
        takes = false;
        type('keep me');
        composer.submit();
        const steps = [composer.text, button.disabled];
        composer.setBusy(true);
        type('');
        steps.push(button.disabled, button.getAttribute('aria-label'));
        button.click();
        composer.setBusy(false);
        steps.push(button.disabled, sent);
        type('for a');
        composer.setConversation('a');
        type('of a');
        composer.setConversation('b');
        composer.setConversation('a');
        return [...steps, composer.text, drafts.read(null).text, drafts.read('b').text];
        """,
    )
    assert steps == ["keep me", False, False, "Stop", True, ["stop"], "of a", "for a", ""]


def test_storage_that_is_full_loses_nothing_while_the_page_lives(modules: Page) -> None:
    steps = run(
        modules,
        """
        let told = 0;
        const deny = () => { throw new Error('full'); };
        const broken = { getItem: () => '{broken', setItem: deny, removeItem: deny };
        const full = new Drafts(broken, null, () => (told += 1));
        full.write('a', { text: 'one', files: [{ name: 'x', text: 'y', tokens: 1 }], edit: null });
        const many = new Drafts(storage, null);
        for (let k = 0; k < 120; k++) many.write(`id${k}`, { text: `${k}`, files: [], edit: null });
        const all = Object.keys(JSON.parse(kept.get('fastpath.drafts')));
        return [full.read('a').text, full.read('a').files.length, told, full.read('b').text, all.length];
        """,
    )
    assert steps == ["one", 1, 1, "", 100]


def test_counts_that_come_late_or_never_are_not_shown(modules: Page) -> None:
    steps = run(
        modules,
        """
        const asked = [];
        const place = document.createElement('span');
        const gauge = new Gauge(place, (text, signal) => new Promise((done, fail) => {
          asked.push({ text, done, fail, signal });
        }), () => {});
        const moment = () => new Promise((done) => setTimeout(done));
        const until = async (n) => { while (asked.length < n) await moment(); };
        gauge.update('one', []);
        gauge.update('one two', []);
        await until(1);
        gauge.update('one two three', []);
        const aborted = asked[0].signal.aborted;
        asked[0].done(2);
        await null;
        const late = place.textContent;
        await until(2);
        asked[1].done(3);
        await moment();
        const shown = place.querySelector('.tokens').textContent;
        gauge.update('four', []);
        await until(3);
        asked[2].fail(new Error('gone'));
        await moment();
        return [asked[0].text, aborted, late, shown, place.querySelector('.tokens').textContent];
        """,
    )
    assert steps == ["one two", True, "", "3 tokens", ""]
