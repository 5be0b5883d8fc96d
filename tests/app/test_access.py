"""Keys, addresses and certificates on the command line, and real servers that were started with them."""

import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from app.__main__ import command_line
from app.checks import check
from app.settings.config import Config
from app.settings.options import UsageError, to_toml
from tests.app.echo_worker import HOLD
from tests.app.server_process import GOLDEN, SERVE_ECHO, Server, environment, finish, serving, until
from tests.app.test_drain import read_event
from tests.app.test_fleet import fronts
from tests.optional import missing

MODEL = ["--", "--model", str(GOLDEN / "tokenizer")]


def parse(*argv: str, env: dict[str, str] | None = None) -> Config:
    return command_line().parse(argv, env or {})[0]


def keys_of(config: Config) -> tuple[str, ...]:
    return config.with_keys_read().access.api_key


def test_keys_from_everywhere(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\nfirst\n\n  second  # somebody's\nfirst\nschlüssel\n", encoding="utf-8")
    config = parse("--api-key-file", str(file), "--api-key", "third", env={"APP_API_KEY": "a,b"})
    assert keys_of(config) == ("third", "first", "second", "schlüssel")
    assert keys_of(parse(env={"APP_API_KEY": "a, b"})) == ("a", "b")
    settings = config.http_settings()
    assert len(settings.access.keys) == 4 and "first" not in repr(settings)
    assert len({key.id for key in settings.access.keys}) == 4


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--api-key-file", "/does/not/exist"], "--api-key-file: /does/not/exist: No such file"),
        (["--api-key-file", "EMPTY"], "holds no key"),
        (["--api-key-file", "BAD"], "line 2"),
        (["--api-key-file", "BYTES"], "UTF-8"),
        (["--api-key", "two words"], "--api-key"),
        (["--api-key", ""], "--api-key"),
        (["--api-key", "********"], "filled in again"),
        (["--max-concurrent-per-key", "2"], "--max-concurrent-per-key: there are no keys"),
        (["--cache-salt-per-key"], "--cache-salt-per-key: there are no keys"),
        (["--allowed-origins", "*"], "--allowed-origins"),
        (["--allowed-origins", "https://a.example/"], "--allowed-origins"),
        (["--allowed-origins", "chat.example"], "--allowed-origins"),
        (["--root-path", "llm"], "--root-path"),
        (["--root-path", "/llm/"], "--root-path"),
        (["--ssl-certfile", "a"], "--ssl-keyfile"),
        (["--ssl-certfile", "EMPTY", "--ssl-keyfile", "EMPTY"], "cannot be used"),
        (["--max-connections", "0"], "--max-connections"),
        (["--request-timeout", "0"], "--request-timeout"),
    ],
)
def test_refusals_name_the_flag(argv: list[str], said: str, tmp_path: Path) -> None:
    (tmp_path / "EMPTY").write_text("# nobody\n")
    (tmp_path / "BAD").write_text("good\nnot good\n")
    (tmp_path / "BYTES").write_bytes(b"\xff\xfe")
    argv = [str(tmp_path / word) if word.isupper() else word for word in argv]
    with pytest.raises(UsageError) as caught:
        check(parse(*argv))
    assert said in str(caught.value)
    assert "good" not in str(caught.value) and "two words" not in str(caught.value)


def test_keys_are_not_printed() -> None:
    config = parse("--api-key", "secret-one", "secret-two")
    shown = to_toml(config, masked=True)
    assert "secret" not in shown and shown.count("********") == 2
    assert "secret-one" in to_toml(config)
    printed = finish([sys.executable, "-m", "app", "--print-config"], APP_API_KEY="secret-one")
    assert printed.returncode == 0 and "secret-one" not in printed.stdout + printed.stderr


def post(server: Server, key: str, stream: bool = True) -> http.client.HTTPResponse:
    connection = server.connect()
    body = {"prompt": [HOLD if stream else 5], "max_tokens": 100, "stream": stream}
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    connection.request("POST", "/v1/completions", json.dumps(body), headers)
    return connection.getresponse()


def test_several_processes_keep_one_count_of_a_keys_requests() -> None:
    """Four requests at a time, wherever they come in; what a dead process had counted is given back."""
    flags = ["--api-workers", "2", "--api-key", "one", "two", "--max-concurrent-per-key", "4"]
    with serving([*SERVE_ECHO, *MODEL], *flags) as server:
        held = [post(server, "one") for _ in range(4)]
        for answer in held:
            assert answer.status == 200 and '"text":"a"' in read_event(answer)
        for _ in range(4):  # both processes are asked
            answer = post(server, "one", stream=False)
            assert answer.status == 429 and json.loads(answer.read())["error"]["code"] == "queue_full"
            assert post(server, "two", stream=False).status == 200
            assert post(server, "three", stream=False).status == 401
        held.pop().close()
        until(lambda: post(server, "one", stream=False).status == 200)
        killed = fronts(server)[0]
        os.kill(killed, signal.SIGKILL)
        until(lambda: len(fronts(server)) == 2 and killed not in fronts(server))

        def free() -> bool:
            try:
                return [post(server, "one", stream=False).status for _ in range(2)] == [200, 200]
            except (OSError, http.client.HTTPException):
                return False

        until(free)
        assert server.get("/stats") == 401 and server.get("/health") == 200
        server.signal(signal.SIGTERM)
        for answer in held:
            answer.close()
        assert server.wait() == 0


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=60)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self.path)


@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_a_unix_socket(workers: str, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    command = [*SERVE_ECHO, *MODEL, "--uds", path, "--log-format", "json", "--api-workers", workers]
    for _ in range(2):  # the second start finds what the first one left
        process = subprocess.Popen(
            command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        try:
            assert json.loads(process.stdout.readline())["event"] == "ready"
            connection = _UnixConnection(path)
            for _ in range(2):
                connection.request(
                    "POST",
                    "/v1/completions",
                    json.dumps({"prompt": [5]}),
                    {"Content-Type": "application/json"},
                )
                reply = connection.getresponse()
                assert reply.status == 200 and json.loads(reply.read())["choices"][0]["text"] == "\x05"
            other = finish(command)
            assert other.returncode == 98 and path in other.stderr
            connection.close()
        finally:
            process.kill()
            process.communicate()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_tls(workers: str, tmp_path: Path) -> None:
    cert, key = str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    make += ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert]
    try:
        subprocess.run(make, check=True, capture_output=True)
    except FileNotFoundError:
        missing("no openssl is installed")
    flags = ["--ssl-certfile", cert, "--ssl-keyfile", key, "--api-workers", workers]
    context = ssl.create_default_context(cafile=cert)
    with serving([*SERVE_ECHO, *MODEL], *flags) as server:
        connection = http.client.HTTPSConnection("127.0.0.1", server.port, timeout=60, context=context)
        for path in ("/health", "/ready"):
            connection.request("GET", path)
            reply = connection.getresponse()
            assert reply.status == 200 and reply.read()
        connection.close()
        with socket.create_connection(("127.0.0.1", server.port), 60) as plain:
            plain.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"200" not in plain.recv(1000)
