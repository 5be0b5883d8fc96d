"""The block pool: counts, order of reuse, revival, eviction."""

import pytest

from engine.blocks import WRITE_OFF, BlockId, BlockPool


def take(pool: BlockPool, count: int) -> list[BlockId]:
    return [pool.allocate() for _ in range(count)]


def test_hands_out_every_block_once_but_never_the_write_off_block() -> None:
    pool = BlockPool(8, 16)
    table = take(pool, pool.usable)
    assert sorted(table) == list(range(1, 8))
    assert WRITE_OFF not in table
    assert (pool.free, pool.used) == (0, 7)
    with pytest.raises(RuntimeError, match="no free block"):
        pool.allocate()
    pool.check([table])


@pytest.mark.parametrize(("num_blocks", "block_size"), [(1, 16), (0, 16), (8, 0)])
def test_refuses_a_pool_that_holds_nothing(num_blocks: int, block_size: int) -> None:
    with pytest.raises(ValueError, match="can hold nothing"):
        BlockPool(num_blocks, block_size)


def test_blocks_for_rounds_up() -> None:
    pool = BlockPool(2, 16)
    assert [pool.blocks_for(n) for n in (0, 1, 15, 16, 17, 32)] == [0, 1, 1, 1, 2, 2]


def test_a_shared_block_is_free_after_its_last_holder() -> None:
    pool = BlockPool(4, 1)
    table = take(pool, 2)
    pool.share(table[0])
    pool.release(table)
    assert pool.refs[table[0]] == 1 and pool.refs[table[1]] == 0
    pool.check([[table[0]]])
    pool.release([table[0]])
    assert pool.free == pool.usable
    pool.check([])


def test_cached_blocks_are_reused_last_and_tails_before_heads() -> None:
    pool = BlockPool(7, 1)
    evicted: list[int] = []
    pool.on_evict = evicted.append
    old, new, plain = take(pool, 2), take(pool, 2), take(pool, 2)
    for block in (*old, *new):
        pool.mark(block)
    pool.release(old)
    pool.release(new)
    pool.release(plain)
    assert (pool.free, pool.free_cached) == (6, 4)
    assert take(pool, 2) == plain  # first the content-free ones, in order
    assert take(pool, 4) == [old[1], old[0], new[1], new[0]]  # then least recently used, tail first
    assert evicted == [old[1], old[0], new[1], new[0]]
    assert not any(pool.cached)


def test_reviving_a_cached_block_keeps_its_content_and_renews_it() -> None:
    pool = BlockPool(4, 1)
    evicted: list[int] = []
    pool.on_evict = evicted.append
    first, second, third = take(pool, 3)
    for block in (first, second, third):
        pool.mark(block)
        pool.release([block])
    pool.share(first)
    assert (pool.free, pool.free_cached) == (2, 2)
    pool.check([[first]])
    pool.release([first])
    assert take(pool, 3) == [second, third, first]
    assert evicted == [second, third, first]


def test_content_that_lost_its_worth_goes_first() -> None:
    pool = BlockPool(4, 1)
    first, second, third = take(pool, 3)
    for block in (first, second, third):
        pool.mark(block)
    pool.release([first])
    pool.release([second])
    pool.unmark(second)  # free
    pool.unmark(third)  # still held
    pool.check([[third]])
    assert (pool.free, pool.free_cached) == (2, 1)
    assert pool.allocate() == second
    pool.release([third])
    assert pool.allocate() == third


def test_releasing_too_often_is_an_error() -> None:
    pool = BlockPool(3, 1)
    block = pool.allocate()
    pool.release([block])
    with pytest.raises(RuntimeError, match="released more often"):
        pool.release([block])


def test_check_finds_lies() -> None:
    pool = BlockPool(4, 1)
    table = take(pool, 2)
    pool.check([table])
    with pytest.raises(RuntimeError, match="holders"):
        pool.check([table, table])
    with pytest.raises(RuntimeError, match="holders"):
        pool.check([])
    with pytest.raises(RuntimeError, match="write-off"):
        pool.check([[WRITE_OFF]])
    pool.free += 1
    with pytest.raises(RuntimeError, match="free"):
        pool.check([table])
