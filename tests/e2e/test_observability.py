"""What a real server with a real engine says about requests: header, log line and metrics agree."""

import json
import re

from tests.app.server_process import GOLDEN, Server
from tests.e2e.api import COMPLETIONS, connected, random_prompt
from tests.e2e.conftest import start


def line(server: Server, request_id: str) -> dict[str, object]:
    assert server.process.stderr is not None
    while text := server.process.stderr.readline():
        found: dict[str, object] = json.loads(text)
        if found.get("request_id") == request_id:
            return found
    raise AssertionError("the log has ended")


def number(value: object) -> float:
    assert isinstance(value, int | float)
    return value


async def test_header_log_line_and_metrics_agree() -> None:
    prompt = random_prompt(100, 3)
    body = {"prompt": prompt, "max_tokens": 40, "ignore_eos": True, "temperature": 0}
    with start(GOLDEN) as server:
        async with connected(server) as api:
            lines = []
            for request_id in ("one", "two"):
                reply = await api.http.post(COMPLETIONS, json=body, headers={"x-request-id": request_id})
                assert reply.status_code == 200
                lines.append(line(server, request_id))
                parts = dict(re.findall(r"(\w+);dur=([\d.]+)", reply.headers["server-timing"]))
                assert list(parts) == ["queue", "prefill", "decode"]
                spent = sum(float(part) for part in parts.values())
                assert spent <= int(reply.headers["openai-processing-ms"]) + 1
                assert spent <= number(lines[-1]["duration_ms"])
            first, second = lines
            assert (first["n_cached"], second["n_cached"]) == (0, 96), (
                "all full blocks of 16 but the last one"
            )
            for each in lines:
                assert (each["n_prompt"], each["n_out"], each["batch_mean"]) == (100, 40, 1.0)
                assert 0 < number(each["itl_p50_ms"]) <= number(each["itl_p95_ms"])
                assert number(each["queue_ms"]) <= number(each["ttft_ms"]) < number(each["duration_ms"])
            assert await api.metric("vllm:prompt_tokens_cached_total") == 96
            assert await api.metric("vllm:request_generation_tokens_sum") == 80
            for name in ("queue", "prefill", "decode", "inference"):
                assert await api.metric(f"vllm:request_{name}_time_seconds_count") == 2
            text = (await api.http.get("/metrics")).text  # one scrape: a step may end between two
            steps, counted = (
                float(re.findall(rf"^{name}{{.*}} (.*)$", text, re.MULTILINE)[0])
                for name in ("fastpath_steps_total", "vllm:iteration_tokens_total_count")
            )
            assert steps == counted
            assert await api.metric("fastpath_engine_resident_memory_bytes") > 50e6
            assert await api.metric("fastpath_event_loop_lag_seconds_count") > 0
