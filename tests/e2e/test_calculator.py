"""The model that comes along is asked for sums: what it asks its calculator is no part of the answer."""

from collections.abc import Iterator

import httpx
import pytest
from openai import OpenAI

from tests.app.server_process import ROOT, Server
from tests.e2e.conftest import start
from tests.tiers import tiered

SUMS = [(347, 286), (62, 143)]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with start(ROOT / "models") as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[OpenAI]:
    url = f"http://127.0.0.1:{server.port}/v1"
    with OpenAI(base_url=url, api_key="unused", max_retries=0, timeout=60) as client:
        yield client


@pytest.mark.parametrize(("a", "b"), tiered(SUMS, {0}))
def test_a_sum(client: OpenAI, a: int, b: int) -> None:
    model = client.models.list().data[0].id

    def asked(**more: object) -> dict[str, object]:
        messages = [{"role": "user", "content": f"What is {a} + {b}?"}]
        return {"model": model, "messages": messages, "max_tokens": 60, "temperature": 0, **more}

    shown = client.chat.completions.create(**asked(extra_body={"skip_special_tokens": False}))  # type: ignore[call-overload]
    marked = shown.choices[0].message.content.removesuffix("<|assistant_end|>")
    block = f"<|python_start|>{a}+{b}<|python_end|><|output_start|>{a + b}<|output_end|>"
    assert block in marked, "the model did not use its calculator"
    text = marked.replace(block, "")
    assert str(a + b) in text and "<|" not in text

    plain = client.chat.completions.create(**asked())  # type: ignore[call-overload]
    assert plain.choices[0].message.content == text
    assert plain.choices[0].finish_reason == "stop"
    assert plain.usage.completion_tokens == shown.usage.completion_tokens

    stream = client.chat.completions.create(  # type: ignore[call-overload]
        **asked(stream=True, stream_options={"include_usage": True})
    )
    *events, last = list(stream)
    deltas = [event.choices[0].delta.content for event in events]
    assert "".join(delta or "" for delta in deltas) == text
    assert all(deltas[1:-1]), "an event without text"  # the first has the role, the last the end
    assert last.usage.completion_tokens == plain.usage.completion_tokens

    logged = client.chat.completions.create(**asked(logprobs=True))  # type: ignore[call-overload]
    items = logged.choices[0].logprobs.content
    assert len(items) == plain.usage.completion_tokens
    joined = b"".join(bytes(item.bytes) for item in items if item.token != "<|assistant_end|>")
    assert joined.decode() == text
    assert block in "".join(item.token for item in items)

    # Cut inside of the block: the text before it.
    at = [item.token for item in items].index("<|python_end|>")
    cut = client.chat.completions.create(**asked() | {"max_tokens": at})  # type: ignore[call-overload]
    assert cut.choices[0].message.content == marked.split("<|")[0]
    assert cut.choices[0].finish_reason == "length"


def test_nanochats_route_shows_everything(server: Server) -> None:
    """Its clients read the marks."""
    body = {"messages": [{"role": "user", "content": "What is 347 + 286?"}], "temperature": 0}
    reply = httpx.post(f"http://127.0.0.1:{server.port}/chat/completions", json=body, timeout=60)
    assert "<|python_start|>" in reply.text and "<|output_end|>" in reply.text
