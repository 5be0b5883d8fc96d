"""Everything that a server is started with, and what its parts are told of it.

The settings themselves are in app/settings/sections.py.
"""

from dataclasses import dataclass, field, replace

from app.settings import http as settings
from app.settings.access import allowed_hosts, read_keys
from app.settings.fastpath import FastPath
from app.settings.http import HttpSettings, SamplingDefaults
from app.settings.sections import Access, Batching, Gpu, Model, Requests, Server
from app.settings.values import overrides
from engine.flags import Setting
from engine.messages import BatchingMode, EngineConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything that a server is started with."""

    model: Model = field(default_factory=Model)
    batching: Batching = field(default_factory=Batching)
    gpu: Gpu = field(default_factory=Gpu)
    fastpath: FastPath = field(default_factory=FastPath)
    requests: Requests = field(default_factory=Requests)
    access: Access = field(default_factory=Access)
    server: Server = field(default_factory=Server)

    def mode(self) -> tuple[BatchingMode, int | None]:
        """The batching mode and the most rows that it allows (None: no limit but the batch size).

        The seed's two flags: dynamic batching is continuous batching, batch decoding alone takes requests
        one by one through the batched path, neither is the single-request path.
        """
        batching = self.batching
        decode, dynamic = batching.enable_batch_decode, batching.enable_dynamic_batching
        if batching.batching is not None:
            return batching.batching, 1 if batching.batching == "single" else None
        if dynamic:
            return "continuous", None
        if decode is False:
            return "single", 1
        if dynamic is False:
            return "continuous", 1
        return "continuous", None

    def engine_config(self) -> EngineConfig:
        """What the engine is told."""
        model, batching = self.model, self.batching
        mode, limit = self.mode()
        rows = batching.batch_size
        return EngineConfig(
            model=model.model,
            source=model.source,
            tag=model.model_tag,
            step=model.step,
            load_format=model.load_format,
            served_name=model.served_model_name[0] if model.served_model_name else None,
            device=model.device,
            dtype=model.dtype,
            weight_dtype=model.weight_dtype,
            kv_dtype=model.kv_dtype,
            threads=model.threads,
            max_rows=limit if limit is not None else rows,
            block_size=batching.block_size,
            num_blocks=batching.num_blocks,
            max_num_blocks=batching.max_num_blocks,
            kv_page_size=batching.kv_page_size,
            max_batched_tokens=batching.max_num_batched_tokens,
            max_chunk=batching.prefill_chunk,
            prefill_stretch=batching.prefill_stretch,
            max_model_len=model.max_model_len,
            batching=mode,
            batch_timeout_ms=0.0 if limit == 1 else batching.batch_timeout_ms,
            enable_prefix_caching=batching.enable_prefix_caching,
            lookahead=batching.lookahead,
            attention_backend=self.gpu.attention_backend,
            linear_backend=self.gpu.linear_backend,
            decode_path=self.gpu.decode_path,
            kv_bytes=self.gpu.kv_bytes,
            trace=self.server.trace,
            overrides=overrides(model.model_override),
            profile=self.fastpath.profile,
            flags=self._flags(),
        )

    def _flags(self) -> dict[str, Setting]:
        """The seed's flags that were given, those that have a setting of their own among them."""
        flags = self.fastpath.asked()
        if self.gpu.use_cuda_graphs is not None:
            flags["use_cuda_graphs"] = self.gpu.use_cuda_graphs
        return flags

    def http_settings(self) -> HttpSettings:
        """What the HTTP layer is told."""
        requests = self.requests

        def filled(own: SamplingDefaults) -> SamplingDefaults:
            return replace(
                own,
                temperature=own.temperature if requests.temperature is None else requests.temperature,
                top_k=own.top_k if requests.top_k is None else requests.top_k,
                max_tokens=own.max_tokens if requests.max_tokens is None else requests.max_tokens,
                seed=requests.seed,
            )

        own = HttpSettings()
        return HttpSettings(
            served_names=self.model.served_model_name,
            sampling=filled(own.sampling),
            chat=filled(own.chat),
            max_body_bytes=requests.max_body_bytes,
            max_queue=requests.max_queue,
            max_queued_tokens=requests.max_queued_tokens,
            max_concurrent_per_key=requests.max_concurrent_per_key,
            queue_timeout=requests.queue_timeout,
            request_timeout=requests.request_timeout,
            body_timeout=self.access.body_timeout,
            cache_salt_per_key=self.access.cache_salt_per_key,
            access=self._access(),
            ping_interval=requests.sse_ping_interval,
            stream_interval=requests.stream_interval,
            tool_call_parser=requests.tool_call_parser,
            send_timeout=requests.send_timeout,
            resume_grace=requests.resume_grace,
            resumable=self.server.api_workers == 1,
            ui=self.server.ui,
            docs=self.server.docs,
            strict_fields=requests.strict_fields,
            allow_priority=requests.allow_priority,
            access_log=self.server.log_format == "json"
            if self.server.access_log is None
            else self.server.access_log,
            log_content=self.server.log_content,
            otlp_endpoint=self.server.otlp_endpoint,
        )

    def with_keys_read(self) -> "Config":
        """The same with the keys of `api_key_file` among `api_key`, each once. Raises UsageError."""
        access = self.access
        keys = access.api_key
        if access.api_key_file is not None:
            keys += read_keys(access.api_key_file)
        return replace(self, access=replace(access, api_key=tuple(dict.fromkeys(keys)), api_key_file=None))

    def _access(self) -> settings.Access:
        access = self.access
        return settings.Access(
            keys=tuple(settings.Key.of(key) for key in self.with_keys_read().access.api_key),
            hosts=allowed_hosts(self.server.host, access.allowed_hosts) if access.uds is None else None,
            origins=frozenset(access.allowed_origins),
        )

    def connection_limits(self) -> settings.ConnectionLimits:
        """Those of one front-end process, which gets its share of the connections."""
        access, workers = self.access, self.server.api_workers
        own = settings.ConnectionLimits()
        return settings.ConnectionLimits(
            connections=-(-access.max_connections // workers),
            message=max(own.message, 8 * self.requests.max_body_bytes),
            head_timeout=access.header_timeout,
            body_timeout=access.body_timeout,
            keep_alive=access.keep_alive_timeout,
        )
