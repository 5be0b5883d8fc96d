"""S1: a sequence outgrows its KV block. `PYTHONPATH=. python -m pytest tests/test_engine.py -q`

A block holds four tokens: the fifth needs a new one, and what the first holds stays as it is, in every layer.
"""

import torch

from engine import AsyncEngine, EngineConfig
from engine.blocks import BlockPool
from engine.messages import Request, SamplingParams
from engine.runner import ModelRunner
from kernels.attention import KVCache
from tests.engine.checkpoints import golden_tokenizer, make_model

LAYERS, KV_HEADS, HEAD_DIM, BLOCK = 6, 3, 5, 4


def test_s1_the_fifth_token_goes_into_a_new_block() -> None:
    pool = BlockPool(8, BLOCK)
    cache = KVCache.allocate(LAYERS, 8, BLOCK, KV_HEADS, HEAD_DIM, torch.float32, "cpu")
    keys, values = torch.randn(2, 5, LAYERS, KV_HEADS, HEAD_DIM).unbind(0)
    table = [pool.allocate()]

    def write(position: int) -> None:
        if position == len(table) * BLOCK:
            table.append(pool.allocate(table[-1]))
        slot = torch.tensor([table[position // BLOCK] * BLOCK + position % BLOCK])
        for layer in range(LAYERS):
            cache.write(
                layer, slot, keys[position : position + 1, layer], values[position : position + 1, layer]
            )

    def stored(layer: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        slots = torch.tensor([table[p // BLOCK] * BLOCK + p % BLOCK for p in range(count)])
        k, v = (flat[slots].view(count, KV_HEADS, HEAD_DIM) for flat in cache.slots[layer])
        return k, v

    for position in range(4):
        write(position)
    assert len(table) == 1 and pool.used == 1
    write(4)
    assert len(table) == 2 and table[1] != table[0] and pool.used == 2
    for layer in range(LAYERS):
        k, v = stored(layer, 5)
        assert torch.equal(k, keys[:, layer]) and torch.equal(v, values[:, layer])


async def test_s1_an_engines_sequence_grows_block_by_block() -> None:
    """Through scheduler and runner: every token is stored once and never again."""
    model = make_model("G5", 1, n_head=4, n_kv_head=2)
    engine = AsyncEngine(model, golden_tokenizer(), EngineConfig(block_size=BLOCK, max_rows=2))
    core, runner = engine.core, engine.core.runner
    assert isinstance(runner, ModelRunner)
    cache = runner.cache
    params = SamplingParams(max_tokens=20, temperature=0, ignore_eos=True)
    core.add(Request(id=1, prompt=[503, 7, 8, 9], params=params))
    (sequence,) = core.scheduler.unfinished()
    before: list[tuple[torch.Tensor, torch.Tensor]] = []
    sizes: list[int] = []
    while (handle := core.launch()) is not None:
        core.process(handle.plan, await runner.collect(handle))
        table = list(handle.plan.chunks[0].block_table)
        sizes.append(len(table))
        count = handle.plan.chunks[0].start + handle.plan.chunks[0].length
        slots = torch.tensor([table[p // BLOCK] * BLOCK + p % BLOCK for p in range(count)])
        now = [(keys[slots], values[slots]) for keys, values in cache.slots]
        assert len(now) == model.config.n_layer
        for (old_keys, old_values), (keys, values) in zip(before, now, strict=bool(before)):
            assert torch.equal(keys[: len(old_keys)], old_keys)
            assert torch.equal(values[: len(old_values)], old_values)
        assert all(keys[-1].any() and values[-1].any() for keys, values in now)
        before = now
    assert sizes == [1, *[2] * 4, *[3] * 4, *[4] * 4, *[5] * 4, *[6] * 3]
    assert len(sequence.tokens) == 24 and core.stats().blocks_used == 0
    await engine.close()
