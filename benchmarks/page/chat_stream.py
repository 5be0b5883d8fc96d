"""A long answer through the whole page: network, events, facts, drawing."""

from playwright.sync_api import Browser

from benchmarks.page.browser import main_thread
from benchmarks.page.writing import Writer, pieces
from tests.static.scripted_server import DONE, ROLE, Pause, ScriptedServer, Step, delta, usage

LENGTH, PIECES = 24_000, 6_000
PER_SECOND = 1000
PER_WRITE = 4
QUESTION = "Tell me everything."

# Long tasks are those over 50 ms; a page without any has none to show.
WATCH = """
window.longTasks = [];
new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) longTasks.push(entry.duration);
}).observe({ type: 'longtask' });
"""


def script(text: str) -> list[Step]:
    """The answer in events of their own, `PER_WRITE` at a time."""
    events = [delta(piece) for piece in pieces(text, PIECES)]
    steps: list[Step] = [ROLE]
    for at in range(0, len(events), PER_WRITE):
        steps += [b"".join(events[at : at + PER_WRITE]), Pause(PER_WRITE / PER_SECOND)]
    return [*steps, delta("", "stop"), usage(PIECES), DONE]


def measure(server: ScriptedServer, browser: Browser) -> dict[str, object]:
    """Sends a message in the real page and lets the answer come at about `PER_SECOND` events a second."""
    text = Writer(1).answer(LENGTH)[:LENGTH]
    server.script(QUESTION, script(text))
    page = browser.new_page()
    page.add_init_script(WATCH)
    page.goto(server.url)
    page.wait_for_function("() => document.getElementById('model').textContent !== ''")
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable")
    draft = page.locator("#draft")
    draft.fill(QUESTION)
    page.wait_for_timeout(300)  # what the page still does on its own after loading is not the answer's
    before = main_thread(session)
    start = page.evaluate("performance.now()")
    draft.press("Enter")
    page.wait_for_selector(".answer[aria-busy=false]", timeout=60_000)
    seconds = (page.evaluate("performance.now()") - start) / 1e3
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")
    after = main_thread(session)
    long_tasks: list[float] = page.evaluate("longTasks")
    page.close()
    return {
        "characters": len(text),
        "pieces": PIECES,
        "seconds": seconds,
        "pieces_per_second": PIECES / seconds,
        **{name: after[name] - before[name] for name in after},
        "long_tasks": len(long_tasks),
        "longest_task_ms": max(long_tasks, default=0.0),
    }
