"""Time as a page has it: timers that wait for the test, and the work of the page's thread."""

from typing import Any

from playwright.sync_api import Page

# Timers of a second and more are held.
_HOLD = """() => {
  const { setTimeout, clearTimeout } = window;
  const held = new Map();
  let last = 0;
  window.setTimeout = (run, wait = 0, ...rest) => {
    if (wait < 1000) return setTimeout(run, wait, ...rest);
    held.set(--last, { run, wait });
    return last;
  };
  window.clearTimeout = (id) => held.delete(id) || clearTimeout(id);
  window.heldTimers = (wait) => [...held.values()].filter((timer) => timer.wait === wait).length;
  window.passTimers = () => {
    const due = [...held.values()];
    held.clear();
    due.forEach(({ run }) => run());
  };
}"""


def hold_timers(page: Page) -> None:
    """From now on the page's long timers wait until `pass_timers`, so that no test waits for them."""
    page.evaluate(_HOLD)


def pass_timers(page: Page) -> None:
    """Lets the time of all held timers come."""
    page.evaluate("passTimers()")


def until_held(page: Page, seconds: float, count: int) -> None:
    """Waits until so many timers of this length are held."""
    page.wait_for_function("([wait, count]) => heldTimers(wait) === count", arg=[1000 * seconds, count])


def work_of(page: Page, program: str, given: Any = None) -> tuple[float, Any]:
    """Seconds that the page's thread runs for a program, without those in which it waits for a core, and what
    the program returns.
    """
    client = page.context.new_cdp_session(page)
    client.send("Performance.enable")

    def ran() -> float:
        metrics = client.send("Performance.getMetrics")["metrics"]
        return float(next(metric["value"] for metric in metrics if metric["name"] == "ThreadTime"))

    before = ran()
    found = page.evaluate(program, given)
    seconds = ran() - before
    client.detach()
    return seconds, found
