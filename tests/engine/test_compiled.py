"""The compiled path of a CPU: right in every generation, rows independent, taken only where it should be."""

import os
import random
import subprocess
import sys
import threading
import tracemalloc
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from msgspec import convert
from torch.profiler import ProfilerActivity, profile

from engine import cpu
from engine.async_engine import AsyncEngine
from engine.checkpoint import embedded_folder
from engine.config import Generation
from engine.loader import load_model
from engine.messages import EngineConfig, SamplingParams
from engine.model import GPT
from engine.text import load_tokenizer
from kernels.attention import KVCache
from kernels.quantize import rounded
from kernels.sampling import sample
from kernels.spec import CompiledKind
from tests.engine.checkpoints import GENERATIONS, make_model
from tests.engine.golden import G1
from tests.engine.serving import Ask, answers, started
from tests.engine.test_eight_bits import STORY, llama
from tests.optional import missing

if find_spec("numba") is None:
    missing("there is no numba")

from engine.compiled import TOKENS, CompiledModel, Ints, Tokens
from engine.compiled_runner import draws_of
from engine.sampler import SamplingRow, sampling_batch
from engine.state import RowState
from kernels.cpu import team

VOCAB, CPU = 512, torch.device("cpu")
HEADS = {"G1": (2, 2), "G2": (2, 2), "G3": (4, 2), "G4": (4, 1), "G5": (2, 2)}
KINDS: tuple[CompiledKind, ...] = ("int8", "bf16")


# Long enough that its mean says something of the model: over a text of 60 tokens int8 is 1 % off on one
# processor and not on another, over thousands of tokens 0.15 % on both.
TALE = """
There was once an old miller who had three sons, and he had nothing in the world but his mill, his donkey
and his cat. When he died, the eldest took the mill, the second took the donkey, and for the youngest
there was only the cat. "What shall I do with a cat?" said the boy. "I can sell her fur and buy a pair of
gloves, and then I shall have nothing more." But the cat had heard every word, and she said to him: "Do
not be sad. Give me a bag and a pair of boots, so that I can walk through the thorns, and you will see
that you have not been so badly treated." The boy did not believe her, but he had seen how clever she was
when she caught rats and mice, and so he did as she asked. The cat pulled on her boots, threw the bag over
her shoulder and went out into the forest, where there were many rabbits. She put some grass into the bag,
lay down as if she were dead, and waited. Soon a young rabbit, who knew little of the world, came to look
for the grass, and the cat pulled the strings and had him. Then she went to the king's house and asked to
speak to him. "Sir," she said, and bowed very low, "I bring you a rabbit from the forest. My master sends
it to you, and he hopes that you will like it." "Tell your master," answered the king, "that I thank him,
and that it gives me great pleasure." The next day she hid in a field of corn and caught two birds, and
took them to the king in the same way. So it went on for two or three months, and the king had a coin
given to her every time, and in the end everybody in the house knew the cat with the boots. In the evening
she sat by the fire with the boy and counted the money. "You see," she said, "we have bread for the winter
already. Tomorrow the king will drive along the river with his daughter, and if you do what I tell you,
you will never have to work in a mill again. Go down to the water and swim; the rest you can leave to me."
The boy laughed, but he went, for he had learned that it was better to listen to her.
"""


def model_of(generation: Generation, dtype: torch.dtype = torch.float32) -> GPT:
    heads, kv_heads = HEADS[generation]
    model = make_model(
        generation,
        3,
        sequence_len=64,
        vocab_size=VOCAB,
        n_layer=4,
        n_head=heads,
        n_kv_head=kv_heads,
        n_embd=64,
        window_pattern="SSL",
    )
    return model.to(dtype).requires_grad_(False).eval()


class Served:
    """A compiled model with sequences of up to `length` tokens in blocks of 16."""

    def __init__(self, model: GPT, kind: CompiledKind, *, rows: int = 1, length: int = 640, threads: int = 2):
        config = model.config
        blocks = -(-length // 16)
        self.cache = KVCache.allocate(
            config.n_layer, 1 + rows * blocks, 16, config.n_kv_head, config.head_dim, torch.bfloat16, "cpu"
        )
        self.model = CompiledModel(model, kind, self.cache, length, length, threads)
        order = np.random.default_rng(0).permutation(rows * blocks) + 1
        self.tables: Ints = order.reshape(rows, blocks).astype(np.int64)

    def step(self, pieces: list[tuple[int, list[int], int, int]]) -> list[torch.Tensor]:
        """pieces: (row, its ids, first, last); the logits of each piece's tokens."""
        columns: list[list[int]] = [[], [], [], []]
        for row, ids, first, last in pieces:
            columns[0] += ids[first:last]
            columns[1] += [ids[i - 1] if i else 0 for i in range(first, last)]
            columns[2] += range(first, last)
            columns[3] += [row] * (last - first)
        tokens = Tokens(*(np.array(column) for column in columns))
        logits, best = self.model.step(tokens, self.tables, range(len(columns[0])))
        assert best.tolist() == [int(row.argmax()) if row.isfinite().all() else -1 for row in logits]
        return list(logits.clone().split([last - first for _, _, first, last in pieces]))


def random_ids(count: int, seed: int = 0) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(VOCAB) for _ in range(count)]


def as_stored(model: GPT, kind: CompiledKind) -> GPT:
    """In float64, with the projections that the compiled model computes with."""
    state = {}
    for name, weight in model.state_dict().items():
        if weight.dim() == 2 and any(part in name for part in ("c_", "lm_head")):
            weight = rounded(weight, "int8") if kind == "int8" else weight.bfloat16()
        state[name] = weight.double()
    other = GPT(model.config).double()
    other.load_state_dict(state)
    return other.requires_grad_(False).eval()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_logits_are_those_of_float64(generation: Generation, kind: CompiledKind, dtype: torch.dtype) -> None:
    """But for the rounding of keys and values, and of the activations of int8."""
    model = model_of(generation, dtype)
    ids = random_ids(100)
    wanted = as_stored(model, kind)(torch.tensor([ids]))[0].double()
    served = Served(model, kind)
    (logits,) = served.step([(0, ids, 0, len(ids))])
    served.model.close()
    error = (logits.double() - wanted).norm() / wanted.norm()
    assert 1e-5 < error < (0.03 if kind == "int8" else 0.006)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("generation", ["G1", "G3", "G5"])
def test_a_token_does_not_depend_on_its_step(generation: Generation, kind: CompiledKind) -> None:
    """Whole, token by token, and in random pieces beside other sequences, by one, two and five threads."""
    model = model_of(generation)
    sequences = [random_ids(count, count) for count in (TOKENS + 70, 90, 33, 1)]
    alone = []
    for row, ids in enumerate(sequences):
        served = Served(model, kind, rows=4, threads=1)
        alone.append(torch.cat([served.step([(row, ids, i, i + 1)])[0] for i in range(len(ids))]))
        served.model.close()
    rng = random.Random(5)
    for threads, most in ((1, 400), (2, 5), (2, 40), (5, 100)):
        served = Served(model, kind, rows=4, threads=threads)
        done = [0] * len(sequences)
        while any(count < len(ids) for count, ids in zip(done, sequences, strict=True)):
            pieces = [
                (row, ids, done[row], min(len(ids), done[row] + rng.randint(1, most)))
                for row, ids in enumerate(sequences)
                if done[row] < len(ids)
            ]
            rng.shuffle(pieces)
            for (row, _, first, last), logits in zip(pieces, served.step(pieces), strict=True):
                assert torch.equal(logits, alone[row][first:last]), (threads, most, row, first)
                done[row] = last
        served.model.close()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FFFFFFF, -1], ids=["usual", "all ones", "negative"])
def test_numbers_that_are_none_stay_in_their_sequence(kind: CompiledKind, bits: int) -> None:
    model = model_of("G1")
    weight = model.transformer["wte"].weight
    assert isinstance(weight, torch.Tensor)
    weight[7] = torch.tensor(bits, dtype=torch.int32).view(torch.float32)
    good = [id for id in random_ids(60) if id != 7]
    served = Served(model, kind, rows=2)
    (wanted,) = served.step([(0, good, 0, len(good))])
    logits, spoilt = served.step([(0, good, 0, len(good)), (1, [5, 7, 9], 0, 3)])
    served.model.close()
    assert torch.equal(logits, wanted)
    assert spoilt[0].isfinite().all() and spoilt[1:].isnan().all()


def test_a_team_that_sleeps_between_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """With no patience at all, every step finds its threads asleep or on their way there."""
    monkeypatch.setattr(team, "LOOKS", 1)
    ids = random_ids(200)
    served = Served(model_of("G2"), "int8", threads=3)
    (wanted,) = served.step([(0, ids, 0, 200)])
    rows = [served.step([(0, ids, i, i + 1)])[0] for i in range(200)]
    served.model.close()
    served.model.close()
    assert torch.equal(torch.cat(rows), wanted)
    with pytest.raises(ValueError, match="a team of 0 threads"):
        team.Team(np.zeros(100, dtype=np.int64), 0)


# ---- which path is taken


def features(engine: AsyncEngine) -> dict[str, tuple[str, ...]]:
    return {name: tuple(rest) for name, *rest in engine.info.features}


async def test_the_embedded_model_is_served_in_its_own_int8() -> None:
    """By default; --dtype float32 is the reference, bit for bit; and both say nearly the same."""
    model, tokenizer, meta = load_model(embedded_folder())
    assert meta.stored == "int8"
    ids = [tokenizer.get_bos_token_id(), *tokenizer.encode(STORY)]
    params = SamplingParams(max_tokens=16, temperature=0, ignore_eos=True, logprobs=1)
    asks = [Ask(ids[:count], params) for count in (3, 40)]
    found = []
    for known, settings in ((meta, {}), (meta, {"dtype": "float32"}), (None, {})):
        config = EngineConfig(**settings)  # type: ignore[arg-type]
        engine = AsyncEngine(model, tokenizer, config, known)
        rows = features(engine)
        kept = "int8" if known is not None and not settings else "float32"
        assert rows["weight dtype"][:2] == ("auto", kept)
        assert rows["attention"][1].startswith("compiled") == (kept == "int8")
        await engine.start()
        found.append([choices[0].content for choices in await answers(engine, asks, together=True)])
        await engine.close()
    assert found[1] == found[2] and found[0] != found[1]


@torch.no_grad()
def test_the_loss_of_the_embedded_model() -> None:
    """docs/cpu.md has the figure on held-out text."""
    model, tokenizer, _ = load_model(embedded_folder())
    assert isinstance(model, GPT)
    ids = [tokenizer.get_bos_token_id(), *tokenizer.encode(TALE)]
    targets = torch.tensor(ids[1:])
    wanted = torch.nn.functional.cross_entropy(model(torch.tensor([ids]))[0, :-1], targets)
    served = Served(model, "int8", length=1024)
    (logits,) = served.step([(0, ids, 0, len(ids))])
    served.model.close()
    assert abs(torch.nn.functional.cross_entropy(logits[:-1], targets) / wanted - 1) < 0.01


@pytest.mark.parametrize(
    "settings, dtype, kept",
    [
        ({}, torch.float32, None),
        ({}, torch.bfloat16, "bf16"),
        ({"weight_dtype": "int8"}, torch.float32, "int8"),
        ({"weight_dtype": "int8"}, torch.bfloat16, "int8"),
        ({"weight_dtype": "bf16"}, torch.float32, "bf16"),
        ({"weight_dtype": "int8", "dtype": "float32"}, torch.float32, None),
        ({"weight_dtype": "fp8"}, torch.float32, None),
    ],
)
def test_which_weights_are_compiled(
    settings: dict[str, object], dtype: torch.dtype, kept: str | None
) -> None:
    engine = AsyncEngine(
        model_of("G3", dtype),
        load_tokenizer(G1 / "tokenizer"),
        EngineConfig(**settings),  # type: ignore[arg-type]
    )
    rows = features(engine)
    assert rows["attention"][1].startswith("compiled") == (kept is not None)
    if kept is not None:
        assert rows["weight dtype"][1] == kept
        assert engine.info.dtype == {"int8": "int8", "bf16": "bfloat16"}[kept]
    engine.core.runner.close()


def test_what_cannot_be_had_is_said() -> None:
    tokenizer = load_tokenizer(G1 / "tokenizer")
    with pytest.raises(ValueError, match="weight_dtype is bf16, and a Llama is served by torch"):
        AsyncEngine(llama(tied=False), tokenizer, EngineConfig(weight_dtype="bf16"))
    with pytest.raises(ValueError, match="weight_dtype is bf16, but the model is in float32"):
        AsyncEngine(model_of("G1"), tokenizer, EngineConfig(weight_dtype="bf16", dtype="float32"))
    odd = make_model("G1", 0, n_embd=96, n_head=4, n_kv_head=4, vocab_size=VOCAB)
    engine = AsyncEngine(odd, tokenizer, EngineConfig(weight_dtype="int8"))
    assert "head_dim 24 is no multiple of" in features(engine)["weight dtype"][2]
    engine.core.runner.close()
    spoilt = model_of("G1")
    spoilt.transformer["h"][1].mlp.c_fc.weight[3, 4] = float("inf")  # type: ignore[index, union-attr]
    with pytest.raises(ValueError, match=r"transformer\.h\.1\.mlp\.c_fc\.weight: numbers are not finite"):
        AsyncEngine(spoilt, tokenizer, EngineConfig(weight_dtype="int8"))


WITHOUT = """
from engine.async_engine import AsyncEngine
from engine.loader import load_model
from engine.messages import EngineConfig
model, tokenizer, meta = load_model(None)
engine = AsyncEngine(model, tokenizer, EngineConfig(), meta)
print([row for row in engine.info.features if row[0] in ("attention", "weight dtype")])
engine.core.runner.close()
"""


def test_a_start_that_is_refused_leaves_no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is found out after the team has been started."""
    names: list[str] = []

    def refuses(*_: object) -> int:
        names.extend(thread.name for thread in threading.enumerate())
        raise ValueError("too much")

    monkeypatch.setattr(cpu, "largest_pool", refuses)
    config = EngineConfig(weight_dtype="int8", threads=3)
    before = threading.active_count()
    with pytest.raises(ValueError, match="too much"):
        AsyncEngine(model_of("G1"), load_tokenizer(G1 / "tokenizer"), config)
    assert {"step 1", "step 2"} <= set(names) and threading.active_count() == before


def test_a_llama_in_bfloat16_is_no_surprise(caplog: pytest.LogCaptureFixture) -> None:
    """Nobody asked for the compiled path; a warning is for who did."""
    tokenizer = load_tokenizer(G1 / "tokenizer")
    for asked, warned in (("auto", False), ("int8", True)):
        caplog.clear()
        config = EngineConfig(weight_dtype=asked)  # type: ignore[arg-type]
        AsyncEngine(llama(tied=False).bfloat16(), tokenizer, config).core.runner.close()
        assert ("the compiled path" in caplog.text) == warned


def run(code: str, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | settings
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment
    )


@pytest.mark.slow
def test_where_nothing_can_be_compiled_torch_serves() -> None:
    """The table says why."""
    lacking = 'import sys\nsys.modules["numba"] = None\n'
    for before, settings, reason in (
        (lacking, {}, "numba cannot be imported"),
        ("", {"NUMBA_DISABLE_JIT": "1"}, "NUMBA_DISABLE_JIT is set"),
    ):
        done = run(before + WITHOUT, **settings)
        assert done.returncode == 0, done.stderr
        assert "paged reference (torch)" in done.stdout and reason in done.stdout, done.stdout


DIGEST = """
from kernels.cpu import entry
if {damage}:
    index = entry._entry(entry._sources(), entry.Compiler)._cache._cache_file._index_path
    open(index, "wb").close()
from tests.engine.test_compiled import *
import hashlib
model, _, _ = load_model(embedded_folder())
ids = random_ids(100)
for kind in KINDS:
    served = Served(model, kind, threads=1)
    print(hashlib.sha256(served.step([(0, ids, 0, 100)])[0].numpy().tobytes()).hexdigest())
    served.model.close()
"""


@pytest.mark.slow
def test_who_compiles_answers_as_who_loads(tmp_path: Path) -> None:
    """In a cache that is damaged, too."""
    first, second = (run(DIGEST.format(damage=n == 0), NUMBA_CACHE_DIR=str(tmp_path)) for n in range(2))
    assert first.returncode == 0 and len(first.stdout.split()) == len(KINDS), first.stderr
    assert "numba's cache is damaged" in first.stderr and "about 12 s, once" in first.stderr
    assert second.stdout == first.stdout and "compiling" not in second.stderr


def test_what_ends_the_compiler_is_a_reason() -> None:
    """Its own, or its parent's."""
    from kernels.cpu.entry import NotPreparedError, _compile

    with pytest.raises(NotPreparedError, match="compiling ended with 1: "):
        _compile({**os.environ, "PYTHONHOME": os.devnull})
    command = [sys.executable, "-m", "kernels.cpu", "compile"]
    orphan = subprocess.run(command, stdin=subprocess.DEVNULL)
    assert orphan.returncode == 1


def test_compiling_ahead() -> None:
    """`make install` does it; where there is no numba it says so, and installing goes on."""
    for before, said in (("", "is ready, after"), ("sys.modules['numba'] = None; ", "torch serves instead")):
        code = f"import sys; {before}import runpy; runpy.run_module('kernels.cpu', run_name='__main__')"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0 and said in done.stdout, done.stderr


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0.0},
        {"temperature": 0.9, "top_k": 50, "repetition_penalty": 1.3, "presence_penalty": 0.4},
    ],
    ids=["greedy", "drawn"],
)
async def test_a_context_that_grows_past_the_pool_is_preempted_and_goes_on(
    sampling: dict[str, float],
) -> None:
    """Blocks of 1 in a pool for little more than one sequence: tables change with every step."""
    model, tokenizer = model_of("G4"), load_tokenizer(G1 / "tokenizer")
    params = convert({"max_tokens": 40, "ignore_eos": True, **sampling}, SamplingParams)
    asks = [Ask(random_ids(count, count), params) for count in (30, 20, 10)]
    found = []
    for settings in ({}, {"block_size": 1, "num_blocks": 80, "enable_prefix_caching": False}):
        engine = await started(model, tokenizer, weight_dtype="int8", **settings)
        found.append([a.tokens for choices in await answers(engine, asks, together=True) for a in choices])
        if settings:
            assert engine.stats().preemptions > 0
        await engine.close()
    assert found[0] == found[1]


async def test_sampling_in_the_step_and_by_torch_give_the_same_tokens() -> None:
    """A row that wants logprobs has its whole step sampled by torch."""
    model, tokenizer = model_of("G5"), load_tokenizer(G1 / "tokenizer")
    common = {"max_tokens": 30, "ignore_eos": True}
    sampled = [
        Ask(random_ids(20, 1), SamplingParams(temperature=0.8, top_k=40, seed=5, **common), n=3),
        Ask(random_ids(7, 2), SamplingParams(temperature=1.2, top_p=0.9, repetition_penalty=1.3, **common)),
        Ask(random_ids(9, 3), SamplingParams(temperature=0.6, min_p=0.02, frequency_penalty=0.5, **common)),
        Ask(random_ids(4, 4), SamplingParams(temperature=0, presence_penalty=0.7, **common)),
    ]
    watching = Ask(random_ids(5), SamplingParams(temperature=0, logprobs=1, max_tokens=40, ignore_eos=True))
    engine = await started(model, tokenizer, weight_dtype="int8")
    alone = [choices for ask in sampled for choices in await answers(engine, [ask], together=True)]
    together = await answers(engine, sampled, together=True)
    watched = await answers(engine, [watching, *sampled], together=True)
    await engine.close()
    assert [[c.content for c in choices] for choices in together] == [[c.content for c in a] for a in alone]
    assert [[c.tokens for c in choices] for choices in watched[1:]] == [[c.tokens for c in a] for a in alone]
    assert all(choice.finish and choice.finish.reason == "length" for a in alone for choice in a)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_part_of_a_long_step_draws_for_its_own_rows(threads: int) -> None:
    """Sequences that end in different parts of a step, one penalised, one greedy, drawn as the reference does
    from the same logits."""
    ends, rows = (TOKENS - 30, 200, 90, 210, 60), 5
    common = {"max_tokens": 1, "temperature": 1.5, "top_k": 100}
    asked = [SamplingParams(seed=seed, **common) for seed in range(rows)]
    asked[1] = SamplingParams(max_tokens=1, temperature=0)
    asked[3] = SamplingParams(seed=9, repetition_penalty=1.4, frequency_penalty=0.2, **common)
    drawing = [SamplingRow(row, asked[row], row, ends[row], ()) for row in range(rows)]
    served, state = Served(model_of("G5"), "int8", rows=rows, threads=threads), RowState(rows, VOCAB, CPU)
    sequences = [random_ids(end, end) for end in ends]
    state.reset_counts(3, sequences[3], random_ids(50))
    before = state.counts(torch.arange(rows))[1].clone()
    batch = sampling_batch(drawing, state, CPU)
    columns = [
        [id for ids in sequences for id in ids],
        [id for ids in sequences for id in (0, *ids[:-1])],
        [position for end in ends for position in range(end)],
        [row for row, end in enumerate(ends) for _ in range(end)],
    ]
    tokens = Tokens(*(np.array(column) for column in columns))
    last = [sum(ends[: row + 1]) - 1 for row in range(rows)]
    logits, chosen = served.model.step(tokens, served.tables, last, draws_of(drawing, state))
    wanted = sample(logits.clone(), batch).tokens
    assert chosen.tolist() == wanted.tolist()
    assert wanted.tolist() != logits.argmax(dim=-1).tolist()
    before[3, wanted[3]] += 1
    assert torch.equal(state.counts(torch.arange(rows))[1], before)
    # What was drawn once has no part in the next step, which wants the best ids.
    logits, chosen = served.model.step(tokens, served.tables, last)
    assert chosen.tolist() == logits.argmax(dim=-1).tolist()
    served.model.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_steady_step_allocates_no_working_memory(kind: CompiledKind) -> None:
    """Beside a few numbers a token, which are kilobytes at most; a layer's activations would be many more."""
    rows, past = 8, 40
    served = Served(model_of("G5"), kind, rows=rows, length=64)
    everything = random_ids(64)
    for row in range(rows):
        served.step([(row, everything, 0, past)])
    for first in (past, past + 1):  # what the first steps set up
        served.step([(row, everything, first, first + 1) for row in range(rows)])
    asked = SamplingParams(max_tokens=1, temperature=0.8, top_k=40, top_p=0.9, repetition_penalty=1.2)
    state = RowState(rows, VOCAB, torch.device("cpu"))
    draws = draws_of([SamplingRow(row, asked, 0, past, ()) for row in range(rows)], state)
    ids = np.array(everything[past + 2 : past + 3] * rows)
    at = Tokens(ids, ids, np.full(rows, past + 2), np.arange(rows))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        served.model.step(at, served.tables, range(rows), draws)
        peak = tracemalloc.get_traced_memory()[1] - before
        tracemalloc.stop()
    assert peak < 16_384
    assert sum(event.cpu_memory_usage for event in profiled.key_averages() if event.cpu_memory_usage > 0) == 0
