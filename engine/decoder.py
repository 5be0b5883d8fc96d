"""What the engine needs of a model, whatever its family: nanochat's GPT, or a Llama and its relatives.

Everything works on a flat token axis: a token's position and its predecessor's id are inputs, so a chunk may
start anywhere in a sequence. Attention over the paged cache is the caller's: the model hands queries, keys
and values of each layer to an `attend` callback.
"""

from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import nn

# attend(layer, query [tokens, heads, d], key and value [tokens, kv_heads, d]) -> [tokens, heads, d]
Attend = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

# Rows of the rotary table for the step's tokens, each [tokens, 1, head_dim] (kernels.rope).
Rope = tuple[torch.Tensor, torch.Tensor]


class DecoderConfig(Protocol):
    """Sizes that the engine plans with. `GPTConfig` and `LlamaConfig` have them.

    generation: which architecture, "G1" to "G5" or a family's name such as "qwen3". vocab_size: real tokens,
    the columns of `logits`. sequence_len: positions that the model was trained for. rope_len: positions that
    its rotary table covers. kv_block_size, kv_page_size: see engine.flags.
    """

    @property
    def generation(self) -> str: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def n_layer(self) -> int: ...
    @property
    def n_head(self) -> int: ...
    @property
    def n_kv_head(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def sequence_len(self) -> int: ...
    @property
    def rope_len(self) -> int: ...
    @property
    def kv_block_size(self) -> int | None: ...
    @property
    def kv_page_size(self) -> int | None: ...

    def window(self, layer: int) -> int | None:
        """Keys visible to the left of the current one in this layer; None for all."""
        ...


class Decoder(Protocol):
    """A model that can be served."""

    @property
    def config(self) -> DecoderConfig: ...

    def hidden(
        self, ids: torch.Tensor, previous_ids: torch.Tensor, positions: torch.Tensor, attend: Attend
    ) -> torch.Tensor:
        """The normalised residual stream after the last layer, [tokens, width].

        ids, positions: [tokens] int64. previous_ids: the id before each token in its own sequence (any id
        where the position is 0); only some of nanochat's generations look at it.
        """
        ...

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """float32 logits over the real vocabulary. hidden: [rows, width] -> [rows, vocab_size]."""
        ...

    def rope(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """The rotary table, two times [rope_len, head_dim] float32 (kernels.rope), made on first use."""
        ...

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]: ...

    def parameter_count(self) -> int:
        """Numbers that the model consists of; a tied embedding counts once."""
        ...

    def packed(self) -> "Decoder":
        """The same model with fused projections in the fastest layout for this device (kernels.linear), for
        inference. Embeddings are shared; this model is unchanged, and the caller may drop it.
        """
        ...


def weight_of(model: Decoder) -> torch.Tensor:
    """A matrix of the model, whose dtype and device are the model's. The scalars of nanochat's later
    generations come first among its parameters, and are float32 in a model of any dtype.
    """
    return next(parameter for parameter in model.parameters() if parameter.dim() == 2)
