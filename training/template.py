"""nanochat's conversation template as token ids, with the tokens marked that the assistant has to produce."""

from collections.abc import Sequence

from training.conversations.exchange import Message
from training.tokenizer import Encoder


def merge_system(messages: Sequence[Message]) -> list[Message]:
    """A leading system message is put in front of the first user turn, a blank line between."""
    if messages and messages[0]["role"] == "system":
        if len(messages) < 2 or messages[1]["role"] != "user":
            raise ValueError("a system message must be followed by a user message")
        first = {"role": "user", "content": messages[0]["content"] + "\n\n" + messages[1]["content"]}
        return [first, *messages[2:]]
    return list(messages)


def render(messages: Sequence[Message], encoder: Encoder) -> tuple[list[int], list[int]]:
    """Token ids and, for each, 1 where the assistant is to produce it. Roles alternate, the user first."""
    ids, mask = [encoder.special("<|bos|>")], [0]
    for at, message in enumerate(merge_system(messages)):
        role = "assistant" if at % 2 else "user"
        if message["role"] != role:
            raise ValueError(f"turn {at} must be the {role}'s, not {message['role']!r}")
        text = encoder.encode(message["content"])
        learn = int(role == "assistant")
        ids += [encoder.special(f"<|{role}_start|>"), *text, encoder.special(f"<|{role}_end|>")]
        mask += [0, *([learn] * len(text)), learn]
    return ids, mask


def prompt(messages: Sequence[Message], encoder: Encoder) -> list[int]:
    """The ids after which the assistant's next turn begins."""
    return [*render(messages, encoder)[0], encoder.special("<|assistant_start|>")]
