"""A trace of every step for ui.perfetto.dev or chrome://tracing: what the loop did, what the device did, and
what each row was doing meanwhile.

The file is an array of trace events, one a line, written as they happen. An array without its end is read all
the same, so a process that is killed leaves a good trace. Three groups of tracks:

    engine    loop: plan, launch, wait, process, emit; device: one slice per step, with its load, and
              predicted beside measured time
    rows      a track per row: each prefill chunk, then one slice while the sequence decodes
    requests  from a request's arrival to its end, with the time it was queued
"""

import logging
import os
import time
from io import FileIO
from pathlib import Path

import msgspec

from engine.plan import Plan
from engine.sequence import Sequence

ENGINE, ROWS, REQUESTS = 1, 2, 3  # process ids of the groups
LOOP, DEVICE = 1, 2  # thread ids in the first
BUFFER_BYTES = 1 << 16
FLUSH_SECONDS = 1.0

_log = logging.getLogger("fastpath.engine")
_encode = msgspec.json.Encoder().encode

Value = str | int | float


class Tracer:
    """Writes to `path`; a file that is there already gets the suffix `.old`. Times: time.perf_counter's.

    Raises OSError when the file cannot be made. One that cannot be written to any more ends the trace, not
    the engine.
    """

    def __init__(self, path: Path) -> None:
        if path.exists():
            path.replace(path.with_name(path.name + ".old"))
        self._file: FileIO | None = path.open("wb", buffering=0)
        self._buffer = bytearray(b"[\n")
        self._zero = self._flushed = time.perf_counter()
        self._idle_since = self._device_free = self._zero
        self._steps = 0
        self._named_rows: set[int] = set()
        self._decoding: dict[int, tuple[int, float, int]] = {}  # stream -> row, since when, tokens then
        self._queued: set[int] = set()
        for group, name in ((ENGINE, "engine"), (ROWS, "rows"), (REQUESTS, "requests")):
            self._name("process_name", group, 0, name)
        self._name("thread_name", ENGINE, LOOP, "loop")
        self._name("thread_name", ENGINE, DEVICE, "device")

    # -- what happened
    # --------------------------------------------------------------------------------------------

    def queued(self, sequence: Sequence) -> None:
        """A sequence has come."""
        now, stream = time.perf_counter(), sequence.id
        args: dict[str, Value] = {
            "prompt": sequence.prompt_length,
            "max_tokens": sequence.limit - sequence.prompt_length,
        }
        self._request("b", f"request {stream}", stream, now, args)
        self._request("b", "queued", stream, now)
        self._queued.add(stream)

    def launched(self, plan: Plan, started: float, planned: float, ended: float) -> None:
        """A step was planned and launched."""
        self._slice(ENGINE, LOOP, "plan", started, planned, {"chunks": len(plan.chunks)})
        self._slice(ENGINE, LOOP, "launch", planned, ended)
        for sequence in plan.admitted:
            self._stop_decoding(sequence, self._device_free)  # it was sent back to the queue, and nobody told
            if sequence.id in self._queued:
                self._queued.discard(sequence.id)
                self._request("e", "queued", sequence.id, ended)
        for sequence in plan.preempted:
            self._stop_decoding(sequence, self._device_free)
            self._request("n", "preempted", sequence.id, ended)
        self._idle_since = ended

    def arrived(self, plan: Plan, seconds: float, now: float) -> None:
        """A step's result came, and is about to be looked at; `seconds` is the device's time for it."""
        if now > self._idle_since:
            self._slice(ENGINE, LOOP, "wait", self._idle_since, now)
        begin = max(self._device_free, now - seconds)
        self._device_free = now
        self._steps += 1
        load = plan.load
        args: dict[str, Value] = {
            "rows": load.rows,
            "tokens": plan.num_tokens,
            "prefill tokens": load.prefill_tokens,
            "kv tokens": load.kv_tokens,
            "admitted": len(plan.admitted),
            "preempted": len(plan.preempted),
            "predicted ms": round(1e3 * plan.predicted, 4),
            "measured ms": round(1e3 * seconds, 4),
        }
        self._slice(ENGINE, DEVICE, f"step {self._steps}", begin, now, args)
        for chunk in plan.chunks:
            sequence = chunk.sequence
            if chunk.epoch != sequence.epoch or (chunk.length == 1 and sequence.id in self._decoding):
                continue
            self._chunk(sequence, chunk.row, chunk.start, chunk.length, begin, now)
            if chunk.samples and sequence.id not in self._decoding:
                self._decoding[sequence.id] = (chunk.row, now, len(sequence.tokens) + 1)

    def processed(self, started: float, ended: float) -> None:
        """The result was looked at."""
        self._slice(ENGINE, LOOP, "process", started, ended)
        self._idle_since = ended
        if ended - self._flushed > FLUSH_SECONDS:
            self.flush()

    def emitted(self, started: float, ended: float, tokens: int) -> None:
        """A frame was handed on."""
        self._slice(ENGINE, LOOP, "emit", started, ended, {"tokens": tokens})
        self._idle_since = max(self._idle_since, ended)

    def failed(self, message: str) -> None:
        """A step failed."""
        at = self._micros(time.perf_counter())
        where: dict[str, object] = {"ph": "i", "s": "g", "pid": ENGINE, "tid": DEVICE, "ts": at}
        self._write({"name": "failed", **where, "args": {"why": message}})
        self.flush()

    def ended(self, sequence: Sequence, reason: str) -> None:
        """A sequence is finished."""
        now = time.perf_counter()
        self._stop_decoding(sequence, self._device_free)
        if sequence.id in self._queued:
            self._queued.discard(sequence.id)
            self._request("e", "queued", sequence.id, now)
        output = len(sequence.tokens) - sequence.prompt_length
        args: dict[str, Value] = {"reason": reason, "output": output, "cached": sequence.cached_tokens}
        self._request("e", f"request {sequence.id}", sequence.id, now, args)

    def close(self) -> None:
        """Ends the array."""
        self._buffer += b'{"name":"end","ph":"i","s":"g","pid":1,"tid":1,"ts":%d}\n]\n' % self._micros(
            time.perf_counter()
        )
        self.flush()
        if self._file is not None:
            self._file.close()
            self._file = None

    def flush(self) -> None:
        """Hands everything so far to the system, in whole lines."""
        self._flushed = time.perf_counter()
        data, self._buffer = self._buffer, bytearray()
        if self._file is None:
            return
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(self._file.fileno(), view) :]
        except OSError as error:
            _log.warning("the trace ends here: %s", error)
            self._file.close()
            self._file = None

    # -- events
    # ---------------------------------------------------------------------------------------------------

    def _chunk(self, sequence: Sequence, row: int, start: int, length: int, begin: float, end: float) -> None:
        name = f"prefill {start}..{start + length - 1}"
        self._slice(ROWS, self._track(row), name, begin, end, {"stream": sequence.id, "tokens": length})

    def _stop_decoding(self, sequence: Sequence, end: float) -> None:
        since = self._decoding.pop(sequence.id, None)
        if since is not None:
            row, begin, known = since
            tokens = len(sequence.tokens) - known
            args: dict[str, Value] = {"stream": sequence.id, "tokens": tokens}
            if tokens > 0:
                self._slice(ROWS, self._track(row), "decode", begin, end, args)

    def _track(self, row: int) -> int:
        if row not in self._named_rows:
            self._named_rows.add(row)
            self._name("thread_name", ROWS, row + 1, f"row {row}")
        return row + 1

    def _name(self, what: str, group: int, track: int, name: str) -> None:
        self._write({"name": what, "ph": "M", "pid": group, "tid": track, "args": {"name": name}})

    def _slice(
        self,
        group: int,
        track: int,
        name: str,
        begin: float,
        end: float,
        args: dict[str, Value] | None = None,
    ) -> None:
        at = self._micros(begin)
        event: dict[str, object] = {"name": name, "ph": "X", "pid": group, "tid": track, "ts": at}
        event["dur"] = max(0.0, round(self._micros(end) - at, 3))
        if args:
            event["args"] = args
        self._write(event)

    def _request(
        self, phase: str, name: str, stream: int, at: float, args: dict[str, Value] | None = None
    ) -> None:
        event: dict[str, object] = {"name": name, "cat": "request", "ph": phase, "id": stream}
        event |= {"pid": REQUESTS, "tid": 0, "ts": self._micros(at)}
        if args:
            event["args"] = args
        self._write(event)

    def _write(self, event: dict[str, object]) -> None:
        if self._file is not None:
            self._buffer += _encode(event)
            self._buffer += b",\n"
            if len(self._buffer) >= BUFFER_BYTES:
                self.flush()

    def _micros(self, at: float) -> float:
        return round(1e6 * (at - self._zero), 3)
