"""What a page's main thread does, in its own processor time: other programs do not make it longer."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Page

_CATEGORIES = ["blink.user_timing", "disabled-by-default-devtools.timeline"]
_MARK = "main thread"


@contextmanager
def task_times(page: Page) -> Iterator[list[float]]:
    """Notes each task of the page's main thread in the list, in milliseconds, when the block is left."""
    browser = page.context.browser
    assert browser is not None
    tasks: list[float] = []
    browser.start_tracing(page=page, categories=_CATEGORIES)
    try:
        page.evaluate("name => void performance.mark(name)", _MARK)
        yield tasks
    finally:
        events = json.loads(browser.stop_tracing())["traceEvents"]
    # The browser has other pages' threads in its trace too: the mark was made by the one meant.
    [thread] = {(event["pid"], event["tid"]) for event in events if event["name"] == _MARK}
    for event in events:
        if event["name"] == "RunTask" and (event["pid"], event["tid"]) == thread and "tdur" in event:
            tasks.append(event["tdur"] / 1000)
    assert tasks, "the trace has no tasks with their processor time"
