"""The prefix cache: what matches, what is published, what is forgotten."""

from hashlib import blake2b

import pytest

from engine.blocks import BlockPool
from engine.messages import Request, SamplingParams
from engine.prefix import PrefixCache
from engine.sequence import Sequence

SIZE = 4


def sequence(prompt: list[int], salt: bytes = b"") -> Sequence:
    return Sequence(Request(id=0, prompt=prompt, params=SamplingParams(max_tokens=8), cache_salt=salt))


def computed(pool: BlockPool, cache: PrefixCache, prompt: list[int], salt: bytes = b"") -> Sequence:
    """A sequence whose whole prompt has been computed and published."""
    made = sequence(prompt, salt)
    made.block_table = [pool.allocate() for _ in range(pool.blocks_for(len(prompt)))]
    made.num_computed = len(prompt)
    cache.publish(made)
    return made


@pytest.fixture
def pool() -> BlockPool:
    return BlockPool(32, SIZE)


@pytest.fixture
def cache(pool: BlockPool) -> PrefixCache:
    return PrefixCache(pool)


def test_matches_full_blocks_of_a_common_prefix(pool: BlockPool, cache: PrefixCache) -> None:
    first = computed(pool, cache, list(range(10)))
    assert len(cache) == 2  # the third block is not full
    assert cache.match(sequence([*range(8), 77, 78])) == first.block_table[:2]
    assert cache.match(sequence([*range(7), 77, 78])) == first.block_table[:1]
    assert cache.match(sequence([1, *range(1, 10)])) == []
    cache.check()


@pytest.mark.parametrize(("length", "blocks"), [(1, 0), (4, 0), (5, 1), (8, 1), (9, 2), (12, 2), (13, 3)])
def test_a_full_hit_leaves_a_token_to_compute(
    pool: BlockPool, cache: PrefixCache, length: int, blocks: int
) -> None:
    computed(pool, cache, list(range(16)))
    assert len(cache.match(sequence(list(range(length))))) == blocks


def test_a_block_depends_on_all_tokens_before_it(pool: BlockPool, cache: PrefixCache) -> None:
    computed(pool, cache, [1, 2, 3, 4, 5, 6, 7, 8])
    assert cache.match(sequence([9, 2, 3, 4, 5, 6, 7, 8, 0])) == []
    assert cache.match(sequence([5, 6, 7, 8, 0])) == []


def test_salts_do_not_share(pool: BlockPool, cache: PrefixCache) -> None:
    mine = computed(pool, cache, list(range(8)), b"mine")
    assert cache.match(sequence([*range(8), 0], b"mine")) == mine.block_table
    assert cache.match(sequence([*range(8), 0])) == []
    assert cache.match(sequence([*range(8), 0], b"yours")) == []


def test_a_salt_spelt_like_a_block_opens_no_chain(pool: BlockPool, cache: PrefixCache) -> None:
    first = computed(pool, cache, list(range(8)))
    root = blake2b(b"", digest_size=16, person=b"salt").digest()
    forged = root + b"".join(token.to_bytes(4, "little") for token in range(4))
    assert blake2b(forged, digest_size=16, person=b"block").digest() == first.digests[0]
    assert cache.match(sequence([4, 5, 6, 7, 0], forged)) == []


def test_publishes_only_what_is_computed_and_known(pool: BlockPool, cache: PrefixCache) -> None:
    made = sequence(list(range(7)))
    made.block_table = [pool.allocate() for _ in range(3)]
    made.num_computed = 3
    cache.publish(made)
    assert len(cache) == 0
    made.num_computed = 7
    cache.publish(made)
    assert len(cache) == 1
    made.num_computed = 8  # position 7 holds a token that the host has not seen
    cache.publish(made)
    assert len(cache) == 1
    made.tokens.append(99)
    cache.publish(made)
    assert len(cache) == 2
    assert cache.match(sequence([*range(7), 99, 0])) == made.block_table[:2]


def test_a_duplicate_stays_unpublished_and_its_children_continue_the_chain(
    pool: BlockPool, cache: PrefixCache
) -> None:
    first = computed(pool, cache, list(range(4)))
    twin = computed(pool, cache, list(range(8)))
    assert not pool.cached[twin.block_table[0]]
    assert cache.match(sequence([*range(8), 0])) == [first.block_table[0], twin.block_table[1]]
    cache.check()


def test_each_block_is_hashed_once(
    pool: BlockPool, cache: PrefixCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[bytes] = []
    real = PrefixCache._hash

    def counted(data: bytes, person: bytes) -> bytes:
        calls.append(person)
        return real(data, person)

    monkeypatch.setattr(PrefixCache, "_hash", staticmethod(counted))
    made = sequence(list(range(5)))
    made.block_table = [pool.allocate() for _ in range(8)]
    for token in range(5, 30):
        cache.match(made)
        made.num_computed = len(made.tokens)
        cache.publish(made)
        made.tokens.append(token)
    assert calls.count(b"block") == 29 // SIZE
    assert calls.count(b"salt") == 1


def test_blocks_survive_their_owner_until_they_are_handed_out_again(
    pool: BlockPool, cache: PrefixCache
) -> None:
    first = computed(pool, cache, list(range(8)))
    pool.release(first.block_table)
    later = sequence([*range(8), 0])
    assert cache.match(later) == first.block_table
    for _ in range(pool.usable - 1):
        pool.allocate()
    assert cache.match(later) == first.block_table[:1]  # the tail went first
    pool.allocate()
    assert cache.match(later) == []
    assert len(cache) == 0
    cache.check()


def test_evicts_content_that_cannot_be_trusted(pool: BlockPool, cache: PrefixCache) -> None:
    bad, good = computed(pool, cache, list(range(8))), computed(pool, cache, list(range(20, 28)))
    pool.release(bad.block_table)
    cache.evict(bad)
    assert cache.match(sequence([*range(8), 0])) == []
    assert cache.match(sequence([*range(20, 28), 0])) == good.block_table
    assert pool.free_cached == 0
    cache.check()
    cache.clear()
    assert cache.match(sequence([*range(20, 28), 0])) == []
    cache.check()
    pool.check([good.block_table])


def test_disabled_it_neither_matches_nor_publishes(pool: BlockPool) -> None:
    cache = PrefixCache(pool, enabled=False)
    computed(pool, cache, list(range(8)))
    assert len(cache) == 0
    assert cache.match(sequence([*range(8), 0])) == []


def test_check_finds_a_mark_without_content(pool: BlockPool, cache: PrefixCache) -> None:
    pool.mark(pool.allocate())
    with pytest.raises(RuntimeError, match="differ"):
        cache.check()
