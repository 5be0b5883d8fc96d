"""Projections through Transformer Engine: which, their calibration, and what the start-up table says."""

from collections.abc import Sequence

import torch

from engine.backend import Feature
from engine.fastpath import Outcome
from engine.flags import Resolved
from engine.forced import forced_plans
from engine.gpu.linears import Linears
from engine.gpu.runner import GpuRunner
from engine.gpu.weights import Keeper
from kernels.te import load, precision
from kernels.te_linear import TeMaker

CALIBRATION_ROWS = 16  # at once; a bucket of its own, so that no row of a step is a leftover
CALIBRATION_BATCHES = 4  # where fewer rows run at once


def maker_of(flags: Resolved, device: torch.device, dtype: torch.dtype) -> TeMaker | None:
    """None where Transformer Engine is not wanted. Raises ValueError, naming te_weight_dtype, for what this
    device cannot do, and ImportError without the package.
    """
    if not flags.values.use_te_weight_only:
        return None
    wanted = precision(flags.values.te_weight_dtype, torch.cuda.get_device_capability(device), dtype)
    return TeMaker.of(load(), wanted)


def keeper_of(maker: TeMaker, flags: Resolved) -> Keeper:
    """Nothing is kept twice: what a te.Linear has been made of is dropped."""
    names = {"qkv", "o", "head"}
    if flags.values.te_include_mlp:
        names |= {"mlp_in", "mlp_out"}
    return Keeper(frozenset(names), maker.make)


def groups(passages: Sequence[list[int]], max_rows: int, longest: int) -> list[list[list[int]]]:
    """Passages that run at the same time, each cut to what a sequence may have. Every group fills its rows:
    what is left over of the passages is not used.
    """
    rows = min(max_rows, CALIBRATION_ROWS, len(passages))
    cut = [passage[:longest] for passage in passages]
    starts = range(0, len(cut) - rows + 1, rows)
    return [cut[start : start + rows] for start in starts][:CALIBRATION_BATCHES]


def prepare(
    runner: GpuRunner, linears: Linears, batches: Sequence[Sequence[list[int]]], block_size: int
) -> None:
    """Runs the passages through the network, with weights as they serve and full inputs, and sets each
    projection's scale by the largest number that it saw, where the precision has such scales. Then every
    module runs once: TE sets it up in its first call, which must not be a graph's capture. The network's
    cache must have `forced_blocks`.

    Single positions only: then every row of a step is live, and the head sees as many as the others.
    """
    scratch = linears.te_scratch
    assert scratch is not None
    if linears.te[0].maker.precision.calibrated:
        scratch.calibrating = True
        try:
            for batch in batches:
                for plan in forced_plans(batch, block_size):
                    runner.force(plan)
        finally:
            scratch.calibrating = False
        with torch.inference_mode():
            for linear in linears.te:
                linear.settle()
    runner.force(next(forced_plans(batches[0], block_size)))


def describe(
    maker: TeMaker | None, flags: Resolved, step_bytes: str
) -> tuple[list[Feature], dict[str, Outcome]]:
    """Rows of the start-up table, and what became of the flags; nothing where TE does not serve. step_bytes:
    what a decode step reads, in words.
    """
    if maker is None:
        return [], {}
    values, wanted = flags.values, maker.precision
    where = "q, k, v, output and head"
    if values.te_include_mlp:
        where = "q, k, v, output, MLP and head"
    alone = "scales set once, at start" if wanted.calibrated else "scales found in each step"
    if wanted.recipe is None:
        alone = "nothing is rounded"
    elif wanted.neighbours:
        alone += ", over all rows: a row's result depends on the others of its step"
    used = f"TE {maker.engine.version} {wanted.primary} ({wanted})"
    if wanted.recipe is not None:
        used += "; not weight-only math"
    rows: list[Feature] = [
        ("linear backend", values.te_weight_dtype, used, f"{where}; {alone}"),
        ("weight dtype", "auto", f"{wanted.name} of TE", step_bytes),
    ]
    included = ("on", "the MLP's, too") if values.te_include_mlp else ("off", "not asked for")
    return rows, {
        "use_te_weight_only": (f"TE {maker.engine.version}", f"{where} projections"),
        "te_weight_dtype": (wanted.name, f"{wanted}; {alone}"),
        "te_include_mlp": included,
    }
