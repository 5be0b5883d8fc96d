"""How soon a long conversation is there: from the click in the sidebar to its newest messages painted."""

import statistics

from playwright.sync_api import Browser, Page

from benchmarks.page.writing import Writer, conversation

MESSAGES = 500
LONG, SHORT = "A long conversation", "A short conversation"

# Writes the conversations as the page itself does.
KEEP = """
async ({ kept }) => {
  const { Library } = await import('./static/keep/library.js');
  const { Conversation, newHead } = await import('./static/core/conversation.js');
  const library = await Library.open();
  for (const { title, messages } of kept) {
    const made = new Conversation({ head: newHead({ title, named: true }), messages: [] });
    let parent = null;
    for (const message of messages) parent = made.add(parent, message).id;
    await library.write(made.records());
  }
}
"""

# Clicks, then looks at every frame for the last message in view; two more frames, and it is painted.
OPEN = """
async (row, ending) => {
  const frame = () => new Promise(requestAnimationFrame);
  const log = document.getElementById('log');
  const there = () => {
    const last = [...log.querySelectorAll('.answer .body')].at(-1);
    if (last === undefined || !last.textContent.trimEnd().endsWith(ending)) return false;
    const { top, bottom } = last.getBoundingClientRect();
    return bottom > top && top < innerHeight && bottom > 0;
  };
  const start = performance.now();
  row.click();
  while (!there()) {
    if (performance.now() - start > 20000) throw new Error('the conversation did not open');
    await frame();
  }
  await frame();
  await frame();
  return performance.now() - start;
}
"""


def measure(url: str, browser: Browser, repeats: int) -> dict[str, object]:
    """Opens the long conversation and a short one in turns; the times of the long one."""
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.goto(url)
    endings = {LONG: "This is the last word.", SHORT: "This is the end."}
    long = conversation(MESSAGES)
    short = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": Writer(3).answer(600)}]
    for title, messages in ((LONG, long), (SHORT, short)):
        messages[-1]["content"] += "\n\n" + endings[title]
    kept = [{"title": LONG, "messages": long}, {"title": SHORT, "messages": short}]
    page.evaluate(KEEP, {"kept": kept})
    page.reload()
    times: dict[str, list[float]] = {LONG: [], SHORT: []}
    for _ in range(repeats):
        for title in (LONG, SHORT):
            times[title].append(_open(page, title, endings[title]))
    shown = page.locator(".message").count()
    page.close()
    return {
        "messages": len(long),
        "characters": sum(len(message["content"]) for message in long),
        "repeats": repeats,
        "median_ms": statistics.median(times[LONG]),
        "first_ms": times[LONG][0],
        "longest_ms": max(times[LONG]),
        "short_median_ms": statistics.median(times[SHORT]),
        "messages_in_document": shown,
    }


def _open(page: Page, title: str, ending: str) -> float:
    row = page.locator("#sidebar").get_by_text(title, exact=True).first
    row.wait_for(state="visible")
    page.wait_for_timeout(300)  # what the one before still does afterwards is not this one's
    return float(row.evaluate(OPEN, ending))
