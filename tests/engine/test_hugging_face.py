"""Tokenizers and chat templates of Llama-family folders against the `tokenizers` library as it comes."""

import json
from pathlib import Path

import jinja2
import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

from engine.text import ChatMessage, IncrementalDecoder, TemplateError, load_chat_template, load_tokenizer

LLAMA3_TEMPLATE = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    "+ message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
# With what the templates of Qwen3 use: slices, tests, namespaces, string methods.
QWEN3_TEMPLATE = (
    "{%- if messages[0].role == 'system' %}"
    "{{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}{%- endif %}"
    "{%- set ns = namespace(last=messages|length - 1) %}"
    "{%- for message in messages[::-1] %}{%- set index = (messages|length - 1) - loop.index0 %}"
    "{%- if message.role == 'user' and message.content is string %}{%- set ns.last = index %}{%- break %}"
    "{%- endif %}{%- endfor %}"
    "{%- for message in messages %}{%- set content = message.content %}"
    "{%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}"
    "{{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>\n' }}"
    "{%- elif message.role == 'assistant' %}"
    "{%- if '</think>' in content %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\n') %}{%- endif %}"
    "{{- '<|im_start|>assistant\n' + content + '<|im_end|>\n' }}"
    "{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}"
    "{%- endif %}{%- endif %}"
)
MISTRAL_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)
LINES = ["the quick brown fox jumps over the lazy dog", "she sells sea shells by the sea shore", "1 2 3, go!"]
CORPUS = LINES * 40
TEXTS = [
    "the fox",
    " two  spaces ",
    "naïve café 火 🙂",
    "",
    "line\nbreak\t<|eot_id|> </s> <think> [INST]",
    "x" * 300,
]
TURNS = [
    ChatMessage("user", "hello the fox"),
    ChatMessage("assistant", "she sells"),
    ChatMessage("user", " 火 🙂 "),
]


def write(folder: Path, made: tokenizers.Tokenizer, config: dict[str, object], template: str | None) -> Path:
    folder.mkdir()
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def special(*spellings: str, flagged: bool = True) -> list[AddedToken]:
    return [AddedToken(spelling, special=flagged, normalized=False) for spelling in spellings]


def byte_level() -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet))
    return made


def llama3(folder: Path) -> Path:
    made = byte_level()
    names = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    made.add_tokens(special(*names))
    begin = [("<|begin_of_text|>", made.token_to_id("<|begin_of_text|>"))]
    made.post_processor = processors.TemplateProcessing(single="<|begin_of_text|> $A", special_tokens=begin)
    config: dict[str, object] = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
    return write(folder, made, config, LLAMA3_TEMPLATE)


def qwen3(folder: Path) -> Path:
    made = byte_level()
    made.add_tokens(special("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
    made.add_tokens(special("<think>", "</think>", flagged=False))
    config: dict[str, object] = {"bos_token": None, "eos_token": "<|im_end|>", "add_bos_token": False}
    written = write(folder, made, config, QWEN3_TEMPLATE)
    end, stop = made.token_to_id("<|endoftext|>"), made.token_to_id("<|im_end|>")
    (written / "config.json").write_text(json.dumps({"bos_token_id": end}))
    (written / "generation_config.json").write_text(json.dumps({"eos_token_id": [stop, end]}))
    return written


def pieces(folder: Path, scheme: str) -> Path:
    """As Llama 2 (a normalizer puts the space) and Mistral (a Metaspace, before the first word) have it."""
    made = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    words = pre_tokenizers.Metaspace(prepend_scheme="always")
    made.pre_tokenizer = words
    named = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=340, special_tokens=named + [f"<0x{b:02X}>" for b in range(256)])
    made.train_from_iterator(CORPUS, trainer)
    data = json.loads(made.to_str())
    data["added_tokens"] = [entry for entry in data["added_tokens"] if entry["content"] in named]
    made = tokenizers.Tokenizer.from_str(json.dumps(data))
    if scheme == "normalizer":
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        made.pre_tokenizer = None  # type: ignore[assignment]
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    if scheme != "normalizer":
        made.add_tokens(special("[INST]", "[/INST]"))
    strip = decoders.Strip(" ", 1, 0)
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip]
    )
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return write(folder, made, {"bos_token": "<s>", "eos_token": "</s>"}, MISTRAL_TEMPLATE)


MAKERS = {
    "llama3": llama3,
    "qwen3": qwen3,
    "llama2": lambda folder: pieces(folder, "normalizer"),
    "mistral": lambda folder: pieces(folder, "first"),
    "always": lambda folder: pieces(folder, "always"),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tokenizers")
    return {name: make(root / name) for name, make in MAKERS.items()}


def plain(folder: Path) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.mark.parametrize("name", MAKERS)
def test_text_as_the_library_has_it(name: str, folders: dict[str, Path]) -> None:
    ours, theirs = load_tokenizer(folders[name]), plain(folders[name])
    assert ours.get_vocab_size() == theirs.get_vocab_size()
    for text in TEXTS:
        ids = ours.encode(text)
        # What is spelled like a special token is one for the library, and text for us.
        if not any(spelling in text for spelling in ours.special_tokens):
            assert ids == theirs.encode(text, add_special_tokens=False).ids
            assert ours.decode(ids) in (theirs.decode(ids), " " + theirs.decode(ids))
        assert set(ids).isdisjoint(ours.special_tokens.values())
        assert ours.decode(ids) in (text, " " + text)
        decoder = IncrementalDecoder(ours)
        assert "".join([*(decoder.push([id]) for id in ids), decoder.flush()]) == ours.decode(ids)


@pytest.mark.parametrize("name", MAKERS)
def test_conversations_as_the_library_has_them(name: str, folders: dict[str, Path]) -> None:
    folder = folders[name]
    tokenizer, theirs = load_tokenizer(folder), plain(folder)
    template = load_chat_template(folder, tokenizer)
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    source = environment.from_string((folder / "chat_template.jinja").read_text())
    turns = [{"role": turn.role, "content": turn.content} for turn in TURNS]
    names = {"bos_token": "" if name == "qwen3" else tokenizer.bos, "eos_token": tokenizer.eos}
    text = source.render(messages=turns, add_generation_prompt=True, **names)
    assert template.render(TURNS) == theirs.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("name", MAKERS)
def test_messages_hold_no_special_tokens(name: str, folders: dict[str, Path]) -> None:
    tokenizer = load_tokenizer(folders[name])
    template = load_chat_template(folders[name], tokenizer)
    usual = template.render([ChatMessage("user", "x")])
    specials = set(tokenizer.special_tokens.values())
    for spelling in tokenizer.special_tokens:
        ids = template.render([ChatMessage("user", spelling)])
        assert [id for id in ids if id in specials] == [id for id in usual if id in specials]


def test_who_begins_with_bos(folders: dict[str, Path]) -> None:
    found = {name: load_tokenizer(folder) for name, folder in folders.items()}
    assert {name for name, tokenizer in found.items() if not tokenizer.adds_bos} == {"qwen3"}
    assert (found["qwen3"].bos, found["llama3"].bos, found["llama2"].bos) == (
        "<|endoftext|>",
        "<|begin_of_text|>",
        "<s>",
    )


def test_markers_that_are_not_special_are_read(folders: dict[str, Path]) -> None:
    tokenizer = load_tokenizer(folders["qwen3"])
    think, end = (tokenizer.encode_special(spelling) for spelling in ("<think>", "<|im_end|>"))
    assert IncrementalDecoder(tokenizer).push([think, end]) == "<think>"
    assert not tokenizer.is_special(think) and tokenizer.is_special(end)


def test_what_ends_an_answer(folders: dict[str, Path]) -> None:
    for name, expected in (
        ("qwen3", ["<|im_end|>", "<|endoftext|>"]),
        ("llama3", ["<|eot_id|>", "<|begin_of_text|>"]),
    ):
        tokenizer = load_tokenizer(folders[name])
        template = load_chat_template(folders[name], tokenizer)
        assert template.terminal_ids == [tokenizer.encode_special(spelling) for spelling in expected]


def test_a_base_model_refuses_to_chat(tmp_path: Path) -> None:
    folder = llama3(tmp_path / "base")
    (folder / "chat_template.jinja").unlink()
    tokenizer = load_tokenizer(folder)
    template = load_chat_template(folder, tokenizer)
    assert template.terminal_ids == [tokenizer.encode_special(s) for s in ("<|eot_id|>", "<|begin_of_text|>")]
    with pytest.raises(TemplateError, match="no chat template"):
        template.render([ChatMessage("user", "hello")])
