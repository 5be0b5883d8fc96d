"""The trace of a run, read back: every request is in it, and slices of one track lie one behind the other."""

import json
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import pytest

from engine.messages import SamplingParams
from engine.text import load_tokenizer
from engine.trace import DEVICE, ENGINE, LOOP, REQUESTS, ROWS, Tracer
from tests.engine.checkpoints import make_model
from tests.engine.golden import G1
from tests.engine.serving import Ask, answers, started
from tests.optional import missing

TOKENIZER = load_tokenizer(G1 / "tokenizer")
Event = dict[str, object]


def ask(first: int, prompt: int, new: int) -> Ask:
    params = SamplingParams(max_tokens=new, temperature=0, ignore_eos=True)
    return Ask([first + index % 60 for index in range(prompt)], params)


async def traced(tmp_path: Path, asks: list[Ask], **config: object) -> Path:
    path = tmp_path / "trace.json"
    engine = await started(make_model("G1", 3, n_layer=2), TOKENIZER, trace=str(path), **config)
    await answers(engine, asks, together=True)
    await engine.close()
    return path


def slices(events: list[Event], group: int) -> dict[int, list[Event]]:
    """By track, in the order of their beginnings."""
    tracks: defaultdict[int, list[Event]] = defaultdict(list)
    for event in events:
        if event["ph"] == "X" and event["pid"] == group:
            tracks[int(str(event["tid"]))].append(event)
    return {track: sorted(found, key=lambda e: float(str(e["ts"]))) for track, found in tracks.items()}


def assert_in_turn(track: list[Event]) -> None:
    for before, after in pairwise(track):
        assert float(str(before["ts"])) + float(str(before["dur"])) <= float(str(after["ts"])) + 0.01


async def test_every_step_row_and_request_is_in_the_trace(tmp_path: Path) -> None:
    asks = [ask(1, 20, 6), ask(70, 45, 3), ask(140, 5, 9), ask(210, 7, 1)]
    path = await traced(tmp_path, asks, max_rows=2, max_batched_tokens=24)
    events: list[Event] = json.loads(path.read_text())
    tracks = slices(events, ENGINE)
    assert {str(event["name"]) for event in tracks[LOOP]} >= {
        "plan",
        "launch",
        "wait",
        "process",
        "emit",
    }
    for track in (*tracks.values(), *slices(events, ROWS).values()):
        assert_in_turn(track)
    steps = tracks[DEVICE]
    assert [step["name"] for step in steps] == [f"step {number}" for number in range(1, len(steps) + 1)]
    for step in steps:
        args = step["args"]
        assert isinstance(args, dict)
        assert args["tokens"] == args["rows"] + args["prefill tokens"] > 0 < args["measured ms"]
    rows = slices(events, ROWS)
    assert set(rows) == {1, 2}
    prefilled: defaultdict[int, int] = defaultdict(int)
    decoded: defaultdict[int, int] = defaultdict(int)
    for event in (event for track in rows.values() for event in track):
        args = event["args"]
        assert isinstance(args, dict)
        counts = decoded if event["name"] == "decode" else prefilled
        counts[args["stream"]] += args["tokens"]
    lives: defaultdict[int, list[Event]] = defaultdict(list)
    for event in events:
        if event["pid"] == REQUESTS and "id" in event:
            lives[int(str(event["id"]))].append(event)
    assert len(lives) == len(asks)
    for (stream, life), asked in zip(sorted(lives.items()), asks, strict=True):
        assert prefilled[stream] == len(asked.prompt)
        assert decoded[stream] == asked.params.max_tokens - 1
        names = [(event["ph"], str(event["name"]).split()[0]) for event in life]
        assert names == [("b", "request"), ("b", "queued"), ("e", "queued"), ("e", "request")]
        assert [event["ts"] for event in life] == sorted(float(str(event["ts"])) for event in life)
        end = life[-1]["args"]
        assert end == {"reason": "length", "output": asked.params.max_tokens, "cached": 0}


async def test_a_trace_that_was_cut_off_is_whole_lines(tmp_path: Path) -> None:
    path = await traced(tmp_path, [ask(1, 20, 6)])
    whole = path.read_text()
    lines = whole.splitlines()
    assert lines[0] == "[" and lines[-1] == "]"
    for line in lines[1:-2]:
        assert line.endswith(",") and json.loads(line[:-1])
    assert json.loads("\n".join(lines[:40]).rstrip(",") + "]")  # as a viewer mends it


def test_an_older_trace_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    path.write_text("older")
    Tracer(path).close()
    assert (tmp_path / "trace.json.old").read_text() == "older"
    assert json.loads(path.read_text())


def test_a_full_disk_ends_the_trace_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    full = Path("/dev/full")
    if not full.exists():
        missing("no /dev/full here")
    tracer = Tracer.__new__(Tracer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "exists", lambda self: False)
        tracer.__init__(full)  # type: ignore[misc]
    tracer.flush()
    assert "the trace ends here" in caplog.text
    tracer.failed("later")
    tracer.close()
