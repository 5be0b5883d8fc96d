"""What is kept: conversations in the browser's database, in step between tabs, found again by their words."""

import pytest
from playwright.sync_api import Browser, Page

from tests.static.page_clock import work_of
from tests.static.scripted_server import ScriptedServer

pytestmark = pytest.mark.browser

# In every page of this module: helpers for the tests' own scripts. Each test has a database of its own.
HELPERS = """async (name) => {
  const { Library } = await import('/static/keep/library.js');
  const core = await import('/static/core/conversation.js');
  window.Library = Library;
  window.newId = core.newId;
  window.said = (role, content, more = {}) => ({ role, content, ...more });
  window.talk = (...contents) => {
    const conversation = new core.Conversation({ head: core.newHead(), messages: [] });
    let parent = null;
    for (const [at, content] of contents.entries()) {
      parent = conversation.add(parent, said(at % 2 ? 'assistant' : 'user', content)).id;
    }
    return conversation;
  };
  window.library?.close();
  window.library = await Library.open(name);
  window.changes = [];
  window.problems = [];
  library.addEventListener('change', ({ detail }) => changes.push(detail));
  library.addEventListener('problem', ({ detail }) => problems.push(detail));
}"""


@pytest.fixture
def database(request: pytest.FixtureRequest) -> str:
    return str(request.node.name)


@pytest.fixture(scope="module")
def tabs(browser: Browser, scripted_server: ScriptedServer) -> tuple[Page, Page]:
    """Two tabs of one browser, without the chat page in them."""
    context = browser.new_context()
    pages = context.new_page(), context.new_page()
    for page in pages:
        page.goto(f"{scripted_server.url}static/docs.html")
    return pages


@pytest.fixture
def page(tabs: tuple[Page, Page], database: str) -> Page:
    tabs[0].evaluate(HELPERS, database)
    return tabs[0]


@pytest.fixture
def other(tabs: tuple[Page, Page], database: str) -> Page:
    """The second tab, with the same database."""
    tabs[1].evaluate(HELPERS, database)
    return tabs[1]


def test_what_is_written_is_read_again(page: Page, database: str) -> None:
    """Also by a library that is opened later, with the messages in their order."""
    written, read, titles, removed, left = page.evaluate(
        """async (name) => {
          const one = talk('first?', 'one', 'second?', 'two');
          const [first] = one.path();
          for (let k = 0; k < 20; k++) one.add(first.id, said('assistant', 'variant ' + k, { created: 5 }));
          await library.write(one.records());
          const two = talk('pinned');
          Object.assign(two.head, { pinned: true, updated: 5 });
          await library.write(two.records());
          const three = talk('newest');
          three.head.updated += 1000;
          await library.writeHead(three.head);
          for (const message of three.path()) await library.writeMessage(three.head.id, message);
          const later = await Library.open(name);
          const read = await later.read(one.head.id);
          const titles = (await later.list()).map((head) => head.title);
          await later.removeMessages(one.head.id, read.messages.slice(4).map((message) => message.id));
          const removed = await later.remove(one.head.id);
          const left = [await later.read(one.head.id) ?? null, (await later.all()).length];
          later.close();
          return [one.records(), read, titles, removed, left];
        }""",
        database,
    )
    assert read == written
    assert titles == ["pinned", "newest", "first?"]
    assert removed == {"head": written["head"], "messages": written["messages"][:4]}
    assert left == [None, 2]


def test_a_removed_conversation_can_be_put_back(page: Page) -> None:
    same, changes = page.evaluate(
        """async () => {
          const one = talk('a', 'b', 'c');
          await library.write(one.records());
          const gone = await library.remove(one.head.id);
          await library.write(gone);
          const same = JSON.stringify(await library.read(one.head.id)) === JSON.stringify(one.records());
          return [same, changes.map(({ removed, elsewhere }) => [removed === true, elsewhere])];
        }"""
    )
    assert same
    assert changes == [[False, False], [True, False], [False, False]]


def test_tabs_are_in_step(page: Page, other: Page) -> None:
    id_ = page.evaluate(
        "async () => { const one = talk('hello'); await library.write(one.records()); return one.head.id }"
    )
    other.wait_for_function("id => changes.some((change) => change.id === id && change.elsewhere)", arg=id_)
    assert other.evaluate("async id => (await library.read(id)).messages.length", id_) == 1
    assert other.evaluate("async id => (await library.remove(id)).head.title", id_) == "hello"
    page.wait_for_function("id => changes.some((change) => change.id === id && change.removed)", arg=id_)
    assert page.evaluate("async id => (await library.list()).length", id_) == 0


def test_tabs_that_write_at_once_lose_nothing(page: Page, other: Page) -> None:
    """Both add messages; one renames and one pins what the other holds in an older version."""
    id_ = page.evaluate(
        """async () => {
          window.one = talk('hello');
          await library.write(one.records());
          return one.head.id;
        }"""
    )
    other.evaluate(
        """async (id) => {
          const { Conversation } = await import('/static/core/conversation.js');
          window.one = new Conversation(await library.read(id));
          await library.changeHead(id, { title: 'A name', named: true });
        }""",
        id_,
    )
    write = """async (who) => {
      const at = one.head.leaf;
      const writes = [];
      for (let k = 0; k < 20; k++) {
        writes.push(library.writeMessage(one.head.id, one.add(at, said('assistant', who + k))));
        writes.push(library.writeHead(one.head));
      }
      window.writing = Promise.all(writes);
    }"""
    page.evaluate(write, "here ")
    other.evaluate(write, "there ")
    page.evaluate("() => writing")
    other.evaluate("() => writing")
    page.evaluate("async () => { one.head.pinned = true; await library.writeHead(one.head) }")
    other.evaluate("async () => { one.head.system = 'Be brief.'; await library.writeHead(one.head) }")
    head, contents = page.evaluate(
        """async (id) => {
          const { head, messages } = await library.read(id);
          return [head, messages.map((message) => message.content)];
        }""",
        id_,
    )
    assert sorted(contents) == sorted(
        ["hello", *(f"{who} {k}" for who in ("here", "there") for k in range(20))]
    )
    assert (head["title"], head["named"], head["pinned"], head["system"]) == (
        "A name",
        True,
        True,
        "Be brief.",
    )


def test_without_a_database_it_keeps_what_it_can(page: Page, database: str) -> None:
    """The page says so once, and works until it is closed."""
    page.evaluate(
        """async () => {
          const open = IDBFactory.prototype.open;
          IDBFactory.prototype.open = () => { throw new DOMException('no', 'SecurityError'); };
          window.memory = await Library.open('forbidden');
          IDBFactory.prototype.open = open;
          window.told = [];
          memory.addEventListener('problem', ({ detail }) => told.push(detail));
        }"""
    )
    page.wait_for_function("() => told.length > 0")
    lasting, titles, found, told = page.evaluate(
        """async () => {
          const one = talk('Café au lait', 'yes');
          await memory.write(one.records());
          await memory.changeHead(one.head.id, { title: 'x', named: true });
          one.head.settings.seed = 3;
          await memory.writeHead(one.head);
          const titles = (await memory.list()).map((head) => [head.title, head.settings.seed]);
          const found = (await memory.search('CAFE')).map((hit) => hit.excerpt);
          await memory.remove(one.head.id);
          return [memory.lasting, titles, found, told];
        }"""
    )
    assert not lasting
    assert titles == [["x", 3]]
    assert found == ["Café au lait"]
    assert [problem["kind"] for problem in told] == ["blocked"]
    assert "until you close" in told[0]["message"]


def test_a_newer_layout_is_let_in(page: Page, database: str) -> None:
    """A tab with a newer page changes the database's layout: this one gives way and says so."""
    lasting, problems = page.evaluate(
        """async (name) => {
          await library.write(talk('old').records());
          await new Promise((resolve, reject) => {
            const request = indexedDB.open(name, 1000);
            request.onerror = reject;
            request.onsuccess = () => { request.result.close(); resolve(); };
          });
          await library.write(talk('new').records());
          const titles = (await library.list()).map((head) => head.title);
          const later = await Library.open(name);
          return [[library.lasting, titles, later.lasting], problems];
        }""",
        database,
    )
    assert lasting == [False, ["new"], False]
    assert [problem["kind"] for problem in problems] == ["blocked"]
    assert "Reload" in problems[0]["message"]


def test_a_full_disk_loses_nothing(browser: Browser, scripted_server: ScriptedServer) -> None:
    """What finds no room waits in the page, can be read and exported, and is written once there is room."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"{scripted_server.url}static/docs.html")
    session = context.new_cdp_session(page)
    origin = scripted_server.url.rstrip("/")
    # Before the first write: the browser asks for the room only when it has run out of what it knew of.
    session.send("Storage.overrideQuotaForOrigin", {"origin": origin, "quotaSize": 100_000})
    page.evaluate(HELPERS, "full")
    full = page.evaluate(
        """async () => {
          const noise = Array.from({ length: 10_000 }, () => newId()).join('');
          window.one = talk('kept in the page', noise);
          await library.write(one.records());
          await library.writeMessage(one.head.id, one.add(one.head.leaf, said('user', 'more')));
          await library.changeHead(one.head.id, { pinned: true });
          one.head.system = 'Be brief.';
          await library.writeHead(one.head);
          const inner = await library.read(one.head.id);
          const found = [...(await library.search('kept page')), ...(await library.search('more'))];
          return [problems.map(({ kind }) => kind), inner.messages.length, (await library.list()).length,
            found.map((hit) => hit.messageId === null), (await library.all()).length];
        }"""
    )
    assert full == [["quota"], 3, 1, [True, False], 1]
    session.send("Storage.overrideQuotaForOrigin", {"origin": origin})
    again = page.evaluate(
        """async () => {
          await library.writeMessage(one.head.id, one.add(one.head.leaf, said('assistant', 'and more')));
          const later = await Library.open('full');
          const { head, messages } = await later.read(one.head.id);
          return [head.pinned, head.system, messages.length, problems.length];
        }"""
    )
    assert again == [True, "Be brief.", 4, 1]
    context.close()


NOTES = [
    ("Trees", ["What is a Baum?", "Ein großer Baum: Éclair, naïve, Ärger."]),
    ("Émile's list", ["nothing", "in here"]),
    ("Words", ["one " + "far " * 60 + "two", "two one"]),
    ("Into the harbour…", ["Into the  harbour we sailed", "A calm harbour"]),
]
SEARCHES = [
    ("baum", [("Trees", 1, "Baum"), ("Trees", 0, "Baum")]),
    ("ECLAIR naive", [("Trees", 1, "Éclair")]),
    ("GROSSER", [("Trees", 1, "großer")]),
    ("emile", [("Émile's list", None, "Émile")]),
    ("émile nothing", [("Émile's list", 0, "nothing")]),
    ("one two", [("Words", 1, "two"), ("Words", 0, "one")]),
    ("  ", []),
    ("absent", []),
    ("one absent", []),
    ("harbour", [("Into the harbour…", None, "harbour"), ("Into the harbour…", 1, "harbour")]),
]


def test_search_finds_words_whatever_their_accents(page: Page) -> None:
    found = page.evaluate(
        """async ([notes, texts]) => {
          const places = new Map([[null, null]]);
          for (const [at, [title, contents]] of notes.entries()) {
            const one = talk(...contents);
            Object.assign(one.head, { title, updated: at });
            one.path().forEach((message, k) => places.set(message.id, k));
            await library.write(one.records());
          }
          const found = [];
          for (const text of texts) {
            found.push((await library.search(text)).map(({ head, messageId, excerpt, at }) =>
              [head.title, places.get(messageId), excerpt.slice(...at)]));
          }
          return found;
        }""",
        [NOTES, [text for text, _ in SEARCHES]],
    )
    assert [[tuple(hit) for hit in hits] for hits in found] == [hits for _, hits in SEARCHES]


def test_a_newer_search_ends_the_older(page: Page) -> None:
    """In thousands of messages, which take place in a worker, so that the page goes on meanwhile."""
    page.evaluate(
        """async () => {
          const fill = 'Lorem ipsum dölor sit amet. '.repeat(20);
          for (let k = 0; k < 40; k++) {
            await library.write(talk(...Array.from({ length: 50 }, (_, n) => `${fill} ${k}.${n}`)).records());
          }
          await library.search('warm');
        }"""
    )
    spent, (names, hits) = work_of(
        page,
        """async () => {
          const searches = ['dolor', 'ipsum', '39.49'].map((text) => library.search(text));
          const ends = await Promise.allSettled(searches);
          const all = await library.search('dolor');
          const names = ends.map((end) => end.reason?.name ?? 'found');
          return [names, [ends[2].value?.length, all.length]];
        }""",
    )
    assert names == ["AbortError", "AbortError", "found"]
    assert hits == [1, 100]
    print(f"searches took {1000 * spent:.0f} ms of the page's thread")
    assert spent < 0.1
