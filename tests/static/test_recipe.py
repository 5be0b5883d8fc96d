"""An answer's request as a curl command and as a Python program: the server gets what the page sent."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import ClassVar

import pytest
from playwright.sync_api import Page

from tests.tiers import tiered

pytestmark = pytest.mark.browser

NASTY = [
    'It\'s "quoted", `whoami`, $(id), $HOME, \\n is no newline, !! and %s',
    "two\nlines\r\nand\ttabs\n\nEND\nEOF\n",
    "'''\"\"\"\\'\\\"\\\\",
    "emoji 👩‍👩‍👧 漢字 עברית \u202eright\u202c \u2028 \u200b \x7f \x1b[31m \u0085",
    "@/etc/passwd & < > | ; # ~ * ? [a] {b,c} 'x'",
    "-d --data",
    "",
]
BODY = {
    "model": "it's a model",
    "messages": [{"role": "user", "content": text} for text in NASTY],
    "temperature": 0.7,
    "top_k": 40,
    "min_p": 0,
    "seed": 9007199254740991,
    "stop": ["'", "\n"],
    "logit_bias": {},
    "response_format": {"type": "json_object"},
    "stream": False,
    "chat_template_kwargs": {"thinking": True, "none": None},
}
ANSWER = {
    "id": "1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Heard."}}],
}


class Echo(BaseHTTPRequestHandler):
    """Keeps what it gets: path, authorization, body."""

    heard: ClassVar[list[tuple[str, str | None, object]]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.heard.append((self.path, self.headers["authorization"], body))
        content = json.dumps(ANSWER).encode()
        kind = "application/json"
        if body.get("stream"):
            delta = {"index": 0, "delta": {"content": "Heard."}, "finish_reason": None}
            chunk = {**ANSWER, "object": "chat.completion.chunk", "choices": [delta]}
            content = f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n".encode()
            kind = "text/event-stream"
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def echo() -> Iterator[str]:
    """The address of a server that says what it heard in `Echo.heard`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join(5)


def recipe(modules: Page, function: str, body: object, address: str, key: bool) -> str:
    script = """async ([name, body, address, key]) =>
      (await import('/static/seeing/recipe.js'))[name](JSON.parse(body), address, { key })"""
    return modules.evaluate(script, [function, json.dumps(body), address, key])


def run(command: list[str], text: str) -> str:
    """Runs a program that comes by its standard input; no proxy may stand between."""
    environment = {**os.environ, "API_KEY": "se'cr\"et", "NO_PROXY": "*", "no_proxy": "*"}
    result = subprocess.run(
        command, input=text, capture_output=True, text=True, env=environment, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("shell", ["bash", "sh"])
@pytest.mark.slow
def test_curl_sends_the_same_request(modules: Page, echo: str, shell: str) -> None:
    text = recipe(modules, "asCurl", BODY, echo + "below/it's/?q=1#x", True)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "Heard." in run([shell], text)
    assert Echo.heard.pop() == ("/below/it's/v1/chat/completions", "Bearer se'cr\"et", BODY)


def test_curl_sends_long_requests_too(modules: Page, echo: str) -> None:
    """Longer than the system lets an argument be."""
    body = {**BODY, "messages": [{"role": "user", "content": "it's 'END'\nEND\n$(id) é " * 20_000}]}
    run(["bash"], recipe(modules, "asCurl", body, echo, False))
    assert Echo.heard.pop() == ("/v1/chat/completions", None, body)


@pytest.mark.parametrize("stream", tiered([False, True], {1}))
def test_python_sends_the_same_request(modules: Page, echo: str, stream: bool) -> None:
    pytest.importorskip("openai")
    body = {**BODY, "stream": stream}
    text = recipe(modules, "asPython", body, echo, True)
    compile(text, "recipe.py", "exec")
    assert run([sys.executable, "-"], text) == "Heard.\n"
    path, key, heard = Echo.heard.pop()
    assert (path, key, heard) == ("/v1/chat/completions", "Bearer se'cr\"et", body)


def test_python_without_key_or_model(modules: Page) -> None:
    text = recipe(modules, "asPython", {"messages": []}, "https://host/x/v1/chat/completions", False)
    compile(text, "recipe.py", "exec")
    assert 'base_url="https://host/x/v1", api_key="none"' in text
    assert "model=client.models.list().data[0].id" in text
    assert "API_KEY" not in text
    assert "extra_body" not in text
