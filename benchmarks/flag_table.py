"""docs/flags.md from the code: `python -m benchmarks.flag_table > docs/flags.md`.

Gains come from the newest `flags-cuda-*.json` of `benchmarks/results`, a row of `benchmarks.flags` for each
flag that has one.
"""

import json
from dataclasses import fields
from pathlib import Path

from benchmarks.flag_modes import MODES
from benchmarks.report import RESULTS
from engine.flags import ABOUT, FAST, FastPathFlags

WHERE = {"any": "any", "cuda": "CUDA", "training": "any, in training"}
INTRODUCTION = """# The seed's flags

Each can be measured alone (`python -m benchmarks.flags`). They are fields of `GPTConfig`, options of the
command line (`--use-flash3`, `--no-use-flash3`), variables of the environment (`APP_USE_FLASH3`) and keys
of the configuration file; numbers and switches may also stand in a checkpoint's meta, as defaults. What was
asked for and the device cannot do is an error before the server is ready; what was merely defaulted falls
back. The start-up table and `/v1/models` say what was used and why, also of flags that serving does not use.

`--profile fast`, the default of the server and of `AsyncEngine`, turns on {fast}.
`--profile seed`, the default of `Engine`, leaves everything at the seed's defaults.

`kernels.stubs` describes the two kernels that may be yours. Ours can be named, too:
`--use-clustered-attention-kernel --clustered-attention-impl kernels.clustered_attention`,
`--use-persistent-decode-kernel --persistent-decode-impl kernels.persistent_decode`.

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
    """Flag -> prefill and decode against the row before it, on a GPU, where both have been measured."""
    found = [json.loads(file.read_text()) for file in folder.glob("flags-cuda-*.json")]
    if not found:
        return {}
    kept = max(found, key=lambda one: (one["machine"].get("date", ""), one["settings"].get("dtype", "")))
    rows = {row["mode"]: row for row in kept["rows"] if "prefill_tok_s" in row}
    gains: dict[str, str] = {}
    good = {name: row for name, row in rows.items() if row["error"] is None}
    above: dict[str, float] | None = None
    for mode in MODES:
        row = good.get(mode.name)
        if row is None:
            above = None
            continue
        before = above if mode.over is None else good.get(mode.over)
        if before is not None and mode.credited:
            prefill, decode = (
                100 * (row[rate] / before[rate] - 1) for rate in ("prefill_tok_s", "decode_tok_s")
            )
            for name in mode.settings:
                gains[name] = f"prefill {prefill:+.0f} %, decode {decode:+.0f} % ({kept['machine']['gpu']})"
        above = row
    return gains


def main() -> None:
    print(table(), end="")


if __name__ == "__main__":
    main()
