"""The list of conversations: found, opened, renamed, pinned, exported, imported, deleted and put back."""

import json
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from tests.static.page_clock import work_of
from tests.static.scripted_server import ScriptedServer

pytestmark = pytest.mark.browser

DATA = Path(__file__).parent / "data"
DAY = 86_400_000
# A sidebar over a database of its own. `opened` notes what the page around it was asked to show.
MOUNT = """async ([name, chats]) => {
  const { Library } = await import('/static/keep/library.js');
  const { Sidebar } = await import('/static/keep/sidebar.js');
  const core = await import('/static/core/conversation.js');
  window.library?.close();
  window.library = await Library.open(name);
  const midnight = new Date().setHours(0, 0, 0, 0);
  window.ids = {};
  const put = [];
  for (const { title, ago = 0, pinned = false, says = [] } of chats) {
    const one = new core.Conversation({ head: core.newHead(), messages: [] });
    for (const content of says) one.add(one.head.leaf, { role: 'user', content });
    Object.assign(one.head, { title, pinned, updated: midnight - ago + 1000 });
    ids[title] = one.head.id;
    put.push(library.write(one.records()));
  }
  await Promise.all(put);
  window.opened = [];
  window.current = null;
  window.busy = new Set();
  const old = document.getElementById('sidebar');
  const fresh = document.createElement('div');
  fresh.id = 'sidebar';
  old.replaceWith(fresh);
  document.documentElement.dataset.sidebar = 'open';
  const title = (id) => Object.keys(ids).find((title) => ids[title] === id) ?? id;
  window.sidebar = new Sidebar(fresh, {
    library,
    open: (id, messageId) => { opened.push([title(id), messageId !== null]); current = id; sidebar.mark(); },
    newChat: () => { opened.push(['new', false]); current = null; sidebar.mark(); },
    currentId: () => current,
    isBusy: (id) => busy.has(id),
    stop: (id) => { opened.push(['stop ' + title(id), false]); busy.delete(id); },
  });
}"""
CHATS = [
    {"title": "Soup", "ago": 0, "says": ["Which soup is quick?", "Tomato soup with crème fraîche."]},
    {"title": "Bread", "ago": DAY},
    {"title": "Rivers", "ago": 3 * DAY},
    {"title": "Old maps", "ago": 40 * DAY, "says": ["a soup of maps"]},
    {"title": "Recipes", "ago": 90 * DAY, "pinned": True},
]


@pytest.fixture(scope="module")
def frame(browser: Browser, scripted_server: ScriptedServer) -> Page:
    """The page's document and styles, without the app that would fill them."""
    context = browser.new_context(viewport={"width": 1200, "height": 800}, accept_downloads=True)
    page = context.new_page()
    page.route("**/static/app.js", lambda route: route.fulfill(body="", content_type="text/javascript"))
    page.goto(scripted_server.url)
    return page


@pytest.fixture
def side(frame: Page, request: pytest.FixtureRequest) -> Page:
    frame.evaluate(MOUNT, [request.node.name, CHATS])
    expect(rows(frame)).to_have_count(len(CHATS))
    return frame


def rows(page: Page) -> Locator:
    return page.locator("#sidebar .chat-row")


def row(page: Page, title: str) -> Locator:
    return page.locator("#sidebar .chat-row", has_text=title)


def choose(page: Page, title: str, entry: str) -> None:
    """Opens a conversation's menu and takes an entry of it."""
    row(page, title).hover()
    page.get_by_role("button", name=f"More for {title}").click()
    page.get_by_role("menuitem", name=entry).click()


def toast(page: Page) -> Locator:
    return page.locator(".toast").last


def opened(page: Page) -> list[list[Any]]:
    return list(page.evaluate("opened.splice(0)"))


def test_chats_are_grouped_by_age(side: Page) -> None:
    groups = side.locator("#sidebar section").all_inner_texts()
    assert [text.split("\n") for text in groups] == [
        ["Pinned", "Recipes"],
        ["Today", "Soup"],
        ["Yesterday", "Bread"],
        ["Previous 7 days", "Rivers"],
        ["Earlier", "Old maps"],
    ]
    row(side, "Bread").click()
    assert opened(side) == [["Bread", False]]
    expect(row(side, "Bread")).to_have_attribute("aria-current", "true")
    side.evaluate("() => { busy.add(ids.Soup); sidebar.mark(); }")
    expect(row(side, "Soup")).to_contain_text("An answer is being written")
    side.evaluate("() => { busy.clear(); sidebar.mark(); }")
    expect(row(side, "Soup")).to_have_text("Soup")
    expect(side.locator("[aria-current]")).to_have_count(1)


def test_what_is_written_moves_to_the_top(side: Page) -> None:
    """Also while the row has the focus, which stays on it."""
    row(side, "Old maps").focus()
    write = "async (id) => library.writeHead({ ...await library.head(id), updated: Date.now() + 5000 })"
    side.evaluate(write, side.evaluate("ids['Old maps']"))
    expect(rows(side)).to_have_text(["Recipes", "Old maps", "Soup", "Bread", "Rivers"])
    expect(row(side, "Old maps")).to_be_focused()


def test_keyboard_alone(side: Page) -> None:
    keys = side.keyboard
    side.evaluate("sidebar.focusSearch()")
    for key, focused in [
        ("ArrowDown", "Recipes"),
        ("ArrowDown", "Soup"),
        ("End", "Old maps"),
        ("ArrowDown", "Old maps"),
        ("ArrowUp", "Rivers"),
        ("Home", "Recipes"),
    ]:
        keys.press(key)
        expect(row(side, focused)).to_be_focused()
    keys.press("ArrowUp")
    expect(side.get_by_role("searchbox")).to_be_focused()
    keys.press("Tab")  # one row for the Tab key, and its menu
    expect(row(side, "Recipes")).to_be_focused()
    keys.press("Tab")
    expect(side.get_by_role("button", name="More for Recipes")).to_be_focused()
    keys.press("Tab")
    expect(side.get_by_role("button", name="Import")).to_be_focused()
    row(side, "Bread").focus()
    keys.press("Enter")
    assert opened(side) == [["Bread", False]]


def test_renaming_in_place(side: Page) -> None:
    row(side, "Bread").focus()
    side.keyboard.press("F2")
    field = side.get_by_role("textbox", name="New name")
    expect(field).to_be_focused()
    expect(field).to_have_value("Bread")
    side.keyboard.type("Rye   bread")
    side.keyboard.press("Enter")
    expect(row(side, "Rye bread")).to_be_focused()
    assert side.evaluate("async () => (await library.head(ids.Bread)).named") is True
    choose(side, "Rye bread", "Rename")
    field.fill("no")
    side.keyboard.press("Escape")
    expect(row(side, "Rye bread")).to_be_focused()
    choose(side, "Soup", "Rename")
    field.fill("Stew")
    row(side, "Rivers").focus()  # leaving the field takes the name, too
    expect(rows(side)).to_have_text(["Recipes", "Stew", "Rye bread", "Rivers", "Old maps"])
    expect(row(side, "Rivers")).to_be_focused()


def test_pinning_and_duplicating(side: Page) -> None:
    choose(side, "Rivers", "Pin")
    expect(side.locator("section").first.locator(".chat-row")).to_have_text(["Rivers", "Recipes"])
    choose(side, "Recipes", "Unpin")
    expect(rows(side)).to_have_text(["Rivers", "Soup", "Bread", "Old maps", "Recipes"])
    choose(side, "Soup", "Duplicate")
    expect(row(side, "Soup (copy)")).to_have_attribute("aria-current", "true")
    same = side.evaluate(
        """async () => {
          const [one, two] = await library.all([window.ids.Soup, current]);
          const words = ({ messages }) => messages.map(({ content }) => content).join();
          const ids = new Set(one.messages.map(({ id }) => id));
          return [words(one) === words(two), two.messages.some(({ id }) => ids.has(id))];
        }"""
    )
    assert same == [True, False]


def test_deleting_can_be_undone(side: Page) -> None:
    """The focus goes to the next row; a conversation that is shown gives way to a new one, and comes back."""
    row(side, "Soup").click()
    side.evaluate("() => { busy.add(ids.Soup) }")
    opened(side)
    side.keyboard.press("Delete")
    expect(rows(side)).to_have_text(["Recipes", "Bread", "Rivers", "Old maps"])
    expect(row(side, "Bread")).to_be_focused()
    assert opened(side) == [["stop Soup", False], ["new", False]]
    expect(toast(side)).to_contain_text("“Soup” deleted")
    toast(side).get_by_role("button", name="Undo").click()
    expect(rows(side)).to_have_text(["Recipes", "Soup", "Bread", "Rivers", "Old maps"])
    expect(row(side, "Soup")).to_have_attribute("aria-current", "true")
    assert opened(side) == [["Soup", False]]
    choose(side, "Old maps", "Delete")
    expect(rows(side)).to_have_text(["Recipes", "Soup", "Bread", "Rivers"])
    expect(row(side, "Rivers")).to_be_focused()
    assert opened(side) == []


def test_deleting_all_asks_first(side: Page) -> None:
    delete = side.get_by_role("button", name="Delete all")
    delete.click()
    question = side.get_by_role("alertdialog", name="Delete all 5 conversations?")
    question.get_by_role("button", name="Cancel").click()
    expect(rows(side)).to_have_count(5)
    delete.click()
    question.get_by_role("button", name="Delete all").click()
    expect(rows(side)).to_have_count(0)
    expect(side.locator(".no-chats")).to_be_visible()
    assert side.evaluate("async () => (await library.list()).length") == 0
    toast(side).get_by_role("button", name="Undo").click()
    expect(rows(side)).to_have_count(5)
    assert side.evaluate("async () => (await library.read(ids.Soup)).messages.length") == 2


def test_search_leads_to_the_message(side: Page) -> None:
    side.evaluate("sidebar.focusSearch()")
    side.keyboard.type("SOUP")
    hits = side.locator("#sidebar .chat-hit")
    expect(hits).to_have_count(4)
    expect(rows(side).first).to_be_hidden()
    expect(hits.locator("mark")).to_have_text(["Soup", "soup", "soup", "soup"])
    side.keyboard.type(" creme")
    expect(hits).to_have_count(1)
    expect(hits.locator(".excerpt")).to_have_text("Tomato soup with crème fraîche.")
    expect(hits.locator("mark")).to_have_text(["soup", "crème"])
    side.keyboard.press("ArrowDown")
    expect(hits).to_be_focused()
    side.keyboard.press("Enter")
    assert opened(side) == [["Soup", True]]
    side.keyboard.press("ArrowUp")
    side.keyboard.type("x")
    expect(side.locator(".chat-results .none")).to_contain_text("Nothing found")
    side.keyboard.press("Escape")
    expect(rows(side)).to_have_count(5)
    expect(rows(side).first).to_be_visible()


def test_export_all_comes_back_by_import(side: Page) -> None:
    """Through files, as a reader would: also by a drop, and a file that says what is wrong with it."""
    with side.expect_download() as download:
        side.get_by_role("button", name="Export all").click()
    path = download.value.path()
    exported = json.loads(path.read_text())
    assert download.value.suggested_filename.endswith(".json")
    assert len(exported["conversations"]) == 5
    with side.expect_download() as download:
        choose(side, "Soup", "Export as Markdown")
    assert download.value.suggested_filename == "Soup.md"
    assert download.value.path().read_text().startswith("# Soup\n")
    side.evaluate("async () => { await library.remove(ids.Soup) }")
    expect(rows(side)).to_have_count(4)
    with side.expect_file_chooser() as chooser:
        side.get_by_role("button", name="Import").click()
    chooser.value.set_files(path)
    expect(toast(side)).to_contain_text("1 conversation imported. 4 were here already.")
    expect(row(side, "Soup")).to_be_visible()
    drop = """(text) => {
      const files = new DataTransfer();
      files.items.add(new File([text], 'chats.jsonl'));
      for (const type of ['dragover', 'drop']) {
        const event = new DragEvent(type, { dataTransfer: files, bubbles: true, cancelable: true });
        document.querySelector('#sidebar .chats').dispatchEvent(event);
      }
    }"""
    side.evaluate(drop, (DATA / "sharegpt.jsonl").read_text())
    expect(toast(side)).to_contain_text("2 conversations imported. Some of it could not be read.")
    toast(side).get_by_role("button", name="See what").click()
    told = side.get_by_role("dialog", name="What was left out")
    expect(told).to_contain_text("Line 2: is not JSON")
    told.get_by_role("button", name="Close").click()
    expect(rows(side)).to_have_count(7)
    side.evaluate(drop, "nothing")
    expect(toast(side)).to_contain_text("0 conversations imported.")


@pytest.mark.slow
def test_file_names_fit_every_system(modules: Page) -> None:
    names = modules.evaluate(
        """async (names) => {
          const { fileName } = await import('/static/keep/download.js');
          return names.map(fileName);
        }""",
        ['a/b\\c: "d"?.json', ".json", "...md", "é" * 100 + ".md", "x\u202e\x00y.md"],
    )
    assert names == ["a b c d.json", "conversation.json", "conversation.md", "é" * 80 + ".md", "x y.md"]


@pytest.mark.slow
def test_a_thousand_chats_stay_quick(frame: Page) -> None:
    chats = [{"title": f"Chat {k}", "ago": k * 3_600_000} for k in range(1000)]
    frame.evaluate(MOUNT, ["thousand", chats])
    expect(row(frame, "Chat 0").first).to_be_visible()
    assert frame.locator("#sidebar .chat-row").count() < 200
    refresh = "async () => { sidebar.mark(); await sidebar.refresh(); }"
    assert max(work_of(frame, refresh)[0] for _ in range(5)) < 0.5
    row(frame, "Chat 0").first.focus()
    frame.keyboard.press("End")
    expect(frame.locator(".chat-row", has_text="Chat 999")).to_be_focused()
