"""When a decode path may be chosen: not where something was asked for that only the network's own uses; and
what is said before anything is loaded where one that was asked for cannot be had.
"""

import pytest

from app.checks import check_device
from app.settings.options import UsageError
from engine.flags import resolve
from engine.gpu.flags import paths_blocked
from engine.messages import EngineConfig
from engine.precheck import verdict
from tests.app.test_config import parse


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


@pytest.mark.parametrize("path", ["chained", "persistent"])
def test_the_server_says_so_before_it_takes_a_port(path: str) -> None:
    with pytest.raises(UsageError, match=rf"^--decode-path is {path}, but needs a CUDA device, and this"):
        check_device(parse("--decode-path", path, "--device", "cpu"))


def test_only_a_path_of_our_own_needs_a_gpu() -> None:
    asked: dict[str, object] = {"profile": "fast", "flags": {}, "device": "cpu", "dtype": "auto"}
    for path in ("auto", "graph"):
        assert verdict(asked | {"decode_path": path}) == ""
    assert "decode_path is chained" in verdict(asked | {"decode_path": "chained"})
