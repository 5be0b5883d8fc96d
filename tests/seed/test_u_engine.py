"""U1, U2, U4 and F2: the synchronous engine of scripts and notebooks."""

import gc
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import torch

from engine import GPT, Engine, EngineConfig, GPTConfig, load_model
from engine.columns import Column
from engine.text import Tokenizer
from tests.engine.checkpoints import golden_tokenizer, make_model
from tests.engine.golden import GOLDEN

ROOT = Path(__file__).parent.parent.parent
LENGTHS = [1, 2, 5, 16, 17, 40]
BOS = 503


def prompt(length: int, first: int = 0) -> list[int]:
    return [BOS, *(17 * (first + place) % 500 for place in range(1, length))]


def row_of(columns: Iterable[Column], row: int = 0) -> list[tuple[int, int]]:
    """A row's tokens with their masks, up to its end."""
    return [(t[row], m[row]) for t, m in columns if m[row] != -1]


def settled(engine: Engine) -> tuple[int, int, int]:
    """Rows and blocks that are held, and sequences that wait."""
    stats = engine.stats()
    return stats.running, stats.waiting, stats.blocks_used


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return golden_tokenizer()


@pytest.fixture(scope="module")
def model() -> GPT:
    """With heads in groups, windows, value embeddings and smear."""
    return make_model("G5", 3, n_head=4, n_kv_head=2, short_window=9)


@pytest.fixture(scope="module")
def batched(model: GPT, tokenizer: Tokenizer) -> Iterator[Engine]:
    with Engine(model, tokenizer, enable_batch_decode=True) as engine:
        yield engine
        assert settled(engine) == (0, 0, 0)


@pytest.fixture(scope="module")
def single(model: GPT, tokenizer: Tokenizer) -> Iterator[Engine]:
    with Engine(model, tokenizer) as engine:
        yield engine
        assert settled(engine) == (0, 0, 0)


def greedy_reference(model: GPT, ids: list[int], count: int, ends: set[int]) -> list[int]:
    """By the dense forward over the whole sequence, one token at a time."""
    tokens = list(ids)
    while len(tokens) < len(ids) + count and (len(tokens) == len(ids) or tokens[-1] not in ends):
        with torch.no_grad():
            tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    return tokens[len(ids) :]


# -- U1: the call form


@pytest.mark.parametrize("name", ["g1", "g5"])
@pytest.mark.parametrize("enable", [True, False])
def test_u1_u4_golden_tokens(name: str, enable: bool) -> None:
    model, tokenizer, meta = load_model(GOLDEN / name, dtype="float32")
    cases = json.loads((GOLDEN / name / "expected.json").read_text())["prompts"]
    expected = [until_end(case["greedy"], meta.terminal_ids) for case in cases]
    with Engine(model, tokenizer, enable_batch_decode=enable) as engine:
        assert engine.mode == ("continuous" if enable else "single")
        for case, tokens in zip(cases, expected, strict=True):
            columns = list(engine.generate(case["prompt"], max_tokens=40, temperature=0))
            assert row_of(columns) == [(token, 1) for token in tokens]
        if enable:
            prompts = [case["prompt"] for case in cases]
            columns = list(engine.generate_batched(prompts, max_tokens=40, temperature=0))
            for row, tokens in enumerate(expected):
                assert row_of(columns, row) == [(token, 1) for token in tokens]
        assert settled(engine) == (0, 0, 0)


def until_end(tokens: list[int], ends: Iterable[int]) -> list[int]:
    """Up to the terminal token, which is part of the answer."""
    places = [place for place, token in enumerate(tokens) if token in ends]
    return tokens[: places[0] + 1] if places else tokens


def test_u1_columns_end_row_by_row(batched: Engine) -> None:
    columns = list(
        batched.generate_batched([prompt(3), prompt(9), prompt(5)], max_tokens=[2, 5, 3], temperature=0)
    )
    assert [masks for _, masks in columns] == [[1, 1, 1], [1, 1, 1], [-1, 1, 1], [-1, 1, -1], [-1, 1, -1]]
    for tokens, masks in columns:
        assert all(token == BOS for token, mask in zip(tokens, masks, strict=True) if mask == -1)


def test_u1_texts_are_prompts_too(batched: Engine, tokenizer: Tokenizer) -> None:
    texts = ["ab ab", "", "x"]
    ids = [[BOS, *tokenizer.encode(text)] for text in texts]
    call = {"max_tokens": 4, "temperature": 0}
    assert list(batched.generate_batched(texts, **call)) == list(batched.generate_batched(ids, **call))


def test_u1_tuples_arrays_and_more_prompts_than_rows(model: GPT, tokenizer: Tokenizer) -> None:
    config = EngineConfig(max_rows=2)
    with Engine(model, tokenizer, enable_batch_decode=True, config=config) as engine:
        prompts = tuple(tuple(prompt(length)) for length in LENGTHS)
        columns = list(engine.generate_batched(prompts, max_tokens=3, temperature=0))
        assert [masks for _, masks in columns] == [[1] * len(LENGTHS)] * 3
        ids = torch.tensor(prompts[2]).numpy()
        assert row_of(engine.generate(ids, max_tokens=3, temperature=0)) == row_of(columns, 2)


class Chain(GPT):
    """Says a fixed token after each token: `after` maps one to the next, everything else to itself."""

    def __init__(self, after: dict[int, int]) -> None:
        super().__init__(GPTConfig(vocab_size=512, n_layer=1, n_head=4, n_kv_head=4, n_embd=512))
        self.requires_grad_(False)
        self.init_weights()  # its one block adds nothing
        self.transformer["wte"].weight.copy_(torch.eye(512))
        assert isinstance(self.lm_head, torch.nn.Linear)
        for token in range(512):
            self.lm_head.weight[after.get(token, token), token] = 1.0


@pytest.fixture(scope="module")
def calculating(tokenizer: Tokenizer) -> tuple[Chain, list[int], list[int]]:
    """A model that calculates, its prompt, and its answer."""
    special = tokenizer.encode_special
    one, plus, two = (tokenizer.encode(text)[0] for text in "1+2")
    said = [special("<|python_start|>"), one, plus, two, special("<|python_end|>")]
    forced = [special("<|output_start|>"), *tokenizer.encode("3"), special("<|output_end|>")]
    answer = [*said, *forced, special("<|assistant_end|>")]
    after = dict(zip([*said, forced[-1]], [*said[1:], BOS, answer[-1]], strict=True))
    start = special("<|assistant_start|>")
    return Chain(after | {start: said[0]}), [BOS, start], answer


def test_u1_forced_tokens_and_the_terminal_one(
    calculating: tuple[Chain, list[int], list[int]], tokenizer: Tokenizer
) -> None:
    model, ids, answer = calculating
    with Engine(model, tokenizer, enable_batch_decode=True) as engine:
        alone = row_of(engine.generate(ids, temperature=0))
        assert alone == list(zip(answer, [1, 1, 1, 1, 1, 0, 0, 0, 1], strict=True))
        # Beside a row that says one token for ever, and cut within the forced tokens.
        columns = list(engine.generate_batched([[9], ids, ids], max_tokens=[12, None, 6], temperature=0))
        assert row_of(columns, 0) == [(9, 1)] * 12
        assert row_of(columns, 1) == alone
        assert row_of(columns, 2) == alone[:6]
        assert len(columns) == 12


# -- U2: parameters per row


def test_u2_greedy_rows_beside_sampled_ones(batched: Engine, model: GPT) -> None:
    prompts = [prompt(length) for length in LENGTHS]
    temperatures = [0.0, 1.5, 0.0, None, 0.0, 0.7]
    columns = list(
        batched.generate_batched(
            prompts, max_tokens=12, temperature=temperatures, top_k=[None, 5, 3, 50, 0, 900], seed=5
        )
    )
    ends = set(batched._engine.info.terminal_ids)
    for row in (0, 2, 4):
        expected = greedy_reference(model, prompts[row], 12, ends)
        assert row_of(columns, row) == [(token, 1) for token in expected]
    again = batched.generate_batched(
        prompts[::-1], max_tokens=12, temperature=temperatures[::-1], top_k=[900, 0, 50, 3, 5, None], seed=5
    )
    assert row_of(again, 5) == row_of(columns, 0)


def test_u2_a_row_is_what_generate_gives_for_its_seed(batched: Engine, single: Engine) -> None:
    prompts = [prompt(length) for length in LENGTHS]
    columns = list(batched.generate_batched(prompts, max_tokens=10, temperature=1.0, top_k=20, seed=7))
    for row, ids in enumerate(prompts):
        alone = single.generate(ids, max_tokens=10, temperature=1.0, top_k=20, seed=7 + row)
        assert row_of(alone) == row_of(columns, row)


def test_u2_limits(batched: Engine) -> None:
    room = batched._engine.info.max_model_len
    long = prompt(room - 4)
    limits = [1, 0, None, 10_000]
    columns = list(
        batched.generate_batched([prompt(3), prompt(4), long, long], max_tokens=limits, temperature=0)
    )
    assert [len(row_of(columns, row)) for row in range(4)] == [1, 0, 4, 4]
    assert list(batched.generate(prompt(3), max_tokens=0)) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_tokens": [1, 2]},
        {"max_tokens": (1,)},
        {"temperature": []},
        {"temperature": [0.0, 1.0]},
        {"top_k": [1, 2, 3, 4]},
        {"temperature": [0.0, -1.0, 0.0]},
        {"top_k": -1},
        {"max_tokens": -1},
        {"prompts": [[1], [], [2]]},
        {"prompts": [[], [], []]},
        {"prompts": []},
        {"prompts": "text"},
        {"prompts": [1, 2, 3]},
        {"prompts": [[1], [512], [2]]},
        {"prompts": [[1], [-1], [2]]},
        {"prompts": [[1], [0.5], [2]]},
        {"prompts": [[1], [2], [3] * 100_000]},
    ],
    ids=str,
)
def test_u2_errors_come_before_any_computation(batched: Engine, wrong: dict[str, object]) -> None:
    before = batched.stats()
    (name,) = wrong
    call: dict[str, object] = {"prompts": [[1], [2], [3]], "max_tokens": 2} | wrong
    with pytest.raises(ValueError, match=name):
        batched.generate_batched(**call)  # type: ignore[arg-type]  # at the call, not at the first column
    assert batched.stats().prompt_tokens == before.prompt_tokens


def test_u2_an_empty_prompt_is_named(batched: Engine) -> None:
    with pytest.raises(ValueError, match=r"prompts\[1\] is empty"):
        batched.generate_batched([[1], [], []])
    with pytest.raises(ValueError, match="tokens is empty"):
        batched.generate([])
    with pytest.raises(ValueError, match="num_samples"):
        batched.generate([1], num_samples=0)


# -- F2 and U4: the flag


def test_f2_generate_batched_needs_the_flag(single: Engine) -> None:
    assert single.mode == "single"
    with pytest.raises(ValueError, match="enable_batch_decode"):
        single.generate_batched([prompt(3)])


def test_f2_every_row_is_what_it_is_alone(batched: Engine, single: Engine) -> None:
    prompts = [prompt(length, first) for first, length in enumerate(LENGTHS)]
    columns = list(batched.generate_batched(prompts, max_tokens=20, temperature=0))
    for row, ids in enumerate(prompts):
        assert row_of(columns, row) == row_of(single.generate(ids, max_tokens=20, temperature=0))


def test_f2_the_model_is_not_changed(model: GPT, tokenizer: Tokenizer) -> None:
    config = repr(model.config)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with Engine(model, tokenizer, enable_batch_decode=True) as engine:
        list(engine.generate_batched([prompt(3), prompt(4)], max_tokens=3))
    assert repr(model.config) == config
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    with Engine(model, tokenizer) as other, pytest.raises(ValueError, match="enable_batch_decode"):
        other.generate_batched([prompt(3)])


def test_u4_requests_without_the_flag_run_alone_and_in_order(single: Engine) -> None:
    steps = single.stats().steps
    generators = [single.generate(prompt(5, first), max_tokens=6, temperature=0) for first in range(3)]
    firsts = [next(generator) for generator in generators]
    rest = [list(generator) for generator in generators]
    assert [len(columns) for columns in rest] == [5, 5, 5] and len(firsts) == 3
    assert single.stats().batch_rows == 1
    assert single.stats().steps >= steps + 18  # no step served two


def test_the_reuse_of_buffers_changes_no_token(model: GPT, tokenizer: Tokenizer) -> None:
    with Engine(model, tokenizer, reuse_ids_buffer=False) as engine:
        without = list(engine.generate(prompt(4), max_tokens=6, seed=1))
        assert ("reuse ids buffer", "False") in [row[:2] for row in engine.status()]
    with Engine(model, tokenizer, reuse_ids_buffer=True) as engine:
        assert list(engine.generate(prompt(4), max_tokens=6, seed=1)) == without


def test_status_says_what_is_used(batched: Engine, single: Engine) -> None:
    used = {feature: used for feature, _, used, _ in batched.status()}
    assert used["batching"] == "continuous" and used["batch decode"] == "True" and "attention" in used
    used = {feature: used for feature, _, used, _ in single.status()}
    assert used["batching"] == "single" and used["batch decode"] == "False"


def test_the_models_own_flags_count(tokenizer: Tokenizer) -> None:
    """Library use is as nanochat's fork has it: nothing fast that the configuration does not turn on."""
    with Engine(make_model("G1", kv_block_size=4), tokenizer) as engine:
        assert engine._engine.config.profile == "seed"
        assert engine._engine.info.block_size == 4
        assert len(list(engine.generate(prompt(6), max_tokens=7, temperature=0))) == 7


# -- samples


def test_samples_differ_and_repeat(batched: Engine) -> None:
    columns = list(batched.generate(prompt(4), num_samples=16, max_tokens=4, seed=3))
    assert all(len(tokens) == len(masks) == 16 for tokens, masks in columns)
    assert len(set(columns[0][0])) > 1  # the first token is drawn for each, too
    assert list(batched.generate(prompt(4), num_samples=16, max_tokens=4, seed=3)) == columns
    assert list(batched.generate(prompt(4), num_samples=16, max_tokens=4, seed=4)) != columns
    assert row_of(batched.generate(prompt(4), max_tokens=4, seed=3)) == row_of(columns, 0)


def test_greedy_samples_are_equal_whatever_the_seed(single: Engine) -> None:
    columns = list(single.generate(prompt(4), num_samples=3, max_tokens=5, temperature=0, seed=1))
    assert all(len(set(tokens)) == 1 for tokens, _ in columns)
    assert list(single.generate(prompt(4), num_samples=3, max_tokens=5, temperature=0, seed=2)) == columns


# -- generators that end early, side by side, and elsewhere


def test_closing_a_generator_frees_its_blocks(batched: Engine) -> None:
    generated = batched.stats().generated_tokens
    generator = batched.generate_batched([prompt(20), prompt(30)], max_tokens=900, temperature=0.9)
    next(generator)
    assert batched.stats().blocks_used > 0
    generator.close()
    assert settled(batched) == (0, 0, 0)
    for _ in batched.generate(prompt(20), num_samples=3, max_tokens=900, temperature=0.9):
        break
    gc.collect()
    assert settled(batched) == (0, 0, 0)
    generator = batched.generate(prompt(20), max_tokens=900, temperature=0.9)
    next(generator)
    del generator
    gc.collect()
    assert settled(batched) == (0, 0, 0)
    assert batched.stats().generated_tokens < generated + 1500
    batched._engine.core.scheduler.check()


def test_a_generator_that_nobody_reads_computes_nothing(batched: Engine) -> None:
    before = batched.stats()
    generator = batched.generate(prompt(20), max_tokens=900)
    assert batched.stats().prompt_tokens == before.prompt_tokens
    del generator
    assert settled(batched) == (0, 0, 0)


@pytest.mark.parametrize("enable", [True, False])
def test_interleaved_generators(model: GPT, tokenizer: Tokenizer, enable: bool) -> None:
    with Engine(model, tokenizer, enable_batch_decode=enable) as engine:
        call = {"max_tokens": 12, "temperature": 0.8}
        expected = [list(engine.generate(prompt(6, first), **call)) for first in (0, 50)]
        pair = zip(*(engine.generate(prompt(6, first), **call) for first in (0, 50)), strict=True)
        assert [list(columns) for columns in zip(*pair, strict=True)] == expected


def test_two_engines_over_one_model(model: GPT, tokenizer: Tokenizer) -> None:
    with Engine(model, tokenizer) as one, Engine(model, tokenizer, enable_batch_decode=True) as other:
        call = {"max_tokens": 12, "temperature": 0}
        for first, second in zip(
            one.generate(prompt(9), **call), other.generate(prompt(9), **call), strict=True
        ):
            assert first == second


def test_generators_in_threads(batched: Engine) -> None:
    expected = [list(batched.generate(prompt(6, first), max_tokens=15)) for first in range(6)]
    got: dict[int, list[Column]] = {}

    def work(first: int) -> None:
        got[first] = list(batched.generate(prompt(6, first), max_tokens=15))

    threads = [threading.Thread(target=work, args=(first,)) for first in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [got[first] for first in range(6)] == expected


async def test_inside_a_running_event_loop(model: GPT, tokenizer: Tokenizer) -> None:
    """As in a notebook, whose cells run inside a loop."""
    engine = Engine(model, tokenizer, enable_batch_decode=True)
    columns = list(engine.generate_batched([prompt(3), prompt(4)], max_tokens=4, temperature=0))
    assert len(columns) == 4
    engine.close()


# -- ends


def test_a_closed_engine_refuses(model: GPT, tokenizer: Tokenizer) -> None:
    engine = Engine(model, tokenizer)
    running = engine.generate(prompt(4), max_tokens=900, temperature=0.9)
    next(running)
    engine.close()
    engine.close()
    with pytest.raises(RuntimeError, match="closed"):
        list(running)
    with pytest.raises(RuntimeError, match="closed"):
        next(engine.generate(prompt(4)))
    assert engine.stats().blocks_used >= 0
    never_used = Engine(model, tokenizer)
    never_used.close()
    with pytest.raises(RuntimeError, match="closed"):
        next(never_used.generate(prompt(4)))


def test_a_failing_step_reaches_the_caller(
    model: GPT, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Engine(model, tokenizer, enable_batch_decode=True) as engine:
        generator = engine.generate_batched([prompt(4), prompt(5)], max_tokens=900, temperature=0.9)
        next(generator)
        runner = engine._engine.core.runner
        with monkeypatch.context() as patch:
            patch.setattr(runner.model, "hidden", None)  # type: ignore[attr-defined]
            with pytest.raises(RuntimeError, match=r"row 0: the step failed: TypeError"):
                list(generator)
        assert len(list(engine.generate(prompt(4), max_tokens=3, temperature=0))) == 3
        assert settled(engine) == (0, 0, 0)


def test_a_dropped_engine_ends_its_threads(model: GPT, tokenizer: Tokenizer) -> None:
    before = set(threading.enumerate())
    engine = Engine(model, tokenizer)
    list(engine.generate(prompt(4), max_tokens=3))
    assert set(threading.enumerate()) - before
    del engine
    gc.collect()
    deadline = time.monotonic() + 60
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not set(threading.enumerate()) - before


SCRIPT = """
from engine import Engine, load_model
model, tokenizer, meta = load_model({folder!r})
engine = Engine(model, tokenizer, enable_batch_decode=True)
generator = engine.generate_batched([[503, 1, 2], [503]], max_tokens=1000, temperature=0.9)
print(len(next(generator)[0]))
"""


def test_a_script_ends_by_itself_and_silently() -> None:
    """In the middle of a generation, with nothing closed."""
    code = SCRIPT.format(folder=str(GOLDEN / "g1"))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    assert (done.stdout, done.stderr) == ("2\n", "")
