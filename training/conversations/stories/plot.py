"""Plots: what happens, as beats with several wordings each; read from the text files beside this one."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Plot:
    """One plot. Every string is a template (`phrasing.expand`) over the slots of `cast.draw`.

    A plot with a `subject` can be asked for with any value of that slot. Its first beat is the story's
    opening, in which the subject is named; `fate` says what became of it.
    """

    theme: str
    hook: str
    moral: str
    summary: str
    title: str
    beats: tuple[tuple[str, ...], ...]
    mood: str = "happy"
    subject: str = ""
    fate: str = ""

    def names_early(self, slot: str) -> bool:
        """Whether `slot` is named in the first or the second beat, whatever their wordings."""
        named = (f"{{{slot}}}", f"{{a {slot}}}", f"{{A {slot}}}")
        if slot == "object":
            named += ("{thing}", "{a thing}", "{A thing}")
        return any(all(any(n in wording for n in named) for wording in beat) for beat in self.beats[:2])


@cache
def all_plots() -> tuple[Plot, ...]:
    """The plots of every file, in a fixed order."""
    return tuple(plot for path in sorted(FOLDER.glob("*.txt")) for plot in parse(path.read_text("utf-8")))


def parse(text: str) -> list[Plot]:
    """Plots are parted by `==`: lines `key: value`, then wordings (`- `) in beats parted by `--`."""
    plots = []
    for block in text.split("\n==\n"):
        head: dict[str, str] = {}
        beats: list[list[str]] = [[]]
        for line in filter(None, map(str.strip, block.splitlines())):
            if line == "--":
                beats.append([])
            elif line.startswith("- "):
                beats[-1].append(line[2:])
            else:
                key, _, value = line.partition(": ")
                head[key] = value
        if not all(beats):
            raise ValueError(f"a beat of plot {head.get('theme')!r} has no wording")
        plots.append(Plot(**head, beats=tuple(map(tuple, beats))))
    return plots


@cache
def plots_about(subject: str) -> tuple[Plot, ...]:
    """The plots that can be asked for with any value of the slot `subject`."""
    return tuple(plot for plot in all_plots() if plot.subject == subject)


@cache
def plots_naming(slot: str) -> tuple[Plot, ...]:
    """The plots that name `slot` early, those about it among them."""
    return tuple(plot for plot in all_plots() if plot.subject == slot or plot.names_early(slot))
