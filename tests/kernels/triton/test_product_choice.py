"""Products chosen in whole steps, with a clock of the test's own: only the network is real."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from engine.gpu import build, product_choice
from engine.gpu.network import Network
from engine.gpu.product_choice import BETTER, choose_products, read_picks
from engine.messages import EngineConfig
from kernels.nvrtc import CompileError
from kernels.probe import Choices
from kernels.probe_file import Choice
from kernels.product import Pick, Product
from tests.kernels.triton.path_cases import cache_of, gpt, network_of

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a stand-in for kernels that are there")

A, B, C = (Product(64, 64 * n, False, "none", False) for n in (1, 2, 3))


@dataclass(frozen=True)
class Way:
    number: int


@dataclass(slots=True)
class Kind:
    """A family of kernels that are only made ready. broken: those that cannot be."""

    name: str
    broken: set[int] = field(default_factory=set)
    ready: list[tuple[Product, range, int]] = field(default_factory=list)

    def prepare(self, product: Product, rows: range, config: Way) -> None:
        if config.number in self.broken:
            raise CompileError("no")
        self.ready.append((product, rows, config.number))

    def config(self, fields: Mapping[str, object]) -> Way:
        return Way(**fields)  # type: ignore[arg-type]


def pick(family: str, number: int) -> Pick:
    return Pick(family, Way(number))  # type: ignore[arg-type]


RED, BLUE = [pick("red", i) for i in range(3)], [pick("blue", i) for i in range(3)]


def choices(rows: Sequence[int] = (4, 8, 16)) -> tuple[Choices, Kind, Kind]:
    """By itself A is best by red, B by blue, C by the library; everything else is near."""
    red, blue = Kind("red"), Kind("blue")
    table = {
        A: Choice(RED[0], {"red": 1.0}, near=(BLUE[0], RED[1], None)),
        B: Choice(BLUE[0], {"blue": 1.0}, near=(RED[0], BLUE[1])),
        C: Choice(None, {"cuBLAS": 1.0}, near=(BLUE[2],)),
    }
    by_rows = {product: dict.fromkeys(rows, choice) for product, choice in table.items()}
    return Choices(by_rows, {A: "a", B: "b", C: "c"}, [red, blue]), red, blue  # type: ignore[list-item]


Picks = tuple[Pick | None, Pick | None, Pick | None]


@dataclass(slots=True)
class Clock:
    """Times a step by what its products go by at `rows`, and forgets nothing."""

    choices: Choices
    seconds: Callable[[Picks], float]
    seen: list[Picks] = field(default_factory=list)
    live: Mapping[int, int] = field(
        default_factory=lambda: {8: 8, 16: 16}
    )  # rows of a step, and its choice's

    def __call__(self, body: Callable[[], None]) -> float:
        trial = body.args if hasattr(body, "args") else ()
        assert trial == ("graph",)
        rows = self.live[body.func.__self__.shape.tokens]  # type: ignore[attr-defined]
        self.seen.append(tuple(self.choices.pick(product, rows) for product in (A, B, C)))  # type: ignore[arg-type]
        return self.seconds(self.seen[-1])


@pytest.fixture(scope="module")
def parts() -> tuple[object, Network]:
    model = gpt()
    return model, network_of(model, most=16)


def run(
    parts: tuple[object, Network],
    given: Choices,
    clock: Clock,
    file: Path,
    most: int = 8,
    cold: bool = True,
    longest: int = 64,
) -> bool:
    model, network = parts
    make = (lambda blocks: cache_of(model, blocks)) if cold else None  # type: ignore[arg-type]
    before = network.cache
    measured = choose_products(network, given, most, longest, make, timer=clock, file=file)
    assert network.cache is before and not network.rows.block_tables.any()
    assert network.step_counter.item() == 0
    return measured


def served(given: Choices, rows: int = 8) -> Picks:
    return tuple(given.pick(product, rows) for product in (A, B, C))  # type: ignore[return-value]


def test_kinds_that_get_along(parts: tuple[object, Network], tmp_path: Path) -> None:
    """A step is fast only if everything is of one kind: found though each change alone makes it slower."""
    given, _, blue = choices()

    def seconds(picks: Picks) -> float:
        kinds = {None if pick is None else pick.family for pick in picks}
        return (
            1.0 if kinds == {"blue"} else 2.0 + 0.1 * sum(p is not None and p.family == "blue" for p in picks)
        )

    assert run(parts, given, Clock(given, seconds), tmp_path / "p.json")
    assert served(given) == (BLUE[0], BLUE[0], BLUE[2])
    assert (A, range(5, 9), 0) in blue.ready, "ready for the rows in between, too"
    assert served(given, 4) == served(given, 16) == (RED[0], BLUE[0], None), (
        "others have not been asked about"
    )
    shown = given.explain()[1]
    assert shown[1].startswith("blue (") and shown[2] == "red 1.0 us; in whole steps the fastest"


def test_one_product_after_the_other(parts: tuple[object, Network], tmp_path: Path) -> None:
    """The best of all combinations, where products do not depend on each other; the whole is not searched."""
    for best in itertools.product((RED[1], None), (RED[0], BLUE[1]), (BLUE[2], None)):
        given, *_ = choices()

        def seconds(picks: Picks, best: Picks = best) -> float:  # type: ignore[assignment]
            return 1.0 + sum(0.1 for got, want in zip(picks, best, strict=True) if got != want)

        clock = Clock(given, seconds)
        assert run(parts, given, clock, tmp_path / f"{len(list(tmp_path.iterdir()))}.json")
        assert served(given) == best
        assert len(clock.seen) < 40


def test_a_little_faster_once_is_not_enough(parts: tuple[object, Network], tmp_path: Path) -> None:
    given, *_ = choices()
    noise = itertools.cycle([1.0, 1.0 - 0.9 * BETTER, 1.0 - 3 * BETTER, 1.0])
    assert run(parts, given, Clock(given, lambda picks: next(noise)), tmp_path / "p.json")
    assert served(given) == (RED[0], BLUE[0], None)


def test_what_is_known_is_not_measured(parts: tuple[object, Network], tmp_path: Path) -> None:
    def seconds(picks: Picks) -> float:
        return 1.0 - 0.1 * sum(pick is not None and pick.family == "red" for pick in picks)

    given, *_ = choices()
    file = tmp_path / "p.json"
    assert not run(parts, given, Clock(given, seconds), file, cold=False) and not file.exists()
    assert run(parts, given, Clock(given, seconds), file, most=16)
    wanted = served(given)
    assert wanted == (RED[0], RED[0], None) == served(given, 16)
    for cold in (False, True):
        again, red, _ = choices()
        clock = Clock(again, seconds)
        assert not run(parts, again, clock, file, most=16, cold=cold) and not clock.seen
        assert served(again) == served(again, 16) == wanted and red.ready
    # Shorter rows are another question, and so is a kernel that is not there any more.
    assert run(parts, choices()[0], Clock(given, seconds), file, most=16, longest=32)
    for text in ("{}", "3", file.read_text().replace('"red"', '"green"'), ""):
        file.write_text(text)
        assert read_picks(file, given) == {}
        again, *_ = choices()
        assert run(parts, again, Clock(again, seconds), file, most=16) and served(again) == wanted


def test_a_kernel_that_cannot_be_made_ready_does_not_serve(
    parts: tuple[object, Network], tmp_path: Path
) -> None:
    given, red, blue = choices()
    red.broken, blue.broken = {1}, {2}

    def seconds(picks: Picks) -> float:
        return 1.0 - 0.1 * sum(pick in (RED[1], BLUE[2], BLUE[1]) for pick in picks)

    assert run(parts, given, Clock(given, seconds), tmp_path / "p.json")
    assert served(given) == (RED[0], BLUE[1], None)


def test_the_largest_step_may_lie_between(parts: tuple[object, Network], tmp_path: Path) -> None:
    """Its rows take the next choice above, which is then measured with as many rows as there are."""
    given, *_ = choices()
    clock = Clock(given, lambda picks: 1.0 - 0.1 * (picks[0] == RED[1]), live={8: 8, 12: 16})
    assert run(parts, given, clock, tmp_path / "p.json", most=12)
    assert served(given) == served(given, 16) == (RED[1], BLUE[0], None)
    given, *_ = choices()
    assert not run(parts, given, Clock(given, lambda picks: 1.0), tmp_path / "q.json", most=4)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, CompileError])
def test_what_fails_while_it_is_measured_does_not_stay(
    error: type[Exception], parts: tuple[object, Network], tmp_path: Path
) -> None:
    """Of memory that gives out nothing stays; a kernel that fails is not taken."""
    given, *_ = choices()

    def seconds(picks: Picks) -> float:
        if picks[1] != BLUE[0]:
            raise error("no")
        return 1.0 - 0.1 * (picks[0] == RED[1])

    measured = run(parts, given, Clock(given, seconds), tmp_path / "p.json")
    assert measured == (error is CompileError)
    assert served(given) == ((RED[1] if measured else RED[0]), BLUE[0], None)


def test_without_memory_for_a_trial_all_stays(
    parts: tuple[object, Network], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(cache: object) -> None:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(product_choice, "fill", full)
    given, *_ = choices()
    run(parts, given, Clock(given, lambda picks: 1.0), tmp_path / "p.json")
    assert served(given) == (RED[0], BLUE[0], None)


@pytest.mark.parametrize("change", ["", "cublas", "no graphs", "not early", "te"])
def test_only_what_is_chosen_by_measurement_is_searched(
    change: str, parts: tuple[object, Network], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, network = parts
    asked: list[tuple[object, ...]] = []

    def choose(*given: object) -> bool:
        asked.append(given)
        return True

    monkeypatch.setattr(build, "choose_products", choose)
    monkeypatch.setattr(network, "pdl", change != "not early")
    monkeypatch.setattr(network.linears, "te", [object()] if change == "te" else [])
    config = EngineConfig(linear_backend="cublas" if change == "cublas" else "auto")
    sizes = build.Sizes(16, 64, 64, 16)
    assert build._choose_products(network, config, change != "no graphs", sizes, None) == (not change)
    assert asked == ([] if change else [(network, network.linears.choices, 16, 64, None)])
