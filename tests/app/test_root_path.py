"""A server behind a proxy that takes a path away (`--root-path`) answers as one without."""

import re

import pytest

from app.settings.access import allowed_hosts
from app.settings.http import Access, HttpSettings, Key
from engine.messages import EngineState
from tests.app.scripted_engine import ScriptedEngine, says
from tests.app.serving import served

CHAT = "/chat/completions"


@pytest.mark.parametrize("root_path", ["", "/llm", "/chat"])
async def test_every_page_is_there(root_path: str) -> None:
    async with served(ScriptedEngine(says("ok")), root_path=root_path) as s:
        for path in ("/", "/favicon.svg", "/static/app.js", "/docs", "/docs/docs.js", "/health"):
            reply = await s.http.get(path)
            assert reply.status_code == 200 and reply.content, path


@pytest.mark.parametrize("root_path", ["", "/llm"])
async def test_nanochats_clients_find_the_detail_of_every_error(root_path: str) -> None:
    engine = ScriptedEngine(says("ok"))
    access = Access(hosts=allowed_hosts("127.0.0.1", ()))
    async with served(engine, HttpSettings(access=access), root_path=root_path) as s:
        wrong = {"json": {"messages": 5}}
        replies = [
            await s.http.get(CHAT),
            await s.http.post(CHAT, **wrong),  # type: ignore[arg-type]
            await s.http.post(CHAT, **wrong, headers={"host": "other.example"}),  # type: ignore[arg-type]
            await s.http.post(CHAT, **wrong, headers={"origin": "https://other.example"}),  # type: ignore[arg-type]
        ]
        engine.state = EngineState.DEAD
        replies.append(await s.http.post(CHAT, json={"messages": [{"role": "user", "content": "x"}]}))
        assert [reply.status_code for reply in replies] == [405, 400, 403, 403, 503]
        for reply in replies:
            assert reply.json()["detail"] == reply.json()["error"]["message"]


async def test_who_is_not_let_in_learns_which_flag_lets_it() -> None:
    access = Access(hosts=allowed_hosts("127.0.0.1", ()))
    async with served(ScriptedEngine(says("ok")), HttpSettings(access=access)) as s:
        body = {"prompt": "x"}
        host = await s.http.post("/v1/completions", json=body, headers={"host": "chat.example:8443"})
        page = await s.http.post("/v1/completions", json=body, headers={"origin": "https://chat.example"})
        assert "--allowed-hosts chat.example'" in host.json()["error"]["message"].replace('"', "'")
        assert "--allowed-origins https://chat.example'" in page.json()["error"]["message"].replace('"', "'")


async def test_a_browser_needs_no_key_for_what_a_page_is_made_of() -> None:
    """It sends none with a script or a style sheet; what the scripts ask for has one."""
    settings = HttpSettings(access=Access(keys=(Key.of("secret"),)))
    async with served(ScriptedEngine(says("ok")), settings) as s:
        for page in ("/", "/docs"):
            text = (await s.http.get(page)).text
            parts = re.findall(r'(?:<script[^>]* src|<link[^>]* href)="([^"#]+)"', text)
            assert len(parts) >= 2
            for part in parts:
                assert (await s.http.get(f"/{part}")).status_code == 200, part
