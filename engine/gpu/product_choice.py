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
from engine.gpu.path_trial import CONTEXT, Trial, blocks_for, fill
from engine.gpu.step_file import step_file
from kernels.cuda_driver import DriverError
from kernels.nvrtc import CompileError, write_atomically
from kernels.probe import Choices
from kernels.probe_file import cache_key, decode_pick, encode_pick
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
    buckets = [rows for rows in TUNED_ROWS if rows <= max_rows and _alternatives(choices, rows)]
    if not buckets:
        return False
    file = file or step_file("products", network.weights.embedding.device)
    known = read_picks(file, choices)
    keys = {rows: _key(network, choices, rows) for rows in buckets}
    missing = [rows for rows in buckets if keys[rows] not in known] if make_cache is not None else []
    kept, position = network.cache, min(CONTEXT, max_model_len) - 1
    assert kept is not None
    try:
        if missing and make_cache is not None:
            cache = make_cache(blocks_for(max(missing), kept.block_size, position))
            fill(cache)
            network.cache = cache
        for rows in missing:
            trial = Trial.of(network, rows, [position] * rows)
            measure = partial(timer or GraphTimer(REPLAYS), partial(trial.run, "graph"))
            known[keys[rows]] = _Search(choices, rows, measure).run()
    except torch.OutOfMemoryError as error:
        _log.info("products are chosen by themselves: %s", error)
    finally:
        network.cache = kept
        if missing:
            network.step_counter.zero_()
            network.rows.block_tables.zero_()  # the other cache may have fewer blocks
    for rows in buckets:
        _put(choices, rows, known.get(keys[rows], {}), "in whole steps the fastest")
    if missing:
        write_picks(file, known)
    return bool(missing)


def _alternatives(choices: Choices, rows: int) -> bool:
    return any(by_rows[rows].near for by_rows in choices.table.values() if rows in by_rows)


def _key(network: Network, choices: Choices, rows: int) -> str:
    """What times of whole steps depend on, beside device and kernels."""
    assert network.cache is not None
    kept = network.cache.layers[0][0]
    products = " | ".join(cache_key(product, rows, network.pdl) for product in choices.table)
    attention = f"{network.attention.name} {kept.dtype} {tuple(kept.shape[1:])}"
    return f"{products} | {len(network.weights.layers)} layers | {attention}"


def _put(choices: Choices, rows: int, picks: Picks, reason: str = "") -> bool:
    """False where one of them cannot be made ready; the others are put."""
    fine = True
    for product, pick in picks.items():
        there = choices.table[product][rows]
        if (there.variant, there.reason) == (pick, reason):
            continue
        try:
            choices.put(product, rows, pick, reason)
        except (CompileError, DriverError) as error:
            _log.info("%s does not serve %d rows: %s", pick, rows, error)
            fine = False
    return fine


@dataclass(frozen=True, slots=True)
class _Search:
    """For one number of rows. measure: seconds of a step with what `choices` has. known: of what has been
    measured, by the picks of all products in their order.
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
        least = min(map(self._seconds, starts))
        limit = least * (HOPELESS if self.rows <= SHORT_KERNELS else 1.0)
        worth = [start for start in starts if self._seconds(start) <= limit]
        best = min((self._descend(start, near) for start in worth), key=self._seconds)
        best = self._descend(best, near)
        if self._seconds(best) > (1 - BETTER) * self._seconds(starts[0]):
            best = starts[0]
        _put(self.choices, self.rows, best)
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
            seconds = self.measure()
            if seconds < min(self.known.values(), default=0.0):
                seconds = max(seconds, self.measure())
            self.known[key] = seconds
        return self.known[key]


# -- the file


def read_picks(path: Path, choices: Choices) -> dict[str, Picks]:
    """By key, of products that `choices` has. A file that is missing or damaged knows nothing, nor does an
    entry that lacks one of them or names a kernel of no family here.
    """
    families = {family.name: family for family in choices.families}
    found: dict[str, Picks] = {}
    try:
        entries: Mapping[str, Mapping[str, object]] = json.loads(path.read_text())
        items = list(entries.items())
    except (OSError, ValueError, AttributeError):
        return {}
    for key, entry in items:
        try:
            found[key] = {
                product: decode_pick(entry[str(product)], families)
                for product in choices.table
                if str(product) in entry
            }
        except (ValueError, TypeError, KeyError):
            continue
    return found


def write_picks(path: Path, known: Mapping[str, Picks]) -> None:
    entries = {
        key: {str(product): encode_pick(pick) for product, pick in picks.items()}
        for key, picks in known.items()
    }
    write_atomically(path, (json.dumps(entries, indent=1) + "\n").encode())
