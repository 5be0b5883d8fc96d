"""Kernels of the user's own in an engine: what `kernels.stubs` resolves, called with what a step has."""

from dataclasses import dataclass, field

import torch

from engine.decoder import Decoder
from engine.flags import FastPathFlags
from kernels.attention import KVCache, Span, gathered
from kernels.cluster import cluster_hint
from kernels.clustered_attention import clustered_attention
from kernels.pages import PagedCache
from kernels.persistent_decode import persistent_decode_step
from kernels.stubs import (
    ClusteredAttention,
    PersistentDecode,
    resolve_clustered_attention_kernel,
    resolve_persistent_decode_kernel,
)


@dataclass(frozen=True, slots=True)
class KernelHooks:
    """One engine's own. None: that place has no such kernel. flags: the sizes of cluster hints."""

    clustered: ClusteredAttention | None = None
    persistent: PersistentDecode | None = None
    flags: FastPathFlags = field(default_factory=FastPathFlags)

    @classmethod
    def of(cls, flags: FastPathFlags) -> "KernelHooks":
        """Raises what `kernels.stubs` does for functions that are not there or do not fit."""
        clustered: ClusteredAttention | None = None
        persistent: PersistentDecode | None = None
        allowed = flags.allow_kernel_stub_fallback
        if flags.use_clustered_attention_kernel:
            clustered = resolve_clustered_attention_kernel(
                clustered_attention, flags.clustered_attention_impl, allowed
            )
        if flags.use_persistent_decode_kernel:
            persistent = resolve_persistent_decode_kernel(
                persistent_decode_step, flags.persistent_decode_impl, allowed
            )
        return cls(clustered, persistent, flags)

    @property
    def used(self) -> dict[str, tuple[str, str]]:
        """For the start-up table: flag -> the function that serves, and where."""
        found: dict[str, tuple[str, str]] = {}
        if self.clustered is not None:
            found["use_clustered_attention_kernel"] = _name(self.clustered), "attention of every layer"
        if self.persistent is not None:
            found["use_persistent_decode_kernel"] = _name(self.persistent), "steps that only decode"
        return found

    def attention(
        self, query: torch.Tensor, cache: KVCache, layer: int, spans: list[Span], window: int | None
    ) -> torch.Tensor:
        """As `kernels.attention.paged_attention`, a call for each span."""
        assert self.clustered is not None
        out = torch.zeros_like(query)
        for span in spans:
            rows = slice(span.start, span.start + span.length)
            keys, values = gathered(cache, layer, span, query.size(-1))
            q, k, v = (x.transpose(0, 1)[None] for x in (query[rows], keys, values))
            result = self.clustered(
                q,
                k,
                v,
                attn_mask=_window_mask(span, window, query.device),
                causal=True,
                num_sm_clusters=self.hint(span.context),
                enable_gqa=q.size(1) != k.size(1),
            )
            if result.shape != q.shape:
                raise ValueError(
                    f"the clustered attention kernel returned {list(result.shape)}, not {list(q.shape)}"
                )
            out[rows] = result[0].transpose(0, 1)
        return out

    def hint(self, keys: int) -> int | None:
        flags = self.flags
        return cluster_hint(
            keys, flags.cta_cluster_size, flags.cta_cluster_seq_threshold, flags.use_cta_clustering
        )

    def step(
        self, model: Decoder, ids: torch.Tensor, previous: torch.Tensor, cache: KVCache, spans: list[Span]
    ) -> torch.Tensor:
        """float32 logits [rows, vocabulary] of one new token each, in the order of the spans."""
        assert self.persistent is not None
        config = model.config
        shape = (*cache.keys.shape[:3], config.n_kv_head, config.head_dim)
        longest = max(span.table.size(0) for span in spans)
        table = torch.stack(
            [torch.nn.functional.pad(span.table, (0, longest - span.table.size(0))) for span in spans]
        )
        pages = PagedCache(
            k_pages=cache.keys.view(shape),
            v_pages=cache.values.view(shape),
            block_table=table,
            seq_lens=torch.tensor([span.context for span in spans], device=ids.device),
            previous_ids=previous[:, None],
            windows=tuple(config.window(layer) for layer in range(config.n_layer)),
        )
        logits = self.persistent(model, ids[:, None], pages, attention_mask=None, token_mask=None)
        expected = (len(spans), 1, config.vocab_size)
        if tuple(logits.shape) != expected:
            raise ValueError(
                f"the persistent decode kernel returned {list(logits.shape)}, not {list(expected)}"
            )
        return logits[:, 0].float()


def _name(function: object) -> str:
    """module:function, where it tells."""
    kind = type(function)
    module = getattr(function, "__module__", kind.__module__)
    return f"{module}:{getattr(function, '__qualname__', kind.__qualname__)}"


def _window_mask(span: Span, window: int | None, device: torch.device) -> torch.Tensor | None:
    """[1, 1, queries, keys]: what a window leaves visible; None where that is everything."""
    if window is None or span.context - 1 <= window:
        return None
    at = torch.arange(span.context - span.length, span.context, device=device)[:, None]
    return (torch.arange(span.context, device=device)[None, :] >= at - window)[None, None]
