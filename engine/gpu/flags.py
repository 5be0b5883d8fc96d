"""The seed's flags on a GPU: what they ask of the kernels, and what came of each for the start-up table."""

from engine.backend import Feature
from engine.fastpath import FlagUnavailable, Outcome
from engine.flags import Resolved
from engine.messages import EngineConfig
from kernels.backends import AttentionBackend, ClusteredBackend, ClusterRule, FlashUse


def cluster_rule(flags: Resolved) -> ClusterRule | None:
    values = flags.values
    if not values.use_cta_clustering:
        return None
    required = "use_cta_clustering" in flags.asked
    return ClusterRule(values.cta_cluster_size, values.cta_cluster_seq_threshold, required)


def flash_use(flags: Resolved) -> FlashUse:
    if not flags.values.use_flash3:
        return "off"
    return "required" if "use_flash3" in flags.asked else "auto"


def graphs_for(flags: Resolved, attention: AttentionBackend) -> bool:
    """Whether steps are captured. Raises FlagUnavailable where that was asked for and cannot be."""
    wanted = flags.values.use_cuda_graphs
    if wanted and not attention.capture_safe and "use_cuda_graphs" in flags.asked:
        raise FlagUnavailable(f"use_cuda_graphs was asked for, but {_uncaptured(attention)}")
    return wanted and attention.capture_safe


def paths_blocked(config: EngineConfig, flags: Resolved, use_graphs: bool) -> str | None:
    """Why no decode path may be chosen beside the network's own kernels, unless one is asked for; or None."""
    if config.profile != "fast":
        return "others are chosen with --profile fast"
    if not use_graphs:
        return "others are chosen among captured steps, and none are"
    for name in ("attention_backend", "linear_backend"):
        if (asked := getattr(config, name)) != "auto":
            return f"{name} is {asked}, which only this path uses"
    if "use_cta_clustering" in flags.asked and flags.values.use_cta_clustering:
        return "use_cta_clustering was asked for, and only this path uses clusters"
    return None


def outcomes(
    flags: Resolved, backend: AttentionBackend, attention: list[Feature], graphs: int, graph_bytes: int
) -> dict[str, Outcome]:
    """Flag -> what is used, and why. attention: its rows of the table, decode first. graphs: how many were
    captured, 0 for none; graph_bytes: what they take.
    """
    decode, prefill = attention[:2]
    captured = (f"{graphs} graphs", f"{graph_bytes / 2**20:.0f} MiB") if graphs else ("off", "as asked")
    if not backend.capture_safe:
        captured = "off", _uncaptured(backend)
    return {
        "use_flash3": (prefill[2], prefill[3]),
        "use_cuda_graphs": captured,
        "enable_persistent_decode": _persistent(flags, bool(graphs)),
        "use_flash_sdp": _flash_sdp(flags, backend.name),
        **_clusters(flags, backend, decode),
        **_resident(flags),
    }


def _resident(flags: Resolved) -> dict[str, Outcome]:
    if not flags.resident:
        return {}
    return {
        "use_persistent_decode_kernel": ("on", "as with --decode-path persistent"),
        "persistent_decode_impl": (str(flags.values.persistent_decode_impl), "the resident kernel"),
    }


def _uncaptured(attention: AttentionBackend) -> str:
    return f"attention by {attention.name} reads lengths on the host"


def _persistent(flags: Resolved, use_graphs: bool) -> Outcome:
    if use_graphs:
        return "on", "graphs hold the addresses of every buffer"
    if flags.values.enable_persistent_decode:
        return "on", "every buffer of a step is allocated once, at start"
    return "off", "activations are allocated in each step"


def _clusters(flags: Resolved, backend: AttentionBackend, decode: Feature) -> dict[str, Outcome]:
    if not flags.values.use_cta_clustering:
        return {}
    if not isinstance(backend, ClusteredBackend):
        _, _, reason = decode[3].partition("clusters: ")
        return {"use_cta_clustering": ("off", reason or "another kernel was asked for")}
    values = flags.values
    return {
        "use_cta_clustering": ("on", decode[3]),
        "cta_cluster_size": (
            backend.sizes,
            "at most as asked up to twice the threshold, what fits from there on",
        ),
        "cta_cluster_seq_threshold": (str(values.cta_cluster_seq_threshold), "keys of the longest row"),
    }


def _flash_sdp(flags: Resolved, attention: str) -> Outcome:
    if "sdpa" not in attention:
        return "off", f"attention is by {attention}, not by torch's function"
    on = flags.values.use_flash_sdp
    return ("on", "its flash kernels where they can") if on else ("off", "its plain kernel")
