"""Clients that leave the real server at every stage, in both ways, of every kind of request: within a step
nothing is held for them, and the counters say what happened.

The engine process is held still while a client leaves, so that it is known what was done before and after.
"""

import asyncio
import json
import os
import random
import re
import signal
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.app.server_process import Server
from tests.e2e.api import CHAT, COMPLETIONS, Api, connected, random_prompt, stopped, until
from tests.e2e.conftest import start
from tests.e2e.test_cancellation import STEPS_LATE

ROWS = 3
FEW = 6  # tokens of an answer that is left just before its end
KINDS: dict[str, dict[str, object]] = {"chat": {}, "completions": {}, "three choices": {"n": 3}}


@pytest.fixture(scope="module")
def server(slow_model: Path) -> Iterator[Server]:
    """At its end, nothing that happened was worth a traceback."""
    flags = ("--batch-size", str(ROWS), "--prefill-chunk", "8", "--no-enable-prefix-caching")
    with start(slow_model, *flags, "--drain-timeout", "1") as server:
        yield server
        server.signal(signal.SIGTERM)
        server.wait()
        assert server.process.stderr is not None
        log = server.process.stderr.read()
        levels = {json.loads(line)["level"] for line in log.splitlines()}
        assert "Traceback" not in log and not levels & {"error", "critical"}, log


def request(kind: str, length: int, max_tokens: int, stream: bool) -> bytes:
    body: dict[str, object] = {"max_tokens": max_tokens, "ignore_eos": True, "stream": stream, **KINDS[kind]}
    if kind == "chat":
        path = CHAT
        body["messages"] = [{"role": "user", "content": "".join(random.Random(1).choices("kqxz", k=length))}]
    else:
        path = COMPLETIONS
        body["prompt"] = random_prompt(length, seed=1)
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


def connect(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port))


def leave(sock: socket.socket, way: str) -> None:
    if way == "RST":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


async def counters(api: Api) -> dict[str, float]:
    """Choices by how they ended, and clients that left."""
    text = (await api.http.get("/metrics")).text
    ends = re.findall(r'^vllm:request_success_total\{.*finished_reason="(\w+)".*\} (\S+)$', text, re.M)
    left = re.findall(r"^fastpath_disconnects_total\{.*\} (\S+)$", text, re.M)
    return {"left": float(left[0]), **{reason: float(number) for reason, number in ends}}


async def difference(api: Api, before: dict[str, float]) -> dict[str, float]:
    after = await counters(api)
    return {
        name: number - before.get(name, 0) for name, number in after.items() if number != before.get(name, 0)
    }


async def check_idle(api: Api) -> None:
    stats = await api.until_idle()
    assert (stats["running"], stats["waiting"], stats["blocks_used"]) == (0, 0, 0)


CASES = [(kind, stream) for kind in KINDS for stream in (True, False)]
WAYS = pytest.mark.parametrize("way", ["FIN", "RST"])


@WAYS
async def test_before_the_queue(api: Api, server: Server, way: str) -> None:
    start = await api.until_idle()
    for kind, stream in CASES:
        before = await counters(api)
        data = request(kind, 300, 9, stream)
        sock = connect(server)
        sock.sendall(data[: len(data) // 2])
        await api.stats()
        leave(sock, way)
        while (await difference(api, before)) != {"left": 1}:
            await asyncio.sleep(0.002)
    assert (await api.until_idle())["steps"] == start["steps"], "the engine has heard of it"


@WAYS
async def test_in_the_queue(api: Api, server: Server, way: str) -> None:
    (engine,) = server.children()
    blocker = connect(server)
    blocker.sendall(request("three choices", 8, 1000, True))
    await api.until_stats(lambda stats: stats["running"] == ROWS)
    for kind, stream in CASES:
        choices = 3 if "three" in kind else 1
        before = await counters(api)
        sock = connect(server)
        with stopped(engine):
            sock.sendall(request(kind, 20, 9, stream))
            await api.until_stats(lambda stats: stats["open_answers"] == 2)
        held = await api.until_stats(lambda stats, n=choices: stats["waiting"] == n)  # type: ignore[misc]
        assert held["running"] == ROWS, "those that block the queue have ended too early"
        with stopped(engine):
            await api.stats()
            held = await api.stats()
            leave(sock, way)
            await api.until_stats(lambda stats: stats["open_answers"] == 1)
        freed = await api.until_stats(lambda stats: stats["waiting"] == 0)
        assert freed["prompt_tokens"] == held["prompt_tokens"] and freed["running"] == ROWS
        assert await difference(api, before) == {"left": 1, "abort": choices}
    leave(blocker, way)
    await check_idle(api)


@WAYS
@pytest.mark.parametrize("phase", ["prefill", "decode"])
async def test_while_it_runs(api: Api, server: Server, way: str, phase: str) -> None:
    (engine,) = server.children()
    length, max_tokens = (700, 8) if phase == "prefill" else (8, 900)
    for kind, stream in CASES:
        choices = 3 if "three" in kind else 1
        start, before = await api.until_idle(), await counters(api)
        sock = connect(server)
        sock.sendall(request(kind, length, max_tokens, stream))
        made, steps = start["generated_tokens"], start["steps"]

        def underway(stats: dict[str, int], made: int = made, steps: int = steps) -> bool:
            return stats["steps"] > steps + 2 and (phase == "prefill" or stats["generated_tokens"] > made + 3)

        await api.until_stats(underway)
        with stopped(engine):
            await api.stats()
            held = await api.stats()
            assert held["running"] >= 1 and held["blocks_used"] > 0
            assert (held["generated_tokens"] > made) == (phase == "decode")
            leave(sock, way)
            await api.until_stats(lambda stats: stats["open_answers"] == 0)
        await check_idle(api)
        freed = await api.stats()
        assert freed["steps"] - held["steps"] <= STEPS_LATE
        assert freed["generated_tokens"] - held["generated_tokens"] <= 2 * choices
        assert await difference(api, before) == {"left": 1, "abort": choices}


@WAYS
async def test_just_before_the_end(api: Api, server: Server, way: str) -> None:
    """Whichever comes first, the end or the client's leaving: each choice ends once."""
    for kind, stream in CASES:
        choices = 3 if "three" in kind else 1
        start, before = await api.until_idle(), await counters(api)
        sock = connect(server)
        sock.sendall(request(kind, 8, FEW, stream))
        last = start["generated_tokens"] + (FEW - 1) * choices
        await api.until_stats(lambda stats, last=last: stats["generated_tokens"] >= last)  # type: ignore[misc]
        leave(sock, way)
        await check_idle(api)
        ends = await difference(api, before)
        assert ends.pop("left", 0) in (0, 1)
        assert sum(ends.values()) == choices and set(ends) <= {"abort", "length"}


def footprint(server: Server) -> tuple[int, int]:
    """Resident bytes and open files of the process that answers HTTP."""
    process = Path(f"/proc/{server.process.pid}")
    resident = int((process / "status").read_text().split("VmRSS:")[1].split()[0]) * 1024
    return resident, len(os.listdir(process / "fd"))


async def storm(server: Server, clients: int) -> None:
    """Connects, sends all or half of a request, and leaves at once, time and again."""
    draw = random.Random(7)
    kinds = list(KINDS)
    for k in range(clients):
        data = request(kinds[k % len(kinds)], 10, 50, k % 2 == 0)
        sock = connect(server)
        sock.sendall(data if draw.random() < 0.8 else data[: len(data) // 2])
        if k % 4:
            await asyncio.sleep(0)
        leave(sock, draw.choice(["FIN", "RST"]))
        if not k % 50:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("clients", [300, pytest.param(1000, marks=pytest.mark.slow)])
async def test_a_storm(server: Server, clients: int) -> None:
    async with connected(server) as api:
        body = {"prompt": random_prompt(9, seed=9), "max_tokens": 60, "seed": 1, "ignore_eos": True}
        expected = await api.complete(**body)  # type: ignore[arg-type]
        await storm(server, 100)  # what the first ones cost stays
        await check_idle(api)
        await until(lambda: footprint(server)[1] < 40)
        memory, files = footprint(server)
        staying = asyncio.create_task(api.complete(**body))  # type: ignore[arg-type]
        await storm(server, clients)
        assert (await staying).content == expected.content
        await check_idle(api)
        await until(lambda: footprint(server)[1] <= files)
        assert footprint(server)[0] < memory * 1.05
        assert (await api.complete(**body)).content == expected.content  # type: ignore[arg-type]


def tokens_of(text: str) -> tuple[list[int], int]:
    """The token ids of a resumable stream's events, and the number of its last one."""
    numbers = [int(number) for number in re.findall(r"^id: (\d+)$", text, re.M)]
    bodies = [json.loads(data) for data in re.findall(r"^data: (\{.*)$", text, re.M)]
    ids = [id for body in bodies for choice in body["choices"] for id in choice.get("token_ids", [])]
    return ids, max(numbers, default=0)


@WAYS
async def test_a_resumable_stream_goes_on_until_it_is_deleted(api: Api, server: Server, way: str) -> None:
    (engine,) = server.children()
    body = {
        "prompt": random_prompt(8, seed=5),
        "seed": 5,
        "ignore_eos": True,
        "stream": True,
        "return_token_ids": True,
    }
    expected = await api.complete(body["prompt"], seed=5, ignore_eos=True, max_tokens=90)  # type: ignore[arg-type]
    start, before = await api.until_idle(), await counters(api)

    def begin(max_tokens: int) -> socket.socket:
        data = json.dumps(body | {"max_tokens": max_tokens}).encode()
        head = (
            "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
            "Content-Type: application/json\r\nX-Stream-Id: s\r\n"
        )
        sock = connect(server)
        sock.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        return sock

    sock = begin(90)
    await api.until_stats(lambda stats: stats["generated_tokens"] > start["generated_tokens"] + 3)
    leave(sock, way)
    async with api.http.stream("GET", "/v1/streams/s") as reply:  # another reader, who leaves, too
        async for part in reply.aiter_text():
            ids, last = tokens_of(part[: part.rfind("\n\n") + 2])
            break
    rest = (await api.http.get("/v1/streams/s", headers={"Last-Event-ID": str(last)})).text
    assert ids + tokens_of(rest)[0] == expected.tokens and rest.endswith("data: [DONE]\n\n")
    assert await difference(api, before) == {"length": 1}, "a reader that leaves is no client that left"
    await check_idle(api)

    sock = begin(900)
    start = await api.until_stats(lambda stats: stats["running"] == 1)
    leave(sock, way)
    await api.until_stats(lambda stats: stats["generated_tokens"] > start["generated_tokens"] + 3)
    with stopped(engine):
        await api.stats()
        held = await api.stats()
        assert (await api.http.delete("/v1/streams/s")).status_code == 200
    freed = await api.until_idle()
    assert freed["steps"] - held["steps"] <= STEPS_LATE
    await check_idle(api)
    assert await difference(api, before) == {"length": 1, "abort": 1}
