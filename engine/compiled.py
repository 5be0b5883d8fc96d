"""A nanochat model as a program for kernels.cpu: packed weights, working memory, and steps.

Weights are int8 with a scale for each output, activations int8 with a scale for each token; or weights are
bfloat16 and activations float32. Keys and values are kept in bfloat16, and everything else is float32.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from engine.decoder import Decoder, weight_of
from engine.model import GPT, SMEAR_CHANNELS, Block
from kernels.attention import KVCache
from kernels.cpu.isa import OUTPUTS, host
from kernels.cpu.pace import Pace
from kernels.cpu.packing import Packed, huge, pack_bf16, pack_int8
from kernels.cpu.program import FEW, Constant, Field, Layer
from kernels.cpu.team import Team
from kernels.linear import PackedLinear
from kernels.spec import CompiledKind

TOKENS = 256  # of a longer step at a time: what is between products then stays in the caches
SCORED = 64  # the same, where the logits of all are wanted, and there are no more rows than this
LINE = 64
LEAST_SHARE = 4 << 20  # bytes of weights that make a thread worth its barriers
CACHE_DTYPE = torch.bfloat16

Ints = np.ndarray[tuple[int, ...], np.dtype[np.int64]]
Numbers = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


@dataclass(frozen=True, slots=True)
class Tokens:
    """Consecutive tokens of a step. All have the step's length: ids, the ids before them, positions, and the
    index of their sequence in the step.
    """

    ids: Ints
    previous: Ints
    positions: Ints
    rows: Ints


@dataclass(frozen=True, slots=True)
class Draws:
    """How the tokens of a step are sampled: [samples, len(Draw)] and [samples, len(DrawNumber)]."""

    whole: Ints
    numbers: Numbers


def useful_threads(model: GPT, kind: CompiledKind, cores: int) -> int:
    """Threads for a model: a small one's step is too short for many of them to meet at its barriers."""
    per_weight = 1 if kind == "int8" else 2
    return max(1, min(cores, per_weight * model.parameter_count() // LEAST_SHARE))


def refusal(model: Decoder) -> str | None:
    """Why this model cannot be compiled; None if it can."""
    if not isinstance(model, GPT):
        return f"a {type(model).__name__} is served by torch"
    config = model.config
    lanes = host().lanes
    if config.head_dim % lanes:
        return f"head_dim {config.head_dim} is no multiple of {lanes}"
    if config.n_embd % OUTPUTS:
        return f"n_embd {config.n_embd} is no multiple of {OUTPUTS}"
    dtype = weight_of(model).dtype
    if dtype not in (torch.float32, torch.bfloat16):
        return f"{dtype} weights are served by torch"
    return None


class CompiledModel:
    """Runs steps of `model`, whose embeddings it shares; see `refusal` for what it takes."""

    def __init__(
        self,
        model: GPT,
        kind: CompiledKind,
        cache: KVCache,
        max_rows: int,
        max_model_len: int,
        threads: int,
        *,
        adapt: bool = False,
    ) -> None:
        """cache: bfloat16. max_rows: sequences of a step. adapt: steps may have fewer threads, if that is
        faster (kernels.cpu.pace). Raises ValueError where weights are not finite.
        """
        self.config = model.config
        self.kind = kind
        self.cache = cache
        config = model.config
        layers = config.n_layer
        self._program: Ints = np.zeros(len(Field) + layers * len(Layer), dtype=np.int64)
        self._constants = np.zeros(len(Constant) + 2 * layers, dtype=np.float32)
        self._kept: list[torch.Tensor] = []
        self.weight_bytes = 0
        self._describe(model)
        self._allocate(max_rows, max_model_len, threads)
        self.moved()
        self._team = Team(self._program, threads)
        self._pace = Pace(threads) if adapt else None

    def moved(self) -> None:
        """Looks up where the cache lies, at first and after it has grown."""
        cache, program = self.cache, self._program
        program[Field.KEYS], program[Field.VALUES] = cache.keys.data_ptr(), cache.values.data_ptr()
        program[Field.LAYER_BYTES] = cache.keys.stride(0) * cache.keys.element_size()
        program[Field.SLOT_BYTES] = cache.keys.size(-1) * cache.keys.element_size()
        program[Field.BLOCK_SIZE] = cache.block_size

    def close(self) -> None:
        self._team.close()

    def step(
        self, tokens: Tokens, tables: Ints, sampled: Sequence[int], draws: Draws | None = None
    ) -> tuple[torch.Tensor, Ints]:
        """The whole network over these tokens, their keys and values written to the cache.

        tables: [sequences, blocks] int64, each sequence's blocks. sampled: indices of the tokens whose logits
        are wanted, ascending, at most max_rows. Returns capped logits [sampled, vocab_size] float32 and the
        best ids [sampled], or those that `draws` leads to, -1 where a logit is not a number; both are
        overwritten by the next step.
        """
        count, done, first = len(tokens.ids), 0, 0
        self._program[Field.DRAWS] = 0
        while first < count:
            last = min(count, first + TOKENS)
            wanted = [index - first for index in sampled[done:] if index < last]
            if draws is not None:
                for field, array in ((Field.DRAWS, draws.whole), (Field.DRAW_NUMBERS, draws.numbers)):
                    self._program[field] = array.ctypes.data + array.strides[0] * done
            self._some(tokens, first, last, tables, wanted, done)
            done += len(wanted)
            first = last
        return self.logits[:done], self._chosen[:done]

    def logits_of_all(self, tokens: Tokens, tables: Ints) -> Iterator[tuple[int, torch.Tensor]]:
        """`step` with the logits of every token: some tokens at a time, yields the index of their first one
        and their logits [tokens, vocab_size], which the next ones overwrite. It is over when the iterator is.
        """
        self._program[Field.DRAWS] = 0
        most = min(TOKENS, len(self._logits))
        for first in range(0, len(tokens.ids), most):
            last = min(first + most, len(tokens.ids))
            self._some(tokens, first, last, tables, list(range(last - first)), 0)
            yield first, self.logits[: last - first]

    @property
    def logits(self) -> torch.Tensor:
        """The last step's, one row behind the other; [rows, vocab_size], as many as there is room."""
        return self._logits[:, : self.config.vocab_size]

    def _some(
        self, tokens: Tokens, first: int, last: int, tables: Ints, wanted: list[int], done: int
    ) -> None:
        count, program = last - first, self._program
        self._ids[:count] = tokens.ids[first:last]
        self._previous[:count] = tokens.previous[first:last]
        self._positions[:count] = tokens.positions[first:last]
        self._tables[:count] = tokens.rows[first:last] * tables.strides[0] + tables.ctypes.data
        self._sampled[: len(wanted)] = wanted
        program[Field.TOKENS], program[Field.SAMPLES] = count, len(wanted)
        program[Field.LOGITS] = self._logits.data_ptr() + 4 * done * self._logits.size(1)
        program[Field.CHOSEN] = self._chosen.ctypes.data + 8 * done
        if self._pace is None:
            self._team.run(self._team.threads)
            return
        threads, started = self._pace.choose(count), time.perf_counter()
        self._team.run(threads)
        self._pace.took(count, threads, time.perf_counter() - started)

    # -- the program
    # ---------------------------------------------------------------------------------------------

    def _describe(self, model: GPT) -> None:
        config, program = model.config, self._program
        embedding = _weight(model.transformer["wte"])
        own, other = model.rope(torch.device("cpu"))
        program[Field.LAYERS], program[Field.WIDTH] = config.n_layer, config.n_embd
        program[Field.HEADS], program[Field.KV_HEADS] = config.n_head, config.n_kv_head
        program[Field.HEAD_DIM], program[Field.INNER] = config.head_dim, 4 * config.n_embd
        program[Field.VOCABULARY] = config.vocab_size
        program[Field.INT8] = self.kind == "int8"
        program[Field.WIDE] = embedding.dtype == torch.float32
        program[Field.EMBEDDING] = self._keep(embedding)
        program[Field.ROPE_OWN], program[Field.ROPE_OTHER] = self._keep(own), self._keep(other)
        head = _weight(model.lm_head)[: config.vocab_size]
        program[Field.HEAD_WEIGHTS], program[Field.HEAD_SCALES] = self._pack(head, "lm_head.weight")
        program[Field.MIXES] = config.constants.residual_scalars
        program[Field.GATE_CHANNELS] = config.value_gate_channels or 0
        program[Field.MIDDLE_LAYER] = config.n_layer // 2
        program[Field.CONSTANTS] = self._constants.ctypes.data
        constants = self._constants
        constants[Constant.EPS], constants[Constant.CAP] = config.rms_eps, config.softcap
        constants[Constant.QK_SCALE] = config.qk_scale or 1.0
        constants[Constant.GATE_SCALE] = config.value_gate_scale or 0.0
        if config.constants.smear:
            program[Field.SMEAR_GATE] = self._keep(_weight(model.smear_gate))
            program[Field.SMEAR_CHANNELS] = SMEAR_CHANNELS
            constants[Constant.SMEAR] = float(model.smear_lambda)
            constants[Constant.BACKOUT] = float(model.backout_lambda)
        for layer in range(config.n_layer):
            self._describe_layer(model, layer)

    def _describe_layer(self, model: GPT, layer: int) -> None:
        config = model.config
        block = model.transformer["h"][layer]  # type: ignore[index]
        assert isinstance(block, Block)
        attn, mlp, name = block.attn, block.mlp, f"transformer.h.{layer}"
        record = self._program[len(Field) + layer * len(Layer) :]
        # Each is rounded alone, so that an error can name it.
        together = torch.cat([_weight(part) for part in (attn.c_q, attn.c_k, attn.c_v)])
        packed = (
            (Layer.QKV_WEIGHTS, together, f"{name}.attn.c_q, c_k or c_v.weight"),
            (Layer.OUT_WEIGHTS, _weight(attn.c_proj), f"{name}.attn.c_proj.weight"),
            (Layer.UP_WEIGHTS, _weight(mlp.c_fc), f"{name}.mlp.c_fc.weight"),
            (Layer.DOWN_WEIGHTS, _weight(mlp.c_proj), f"{name}.mlp.c_proj.weight"),
        )
        for place, weight, said in packed:
            record[place], record[place + 1] = self._pack(weight, said)
        window = config.window(layer)
        record[Layer.WINDOW] = -1 if window is None else window
        if config.has_value_embedding(layer):
            record[Layer.VALUE_EMBEDDING] = self._keep(_weight(model.value_embeds[str(layer)]))
            record[Layer.VALUE_GATE] = self._keep(_weight(attn.ve_gate))
        mixes = (1.0, 0.0)
        if config.constants.residual_scalars:
            mixes = float(model.resid_lambdas[layer]), float(model.x0_lambdas[layer])
        self._constants[len(Constant) + 2 * layer :][:2] = mixes

    def _pack(self, weight: torch.Tensor, name: str) -> tuple[int, int]:
        packed: Packed = pack_int8(weight, name) if self.kind == "int8" else pack_bf16(weight)
        self.weight_bytes += packed.nbytes
        return self._keep(packed.weights), self._keep(packed.scales)

    def _keep(self, tensor: torch.Tensor) -> int:
        """Keeps it alive and tells its address."""
        tensor = tensor.detach().contiguous()
        self._kept.append(tensor)
        return tensor.data_ptr()

    def _room(self, *shape: int) -> int:
        return self._keep(huge(shape, torch.float32))

    def _allocate(self, max_rows: int, max_model_len: int, threads: int) -> None:
        config, program = self.config, self._program
        width, inner, heads = config.n_embd, 4 * config.n_embd, config.n_head * config.head_dim
        every = heads + 2 * config.n_kv_head * config.head_dim
        for field, columns in (
            (Field.X, width),
            (Field.X0, width),
            (Field.MIDDLE, width),
            (Field.QKV, -(-every // OUTPUTS) * OUTPUTS),
            (Field.ATTENDED, heads),
            (Field.INNER_ROWS, inner),
            (Field.ROWS, max(width, inner // 4)),
            (Field.STATS, 4),
        ):
            program[field] = self._room(max(TOKENS, max_rows), columns)
        most_logits = max(max_rows, SCORED)
        program[Field.LAST_ROWS] = self._room(most_logits, width)
        stride = -(-config.vocab_size // OUTPUTS) * OUTPUTS
        self._logits = huge((most_logits, stride), torch.float32)
        program[Field.LOGIT_STRIDE] = stride
        parts = (
            (Field.PRIVATE_STATS, FEW * max(4 * width, inner)),
            (Field.PRIVATE_MIX, 16 * FEW),
            (Field.PRIVATE_WEIGHTS, 4 * width),
            (Field.PRIVATE_DRAW, 4 * max_model_len),
            (Field.PRIVATE_BYTES, 24 * config.vocab_size),
        )
        offset = 0
        for field, size in parts:  # the size of what is in front of each
            offset += -(-size // LINE) * LINE
            program[field] = offset
        program[Field.PRIVATE] = self._room(threads, offset // 4)
        most = max(TOKENS, max_rows)
        self._ids, self._previous, self._positions, self._tables, self._sampled, self._chosen = (
            np.zeros(most, dtype=np.int64) for _ in range(6)
        )
        for field, array in (
            (Field.IDS, self._ids),
            (Field.PREVIOUS, self._previous),
            (Field.POSITIONS, self._positions),
            (Field.TABLES, self._tables),
            (Field.SAMPLED, self._sampled),
        ):
            program[field] = array.ctypes.data


def _weight(module: torch.nn.Module | PackedLinear) -> torch.Tensor:
    assert isinstance(module.weight, torch.Tensor)
    return module.weight.detach()
