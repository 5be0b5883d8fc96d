"""Pages of other sites: what their browsers may not do, and what was allowed by name."""

import pytest

from app.http.origins import host_name
from app.settings.access import allowed_hosts
from app.settings.http import Access, HttpSettings, Key
from tests.app.scripted_engine import ScriptedEngine, says
from tests.app.serving import served

CHAT = "https://chat.example"
LOOPBACK = Access(hosts=allowed_hosts("127.0.0.1", ()))
ALLOWED = Access(hosts=allowed_hosts("127.0.0.1", ("Fastpath.local",)), origins=frozenset({CHAT}))
PREFLIGHT = {
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization, content-type, x-stainless-os",
}


@pytest.mark.parametrize(
    ("header", "name"),
    [
        (b"localhost", "localhost"),
        (b"LocalHost:8000", "localhost"),
        (b"localhost.", "localhost"),
        (b"[::1]:80", "[::1]"),
        (b"[::1]", "[::1]"),
        (b"127.0.0.1:evil", "127.0.0.1:evil"),
        (b"a:80:80", "a:80"),
    ],
)
def test_names_in_host_headers(header: bytes, name: str) -> None:
    assert host_name(header) == name


def test_only_who_listens_for_itself_knows_all_its_names() -> None:
    for bound in ("127.0.0.1", "localhost", "::1", "127.0.0.5"):
        names = allowed_hosts(bound, ())
        assert names is not None and {"localhost", "127.0.0.1", "[::1]"} <= names
        assert allowed_hosts(bound, ("*",)) is None
    assert allowed_hosts("0.0.0.0", ()) is None
    public = allowed_hosts("0.0.0.0", ("Chat.Example",))
    assert public is not None and "chat.example" in public and "localhost" in public


async def test_a_name_that_was_made_to_point_here_is_refused() -> None:
    async with served(ScriptedEngine(says("ok")), HttpSettings(access=LOOPBACK)) as s:
        for host in ("localhost", f"localhost:{s.port}", f"127.0.0.1:{s.port}", "[::1]:1", "LOCALHOST"):
            assert (await s.http.get("/v1/models", headers={"host": host})).status_code == 200, host
        for host in ("evil.example", f"evil.example:{s.port}", "localhost.evil.example", "127.0.0.2", ""):
            for method, path in (("GET", "/v1/models"), ("GET", "/stats"), ("POST", "/v1/completions")):
                reply = await s.http.request(method, path, headers={"host": host})
                assert reply.status_code == 403, (host, path)
                assert reply.json()["error"]["code"] == "host_not_allowed"


async def test_only_the_servers_own_pages_may_post() -> None:
    async with served(ScriptedEngine(says("ok")), HttpSettings(access=LOOPBACK)) as s:
        own = f"127.0.0.1:{s.port}"

        async def post(**headers: str) -> int:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            reply = await s.http.post("/v1/completions", json={"prompt": "x"}, headers=named)
            assert "access-control-allow-origin" not in reply.headers
            if reply.status_code == 403:
                assert reply.json()["error"]["code"] == "origin_not_allowed"
            return reply.status_code

        assert await post() == 200
        assert await post(origin=f"http://{own}") == 200
        assert await post(origin=f"https://{own}") == 200  # a proxy in front may speak TLS
        for origin in (CHAT, "null", "", f"http://{own}.evil.example", f"http://{own}0", "http://127.0.0.1"):
            assert await post(origin=origin) == 403, origin
            assert await post(origin=origin, sec_fetch_site="cross-site") == 403
        assert await post(origin="https://behind.proxy", sec_fetch_site="same-origin") == 200
        reads = await s.http.get("/v1/models", headers={"origin": CHAT})
        assert reads.status_code == 200 and "access-control-allow-origin" not in reads.headers
        asked = await s.http.options("/v1/completions", headers={"origin": CHAT, **PREFLIGHT})
        assert asked.status_code == 403 and "access-control-allow-origin" not in asked.headers
        assert s.engine.open_streams == 0 and len(s.engine.requests) == 4


async def test_origins_that_were_allowed() -> None:
    async with served(ScriptedEngine(says("ok")), HttpSettings(access=ALLOWED)) as s:
        asked = await s.http.options("/v1/completions", headers={"origin": CHAT, **PREFLIGHT})
        assert (asked.status_code, asked.content) == (204, b"")
        assert asked.headers["access-control-allow-origin"] == CHAT
        assert "POST" in asked.headers["access-control-allow-methods"]
        assert asked.headers["access-control-allow-headers"] == PREFLIGHT["access-control-request-headers"]
        for stream in (False, True):
            reply = await s.http.post(
                "/v1/completions", json={"prompt": "x", "stream": stream}, headers={"origin": CHAT}
            )
            assert reply.status_code == 200 and reply.headers["access-control-allow-origin"] == CHAT
            assert "x-request-id" in reply.headers["access-control-expose-headers"]
            assert reply.headers["vary"] == "origin"
            assert "access-control-allow-credentials" not in reply.headers
        failed = await s.http.post("/v1/completions", json={}, headers={"origin": CHAT})
        assert failed.status_code == 400 and failed.headers["access-control-allow-origin"] == CHAT
        for origin in ("https://chat.example.evil", "http://chat.example", "https://CHAT.example"):
            for path in ("/v1/models", "/v1/completions"):
                other = await s.http.request("OPTIONS", path, headers={"origin": origin, **PREFLIGHT})
                assert other.status_code == 403 and "access-control-allow-origin" not in other.headers
        plain = await s.http.get("/v1/models")
        assert plain.headers["vary"] == "origin" and "access-control-allow-origin" not in plain.headers
        named = await s.http.get("/v1/models", headers={"host": "fastpath.LOCAL:8000"})
        assert named.status_code == 200


async def test_a_preflight_needs_no_key_and_tells_nothing() -> None:
    access = Access(keys=(Key.of("secret"),), origins=frozenset({CHAT}))
    async with served(ScriptedEngine(says("ok")), HttpSettings(access=access)) as s:
        asked = await s.http.options("/v1/completions", headers={"origin": CHAT, **PREFLIGHT})
        assert asked.status_code == 204
        refused = await s.http.post("/v1/completions", json={"prompt": "x"}, headers={"origin": CHAT})
        assert refused.status_code == 401 and refused.headers["access-control-allow-origin"] == CHAT
