"""How long something takes on a GPU."""

import contextlib
import statistics
from collections.abc import Callable

import torch

REPLAYS = 5

# Seconds of everything that a function queues on a device.
Timer = Callable[[Callable[[], None]], float]


class GraphTimer:
    """Median time of one replay of a CUDA graph of everything that a function queues.

    Every capture uses the same stream: cuBLAS takes a workspace for each one that it meets.
    """

    def __init__(self, replays: int = REPLAYS) -> None:
        self.replays = replays
        self.stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self.start, self.end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]

    def __call__(self, body: Callable[[], None]) -> float:
        """Seconds; the first replay does not count."""
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.stream(self.stream):
            body()
            self.stream.synchronize()
            # torch.cuda.graph would also collect garbage, which takes longer than all the rest.
            graph.capture_begin()
            try:
                body()
            except BaseException:
                with contextlib.suppress(RuntimeError):  # it would hide what went wrong
                    graph.capture_end()
                raise
            graph.capture_end()
        times: list[float] = []
        for i in range(self.replays + 1):
            self.start.record()
            graph.replay()
            self.end.record()
            self.end.synchronize()
            if i > 0:
                times.append(self.start.elapsed_time(self.end) / 1e3)
        return statistics.median(times)
