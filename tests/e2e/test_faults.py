"""The real server under load, with bad neighbours, with a killed engine, and at its end."""

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.app.server_process import DEADLINE, Server, gone
from tests.e2e.api import CHAT, COMPLETIONS, Answer, Api, connected, random_prompt, until
from tests.e2e.conftest import start

CLIENTS = 8
QUESTIONS = [f"Question {k}: {'why? ' * k}" for k in range(CLIENTS)]
LIMIT = 64
NANOCHAT = "/chat/completions"


@pytest.fixture(scope="module")
def server(slow_model: Path) -> Iterator[Server]:
    with start(slow_model, "--batch-size", str(CLIENTS)) as server:
        yield server


async def talk(
    api: Api, k: int, *, stream: bool = True, into: Answer | None = None, limit: int = LIMIT
) -> Answer:
    return await api.chat(
        QUESTIONS[k], stream=stream, into=into, max_tokens=limit, temperature=0.9, seed=k, ignore_eos=True
    )


@pytest.fixture(scope="module")
def alone(server: Server) -> list[tuple[object, ...]]:
    """What each client gets with the server to itself."""

    async def answers() -> list[Answer]:
        async with connected(server) as api:
            return [await talk(api, k, stream=False) for k in range(CLIENTS)]

    return [answer.content for answer in asyncio.run(answers())]


async def test_eight_clients_stream_at_once(api: Api, alone: list[tuple[object, ...]]) -> None:
    tasks = [asyncio.create_task(talk(api, k)) for k in range(CLIENTS)]
    await api.until_stats(lambda stats: stats["running"] == CLIENTS)
    answers = await asyncio.gather(*tasks)
    assert [answer.content for answer in answers] == alone
    assert all(answer.done and answer.finish == "length" for answer in answers)
    await api.until_idle()


def bad_requests() -> list[tuple[int, str, str, dict[str, str]]]:
    """(status, path, body, headers) of requests that must never reach the engine."""
    json_type = {"content-type": "application/json"}

    def completion(**fields: object) -> tuple[int, str, str, dict[str, str]]:
        return 400, COMPLETIONS, json.dumps({"prompt": [1, 2]} | fields), json_type

    return [
        (400, CHAT, "{", json_type),
        (400, CHAT, "[]", json_type),
        (400, CHAT, '{"messages": 5}', json_type),
        (400, CHAT, '{"messages": [{"role": "user", "content": 5}]}', json_type),
        (400, CHAT, '{"messages": [{"role": "user", "content": "\\ud800"}]}', json_type),
        (400, NANOCHAT, '{"messages": []}', json_type),
        (415, CHAT, "hello", {"content-type": "text/plain"}),
        (404, "/v1/nothing", "{}", json_type),
        completion(prompt=[512]),
        completion(prompt=[-1]),
        completion(prompt=[]),
        completion(prompt=random_prompt(2000, seed=0)),
        completion(prompt={"text": "x"}),
        completion(max_tokens=-1),
        completion(max_tokens=10**9),
        completion(temperature="warm"),
        completion(top_p=0),
        completion(logit_bias={"9999": 1}),
        completion(stop_token_ids=[512]),
        completion(seed=1.5),
        completion(n=10**6),
        completion(suffix="x"),
    ]


async def test_bad_input_fails_alone(api: Api, alone: list[tuple[object, ...]]) -> None:
    progress = [Answer() for _ in range(4)]
    tasks = [asyncio.create_task(talk(api, k, into=progress[k])) for k in range(4)]
    await until(lambda: all(answer.text for answer in progress))
    for status, path, body, headers in bad_requests():
        reply = await api.http.post(path, content=body, headers=headers)
        assert reply.status_code == status, (path, body[:80], reply.text)
        error = reply.json()["error"]
        assert isinstance(error["code"], str) and error["message"], (path, body[:80])
        assert reply.headers["x-request-id"]
    assert (await api.http.get(CHAT)).status_code == 405
    assert [answer.content for answer in await asyncio.gather(*tasks)] == alone[:4]


async def test_nanochats_own_events(api: Api) -> None:
    body: dict[str, object] = {
        "messages": [{"role": "user", "content": "Hi 空"}],
        "temperature": 0,
        "max_tokens": 24,
    }
    *events, last = [json.loads(data) async for data in api.events(NANOCHAT, body)]
    assert last == {"done": True}
    assert events and all(set(event) == {"token", "gpu"} and event["gpu"] == 0 for event in events)
    same = await api.ask(CHAT, body | {"skip_special_tokens": False}, stream=False)
    assert "".join(event["token"] for event in events) == same.text
    refused = await api.http.post(NANOCHAT, json={"messages": [{"role": "nobody", "content": "x"}]})
    assert refused.status_code == 400
    assert refused.json()["detail"] == refused.json()["error"]["message"]


async def test_a_killed_engine_is_told_and_replaced(
    api: Api, server: Server, alone: list[tuple[object, ...]]
) -> None:
    progress = [Answer() for _ in range(3)]
    streams = [asyncio.create_task(talk(api, k, into=progress[k], limit=800)) for k in range(3)]
    body = {"prompt": random_prompt(5, seed=5), "max_tokens": 150, "ignore_eos": True, "seed": 5}
    plain = asyncio.create_task(api.http.post(COMPLETIONS, json=body))
    old_events: list[dict[str, object]] = []
    old = asyncio.create_task(_nanochat(api, "Go on", into=old_events))
    await api.until_stats(lambda stats: stats["running"] == 5)
    # Until its first event a stream has no status either, and would be answered with a 503.
    await until(lambda: bool(old_events) and all(answer.text for answer in progress))
    (engine,) = server.children()
    killed, clock = time.monotonic(), server.clock()
    os.kill(engine, signal.SIGKILL)
    while await api.ready():
        assert clock.seconds() < 2
        await asyncio.sleep(0.01)
    for answer in await asyncio.gather(*streams):
        assert answer.done and answer.finish is None
        assert answer.error is not None and answer.error["code"] == "engine_unavailable"
    await old
    assert "error" in old_events[-1]
    refused = await api.http.post(COMPLETIONS, json=body | {"seed": 1})
    assert refused.status_code == 503 and refused.headers["retry-after"]
    assert (await api.http.get("/health")).status_code == 200

    while not await api.ready():
        assert time.monotonic() - killed < DEADLINE
        await asyncio.sleep(0.02)
    assert server.children() != [engine]
    # A plain answer had told its client nothing: it began again, and is what it would have been.
    reply = await plain
    assert reply.status_code == 200 and reply.json()["usage"]["completion_tokens"] == 150
    again = await api.http.post(COMPLETIONS, json=body)
    assert again.json()["choices"][0]["text"] == reply.json()["choices"][0]["text"]
    assert [(await talk(api, k)).content for k in range(2)] == alone[:2]
    stats = await api.until_idle()
    assert stats["blocks_used"] == 0


async def _nanochat(api: Api, content: str, into: list[dict[str, object]]) -> None:
    """Put all events of a long answer (greedy: it goes on until its limit) into a list."""
    messages = [{"role": "user", "content": content}]
    body: dict[str, object] = {"messages": messages, "temperature": 0, "max_tokens": 900}
    async for data in api.events(NANOCHAT, body):
        into.append(json.loads(data))


async def test_sigterm_under_load_lets_streams_finish(slow_model: Path) -> None:
    with start(slow_model, "--batch-size", "4", "--drain-timeout", "120") as server:
        (engine,) = server.children()
        async with connected(server) as api:
            progress = [Answer() for _ in range(3)]
            # One more than there are rows: a request that waits was let in, too.
            tasks = [asyncio.create_task(talk(api, k, into=progress[k], limit=150)) for k in range(3)]
            tasks += [asyncio.create_task(talk(api, k, stream=False, limit=150)) for k in (3, 4)]
            await api.until_stats(lambda stats: stats["open_answers"] == 5)
            await until(lambda: all(answer.text for answer in progress))
            server.signal(signal.SIGTERM)
            while await api.ready():
                await asyncio.sleep(0.002)
            refused = await api.http.post(COMPLETIONS, json={"prompt": [1]})
            assert refused.status_code == 503 and refused.json()["error"]["code"] == "draining"
            assert not all(task.done() for task in tasks), "no answer was open when the signal came"
            for answer in await asyncio.gather(*tasks):
                assert answer.done and answer.finish == "length" and len(answer.tokens) == 150
        assert await asyncio.to_thread(server.wait) == 0
        assert gone(engine)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"http://127.0.0.1:{server.port}/health", trust_env=False)
