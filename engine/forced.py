"""Steps over tokens that are given: what a model makes of a text, position by position, through a runner."""

from collections.abc import Iterator, Sequence

from engine.blocks import BlockId
from engine.messages import Request, SamplingParams
from engine.plan import Chunk, Plan
from engine.sequence import Sequence as Stream


def forced_plans(passages: Sequence[list[int]], block_size: int) -> Iterator[Plan]:
    """The first step computes the first position of every passage, passage i in row i, and so on: the logits
    of the n-th say what follows each passage's n-th token. What is sampled is not used.

    passages: of one length. They take the blocks from 1 on, and leave rows and blocks to whoever gets them
    next. Raises ValueError for passages of several lengths.
    """
    length = len(passages[0])
    if any(len(passage) != length for passage in passages):
        raise ValueError("passages must be of one length")
    each = -(-length // block_size)
    params = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)
    streams: list[Stream] = []
    for row, passage in enumerate(passages):
        stream = Stream(Request(id=row, prompt=list(passage), params=params))
        first = 1 + row * each
        stream.row, stream.block_table = row, [BlockId(block) for block in range(first, first + each)]
        streams.append(stream)
    for position in range(length):
        chunks = tuple(
            Chunk(stream, row, 0, position, 1, True, False, stream.block_table)
            for row, stream in enumerate(streams)
        )
        yield Plan(chunks, () if position else tuple(streams), (), (), len(chunks))


def forced_blocks(passages: Sequence[list[int]], block_size: int) -> int:
    """Blocks that a cache must have for `forced_plans`, the write-off block included."""
    return 1 + len(passages) * -(-len(passages[0]) // block_size)
