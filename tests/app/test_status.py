"""What the server says about itself, how it ends, and the page it serves."""

import asyncio
import json
import math

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.http.page import CSP, page_routes, static_folder
from app.requests.text import token_string
from app.settings.http import Access, HttpSettings, Key
from engine.messages import EngineState, EngineStats, Finish, TokenLogprobs
from tests.app.scripted_engine import ScriptedEngine, byte_tokenizer, says
from tests.app.serving import events, served
from tests.optional import missing


def samples(text: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            extra = {k: v for k, v in sample.labels.items() if k not in ("model_name", "engine")}
            found[sample.name + ("" if not extra else str(extra))] = sample.value
    return found


async def test_health_and_ready() -> None:
    engine = ScriptedEngine()
    async with served(engine) as s:
        health = (await s.http.get("/health")).json()
        assert {k: v for k, v in health.items() if k != "version"} == {
            "status": "ok",
            "ready": True,
            "num_gpus": 1,
            "available_workers": 1,
        }
        assert (await s.http.get("/ready")).status_code == 200
        engine.state = EngineState.DEAD
        health_then = await s.http.get("/health")
        assert health_then.status_code == 200 and health_then.json()["ready"] is False
        ready = await s.http.get("/ready")
        assert (ready.status_code, ready.json()["state"]) == (503, "dead")
        engine.state, engine.model = EngineState.LOADING, None
        assert (await s.http.get("/health")).json()["num_gpus"] == 0
        for path in ("/v1/chat/completions", "/chat/completions"):
            reply = await s.http.post(path, json={"messages": [{"role": "user", "content": "x"}]})
            assert (reply.status_code, reply.json()["error"]["code"]) == (503, "engine_unavailable")
            assert int(reply.headers["retry-after"]) >= 1
        assert (await s.http.get("/v1/models")).json() == {"object": "list", "data": []}
        assert (await s.http.get("/stats")).status_code == 200
        assert (await s.http.get("/metrics")).status_code == 200


async def test_model_cards() -> None:
    engine = ScriptedEngine()
    assert engine.model is not None
    for value in (50.0, 50):  # as it comes from the engine's process, and from an engine in this one
        recommended = {"temperature": 1, "top_k": value}
        engine.model = msgspec.structs.replace(engine.model, sampling_defaults=recommended)
        async with served(engine) as s:
            reply = await s.http.get("/v1/models")
            assert reply.status_code == 200
            (card,) = reply.json()["data"]
            assert repr(card["meta"]["sampling_defaults"]) == "{'temperature': 1, 'top_k': 50}"


async def test_request_ids() -> None:
    async with served(ScriptedEngine(says("ok"))) as s:
        for given, kept in (("abc-1.2:3_x", True), ("a b", False), ("x" * 200, False), ("", False)):
            for path in ("/health", "/nope"):
                reply = await s.http.get(path, headers={"x-request-id": given})
                assert (reply.headers["x-request-id"] == given) == kept
                assert reply.headers["x-request-id"]


async def test_stats_and_metrics_follow_requests() -> None:
    engine = ScriptedEngine()
    async with served(engine) as s:
        task = asyncio.ensure_future(s.complete(prompt="x", n=2, stream=True))
        await engine.until(lambda: bool(engine.requests))
        id = engine.requests[0].id
        engine.emit(id, b"a")
        stats = (await s.http.get("/stats")).json()
        assert stats["total_workers"] == 1 and stats["workers"] == [{"gpu_id": 0, "device": "cpu"}]
        assert (stats["running"], stats["open_answers"], stats["open_choices"]) == (2, 1, 2)
        assert samples((await s.http.get("/metrics")).text)["vllm:num_requests_running"] == 2
        engine.emit(id, b"bc", Finish(id, "length"))
        engine.emit(id + 1, b"d", Finish(id + 1, "length"))
        await task
        after = samples((await s.http.get("/metrics")).text)
        assert after["vllm:num_requests_running"] == 0
        assert after["vllm:request_success_total{'finished_reason': 'length'}"] == 2
        assert after["vllm:time_to_first_token_seconds_count"] == 2
        assert after["vllm:inter_token_latency_seconds_count"] == 2
        assert after["vllm:e2e_request_latency_seconds_count"] == 1
        assert "vllm:inter_token_latency_seconds_bucket{'le': '0.0005'}" in after
        assert after["vllm:kv_cache_usage_perc"] == 0
        stats = (await s.http.get("/stats")).json()
        assert stats["tokens_per_second"] > 0 and stats["ttft_p50_seconds"] > 0


async def test_metrics_show_what_the_memory_is_for() -> None:
    engine = ScriptedEngine()
    assert engine.model is not None
    engine.model = msgspec.structs.replace(engine.model, memory={"weights": 3000, "kv": 5000})
    async with served(engine) as s:
        shown = samples((await s.http.get("/metrics")).text)
    assert shown["fastpath_memory_bytes{'part': 'weights'}"] == 3000
    assert shown["fastpath_memory_bytes{'part': 'kv'}"] == 5000


async def test_two_servers_do_not_share_metrics() -> None:
    async with served(ScriptedEngine(says("ok"))) as one, served(ScriptedEngine(says("ok"))) as two:
        await one.chat()
        assert one.context.metrics.finishes["stop"] == 1 and two.context.metrics.finishes["stop"] == 0


async def test_stats_stream_ends_with_the_server() -> None:
    async with (
        served(ScriptedEngine(), HttpSettings(stats_interval=0.01)) as s,
        s.http.stream("GET", "/stats/stream") as reply,
    ):
        seen = 0
        async for line in reply.aiter_lines():
            if line:
                assert "available_workers" in json.loads(line.removeprefix("data: "))
                seen += 1
            if seen == 2:
                s.context.lifecycle.start_draining()
        assert seen >= 2


async def test_drain_lets_streams_finish() -> None:
    engine = ScriptedEngine()
    async with served(engine) as s:
        task = asyncio.ensure_future(s.complete(prompt="x", stream=True))
        await engine.until(lambda: bool(engine.requests))
        draining = asyncio.ensure_future(s.context.lifecycle.drain(5))
        ready = await s.http.get("/ready")
        assert (ready.status_code, ready.json()["state"]) == (503, "draining")
        refused = await s.complete(prompt="x")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        assert "retry-after" in refused.headers
        id = engine.requests[0].id
        engine.emit(id, b"a", Finish(id, "length"))
        assert await draining is True
        assert (await task).text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("n", [1, 2])
async def test_the_deadline_ends_streams_with_an_error_event(n: int) -> None:
    engine = ScriptedEngine()
    async with served(engine) as s:
        tasks = [
            asyncio.ensure_future(s.complete(prompt="x", n=n, stream=True)),
            asyncio.ensure_future(s.complete(prompt="x", n=n)),
            asyncio.ensure_future(
                s.http.post("/chat/completions", json={"messages": [{"role": "user", "content": "x"}]})
            ),
        ]
        await engine.until(lambda: len(engine.requests) == 3)
        for request in engine.requests:
            engine.emit(request.id, b"a")
        while s.context.metrics.time_to_first_token.cumulative()[-1][1] < 3:
            await s.http.get("/health")
        assert await s.context.lifecycle.drain(0.01) is False
        streamed, plain, nano = await asyncio.gather(*tasks)
        *_, error, done = events(streamed.text)
        assert (error["error"]["code"], done) == ("server_shutdown", "[DONE]")
        assert (plain.status_code, plain.json()["error"]["code"]) == (503, "server_shutdown")
        assert events(nano.text)[-1]["error"]["code"] == "server_shutdown"
        assert engine.open_streams == 0


async def test_a_full_queue_is_refused() -> None:
    engine = ScriptedEngine(max_rows=1)
    async with served(engine, HttpSettings(max_queue=1)) as s:
        tasks = [asyncio.ensure_future(s.complete(prompt="x")) for _ in range(2)]
        await engine.until(lambda: len(engine.requests) == 2)
        reply = await s.complete(prompt="x")
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "overloaded")
        assert 1 <= int(reply.headers["retry-after"]) <= 60
        for request in engine.requests:
            engine.emit(request.id, b"a", Finish(request.id, "length"))
        await asyncio.gather(*tasks)


async def test_the_queue_is_that_of_all_front_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ScriptedEngine(says("ok"), max_rows=2)
    async with served(engine, HttpSettings(max_queue=3)) as s:
        for waiting, status in ((2, 200), (3, 503)):
            monkeypatch.setattr(engine, "stats", lambda w=waiting: EngineStats(running=2, waiting=w))
            assert (await s.complete(prompt="x")).status_code == status


async def test_page_headers() -> None:
    assert page_routes(None) == []
    if static_folder() is None:
        missing("no page is installed")
    async with served(ScriptedEngine()) as s:
        page = await s.http.get("/")
        assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
        assert page.headers["content-security-policy"] == CSP
        assert page.headers["x-content-type-options"] == "nosniff"
        assert page.headers["cache-control"] == "no-cache"
        again = await s.http.get("/", headers={"if-none-match": page.headers["etag"]})
        assert again.status_code == 304
        absent = await s.http.get("/static/nothing.js")
        assert (absent.status_code, absent.json()["error"]["type"]) == (404, "not_found_error")
        for path in ("/static/%2e%2e/app/routes/server.py", "/static/..%2fpyproject.toml"):
            assert (await s.http.get(path)).status_code == 404


async def test_logprobs_carry_true_bytes_and_stay_aligned() -> None:
    engine = ScriptedEngine(says("a✓b"))
    async with served(engine) as s:
        plain = (await s.chat(logprobs=True, top_logprobs=2)).json()["choices"][0]
        streamed = await s.chat(logprobs=True, top_logprobs=2, stream=True)
        chunks = [c["choices"][0] for c in events(streamed.text) if isinstance(c, dict)]
        items = [item for c in chunks if c["logprobs"] for item in c["logprobs"]["content"]]
        assert items == plain["logprobs"]["content"]
        assert bytes(b for item in items[:5] for b in item["bytes"]) == "a✓b".encode()
        assert items[1]["token"] == "bytes:\\xe2" and len(items[0]["top_logprobs"]) == 2
        assert [len(c["logprobs"]["content"]) for c in chunks if c["logprobs"]] == [1, 3, 1, 1]
        body = (await s.complete(prompt="x", logprobs=2)).json()["choices"][0]
        logprobs = body["logprobs"]
        assert logprobs["text_offset"] == [0, 1, 1, 1, 2, 3]
        assert logprobs["tokens"][0] == "a" and logprobs["token_logprobs"][0] == -0.5
        assert logprobs["top_logprobs"][0] == {"a": -0.5, "b": -1.5}
        bare = (await s.complete(prompt="x", logprobs=0)).json()["choices"][0]["logprobs"]
        assert bare["top_logprobs"][0] == {"a": -0.5}


async def test_minus_infinity_becomes_a_number() -> None:
    engine = ScriptedEngine()
    async with served(engine) as s:
        task = asyncio.ensure_future(s.chat(logprobs=True))
        await engine.until(lambda: bool(engine.requests))
        id = engine.requests[0].id
        engine.emit(id, b"a", Finish(id, "length"), [TokenLogprobs(0, -math.inf, [], [])])
        reply = await task
        assert reply.json()["choices"][0]["logprobs"]["content"][0]["logprob"] == -9999.0


async def test_echo_and_prompt_ids() -> None:
    engine = ScriptedEngine(says("!"))
    async with served(engine) as s:
        body = (await s.complete(prompt="hé", echo=True, return_token_ids=True)).json()["choices"][0]
        assert body["text"] == "hé!" and body["prompt_token_ids"] == engine.requests[0].prompt
        assert (await s.complete(prompt=[104, 105], echo=True)).json()["choices"][0]["text"] == "hi!"
        count = len(engine.requests)
        scored = (await s.complete(prompt="abc", echo=True, max_tokens=0)).json()
        assert scored["choices"][0]["text"] == "abc" and scored["usage"]["completion_tokens"] == 0
        streamed = await s.complete(prompt="abc", echo=True, max_tokens=0, stream=True)
        assert [c["choices"][0]["finish_reason"] for c in events(streamed.text)[:-1]] == [None, "length"]
        assert len(engine.requests) == count
        chat = await s.chat(return_token_ids=True, stream=True)
        assert events(chat.text)[0]["prompt_token_ids"] == engine.requests[-1].prompt


async def test_continue_final_message() -> None:
    engine = ScriptedEngine(says("!"))
    async with served(engine) as s:
        messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "so"}]
        reply = await s.http.post(
            "/v1/chat/completions", json={"messages": messages, "continue_final_message": True}
        )
        assert reply.status_code == 200
        assert engine.requests[0].prompt[-2:] == [*b"so"]


def test_token_strings() -> None:
    tokenizer = byte_tokenizer()
    assert token_string(tokenizer.token_bytes(65)) == "A"
    assert token_string(b"\xe2\x96") == "bytes:\\xe2\\x96"


async def test_text_of_the_page_is_gzipped_for_who_takes_it() -> None:
    if static_folder() is None:
        missing("no page is installed")
    async with served(ScriptedEngine()) as s:
        plain = await s.http.get("/static/app.js", headers={"accept-encoding": "identity"})
        refused = await s.http.get("/static/app.js", headers={"accept-encoding": "br, gzip;q=0"})
        packed = await s.http.get("/static/app.js", headers={"accept-encoding": "br, gzip;q=0.5"})
        assert packed.headers["content-encoding"] == "gzip" and packed.text == plain.text == refused.text
        assert "content-encoding" not in plain.headers and "content-encoding" not in refused.headers
        assert int(packed.headers["content-length"]) < len(plain.content)
        for reply in (plain, packed):
            assert reply.headers["vary"].lower() == "accept-encoding"
            assert reply.headers["content-type"] == "text/javascript; charset=utf-8"
        assert packed.headers["etag"] != plain.headers["etag"]
        for encoding, etag in (("gzip", packed.headers["etag"]), ("identity", plain.headers["etag"])):
            known = {"accept-encoding": encoding, "if-none-match": f'"other", {etag}'}
            again = await s.http.get("/static/app.js", headers=known)
            assert (again.status_code, again.content) == (304, b"")
            assert again.headers["etag"] == etag and again.headers["cache-control"] == "no-cache"
        crossed = {"accept-encoding": "gzip", "if-none-match": plain.headers["etag"]}
        assert (await s.http.get("/static/app.js", headers=crossed)).status_code == 200
        head = await s.http.head("/static/app.js", headers={"accept-encoding": "gzip"})
        assert (head.status_code, head.content) == (200, b"")
        assert (await s.http.post("/static/app.js")).status_code == 405
        assert (await s.http.get("/static/absent.js")).status_code == 404
        anything = {"accept-encoding": "gzip", "if-none-match": "*"}
        assert (await s.http.get("/static/app.js", headers=anything)).status_code == 304


@pytest.mark.parametrize("encoding", ["gzip", "identity"])
@pytest.mark.parametrize(
    "path", ["%00.js", "x%00/app.js", f"{'x' * 300}.js", "app.js/app.js", "shell", "shell.js/", "..%2fapp.js"]
)
async def test_what_is_no_file_is_not_found(path: str, encoding: str) -> None:
    if static_folder() is None:
        missing("no page is installed")
    async with served(ScriptedEngine()) as s:
        reply = await s.http.get(f"/static/{path}", headers={"accept-encoding": encoding})
        assert reply.status_code == 404


async def test_a_part_of_a_file_is_a_part_of_its_plain_form() -> None:
    if static_folder() is None:
        missing("no page is installed")
    async with served(ScriptedEngine()) as s:
        whole = await s.http.get("/static/app.js")
        some = {"range": "bytes=0-99", "accept-encoding": "identity"}
        part = await s.http.get("/static/app.js", headers=some)
        assert (part.status_code, part.content) == (206, whole.content[:100])
        packed = await s.http.get("/static/app.js", headers={"range": "bytes=0-99"})
        assert (packed.status_code, packed.content) == (200, whole.content)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/sw.js", "text/javascript; charset=utf-8"),
        ("/manifest.webmanifest", "application/manifest+json"),
        ("/favicon.svg", "image/svg+xml"),
        ("/logo.svg", "image/svg+xml"),
        ("/favicon.ico", "image/x-icon"),
        ("/apple-touch-icon.png", "image/png"),
        ("/static/icons/maskable-512.png", "image/png"),
    ],
)
async def test_files_beside_the_page(path: str, kind: str) -> None:
    if static_folder() is None:
        missing("no page is installed")
    settings = HttpSettings(access=Access(keys=(Key.of("secret"),)))
    async with served(ScriptedEngine(), settings) as s:  # the page is everybody's, whoever may ask
        reply = await s.http.get(path)
        assert (reply.status_code, reply.headers["content-type"]) == (200, kind)
        assert reply.headers["content-security-policy"] == CSP
        assert "camera=()" in reply.headers["permissions-policy"]
        assert reply.headers["cross-origin-opener-policy"] == "same-origin"


async def test_stats_stream_wants_the_key_in_a_header() -> None:
    settings = HttpSettings(access=Access(keys=(Key.of("secret"),)), stats_interval=0.01)
    async with served(ScriptedEngine(), settings) as s:
        assert (await s.http.get("/stats/stream")).status_code == 401
        headers = {"authorization": "Bearer secret"}
        async with s.http.stream("GET", "/stats/stream", headers=headers) as reply:
            async for line in reply.aiter_lines():
                stats = json.loads(line.removeprefix("data: "))
                break
    shown = {
        "state",
        "model",
        "max_rows",
        "running",
        "waiting",
        "blocks_used",
        "blocks_total",
        "prompt_tokens",
    }
    shown |= {
        "cached_tokens",
        "generated_tokens",
        "tokens_per_second",
        "ttft_p50_seconds",
        "ttft_p95_seconds",
    }
    assert shown <= stats.keys()
