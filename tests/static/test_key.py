"""The API key: asked for once, kept where the reader wants it; and the statistics that need it, too."""

import pytest
from playwright.sync_api import Page, expect

from tests.static.scripted_server import DONE, ScriptedServer, delta

pytestmark = pytest.mark.browser

ASK = """async (count) => {
  const { streamAnswer } = await import('/static/server/stream.js');
  const body = { messages: [{ role: 'user', content: 'Hello' }] };
  const one = async () => {
    let text = '';
    try {
      for await (const piece of streamAnswer(body, { signal: new AbortController().signal })) {
        if (piece.type === 'text') text += piece.text;
      }
    } catch (error) {
      return error.code ?? error.kind;
    }
    return text;
  };
  window.answers = null;
  Promise.all(Array.from({ length: count }, one)).then((all) => (window.answers = all));
}"""

_REFUSED = """(count) => {
  const refused = ({ name, responseStatus }) => name.endsWith('/chat/completions') && responseStatus === 401;
  return performance.getEntriesByType('resource').filter(refused).length >= count;
}"""


@pytest.fixture
def page(modules: Page, scripted: ScriptedServer) -> Page:
    """A page without a key, whose server wants one from now on."""
    modules.evaluate("async () => (await import('/static/server/keys.js')).keys.set(null)")
    scripted.api_key = "open-sesame"
    scripted.script("Hello", [delta("Hi."), delta("", "stop"), DONE])
    return modules


def answers(page: Page) -> list[str]:
    page.wait_for_function("() => window.answers !== null")
    return list(page.evaluate("window.answers"))


def test_requests_that_wait_ask_once(page: Page) -> None:
    page.evaluate(ASK, 3)
    dialog = page.get_by_role("dialog", name="This server wants an API key")
    expect(dialog).to_have_count(1)
    field = dialog.get_by_label("API key", exact=True)
    expect(field).to_be_focused()
    field.fill("wrong")
    field.press("Enter")
    expect(dialog).to_contain_text("did not take this key: The API key is not valid.")
    field.fill("open-sesame")
    dialog.get_by_role("button", name="Use this key").click()
    assert answers(page) == ["Hi."] * 3
    expect(dialog).to_have_count(0)
    assert page.evaluate("sessionStorage.length") == 0
    assert "sesame" not in page.evaluate("JSON.stringify({ ...localStorage }) + location.href")


def test_a_key_is_remembered_if_the_reader_says_so(page: Page) -> None:
    page.evaluate(ASK, 1)
    dialog = page.get_by_role("dialog", name="This server wants an API key")
    dialog.get_by_label("Remember it").check()
    dialog.get_by_label("API key", exact=True).fill(" open-sesame ")
    dialog.get_by_role("button", name="Use this key").click()
    assert answers(page) == ["Hi."]
    found = page.evaluate(
        """async () => {
          const { KeyRing } = await import('/static/server/keys.js');
          const again = new KeyRing(sessionStorage).headers;
          (await import('/static/server/keys.js')).keys.set(null);
          return [again, sessionStorage.length];
        }"""
    )
    assert found == [{"Authorization": "Bearer open-sesame"}, 0]


def test_a_remembered_key_that_is_refused_is_forgotten(page: Page) -> None:
    """The server's keys may have changed: the next visit does not begin with one that it does not take."""
    page.evaluate("sessionStorage.setItem('fastpath.key', 'old')")
    page.reload()
    dialog = page.get_by_role("dialog", name="This server wants an API key")
    expect(dialog).to_contain_text("did not take this key")
    assert page.evaluate("sessionStorage.length") == 0


def test_who_gives_no_key_is_told_and_asked_again_only_when_they_want_something(page: Page) -> None:
    page.evaluate("performance.clearResourceTimings()")
    page.evaluate(ASK, 2)
    page.wait_for_function(_REFUSED, arg=2)  # one that is refused later would ask anew
    page.get_by_role("button", name="Cancel").click()
    assert answers(page) == ["invalid_api_key"] * 2
    codes = page.evaluate(
        """async () => {
          const { fetchModel, countTokens } = await import('/static/server/api.js');
          const code = (promise) => promise.then(() => '', (error) => error.code);
          return [await code(fetchModel()), await code(countTokens({ prompt: 'x' }))];
        }"""
    )
    assert codes == ["invalid_api_key"] * 2
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.evaluate(ASK, 1)
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    assert answers(page) == ["invalid_api_key"]


def test_tokens_are_counted_by_the_server(modules: Page, scripted: ScriptedServer) -> None:
    counts = modules.evaluate(
        """async () => {
          const { countTokens } = await import('/static/server/api.js');
          const messages = [{ role: 'user', content: 'two words' }];
          return [await countTokens({ prompt: 'three words here' }), await countTokens({ messages })];
        }"""
    )
    assert counts == [3, 6]
    assert scripted.counted[0] == {"prompt": "three words here", "add_special_tokens": False}


def test_statistics_are_followed_through_losses_and_keys(page: Page, scripted: ScriptedServer) -> None:
    page.evaluate(
        """async () => {
          const { watchStats } = await import('/static/server/watch.js');
          window.told = [];
          window.watching = new AbortController();
          window.ended = watchStats((stats) => told.push(stats?.running ?? null), watching.signal);
        }"""
    )
    page.wait_for_function("() => told.length > 0 && told.at(-1) === null")  # without a key: nothing is known
    page.evaluate("async () => (await import('/static/server/keys.js')).keys.set('open-sesame')")
    page.wait_for_function("() => told.at(-1) === 2")
    scripted.tell(running=5)
    page.wait_for_function("() => told.at(-1) === 5")
    page.evaluate("watching.abort()")
    page.evaluate("ended")
    scripted.tell(running=6)
    assert page.evaluate("told.at(-1)") != 6


@pytest.mark.parametrize(
    ("error", "title", "words", "remedy"),
    [
        ({"kind": "refused", "status": 401, "code": "invalid_api_key"}, "valid API key", "Said.", "retry"),
        ({"kind": "refused", "status": 403}, "this page's address", "Said.", "change"),
        (
            {"kind": "refused", "status": 400, "code": "context_length_exceeded"},
            "too long",
            "new chat",
            "change",
        ),
        ({"kind": "refused", "status": 413, "code": "request_too_large"}, "too large", "Shorten", "change"),
        ({"kind": "refused", "status": 429, "code": "queue_full"}, "busy", "is kept", "retry"),
        ({"kind": "refused", "status": 503}, "not ready", "is kept", "retry"),
        ({"kind": "refused", "status": 500}, "made an error", "log", "retry"),
        ({"kind": "refused", "status": 422}, "refused the request", "Said.", "change"),
        ({"kind": "stream", "code": "engine_unavailable"}, "started again", "in a moment", "retry"),
        ({"kind": "stream", "code": "server_shutdown"}, "shutting down", "is kept", "continue"),
        ({"kind": "stream"}, "broke off", "is kept", "continue"),
        ({"kind": "lost"}, "connection was lost", "Continue", "continue"),
        ({"kind": "gone", "status": 404}, "is gone", "Continue", "continue"),
        ({"kind": "unreachable"}, "cannot be reached", "is kept", "retry"),
    ],
)
def test_every_error_says_what_to_do(
    modules: Page, error: dict[str, object], title: str, words: str, remedy: str
) -> None:
    told = modules.evaluate(
        """async (facts) => {
          const { ApiError, explain } = await import('/static/server/errors.js');
          return explain(new ApiError('Said', facts));
        }""",
        error,
    )
    assert title in told["title"] and words in told["detail"] and told["remedy"] == remedy
    assert "{" not in told["detail"] and not told["title"].startswith("server.")
