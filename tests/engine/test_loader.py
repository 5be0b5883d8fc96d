"""Loading: every generation in every layout, what files say about it, and what is refused."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.async_engine import AsyncEngine
from engine.checkpoint import CheckpointError
from engine.config import Generation, GPTConfig
from engine.detect import detect
from engine.loader import load_model
from engine.messages import EngineConfig
from engine.model import GPT
from engine.runner import ModelRunner
from tests.engine.checkpoints import GENERATIONS, description, make_model, write_checkpoint
from tests.engine.golden import G1, G5, expected
from tests.optional import missing

IDS = torch.randint(0, 512, (2, 200), generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


def logits(model: GPT) -> torch.Tensor:
    with torch.inference_mode():
        return model(IDS)


@pytest.mark.parametrize("folder", [G1, G5], ids=lambda folder: folder.name)
def test_x1_golden_logits(folder: Path) -> None:
    model, tokenizer, meta = load_model(folder)
    assert meta.generation == folder.name.upper()
    assert tokenizer.get_vocab_size() == model.config.vocab_size == 512
    for case in expected(folder)["prompts"]:
        with torch.inference_mode():
            found = model(torch.tensor([case["prompt"]]))[0]
        torch.testing.assert_close(found[-1], torch.tensor(case["logits_last"]), atol=1e-4, rtol=0)
        torch.testing.assert_close(found.mean(-1), torch.tensor(case["logits_mean"]), atol=1e-4, rtol=0)


CONSTANTS = {
    # rope base, qk scale, gate scale, gate channels, short window of 2048
    "G1": (1e4, 1.0, 0.0, 0, 2048),
    "G2": (1e4, 1.0, 0.0, 0, 1024),
    "G3": (1e4, 1.0, 2.0, 32, 1024),
    "G4": (1e5, 1.15, 3.0, 12, 768),
    "G5": (1e5, 1.2, 3.0, 12, 512),
}


@pytest.mark.parametrize("generation", GENERATIONS)
def test_x1_generations_and_their_constants(tmp_path: Path, generation: Generation) -> None:
    model, _, meta = load_model(write_checkpoint(tmp_path, generation, sequence_len=2048))
    config = model.config
    assert meta.generation == config.generation == generation
    found = (config.rope_base, config.qk_scale, config.value_gate_scale)
    assert (*found, config.value_gate_channels, config.short_window) == CONSTANTS[generation]
    assert config.softcap == 15.0 and config.rms_eps == 2.0**-23
    assert config.rope_dtype == ("bfloat16" if generation in ("G1", "G2", "G3") else "float32")


@pytest.mark.parametrize("layout", ["base", "flat", "safetensors"])
@pytest.mark.parametrize("generation", GENERATIONS)
def test_every_layout_gives_the_same_model(tmp_path: Path, generation: Generation, layout: str) -> None:
    source = make_model(generation, seed=3, n_kv_head=1)
    folder = write_checkpoint(
        tmp_path,
        generation,
        layout=layout,  # type: ignore[arg-type]
        seed=3,
        shards=3 if layout == "safetensors" else 1,
        prefix="_orig_mod.",
        n_kv_head=1,
    )
    model, _, _ = load_model(folder)
    assert torch.equal(logits(model), logits(source))
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_transformers_folder(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, "G1", layout="transformers", seed=5, shards=2)
    model, tokenizer, meta = load_model(folder)
    config = model.config
    assert (meta.generation, config.rms_eps, config.rope_dtype) == ("G1", 1e-6, "float32")
    source = make_model("G1", seed=5, rms_eps=1e-6, rope_dtype="float32")
    assert torch.equal(logits(model), logits(source))
    assert tokenizer.encode("Hello, world!") == [72, 101, 108, 108, 111, 44, 296, 111, 114, 108, 100, 33]


def test_older_names_of_transformers_settings(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, "G1", layout="transformers")
    config = json.loads((folder / "config.json").read_text())
    del config["rope_parameters"], config["final_logit_softcapping"], config["num_key_value_heads"]
    config |= {"rope_theta": 5000.0, "logits_soft_cap": 30.0}
    (folder / "config.json").write_text(json.dumps(config))
    model, _, _ = load_model(folder)
    assert (model.config.rope_base, model.config.softcap) == (5000.0, 30.0)


ORACLE = """
import sys, torch
from transformers import NanoChatConfig, NanoChatForCausalLM
torch.manual_seed(0)
config = NanoChatConfig(vocab_size=512, hidden_size=64, intermediate_size=256, num_hidden_layers=3,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.2)
model = NanoChatForCausalLM(config).eval()
model.save_pretrained(sys.argv[1])
ids = torch.load(sys.argv[2])
with torch.inference_mode():
    torch.save(model(ids).logits, sys.argv[3])
"""


def test_against_transformers(tmp_path: Path) -> None:
    if find_spec("transformers") is None:
        missing("the oracle, transformers, is not installed")
    folder = write_checkpoint(tmp_path / "model", "G1", layout="transformers")
    torch.save(IDS, tmp_path / "ids.pt")
    script = tmp_path / "oracle.py"
    script.write_text(ORACLE)
    arguments = [str(folder), str(tmp_path / "ids.pt"), str(tmp_path / "logits.pt")]
    # In a process of its own, started elsewhere: transformers looks for an unrelated package named `kernels`.
    subprocess.run([sys.executable, str(script), *arguments], cwd=tmp_path, check=True, timeout=300)
    wanted = torch.load(tmp_path / "logits.pt")
    model, _, _ = load_model(folder)
    torch.testing.assert_close(logits(model), wanted, atol=2e-4, rtol=0)
    assert torch.equal(logits(model).argmax(-1), wanted.argmax(-1))


# ---- what files say


def test_unknown_keys_are_ignored_and_flags_are_hints(tmp_path: Path) -> None:
    extra = {
        "kv_block_size": 32,
        "use_fp32_logits": False,
        "kv_page_size": "big",
        "clustered_attention_impl": "os:system",
        "allow_kernel_stub_fallback": True,
        "use_something_new": {"a": 1},
    }
    folder = write_checkpoint(
        tmp_path, "G1", layout="flat", model_config=extra, meta={"user_config": {}, "mmlu_acc": 0.3}
    )
    model, _, meta = load_model(folder)
    assert meta.hints == {"kv_block_size": 32, "use_fp32_logits": False}
    assert (model.config.kv_block_size, model.config.kv_page_size) == (32, None)
    assert meta.raw["mmlu_acc"] == 0.3


def test_a_meta_without_step_or_window_pattern(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, "G2", layout="flat", step=3, window_pattern="L")
    described = description(make_model("G2", window_pattern="L").config)
    del described["window_pattern"]
    (folder / "meta_000003.json").write_text(json.dumps({"model_config": described}))
    model, _, meta = load_model(folder)
    assert model.config.window_pattern == "L"
    assert meta.files.step == 3


def test_padded_vocabulary_is_cropped(tmp_path: Path) -> None:
    source = make_model("G4", padded_vocab_size=576)
    folder = write_checkpoint(tmp_path, "G4", padded_vocab_size=576)
    model, tokenizer, meta = load_model(folder)
    assert (model.config.vocab_size, model.config.padded_vocab_size) == (512, 576)
    assert logits(model).shape == (2, 200, 512)
    assert torch.equal(logits(model), logits(source))
    assert meta.notes == ["vocabulary padded to 576 rows"]
    assert tokenizer.decode([575]) == ""


def test_key_value_heads_come_from_the_weights(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, "G1", n_kv_head=1, model_config={"n_kv_head": 2})
    model, _, meta = load_model(folder)
    assert model.config.n_kv_head == 1
    assert meta.notes == ["the description says 2 key-value heads, the weights have 1"]


def test_overrides_and_hybrids(tmp_path: Path) -> None:
    constants = {"rope_base": 5e3, "softcap": 20.0, "qk_scale": 1.0, "short_window": 17}
    constants |= {"window_pattern": "SL", "value_gate_scale": 2.5}
    source = make_model("G5", **constants)
    folder = write_checkpoint(tmp_path, "G5", **constants)
    model, _, _ = load_model(folder, overrides=constants)
    assert torch.equal(logits(model), logits(source))
    # Numbers reach the engine's process as floats.
    on_wire = {name: float(value) if isinstance(value, int) else value for name, value in constants.items()}
    again = load_model(folder, overrides=on_wire | {"sequence_len": 64.0})[0]
    assert repr((again.config.short_window, again.config.sequence_len)) == "(17, 64)"
    # The same constants may be in the description.
    again = write_checkpoint(tmp_path / "again", "G5", model_config=constants, **constants)
    assert torch.equal(logits(load_model(again)[0]), logits(source))
    for overrides, message in (
        ({"n_layer": 2}, "no override n_layer"),
        ({"soft_cap": 2}, "no override soft_cap"),
        ({"use_fp32_logits": False}, "no override use_fp32_logits"),
        ({"sequence_len": 0}, "sequence_len is 0"),
        ({"short_window": 16.5}, "short_window is 16.5"),
        ({"softcap": 0}, "softcap is 0"),
        ({"rope_base": "big"}, "rope_base is 'big'"),
        ({"window_pattern": "LX"}, "window_pattern"),
        ({"rope_dtype": "float64"}, "rope_dtype"),
        ({"short_window": -1}, "short_window"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_model(folder, overrides=overrides)


def test_sampling_defaults(tmp_path: Path) -> None:
    recommended = {"temperature": 0.7, "top_k": 40, "note": "text"}
    own = write_checkpoint(
        tmp_path / "own", "G1", layout="safetensors", meta={"sampling_defaults": recommended}
    )
    assert load_model(own)[2].sampling_defaults == {"temperature": 0.7, "top_k": 40}
    theirs = write_checkpoint(tmp_path / "theirs", "G1", layout="transformers")
    (theirs / "generation_config.json").write_text('{"top_p": 0.9, "eos_token_id": 1, "do_sample": true}')
    assert load_model(theirs)[2].sampling_defaults == {"top_p": 0.9}
    assert load_model(write_checkpoint(tmp_path / "flat", "G1", layout="flat"))[2].sampling_defaults == {}


# ---- types


@pytest.mark.parametrize("layout", ["base", "safetensors"])
def test_x2_types_of_the_loaded_weights(tmp_path: Path, layout: str) -> None:
    folder = write_checkpoint(tmp_path, "G5", layout=layout)  # type: ignore[arg-type]
    automatic, _, _ = load_model(folder)
    assert {parameter.dtype for parameter in automatic.parameters()} == {torch.float32}
    half, _, _ = load_model(folder, dtype="bfloat16")
    for name, parameter in half.named_parameters():
        scalar = "lambda" in name
        assert parameter.dtype == (torch.float32 if scalar else torch.bfloat16), name
    assert (logits(half) - logits(automatic)).abs().mean() < 0.2
    with pytest.raises(CheckpointError, match="dtype 'float16'"):
        load_model(folder, dtype="float16")


@pytest.mark.parametrize("generation", ["G1", "G5"])
async def test_x2_weights_keys_and_values_are_resident_in_bfloat16(
    tmp_path: Path, generation: Generation
) -> None:
    """On a GPU tests/gpu/test_deep.py looks at the memory that they take. G5's scalars stay float32 and come
    first among its parameters.
    """
    model, tokenizer, _ = load_model(write_checkpoint(tmp_path, generation, layout="flat"), dtype="bfloat16")
    engine = AsyncEngine(model, tokenizer, EngineConfig(num_blocks=8, block_size=16))  # type: ignore[arg-type]
    runner = engine.core.runner
    assert isinstance(runner, ModelRunner)
    try:
        cache, config = runner.cache, model.config
        width = config.n_kv_head * config.head_dim
        assert cache.keys.dtype == cache.values.dtype == torch.bfloat16
        assert all(k.size(-1) == v.size(-1) == width for k, v in cache.slots)
        assert {tensor.dtype for tensor in model.parameters() if tensor.dim() == 2} == {torch.bfloat16}
    finally:
        await engine.close()


def test_stored_bfloat16_becomes_float32(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, "G1", layout="flat")
    file = folder / "model_000007.pt"
    state = torch.load(file)
    state["transformer.wte.weight"] = state["transformer.wte.weight"].bfloat16()
    torch.save(state, file)
    weight = load_model(folder)[0].transformer["wte"].weight
    assert torch.equal(weight, state["transformer.wte.weight"].float())


def test_the_model_outlives_its_file(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, "G1", layout="flat")
    model, _, _ = load_model(folder)
    before = logits(model)
    size = (folder / "model_000007.pt").stat().st_size
    (folder / "model_000007.pt").write_bytes(bytes(size))
    assert torch.equal(logits(model), before)


def test_int8_rows_are_scaled(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, "G5", layout="safetensors", int8=True, shards=2)
    model, _, _ = load_model(folder)
    source = make_model("G5")
    for (name, found), wanted in zip(model.named_parameters(), source.parameters(), strict=True):
        step = wanted.abs().amax(-1, keepdim=True) / 127 if ".h." in name else wanted.abs() / 128
        assert ((found - wanted).abs() <= 0.51 * step + 1e-6).all(), name


def test_int8_needs_fitting_scales(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, "G1", layout="safetensors", int8=True)
    good = load_file(folder / "model.safetensors")
    name = "transformer.h.2.mlp.c_fc.weight"
    save_file(good | {name + ".scale": torch.ones(3)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"c_fc\.weight\.scale has shape \[3\].* needs \[256\]"):
        load_model(folder)
    del good[name + ".scale"]
    save_file(good, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"c_fc\.weight is of type torch\.int8"):
        load_model(folder)


def test_detection_needs_no_torch() -> None:
    modules = "engine.detect, engine.tools, engine.transformers_format"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_x1_detection_of_a_published_model() -> None:
    """d20's tensors, by name and shape."""
    with torch.device("meta"):
        model = GPT(
            GPTConfig(vocab_size=65536, sequence_len=2048, n_layer=20, n_head=10, n_kv_head=10, n_embd=1280)
        )
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert len(shapes) == 122
    found = detect(shapes, description(model.config))
    assert found.config == model.config
    assert model.parameter_count() == 560_988_160
