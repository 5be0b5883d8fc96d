"""The engine on a CPU with weights of eight bits: the reference for a GPU's."""

from collections.abc import Callable
from random import Random

import pytest
import torch
import torch.nn.functional as F

from engine.async_engine import AsyncEngine
from engine.checkpoint import embedded_folder
from engine.eight_bits import fold, kind8, rounded_model, weight_row
from engine.flags import FastPathFlags, check_weights
from engine.llama import Llama
from engine.llama_config import llama_config
from engine.loader import load_model
from engine.messages import EngineConfig, SamplingParams
from engine.messages.config import WeightName
from engine.model import GPT
from engine.text import load_tokenizer
from kernels.quantize import Kind8, rounded
from tests.engine.checkpoints import GENERATIONS, make_model
from tests.engine.golden import G1, GOLDEN, expected
from tests.engine.serving import Ask, answers, started
from tests.tiers import tiered
from training.conversations.tales import plain_story

both = pytest.mark.parametrize("kind", ["int8", "fp8"])
# What rounding may do to the logits of random networks: cosine, and mean cross entropy in nats. fp8's numbers
# are three times as far off. Measured: 0.9998 and 0.003, 0.9962 and 0.029.
CLOSE: dict[Kind8, tuple[float, float]] = {"int8": (0.999, 0.01), "fp8": (0.995, 0.06)}
STORY = (
    "Once upon a time there was a little girl who lived in a small house near the forest. One day she found "
    "a red ball in the garden. She was very happy and played with it all day. Then her friend came, and they "
    "played together until the sun went down."
)


def prompts(name: str) -> list[torch.Tensor]:
    return [torch.tensor([case["prompt"]]) for case in expected(GOLDEN / name)["prompts"]]


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(F.cosine_similarity(a.flatten().double(), b.flatten().double(), dim=0))


@both
@pytest.mark.parametrize("name", ["g1", "g5"])
@torch.no_grad()
def test_logits_and_loss_stay_close(name: str, kind: Kind8) -> None:
    model, _, _ = load_model(GOLDEN / name, dtype="float32")
    assert isinstance(model, GPT)
    other = rounded_model(model, kind)
    assert isinstance(other, GPT)
    least, most = CLOSE[kind]
    losses, tokens = torch.zeros(2), 0
    for ids in prompts(name):
        want, got = model(ids), other(ids)
        assert not torch.equal(want, got) and cosine(want, got) > least
        losses += torch.stack([loss(want, ids), loss(got, ids)])
        tokens += ids.size(1) - 1
    assert (losses[1] - losses[0]).abs() / tokens < most


def loss(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """The summed cross entropy of each id given those before it."""
    return F.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="sum")


@pytest.mark.parametrize("kind", tiered(["int8", "fp8"], {1}))
@torch.no_grad()
def test_the_loss_of_a_trained_model(kind: Kind8) -> None:
    """The embedded one, on more than a thousand tokens: of sixty, single words decide the loss. Its file
    holds int8 with a scale a row, so int8 is what it is already.
    """
    model, tokenizer, _ = load_model(embedded_folder(), dtype="float32")
    assert isinstance(model, GPT)
    other = rounded_model(model, kind)
    assert isinstance(other, GPT)
    rng = Random(1)
    difference, tokens = 0.0, 0
    for text in (STORY, *(plain_story(rng) for _ in range(7))):
        ids = torch.tensor([[tokenizer.get_bos_token_id(), *tokenizer.encode(text)]])
        want, got = model(ids), other(ids)
        assert cosine(want, got) > (0.999999 if kind == "int8" else 0.9995)
        difference += (loss(got, ids) - loss(want, ids)).item()
        tokens += ids.size(1) - 1
    assert tokens > 1_000
    assert abs(difference) / tokens < (1e-4 if kind == "int8" else 0.01)


@both
@pytest.mark.parametrize("name", ["g1", "g5"])
async def test_the_engine_serves_the_rounded_model(name: str, kind: Kind8) -> None:
    """Its greedy tokens and logprobs are those of the rounded model in an engine without the setting."""
    model, tokenizer, _ = load_model(GOLDEN / name, dtype="float32")
    rounded_one = rounded_model(model, kind)
    params = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True, logprobs=2)
    asks = [Ask(case["prompt"], params) for case in expected(GOLDEN / name)["prompts"]]  # type: ignore[arg-type]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    results = []
    for one, asked in ((model, kind), (rounded_one, "auto")):
        # float32 asked for by name is the reference; without it a CPU has a path of its own for int8.
        engine = await started(one, tokenizer, weight_dtype=asked, dtype="float32")  # type: ignore[arg-type]
        rows = {feature: rest for feature, *rest in engine.info.features}
        assert rows["weight dtype"][:2] == ([kind, kind] if asked == kind else ["auto", "float32"])
        results.append(await answers(engine, asks, together=True))
        await engine.close()
    assert [[a.tokens for a in one] for one in results[0]] == [[a.tokens for a in one] for one in results[1]]
    assert [[a.logprobs for a in one] for one in results[0]] == [
        [a.logprobs for a in one] for one in results[1]
    ]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@both
@pytest.mark.parametrize("generation", GENERATIONS)
def test_what_is_rounded_of_nanochats(generation: str, kind: Kind8) -> None:
    """Projections and head; embeddings, gates and lambdas are shared."""
    model = make_model(generation, 0)  # type: ignore[arg-type]
    state, after = model.state_dict(), rounded_model(model, kind).state_dict()  # type: ignore[attr-defined]
    changed = {name for name in state if after[name].data_ptr() != state[name].data_ptr()}
    assert {name.rsplit(".", 2)[-2] for name in changed} == {"c_q", "c_k", "c_v", "c_proj", "c_fc", "lm_head"}
    assert len(changed) == 1 + 6 * model.config.n_layer
    for name in changed:
        assert torch.equal(after[name], rounded(state[name], kind))


def llama(tied: bool) -> Llama:
    described = {
        "model_type": "qwen3",
        "vocab_size": 512,
        "hidden_size": 128,
        "intermediate_size": 320,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": tied,
    }
    model = Llama(llama_config("qwen3", described)).requires_grad_(False)
    model.randomize(0)
    return model


@both
@pytest.mark.parametrize("tied", [False, True], ids=["head of its own", "tied"])
def test_a_llamas_norms_are_part_of_what_is_rounded(tied: bool, kind: Kind8) -> None:
    model = llama(tied)
    other = rounded_model(model, kind)
    assert isinstance(other, Llama)
    layer, after = model.layers[0], other.layers[0]
    norm = layer.input_layernorm.weight
    assert torch.equal(
        after.self_attn.k_proj.weight, rounded(fold(layer.self_attn.k_proj.weight, norm), kind)
    )  # type: ignore[arg-type]
    assert after.input_layernorm.weight.eq(1).all() and after.post_attention_layernorm.weight.eq(1).all()
    assert torch.equal(other.model.norm.weight, model.model.norm.weight)
    assert other.model.embed_tokens.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert torch.equal(other.lm_head.weight, rounded(model.lm_head.weight, kind))  # type: ignore[arg-type]
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied


@both
async def test_a_llama_is_served(kind: Kind8) -> None:
    """Nearly the same first tokens, with close logprobs."""
    model, tokenizer = llama(tied=True), load_tokenizer(G1 / "tokenizer")
    params = SamplingParams(max_tokens=1, temperature=0, ignore_eos=True, logprobs=1)
    asks = [Ask(list(range(5, 5 + n)), params) for n in (2, 9, 30)]
    found = []
    for asked in ("auto", kind):
        engine = await started(model, tokenizer, weight_dtype=asked)  # type: ignore[arg-type]
        found.append([choices[0] for choices in await answers(engine, asks, together=True)])
        await engine.close()
    for plain, eight in zip(*found, strict=True):
        assert plain.logprobs[0] is not None and eight.logprobs[0] is not None
        assert abs(plain.logprobs[0][0] - eight.logprobs[0][0]) < 0.3


def test_which_kind_is_meant() -> None:
    assert kind8("int8", torch.float32) == "int8" and kind8("fp8", torch.bfloat16) == "fp8"
    assert kind8("auto", torch.float32) is None and kind8("bf16", torch.bfloat16) is None
    assert weight_row("auto", torch.bfloat16, "?") == ("weight dtype", "auto", "bfloat16", "the model's own")
    assert weight_row("fp8", torch.bfloat16, "half") == ("weight dtype", "fp8", "fp8", "half")
    with pytest.raises(ValueError, match="weight_dtype is bf16, but the model is in float32"):
        kind8("bf16", torch.float32)
    with pytest.raises(ValueError, match="weight_dtype is 'int4', none of auto, bf16, int8, fp8"):
        kind8("int4", torch.bfloat16)  # type: ignore[arg-type]


@pytest.fixture
def engine() -> Callable[..., AsyncEngine]:
    model, tokenizer = make_model("G1", 0), load_tokenizer(G1 / "tokenizer")
    return lambda **settings: AsyncEngine(model, tokenizer, EngineConfig(**settings))


@pytest.mark.parametrize("asked", ["bf16", "int8", "fp8"])
def test_excludes_transformer_engine(asked: WeightName, engine: Callable[..., AsyncEngine]) -> None:
    with pytest.raises(ValueError, match=f"use_te_weight_only excludes weight_dtype {asked}"):
        engine(weight_dtype=asked, flags={"use_te_weight_only": True})
    check_weights("auto", FastPathFlags(use_te_weight_only=True))
    check_weights(asked, FastPathFlags())


def test_refuses_weights_that_are_not_finite() -> None:
    model = make_model("G1", 0)
    with torch.no_grad():
        model.lm_head.weight[3, 4] = float("nan")  # type: ignore[index, operator]
    with pytest.raises(ValueError, match=r"lm_head\.weight: numbers are not finite"):
        AsyncEngine(model, load_tokenizer(G1 / "tokenizer"), EngineConfig(weight_dtype="int8"))


def test_needs_a_model_that_is_known() -> None:
    with pytest.raises(TypeError, match="for a Linear"):
        rounded_model(torch.nn.Linear(2, 2), "int8")  # type: ignore[arg-type]
