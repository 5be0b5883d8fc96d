"""When a step's time begins to count."""

from dataclasses import dataclass

import pytest
import torch

from engine.gpu.runner import Landing


@dataclass
class Event:
    """done: all that is behind it has ended."""

    done: bool = False
    recorded: int = 0

    def record(self) -> None:
        self.recorded += 1

    def query(self) -> bool:
        return self.done


@pytest.mark.parametrize("running", [True, False])
def test_a_step_behind_one_that_runs_begins_with_its_end(running: bool) -> None:
    """Without an event of its own on the device; one that finds nothing before it needs one."""
    started, previous = Event(), Event(done=not running)
    landing = Landing(*[torch.empty(0)] * 4, started, Event(), Event())  # type: ignore[arg-type]
    landing.begin_behind(previous)  # type: ignore[arg-type]
    assert landing.began is (previous if running else started)  # type: ignore[comparison-overlap]
    assert started.recorded == (not running) and previous.recorded == 0
    previous.done = True
    landing.begin_behind(previous)  # type: ignore[arg-type]
    assert landing.began is started and started.recorded == 1 + (not running)  # type: ignore[comparison-overlap]
