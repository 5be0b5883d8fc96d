"""Answers with a form, through OpenAI's own client and a real server on a model with random weights."""

import enum
import json
from collections.abc import Iterator

import httpx
import pytest
from openai import LengthFinishReasonError, OpenAI
from pydantic import BaseModel, Field

from tests.app.server_process import Server
from tests.app.serving import events
from tests.e2e.conftest import start
from tests.engine.golden import G5

ASK = [{"role": "user", "content": "Name a pet."}]


class Kind(enum.StrEnum):
    CAT = "cat"
    DOG = "dog"


class Owner(BaseModel):
    initials: str = Field(pattern="^[A-Z]{2}$")


class Pet(BaseModel):
    """What the answers have to be."""

    kind: Kind
    age: int = Field(ge=0, le=30)
    owners: list[Owner] = Field(max_length=2)
    home: Owner | None = None


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with start(G5, "--served-model-name", "tiny") as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[OpenAI]:
    url = f"http://127.0.0.1:{server.port}/v1"
    with OpenAI(base_url=url, api_key="unused", max_retries=0, timeout=60) as client:
        yield client


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_parse(client: OpenAI, temperature: float) -> None:
    answer = client.chat.completions.parse(
        model="tiny",
        messages=ASK,
        response_format=Pet,
        n=3,
        seed=5,
        temperature=temperature,  # type: ignore[arg-type]
    )
    assert [choice.finish_reason for choice in answer.choices] == ["stop"] * 3
    for choice in answer.choices:
        assert isinstance(choice.message.parsed, Pet)
        assert json.loads(choice.message.content or "").keys() >= {"kind", "age", "owners"}


def test_a_stream_is_parsed_while_it_comes(client: OpenAI) -> None:
    kinds = []
    with client.chat.completions.stream(
        model="tiny",
        messages=ASK,
        response_format=Pet,
        seed=6,
        extra_body={"return_token_ids": True},  # type: ignore[arg-type]
    ) as stream:
        for event in stream:
            kinds.append(event.type)
        final = stream.get_final_completion()
    assert isinstance(final.choices[0].message.parsed, Pet)
    assert kinds.count("content.delta") > 3 and kinds[-1] != "content.delta"
    whole = client.chat.completions.parse(model="tiny", messages=ASK, response_format=Pet, seed=6)  # type: ignore[arg-type]
    assert whole.choices[0].message.content == final.choices[0].message.content


@pytest.mark.parametrize("stream", [False, True])
def test_what_turns_out_to_be_too_much_is_the_senders_fault(server: Server, stream: bool) -> None:
    """A few characters can ask for more than a matcher may do, which shows only while it works."""
    body = {"prompt": "x", "regex": ".*" * 1000 + "x{20}", "max_tokens": 50, "stream": stream}
    for _ in range(2):
        reply = httpx.post(f"http://127.0.0.1:{server.port}/v1/completions", json=body, timeout=60)
        error = reply.json()["error"] if reply.status_code == 400 else events(reply.text)[-2]["error"]
        assert (error["code"], error["param"]) == ("grammar_failed", "regex"), reply.text
        fine = body | {"regex": "ab", "stream": False}
        reply = httpx.post(f"http://127.0.0.1:{server.port}/v1/completions", json=fine, timeout=60)
        assert reply.json()["choices"][0]["text"] == "ab"


def test_an_answer_that_is_cut_says_so(client: OpenAI) -> None:
    with pytest.raises(LengthFinishReasonError):
        client.chat.completions.parse(model="tiny", messages=ASK, response_format=Pet, max_tokens=2)  # type: ignore[arg-type]


def test_logprobs_usage_and_text_completions(client: OpenAI) -> None:
    answer = client.completions.create(
        model="tiny",
        prompt="It is",
        max_tokens=20,
        logprobs=2,
        extra_body={"structured_outputs": {"choice": ["true", "false"]}},
    )
    (choice,) = answer.choices
    assert choice.text in ("true", "false") and choice.finish_reason == "stop"
    assert answer.usage is not None and choice.logprobs is not None and choice.logprobs.tokens is not None
    assert answer.usage.completion_tokens == len(choice.logprobs.tokens)
