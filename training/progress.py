"""What a stage shows while it runs: a bar with rate, loss, MFU and time left on a terminal, else lines."""

import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    import tqdm


class Progress:
    """Of `total` steps, of which `first` were done before; a stage whose end is not known has none."""

    def __init__(
        self, name: str, total: int | None, first: int = 0, unit: str = "step", stream: TextIO | None = None
    ) -> None:
        self.name, self.total, self.done = name, total, first
        self._stream = stream or sys.stdout
        self._bar: tqdm.tqdm[None] | None = None
        if self._stream.isatty():
            import tqdm as bars  # where there is nobody to look at a bar, it need not be installed

            self._bar = bars.tqdm(
                desc=name, total=total, initial=first, unit=unit, file=self._stream, dynamic_ncols=True
            )

    def step(self, count: int = 1) -> None:
        """So many more are done."""
        self.done += count
        if self._bar is not None:
            self._bar.update(count)

    def report(self, loss: float, speed: float, share: float | None, left: float | None) -> None:
        """loss: nats per token. speed: tokens a second; 0: not known yet. share: MFU. left: seconds."""
        parts = [f"loss {loss:.4f}"]
        parts += [f"{speed / 1e3:.0f}k tokens/s"] if speed else []
        parts += [f"MFU {share:.1%}"] if share is not None and speed else []
        if self._bar is not None:
            self._bar.set_postfix_str(", ".join(parts))  # the bar says itself what is left
            return
        parts += [f"{left:.0f} s left"] if left is not None else []
        print(f"{self.name} {self.done}/{self.total} {', '.join(parts)}", file=self._stream, flush=True)

    def say(self, text: str) -> None:
        """A line of its own."""
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
