"""The page's way to the server: streams that are cut, resumed, refused and stopped; keys; statistics."""

import json
from typing import Any

import pytest
from playwright.sync_api import Page

from tests.app.server_process import DEADLINE
from tests.static.scripted_server import (
    DONE,
    GATE,
    HangUp,
    Refusal,
    ScriptedServer,
    Step,
    delta,
    error,
    queue,
    role,
    score,
    usage,
)

pytestmark = pytest.mark.browser

# Collects an answer's pieces. `stop`: aborts after so many of them. `waits`: of the attempts to resume.
COLLECT = """
async ({ body, resumable, offered, waits, stop, resume }) => {
  const { streamAnswer, resumeAnswer } = await import('/static/server/stream.js');
  const { resumption } = await import('/static/server/resumption.js');
  resumption.offered = offered ?? true;
  resumption.waits = waits ?? [10, 10, 10];
  const ending = new AbortController();
  const how = { signal: ending.signal, resumable };
  const pieces = [];
  try {
    for await (const piece of resume ? resumeAnswer(resume, how) : streamAnswer(body, how)) {
      pieces.push(piece);
      if (pieces.length === stop) ending.abort();
    }
  } catch (error) {
    if (error.name === 'AbortError') return { pieces, error: 'aborted', offered: resumption.offered };
    const { kind, status, code, message } = error;
    return { pieces, error: { kind, status, code, message }, offered: resumption.offered };
  }
  return { pieces, error: null, offered: resumption.offered };
}
"""
ASK = {"messages": [{"role": "user", "content": "Hello"}]}


def collect(page: Page, **how: object) -> dict[str, Any]:
    found: dict[str, Any] = page.evaluate(COLLECT, {"body": ASK, **how})
    return found


def texts(found: dict[str, Any], choice: int = 0) -> str:
    return "".join(p["text"] for p in found["pieces"] if p["type"] == "text" and p["choice"] == choice)


def kinds(found: dict[str, Any]) -> list[str]:
    return [piece["type"] for piece in found["pieces"]]


WHOLE: list[Step] = [role(seed=11), delta("Hel"), delta("lo."), delta("", "stop", seed=11), usage(2), DONE]


def test_a_plain_stream_is_told_in_pieces(modules: Page, scripted: ScriptedServer) -> None:
    waiting = [b": ping\n", queue(2, 180), b": something else\n", queue(1), b': {"queue":\n']
    scripted.script("Hello", [*waiting, *WHOLE])
    found = collect(modules, resumable=False)
    assert found["pieces"] == [
        {"type": "queue", "position": 2, "eta": 0.18},
        {"type": "queue", "position": 1, "eta": None},
        {"type": "begin", "seed": 11, "model": "scripted-model"},
        {"type": "text", "choice": 0, "text": "Hel", "tokens": 1},
        {"type": "text", "choice": 0, "text": "lo.", "tokens": 1},
        {"type": "finish", "choice": 0, "reason": "stop"},
        {
            "type": "usage",
            "usage": {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11},
        },
    ]
    assert found["error"] is None
    body = scripted.exchanges[0].body
    assert (body["stream"], body["stream_options"]) == (True, {"include_usage": True})
    assert scripted.exchanges[0].stream_id == ""


def test_a_seed_that_comes_late_is_told(modules: Page, scripted: ScriptedServer) -> None:
    scripted.script("Hello", [role(), delta("Hi."), delta("", "stop", seed=5), DONE])
    begins = [piece for piece in collect(modules)["pieces"] if piece["type"] == "begin"]
    assert [piece["seed"] for piece in begins] == [None, 5]


def test_choices_are_kept_apart(modules: Page, scripted: ScriptedServer) -> None:
    both = [role(0), role(1), delta("a"), delta("x", index=1), delta("", "stop"), delta("y", "length", 1)]
    scripted.script("Hello", [*both, DONE], both[:-1])
    found = collect(modules)
    assert (texts(found, 0), texts(found, 1), found["error"]) == ("a", "xy", None)
    finishes = [(p["choice"], p["reason"]) for p in found["pieces"] if p["type"] == "finish"]
    assert finishes == [(0, "stop"), (1, "length")]
    assert collect(modules)["error"]["kind"] == "lost"  # one of two choices has not ended


def test_scores_spell_the_text(modules: Page, scripted: ScriptedServer) -> None:
    half, other = score("bytes:\\xc3", -0.5), score("bytes:\\xa9", -0.1)
    half["bytes"], other["bytes"] = [0xC3], [0xA9]
    scored = [delta("Caf", logprobs=[score("Caf", -0.2, {"Bar": -1.5})]), delta("é", logprobs=[half, other])]
    scripted.script("Hello", [role(), *scored, delta("", "stop"), DONE])
    found = collect(modules)
    scores = [item for piece in found["pieces"] if piece["type"] == "scores" for item in piece["scores"]]
    assert "".join(item["text"] for item in scores) == texts(found) == "Café"
    assert scores[0]["alternatives"] == [{"text": "Caf", "logprob": -0.2}, {"text": "Bar", "logprob": -1.5}]
    assert [piece["tokens"] for piece in found["pieces"] if piece["type"] == "text"] == [1, 2]


def test_a_resumable_stream_outlives_its_connection(modules: Page, scripted: ScriptedServer) -> None:
    scripted.resumable = True
    scripted.script("Hello", [*WHOLE[:2], HangUp(), WHOLE[2], HangUp(), *WHOLE[3:]])
    found = collect(modules, resumable=True)
    assert (texts(found), found["error"]) == ("Hello.", None)
    name = scripted.exchanges[0].stream_id
    assert len(name) == 32
    events = [piece for piece in found["pieces"] if piece["type"] == "event"]
    assert events == [{"type": "event", "id": name, "number": number} for number in range(6)]
    assert "reconnect" in kinds(found)
    assert scripted.resumed and {id for id, _ in scripted.resumed} == {name}
    assert len(scripted.exchanges) == 1 and scripted.deleted == []


def test_a_lost_stream_is_given_up_after_some_attempts(modules: Page, scripted: ScriptedServer) -> None:
    scripted.resumable = True
    scripted.script("Hello", [role(), delta("Half")])
    found = collect(modules, resumable=True)
    assert (texts(found), found["error"]["kind"]) == ("Half", "lost")
    assert [last for _, last in scripted.resumed] == ["2"] * 3
    assert [p["attempt"] for p in found["pieces"] if p["type"] == "reconnect"] == [1, 2, 3]


def test_a_reload_goes_on_where_it_was(modules: Page, scripted: ScriptedServer) -> None:
    scripted.resumable = True
    scripted.script("Hello", [*WHOLE[:2], GATE, *WHOLE[2:]])
    modules.evaluate(  # what a page that is closed leaves behind
        """async (body) => {
          const closing = new AbortController();
          const headers = { 'X-Stream-Id': 'kept' };
          await fetch('/v1/chat/completions', { method: 'POST', headers, body, signal: closing.signal });
          closing.abort();
        }""",
        json.dumps(ASK),
    )
    scripted.release()
    found = collect(modules, resume={"id": "kept", "number": 2})
    assert (texts(found), found["error"]) == ("lo.", None)
    assert kinds(found) == ["text", "event", "begin", "finish", "event", "usage", "event"]
    assert scripted.resumed == [("kept", "2")]


def test_what_was_stopped_cannot_be_resumed(modules: Page, scripted: ScriptedServer) -> None:
    scripted.resumable = True
    scripted.script("Hello", [*WHOLE[:2], GATE, *WHOLE[2:]])
    assert collect(modules, resumable=True, stop=4)["error"] == "aborted"
    assert scripted.exchanges[0].left.wait(DEADLINE)
    found = collect(modules, resume={"id": scripted.exchanges[0].stream_id, "number": 2})
    assert (found["error"]["kind"], found["error"]["status"]) == ("gone", 404)


def test_where_streams_cannot_be_resumed_a_plain_one_is_had(modules: Page, scripted: ScriptedServer) -> None:
    scripted.script("Hello", WHOLE)
    found = collect(modules, resumable=True)
    assert (texts(found), found["error"], found["offered"]) == ("Hello.", None, False)
    assert [bool(exchange.stream_id) for exchange in scripted.exchanges] == [True, False]
    assert collect(modules, resumable=True, offered=False)["error"] is None
    assert scripted.exchanges[2].stream_id == ""


def test_no_room_for_resumption_is_no_obstacle(modules: Page, scripted: ScriptedServer) -> None:
    scripted.resumable = True
    full = Refusal(503, "overloaded", "Too many resumable streams.", {"Retry-After": "2"}, "X-Stream-Id")
    busy = Refusal(503, "overloaded", "The queue is full.", {"Retry-After": "2"})
    scripted.script("Hello", full, WHOLE)
    found = collect(modules, resumable=True)
    assert (texts(found), found["error"], found["offered"]) == ("Hello.", None, True)
    scripted.script("Hello", busy)
    assert collect(modules, resumable=True)["error"]["code"] == "overloaded"
    assert len(scripted.exchanges) == 3


def test_errors_inside_the_stream_are_not_tried_again(modules: Page, scripted: ScriptedServer) -> None:
    scripted.resumable = True
    scripted.script("Hello", [role(), delta("Ha"), error("Gone.", "engine_unavailable"), DONE])
    found = collect(modules, resumable=True)
    assert texts(found) == "Ha"
    assert found["error"] == {"kind": "stream", "status": 0, "code": "engine_unavailable", "message": "Gone."}
    assert scripted.resumed == []


@pytest.mark.parametrize("choices", ["7", "[null]", '{"a": 1}'])
def test_events_that_cannot_be_read_are_not_asked_for_again(
    modules: Page, scripted: ScriptedServer, choices: str
) -> None:
    scripted.resumable = True
    scripted.script("Hello", [role(), delta("Ha"), f'data: {{"choices": {choices}}}\n\n'.encode(), DONE])
    found = collect(modules, resumable=True)
    assert texts(found) == "Ha"
    assert found["error"]["kind"] == "stream"
    assert scripted.resumed == []


@pytest.mark.parametrize("resumable", [False, True])
def test_a_stop_reaches_the_server(modules: Page, scripted: ScriptedServer, resumable: bool) -> None:
    scripted.resumable = resumable
    scripted.script("Hello", [queue(1), GATE, *WHOLE])
    found = collect(modules, resumable=resumable, offered=resumable, stop=1 + resumable)
    assert (kinds(found), found["error"]) == (["event"] * resumable + ["queue"], "aborted")
    assert scripted.exchanges[-1].left.wait(DEADLINE)
    assert scripted.deleted == [scripted.exchanges[-1].stream_id] * resumable
