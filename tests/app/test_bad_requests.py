"""Bad input: each is refused with its field's name, and the engine never sees it."""

import asyncio
import json

import pytest

from app.http.body import AT_ONCE
from app.settings.http import HttpSettings
from engine.messages import Request, TokenStream
from engine.text import NanochatTemplate
from tests.app.scripted_engine import VOCAB, ScriptedEngine, says
from tests.app.server_process import DEADLINE
from tests.app.serving import Served, served

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
NANO = "/chat/completions"
USER = [{"role": "user", "content": "hi"}]
JSON = {"content-type": "application/json"}

BOTH: list[tuple[str, object, str]] = [
    ("temperature", -0.1, "out_of_range"),
    ("temperature", 2.01, "out_of_range"),
    ("temperature", "0.7", "invalid_type"),
    ("temperature", True, "invalid_type"),
    ("temperature", 10**400, "out_of_range"),
    ("top_p", 0, "out_of_range"),
    ("top_p", 1.0001, "out_of_range"),
    ("min_p", -1, "out_of_range"),
    ("min_p", 1.1, "out_of_range"),
    ("top_k", -2, "out_of_range"),
    ("top_k", 1.0, "invalid_type"),
    ("repetition_penalty", 0, "out_of_range"),
    ("repetition_penalty", 1e30, "out_of_range"),
    ("presence_penalty", 2.5, "out_of_range"),
    ("frequency_penalty", -2.5, "out_of_range"),
    ("n", 0, "out_of_range"),
    ("n", 1000000, "out_of_range"),
    ("n", True, "invalid_type"),
    ("max_tokens", -1, "out_of_range"),
    ("max_tokens", 0, "out_of_range"),
    ("max_tokens", 10**12, "out_of_range"),
    ("max_tokens", 1000, "context_length_exceeded"),
    ("max_tokens", "5", "invalid_type"),
    ("max_completion_tokens", 1000, "context_length_exceeded"),
    ("min_tokens", 1000, "out_of_range"),
    ("min_tokens", -1, "out_of_range"),
    ("seed", 2**63, "out_of_range"),
    ("seed", 1.5, "invalid_type"),
    ("stop", "", "out_of_range"),
    ("stop", [""], "out_of_range"),
    ("stop", ["a"] * 17, "out_of_range"),
    ("stop", "x" * 10000, "out_of_range"),
    ("stop", [1], "invalid_type"),
    ("stop", 1, "invalid_type"),
    ("stop_token_ids", [VOCAB], "out_of_range"),
    ("stop_token_ids", [-1], "out_of_range"),
    ("stop_token_ids", ["a"], "invalid_type"),
    ("stop_token_ids", list(range(65)), "out_of_range"),
    ("logit_bias", {"abc": 1}, "out_of_range"),
    ("logit_bias", {"-1": 1}, "out_of_range"),
    ("logit_bias", {"999999999": 1}, "out_of_range"),
    ("logit_bias", {"1": 101}, "out_of_range"),
    ("logit_bias", {"1": "x"}, "invalid_type"),
    ("logit_bias", {str(k): 1 for k in range(2000)}, "out_of_range"),
    ("logit_bias", [1], "invalid_type"),
    ("ignore_eos", 1, "invalid_type"),
    ("stream", "true", "invalid_type"),
    ("stream_options", {"include_usage": True}, "invalid_value"),
    ("model", 5, "invalid_type"),
    ("skip_special_tokens", 0, "invalid_type"),
    ("cache_salt", "x" * 200, "out_of_range"),
    ("response_format", "json", "invalid_type"),
    ("ebnf", "root ::= x", "unsupported_parameter"),
    ("tools", [{"type": "function"}], "unsupported_parameter"),
    ("tool_choice", "required", "unsupported_parameter"),
    ("audio", {}, "unsupported_parameter"),
    ("modalities", ["audio"], "unsupported_parameter"),
    ("chat_template", "{{ x }}", "unsupported_parameter"),
    ("logits_processors", ["x"], "unsupported_parameter"),
    ("prompt_logprobs", 21, "out_of_range"),
    ("prompt_logprobs", -1, "out_of_range"),
    ("prompt_logprobs", True, "invalid_type"),
    ("best_of", 0, "out_of_range"),
    ("best_of", 2.0, "invalid_type"),
    ("use_beam_search", True, "unsupported_parameter"),
    ("priority", False, "invalid_type"),
    ("priority", 1, "unsupported_parameter"),
    ("stream_interval", 0, "out_of_range"),
    ("stream_interval", 2000, "out_of_range"),
    ("allowed_token_ids", [1], "unsupported_parameter"),
]
CHAT_ONLY: list[tuple[str, object, str]] = [
    ("top_logprobs", 1, "invalid_value"),
    ("top_logprobs", 21, "out_of_range"),
    ("logprobs", 1, "invalid_type"),
    ("echo", True, "unsupported_parameter"),
    ("best_of", 2, "unsupported_parameter"),
    ("max_tokens", 0, "out_of_range"),
    ("messages", [], "invalid_value"),
    ("messages", None, "missing_field"),
    ("messages", "hi", "invalid_type"),
    ("messages", USER * 501, "out_of_range"),
    ("messages", USER * 100, "context_length_exceeded"),
    ("continue_final_message", True, "invalid_value"),
    ("add_generation_prompt", False, "unsupported_parameter"),
]
TEXT_ONLY: list[tuple[str, object, str]] = [
    ("prompt", None, "missing_field"),
    ("prompt", [], "invalid_value"),
    ("prompt", 5, "invalid_type"),
    ("prompt", {}, "invalid_type"),
    ("prompt", [-1], "prompt[0]"),
    ("prompt", [VOCAB], "prompt[0]"),
    ("prompt", [2**40], "prompt[0]"),
    ("prompt", [1.0], "invalid_type"),
    ("prompt", [True], "invalid_type"),
    ("prompt", [1, "a"], "invalid_type"),
    ("prompt", [""] * 10000, "out_of_range"),
    ("prompt", [1] * 256, "context_length_exceeded"),
    ("prompt", [1] * 257, "context_length_exceeded"),
    ("prompt", "x" * 255, "context_length_exceeded"),
    ("best_of", 9, "out_of_range"),
    ("max_tokens", 0, "out_of_range"),
    ("logprobs", 21, "out_of_range"),
    ("logprobs", True, "invalid_type"),
    ("suffix", "x", "unsupported_parameter"),
]


async def refused(s: Served, path: str, body: dict[str, object], field: str, code: str) -> None:
    reply = await s.http.post(path, json=body)
    case = f"{path} {field}={str(body.get(field))[:60]}"
    assert reply.status_code == 400, f"{case}: {reply.status_code} {reply.text[:200]}"
    assert reply.headers["x-request-id"], case
    error = reply.json()["error"]
    assert error["param"].split("[")[0] == field, f"{case}: {error}"
    assert code in (error["code"], error["param"]), f"{case}: {error}"
    assert error["type"] == "invalid_request_error"
    assert isinstance(error["message"], str) and len(error["message"]) < 400


async def test_fields_of_the_v1_routes() -> None:
    async with served(ScriptedEngine(says("ok"))) as s:
        for field, value, code in BOTH + CHAT_ONLY:
            await refused(s, CHAT, {"messages": USER, field: value}, field, code)
        for field, value, code in BOTH + TEXT_ONLY:
            await refused(s, TEXT, {"prompt": "x", field: value}, field, code)
        await refused(s, TEXT, {"prompt": "x", "n": 3, "best_of": 2}, "best_of", "out_of_range")
        await refused(s, TEXT, {"prompt": "x", "best_of": 2, "stream": True}, "best_of", "invalid_value")
        await refused(s, TEXT, {"prompt": ["x"] * 100, "best_of": 8}, "best_of", "out_of_range")
        for path, body in ((TEXT, {"prompt": "x"}), (CHAT, {"messages": USER})):
            body |= {"prompt_logprobs": 1, "stream": True}
            await refused(s, path, body, "prompt_logprobs", "invalid_value")
        await refused(s, TEXT, {"prompt": ["x"] * 100, "n": 8}, "n", "out_of_range")
        assert s.engine.requests == []
        assert (await s.chat()).status_code == 200


@pytest.mark.parametrize(
    ("message", "param", "code"),
    [
        ({"content": "x"}, "messages[1].role", "missing_field"),
        ({"role": "user"}, "messages[1].content", "missing_field"),
        ({"role": "boss", "content": "x"}, "messages[1].role", "invalid_value"),
        ({"role": "tool", "content": "x"}, "messages[1].role", "unsupported_parameter"),
        ({"role": "user", "content": 5}, "messages[1].content", "invalid_type"),
        ({"role": 5, "content": "x"}, "messages[1].role", "invalid_type"),
        ("x", "messages[1]", "invalid_type"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[1].content[0].text", "missing_field"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]},
            "messages[1].content[0].type",
            "unsupported_content_type",
        ),
    ],
)
async def test_messages(message: object, param: str, code: str) -> None:
    async with served(ScriptedEngine(says("ok"))) as s:
        reply = await s.http.post(CHAT, json={"messages": [*USER, message]})
        error = reply.json()["error"]
        assert (reply.status_code, error["param"], error["code"]) == (400, param, code)


async def test_bodies_that_are_no_json_object() -> None:
    bodies = [
        b"{", b"", b"null", b"[]", b'"x"', b'{"temperature": NaN}', b'{"top_p": Infinity}', b'{"a": 1e999}',
        b'{"messages": "\\ud800"}', b'{"prompt": "\\udc00x"}', b'{"prompt": "\xff"}', b"[" * 100_000,
        b'{"a": ' + b"[" * 70 + b"]" * 70 + b"}", b"{'a': 1}", b'{"a": 1}x',
    ]  # fmt: skip
    async with served(ScriptedEngine()) as s:
        for path in (CHAT, TEXT, NANO):
            for body in bodies:
                reply = await s.http.post(path, content=body, headers=JSON)
                assert reply.status_code == 400, body[:40]
                assert reply.json()["error"]["code"] in ("invalid_json", "invalid_type"), body[:40]
                assert "traceback" not in reply.text.lower()
                assert ("detail" in reply.json()) == (path == NANO)
        reply = await s.http.post(TEXT, content=b'{"prompt": "x", "top_p": 1e999}', headers=JSON)
        assert reply.json()["error"]["param"] == "top_p"
        assert s.engine.requests == []


async def test_content_types_and_encodings() -> None:
    async with served(ScriptedEngine(says("ok"))) as s:
        body = json.dumps({"prompt": "x"})
        for type in (
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=x",
            "",
        ):
            reply = await s.http.post(TEXT, content=body, headers={"content-type": type})
            assert (reply.status_code, reply.json()["error"]["code"]) == (415, "unsupported_media_type")
        for headers in ({"content-encoding": "gzip"}, {"content-type": "application/json; charset=latin-1"}):
            reply = await s.http.post(TEXT, content=body, headers={**JSON, **headers})
            assert reply.status_code == 415
        for type in ("application/json; charset=utf-8", "Application/JSON"):
            assert (await s.http.post(TEXT, content=body, headers={"content-type": type})).status_code == 200
        with_bom = await s.http.post(TEXT, content=b"\xef\xbb\xbf" + body.encode(), headers=JSON)
        assert with_bom.status_code == 200


async def test_bodies_over_the_limit() -> None:
    async with served(ScriptedEngine(says("ok")), HttpSettings(max_body_bytes=1000)) as s:

        async def chunks() -> object:
            for _ in range(200):
                yield b" " * 100

        declared = await s.http.post(TEXT, content=b" " * 20_000, headers=JSON)
        chunked = await s.http.post(TEXT, content=chunks(), headers=JSON)
        nano = await s.http.post(NANO, content=chunks(), headers=JSON)
        for reply in (declared, chunked, nano):
            assert (reply.status_code, reply.json()["error"]["code"]) == (413, "request_too_large")
            assert reply.headers["connection"] == "close"
        assert "detail" in nano.json()
        assert (await s.complete(prompt="x")).status_code == 200


async def test_bodies_that_arrive_together_have_a_limit() -> None:
    """Many clients that each stay below the limit of one body, and never come to its end."""
    async with served(ScriptedEngine(says("ok")), HttpSettings(max_body_bytes=1000)) as s:
        head = f"POST {TEXT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000"
        begun = [await asyncio.open_connection("127.0.0.1", s.port) for _ in range(AT_ONCE)]
        for _, writer in begun:
            writer.write(head.encode() + b"\r\n\r\n" + b" " * 990)
        async with asyncio.timeout(DEADLINE):
            while s.context.uploads.held < AT_ONCE * 990:
                await asyncio.sleep(0)
            refused = await s.http.post(TEXT, content=b" " * 990, headers=JSON)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")
            assert refused.headers["retry-after"] and refused.headers["connection"] == "close"
            assert s.context.uploads.held == AT_ONCE * 990
            assert (await s.complete(prompt="x")).status_code == 200, "there is room for a small one"
            for _, writer in begun:
                writer.close()
            while s.context.uploads.held:
                await asyncio.sleep(0)
        assert (await s.complete(prompt="x")).status_code == 200


@pytest.mark.parametrize("path", [TEXT, NANO, "/v1/messages"])
async def test_who_sends_too_much_can_read_why(path: str) -> None:
    """Also who looks for an answer only when everything has been sent."""
    size = 12 << 20
    async with served(ScriptedEngine(says("ok")), HttpSettings(max_body_bytes=1000)) as s:
        reader, writer = await asyncio.open_connection("127.0.0.1", s.port)
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {size}\r\n\r\n".encode())
        for _ in range(size >> 16):
            writer.write(b" " * (1 << 16))
            await writer.drain()
        assert (await reader.readline()).split()[1] == b"413"
        assert b"larger than 1000 bytes" in await reader.read()
        writer.close()


async def test_a_body_that_never_arrives() -> None:
    async with served(ScriptedEngine(), HttpSettings(body_timeout=0.05)) as s:
        reader, writer = await asyncio.open_connection("127.0.0.1", s.port)
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: 100\r\n\r\n{"
        )
        reply = await reader.read()  # up to the end: the server closes the connection
        assert reply.startswith(b"HTTP/1.1 408 ") and b"request_timeout" in reply
        writer.close()


async def test_paths_and_methods() -> None:
    async with served(ScriptedEngine(says("ok"))) as s:
        for path in (
            "/nope",
            "/v1",
            "//v1/completions",
            "/v1/completions/",
            "/static/../app/survey.py",
        ):
            reply = await s.http.post(path, json={})
            assert (reply.status_code, reply.json()["error"]["type"]) == (404, "not_found_error"), path
        for path in (CHAT, TEXT, NANO):
            for method in ("GET", "PUT", "DELETE", "OPTIONS", "PATCH"):
                reply = await s.http.request(method, path)
                assert (reply.status_code, reply.headers["allow"]) == (405, "POST")
                assert reply.json()["error"]["code"] == "method_not_allowed"
                assert reply.headers["x-request-id"]
        assert (await s.http.post("/health")).status_code == 405
        assert (await s.http.head("/health")).status_code == 200


async def test_unknown_models() -> None:
    async with served(ScriptedEngine(says("ok")), HttpSettings(served_names=("one", "two/three"))) as s:
        for name in ("nope", "../../etc/passwd", "x" * 100_000):
            reply = await s.chat(model=name)
            assert (reply.status_code, reply.json()["error"]["code"]) == (404, "model_not_found")
            assert len(reply.text) < 500
        for name in ("one", "two/three", "scripted"):
            assert (await s.chat(model=name)).json()["model"] == name
        assert [m["id"] for m in (await s.http.get("/v1/models")).json()["data"]] == ["one", "two/three"]
        assert (await s.http.get("/v1/models/two/three")).json()["max_model_len"] == 256
        assert (await s.http.get("/v1/models/four")).status_code == 404


async def test_what_is_allowed() -> None:
    async with served(ScriptedEngine(says("ok"))) as s:
        fine: list[dict[str, object]] = [
            {"temperature": 0}, {"temperature": 1e-9}, {"temperature": -0.0}, {"top_p": 1e-9}, {"top_k": 0},
            {"top_k": -1}, {"top_k": 10**6}, {"seed": -5}, {"tools": []}, {"tool_choice": "none"},
            {"response_format": {"type": "text"}}, {"unheard_of": {"a": 1}}, {"user": "x", "store": True},
            {"best_of": 1}, {"stop": None}, {"length_penalty": 1.0}, {"logit_bias": {"5": -100}},
        ]  # fmt: skip
        for extra in fine:
            reply = await s.chat(**extra)
            assert reply.status_code == 200, f"{extra}: {reply.text}"
        params = [request.params for request in s.engine.requests]
        assert [p.temperature for p in params[:2]] == [0.0, 0.01]
        assert [p.top_k for p in params[4:7]] == [0, 0, VOCAB]
        assert params[-1].logit_bias == {5: -100.0}
        assert all(
            p.max_tokens == 256 - len(r.prompt) for p, r in zip(params, s.engine.requests, strict=True)
        )
        for messages in (
            [{"role": "system", "content": "x"}],
            [*USER, *USER],
            [*USER, {"role": "assistant", "content": "so"}],
            [
                {
                    "role": "developer",
                    "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
                }
            ],
            [{"role": "user", "content": "nul \x00 bom \ufeff <|assistant_start|>"}],
        ):
            assert (await s.http.post(CHAT, json={"messages": messages})).status_code == 200
        last = s.engine.requests[-1].prompt
        assert (
            sum(id >= 256 for id in last) == 4
        )  # bos, user_start, user_end, assistant_start: none from the text
        assert (await s.complete(prompt="")).status_code == 200
        assert (await s.complete(prompt=[1] * 255)).json()["usage"]["completion_tokens"] == 1


async def test_both_token_limits_are_checked_and_the_newer_one_wins() -> None:
    async with served(ScriptedEngine(says("okay"))) as s:
        for path, prompt in ((CHAT, {"messages": USER}), (TEXT, {"prompt": "x"})):
            for bad, good in (
                ("max_tokens", "max_completion_tokens"),
                ("max_completion_tokens", "max_tokens"),
            ):
                await refused(s, path, {**prompt, bad: "5", good: 2}, bad, "invalid_type")
                await refused(s, path, {**prompt, bad: 0, good: 2}, bad, "out_of_range")
            for old in (1, 3, 1000):
                limits = {"max_tokens": old, "max_completion_tokens": 2}
                reply = await s.http.post(path, json=prompt | limits)
                assert reply.json()["usage"]["completion_tokens"] == 2


class Fussy(ScriptedEngine):
    """Takes the first prompt of a request, then refuses as it is told to."""

    def __init__(self, refusal: Exception) -> None:
        super().__init__()
        self.refusal = refusal

    def submit(self, request: Request) -> list[TokenStream]:
        if self.requests:
            raise self.refusal
        return super().submit(request)


@pytest.mark.parametrize(
    ("refusal", "status"), [(ValueError("a prompt of 9 tokens needs 3 blocks"), 400), (KeyError("bug"), 500)]
)
async def test_a_prompt_that_the_engine_refuses_takes_the_others_with_it(
    refusal: Exception, status: int
) -> None:
    engine = Fussy(refusal)
    async with served(engine) as s:
        reply = await s.complete(prompt=["a", "b"], n=2)
        assert reply.status_code == status
        if status == 400:
            assert "9 tokens needs 3 blocks" in reply.json()["error"]["message"]
        first = engine.requests[0].id
        assert (engine.aborted, engine.open_streams) == ([first, first + 1], 0)


async def test_a_template_that_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> list[int]:
        raise ValueError("roles must alternate")

    monkeypatch.setattr(NanochatTemplate, "render", refuse)
    async with served(ScriptedEngine()) as s:
        for path in (CHAT, NANO):
            reply = await s.http.post(path, json={"messages": USER})
            assert (reply.status_code, reply.json()["error"]["param"]) == (400, "messages")
            assert "roles must alternate" in reply.json()["error"]["message"]
        assert reply.json()["detail"] == reply.json()["error"]["message"]


async def test_nanochat_limits() -> None:
    async with served(ScriptedEngine(says("ok"), max_model_len=100_000)) as s:
        cases: list[tuple[dict[str, object], str]] = [
            ({}, "messages"),
            ({"messages": []}, "messages"),
            ({"messages": USER * 501}, "messages"),
            ({"messages": [{"role": "user", "content": ""}]}, "messages[0].content"),
            ({"messages": [{"role": "user", "content": "x" * 8001}]}, "messages[0].content"),
            ({"messages": [{"role": "user", "content": "x" * 8000}] * 5}, "messages"),
            ({"messages": [{"role": "system", "content": "x"}]}, "messages[0].role"),
            ({"messages": USER, "temperature": 2.1}, "temperature"),
            ({"messages": USER, "top_k": 201}, "top_k"),
            ({"messages": USER, "max_tokens": 4097}, "max_tokens"),
            ({"messages": USER, "max_tokens": 0}, "max_tokens"),
        ]
        for body, param in cases:
            reply = await s.http.post(NANO, json=body)
            answer = reply.json()
            assert (reply.status_code, answer["error"]["param"]) == (400, param)
            assert answer["detail"] == answer["error"]["message"]
        assert s.engine.requests == []
        await s.http.post(NANO, json={"messages": USER, "temperature": 0.001})
        assert s.engine.requests.pop().params.temperature == 0.001
        edge = {"messages": [{"role": "user", "content": "x" * 8000}] * 4, "temperature": 2, "top_k": 200}
        assert (await s.http.post(NANO, json={**edge, "max_tokens": 4096})).text.endswith(
            '{"done": true}\n\n'
        )
