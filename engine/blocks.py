"""The pool of KV blocks: who holds which, and which free one goes next.

A block is held by one or more block tables, or free. The free ones form one list in the order of their reuse:
those without cached content at its head, cached ones behind them, least recently used first. Each operation
is O(1). A table may ask for the block behind its last one, since consecutive blocks can be read in place. The
pool does not know what a block contains; it tells the prefix cache when content is about to go.

A pool may grow, up to a maximum. It only counts: whoever owns the memory makes room first, then calls `grow`.
Blocks keep their numbers, so tables, references and cached content stay as they are.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import NewType

BlockId = NewType("BlockId", int)

# Padding rows write their keys and values here. It is never handed out, and is the free list's sentinel.
WRITE_OFF = BlockId(0)


class BlockPool:
    """`num_blocks` blocks of `block_size` tokens each; all but the write-off block can be allocated.

    refs: number of block tables that hold each block.
    cached: 1 where the prefix cache can serve the block's content.
    free: blocks without holder, cached or not. free_cached: the cached ones of those.
    on_evict: called with a cached block just before it is handed out for new content.
    spread: distance between the blocks that a new pool hands out one after the other, so that each of the
        first tables can grow into consecutive blocks.
    max_blocks: what `num_blocks` may grow to; its own size if the pool has that for good.
    wanted: usable blocks without which somebody cannot go on, 0 if nobody is kept waiting for growth.
    """

    __slots__ = (
        "_next",
        "_prev",
        "_spread",
        "block_size",
        "cached",
        "free",
        "free_cached",
        "max_blocks",
        "num_blocks",
        "on_evict",
        "refs",
        "wanted",
    )

    def __init__(
        self, num_blocks: int, block_size: int, spread: int = 1, max_blocks: int | None = None
    ) -> None:
        """max_blocks, like num_blocks, counts the write-off block. None: the pool never grows."""
        if num_blocks < 2 or block_size < 1:
            raise ValueError(f"a pool of {num_blocks} blocks of {block_size} tokens can hold nothing")
        if max_blocks is not None and max_blocks < num_blocks:
            raise ValueError(f"a pool of {num_blocks} blocks cannot grow to {max_blocks}")
        self.num_blocks = 1
        self.max_blocks = max_blocks or num_blocks
        self.block_size = block_size
        self.refs = [0]
        self.cached = bytearray(1)
        self.free = self.free_cached = self.wanted = 0
        self.on_evict: Callable[[BlockId], None] | None = None
        self._spread = spread
        self._next = [WRITE_OFF]
        self._prev = [WRITE_OFF]
        self.grow(num_blocks)

    @property
    def usable(self) -> int:
        return self.num_blocks - 1

    @property
    def used(self) -> int:
        """Blocks in some block table."""
        return self.usable - self.free

    @property
    def may_grow(self) -> bool:
        return self.num_blocks < self.max_blocks

    def want(self, usable: int) -> None:
        """Somebody needs a pool of so many usable blocks, or of the largest size; see `wanted`."""
        if self.may_grow:
            self.wanted = max(self.wanted, min(usable, self.max_blocks - 1))

    def grow(self, num_blocks: int) -> None:
        """Adds free blocks behind the present ones, for which there is memory now. Raises ValueError beyond
        the maximum.
        """
        first, count = self.num_blocks, num_blocks - self.num_blocks
        if count < 1 or num_blocks > self.max_blocks:
            raise ValueError(f"a pool of {first} blocks, at most {self.max_blocks}, cannot have {num_blocks}")
        self.refs += [0] * count
        self.cached += bytes(count)
        self._next += [WRITE_OFF] * count
        self._prev += [WRITE_OFF] * count
        # A ring through the sentinel: 0 -> first -> first + spread -> ... -> first + 1 -> ... -> the others.
        spread = max(1, min(self._spread, count))
        order = (b for offset in range(first, first + spread) for b in range(offset, num_blocks, spread))
        for before, after in pairwise([WRITE_OFF, *map(BlockId, order), self._next[WRITE_OFF]]):
            self._next[before] = after
            self._prev[after] = before
        self.num_blocks = num_blocks
        self.free += count
        self.wanted = 0

    def settle(self) -> None:
        """The pool has its size for good."""
        self.max_blocks, self.wanted = self.num_blocks, 0

    def blocks_for(self, tokens: int) -> int:
        """Blocks that hold this many tokens."""
        return -(-tokens // self.block_size)

    def allocate(self, behind: BlockId = WRITE_OFF) -> BlockId:
        """Hands out the free block whose loss hurts least, by preference the one next to `behind`.

        Raises RuntimeError when none is free.
        """
        block = BlockId(behind + 1)
        if behind == WRITE_OFF or block >= self.num_blocks or self.refs[block] or self.cached[block]:
            block = self._next[WRITE_OFF]
        if block == WRITE_OFF:
            raise RuntimeError("no free block: look at `free` first")
        if self.cached[block]:
            if self.on_evict is not None:
                self.on_evict(block)
            self.unmark(block)
        self._unlink(block)
        self.refs[block] = 1
        return block

    def share(self, block: BlockId) -> None:
        """One more block table holds `block`; a free one that is still cached is revived."""
        if self.refs[block] == 0:
            self._unlink(block)
            self.free_cached -= self.cached[block]
        self.refs[block] += 1

    def release(self, table: list[BlockId]) -> None:
        """A block table gives up its blocks, tail first: of a cached chain the beginning survives longest."""
        for block in reversed(table):
            if self.refs[block] < 1:
                raise RuntimeError(f"block {block} was released more often than it was taken")
            self.refs[block] -= 1
            if self.refs[block] == 0:
                self._link(block)
                self.free_cached += self.cached[block]

    def mark(self, block: BlockId) -> None:
        """The prefix cache can now serve the content of this block, which someone holds."""
        self.cached[block] = 1

    def unmark(self, block: BlockId) -> None:
        """The content is worth nothing any more; if free, the block is the next to be handed out."""
        if self.cached[block] and self.refs[block] == 0:
            self._unlink(block)
            self.free_cached -= 1
            self.cached[block] = 0
            self._link(block)
        self.cached[block] = 0

    def check(self, tables: Iterable[list[BlockId]]) -> None:
        """Reconciles every count with `tables`, all the block tables there are. Raises RuntimeError."""
        held = Counter(block for table in tables for block in table)
        if held[WRITE_OFF]:
            raise RuntimeError("the write-off block is in a block table")
        for block, refs in enumerate(self.refs):
            if refs != held[BlockId(block)]:
                raise RuntimeError(f"block {block} counts {refs} holders and has {held[BlockId(block)]}")
        listed: list[BlockId] = []
        before, block_id = WRITE_OFF, self._next[WRITE_OFF]
        while block_id != WRITE_OFF:
            if self._prev[block_id] != before or self.refs[block_id] or len(listed) > self.usable:
                raise RuntimeError(f"the free list is broken at block {block_id}")
            listed.append(block_id)
            before, block_id = block_id, self._next[block_id]
        cached = sum(self.cached[block] for block in listed)
        if len(listed) != self.free or cached != self.free_cached:
            raise RuntimeError(f"{len(listed)} free, {cached} cached: not {self.free}, {self.free_cached}")
        if len(listed) + sum(count > 0 for count in held.values()) != self.usable:
            raise RuntimeError("a block is neither free nor held")

    def _link(self, block: BlockId) -> None:
        # Cached content goes to the tail, where it lives longest; anything else is reused first.
        after = WRITE_OFF if self.cached[block] else self._next[WRITE_OFF]
        before = self._prev[after]
        self._next[before] = self._prev[after] = block
        self._prev[block], self._next[block] = before, after
        self.free += 1

    def _unlink(self, block: BlockId) -> None:
        before, after = self._prev[block], self._next[block]
        self._next[before], self._prev[after] = after, before
        self.free -= 1
