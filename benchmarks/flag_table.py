"""docs/flags.md from the code: `python -m benchmarks.flag_table > docs/flags.md`.

Gains come from the newest `flags-cuda-*.json` of `benchmarks/results`, a row of `benchmarks.flags` for each
flag that has one.
"""

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

from benchmarks.flag_modes import MODES, Mode
from benchmarks.report import RESULTS
from engine.flags import ABOUT, FAST, FastPathFlags

WHERE = {"any": "any", "cuda": "CUDA", "training": "any, in training"}
NOISE = 0.25  # share by which rows without graphs vary from run to run
INTRODUCTION = """# The seed's flags

Each can be measured alone (`python -m benchmarks.flags`). They are fields of `GPTConfig`, options of the
command line (`--use-flash3`, `--no-use-flash3`), variables of the environment (`APP_USE_FLASH3`) and keys
of the configuration file; numbers and switches may also stand in a checkpoint's meta, as defaults. What was
asked for and the device cannot do is an error before the server is ready; what was merely defaulted falls
back. The start-up table says what was used and why, of the flags that are asked for or in use; `/v1/models`
says it of all of them.

`--profile fast`, the default of the server and of `AsyncEngine`, turns on {fast}.
`--profile seed`, the default of `Engine`, leaves everything at the seed's defaults.

`kernels.stubs` describes the two kernels that may be yours. Ours can be named, too:
`--use-clustered-attention-kernel --clustered-attention-impl kernels.clustered_attention`,
`--use-persistent-decode-kernel --persistent-decode-impl kernels.persistent_decode`. On a GPU the latter is
the resident kernel of [decode.md](decode.md), as with `--decode-path persistent`: steps of more rows than it
takes go by the network's own kernels. Elsewhere it is that kernel's reference.

What a flag gains is measured by `benchmarks.flags`: the row that adds it, against the row before. Rows
without CUDA graphs vary by a quarter from run to run: a smaller difference there is within noise. No gain is
given where the sweep has no row for a flag alone; the README has FlashAttention's figures and TE's by size.

| flag | default | effect | device | gain measured |
| --- | --- | --- | --- | --- |
"""


def table() -> str:
    gains = measured()
    lines = []
    for flag in fields(FastPathFlags):
        about = ABOUT[flag.name]
        default = "none" if flag.default is None else str(flag.default)
        gain = gains.get(flag.name, "")
        lines.append(f"| `{flag.name}` | {default} | {about.effect} | {WHERE[about.where]} | {gain} |")
    *most, last = (f"`{name}`" for name in FAST)
    fast = f"{', '.join(most)} and {last}"
    return INTRODUCTION.format(fast=fast) + "\n".join(lines) + "\n"


def measured(folder: Path = RESULTS) -> dict[str, str]:
    """Flag -> prefill and decode against the row before it, on a GPU, where both have been measured. A row's
    gain is that of its first flag; the others are what that one was measured with.
    """
    found = [json.loads(file.read_text()) for file in folder.glob("flags-cuda-*.json")]
    if not found:
        return {}
    kept = max(found, key=lambda one: (one["machine"].get("date", ""), one["settings"].get("dtype", "")))
    rows = {row["mode"]: row for row in kept["rows"] if "prefill_tok_s" in row}
    gains: dict[str, str] = {}
    good = {name: row for name, row in rows.items() if row["error"] is None}
    above: dict[str, float] | None = None
    graphs = False
    for mode in MODES:
        row = good.get(mode.name)
        # A row that nobody chose has its flags in those below it all the same; one that failed has not.
        if "use_cuda_graphs" in mode.settings and (row is not None or mode.name not in rows):
            graphs = bool(mode.settings["use_cuda_graphs"])
        if row is None:
            above = None
            continue
        before = above if mode.over is None else good.get(mode.over)
        if before is not None and mode.credited:
            said = gain(before, row, 0.0 if graphs else NOISE)
            gains |= dict.fromkeys(credited(mode), f"{said} ({kept['machine']['gpu']})")
        above = row
    return gains


def credited(mode: Mode) -> list[str]:
    """The first flag among the row's settings, if there is one."""
    return [name for name in mode.settings if name in ABOUT][:1]


def gain(before: Mapping[str, float], after: Mapping[str, float], noise: float) -> str:
    """noise: the share by which a rate must have moved to be told."""
    told = []
    for part in ("prefill", "decode"):
        moved = after[f"{part}_tok_s"] / before[f"{part}_tok_s"] - 1
        told.append(f"{100 * moved:+.0f} %" if abs(moved) >= noise else "within noise")
    prefill, decode = told
    return "within noise" if {*told} == {"within noise"} else f"prefill {prefill}, decode {decode}"


def main() -> None:
    print(table(), end="")


if __name__ == "__main__":
    main()
