"""How late the event loop runs what is due: the one figure that tells of a loop that is held up."""

import asyncio

from app.telemetry.metrics import Metrics

INTERVAL = 0.1  # seconds


class LoopLag:
    """Sets a timer again and again and tells the metrics how late it came."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._due = self._loop.time() + INTERVAL
        self._timer = self._loop.call_at(self._due, self._tick)

    def close(self) -> None:
        self._timer.cancel()

    def _tick(self) -> None:
        now = self._loop.time()
        self._metrics.observe("fastpath_event_loop_lag_seconds", max(now - self._due, 0.0))
        self._due = now + INTERVAL
        self._timer = self._loop.call_at(self._due, self._tick)
