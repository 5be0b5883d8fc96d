"""Products chosen in whole decode steps: what is fastest by itself need not be so among its neighbours.

On a device where a kernel's first blocks begin beside the last of the one in front, how much that wins
depends on both: on registers and shared memory that the one leaves to the other. So the choice by itself, and
each family of kernels alone, are tried in whole steps, then for one product after the other what is nearly as
fast by itself. The results are kept in a file.
"""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
BETTER = 0.003  # by what part of a step another choice must be faster, twice
ROUNDS = 2  # over all products; the second only where the first has changed something
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
    attention = f"{network.attention.name} {kept.dtype} {kept.size(1)} heads of {kept.size(-1)}"
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
    """For one number of rows. measure: seconds of a step with what `choices` has."""

    choices: Choices
    rows: int
    measure: Callable[[], float]

    def run(self) -> Picks:
        choices, rows = self.choices, self.rows
        measured = {p: by_rows[rows] for p, by_rows in choices.table.items() if rows in by_rows}
        best: Picks = {product: choice.variant for product, choice in measured.items()}
        alone = least = self.measure()
        for family in choices.families:
            of_family = {p: [c.variant, *c.near] for p, c in measured.items()}
            picks = {
                product: next((n for n in near if n is not None and n.family == family.name), best[product])
                for product, near in of_family.items()
            }
            best, least = self._better(best, least, picks)
        for _ in range(ROUNDS):
            before = best
            for product, choice in measured.items():
                for pick in (choice.variant, *choice.near):
                    best, least = self._better(best, least, {**best, product: pick})
            if best == before:
                break
        _put(choices, rows, best)
        _log.info(
            "products of %d rows: %.3f ms a step, %.3f as each is alone", rows, 1e3 * least, 1e3 * alone
        )
        return best

    def _better(self, best: Picks, least: float, other: Picks) -> tuple[Picks, float]:
        """The better of two choices, and its seconds."""
        if other == best:
            return best, least
        wanted = least * (1 - BETTER)
        seconds = self.measure() if _put(self.choices, self.rows, other) else least
        if seconds < wanted:
            seconds = max(seconds, self.measure())
        if seconds < wanted:
            return other, seconds
        _put(self.choices, self.rows, best)
        return best, least


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
