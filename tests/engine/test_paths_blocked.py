"""When a decode path may be chosen: not where something was asked for that only the network's own uses."""

import pytest

from engine.flags import resolve
from engine.gpu.flags import paths_blocked
from engine.messages import EngineConfig


@pytest.mark.parametrize(
    ("fields", "flags", "graphs", "named"),
    [
        ({}, {}, True, None),
        ({}, {"use_cta_clustering": False}, True, None),
        ({"weight_dtype": "fp8", "lookahead": False}, {"use_cuda_graphs": True}, True, None),
        ({"profile": "seed"}, {}, True, "--profile fast"),
        ({}, {"use_cuda_graphs": False}, False, "captured"),
        ({"attention_backend": "sdpa"}, {}, True, "attention_backend is sdpa"),
        ({"linear_backend": "cublas"}, {}, True, "linear_backend is cublas"),
        ({}, {"use_cta_clustering": True}, True, "use_cta_clustering"),
    ],
)
def test_what_was_asked_for_stands(
    fields: dict[str, object], flags: dict[str, bool], graphs: bool, named: str | None
) -> None:
    config = EngineConfig(**fields, flags=flags)  # type: ignore[arg-type]
    reason = paths_blocked(config, resolve(None, config.profile, config.flags), graphs)
    assert (reason is None) if named is None else (reason is not None and named in reason)
