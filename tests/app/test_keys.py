"""Who has no key gets nothing, in whatever way it asks."""

import hmac

import httpx
import openai
import pytest

from app.http import keys
from app.http.keys import OPEN_PATHS, Keys, is_open
from app.http.page import static_folder
from app.settings.http import Access, HttpSettings, Key
from tests.app.raw_http import exchange, is_empty
from tests.app.scripted_engine import ScriptedEngine, says
from tests.app.serving import Served, served

SECRETS = ("first-key", "zweiter-schlüssel", "third")
LOCKED = HttpSettings(access=Access(keys=tuple(Key.of(secret) for secret in SECRETS)))


async def ask(
    s: Served, headers: list[tuple[bytes, bytes]] | dict[str, str], path: str = "/v1/completions"
) -> int:
    reply = await s.http.post(path, json={"prompt": "x"}, headers=headers)
    if reply.status_code == 401:
        error = reply.json()["error"]
        assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
        assert reply.headers["www-authenticate"] == "Bearer" and reply.headers["x-request-id"]
        assert not any(secret in reply.text for secret in SECRETS)
    return reply.status_code


def bearer(key: str, scheme: bytes = b"Bearer ") -> list[tuple[bytes, bytes]]:
    return [(b"Authorization", scheme + key.encode())]


async def test_keys_in_every_form() -> None:
    async with served(ScriptedEngine(says("ok")), LOCKED) as s:
        for secret in SECRETS:
            for headers in (
                bearer(secret),
                bearer(secret, b"bearer "),
                bearer(secret, b"BEARER   "),
                [(b"X-Api-Key", secret.encode())],
                [(b"Authorization", b"Basic eDp5"), (b"X-Api-Key", secret.encode())],
            ):
                assert await ask(s, headers) == 200, headers
        good = SECRETS[0].encode()
        for headers in (
            [],
            [(b"Authorization", b"Bearer")],
            bearer("first-ke"),
            bearer("first-keyy"),
            bearer("First-Key"),
            bearer("schlüssel"),
            [(b"Authorization", b"Bearer \xff\xfe\x80")],
            [(b"Authorization", good)],
            [(b"Authorization", b"Bearer" + good)],
            [(b"Authorization", b"Basic " + good)],
            [(b"X-Api-Key", b"")],
            [(b"X-Api-Key", b"\xff")],
            bearer(SECRETS[0]) * 2,
            [(b"X-Api-Key", good)] * 2,
            [*bearer("wrong"), (b"X-Api-Key", good)],
            bearer(f"{SECRETS[0]}, {SECRETS[2]}"),
            [(b"Cookie", b"api_key=" + good)],
        ):
            assert await ask(s, headers) == 401, headers
        for query in ("api_key", "key", "token", "authorization", "x-api-key"):
            assert await ask(s, [], f"/v1/completions?{query}={SECRETS[0]}") == 401
        assert (await s.http.post("/chat/completions", json={})).json()["detail"]
        assert is_empty(s) and len(s.engine.requests) == 5 * len(SECRETS)


async def test_what_everybody_may_see_and_what_not() -> None:
    async with served(ScriptedEngine(says("ok")), LOCKED) as s:
        for path in ("/health", "/ready"):
            assert (await s.http.get(path)).status_code == 200
        if static_folder() is not None:
            for path in ("/", "/favicon.svg", "/static/index.html"):
                assert (await s.http.get(path)).status_code == 200, path
        for path in ("/stats", "/metrics", "/v1/models", "/v1/models/scripted", "/nothing", "/stats/stream"):
            for method in ("GET", "POST", "HEAD", "OPTIONS", "DELETE"):
                assert (await s.http.request(method, path)).status_code == 401, (method, path)


WAYS_ROUND = [
    "//v1/models",
    "/./v1/models",
    "/v1/../v1/models",
    "/static/../v1/models",
    "/static/%2e%2e/v1/models",
    "/static/..%2fv1/models",
    "/static//../v1/models",
    "/%76%31/models",
    "/v1%2fmodels",
    "/health/../v1/models",
    "/health%2f..%2fv1/models",
    "/health;/v1/models",
    "/v1/models?/health",
    "/v1/models#/health",
    "/v1/models/",
    "/V1/models",
    "/health%00/v1/models",
    "http://localhost/v1/models",
    "http://localhost/health/../v1/models",
    "/llm/v1/models",
    "/llm/llm/v1/models",
]


@pytest.mark.parametrize("root_path", ["", "/llm", "/health", "/static"])
async def test_there_is_no_way_round_the_check(root_path: str) -> None:
    async with served(ScriptedEngine(says("ok")), LOCKED, root_path=root_path) as s:
        for path in WAYS_ROUND:
            for host in ("localhost", "localhost/health", "localhost:80/health?", "/health"):
                request = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
                reply = await exchange(s.port, request.encode())
                assert reply.status in (400, 401, 404), (path, host, reply.data[:200])
                assert b'"object"' not in reply.data
        with_key = (
            f"GET /v1/models HTTP/1.1\r\nHost: x\r\nX-Api-Key: {SECRETS[0]}\r\nConnection: close\r\n\r\n"
        )
        assert (await exchange(s.port, with_key.encode())).status == 200
        open_one = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        assert (await exchange(s.port, open_one)).status == 200


def test_what_is_open_is_open_by_its_whole_name() -> None:
    for path in OPEN_PATHS:
        assert is_open(path)
        if path != "/":
            assert not is_open(path + "/") and not is_open(path.upper()) and not is_open("/" + path)
    assert not is_open("/static") and not is_open("/statical/x") and not is_open("")


async def test_each_stored_key_is_compared_whatever_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []
    real = hmac.compare_digest

    def compare(known: bytes, presented: bytes) -> bool:
        compared.append(known)
        return real(known, presented)

    stored = [Key.of(secret) for secret in SECRETS]
    guard = Keys(None, stored)  # type: ignore[arg-type]  # `identify` calls no application
    monkeypatch.setattr(hmac, "compare_digest", compare, raising=True)
    for secret in (*SECRETS, "unknown"):
        compared.clear()
        scope = {"type": "http", "headers": [(b"x-api-key", secret.encode())]}
        try:
            assert guard.identify(scope) == Key.of(secret).id
        except keys.ApiError as error:
            assert (secret, error.status) == ("unknown", 401)
        assert compared == [key.digest for key in stored]


async def test_the_openai_client_with_a_key() -> None:
    async with served(ScriptedEngine(says("ok")), LOCKED) as s, httpx.AsyncClient() as http:
        client = openai.AsyncOpenAI(
            base_url=f"{s.url}/v1", api_key=SECRETS[0], http_client=http, max_retries=0
        )
        reply = await client.completions.create(model="scripted", prompt="x")
        assert reply.choices[0].text == "ok"
        with pytest.raises(openai.AuthenticationError) as caught:
            await client.with_options(api_key="wrong").models.list()
        assert caught.value.code == "invalid_api_key"


async def test_cached_prompts_are_kept_apart_by_key() -> None:
    settings = HttpSettings(access=LOCKED.access, cache_salt_per_key=True)
    async with served(ScriptedEngine(says("ok")), settings) as s:
        body: dict[str, object] = {"prompt": "x"}
        salts = []
        # What a client names as its salt cannot make it another key's.
        for secret, salt in (
            (SECRETS[0], None),
            (SECRETS[0], None),
            (SECRETS[1], None),
            (SECRETS[0], "mine"),
            (SECRETS[1], "mine"),
            (SECRETS[1], Key.of(SECRETS[0]).id + "mine"),
        ):
            given = body if salt is None else body | {"cache_salt": salt}
            reply = await s.http.post("/v1/completions", json=given, headers=bearer(secret))
            assert reply.status_code == 200, reply.text
            salts.append(s.engine.requests[-1].cache_salt)
        assert salts[0] == salts[1] != b""
        assert len(set(salts)) == 5
    async with served(ScriptedEngine(says("ok")), LOCKED) as s:
        await s.http.post("/v1/completions", json={"prompt": "x"}, headers=bearer(SECRETS[0]))
        assert s.engine.requests[-1].cache_salt == b""
