"""How many threads a step should have, found out while serving.

A core that another program has taken holds up everybody at the next barrier, for as long as its turn lasts:
then a team without it is faster. So now and then a few steps are tried with half
the threads, or with one more. (One less would still wait where two cores are taken.)
"""

from dataclasses import dataclass

PERIOD = 256  # steps from one trial to the next
TRIAL = 8  # steps that it takes
SHARE = 0.05  # of the newest step in what steps usually take
BETTER = 0.85  # of that time is worth half the threads; one more is welcome when it is no slower


@dataclass(slots=True)
class _Size:
    """Of steps of about one size. usual: seconds with `threads`, 0 before the first. tried: of the trial."""

    threads: int
    usual: float = 0.0
    tried: float = 0.0
    steps: int = TRIAL - 1


class Pace:
    """most: threads of the whole team, which is what steps begin with."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._sizes: dict[int, _Size] = {}

    def choose(self, tokens: int) -> int:
        """Threads for a step of so many tokens."""
        size = self._sizes.setdefault(tokens.bit_length(), _Size(self.most))
        size.steps += 1
        if size.steps % PERIOD >= TRIAL or self.most == 1:
            return size.threads
        return size.threads + 1 if self._upwards(size) else size.threads // 2

    def took(self, tokens: int, threads: int, seconds: float) -> None:
        """Tells what the step took that `choose` was asked about."""
        size = self._sizes[tokens.bit_length()]
        if threads == size.threads:
            size.usual += SHARE * (seconds - size.usual) if size.usual else seconds
            return
        size.tried += seconds / TRIAL
        if size.steps % PERIOD == TRIAL - 1:
            if size.tried < size.usual * (1.0 if threads > size.threads else BETTER):
                size.threads, size.usual = threads, size.tried
            size.tried = 0.0

    def _upwards(self, size: _Size) -> bool:
        """Trials take turns where both ways are open."""
        return size.threads == 1 or (size.threads < self.most and bool(size.steps // PERIOD % 2))
