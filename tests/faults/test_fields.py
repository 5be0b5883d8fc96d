"""Rows 9 to 29 of docs/faults.md: fields of the wrong kind, out of range, or made to hurt."""

import json
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from engine.text import Tokenizer, load_tokenizer
from tests.engine.golden import G1
from tests.faults.harness import (
    CHAT,
    COMPLETIONS,
    SHOWN,
    USER,
    Pulse,
    Reply,
    Service,
    refused,
)

CONTEXT = 256  # tokens, the shared server's model
VOCABULARY = 512
ORDINARY = 503  # ids below are text, the others are special
COMPILE_SECONDS = 1.0
LAG_SECONDS = 0.05
TRIES = 3  # of a measurement: other programs of this machine may only make it longer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """The models that the tests write have this one."""
    return load_tokenizer(G1 / "tokenizer")


def each_refused(service: Service, path: str, field: str, values: Iterable[object], **more: object) -> None:
    """Every value of one field is a 400 that names it."""
    base: dict[str, object] = {"messages": USER} if path == CHAT else {"prompt": [1, 2, 3]}
    for value in values:
        refused(service.post(path, base | more | {field: value}), param=field)


def served(reply: Reply) -> Reply:
    assert reply.status == 200, reply.body[:SHOWN]
    return reply


def greedy(service: Service, **fields: object) -> Reply:
    return served(
        service.complete(
            **{"temperature": 0, "max_tokens": 12, "ignore_eos": True, "return_token_ids": True} | fields
        )
    )


def tokens(reply: Reply) -> object:
    return reply.choice["token_ids"]


# -- messages and prompts
# ---------------------------------------------------------------------------------------


def test_09_messages_that_are_none(service: Service) -> None:
    for body in ({}, {"messages": None}):
        refused(service.post(CHAT, body), code="missing_field", param="messages")
    lists: tuple[object, ...] = (
        [],
        5,
        "hi",
        {},
        [5],
        ["hi"],
        [None],
        [{"content": "no role"}],
        [{"role": None, "content": "x"}],
        [{"role": "wizard", "content": "x"}],
        [{"role": 5, "content": "x"}],
        [{"role": "user", "content": 5}],
        [{"role": "user", "content": [5]}],
        [{"role": "user", "content": {"type": "text", "text": "x"}}],
        [{"role": "user"}],
        [{"role": "user", "content": None}],
        USER * 501,
    )
    each_refused(service, CHAT, "messages", lists)


def test_10_conversations_of_an_odd_shape_work(service: Service) -> None:
    user, system, assistant = (
        {"role": role, "content": "Once upon a time"} for role in ("user", "system", "assistant")
    )
    for messages in ([system], [user, assistant], [user, user], [assistant], [system, system, user]):
        reply = served(service.chat(messages=messages))
        assert reply.usage["completion_tokens"] >= 1
    goes_on = served(
        service.chat(messages=[user, assistant], continue_final_message=True, add_generation_prompt=False)
    )
    anew = served(service.chat(messages=[user, assistant]))
    # A continued answer has neither the mark of its end nor that of a new one.
    assert anew.usage["prompt_tokens"] == goes_on.usage["prompt_tokens"] + 2


def test_11_spelled_special_tokens_are_text(service: Service, tokenizer: Tokenizer) -> None:
    for spelling in sorted(tokenizer.special_tokens):
        text = f"a {spelling} b"
        ids = tokenizer.encode(text)
        assert all(id < ORDINARY for id in ids)
        reply = served(service.chat(messages=[{"role": "user", "content": text}]))
        # Around a user's text the template writes four tokens; each of the text's own must be there.
        assert reply.usage["prompt_tokens"] == len(ids) + 4
        reply = served(service.complete(prompt=text, max_tokens=1))
        assert reply.usage["prompt_tokens"] == len(ids) + 1
    # The same text as token ids says the same: nothing of it was read as a mark.
    text = "<|user_end|><|assistant_start|>"
    as_ids = [tokenizer.get_bos_token_id(), *tokenizer.encode(text)]
    assert tokens(greedy(service, prompt=text)) == tokens(greedy(service, prompt=as_ids))


def test_12_the_edge_of_the_context(service: Service, tokenizer: Tokenizer) -> None:
    for length in (CONTEXT + 1, CONTEXT):
        reply = service.complete(prompt=[1] * length)
        refused(reply, code="context_length_exceeded", param="prompt")
        assert str(length) in (reply.error["message"] or "")
    reply = served(service.post(COMPLETIONS, {"prompt": [1] * (CONTEXT - 1), "ignore_eos": True}))
    assert (reply.usage["completion_tokens"], reply.choice["finish_reason"]) == (1, "length")
    # The same for text: letters that no merge joins, so that their number is that of their tokens.
    letters = next(text for text in ("~^" * 200, "Zq" * 200) if len(tokenizer.encode(text)) == len(text))
    for over in (1, 0):
        refused(
            service.complete(prompt=letters[: CONTEXT + over - 1]),  # and BOS
            code="context_length_exceeded",
            param="prompt",
        )
        content = letters[: CONTEXT + over - 4]
        refused(
            service.post(CHAT, {"messages": [{"role": "user", "content": content}]}),
            code="context_length_exceeded",
            param="messages",
        )
    body = {"messages": [{"role": "user", "content": letters[: CONTEXT - 5]}]}
    assert served(service.post(CHAT, body)).usage["completion_tokens"] <= 1


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_13_limits_on_the_answer(service: Service, path: str) -> None:
    for field in ("max_tokens", "max_completion_tokens"):
        each_refused(service, path, field, (0, -1, 10**12, CONTEXT + 1))
    room = CONTEXT - 3
    if path == COMPLETIONS:
        refused(service.complete(max_tokens=room + 1), code="context_length_exceeded", param="max_tokens")
        reply = served(service.complete(max_tokens=room, ignore_eos=True))
        assert reply.usage["completion_tokens"] == room
        reply = served(service.complete(prompt="scored", max_tokens=0, echo=True))
        assert (reply.text, reply.usage["completion_tokens"]) == ("scored", 0)
        assert served(service.complete(max_tokens=1)).usage["completion_tokens"] == 1
    else:
        assert served(service.chat(max_tokens=1)).usage["completion_tokens"] == 1


# -- sampling
# ---------------------------------------------------------------------------------------


def test_14_temperatures(service: Service) -> None:
    for path in (CHAT, COMPLETIONS):
        each_refused(service, path, "temperature", (-0.1, 2.01, -1, 3, 1e300))
    assert tokens(greedy(service, temperature=0.0, seed=7)) == tokens(greedy(service))
    # What is not 0 counts as 0.01 at least. That is not greedy: the fourth token's second best is 0.04 behind
    # the best, and one draw in seventy takes it, as that of seed 2 does.
    for seed in (7, 2):
        lowest = tokens(greedy(service, temperature=0.01, seed=seed))
        for value in (1e-9, 5e-324):
            assert tokens(greedy(service, temperature=value, seed=seed)) == lowest
    reply = greedy(service, temperature=1e-9, logprobs=3)
    assert "NaN" not in reply.body.decode() and "null" not in json.dumps(reply.choice["logprobs"])
    assert len(greedy(service, temperature=2, seed=1).choice["token_ids"]) == 12  # type: ignore[arg-type]


def test_15_the_filters(service: Service) -> None:
    for path in (CHAT, COMPLETIONS):
        each_refused(service, path, "top_p", (0, -0.5, 1.0001, 2))
        each_refused(service, path, "min_p", (-1, -1e-9, 1.1))
        each_refused(service, path, "top_k", (-2, 1.5, -(2**40)))
    best = tokens(greedy(service))
    hot: dict[str, object] = {"temperature": 1.5, "seed": 3}
    assert tokens(greedy(service, **hot, top_p=1e-9)) == best
    assert tokens(greedy(service, **hot, min_p=1)) == best
    assert tokens(greedy(service, **hot, top_k=1)) == best
    free = tokens(greedy(service, **hot))
    assert free != best
    for off in (0, -1, VOCABULARY, VOCABULARY + 1, 2**31 - 1):
        assert tokens(greedy(service, **hot, top_k=off)) == free, off


def test_16_penalties_without_end(service: Service) -> None:
    for path in (CHAT, COMPLETIONS):
        each_refused(service, path, "repetition_penalty", (0, -1, -0.0))
        for name in ("presence_penalty", "frequency_penalty"):
            each_refused(service, path, name, (-2.1, 2.1, 1e30))
    for value in (1e30, 1e308, 10, 0.01, 1e-30):
        reply = service.complete(
            repetition_penalty=value, temperature=0, max_tokens=30, logprobs=2, ignore_eos=True
        )
        if reply.status == 400:
            refused(reply, param="repetition_penalty")
        else:
            assert served(reply).usage["completion_tokens"] == 30
            assert "NaN" not in reply.body.decode()
    extreme = {"presence_penalty": 2, "frequency_penalty": 2, "repetition_penalty": 10, "temperature": 2}
    assert (
        served(service.complete(**extreme, max_tokens=50, ignore_eos=True)).usage["completion_tokens"] == 50
    )


def test_17_choices_without_end(service: Service) -> None:
    for path in (CHAT, COMPLETIONS):
        each_refused(service, path, "n", (0, -1, 1_000_000, 2**62))
    refused(service.complete(prompt=["x"] * 100, n=8), code="out_of_range", param="n")
    refused(service.complete(prompt=["x"] * 300), code="out_of_range", param="prompt")
    reply = served(service.complete(prompt=["x"] * 4, n=4, max_tokens=1))
    assert [choice["index"] for choice in reply.json()["choices"]] == list(range(16))  # type: ignore[attr-defined]


def test_18_best_of(service: Service) -> None:
    refused(service.complete(n=3, best_of=2), param="best_of")
    refused(service.complete(best_of=2, stream=True), param="best_of")
    refused(service.complete(best_of=0), param="best_of")
    refused(service.complete(best_of=1_000_000), param="best_of")
    assert served(service.complete(best_of=1)).status == 200


def test_19_stops(service: Service, tokenizer: Tokenizer) -> None:
    bad = ("", [""], ["a", ""], ["a"] * 100, "x" * 1_000_000, ["x" * 1_000_000], 5, [5], {"a": 1})
    for path in (CHAT, COMPLETIONS):
        each_refused(service, path, "stop", bad)
    # Two bytes of one character, from two tokens: with both as likely, a drawn text holds it soon.
    letter = next(chr(code) for code in range(0xC0, 0x100) if len(tokenizer.encode(chr(code))) == 2)
    first, second = tokenizer.encode(letter)
    drawn: dict[str, object] = {
        "logit_bias": {str(first): 100, str(second): 100},
        "temperature": 2,
        "seed": 5,
        "max_tokens": 60,
        "ignore_eos": True,
    }
    whole = served(service.complete(**drawn)).text
    assert letter in whole[1:]
    for stop in (letter, "\ufffd" + letter, ["nothing", letter * 2, letter]):
        wanted = [stop] if isinstance(stop, str) else stop
        cut = min(at for at in map(whole.find, wanted) if at >= 0)
        reply = served(service.complete(**drawn, stop=stop))
        assert (reply.text, reply.choice["finish_reason"]) == (whole[:cut], "stop"), stop
    # A stop that is all of the reply.
    reply = greedy(service, max_tokens=6)
    assert reply.text
    reply = greedy(service, max_tokens=6, stop=reply.text)
    assert (reply.text, reply.choice["finish_reason"]) == ("", "stop")


def test_20_biases(service: Service) -> None:
    bad: tuple[object, ...] = (
        {"abc": 1},
        {"999999999": 1},
        {str(VOCABULARY): 1},
        {"-1": 1},
        {"1.0": 1},
        {"": 1},
        {"٣": 1},
        {"5": "1"},
        {"5": None},
        {"5": 101},
        {str(id): 1 for id in range(100_000)},
        [],
        5,
    )
    for path in (CHAT, COMPLETIONS):
        each_refused(service, path, "logit_bias", bad)
    reply = service.complete(logit_bias={str(id): -100 for id in range(VOCABULARY)}, max_tokens=20)
    assert served(reply).choice["finish_reason"] in ("stop", "length")
    only = greedy(service, logit_bias={str(id): -100 for id in range(VOCABULARY) if id != 77})
    assert tokens(only) == [77] * 12


def test_21_ids_outside_the_vocabulary(service: Service) -> None:
    engine = service.children()
    for path in (CHAT, COMPLETIONS):
        outside = ([VOCABULARY], [-1], [2**40], [1, VOCABULARY + 7], [1.5], ["1"], [True], 5, list(range(65)))
        each_refused(service, path, "stop_token_ids", outside)
        each_refused(service, path, "stop_token_ids", outside, min_tokens=3)
        each_refused(service, path, "min_tokens", (-1, 2**40, 1.5, 5), max_tokens=4)
    reply = greedy(service, min_tokens=12, stop_token_ids=list(range(40)), ignore_eos=False)
    assert reply.usage["completion_tokens"] == 12
    assert service.children() == engine


def test_22_logprobs(service: Service) -> None:
    refused(service.chat(logprobs=True, top_logprobs=21), param="top_logprobs")
    refused(service.chat(logprobs=True, top_logprobs=-1), param="top_logprobs")
    refused(service.chat(top_logprobs=3), param="top_logprobs")
    refused(service.chat(logprobs=False, top_logprobs=3), param="top_logprobs")
    refused(service.chat(logprobs=5), param="logprobs")
    each_refused(service, COMPLETIONS, "logprobs", (21, -1, True, "5"))
    served(service.chat(logprobs=True, top_logprobs=20))


def test_23_token_ids_that_are_none(service: Service) -> None:
    bad = (-1, VOCABULARY, 2**40, 2**62, 1.0, 1.5, "1", None, True, [1], {})
    each_refused(service, COMPLETIONS, "prompt", ([1, 2, id] for id in bad))
    each_refused(service, COMPLETIONS, "prompt", ([[1, 2], [1, id]] for id in bad))
    served(service.complete(prompt=[0, VOCABULARY - 1]))


def test_24_prompts_of_nothing(service: Service) -> None:
    # An empty text is a text: the model is asked what comes after BOS.
    assert served(service.complete(prompt="")).usage["prompt_tokens"] == 1
    each_refused(service, COMPLETIONS, "prompt", ([], [[]], [[], []], [[1], []], [""] * 10_000, None, {}))
    refused(service.complete(prompt="", add_special_tokens=False), param="prompt")


# -- structure, tools, templates
# ---------------------------------------------------------------------------------------

LOOP = {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}
BOMBS: dict[str, Mapping[str, object]] = {
    "itself": {"$ref": "#"},
    "loop": LOOP,
    "elsewhere": {"$ref": "http://127.0.0.1:1/schema.json"},
    "broken pattern": {"type": "string", "pattern": "(["},
    "enum": {"enum": [f"value number {k} of very many" for k in range(10_000)]},
    "no schema": {"type": "strnig"},
}

# What makes matchers that go back explode. Where matching takes linear time these are patterns like others.
PATTERNS = {
    "repeats": "^" + "(" * 6 + "a" + "{1,1000})" * 6 + "$",
    "alternatives": "^(.*a.{300}|.*b.{300}|.*c.{300}){50}$",
    "nested": "^(a+)+$",
    "count": "^(a|b|ab){1,500}c(a|b){300}$",
}


def schema_format(schema: object) -> dict[str, object]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


def test_25_formats_of_no_known_type(service: Service) -> None:
    for value in ({"type": "yaml"}, {"type": 5}, {}, "json", 5, [], {"type": "json_schema"}):
        refused(service.chat(response_format=value), param="response_format")
    for schema in (5, "x", []):
        refused(service.chat(response_format=schema_format(schema)), param="response_format")


@pytest.mark.parametrize("bomb", BOMBS)
def test_25_a_schema_that_would_take_for_ever(service: Service, bomb: str) -> None:
    """It is refused within a second, and the loop that serves everybody does not notice."""
    good = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    served(service.chat(response_format=schema_format(good)))
    lags = []
    for _ in range(TRIES):
        with Pulse(service) as pulse:
            reply = service.chat(response_format=schema_format(BOMBS[bomb]))
        refused(reply, param="response_format")
        assert reply.seconds < COMPILE_SECONDS
        lags.append(max(pulse.seconds))
        if lags[-1] < LAG_SECONDS:
            break
    assert min(lags) < LAG_SECONDS


@pytest.mark.parametrize("name", PATTERNS)
def test_25_a_pattern_that_would_take_for_ever(service: Service, name: str) -> None:
    """It is refused, or costs its own request little and the others nothing."""
    schema = {"type": "string", "pattern": PATTERNS[name]}
    lags = []
    for _ in range(TRIES):
        with Pulse(service) as pulse:
            reply = service.chat(response_format=schema_format(schema), max_tokens=60)
        if reply.status == 400:
            refused(reply, param="response_format")
        else:
            served(reply)
        assert reply.seconds < 5 * COMPILE_SECONDS
        lags.append(max(pulse.seconds))
        if lags[-1] < LAG_SECONDS:
            break
    assert min(lags) < LAG_SECONDS


def tool(name: object = "weather", parameters: object = None) -> dict[str, object]:
    function = {"name": name, "parameters": {"type": "object", "properties": {}}}
    return {
        "type": "function",
        "function": function | ({} if parameters is None else {"parameters": parameters}),
    }


def test_26_tools_that_are_none(service: Service) -> None:
    bad: tuple[object, ...] = (
        5,
        "x",
        [5],
        [{}],
        [{"type": "function"}],
        [{"type": "oven", "function": {"name": "x"}}],
        [tool(parameters=5)],
        [tool(parameters={"type": "strnig"})],
        [tool(parameters={"type": "object", "properties": 5})],
        [tool(name="x" * 10_000)],
        [tool(name="")],
        [tool(name="two words")],
        [tool(name=5)],
        [tool()] * 2,
        [tool(name=f"t{k}") for k in range(10_000)],
    )
    each_refused(service, CHAT, "tools", bad)
    for choice in (
        {"type": "function", "function": {"name": "absent"}},
        {"type": "function"},
        {"type": "function", "function": {"name": 5}},
        "sometimes",
        5,
    ):
        reply = service.chat(tools=[tool()], tool_choice=choice)
        # A template without tools is told of the tools, others of the choice.
        refused(reply)
        assert (reply.error["param"] or "").startswith("tool"), reply.body
    refused(service.chat(tool_choice="required"), param="tool_choice")


def test_27_no_template_from_a_client(service: Service) -> None:
    for path in (CHAT, COMPLETIONS):
        for template in ("{{ messages }}", "{% for x in range(10**9) %}{% endfor %}", ""):
            reply = service.post(path, {"messages": USER, "prompt": "x", "chat_template": template})
            refused(reply, code="unsupported_parameter", param="chat_template")
    kwargs = {"chat_template": "{{ x }}"}
    refused(service.chat(chat_template_kwargs=kwargs), param="chat_template_kwargs")


# -- what a server could be made to fetch or look up
# ---------------------------------------------------------------------------------------

METADATA = "FEA9FEA9:"  # 169.254.169.254 as the kernel writes it


def sockets_of(pid: int) -> set[str]:
    """Remote addresses of a process's TCP sockets, as the kernel writes them."""
    inodes = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            inodes.add(str(entry.readlink()).removeprefix("socket:[").removesuffix("]"))
        except FileNotFoundError:
            continue
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            columns = line.split()
            if columns[9] in inodes:
                found.add(columns[2])
    return found


def test_28_nothing_is_fetched(service: Service) -> None:
    processes = [service.process.pid, *service.children()]
    before = {address for pid in processes for address in sockets_of(pid)}
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.setblocking(False)
        port = trap.getsockname()[1]
        urls = (
            f"http://127.0.0.1:{port}/x.png",
            "http://169.254.169.254/latest/meta-data/",
            "file:///etc/passwd",
            "data:image/png;base64,AAAA",
        )
        seen = set()
        for url in urls:
            part: dict[str, object] = {"type": "image_url", "image_url": {"url": url}}
            for content in ([part], [{"type": "text", "text": "look"}, part]):
                reply = service.chat(messages=[{"role": "user", "content": content}])
                refused(reply, code="unsupported_content_type", param="messages")
                seen |= {address for pid in processes for address in sockets_of(pid)}
        for kind in ("input_audio", "file", "video_url", "image"):
            content = [{"type": kind, kind: {"url": urls[0], "data": "", "file_id": urls[0]}}]
            refused(service.chat(messages=[{"role": "user", "content": content}]), param="messages")
        with pytest.raises(BlockingIOError):
            trap.accept()
    # Connections of clients end and begin, none of them at a port that others listen on.
    own = f":{service.port:04X}"
    others = {address for address in seen - before if not address.endswith(own)}
    assert not [a for a in others if a.startswith(METADATA) or a.endswith(f":{port:04X}")]


def test_29_models_that_are_not_here(service: Service) -> None:
    for name in (
        "nope",
        "../../etc/passwd",
        "..\\..\\x",
        "/etc/passwd",
        "a\x00b",
        "x" * 1_000_000,
        "𝔪" * 500,
    ):
        for path in (CHAT, COMPLETIONS):
            reply = service.post(path, {"messages": USER, "prompt": "x", "model": name})
            refused(reply, 404, code="model_not_found", param="model")
            assert len(reply.body) < 1000
    for name in ("nope", "../../etc/passwd", "..%2f..%2fetc%2fpasswd", "%00", "x" * 5000, "x" * 20_000):
        reply = service.get(f"/v1/models/{name}")
        refused(reply, 404 if len(name) < 8000 else 414)
        assert len(reply.body) < 1000 and b"root:" not in reply.body
    for name in ("/static/../../etc/passwd", "/static/%2e%2e/%2e%2e/etc/passwd", "/static//etc/passwd"):
        assert service.get(name).status == 404
    name = json.loads(service.get("/v1/models").body)["data"][0]["id"]
    assert served(service.chat(model=name)).seconds < 1
