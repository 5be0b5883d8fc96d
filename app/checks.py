"""What a configuration must not ask for, found out before a port is taken."""

import contextlib
import json
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from app.processes.child import environment
from app.settings.config import Config
from app.settings.fastpath import spelled
from app.settings.http import Key
from app.settings.options import UsageError
from engine.flags import ABOUT, Setting, check_kernels, check_packages, check_weights, resolve
from engine.messages import check_pool

PRECHECK_SECONDS = 120
OTLP_MODULES = ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http.trace_exporter")


def check(config: Config) -> None:
    """Raises UsageError for settings that contradict each other, and for those that need a package which is
    not installed.
    """
    try:
        flags = resolve(None, config.fastpath.profile, config.engine_config().flags)
        check_weights(config.model.weight_dtype, flags.values)
        check_pool(config.batching.num_blocks, config.batching.max_num_blocks)
        check_packages(flags.values)
        check_kernels(config.engine_config().flags)
    except (ValueError, ImportError) as error:
        raise UsageError(spelled(str(error))) from None
    _check_access(config)
    tokens = config.batching.max_num_batched_tokens
    if tokens is not None and tokens < (config.batching.batch_size or 1):
        raise UsageError(
            f"--max-num-batched-tokens: {tokens} is less than --batch-size "
            f"{config.batching.batch_size}; a running sequence takes at least one token of each step"
        )
    if config.server.log_content and config.http_settings().access_log is False:
        raise UsageError("--log-content: there is no line of a request to log it with; add --access-log")
    if config.server.otlp_endpoint is not None and not _installed(*OTLP_MODULES):
        raise UsageError(
            "--otlp-endpoint: OpenTelemetry's packages are not installed; they are the extra `otel`: "
            "pip install 'fastpath[otel]'"
        )
    if config.server.api_workers > 1 and config.server.engine == "inline":
        raise UsageError(
            f"--api-workers: {config.server.api_workers} processes cannot share an engine that runs inside "
            "one of them; leave out --engine inline"
        )


def _installed(*modules: str) -> bool:
    for module in modules:
        try:
            if find_spec(module) is None:
                return False
        except ModuleNotFoundError:
            return False
    return True


def _check_access(config: Config) -> None:
    access = config.access
    keys = [Key.of(key) for key in config.with_keys_read().access.api_key]
    if len({key.id for key in keys}) < len(keys):
        raise UsageError("--api-key: two keys have the same short name in the logs; replace one of them")
    if config.requests.max_concurrent_per_key is not None and not keys:
        raise UsageError("--max-concurrent-per-key: there are no keys; give --api-key-file, too")
    if access.cache_salt_per_key and not keys:
        raise UsageError("--cache-salt-per-key: there are no keys; give --api-key-file, too")
    if (access.ssl_certfile is None) != (access.ssl_keyfile is None):
        raise UsageError("--ssl-certfile and --ssl-keyfile are given together or not at all")
    if access.ssl_certfile is not None and access.ssl_keyfile is not None:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(access.ssl_certfile, access.ssl_keyfile)
        except (OSError, ssl.SSLError) as error:
            files = f"{access.ssl_certfile} and {access.ssl_keyfile}"
            message = f"--ssl-certfile, --ssl-keyfile: {files} cannot be used: {error.strerror or error}"
            raise UsageError(message) from None


def check_device(config: Config) -> None:
    """Raises UsageError for flags that cannot be had here, before the port is taken. A process of its own
    finds out, for this one never imports torch; without such flags there is none.
    """
    asked = config.engine_config().flags
    needs_gpu = config.model.kv_dtype == "fp8" or config.gpu.decode_path not in ("auto", "graph")
    if not _needs_torch(asked) and not needs_gpu:
        return
    about = {
        "profile": config.fastpath.profile,
        "flags": asked,
        "device": config.model.device,
        "dtype": config.model.dtype,
        "kv_dtype": config.model.kv_dtype,
        "decode_path": config.gpu.decode_path,
    }
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder) / "said"
        command = [sys.executable, "-P", "-m", "engine.precheck", json.dumps(about), str(said)]
        quiet = subprocess.DEVNULL
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(
                command,
                env=environment(),
                stdin=quiet,
                stdout=quiet,
                stderr=quiet,
                timeout=PRECHECK_SECONDS,
                check=False,
            )
        # Without an answer the engine will say what is wrong.
        reason = said.read_text(encoding="utf-8") if said.exists() else ""
    if reason:
        raise UsageError(spelled(reason))


def _needs_torch(asked: Mapping[str, Setting]) -> bool:
    """Whether only a process with torch can tell if these flags can be had: by the device, or by importing a
    function.
    """
    return any(
        (value is True and (ABOUT[name].where == "cuda" or name == "use_cta_clustering"))
        or name.endswith("_impl")
        for name, value in asked.items()
    )
