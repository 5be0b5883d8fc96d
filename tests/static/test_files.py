"""Text files that go with a message: what is taken, what is refused, and how they look."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, FilePayload, Page, expect

from tests.static.chat_page import ChatPage
from tests.static.conftest import without_worker
from tests.static.scripted_server import DONE, ROLE, ScriptedServer, delta

pytestmark = pytest.mark.browser


@pytest.fixture
def tab(browser: Browser) -> Iterator[ChatPage]:
    """A tab for each test: a draft's files are kept for as long as their tab."""
    context = without_worker(browser)
    yield ChatPage(context.new_page())
    context.close()


READ = """
async ({ name, bytes, times }) => {
  const { FileProblem, readTextFile } = await import('/static/chat/files.js');
  try {
    return (await readTextFile(new File(Array(times).fill(new Uint8Array(bytes)), name))).text;
  } catch (error) {
    return error instanceof FileProblem ? 'problem: ' + error.message : 'crash: ' + error;
  }
}
"""

# (what the file holds, its text, or a piece of the message that refuses it)
HELD: list[tuple[bytes, str]] = [
    ("äöü 空 🌤️\r\nzwei\rdrei\n".encode(), "äöü 空 🌤️\nzwei\ndrei\n"),
    (b"\xef\xbb\xbfmarked", "marked"),
    ("空と海".encode("utf-16"), "空と海"),
    (b"\xfe\xff" + "big end".encode("utf-16-be"), "big end"),
    (b"\x1b[31mred\x1b[0m log\x0c\n", "\x1b[31mred\x1b[0m log\x0c\n"),
    ("Grüße".encode("latin-1"), "problem: a.txt is not in UTF-8"),
    (b"", "problem: a.txt is empty"),
    (b" \n\n", "problem: a.txt is empty"),
    (b"%PDF-1.7\nall of it text", "problem: a.txt is not a text file"),
    (b"PK\x03\x04zip", "problem: a.txt is not a text file"),
    (b"\x89PNG\r\n\x1a\n", "problem: a.txt is not a text file"),
    (b"MZ\x00\x00program", "problem: a.txt is not a text file"),
    (b"\x01\x02\x03\x04", "problem: a.txt is not a text file"),
]


@pytest.mark.parametrize("case", range(len(HELD)))
def test_what_is_text_is_decided_by_what_is_in_it(modules: Page, case: int) -> None:
    data, expected = HELD[case]
    found = modules.evaluate(READ, {"name": "a.txt", "bytes": list(data), "times": 1})
    assert found == expected or (expected.startswith("problem: ") and found.startswith(expected))


def test_a_large_file_is_refused_by_its_size(modules: Page) -> None:
    half = {"name": "a.txt", "bytes": list(b"x" * 1024)}
    assert len(modules.evaluate(READ, half | {"times": 512})) == 512 * 1024
    refused = modules.evaluate(READ, half | {"times": 513})
    assert refused == "problem: a.txt is too large. A file can have at most 512 kB."


def test_files_go_with_the_message(chat: ChatPage, scripted: ScriptedServer) -> None:
    wire = "data.csv:\n```\na,b\n1,2\n\n```\n\nSum it up"
    scripted.script(wire, [ROLE, delta("Three.", "stop"), DONE])
    page = chat.page
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Attach text files").click()
    picture = FilePayload(name="photo.jpg", mimeType="image/jpeg", buffer=b"\xff\xd8\xff\xe0\x00")
    table = FilePayload(name="data.csv", mimeType="text/csv", buffer=b"a,b\r\n1,2\r\n")
    chooser.value.set_files([table, picture])
    chips = page.locator("#chips .chip")
    expect(chips).to_have_count(1)
    expect(chips).to_contain_text("data.csv")
    expect(chips).to_contain_text("0.1 kB")
    expect(chips).to_contain_text("token")
    expect(page.get_by_text("photo.jpg is not a text file").first).to_be_visible()
    page.get_by_role("button", name="data.csv").first.click()
    expect(page.get_by_role("dialog", name="data.csv").locator("pre")).to_have_text("a,b\n1,2\n")
    page.keyboard.press("Escape")
    chat.draft.fill("Sum it up")
    page.reload()
    expect(chips).to_have_count(1)
    expect(chat.draft).to_have_value("Sum it up")
    chat.draft.press("Enter")
    expect(chat.body).to_have_text("Three.")
    expect(chips).to_have_count(0)
    assert scripted.exchanges[0].body["messages"] == [{"role": "user", "content": wire}]
    chat.check_clean()


DRAG = """
(names) => {
  const transfer = new DataTransfer();
  for (const name of names) transfer.items.add(new File([`text of ${name}`], name));
  const fire = (type) => document.body.dispatchEvent(
    new DragEvent(type, { dataTransfer: transfer, bubbles: true, cancelable: true }));
  fire('dragover');
  const shown = !document.querySelector('.drop').hidden;
  fire('drop');
  return [shown, document.querySelector('.drop').hidden];
}
"""


@pytest.mark.slow
def test_dropped_files_become_chips(chat: ChatPage) -> None:
    chips = chat.page.locator("#chips .chip")
    names = [f"n{k}.txt" for k in range(22)]
    assert chat.page.evaluate(DRAG, names[:2]) == [True, True]
    expect(chips).to_have_count(2)
    chat.page.evaluate(DRAG, names[:2])  # the same again
    chat.send("/temperature 0.4")  # takes no files
    expect(chat.page.locator(".note")).to_have_text("temperature is 0.4")
    expect(chips).to_have_count(2)
    chat.page.get_by_role("button", name="Remove n0.txt").click()
    expect(chips).to_have_count(1)
    expect(chat.draft).to_be_focused()
    chat.page.evaluate(DRAG, names)
    expect(chips).to_have_count(20)
    expect(chat.page.get_by_text("A message can have at most 20 files").first).to_be_visible()


@pytest.mark.slow
def test_pasted_files_are_attached_and_pasted_text_is_not(chat: ChatPage) -> None:
    paste = """
    ({ text }) => {
      const clipboardData = new DataTransfer();
      clipboardData.items.add(new File(['pasted'], 'p.txt'));
      if (text) clipboardData.setData('text/plain', text);
      const event = new ClipboardEvent('paste', { clipboardData, bubbles: true, cancelable: true });
      document.getElementById('draft').dispatchEvent(event);
      return event.defaultPrevented;
    }
    """
    assert chat.page.evaluate(paste, {"text": "words"}) is False
    assert chat.page.evaluate(paste, {"text": ""}) is True
    expect(chat.page.locator("#chips .chip")).to_have_count(1)


@pytest.mark.slow
def test_a_long_text_that_is_pasted_can_become_a_file(chat: ChatPage) -> None:
    paste = """
    (text) => {
      const draft = document.getElementById('draft');
      draft.focus();
      const clipboardData = new DataTransfer();
      clipboardData.setData('text/plain', text);
      draft.dispatchEvent(new ClipboardEvent('paste', { clipboardData, bubbles: true, cancelable: true }));
      document.execCommand('insertText', false, text); // as the browser does
    }
    """
    offer = chat.page.get_by_role("button", name="Attach as file")
    chat.page.evaluate(paste, "short words ")
    expect(offer).to_have_count(0)
    chat.page.evaluate(paste, "line\n" * 1000)
    offer.click()
    expect(chat.draft).to_have_value("short words ")
    expect(chat.page.locator("#chips .chip .name")).to_have_text("pasted.txt")
    expect(chat.draft).to_be_focused()
