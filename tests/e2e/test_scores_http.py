"""What an evaluation harness asks for and concludes, over HTTP, against the whole text through the model.

The requests are those of lm_eval's `local-completions`: prompts of token ids, echo with one alternative, one
token to be generated; alone or many in one request.
"""

import asyncio
import json
import random
from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import Any

import pytest
import torch

from engine.loader import load_model
from tests.app.server_process import Server
from tests.e2e.api import COMPLETIONS, Api
from tests.e2e.conftest import start
from tests.engine.golden import GOLDEN

# (context, continuation)
Pair = tuple[list[int], list[int]]


@pytest.fixture(scope="module", params=["g5", pytest.param("g1", marks=pytest.mark.slow)])
def golden(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def server(golden: str) -> Iterator[Server]:
    flags = ("--prefill-chunk", "16", "--num-blocks", "40") if golden == "g5" else ()
    with start(GOLDEN / golden, *flags) as server:
        yield server


class Oracle:
    """The model itself, without any engine."""

    def __init__(self, golden: str) -> None:
        self.model = load_model(GOLDEN / golden, dtype="float32")[0]

    @torch.inference_mode()
    def lines(self, ids: list[int]) -> torch.Tensor:
        return torch.log_softmax(self.model(torch.tensor([ids]))[0], -1)  # type: ignore[operator]

    def loglikelihood(self, pair: Pair) -> tuple[float, bool]:
        """Of the continuation, and whether greedy decoding would give it."""
        context, continuation = pair
        lines = self.lines(context + continuation)[len(context) - 1 : -1]
        chosen = lines[torch.arange(len(continuation)), torch.tensor(continuation)]
        return float(chosen.sum()), lines.argmax(-1).tolist() == continuation

    def pairs(self) -> list[Pair]:
        """Random continuations, greedy ones, and greedy ones with a last token that is not."""
        rng = random.Random(3)
        pairs: list[Pair] = []
        for context_length, length in ((1, 1), (5, 3), (40, 20), (70, 8), (17, 2)):
            context = rng.choices(range(503), k=context_length)
            greedy = list(context)
            for _ in range(length):
                greedy.append(int(self.lines(greedy)[-1].argmax()))
            pairs.append((context, rng.choices(range(503), k=length)))
            pairs.append((context, greedy[context_length:]))
            pairs.append((context, [*greedy[context_length:-1], (greedy[-1] + 1) % 503]))
        return pairs


@pytest.fixture(scope="module")
def oracle(golden: str) -> Oracle:
    return Oracle(golden)


def payload(prompt: object) -> dict[str, object]:
    return {
        "model": "",
        "prompt": prompt,
        "temperature": 0,
        "max_tokens": 1,
        "logprobs": 1,
        "seed": 1234,
        "echo": True,
    }


def concluded(body: dict[str, Any], contexts: Sequence[int]) -> list[tuple[float, bool]]:
    """Read as the harness does: the last token is the one that was generated."""
    results = []
    for choice, length in zip(sorted(body["choices"], key=itemgetter("index")), contexts, strict=True):
        values = choice["logprobs"]["token_logprobs"][length:-1]
        tops = choice["logprobs"]["top_logprobs"][length:-1]
        results.append(
            (sum(values), all(v == max(top.values()) for v, top in zip(values, tops, strict=True)))
        )
    return results


async def test_loglikelihoods_alone_together_and_in_batches(api: Api, oracle: Oracle) -> None:
    pairs = oracle.pairs()
    wanted = [oracle.loglikelihood(pair) for pair in pairs]
    assert {greedy for _, greedy in wanted} == {True, False}

    async def ask(some: list[Pair]) -> list[tuple[float, bool]]:
        prompts = [context + continuation for context, continuation in some]
        reply = await api.http.post(COMPLETIONS, json=payload(prompts))
        assert reply.status_code == 200, reply.text
        body = reply.json()
        for choice, prompt in zip(body["choices"], prompts, strict=True):
            lists = choice["logprobs"]
            assert {len(values) for values in lists.values()} == {len(prompt) + 1}
            assert lists["token_logprobs"][0] is None and lists["top_logprobs"][0] is None
        assert body["usage"]["prompt_tokens"] == sum(map(len, prompts))
        assert body["usage"]["completion_tokens"] == len(prompts)
        return concluded(body, [len(context) for context, _ in some])

    found = [
        [(await ask([pair]))[0] for pair in pairs],
        await ask(pairs),
        [result for part in await asyncio.gather(*(ask([pair]) for pair in pairs)) for result in part],
    ]
    assert found[0] == found[1] == found[2]  # in any company, bit for bit
    for (value, greedy), (expected, expected_greedy) in zip(found[0], wanted, strict=True):
        assert value == pytest.approx(expected, abs=1e-3)
        assert greedy == expected_greedy
    await api.until_idle()


async def test_texts_and_streams_say_the_same(api: Api, oracle: Oracle) -> None:
    text = "Once there was a bird."
    reply = (await api.http.post(COMPLETIONS, json=payload(text) | {"return_token_ids": True})).json()
    choice = reply["choices"][0]
    ids, lists = choice["prompt_token_ids"], choice["logprobs"]
    assert choice["text"].startswith(text)
    lines = oracle.lines(ids)
    for place, id in enumerate(ids[1:], 1):
        assert lists["token_logprobs"][place] == pytest.approx(float(lines[place - 1, id]), abs=1e-3)
        best = max(lists["top_logprobs"][place].values())
        assert best == pytest.approx(float(lines[place - 1].max()), abs=1e-3)
        begin = lists["text_offset"][place]
        assert choice["text"].startswith(lists["tokens"][place], begin)
    scored = (await api.http.post(COMPLETIONS, json=payload(ids) | {"max_tokens": 0})).json()
    assert scored["usage"]["completion_tokens"] == 0 and scored["choices"][0]["finish_reason"] == "length"
    assert scored["choices"][0]["logprobs"]["token_logprobs"] == lists["token_logprobs"][:-1]
    vllm = (
        await api.http.post(COMPLETIONS, json={"prompt": ids, "max_tokens": 1, "prompt_logprobs": 0})
    ).json()
    told = [next(iter(entry.values())) for entry in vllm["choices"][0]["prompt_logprobs"][1:]]
    assert [entry["logprob"] for entry in told] == lists["token_logprobs"][1:-1]
    for place, entry in enumerate(told):
        line, id = lines[place], ids[place + 1]
        near = int((line - line[id]).abs().lt(1e-5).sum())
        assert abs(entry["rank"] - 1 - int((line > line[id]).sum())) < max(near, 1)
    joined: dict[str, list[object]] = {name: [] for name in lists}
    async for data in api.events(COMPLETIONS, payload(text) | {"stream": True}):
        for part in [] if data == "[DONE]" else json.loads(data)["choices"]:
            for name, values in (part["logprobs"] or {}).items():
                joined[name] += values
    assert joined == lists


async def test_best_of_is_the_likeliest_of_its_seed(api: Api) -> None:
    ask = {
        "prompt": [5, 6, 7],
        "max_tokens": 8,
        "seed": 11,
        "logprobs": 0,
        "temperature": 1.5,
        "ignore_eos": True,
    }
    every = (await api.http.post(COMPLETIONS, json=ask | {"n": 6})).json()["choices"]
    means = [sum(choice["logprobs"]["token_logprobs"]) / 8 for choice in every]
    order = sorted(range(6), key=lambda k: -means[k])
    chosen = (await api.http.post(COMPLETIONS, json=ask | {"n": 2, "best_of": 6})).json()
    assert [c["text"] for c in chosen["choices"]] == [every[k]["text"] for k in order[:2]]
    assert [c["index"] for c in chosen["choices"]] == [0, 1] and len(set(means)) > 2
    assert chosen["usage"]["completion_tokens"] == 48
