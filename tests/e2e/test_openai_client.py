"""OpenAI's own Python client against the real server."""

import math
import random
from collections.abc import Iterator

import httpx
import openai
import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam

from tests.app.server_process import Server
from tests.e2e.conftest import start
from tests.engine.blocks import outside_blocks
from tests.engine.checkpoints import golden_tokenizer
from tests.engine.golden import G5

MODEL = "tiny"
MESSAGES: list[ChatCompletionMessageParam] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Grüße! 空 🌤️"},
]
# With random weights the end of the answer may come at any token.
ENDLESS = {"ignore_eos": True}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with start(G5, "--served-model-name", MODEL, "other-name") as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[OpenAI]:
    url = f"http://127.0.0.1:{server.port}/v1"
    with OpenAI(base_url=url, api_key="unused", max_retries=0, timeout=60) as client:
        yield client


def test_models(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL, "other-name"]
    model = client.models.retrieve(MODEL)
    assert (model.id, model.object) == (MODEL, "model")
    assert model.created > 0
    with pytest.raises(openai.NotFoundError) as raised:
        client.models.retrieve("nobody/nothing")
    assert raised.value.code == "model_not_found"


def test_create(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_completion_tokens=12, temperature=0, extra_body=ENDLESS
    )
    assert answer.object == "chat.completion" and answer.model == MODEL
    assert answer.id.startswith("chatcmpl-")
    (choice,) = answer.choices
    assert (choice.index, choice.finish_reason, choice.message.role) == (0, "length", "assistant")
    assert choice.message.content
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 12
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 12
    assert answer._request_id


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 1.2, "seed": 11}], ids=str)
@pytest.mark.parametrize("stop", [None, ["\n", " the", "e"]], ids=["no stop", "stops"])
def test_chat_stream_equals_plain(client: OpenAI, sampling: dict[str, float], stop: list[str] | None) -> None:
    fields = {"messages": MESSAGES, "max_tokens": 60, "stop": stop, "extra_body": ENDLESS, **sampling}
    plain = client.chat.completions.create(model=MODEL, **fields)  # type: ignore[call-overload]
    stream = client.chat.completions.create(  # type: ignore[call-overload]
        model=MODEL, stream=True, stream_options={"include_usage": True}, **fields
    )
    chunks = list(stream)
    *with_choice, last = chunks
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert with_choice[0].choices[0].delta.role == "assistant"
    assert all(len(chunk.choices) == 1 and chunk.usage is None for chunk in with_choice)
    assert last.choices == [] and last.usage == plain.usage.model_copy(
        update={"prompt_tokens_details": last.usage.prompt_tokens_details}
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in with_choice)
    assert text == plain.choices[0].message.content
    reasons = [chunk.choices[0].finish_reason for chunk in with_choice]
    assert reasons == [None] * (len(reasons) - 1) + [plain.choices[0].finish_reason]


def test_stream_helper(client: OpenAI) -> None:
    plain = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=40, temperature=0, extra_body=ENDLESS
    )
    full = plain.choices[0].message.content or ""
    stop = full[-3:]  # the helper takes an end by length for an error
    text = ""
    with client.chat.completions.stream(
        model=MODEL,
        messages=MESSAGES,
        max_tokens=40,
        temperature=0,
        stop=stop,
        logprobs=True,
        top_logprobs=2,
        stream_options={"include_usage": True},
        extra_body=ENDLESS,
    ) as stream:
        for event in stream:
            if event.type == "content.delta":
                text += event.delta
        final = stream.get_final_completion()
    assert text == final.choices[0].message.content == full[: full.index(stop)]
    assert final.choices[0].finish_reason == "stop"
    logprobs = final.choices[0].logprobs
    assert final.usage is not None and logprobs is not None and logprobs.content is not None
    assert 0 < len(logprobs.content) == final.usage.completion_tokens <= 40


def test_several_choices(client: OpenAI) -> None:
    one = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=16, seed=5, extra_body=ENDLESS
    )
    many = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=16, seed=5, n=2, extra_body=ENDLESS
    )
    texts = [choice.message.content for choice in many.choices]
    assert texts[0] == one.choices[0].message.content
    assert texts[0] != texts[1]
    assert many.usage is not None and many.usage.completion_tokens == 32
    streamed = {0: "", 1: ""}
    reasons: dict[int, str] = {}
    for chunk in client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=16, seed=5, n=2, stream=True, extra_body=ENDLESS
    ):
        (choice,) = chunk.choices
        assert choice.index not in reasons, "a chunk came after its choice's end"
        streamed[choice.index] += choice.delta.content or ""
        if choice.finish_reason:
            reasons[choice.index] = choice.finish_reason
    assert [streamed[0], streamed[1]] == texts
    assert reasons == {0: "length", 1: "length"}


def test_logprobs(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        max_tokens=16,
        temperature=0,
        logprobs=True,
        top_logprobs=3,
        extra_body=ENDLESS,
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    assert len(logprobs.content) == 16
    for item in logprobs.content:
        assert len(item.top_logprobs) == 3
        values = [top.logprob for top in item.top_logprobs]
        assert values == sorted(values, reverse=True)
        assert item.logprob == values[0]  # greedy
        assert sum(math.exp(value) for value in values) <= 1.0001
        assert item.bytes is not None
    plain_bytes = (answer.choices[0].message.content or "").encode()
    spelled = b"".join(
        bytes(item.bytes or ()) for item in logprobs.content if not item.token.startswith("<|")
    )
    assert spelled.decode(errors="replace").encode() == plain_bytes
    old = client.completions.create(model=MODEL, prompt="Hello", max_tokens=8, logprobs=2, extra_body=ENDLESS)
    lists = old.choices[0].logprobs
    assert lists is not None
    assert lists.tokens is not None and lists.token_logprobs is not None
    assert lists.top_logprobs is not None and lists.text_offset is not None
    assert len(lists.tokens) == len(lists.token_logprobs) == len(lists.top_logprobs) == 8
    for token, value, top in zip(lists.tokens, lists.token_logprobs, lists.top_logprobs, strict=True):
        assert top[token] == value


def test_completions_with_lists_of_prompts(client: OpenAI) -> None:
    alone = [
        client.completions.create(
            model=MODEL, prompt=prompt, max_tokens=10, temperature=0, extra_body=ENDLESS
        )
        for prompt in ("Hello", "空")
    ]
    texts = [answer.choices[0].text for answer in alone]
    together = client.completions.create(
        model=MODEL, prompt=["Hello", "空"], max_tokens=10, temperature=0, extra_body=ENDLESS
    )
    assert [(c.index, c.text) for c in together.choices] == [(0, texts[0]), (1, texts[1])]
    assert together.usage is not None and together.usage.completion_tokens == 20
    assert together.usage.prompt_tokens == sum(a.usage.prompt_tokens for a in alone if a.usage)
    # BOS and "Hello" of the golden vocabulary, as ids: used as they are.
    ids = client.completions.create(
        model=MODEL,
        prompt=[[503, 72, 101, 108, 108, 111], [503, 72, 101]],
        max_tokens=10,
        temperature=0,
        extra_body=ENDLESS | {"return_token_ids": True},
    )
    assert ids.choices[0].text == texts[0]
    assert len(ids.choices[1].token_ids) == 10  # type: ignore[attr-defined]
    streamed = ["", ""]
    for chunk in client.completions.create(
        model=MODEL, prompt=["Hello", "空"], max_tokens=10, temperature=0, stream=True, extra_body=ENDLESS
    ):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == texts


@pytest.mark.parametrize(
    ("param", "code", "fields"),
    [
        ("temperature", "out_of_range", {"temperature": 7}),
        ("max_tokens", "context_length_exceeded", {"max_tokens": 100_000}),
        ("messages[0].role", "invalid_value", {"messages": [{"role": "nobody", "content": "x"}]}),
        ("messages", "invalid_value", {"messages": []}),
        ("logit_bias", "out_of_range", {"logit_bias": {"512": 1}}),
        ("tools", "unsupported_parameter", {"tools": [{"type": "function", "function": {"name": "f"}}]}),
        ("n", "out_of_range", {"n": 0}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_bad_requests_name_their_field(
    client: OpenAI, param: str, code: str, fields: dict[str, object], stream: bool
) -> None:
    body: dict[str, object] = {"model": MODEL, "messages": MESSAGES, "stream": stream} | fields
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(**body)  # type: ignore[call-overload]
    assert (raised.value.param, raised.value.code) == (param, code)
    assert raised.value.request_id


def test_ids_outside_the_vocabulary(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.completions.create(model=MODEL, prompt=[503, 512])
    assert (raised.value.param, raised.value.code) == ("prompt[1]", "out_of_range")


def test_an_unknown_model(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as raised:
        client.chat.completions.create(model="nobody/nothing", messages=MESSAGES)
    assert (raised.value.param, raised.value.code) == ("model", "model_not_found")


def test_the_text_is_that_of_the_tokens(client: OpenAI) -> None:
    """Random weights write much broken UTF-8, cut anywhere: no stream may add to it or lose of it."""
    tokenizer = golden_tokenizer()
    letters = random.Random(0)
    for k in range(8):
        prompt = "".join(letters.choices("ab é空🌤️م\n", k=1 + 4 * k))
        fields = {"model": MODEL, "prompt": prompt, "max_tokens": 48, "seed": k}
        extra = ENDLESS | {"return_token_ids": True}
        plain = client.completions.create(**fields, extra_body=extra)  # type: ignore[call-overload]
        (choice,) = plain.choices
        written = tokenizer.decode(outside_blocks(tokenizer, choice.token_ids))
        assert choice.text == written
        stop = written[len(written) // 2 :][:3]
        for stops, expected in ((None, written), ([stop, "never there"], written[: written.index(stop)])):
            stream = client.completions.create(  # type: ignore[call-overload]
                **fields, stop=stops, stream=True, extra_body=ENDLESS
            )
            assert "".join(chunk.choices[0].text for chunk in stream) == expected


def test_bad_words_are_never_written(client: OpenAI) -> None:
    """Random weights write many letters; those that are forbidden vanish, alone and with a space in front."""
    tokenizer = golden_tokenizer()

    def written(bad: list[str]) -> list[int]:
        answer = client.completions.create(
            model=MODEL,
            prompt="Hello",
            max_tokens=200,
            seed=3,
            temperature=1.5,
            extra_body=ENDLESS | {"return_token_ids": True, "bad_words": bad},
        )
        ids: list[int] = answer.choices[0].token_ids  # type: ignore[attr-defined]
        return ids

    single = [
        text
        for id in dict.fromkeys(written([]))
        if (text := tokenizer.decode([id])).isalnum() and tokenizer.encode(text) == [id]
    ]
    words = single[:20]
    assert len(words) > 5
    ids = written(words)
    assert not {tokenizer.encode(word)[0] for word in words} & set(ids)
    assert not {t[0] for word in words if len(t := tokenizer.encode(" " + word)) == 1} & set(ids)


def test_a_prompt_is_the_same_by_every_way(client: OpenAI, server: Server) -> None:
    url = f"http://127.0.0.1:{server.port}"
    body = {"messages": MESSAGES}
    rendered = httpx.post(f"{url}/v1/chat/completions/render", json=body).json()
    assert httpx.post(f"{url}/tokenize", json=body).json()["tokens"] == rendered["tokens"]
    back = httpx.post(f"{url}/detokenize", json={"tokens": rendered["tokens"]}).json()
    assert back["prompt"] == rendered["prompt"]
    fields = {"max_tokens": 20, "temperature": 0, "extra_body": ENDLESS}
    chat = client.chat.completions.create(model=MODEL, messages=MESSAGES, **fields)  # type: ignore[call-overload]
    text = client.completions.create(model=MODEL, prompt=rendered["tokens"], **fields)  # type: ignore[call-overload]
    assert chat.usage.prompt_tokens == text.usage.prompt_tokens == rendered["count"]
    assert chat.choices[0].message.content == text.choices[0].text
    assert httpx.get(f"{url}/health_generate").json()["status"] == "ok"
