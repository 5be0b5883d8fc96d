"""The offline workloads of the comparison with other engines, exactly defined: token ids, lengths, seeds.

Prompts are random token ids, sampling is greedy, no sequence ends before its last token (`ignore_eos`), and
all requests of a workload are submitted at once.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

SEED_PROMPTS = (12, 18, 25, 33, 40, 52, 61, 77)
STREAMS = (8, 32, 64, 128, 256, 2, 4)  # in the order in which their prompts are drawn


@dataclass(frozen=True, slots=True)
class Work:
    """Requests that are submitted at once. new: output tokens of each."""

    workload: str
    prompts: list[list[int]]
    new: list[int]

    @property
    def streams(self) -> int:
        return len(self.prompts)

    @property
    def tokens(self) -> int:
        return sum(self.new)

    @property
    def longest(self) -> int:
        return max(len(prompt) + new for prompt, new in zip(self.prompts, self.new, strict=True))


def _ids(rng: random.Random, count: int, vocabulary: int) -> list[int]:
    return [rng.randrange(3, vocabulary) for _ in range(count)]


def seed8(vocabulary: int) -> list[Work]:
    """The founding document's: eight short prompts, 64 tokens each."""
    rng = random.Random(0)
    return [Work("seed8", [_ids(rng, length, vocabulary) for length in SEED_PROMPTS], [64] * 8)]


def one(vocabulary: int) -> list[Work]:
    """One stream: prompt 33, 256 tokens."""
    return [Work("one", [_ids(random.Random(0), 33, vocabulary)], [256])]


def streams(vocabulary: int) -> list[Work]:
    """2 to 256 streams: prompt 64, 256 tokens each."""
    rng = random.Random(0)
    return [
        Work("streams", [_ids(rng, 64, vocabulary) for _ in range(count)], [256] * count) for count in STREAMS
    ]


def c256(vocabulary: int) -> list[Work]:
    """256 requests, prompts uniform in 64..512, 256 tokens each."""
    rng = random.Random(0)
    prompts = [_ids(rng, rng.randint(64, 512), vocabulary) for _ in range(256)]
    return [Work("c256", prompts, [256] * 256)]


def qwen(vocabulary: int) -> list[Work]:
    """256 requests, prompts and outputs uniform in 100..1024: 150,245 output tokens."""
    rng = random.Random(0)
    prompts = [[rng.randrange(10_000) for _ in range(rng.randint(100, 1024))] for _ in range(256)]
    new = [rng.randint(100, 1024) for _ in range(256)]
    return [Work("qwen", [[id % vocabulary for id in prompt] for prompt in prompts], new)]


def context1k(vocabulary: int) -> list[Work]:
    """64 streams behind prompts of 1,024 tokens, 128 tokens each: what decoding costs where keys and values
    outweigh the weights.
    """
    rng = random.Random(0)
    return [Work("context1k", [_ids(rng, 1024, vocabulary) for _ in range(64)], [128] * 64)]


WORKLOADS: dict[str, Callable[[int], list[Work]]] = {
    "seed8": seed8,
    "one": one,
    "streams": streams,
    "c256": c256,
    "qwen": qwen,
    "context1k": context1k,
}


def shrunk(work: Work, factor: int) -> Work:
    """The same shape with every length divided, for a look at a small machine; never for a figure."""
    if factor == 1:
        return work
    prompts = [prompt[: max(1, len(prompt) // factor)] for prompt in work.prompts]
    return Work(work.workload, prompts, [max(2, new // factor) for new in work.new])
