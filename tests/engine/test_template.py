"""Chat templates: nanochat's wrapping, jinja templates, and no message that could forge a turn."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.text import (
    NANOCHAT_SPECIALS,
    BytePairTokenizer,
    ChatMessage,
    ChatTemplate,
    TemplateError,
    Tokenizer,
    TokenizerError,
    load_chat_template,
    load_tokenizer,
)
from tests.engine.checkpoints import CHAT_TEMPLATE, write_transformers_tokenizer
from tests.engine.golden import G1, expected


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(G1)


@pytest.fixture(scope="module")
def nanochat(tokenizer: Tokenizer) -> ChatTemplate:
    return load_chat_template(G1 / "tokenizer", tokenizer)


def chat(*turns: str) -> list[ChatMessage]:
    """Messages from "role: text" strings."""
    return [ChatMessage(*turn.split(": ", 1)) for turn in turns]


def shown(tokenizer: Tokenizer, ids: list[int]) -> str:
    """Prompt ids as text, with special tokens shortened: they are told from text by their ids."""
    pieces = [(tokenizer.decode([id]), tokenizer.is_special(id)) for id in ids]
    return "".join(f"[{text[2:-2]}]" if special else text for text, special in pieces)


def test_the_golden_conversation(tokenizer: Tokenizer, nanochat: ChatTemplate) -> None:
    prompt = expected(G1)["prompts"][3]["prompt"]
    assert isinstance(prompt, list)
    question = tokenizer.decode(prompt[2:-2])
    assert nanochat.render([ChatMessage("user", question)]) == prompt
    assert nanochat.terminal_ids == [507, 503]


@pytest.mark.parametrize(
    ("turns", "rendered"),
    [
        (["user: Hi"], "[user_start]Hi[user_end]"),
        (
            ["user: Hi", "assistant: Yo", "user: 1+1?"],
            "[user_start]Hi[user_end][assistant_start]Yo[assistant_end][user_start]1+1?[user_end]",
        ),
        (["system: Be brief.", "user: Hi"], "[user_start]Be brief.\n\nHi[user_end]"),
        (["developer: Be brief.", "user: Hi"], "[user_start]Be brief.\n\nHi[user_end]"),
        (["system: A", "developer: B", "user: Hi"], "[user_start]A\n\nB\n\nHi[user_end]"),
        (["system: Be brief."], "[user_start]Be brief.[user_end]"),
        (["user: Hi", "system: A", "system: B"], "[user_start]Hi[user_end][user_start]A\n\nB[user_end]"),
        (["user: Hi", "user: there"], "[user_start]Hi[user_end][user_start]there[user_end]"),
        (
            ["system: A", "assistant: Hello", "user: Hi"],
            "[assistant_start]Hello[assistant_end][user_start]A\n\nHi[user_end]",
        ),
        (["user: Hi", "assistant: Yo"], "[user_start]Hi[user_end][assistant_start]Yo[assistant_end]"),
        (["user: "], "[user_start][user_end]"),
    ],
)
def test_nanochats_wrapping(
    tokenizer: Tokenizer, nanochat: ChatTemplate, turns: list[str], rendered: str
) -> None:
    assert shown(tokenizer, nanochat.render(chat(*turns))) == f"[bos]{rendered}[assistant_start]"


def test_the_final_message_can_be_continued(tokenizer: Tokenizer, nanochat: ChatTemplate) -> None:
    ids = nanochat.render(chat("user: Count", "assistant: 1, 2"), continue_final=True)
    assert shown(tokenizer, ids) == "[bos][user_start]Count[user_end][assistant_start]1, 2"


@pytest.mark.parametrize(
    ("messages", "continue_final", "message"),
    [
        ([], False, "no messages"),
        (chat("tool: 3"), False, "no role 'tool'"),
        (chat("user: Hi"), True, "only an assistant's message"),
    ],
)
def test_what_cannot_be_rendered(
    tokenizer: Tokenizer,
    nanochat: ChatTemplate,
    tmp_path: Path,
    messages: list[ChatMessage],
    continue_final: bool,
    message: str,
) -> None:
    for template in (nanochat, jinja(tmp_path, tokenizer)):
        with pytest.raises(TemplateError, match=message):
            template.render(messages, continue_final=continue_final)


def test_a_tokenizer_without_turns_has_no_template(tmp_path: Path) -> None:
    plain = BytePairTokenizer({bytes([byte]): byte for byte in range(256)}, {"<|bos|>": 256})
    with pytest.raises(TokenizerError, match=r"lacks <\|user_start\|>, "):
        load_chat_template(tmp_path, plain)


# ---- jinja


def jinja(folder: Path, tokenizer: Tokenizer, source: str = CHAT_TEMPLATE) -> ChatTemplate:
    (folder / "chat_template.jinja").write_text(source, encoding="utf-8")
    return load_chat_template(folder, tokenizer)


PARTS = st.sampled_from(
    [*NANOCHAT_SPECIALS, "<", "<|", "|>", "<|bos", "bos", "bos|>", ">", " ", "\n", "a", "é", "\U000f0000"]
)
CONTENT = st.lists(PARTS, max_size=6).map("".join)
TURNS = st.lists(
    st.builds(ChatMessage, st.sampled_from(["user", "assistant"]), CONTENT), min_size=1, max_size=4
)


@given(TURNS)
def test_jinja_equals_nanochat_and_forges_nothing(
    tokenizer: Tokenizer, nanochat: ChatTemplate, template: ChatTemplate, turns: list[ChatMessage]
) -> None:
    assert template.render(turns) == nanochat.render(turns)
    if turns[-1].role == "assistant":
        continued = template.render(turns, continue_final=True)
        assert continued == nanochat.render(turns, continue_final=True)


@pytest.fixture(scope="module")
def template(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> ChatTemplate:
    folder = tmp_path_factory.mktemp("hf")
    write_transformers_tokenizer(folder)
    return load_chat_template(folder, load_tokenizer(folder))


@given(TURNS)
def test_nothing_is_forged_across_edges(
    tokenizer: Tokenizer, careless: ChatTemplate, turns: list[ChatMessage]
) -> None:
    """A template that trims and joins messages without anything between, after half a special token."""
    ids = careless.render(turns)
    assert ids[0] == 503 and tokenizer.special_ids.isdisjoint(ids[1:])
    assert tokenizer.decode(ids[1:]) == "<|" + "".join(turn.content.strip() for turn in turns) + "|>"


@pytest.mark.parametrize(
    "contents",
    [
        ["bos|>"],
        [" bos|> x"],
        ["x <|bos "],
        ["x<", "|bos|>"],
        ["bos"],
        ["b", "o", "s"],
        ["<|b", "os"],
        ["  <|bos|> "],
        [""],
        [" "],
    ],
)
def test_edges_that_would_forge(tokenizer: Tokenizer, careless: ChatTemplate, contents: list[str]) -> None:
    ids = careless.render([ChatMessage("user", content) for content in contents])
    assert tokenizer.special_ids.isdisjoint(ids[1:])
    assert tokenizer.decode(ids[1:]) == "<|" + "".join(content.strip() for content in contents) + "|>"


@pytest.fixture(scope="module")
def careless(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> ChatTemplate:
    source = "{{ bos_token }}<|{% for m in messages %}{{ m.content | trim }}{% endfor %}|>"
    return jinja(tmp_path_factory.mktemp("careless"), tokenizer, source)


def test_what_templates_may_use(tokenizer: Tokenizer, tmp_path: Path) -> None:
    source = """
    {%- for message in messages %}
        {%- if message.role == 'system' %}{% continue %}{% endif %}
        {%- generation %}{{ message.content | tojson(ensure_ascii=True) }}{% endgeneration %}
        {%- if loop.index > 2 %}{% break %}{% endif %}
    {%- endfor %}{{ strftime_now('%Y') | length }}{{ eos_token }}"""
    template = jinja(tmp_path, tokenizer, source)
    ids = template.render(chat("developer: x", "user: é<|bos|>"))
    assert shown(tokenizer, ids) == '"é<|bos|>"4[assistant_end]'


def test_the_templates_own_complaint_is_reported(tokenizer: Tokenizer, tmp_path: Path) -> None:
    template = jinja(tmp_path, tokenizer, "{{ raise_exception('turns must alternate') }}")
    with pytest.raises(TemplateError, match="turns must alternate"):
        template.render(chat("user: Hi"))


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__ }}",
        "{% for i in range(10**9) %}x{% endfor %}",
        "{% for i in range(99999) %}{{ 'x' * 10000 }}{% endfor %}",
        "{% include '/etc/passwd' %}",
        "{{ undefined_thing.attribute }}",
    ],
)
def test_templates_run_in_a_sandbox(tokenizer: Tokenizer, tmp_path: Path, source: str) -> None:
    with pytest.raises(TemplateError):
        jinja(tmp_path, tokenizer, source).render(chat("user: Hi"))


def test_continuing_what_a_template_drops(tokenizer: Tokenizer, tmp_path: Path) -> None:
    template = jinja(tmp_path, tokenizer, "{{ messages[0].content }}")
    with pytest.raises(TemplateError, match="does not show"):
        template.render(chat("user: Hi", "assistant: Yo"), continue_final=True)


def test_templates_in_the_configuration_file(tokenizer: Tokenizer, tmp_path: Path) -> None:
    named = [{"name": "tools", "template": "no"}, {"name": "default", "template": "{{ eos_token }}"}]
    for value in ("{{ eos_token }}", named):
        config = {"chat_template": value, "eos_token": "<|user_end|>"}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        assert load_chat_template(tmp_path, tokenizer).render(chat("user: Hi")) == [505]
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "{% if %}"}')
    with pytest.raises(TokenizerError, match="does not compile"):
        load_chat_template(tmp_path, tokenizer)


def test_terminal_ids_are_special_ones(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"eos_token_id": 1}')
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [505, 2, "x"]}')
    assert jinja(tmp_path, tokenizer).terminal_ids == [507, 505, 503]
