"""Models with random weights from a config.json alone, and the tokenizer that stands in for none."""

import json
from pathlib import Path

import pytest
import torch

from app.requests.text import TextService
from benchmarks.models import CONFIGS, dummy_config, write_dummy_folder
from engine.checkpoint import CheckpointError
from engine.loader import load_model
from engine.messages import ModelInfo, SamplingParams
from engine.model import GPT
from engine.text import ChatMessage, IncrementalDecoder, PlainTemplate, StandInTokenizer, TemplateError
from tests.engine.checkpoints import make_model, transformers_config, write_checkpoint
from tests.engine.serving import Ask, answers, started
from tests.engine.test_llama import CASES, SIZES

NANOCHAT = {
    "model_type": "fastpath-nanochat",
    "model_config": {"sequence_len": 64, "vocab_size": 512, "n_layer": 3, "n_head": 4, "n_embd": 64},
}


def described(folder: Path, config: dict[str, object]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("name", [*CASES, "transformers", *(f"G{generation}" for generation in range(1, 6))])
async def test_every_family_runs(tmp_path: Path, name: str) -> None:
    if name in CASES:
        config = SIZES | CASES[name]
    elif name == "transformers":
        config = transformers_config(make_model("G1").config)
    else:
        config = NANOCHAT | {"model_config": NANOCHAT["model_config"] | {"generation": name, "n_kv_head": 2}}  # type: ignore[operator]
    model, tokenizer, meta = load_model(described(tmp_path / "m", config), load_format="dummy")
    assert meta.path is None and meta.name == "m" and "random weights" in meta.notes
    assert tokenizer.get_vocab_size() == model.config.vocab_size == 512
    engine = await started(model, tokenizer)
    params = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True, logprobs=0)
    ((answer,),) = await answers(engine, [Ask(list(range(20)), params)], together=True)
    await engine.close()
    assert answer.finish is not None and answer.finish.reason == "length"
    assert all(item is not None and -30 < item[0] <= 0 for item in answer.logprobs)


def test_a_seed_makes_the_weights(tmp_path: Path) -> None:
    folder = described(tmp_path, SIZES | CASES["qwen3"])
    first, again, other = (
        load_model(folder, load_format="dummy", dtype="bfloat16", seed=seed)[0].state_dict()
        for seed in (1, 1, 2)
    )
    assert all(tensor.dtype == torch.bfloat16 for tensor in first.values())
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    assert not any(torch.equal(tensor, other[name]) for name, tensor in first.items())
    assert first["lm_head.weight"].data_ptr() == first["model.embed_tokens.weight"].data_ptr()


def test_nanochats_vectors_stay_in_float32(tmp_path: Path) -> None:
    config = NANOCHAT | {"model_config": NANOCHAT["model_config"] | {"generation": "G5"}}  # type: ignore[operator]
    model, _, _ = load_model(described(tmp_path, config), load_format="dummy", dtype="bfloat16")
    assert isinstance(model, GPT)
    assert model.resid_lambdas.dtype == torch.float32 and model.lm_head.weight.dtype == torch.bfloat16  # type: ignore[union-attr]


def test_a_tokenizer_that_is_there_is_used(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, "G1", layout="safetensors")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no weights"):
        load_model(folder)
    _, tokenizer, meta = load_model(folder, load_format="dummy")
    assert meta.path == folder and "<|user_start|>" in tokenizer.special_tokens


def test_only_dummies_do_without(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, "G1", layout="safetensors")
    for name in ("tokenizer.tiktoken", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        load_model(folder)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (NANOCHAT | {"model_config": {"generation": "G9"}}, "no generation 'G9'"),
        (NANOCHAT | {"model_config": {"sequence_len": 4}}, "vocab_size = None"),
        ({"model_type": "llama"}, "no vocab_size"),
        ({"model_type": "mixtral"}, "a model of type 'mixtral'; there are nanochat, llama"),
    ],
)
def test_descriptions_that_do_not_suffice(tmp_path: Path, config: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_model(described(tmp_path, config), load_format="dummy")


def test_benchmark_models_are_valid(tmp_path: Path) -> None:
    for name in ("llama-tiny", "qwen3-tiny", "tiny", "tiny-g5"):
        write_dummy_folder(name, tmp_path / name)
        model, _, _ = load_model(tmp_path / name, load_format="dummy", dtype="bfloat16")
        assert model.parameter_count() > 10_000_000
    assert set(CONFIGS) >= {"llama-d32", "qwen3-0.6b"}
    assert dummy_config("d32")["model_type"] == "fastpath-nanochat"


# ---- the stand-in


def test_every_token_has_text() -> None:
    tokenizer = StandInTokenizer(300)
    assert tokenizer.get_vocab_size() == 300 and tokenizer.get_bos_token_id() == 299
    ids = list(range(299))
    text = "".join(IncrementalDecoder(tokenizer).push([id]) for id in ids)
    assert text.startswith(" t0 t1 t2 ") and tokenizer.encode(text) == ids
    assert tokenizer.token_bytes(299) == b"<|bos|>" and tokenizer.token_bytes(300) == b""


def test_other_text_is_bytes() -> None:
    tokenizer = StandInTokenizer(300)
    assert tokenizer.encode("aé <|bos|>") == list("aé <|bos|>".encode())
    assert tokenizer.encode("a t7 t299 t07") == [97, 7, *b" t299 t07"]
    assert max(StandInTokenizer(10).encode("zebra é")) < 9


async def test_the_front_end_takes_the_stand_in(tmp_path: Path) -> None:
    info = ModelInfo(
        name="m",
        path="",
        generation="qwen3",
        vocab_size=1000,
        max_model_len=64,
        terminal_ids=[999],
        max_rows=1,
        block_size=16,
        num_blocks=4,
        device="cpu",
        dtype="float32",
        parameters=1,
    )
    text = TextService()
    await text.prepare(info)
    assert await text.encode(["ab"], bos=True) == [[999, 97, 98]]
    turns = [ChatMessage("user", "hi"), ChatMessage("assistant", "yes")]
    assert await text.render(turns) == [999, *b"user: hi\nassistant: yes\nassistant:"]
    assert await text.render(turns, continue_final=True) == [999, *b"user: hi\nassistant: yes"]


def test_the_plain_template_knows_roles() -> None:
    with pytest.raises(TemplateError):
        PlainTemplate(StandInTokenizer(300)).render([ChatMessage("robot", "hi")])
