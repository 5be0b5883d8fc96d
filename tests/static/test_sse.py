"""The event parser of the page, fed with every cut that a network could make."""

import random

import pytest
from playwright.sync_api import Page

from tests.tiers import tiered

pytestmark = pytest.mark.browser

# (stream, the events it holds as [name, data] or [name, data, id], comments as [":", text])
CASES: list[tuple[str, list[list[str]]]] = [
    ('data: {"a":"é空🌤️"}\n\ndata: [DONE]\n\n', [["message", '{"a":"é空🌤️"}'], ["message", "[DONE]"]]),
    (
        "data: one\r\n\r\ndata: two\r\r\ndata: three\n\n",
        [["message", "one"], ["message", "two"], ["message", "three"]],
    ),
    (
        ': ping\ndata: a\n: {"n":1}\n\n:ping\n\n:\n\ndata:b\n\n',
        [[":", "ping"], [":", '{"n":1}'], ["message", "a"], [":", "ping"], [":", ""], ["message", "b"]],
    ),
    (
        "event: note\nid: 7\ndata: first\ndata:  second\ndata\n\ndata: x\n\n",
        [["note", "first\n second\n", "7"], ["message", "x"]],
    ),
    ("data: a\r\ndata: b\r\n\r\ndata: c\r\n\r\n", [["message", "a\nb"], ["message", "c"]]),
    ("retry: 100\n\nid: 3\n\nevent: gone\n\ndata: x\n\n", [["message", "x"]]),
    ("data: whole\n\ndata: the end is missing\n", [["message", "whole"]]),
    (
        "\ufeffdata: after a mark\n\n\n\n\ndata: u2028 \u2028 stays\n\n",
        [["message", "after a mark"], ["message", "u2028 \u2028 stays"]],
    ),
]

# Reads `bytes` as a stream that breaks at each of `cuts`.
PARSE = """
async ({ bytes, cutLists }) => {
  const { readEvents } = await import('/static/server/sse.js');
  const all = new Uint8Array(bytes);
  const parse = async (cuts) => {
    const body = new ReadableStream({
      start(controller) {
        let from = 0;
        for (const to of [...cuts, all.length]) {
          controller.enqueue(all.slice(from, to));
          from = to;
        }
        controller.close();
      },
    });
    const events = [];
    for await (const { event, data, id, comment } of readEvents(body)) {
      events.push(comment !== null ? [':', comment] : id !== null ? [event, data, id] : [event, data]);
    }
    return events;
  };
  return Promise.all(cutLists.map(parse));
}
"""


@pytest.mark.parametrize("case", tiered(range(len(CASES)), range(1, len(CASES), 2)))
def test_cuts_do_not_matter(modules: Page, case: int) -> None:
    stream, events = CASES[case]
    data = stream.encode()
    rng = random.Random(case)
    cut_lists = [[], list(range(1, len(data)))]  # in one piece; byte by byte
    cut_lists += [[cut] for cut in range(1, len(data))]
    cut_lists += [sorted(rng.sample(range(1, len(data)), rng.randint(2, 8))) for _ in range(50)]
    parsed = modules.evaluate(PARSE, {"bytes": list(data), "cutLists": cut_lists})
    for cuts, got in zip(cut_lists, parsed, strict=True):
        assert got == events, f"cut at {cuts}"


def test_leaving_the_loop_cancels_the_request(modules: Page) -> None:
    cancelled = modules.evaluate(
        """async () => {
          const { readEvents } = await import('/static/server/sse.js');
          let cancelled = false;
          const body = new ReadableStream({
            start: (controller) => controller.enqueue(new TextEncoder().encode('data: x\\n\\n')),
            cancel: () => { cancelled = true; },
          });
          for await (const event of readEvents(body)) break;
          return cancelled;
        }"""
    )
    assert cancelled is True
