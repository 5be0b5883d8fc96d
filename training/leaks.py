"""`python -m training.leaks --data DIR`: no prompt of the evaluation may occur in training data."""

import argparse
from collections.abc import Iterator
from pathlib import Path

from training.conversations import FAMILIES, STORY_FAMILIES, generate
from training.data import CHAT_SOURCES, conversations, plain_texts, read_shard
from training.prompts import SUBSTRING_WORDS, held_out, is_held_out, normalised
from training.settings import full


def training_texts(data: Path, generated: int) -> Iterator[tuple[str, list[str]]]:
    """(where from, user turns or whole text) of all that training reads, and `generated` conversations."""
    for source, text in plain_texts(data):
        yield f"plain/{source}", [text]
    for source, messages in conversations(data):
        yield f"chat/{source}", [turn["content"] for turn in messages if turn["role"] == "user"]
    for families in (FAMILIES, STORY_FAMILIES):
        for name, messages in generate(families, generated, 0):
            yield f"generated/{name}", [turn["content"] for turn in messages if turn["role"] == "user"]


def find(data: Path, generated: int) -> list[str]:
    """A line for every held-out prompt that occurs."""
    prompts = held_out()
    long = [prompt for prompt in prompts if len(prompt.split()) >= SUBSTRING_WORDS]
    found = []
    for source, texts in training_texts(data, generated):
        for text in map(normalised, texts):
            if text in prompts:
                found.append(f"{source}: {text}")
            elif len(text) > 20:
                found += [f"{source}: {prompt}" for prompt in long if prompt in text]
    return found


def left_out(data: Path) -> int:
    """Conversations of the shards that were left out because they hold a held-out prompt."""
    count = 0
    for path in sorted(data.glob("chat-*.jsonl.xz")):
        for item in read_shard(path):
            messages = item["messages"]
            assert isinstance(messages, list)
            asked = [turn["content"] for turn in messages if turn["role"] == "user"]
            count += str(item["kind"]) in CHAT_SOURCES and any(map(is_held_out, asked))
    return count


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m training.leaks", description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--generated", type=int, default=full().generated_talk)
    args = parser.parse_args()
    found = find(args.data, args.generated)
    print("\n".join(found))
    print(f"{len(held_out())} held-out prompts, {len(found)} found in training data,", end=" ")
    print(f"{left_out(args.data)} conversations had been left out for holding one")
    return bool(found)


if __name__ == "__main__":
    raise SystemExit(main())
