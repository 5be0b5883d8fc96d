"""The prefix cache: full blocks of tokens, found again by a chain of hashes.

The digest of a block covers everything before it: 16 bytes of blake2b over its parent's digest and its own
tokens; the first parent is made from the salt, so that different salts never share. 128 bits put a collision,
and with it someone else's conversation, out of reach; tokens are not compared again.

A block is published when the step that writes its last token has been *launched*: later steps run behind that
one, so whoever matches the block reads it after it was written. A second block with the same content stays
unpublished with its owner (block tables are append-only, never re-pointed).
"""

import struct
from hashlib import blake2b

from engine.blocks import BlockId, BlockPool
from engine.sequence import Sequence

DIGEST_BYTES = 16


class PrefixCache:
    """Maps digests to blocks of `pool`. Disabled, it never matches and never publishes."""

    __slots__ = ("_blocks", "_digests", "_pool", "_tokens", "enabled")

    def __init__(self, pool: BlockPool, enabled: bool = True) -> None:
        self.enabled = enabled
        self._pool = pool
        self._tokens = struct.Struct(f"<{pool.block_size}I")
        self._blocks: dict[bytes, BlockId] = {}
        self._digests: dict[BlockId, bytes] = {}
        pool.on_evict = self._forget

    def __len__(self) -> int:
        return len(self._blocks)

    def match(self, sequence: Sequence) -> list[BlockId]:
        """The blocks of the longest cached prefix; the caller takes them (`BlockPool.share`) or leaves them.

        The last token is never matched: computing it is what gives the next one.
        """
        if not self.enabled:
            return []
        full = (len(sequence.tokens) - 1) // self._pool.block_size
        self._extend_chain(sequence, full)
        found: list[BlockId] = []
        for digest in sequence.digests[:full]:
            block = self._blocks.get(digest)
            if block is None:
                break
            found.append(block)
        return found

    def publish(self, sequence: Sequence) -> None:
        """Offers the blocks that launched steps have filled with tokens known to the host."""
        full = min(sequence.num_computed, len(sequence.tokens)) // self._pool.block_size
        if not self.enabled or full <= sequence.published:
            return
        self._extend_chain(sequence, full)
        for index in range(sequence.published, full):
            digest, block = sequence.digests[index], sequence.block_table[index]
            if digest not in self._blocks:
                self._blocks[digest] = block
                self._digests[block] = digest
                self._pool.mark(block)
        sequence.published = full

    def evict(self, sequence: Sequence) -> None:
        """Forgets every block with the sequence's content, whoever holds it: it must not be served again."""
        for digest in sequence.digests:
            block = self._blocks.get(digest)
            if block is not None:
                self._forget(block)
                self._pool.unmark(block)

    def clear(self) -> None:
        """Forgets everything, for instance because a launched step failed and did not write its blocks."""
        for block in list(self._digests):
            self._forget(block)
            self._pool.unmark(block)

    def check(self) -> None:
        """Reconciles both maps with the pool's marks. Raises RuntimeError."""
        marked = {BlockId(block) for block, mark in enumerate(self._pool.cached) if mark}
        if self._digests.keys() != marked or {d: b for b, d in self._digests.items()} != self._blocks:
            raise RuntimeError("the prefix cache and the marks of the block pool differ")

    def _forget(self, block: BlockId) -> None:
        del self._blocks[self._digests.pop(block)]

    def _extend_chain(self, sequence: Sequence, full: int) -> None:
        """Appends the digests up to block `full`. Tokens are append-only, so each block is hashed once."""
        chain, tokens, size = sequence.digests, sequence.tokens, self._pool.block_size
        if len(chain) >= full:
            return
        # `person` keeps a salt that is spelt like a block from opening someone else's chain.
        parent = chain[-1] if chain else self._hash(sequence.request.cache_salt, b"salt")
        for start in range(len(chain) * size, full * size, size):
            parent = self._hash(parent + self._tokens.pack(*tokens[start : start + size]), b"block")
            chain.append(parent)

    @staticmethod
    def _hash(data: bytes, person: bytes) -> bytes:
        return blake2b(data, digest_size=DIGEST_BYTES, person=person).digest()
