"""A reader at one byte a second of an answer of four thousand tokens: it is cut, and nobody else notices."""

import json
import signal
import socket
import threading
from pathlib import Path

import pytest

from tests.app.echo_worker import PACED
from tests.app.server_process import GOLDEN, SERVE_ECHO, Server, serving, until
from tests.app.test_crashes import stats

TOKENS = 4000
MODEL = ["--context", "8192", "--", "--model", str(GOLDEN / "tokenizer")]
MOST_GROWTH = 8 << 20  # bytes; unread, the answer would be a megabyte in each of several places


def resident(server: Server) -> int:
    """Bytes of all the processes that answer HTTP."""
    pids = [server.process.pid, *server.children()]
    status = [Path(f"/proc/{pid}/status").read_text() for pid in pids]
    return sum(int(text.split("VmRSS:")[1].split()[0]) * 1024 for text in status)


def slow_request(server: Server, **extra: object) -> socket.socket:
    body = {"prompt": [PACED, *[65] * TOKENS], "max_tokens": TOKENS + 1, "stream": True, **extra}
    data = json.dumps(body).encode()
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.settimeout(60)
    sock.connect(("127.0.0.1", server.port))
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    sock.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    return sock


@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_a_slow_reader_is_cut_and_nobody_else_notices(workers: str) -> None:
    flags = ["--send-timeout", "1", "--api-workers", workers]
    with serving([*SERVE_ECHO, *MODEL], *flags) as server:
        server.ask([5], stream=False).read()
        before = resident(server)
        # Token ids make each event longer, as a large answer's would be.
        sock = slow_request(server, return_token_ids=True)
        stop, received = threading.Event(), bytearray()

        def read() -> None:
            while not stop.is_set():
                received.extend(sock.recv(1))
                stop.wait(1)

        reader = threading.Thread(target=read)
        reader.start()
        try:
            until(lambda: stats(server)["generated_tokens"] > 0 or stats(server)["running"] == 1)
            other = server.ask([PACED, *[66] * 500], max_tokens=501)
            text = other.read().decode()
            assert text.count('"B"') == 500, "one event for each token: it never was behind"
            assert text.endswith("data: [DONE]\n\n")
            until(lambda: stats(server)["slow_reader_aborts"] == 1)
            until(lambda: stats(server)["running"] == 0)
            found = stats(server)
            assert (found["open_answers"], found["disconnects"]) == (0, 0)
            assert resident(server) - before < MOST_GROWTH
        finally:
            stop.set()
            reader.join()
        rest = bytearray()
        with pytest.raises(ConnectionResetError):  # what the kernel held is gone, too
            while data := sock.recv(1 << 16):
                rest.extend(data)
        assert b"[DONE]" not in received + rest
        sock.close()
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        assert server.process.stderr is not None
        log = server.process.stderr.read()
        assert "aborted" in log and "Traceback" not in log and '"level":"error"' not in log.replace(" ", "")
