"""What it costs the browser's main thread to show a long answer that streams in.

A 24 kB answer in markdown (prose, lists, tables, code) comes in 6,000 pieces, as fast as a server sends a
thousand tokens in a second; the page is given what has come once per frame. The figure is the time that the
main thread computes for scripts, styles and layout from the first piece to the last, less what the same
frames cost when the text is thrown away (`idle_ms`). The first answer of a page is told apart (`cold_ms`): it
pays for compiling the page's scripts as well. `total_ms` is the median of the answers after it, each of other
words.

    python -m benchmarks.page.stream http://127.0.0.1:8000/
"""

import argparse
import os
import random
import shutil
import statistics
import sys
from itertools import pairwise
from typing import Any

from playwright.sync_api import Browser, CDPSession, sync_playwright

SIZE = 24_000  # characters
PIECES = 6_000
PER_SECOND = 1_000
SEED = 7
REPEATS = 5  # answers after the first; their median counts

_COUNTERS = {"ScriptDuration": "script_ms", "RecalcStyleDuration": "style_ms", "LayoutDuration": "layout_ms"}
_SAID = (
    "the server batch token cache model answer stream page row block queue prompt layer weight reader "
    "memory kernel request attention value key position length time second together because while every "
    "shared small large next first last other then when their which more less"
)
_WORDS = _SAID.split()

_SETUP = """async () => {
  const { AnswerBody } = await import(new URL('static/reading/body.js', document.baseURI));
  const { load } = await import(new URL('static/reading/highlight.js', document.baseURI));
  await load('python');
  const log = document.getElementById('log');
  document.getElementById('welcome').hidden = true;
  window.begin = async () => {
    const element = document.createElement('div');
    element.className = 'body';
    log.replaceChildren(element);
    window.measured = new AnswerBody(element);
    await new Promise((done) => setTimeout(done, 300));
  };
}"""

# The pieces that are due are gathered and written once per frame, as the page's writer does.
_STREAM = """async ({ pieces, perSecond, shown }) => {
  let sent = 0;
  let frames = 0;
  const start = performance.now();
  await new Promise((done) => {
    const frame = () => {
      const due = Math.min(pieces.length, Math.ceil((performance.now() - start) * perSecond / 1000));
      let text = '';
      while (sent < due) text += pieces[sent++];
      if (text !== '') {
        if (shown) measured.append(text);
        frames++;
      }
      if (sent < pieces.length) requestAnimationFrame(frame);
      else done();
    };
    requestAnimationFrame(frame);
  });
  if (shown) measured.finish();
  await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  return { frames, seconds: (performance.now() - start) / 1000 };
}"""


def answer(size: int = SIZE, seed: int = 7) -> str:
    """A long answer in markdown, the same for the same seed."""
    pick = random.Random(seed)

    def sentence(length: int = 12) -> str:
        words = [pick.choice(_WORDS) for _ in range(length)]
        place = pick.randrange(length - 2)
        words[place] = pick.choice(
            (f"**{words[place]} {words[place + 1]}**", f"`{words[place]}`", words[place])
        )
        return " ".join(words).capitalize() + "."

    def prose() -> str:
        return " ".join(sentence(pick.randint(8, 16)) for _ in range(pick.randint(3, 6)))

    def points() -> str:
        ordered = pick.random() < 0.5
        return "\n".join(
            f"{k + 1}. {sentence()}" if ordered else f"- **{pick.choice(_WORDS)}**: {sentence()}"
            for k in range(6)
        )

    def code() -> str:
        lines = [
            f"def {pick.choice(_WORDS)}_{k}(value, key={k}):\n    return value * {k}  # {sentence(5)}"
            for k in range(6)
        ]
        return "```python\n" + "\n\n\n".join(lines) + "\n```"

    def table() -> str:
        rows = [f"| {pick.choice(_WORDS)} | {pick.randint(1, 999)} | {sentence(5)} |" for _ in range(6)]
        return "\n".join(["| Name | Value | What it means |", "| --- | ---: | --- |", *rows])

    text = ""
    section = 0
    while len(text) < size:
        section += 1
        parts = [f"## Part {section}", prose(), points(), prose(), code(), prose(), table(), prose()]
        text += "\n\n".join(parts) + "\n\n"
    return text[:size]


def pieces(text: str, count: int = PIECES) -> list[str]:
    """The text in so many pieces of nearly the same length."""
    cuts = [len(text) * k // count for k in range(count + 1)]
    return [text[start:end] for start, end in pairwise(cuts)]


def measure(page_url: str, browser: Browser, repeats: int = REPEATS) -> dict[str, Any]:
    """Streams answers into a fresh page, one after the other, and says what they cost, in milliseconds."""
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    try:
        page.goto(page_url)
        page.evaluate(_SETUP)
        client = page.context.new_cdp_session(page)
        # Time in which the thread ran, not in which it waited for a core.
        client.send("Performance.enable", {"timeDomain": "threadTicks"})

        def run(seed: int, shown: bool = True) -> dict[str, float]:
            page.evaluate("begin()")
            before = _counters(client)
            options = {"pieces": pieces(answer(seed=seed)), "perSecond": PER_SECOND, "shown": shown}
            about: dict[str, float] = page.evaluate(_STREAM, options)
            after = _counters(client)
            return about | {label: 1000 * (after[name] - before[name]) for name, label in _COUNTERS.items()}

        idle = run(SEED, shown=False)
        runs = [run(SEED + at) for at in range(repeats + 1)]
    finally:
        page.close()
    for each in runs:
        each |= {label: each[label] - idle[label] for label in _COUNTERS.values()}
        each["total_ms"] = sum(each[label] for label in _COUNTERS.values())
    cold, *warm = runs

    def median(name: str) -> float:
        return round(statistics.median(each[name] for each in warm), 1)

    return {
        "characters": SIZE,
        "pieces": PIECES,
        "repeats": repeats,
        "frames": median("frames"),
        "seconds": median("seconds"),
        **{label: median(label) for label in _COUNTERS.values()},
        "total_ms": median("total_ms"),
        "total_ms_of_all_runs": [{"total": round(each["total_ms"], 1)} for each in warm],
        "cold_ms": round(cold["total_ms"], 1),
        "idle_ms": round(sum(idle[label] for label in _COUNTERS.values()), 1),
        "load": round(os.getloadavg()[0], 1),  # what else the machine had to do, in cores
    }


def _counters(client: CDPSession) -> dict[str, float]:
    metrics = client.send("Performance.getMetrics")["metrics"]
    return {metric["name"]: metric["value"] for metric in metrics}


def main() -> None:
    """Measures a server's page and prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("url", help="where the page is")
    arguments = parser.parse_args()
    path = next((found for name in ("chromium", "google-chrome") if (found := shutil.which(name))), None)
    if path is None:
        sys.exit("There is no chromium on this machine.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        for name, value in measure(arguments.url, browser).items():
            print(f"{name:14} {value}")
        browser.close()


if __name__ == "__main__":
    main()
