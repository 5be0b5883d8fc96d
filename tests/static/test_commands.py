"""Slash commands, and the list of them above the composer."""

import pytest
from playwright.sync_api import Page, expect

from tests.static.chat_page import ChatPage
from tests.static.scripted_server import DONE, GATE, ROLE, ScriptedServer, delta

pytestmark = pytest.mark.browser

RUN = """
async (texts) => {
  const { runCommand } = await import('/static/chat/commands.js');
  const { Settings } = await import('/static/settings/settings.js');
  const { Presets } = await import('/static/settings/presets.js');
  const { newHead } = await import('/static/core/conversation.js');
  const settings = new Settings(null);
  const head = newHead();
  settings.bind(head);
  const done = [];
  const page = {
    settings, presets: new Presets(settings, null), clear: () => done.push('new'),
    regenerate: () => done.push('regenerate'), continueAnswer: () => done.push('continue'),
    exportAs: (format) => done.push(format), showStats: () => done.push('stats'),
  };
  const notes = texts.map((text) => runCommand(text, page));
  const few = runCommand('/stats', { settings, clear: () => {} }).known;
  return { notes: notes.map(({ note }) => note), known: notes.map(({ known }) => known), done, few,
    request: settings.request(), system: head.system };
}
"""

# (what is typed, what is said)
COMMANDS = [
    ("/temperature 0.3", "temperature is 0.3"),
    ("/TopK 7", "top_k is 7"),
    ("/topk", "top_k is 7"),
    ("/topp 0.5", "top_p is 0.5"),
    ("/topp default", "top_p is the server's default"),
    ("/max 12", "max_tokens is 12"),
    ("/seed 5", "seed is 5"),
    ("/seed off", "seed is the server's default"),
    ("/temperature 9", "Temperature must lie between 0 and 2."),
    ("/system Be\n  brief.", "The system prompt is: Be\n  brief."),
    (
        "/preset",
        "There are the presets Precise, Balanced, Creative. /preset and a name uses one in this chat.",
    ),
    ("/preset nonsense", "There is no preset nonsense. There are Precise, Balanced, Creative."),
    ("/export pdf", "There is no format pdf. Use md or json."),
    ("/export", ""),
    ("/export JSON", ""),
    ("/regenerate", ""),
    ("/continue", ""),
    ("/stats", ""),
    ("/new", ""),
    ("/clear", ""),
]


def test_commands_do_what_their_table_says(modules: Page) -> None:
    found = modules.evaluate(RUN, [typed for typed, _ in COMMANDS])
    assert found["notes"] == [said for _, said in COMMANDS]
    assert all(found["known"])
    assert found["done"] == ["md", "json", "regenerate", "continue", "stats", "new", "new"]
    assert found["request"] == {"temperature": 0.3, "top_k": 7, "max_tokens": 12}
    assert found["system"] == "Be\n  brief."
    assert found["few"] is False  # what the page cannot do is no command


def test_help_lists_every_command_and_nonsense_is_told(modules: Page) -> None:
    found = modules.evaluate(RUN, ["/help", "/nonsense 3", "/preset creative"])
    text, nonsense, preset = found["notes"]
    names = [line.split()[0] for line in text.splitlines() if line.startswith("/")]
    assert names == [
        "/temperature", "/topk", "/topp", "/max", "/seed", "/system", "/preset", "/regenerate", "/continue",
        "/new", "/clear", "/export", "/stats", "/help",
    ]  # fmt: skip
    assert "command." not in text  # a word that the catalogue lacks
    assert "no command /nonsense" in nonsense
    assert found["known"] == [True, False, True]
    assert preset == "This chat now uses the preset Creative."
    assert found["request"]["temperature"] == 1.1


def test_the_list_completes_commands(chat: ChatPage) -> None:
    options = chat.page.get_by_role("listbox", name="Commands").get_by_role("option")
    draft = chat.draft
    draft.press_sequentially("/t")
    expect(options).to_have_count(3)
    expect(draft).to_have_attribute("aria-activedescendant", "command-0")
    draft.press("ArrowDown")
    draft.press("ArrowDown")
    expect(options.nth(2)).to_have_attribute("aria-selected", "true")
    draft.press("ArrowUp")
    draft.press("Tab")
    expect(draft).to_have_value("/topk ")
    expect(options).to_have_count(0)
    draft.press_sequentially("3")
    draft.press("Enter")
    expect(chat.page.locator(".note").last).to_have_text("top_k is 3")
    draft.press_sequentially("/pre")
    draft.press("Enter")  # completes
    expect(draft).to_have_value("/preset ")
    draft.press_sequentially("c")
    expect(options).to_have_text(["/preset Creative"])
    options.click()
    expect(draft).to_have_value("/preset Creative")
    draft.press("Enter")
    expect(chat.page.locator(".note").last).to_contain_text("the preset Creative")
    draft.press_sequentially("/he")
    draft.press("Escape")
    expect(options).to_have_count(0)
    expect(draft).not_to_have_attribute("aria-activedescendant", "command-0")
    draft.press_sequentially("lp")
    expect(options).to_have_count(1)
    draft.press("Enter")  # it is written out: runs
    expect(chat.page.locator(".note").last).to_contain_text("/regenerate")
    chat.check_clean()


def test_a_space_makes_a_message_of_it(chat: ChatPage, scripted: ScriptedServer) -> None:
    scripted.script("/help", [ROLE, delta("Sure.", "stop"), DONE])
    chat.send(" /help")
    expect(chat.body).to_have_text("Sure.")
    assert scripted.exchanges[0].body["messages"] == [{"role": "user", "content": "/help"}]


@pytest.mark.slow
def test_escape_closes_the_list_and_does_not_stop_the_answer(
    chat: ChatPage, scripted: ScriptedServer
) -> None:
    scripted.script("Hello", [ROLE, delta("Hi"), GATE, delta(".", "stop"), DONE])
    chat.send("Hello")
    chat.wait_until_grown(1)
    chat.draft.press_sequentially("/")
    chat.draft.press("Escape")
    scripted.release()
    expect(chat.body).to_have_text("Hi.")
