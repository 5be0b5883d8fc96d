"""Attention and decode steps by functions of the user's own, in the seed's two places.

A function is named in a model's configuration ("module:function"), or registered here for all engines that
are built afterwards; nothing is registered to begin with. What an engine uses is resolved when it is built,
for it alone. Without a function a hook that is switched on fails at its first call, or, if the fallback is
allowed, runs the reference and says so once.

    clustered attention   f(q, k, v, *, attn_mask, causal, num_sm_clusters, enable_gqa) -> [B, H, Tq, D]
        q: [B, H, Tq, D], k and v: [B, Hk, Tk, D], rotated and normalised; the queries are the last Tq of the
        Tk positions. attn_mask: bool, True keeps, broadcastable to [B, 1, Tq, Tk], or None; causal: in
        addition. num_sm_clusters: a hint (kernels.cluster), or None. enable_gqa: H and Hk differ.
    persistent decode     f(model, ids, kv_cache, *, attention_mask, token_mask) -> logits [B, 1, V]
        For steps in which nothing prefills. ids: [B, 1], one new token for each row. kv_cache: a
        `kernels.pages.PagedCache`, into which the function inserts the new keys and values. Both masks are
        None: rows are paged and have no padding.
"""

import functools
import inspect
import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Protocol

import torch

from kernels.pages import PagedCache
from kernels.persistent_decode import Steppable


class ClusteredAttention(Protocol):
    def __call__(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        *,
        attn_mask: torch.Tensor | None,
        causal: bool,
        num_sm_clusters: int | None,
        enable_gqa: bool,
    ) -> torch.Tensor: ...


class PersistentDecode(Protocol):
    def __call__(
        self,
        model: Steppable,
        ids: torch.Tensor,
        kv_cache: PagedCache,
        *,
        attention_mask: torch.Tensor | None,
        token_mask: torch.Tensor | None,
    ) -> torch.Tensor: ...


CLUSTERED, PERSISTENT = "clustered_attention", "persistent_decode_step"
SHIPPED = {
    CLUSTERED: "kernels.clustered_attention:clustered_attention",
    PERSISTENT: "kernels.persistent_decode:persistent_decode_step",
}
_FLAGS = {CLUSTERED: "clustered_attention_impl", PERSISTENT: "persistent_decode_impl"}
_KEYWORDS = {
    CLUSTERED: (3, ("attn_mask", "causal", "num_sm_clusters", "enable_gqa")),
    PERSISTENT: (3, ("attention_mask", "token_mask")),
}
_registered: dict[str, Callable[..., torch.Tensor]] = {}


def register_clustered_attention_kernel(function: ClusteredAttention) -> None:
    """For engines built from now on. TypeError: it does not take the arguments above."""
    _check(CLUSTERED, function, "the registered function")
    _registered[CLUSTERED] = function


def register_persistent_decode_kernel(function: PersistentDecode) -> None:
    """For engines built from now on. TypeError: it does not take the arguments above."""
    _check(PERSISTENT, function, "the registered function")
    _registered[PERSISTENT] = function


def reset_kernel_overrides() -> None:
    """Forgets what was registered; engines that are there keep what they have."""
    _registered.clear()


def resolve_clustered_attention_kernel(
    fallback: ClusteredAttention | None = None, impl: str | None = None, allow_fallback: bool = False
) -> ClusteredAttention:
    """What serves: `impl` ("module:function", or a module that has `clustered_attention`), else what was
    registered, else the fallback if it is allowed, else a function that raises NotImplementedError.

    ModuleNotFoundError, AttributeError: there is no such module or function. ValueError: impl is of another
    form. TypeError: it does not take the arguments above.
    """
    return _resolve(CLUSTERED, fallback, impl, allow_fallback)


def resolve_persistent_decode_kernel(
    fallback: PersistentDecode | None = None, impl: str | None = None, allow_fallback: bool = False
) -> PersistentDecode:
    """As `resolve_clustered_attention_kernel`, for decode steps; the default name in a module is
    `persistent_decode_step`.
    """
    return _resolve(PERSISTENT, fallback, impl, allow_fallback)


def _resolve(
    kind: str, fallback: Callable[..., torch.Tensor] | None, impl: str | None, allow_fallback: bool
) -> Callable[..., torch.Tensor]:
    if impl is not None:
        return _imported(kind, impl)
    if kind in _registered:
        return _registered[kind]
    if allow_fallback and fallback is not None:
        return _announced(kind, fallback)
    return _missing(kind)


def _imported(kind: str, impl: str) -> Callable[..., torch.Tensor]:
    module_name, colon, name = impl.partition(":")
    if not module_name or (colon and not name):
        raise ValueError(f"{_FLAGS[kind]} is {impl!r}, not of the form module:function")
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{_FLAGS[kind]}: {error}", name=error.name) from error
    except Exception as error:
        raise ImportError(f"{_FLAGS[kind]}: {module_name}: {type(error).__name__}: {error}") from error
    function: object = getattr(module, name or kind, None)
    if not callable(function):
        raise AttributeError(f"{_FLAGS[kind]}: the module {module_name} has no function {name or kind}")
    _check(kind, function, f"{_FLAGS[kind]}: {impl}")
    return function


def _check(kind: str, function: Callable[..., torch.Tensor], what: str) -> None:
    positional, keywords = _KEYWORDS[kind]
    try:
        signature = inspect.signature(function)
    except ValueError:  # some builtins do not tell
        return
    try:
        signature.bind(*[None] * positional, **dict.fromkeys(keywords))
    except TypeError as error:
        wanted = f"{positional} positional arguments and the keywords {', '.join(keywords)}"
        raise TypeError(f"{what} must take {wanted}: {error}") from error


def _announced(kind: str, fallback: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """The fallback, which warns when it is first used."""
    told = False

    @functools.wraps(fallback)
    def serve(*arguments: object, **keywords: object) -> torch.Tensor:
        nonlocal told
        if not told:
            told = True
            warnings.warn(
                f"{kind}: no kernel was given, the reference serves (allow_kernel_stub_fallback)",
                RuntimeWarning,
                stacklevel=2,
            )
        return fallback(*arguments, **keywords)

    return serve


def _missing(kind: str) -> Callable[..., torch.Tensor]:
    def refuse(*arguments: object, **keywords: object) -> torch.Tensor:
        raise NotImplementedError(
            f"no kernel for {kind}: name one with {_FLAGS[kind]} (ours is {SHIPPED[kind]}), register one "
            "with kernels.stubs, or allow the reference with allow_kernel_stub_fallback"
        )

    return refuse
