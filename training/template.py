"""nanochat's conversation template as token ids, with the tokens marked that the assistant has to produce."""

from collections.abc import Sequence

from training.conversations.exchange import TOOL_MARKER, Message, Scripted
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
    """Token ids and, for each, 1 where the assistant is to produce it. Roles alternate, the user first.

    Tool markers count in the assistant's `Scripted` turns alone; what the engine forces (output_start to
    output_end, engine/tools.py) is not for the assistant to produce.
    """
    ids, mask = [encoder.special("<|bos|>")], [0]
    for at, message in enumerate(merge_system(messages)):
        role = "assistant" if at % 2 else "user"
        if message["role"] != role:
            raise ValueError(f"turn {at} must be the {role}'s, not {message['role']!r}")
        content = message["content"]
        if role == "assistant" and isinstance(content, Scripted):
            text, learn = _with_tools(content, encoder)
        else:
            text = encoder.encode(content)
            learn = [int(role == "assistant")] * len(text)
        ids += [encoder.special(f"<|{role}_start|>"), *text, encoder.special(f"<|{role}_end|>")]
        mask += [0, *learn, int(role == "assistant")]
    return ids, mask


def _with_tools(content: Scripted, encoder: Encoder) -> tuple[list[int], list[int]]:
    """Ids and mask of a turn with python blocks. The text between two markers is encoded by itself."""
    ids: list[int] = []
    mask: list[int] = []
    learn, at = 1, 0
    for marker in TOOL_MARKER.finditer(content):
        text = encoder.encode(content[at : marker.start()])
        mask += [learn] * len(text)
        if marker[0] == "<|output_start|>":
            learn = 0
        ids += [*text, encoder.special(marker[0])]
        mask.append(learn)
        if marker[0] == "<|output_end|>":
            learn = 1
        at = marker.end()
    text = encoder.encode(content[at:])
    return ids + text, mask + [learn] * len(text)


def prompt(messages: Sequence[Message], encoder: Encoder) -> list[int]:
    """The ids after which the assistant's next turn begins."""
    return [*render(messages, encoder)[0], encoder.special("<|assistant_start|>")]
