"""The block pool: counts, order of reuse, revival, eviction, growth."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

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


def test_a_pool_grows_to_its_maximum_and_no_further() -> None:
    pool = BlockPool(4, 1, max_blocks=9)
    assert pool.may_grow and pool.wanted == 0
    pool.want(100)
    assert pool.wanted == 8, "what there can be, and no more"
    pool.grow(6)
    assert pool.wanted == 0 and pool.may_grow and (pool.usable, pool.free) == (5, 5)
    for wrong in (6, 5, 10):
        with pytest.raises(ValueError, match="cannot have"):
            pool.grow(wrong)
    pool.grow(9)
    assert not pool.may_grow
    pool.want(9)
    assert pool.wanted == 0
    assert sorted(take(pool, 8)) == list(range(1, 9))
    with pytest.raises(ValueError, match="cannot grow"):
        BlockPool(4, 1, max_blocks=3)


def test_new_blocks_go_before_cached_ones_and_continue_the_last_table() -> None:
    pool = BlockPool(5, 1, max_blocks=9)
    evicted: list[int] = []
    pool.on_evict = evicted.append
    held = take(pool, 4)
    cached = [held.pop(0)]
    pool.mark(cached[0])
    pool.release(cached)
    pool.grow(9)
    pool.check([held])
    assert pool.allocate(held[-1]) == 5, "the block behind the last one of the old pool"
    assert sorted(take(pool, 3)) == [6, 7, 8] and not evicted
    assert take(pool, 1) == cached and evicted == cached


@pytest.mark.parametrize("spread", [1, 2, 3, 50])
def test_what_is_added_is_spread_like_a_new_pool(spread: int) -> None:
    pool = BlockPool(2, 1, spread, max_blocks=10)
    assert take(pool, 1) == [1]
    pool.grow(10)
    fresh = BlockPool(9, 1, spread)
    assert [block - 1 for block in take(pool, 8)] == take(fresh, 8)


def test_a_settled_pool_wants_nothing() -> None:
    pool = BlockPool(4, 1, max_blocks=9)
    pool.want(5)
    pool.settle()
    assert (pool.wanted, pool.max_blocks, pool.may_grow) == (0, 4, False)
    pool.want(8)
    assert pool.wanted == 0


class PoolMachine(RuleBasedStateMachine):
    """Tables that take, share and give back blocks, some of them cached, while the pool grows."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(3, 1, max_blocks=24)
        self.cached: set[BlockId] = set()
        self.pool.on_evict = self.cached.discard
        self.tables: list[list[BlockId]] = [[]]

    @rule(index=st.integers(0, 9))
    def allocate(self, index: int) -> None:
        table = self.tables[index % len(self.tables)]
        if self.pool.free:
            behind = table[-1] if table else WRITE_OFF
            beside = BlockId(behind + 1)
            free = behind and beside < self.pool.num_blocks and not self.pool.refs[beside]
            block = self.pool.allocate(behind)
            assert block == beside or not free or beside in self.cached
            table.append(block)

    @rule()
    def open(self) -> None:
        self.tables.append([])

    @rule(index=st.integers(0, 9))
    def share(self, index: int) -> None:
        for block in self.tables[index % len(self.tables)][:1]:
            self.pool.share(block)
            self.tables.append([block])

    @rule(index=st.integers(0, 9))
    def publish(self, index: int) -> None:
        for block in self.tables[index % len(self.tables)]:
            self.pool.mark(block)
            self.cached.add(block)

    @rule(index=st.integers(0, 9))
    def release(self, index: int) -> None:
        table = self.tables.pop(index % len(self.tables))
        self.pool.release(table)
        self.tables = self.tables or [[]]

    @precondition(lambda self: self.pool.may_grow)
    @rule(by=st.integers(1, 9))
    def grow(self, by: int) -> None:
        used, free = self.pool.used, self.pool.free
        blocks = min(self.pool.num_blocks + by, self.pool.max_blocks)
        self.pool.grow(blocks)
        assert (self.pool.num_blocks, self.pool.used) == (blocks, used) and self.pool.free > free

    @invariant()
    def nothing_is_lost(self) -> None:
        self.pool.check(self.tables)
        assert {block for block, mark in enumerate(self.pool.cached) if mark} == self.cached


PoolMachine.TestCase.settings = settings(
    max_examples=100,
    stateful_step_count=40,
)
TestPoolMachine = PoolMachine.TestCase
