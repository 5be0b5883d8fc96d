"""Llama-family models against transformers: tiny random models of each family, logits and greedy tokens."""

import json
import os
import random
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from engine.checkpoint import read_meta
from engine.llama import Llama
from engine.llama_config import llama_config
from engine.loader import load_model
from engine.messages import SamplingParams
from tests.engine.checkpoints import write_transformers_tokenizer
from tests.engine.serving import Ask, answers, started
from tests.optional import missing

VOCAB = 512
NEW = 16
CLEAR = 1e-4  # where their two best logits are closer than this, either is right
LENGTHS = (1, 5, 40, 130)

SIZES: dict[str, object] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
}
# Each as transformers 4 spells it; what transformers 5 makes of it is read back from its own folder.
CASES: dict[str, dict[str, object]] = {
    "llama": {"model_type": "llama", "num_key_value_heads": 4, "rope_theta": 500000.0},
    "llama, scaled and tied": {
        "model_type": "llama",
        "tie_word_embeddings": True,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "llama with biases, linear": {
        "model_type": "llama",
        "attention_bias": True,
        "mlp_bias": True,
        "head_dim": 32,
        "rope_scaling": {"type": "linear", "factor": 4.0},
    },
    "mistral": {"model_type": "mistral", "sliding_window": 16, "head_dim": 32},
    "mistral without windows": {"model_type": "mistral", "sliding_window": None},
    "qwen2": {"model_type": "qwen2", "rope_theta": 1000000.0, "tie_word_embeddings": True},
    "qwen2, windows above": {
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 12,
        "max_window_layers": 1,
    },
    "qwen3": {"model_type": "qwen3", "head_dim": 32, "tie_word_embeddings": True},
    "qwen3, yarn": {
        "model_type": "qwen3",
        "head_dim": 32,
        "rope_theta": 1000000.0,
        "attention_bias": True,
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    },
    "qwen3, yarn in full": {
        "model_type": "qwen3",
        "head_dim": 32,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 3.0,
            "original_max_position_embeddings": 100,
            "attention_factor": 1.25,
            "beta_fast": 20.0,
            "beta_slow": 2.0,
        },
    },
    "smollm3": {"model_type": "smollm3", "no_rope_layer_interval": 2, "pad_token_id": 0},
}


def prompts() -> list[list[int]]:
    rng = random.Random(0)
    return [[rng.randrange(VOCAB) for _ in range(length)] for length in LENGTHS]


@dataclass(frozen=True, slots=True)
class Theirs:
    """Per prompt: logits [length, vocab], greedy tokens [NEW] and the margins by which they won."""

    folder: Path
    logits: list[torch.Tensor]
    tokens: list[list[int]]
    margins: list[list[float]]


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Theirs]:
    """What transformers says, in a process that cannot see this project."""
    if find_spec("transformers") is None:
        missing("the oracle, transformers, is not installed")
    root = tmp_path_factory.mktemp("llama")
    folders = {name: root / str(index) for index, name in enumerate(CASES)}
    configs = {folders[name].name: SIZES | case for name, case in CASES.items()}
    (root / "cases.json").write_text(json.dumps(configs))
    (root / "prompts.json").write_text(json.dumps(prompts()))
    script = Path(__file__).with_name("transformers_logits.py")
    done = subprocess.run(
        [sys.executable, "-P", str(script), str(root), str(NEW)],
        cwd=root,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return {name: _theirs(folder) for name, folder in folders.items()}


def _theirs(folder: Path) -> Theirs:
    write_transformers_tokenizer(folder)
    found = load_file(folder / "answers.safetensors")
    (folder / "answers.safetensors").unlink()
    each = range(len(LENGTHS))
    return Theirs(
        folder,
        [found[f"logits.{index}"] for index in each],
        [found[f"tokens.{index}"].tolist() for index in each],
        [found[f"margins.{index}"].tolist() for index in each],
    )


def logits(model: Llama, prompt: list[int]) -> torch.Tensor:
    """[length, vocab], with attention spelled out in float64."""
    length, config = len(prompt), model.config
    position = torch.arange(length)
    distance = position.unsqueeze(1) - position.unsqueeze(0)

    def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        window = config.window(layer)
        hidden = (distance < 0) | (distance > (length if window is None else window))
        group = config.n_head // config.n_kv_head
        wide = [part.double().transpose(0, 1) for part in (q, k, v)]
        keys, values = (part.repeat_interleave(group, dim=0) for part in wide[1:])
        scores = wide[0] @ keys.transpose(1, 2) * config.head_dim**-0.5
        weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        return (weights @ values).transpose(0, 1).to(q.dtype)

    ids = torch.tensor(prompt)
    with torch.inference_mode():
        return model.logits(model.hidden(ids, ids, position, attend))


@pytest.mark.parametrize("name", CASES)
def test_logits(name: str, oracle: dict[str, Theirs]) -> None:
    theirs = oracle[name]
    model, _, meta = load_model(theirs.folder)
    assert isinstance(model, Llama) and meta.generation == CASES[name]["model_type"]
    for served in (model, model.packed()):
        for prompt, expected in zip(prompts(), theirs.logits, strict=True):
            difference = (logits(served, prompt) - expected).abs().max()
            assert difference < 2e-5 * expected.abs().max(), f"{len(prompt)} tokens differ by {difference}"


@pytest.mark.parametrize("name", CASES)
def test_both_spellings_mean_the_same(name: str, oracle: dict[str, Theirs]) -> None:
    saved = read_meta(oracle[name].folder / "config.json")
    assert "rope_scaling" not in saved
    family = str(saved["model_type"])
    assert llama_config(family, saved) == llama_config(family, SIZES | CASES[name])  # type: ignore[arg-type]


@pytest.mark.parametrize("name", CASES)
async def test_greedy_tokens(name: str, oracle: dict[str, Theirs]) -> None:
    theirs = oracle[name]
    model, tokenizer, meta = load_model(theirs.folder)
    engine = await started(model, tokenizer, max_chunk=24, max_rows=4)
    params = SamplingParams(max_tokens=NEW, temperature=0, ignore_eos=True)
    ours = await answers(engine, [Ask(prompt, params) for prompt in prompts()], together=True)
    await engine.close()
    compared = 0
    for (answer,), tokens, margins in zip(ours, theirs.tokens, theirs.margins, strict=True):
        # After a near tie the two may go on differently.
        clear = next((k for k, margin in enumerate(margins) if margin <= CLEAR), NEW)
        assert answer.tokens[:clear] == tokens[:clear]
        compared += clear
    assert compared > 0.6 * len(LENGTHS) * NEW
    assert meta.path == theirs.folder
