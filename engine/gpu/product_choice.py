"""Products chosen in whole decode steps: what is fastest by itself need not be so among its neighbours.

On a device where a kernel's first blocks begin beside the last of the one in front, how much that wins
depends on both: on registers and shared memory that the one leaves to the other. So steps are timed with
what is fastest by itself and with each family of kernels alone, and from each of these on one product after
the other takes what is nearly as fast by itself. The results are kept in a file.
"""

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from engine.gpu.cache import PagedKV
from engine.gpu.network import Network
from engine.gpu.path_trial import CONTEXT, Trial, blocks_for, fill, own_cache
from engine.gpu.step_file import step_file
from kernels.cuda_driver import DriverError
from kernels.nvrtc import CompileError, write_atomically
from kernels.probe import MEASURED_ROWS, Choices
from kernels.probe_file import cache_key, decode_pick, encode_pick, read_entries
from kernels.product import Pick, Product
from kernels.timing import GraphTimer, Timer

TUNED_ROWS = (8, 16, 32, 64)  # measured ones, up to which a step's products read each weight once
BETTER = 0.003  # by what part of a step another choice must be faster
HOPELESS = 1.1  # of the best start's time: from there nothing is looked for
SHORT_KERNELS = 16  # rows up to which it is looked for from every other start, and not from the best alone
REPLAYS = 8

Picks = Mapping[Product, Pick | None]

_log = logging.getLogger("fastpath.engine")


def choose_products(
    network: Network,
    choices: Choices,
    max_rows: int,
    max_model_len: int,
    make_cache: Callable[[int], PagedKV] | None,
    *,
    timer: Timer | None = None,
    file: Path | None = None,
) -> bool:
    """Puts into `choices`, which the network's projections have, what is fastest in whole steps of up to
    max_rows rows. True where some were measured, whose kernels may then not all be compiled.

    make_cache: a cache of so many blocks, which takes the place of the network's own meanwhile; None: only
    what the file knows is put. timer, file: for tests. Where memory does not suffice, what is there stays.
    """
    least = dict(zip(MEASURED_ROWS[1:], MEASURED_ROWS, strict=False))  # rows that a smaller choice serves
    buckets = [rows for rows in TUNED_ROWS if least[rows] < max_rows and _alternatives(choices, rows)]
    if not buckets:
        return False
    file = file or step_file("products", network.weights.embedding.device)
    known, measured, position = read_picks(file, choices), False, min(CONTEXT, max_model_len) - 1
    for rows in buckets:
        live = min(rows, max_rows)
        key = _key(network, choices, rows, live, position)
        if key not in known and make_cache is not None:
            timer = timer or GraphTimer(REPLAYS)
            try:
                known[key] = _measured(network, choices, rows, live, position, make_cache, timer)
            except torch.OutOfMemoryError as error:
                _log.info("products of %d rows are chosen by themselves: %s", rows, error)
                break
            measured = True
        before = {product: choices.table[product][rows].variant for product in known.get(key, {})}
        _put(choices, rows, known.get(key, {}))
        for product, pick in before.items():
            if choices.table[product][rows].variant != pick:
                choices.remark(product, rows, "in whole steps the fastest")
    if measured:
        write_picks(file, known)
    return measured


def _measured(
    network: Network,
    choices: Choices,
    rows: int,
    live: int,
    position: int,
    make_cache: Callable[[int], PagedKV],
    timer: Timer,
) -> Picks:
    """For steps of so many live rows, which take the choice for `rows`; nothing has changed afterwards."""
    assert network.cache is not None
    with own_cache(network):
        cache = make_cache(blocks_for(live, network.cache.block_size, position))
        fill(cache)
        network.cache = cache
        trial = Trial.of(network, live, [position] * live)
        return _Search(choices, rows, partial(timer, partial(trial.run, "graph"))).run()


def _alternatives(choices: Choices, rows: int) -> bool:
    return any(by_rows[rows].near for by_rows in choices.table.values() if rows in by_rows)


def _key(network: Network, choices: Choices, rows: int, live: int, position: int) -> str:
    """What times of whole steps depend on, beside device and kernels."""
    assert network.cache is not None
    kept, layers = network.cache.layers[0][0], network.weights.layers
    products = " | ".join(cache_key(product, rows, network.pdl) for product in choices.table)
    rotary, extras = layers[0].rotary, sum(layer.value_embedding is not None for layer in layers)
    attention = f"{network.attention.name} {rotary.heads} heads, {kept.dtype} {tuple(kept.shape[1:])}"
    step = f"{live} rows of {position + 1} keys, windows {network.windows}"
    return f"{products} | {len(layers)} layers, {extras} with value embeddings | {attention} | {step}"


def _put(choices: Choices, rows: int, picks: Picks) -> bool:
    """False where one of them cannot be made ready; the others are put."""
    fine = True
    for product, pick in picks.items():
        if choices.table[product][rows].variant == pick:
            continue
        try:
            choices.put(product, rows, pick)
        except (CompileError, DriverError) as error:
            _log.info("%s does not serve %d rows: %s", pick, rows, error)
            fine = False
    return fine


@dataclass(frozen=True, slots=True)
class _Search:
    """For one number of rows; leaves the choices as it has found them. measure: seconds of a step with what
    they are. known: of what has been measured, by the picks of all products in their order.
    """

    choices: Choices
    rows: int
    measure: Callable[[], float]
    known: dict[tuple[Pick | None, ...], float] = field(default_factory=dict)

    def run(self) -> Picks:
        by_rows = self.choices.table.items()
        near = {
            p: (found[self.rows].variant, *found[self.rows].near)
            for p, found in by_rows
            if self.rows in found
        }
        starts = self._starts(near)
        try:
            return self._best(starts, near)
        finally:
            _put(self.choices, self.rows, starts[0])

    def _best(self, starts: Sequence[Picks], near: Mapping[Product, Sequence[Pick | None]]) -> Picks:
        least = min(map(self._seconds, starts))
        limit = least * (HOPELESS if self.rows <= SHORT_KERNELS else 1.0)
        worth = [start for start in starts if self._seconds(start) <= limit]
        best = min((self._descend(start, near) for start in worth), key=self._seconds)
        best = self._descend(best, near)
        if self._seconds(best) > (1 - BETTER) * self._seconds(starts[0]):
            best = starts[0]
        alone, seconds = (1e3 * self._seconds(picks) for picks in (starts[0], best))
        _log.info("products of %d rows: %.3f ms a step, %.3f as each is alone", self.rows, seconds, alone)
        return best

    def _starts(self, near: Mapping[Product, Sequence[Pick | None]]) -> list[Picks]:
        """What is fastest by itself first; then of each family what is near, as far as it has something."""
        alone = {product: picks[0] for product, picks in near.items()}
        starts: list[Picks] = [alone]
        for family in self.choices.families:
            own = {
                p: [n for n in picks if n is not None and n.family == family.name]
                for p, picks in near.items()
            }
            starts.append({p: picks[0] if picks else alone[p] for p, picks in own.items()})
        return starts

    def _descend(self, start: Picks, near: Mapping[Product, Sequence[Pick | None]]) -> Picks:
        """From there on one product after the other takes what is near, where a step is faster so."""
        best = start
        for product, picks in near.items():
            for pick in picks:
                other = {**best, product: pick}
                if self._seconds(other) < (1 - BETTER) * self._seconds(best):
                    best = other
        return best

    def _seconds(self, picks: Picks) -> float:
        """Of a step; of two measurements the longer one, where the first is the shortest yet."""
        key = tuple(picks.values())
        if key not in self.known:
            if not _put(self.choices, self.rows, picks):
                self.known[key] = math.inf
                return math.inf
            try:
                seconds = self.measure()
                if seconds < min(self.known.values(), default=0.0):
                    seconds = max(seconds, self.measure())
            except (CompileError, DriverError) as error:
                _log.info("a step of %d rows cannot be measured: %s", self.rows, error)
                seconds = math.inf
            self.known[key] = seconds
        return self.known[key]


# -- the file


def read_picks(path: Path, choices: Choices) -> dict[str, Picks]:
    """By key, of its products that `choices` has; an entry with a kernel of no family here is none."""
    families = {family.name: family for family in choices.families}
    by_name = {str(product): product for product in choices.table}

    def decode(entry: Mapping[str, object]) -> Picks:
        return {by_name[name]: decode_pick(pick, families) for name, pick in entry.items() if name in by_name}

    return read_entries(path, decode)


def write_picks(path: Path, known: Mapping[str, Picks]) -> None:
    entries = {
        key: {str(product): encode_pick(pick) for product, pick in picks.items()}
        for key, picks in known.items()
    }
    write_atomically(path, (json.dumps(entries, indent=1) + "\n").encode())
