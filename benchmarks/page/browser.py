"""The browser that measures, and what its main thread has done."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, CDPSession, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def find_chromium() -> str:
    """The path of the system's chromium. Raises SystemExit without one."""
    path = next((found for name in NAMES if (found := shutil.which(name))), None)
    if path is None:
        raise SystemExit("no chromium on this machine (tried: " + ", ".join(NAMES) + ")")
    return path


@contextmanager
def chromium() -> Iterator[Browser]:
    """The system's chromium without a window."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


PARTS = {
    "script_ms": "ScriptDuration",
    "layout_ms": "LayoutDuration",
    "style_ms": "RecalcStyleDuration",
    "task_ms": "TaskDuration",
}


def main_thread(session: CDPSession) -> dict[str, float]:
    """Milliseconds of the page's main thread so far, by kind; task_ms is all of it, painting included."""
    given = session.send("Performance.getMetrics")["metrics"]
    seconds = {metric["name"]: float(metric["value"]) for metric in given}
    return {name: 1e3 * seconds[theirs] for name, theirs in PARTS.items()}
