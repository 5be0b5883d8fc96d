"""The architecture of a nanochat model, of any of its five generations. No torch here.

A checkpoint's generation is read off its tensors (engine/loader.py); what a generation implies is in
`GENERATIONS`.
Sources: karpathy/nanochat, nanochat/gpt.py at 4a87a0d (G1), aa530cd (G2), e85db6b (G3), 6ed7d1d (G4), a825e63
(G5).
"""

from dataclasses import dataclass, fields
from typing import Literal

from engine.flags import FastPathFlags, check_flags

Generation = Literal["G1", "G2", "G3", "G4", "G5"]


@dataclass(frozen=True, slots=True)
class GenerationConstants:
    """What distinguishes a generation and cannot be read from tensor shapes alone."""

    rope_base: float
    qk_scale: float  # both q and k are multiplied by it after their norm
    value_gate_scale: float  # gate = scale * sigmoid(...)
    value_gate_channels: int  # channels of the block input that the gate reads; 0: no value embeddings
    residual_scalars: bool  # resid_lambdas and x0_lambdas before each block
    smear: bool  # previous token's embedding is mixed in, and the middle of the network backed out
    # Short windows: sequence_len // divisor, for G4 and G5 rounded up to a multiple of 128.
    window_divisor: int
    window_multiple: int


GENERATIONS: dict[Generation, GenerationConstants] = {
    "G1": GenerationConstants(1e4, 1.0, 0.0, 0, False, False, 1, 1),
    "G2": GenerationConstants(1e4, 1.0, 0.0, 0, True, False, 2, 1),
    "G3": GenerationConstants(1e4, 1.0, 2.0, 32, True, False, 2, 1),
    "G4": GenerationConstants(1e5, 1.15, 3.0, 12, True, False, 3, 128),
    "G5": GenerationConstants(1e5, 1.2, 3.0, 12, True, True, 4, 128),
}


@dataclass(slots=True, kw_only=True)
class GPTConfig(FastPathFlags):
    """Shape and constants of a model, and the fast-path flags it is served with.

    The first block is nanochat's own `model_config`. The second holds the constants of a generation; None
    means "as the generation has it", and a value overrides it (checkpoints in the wild mix generations).
    """

    sequence_len: int = 1024
    vocab_size: int = 50304
    n_layer: int = 12
    n_head: int = 6
    n_kv_head: int = 6
    n_embd: int = 768
    window_pattern: str = (
        "L"  # one letter per layer, tiled; L: full context, S: short window; last layer is L
    )

    generation: Generation = "G1"
    padded_vocab_size: int | None = None  # rows of the embedding tables; None: vocab_size
    rope_base: float | None = None
    qk_scale: float | None = None
    value_gate_scale: float | None = None
    value_gate_channels: int | None = None
    short_window: int | None = None  # keys to the left of the current one
    softcap: float = 15.0
    rms_eps: float = 2.0**-23  # float32 epsilon: F.rms_norm's default
    rope_dtype: Literal["bfloat16", "float32"] | None = None  # precision that the cos/sin table is rounded to

    def __post_init__(self) -> None:
        check_flags(self)
        constants = GENERATIONS[self.generation]
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd {self.n_embd} is not a multiple of n_head {self.n_head}")
        if self.n_head % self.n_kv_head:
            raise ValueError(f"n_head {self.n_head} is not a multiple of n_kv_head {self.n_kv_head}")
        if set(self.window_pattern.upper()) - {"S", "L"} or not self.window_pattern:
            raise ValueError(f"window_pattern {self.window_pattern!r} may hold the letters S and L only")
        if self.padded_vocab_size is None:
            self.padded_vocab_size = self.vocab_size
        if self.rope_base is None:
            self.rope_base = constants.rope_base
        if self.qk_scale is None:
            self.qk_scale = constants.qk_scale
        if self.value_gate_scale is None:
            self.value_gate_scale = constants.value_gate_scale
        if self.value_gate_channels is None:
            self.value_gate_channels = constants.value_gate_channels
        if self.short_window is None:
            window = -(-self.sequence_len // constants.window_divisor)
            if constants.window_multiple == 1:
                window = self.sequence_len // constants.window_divisor
            self.short_window = -(-window // constants.window_multiple) * constants.window_multiple
        if self.rope_dtype is None:
            # Until 2026-03 the table was stored in bf16 whatever the model ran in; since then in its own
            # dtype.
            self.rope_dtype = "bfloat16" if self.generation in ("G1", "G2", "G3") else "float32"

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_head

    @property
    def constants(self) -> GenerationConstants:
        return GENERATIONS[self.generation]

    @property
    def rope_len(self) -> int:
        """Positions that the rotary table covers: ten times the training length, as upstream."""
        return 10 * self.sequence_len

    def window(self, layer: int) -> int | None:
        """Keys visible to the left of the current one in this layer; None for all."""
        if layer == self.n_layer - 1 or self.window_pattern[layer % len(self.window_pattern)].upper() == "L":
            return None
        return self.short_window

    def has_value_embedding(self, layer: int) -> bool:
        """Every second layer, the last one included."""
        return bool(self.value_gate_channels) and layer % 2 == (self.n_layer - 1) % 2

    @classmethod
    def for_generation(cls, generation: Generation, **values: object) -> "GPTConfig":
        """A configuration of one generation; unknown names raise TypeError."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise TypeError(f"GPTConfig has no field {', '.join(unknown)}")
        return cls(generation=generation, **values)  # type: ignore[arg-type]
