"""One step of the network over static buffers: embed, layers, logits, sampler, row state.

Nothing here depends on the host: lengths, tables and parameters are read from device memory, so the same
calls run eagerly, while a graph is captured, and as its replay. Single positions come first in a step's
tokens and go through the decode kernel; longer chunks follow and go through the prefill kernel. Every
product, norm and elementwise kernel covers the whole bucket; rows beyond the live ones hold leftovers that
nobody reads. (Scales over all rows of a step, as Transformer Engine's fp8_current has them, do see those.)
"""

from collections.abc import Iterable

import torch

from engine.gpu.cache import PagedKV
from engine.gpu.inputs import RING, StepInputs, StepShape
from engine.gpu.linears import Linears
from engine.gpu.paths import Paths
from engine.gpu.rows import DeviceRows
from engine.gpu.scratch import Scratch
from engine.gpu.weights import LayerWeights, NetworkWeights
from kernels.backends.base import AttentionBackend, RotatingBackend, rotating
from kernels.triton.decode import Fresh
from kernels.triton.embed import embed_norm
from kernels.triton.nanochat import embed_smear, value_gate
from kernels.triton.rope import rotate_and_store
from kernels.triton.sampling import SampleOutput, sample
from kernels.triton.step import finish_step, gather_rows, prepare_step, scale_add


def programmatic_launch(device: torch.device) -> bool:
    """Whether kernels may start while the one in front of them still runs (compute capability 9 and on)."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 9


class Network:
    """A model's forward pass with everything that it writes to. `cache` is set once its size is known."""

    def __init__(
        self,
        weights: NetworkWeights,
        linears: Linears,
        rows: DeviceRows,
        attention: AttentionBackend,
        max_tokens: int,
        max_entries: int,
    ) -> None:
        self.weights = weights
        self.linears = linears
        self.rows = rows
        self.attention = attention
        self.cache: PagedKV | None = None
        device = weights.embedding.device
        self.max_tokens, self.max_entries = max_tokens, max_entries
        self.reserve()
        self.persistent = True  # False: each step allocates its activations anew
        self.sampled = SampleOutput.allocate(max_entries, weights.vocab_size, device)
        # What a step sampled, kept while later steps run: [step modulo RING, token and validity, entry].
        # Validity has LOST on top where the kernels of `paths` had failed by then.
        self.results = torch.zeros(RING, 2, max_entries, dtype=torch.int32, device=device)
        self.step_counter = torch.zeros(1, dtype=torch.int32, device=device)
        self.paths = Paths.none(device)
        self.pdl = programmatic_launch(device)
        self.rope = weights.own, weights.other
        rotates = all(layer.rotated for layer in weights.layers)
        self.no_rope = self.rope if rotates else weights.unrotated
        found = {layer.window for layer in weights.layers}
        self.windows = sorted(found, key=lambda window: (window is not None, window or 0))

    def step(self, shape: StepShape, inputs: StepInputs, full: bool) -> None:
        """Queues one whole step. full: some row has penalties, biases or bans, or wants logprobs."""
        self._forward(shape, inputs, range(len(self.weights.layers)))
        self._logits(shape.tokens, inputs.entry_tokens)
        self._sample(shape, inputs, full)

    def step_by_path(self, shape: StepShape, inputs: StepInputs, full: bool) -> None:
        """Queues one whole step of single positions, layers and head by the path of its bucket (`paths`,
        which must serve it). Every token samples, entry i behind token i; `logits_of` may not follow it.
        """
        cache, rows = self.cache, shape.tokens
        assert cache is not None and not shape.chunks
        self._anew(shape)
        scratch = self.scratch
        self._embed(shape, inputs, cache.block_size)
        self.paths.step(
            cache,
            x=scratch.x[:rows],
            ids_rows=inputs.token_rows,
            positions=scratch.positions[:rows],
            block_tables=self.rows.block_tables,
            logits=scratch.logits[:rows],
            entry_tokens=inputs.entry_tokens,
            entry_positions=scratch.entry_positions[:rows],
        )
        self._sample(shape, inputs, full)

    def reserve(self) -> None:
        """Makes room for the largest step, so that memory is measured with it."""
        self.scratch = Scratch.allocate(self.weights, self.max_tokens, self.max_entries)

    def rehearse(self, shape: StepShape, inputs: StepInputs) -> None:
        """Queues every kind of kernel that steps of this shape need, for rows of either kind: one layer of
        each kind does. What it computes is worthless, but harmless to an empty step.
        """
        self._forward(shape, inputs, self._kinds())
        self._logits(shape.tokens, inputs.entry_tokens)
        for full in (False, True):
            self._sample(shape, inputs, full)

    def _kinds(self) -> list[int]:
        """A layer of each kind that there is. Two kinds differ in what they launch."""
        middle = len(self.weights.layers) // 2 + 1
        kinds: dict[tuple[bool, ...], int] = {}
        for index, layer in enumerate(self.weights.layers):
            parts = (
                *(layer.qkv_bias, layer.o_bias, layer.mlp_in_bias, layer.mlp_out_bias),
                *(layer.q_norm, layer.k_norm, layer.value_embedding, layer.value_gate, layer.window),
            )
            kinds.setdefault((layer.rotated, index == middle, *(part is None for part in parts)), index)
        return list(kinds.values())

    def _forward(self, shape: StepShape, inputs: StepInputs, layers: Iterable[int]) -> None:
        cache = self.cache
        assert cache is not None
        self._anew(shape)
        self._embed(shape, inputs, cache.block_size)
        positions = self.scratch.positions[: shape.decodes]
        for window in self.windows:
            self.attention.plan(inputs.decode_rows, positions, window=window, pdl=self.pdl)
        inside = None if shape.chunks else rotating(self.attention, shape.decodes)
        for index in layers:
            self._layer(index, shape, inputs, cache, inside)

    def _anew(self, shape: StepShape) -> None:
        if not self.persistent:
            self.scratch = Scratch.allocate(self.weights, shape.tokens, shape.entries)

    def _embed(self, shape: StepShape, inputs: StepInputs, block_size: int) -> None:
        scratch, weights, rows, tokens = self.scratch, self.weights, self.rows, shape.tokens
        ids, previous = scratch.ids[:tokens], scratch.previous[:tokens]
        positions = scratch.positions[:tokens]
        prepare_step(
            inputs.token_rows,
            inputs.token_ids,
            inputs.token_positions,
            inputs.token_previous,
            rows.last_token,
            rows.previous_token,
            rows.seq_len,
            rows.block_tables,
            block_size,
            ids,
            previous,
            positions,
            scratch.slots[:tokens],
        )
        x = scratch.x[:tokens]
        first = scratch.first[:tokens] if scratch.first is not None else None
        if weights.extras.smear is not None:
            gate, factor = weights.extras.smear
            embed_smear(
                ids,
                previous,
                positions,
                weights.embedding,
                gate,
                factor,
                x,
                eps=weights.eps,
                copy=first,
                pdl=self.pdl,
            )
            return
        eps = weights.eps if weights.normalise_embedding else None
        embed_norm(ids, weights.embedding, x, eps=eps, copy=first, pdl=self.pdl)

    def _layer(
        self,
        index: int,
        shape: StepShape,
        inputs: StepInputs,
        cache: PagedKV,
        inside: RotatingBackend | None,
    ) -> None:
        """inside: who rotates inside of attention in this step, if anybody does."""
        scratch, tokens, eps = self.scratch, shape.tokens, self.weights.eps
        layer, linears = self.weights.layers[index], self.linears.layers[index]
        x, qkv = scratch.x[:tokens], scratch.qkv[:tokens]
        attended, inner = scratch.attended[:tokens], scratch.inner[:tokens]
        gates = self._mix(index, layer, tokens)
        linears.qkv.norm_linear(x, qkv, eps)
        if inside is not None and layer.value_embedding is None:
            self._attend_fresh(inside, index, shape, inputs, cache)
        else:
            self._rotate(index, tokens, cache, gates)
            self._attend(index, shape, inputs, cache)
        linears.o.linear_residual(attended, x)
        # Channels beyond the network's own are padding: zeros that nobody writes.
        own = inner[:, : self.weights.inner]
        linears.mlp_in.norm_linear_activation(x, own, eps, self.weights.activation)
        linears.mlp_out.linear_residual(inner, x)

    def _mix(self, index: int, layer: LayerWeights, tokens: int) -> torch.Tensor | None:
        """What nanochat's later generations do before a block; returns the gates of its value embeddings."""
        scratch, extras = self.scratch, self.weights.extras
        if extras.residual is None:
            return None
        assert scratch.first is not None
        x, first = scratch.x[:tokens], scratch.first[:tokens]
        kept = scratch.middle is not None and index == len(self.weights.layers) // 2 + 1
        keep = scratch.middle[:tokens] if kept and scratch.middle is not None else None
        a, b = extras.residual[0][index : index + 1], extras.residual[1][index : index + 1]
        if layer.value_gate is None:
            scale_add(x, first, a, b, keep=keep, pdl=self.pdl)
            return None
        assert scratch.gates is not None
        gates = scratch.gates[:tokens]
        scale, eps = extras.value_gate_scale, self.weights.eps
        value_gate(
            x, layer.value_gate, gates, scale=scale, eps=eps, mix=(first, a, b), keep=keep, pdl=self.pdl
        )
        return gates

    def _rotate(self, index: int, tokens: int, cache: PagedKV, gates: torch.Tensor | None) -> None:
        scratch, layer = self.scratch, self.weights.layers[index]
        rotate_and_store(
            scratch.qkv[:tokens],
            scratch.positions[:tokens],
            scratch.slots[:tokens],
            *(self.rope if layer.rotated else self.no_rope),
            *cache.layers[index],
            layer.rotary,
            scales=cache.scales[index],
            bias=layer.qkv_bias,
            q_weight=layer.q_norm,
            k_weight=layer.k_norm,
            value_embedding=layer.value_embedding,
            value_ids=scratch.ids[:tokens] if layer.value_embedding is not None else None,
            gate=gates,
            pdl=self.pdl,
        )

    def _attend_fresh(
        self, rotating: RotatingBackend, index: int, shape: StepShape, inputs: StepInputs, cache: PagedKV
    ) -> None:
        """`_rotate` and `_attend` in one launch, for a step of single positions."""
        scratch, layer, rows = self.scratch, self.weights.layers[index], shape.decodes
        fresh = Fresh(
            scratch.qkv[:rows],
            scratch.slots[:rows],
            *(self.rope if layer.rotated else self.no_rope),
            layer.rotary,
            bias=layer.qkv_bias,
            q_weight=layer.q_norm,
            k_weight=layer.k_norm,
        )
        rotating.decode_fresh(
            fresh,
            *cache.layers[index],
            self.rows.block_tables,
            inputs.decode_rows,
            scratch.positions[:rows],
            scratch.attended[:rows],
            scale=layer.rotary.head_dim**-0.5,
            window=layer.window,
            scales=cache.scales[index],
            short=shape.short,
            pdl=self.pdl,
        )

    def _attend(self, index: int, shape: StepShape, inputs: StepInputs, cache: PagedKV) -> None:
        layer = self.weights.layers[index]
        (keys, values), scales = cache.layers[index], cache.scales[index]
        scratch, spec = self.scratch, layer.rotary
        tokens, decodes = shape.tokens, shape.decodes
        query = scratch.qkv[:tokens, : spec.heads * spec.head_dim].view(tokens, spec.heads, spec.head_dim)
        out, tables = scratch.attended[:tokens], self.rows.block_tables
        scale = spec.head_dim**-0.5
        self.attention.decode(
            query[:decodes],
            keys,
            values,
            tables,
            inputs.decode_rows,
            scratch.positions[:decodes],
            out[:decodes],
            scale=scale,
            window=layer.window,
            scales=scales,
            pdl=self.pdl,
        )
        if shape.chunks:
            self.attention.prefill(
                query,
                keys,
                values,
                tables,
                inputs.chunk_rows,
                inputs.cu_queries,
                inputs.contexts,
                out,
                scale=scale,
                window=layer.window,
                scales=scales,
                pdl=self.pdl,
            )

    def logits_of(self, index: torch.Tensor) -> torch.Tensor:
        """Queues the head for tokens of the step that was queued last, whose sampling must be in the queue,
        too: its buffers are used. index: [entries of the largest step] int32, -1 for none. Returns logits
        [entries, vocab_size] as the head gives them, not capped; the next call overwrites them.
        """
        tokens = self.scratch.x.size(0)
        return self._logits(tokens, index)[:, : self.weights.vocab_size]

    def _logits(self, tokens: int, index: torch.Tensor) -> torch.Tensor:
        """Of some of a step's tokens, whose next positions go to `scratch.entry_positions`."""
        scratch, weights, entries = self.scratch, self.weights, len(index)
        extras = weights.extras
        x, last = scratch.x[:tokens], scratch.last[:entries]
        taken = None
        if extras.backout is not None:
            # The residual stream behind layer n // 2; of a network that ends there, the stream itself.
            middle = scratch.middle if len(weights.layers) // 2 + 1 < len(weights.layers) else scratch.x
            assert middle is not None
            taken = (middle[:tokens], extras.backout)
        positions = scratch.entry_positions[:entries]
        gather_rows(
            x,
            index,
            last,
            eps=weights.eps,
            weight=weights.final_norm,
            backout=taken,
            positions=(scratch.positions[:tokens], positions),
            pdl=self.pdl,
        )
        logits = scratch.logits[:entries]
        self.linears.head.linear(last, logits)
        return logits

    def _sample(self, shape: StepShape, inputs: StepInputs, full: bool) -> None:
        scratch, weights, rows, tokens = self.scratch, self.weights, self.rows, shape.tokens
        entries, sampled = shape.entries, self.sampled
        sample(
            scratch.logits[:entries],
            inputs.entry_rows,
            scratch.entry_positions[:entries],
            rows.sampling,
            sampled,
            vocab=weights.vocab_size,
            softcap=weights.softcap,
            full=full,
            pdl=self.pdl,
        )
        finish_step(
            inputs.entry_rows,
            inputs.entry_tokens,
            scratch.positions[:tokens],
            scratch.ids[:tokens],
            sampled.tokens[:entries],
            rows.last_token,
            rows.previous_token,
            rows.seq_len,
            self.results[:, 0],
            sampled.valid[:entries],
            self.results[:, 1],
            self.step_counter,
            failed=self.paths.failed,
            pdl=self.pdl,
        )
