"""The seed's fast-path flags, with the seed's names and defaults, and the model constants that a user may
override. No torch here: the command line imports it.

`GPTConfig` inherits this dataclass, so library use and the server share one definition. Only flags that do
something in this engine are listed; the others of the seed join as their paths are built.
"""

from dataclasses import dataclass
from typing import Literal

OverrideKind = Literal["whole", "real", "dtype", "windows"]

# Fields of GPTConfig that neither a checkpoint's tensors nor, always, its description tell: what a user may
# say about a model. windows: one of the letters S and L per layer.
OVERRIDES: dict[str, OverrideKind] = {
    "rope_base": "real",
    "qk_scale": "real",
    "value_gate_scale": "real",
    "softcap": "real",
    "short_window": "whole",
    "rms_eps": "real",
    "rope_dtype": "dtype",
    "sequence_len": "whole",
    "window_pattern": "windows",
}


@dataclass(slots=True, kw_only=True)
class FastPathFlags:
    """Each flag can be measured alone.

    kv_block_size: tokens per KV block (None: the engine's default of 16).
    kv_page_size: granularity, in tokens, to which the KV pool's capacity is rounded up (None: one block).
    use_fp32_logits: the training loss casts its soft-capped logits to float32 first.
    """

    kv_block_size: int | None = None
    kv_page_size: int | None = None
    use_fp32_logits: bool = True
