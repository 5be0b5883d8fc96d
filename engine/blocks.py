"""The pool of KV blocks: who holds which, and which free one goes next.

A block is held by one or more block tables, or free. The free ones form one list in the order of their reuse:
those without cached content at its head, cached ones behind them, least recently used first. Each operation
is O(1). A table may ask for the block behind its last one, since consecutive blocks can be read in place. The
pool does not know what a block contains; it tells the prefix cache when content is about to go.
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
    """

    __slots__ = (
        "_next",
        "_prev",
        "block_size",
        "cached",
        "free",
        "free_cached",
        "num_blocks",
        "on_evict",
        "refs",
    )

    def __init__(self, num_blocks: int, block_size: int, spread: int = 1) -> None:
        if num_blocks < 2 or block_size < 1:
            raise ValueError(f"a pool of {num_blocks} blocks of {block_size} tokens can hold nothing")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.refs = [0] * num_blocks
        self.cached = bytearray(num_blocks)
        self.free = num_blocks - 1
        self.free_cached = 0
        self.on_evict: Callable[[BlockId], None] | None = None
        # One ring through the sentinel: 0 -> 1 -> 1 + spread -> ... -> 2 -> 2 + spread -> ... -> 0.
        spread = max(1, min(spread, num_blocks - 1))
        order = [b for offset in range(1, spread + 1) for b in range(offset, num_blocks, spread)]
        self._next = [WRITE_OFF] * num_blocks
        self._prev = [WRITE_OFF] * num_blocks
        for before, after in pairwise([WRITE_OFF, *map(BlockId, order), WRITE_OFF]):
            self._next[before] = after
            self._prev[after] = before

    @property
    def usable(self) -> int:
        return self.num_blocks - 1

    @property
    def used(self) -> int:
        """Blocks in some block table."""
        return self.usable - self.free

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
