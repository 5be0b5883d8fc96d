"""What the engine needs of a tokenizer, and the ids that end a turn."""

from typing import Protocol


class NanochatTokenizer(Protocol):
    """nanochat's five methods. Library users bring their own tokenizer, so nothing else may be called."""

    def encode_special(self, text: str, /) -> int: ...

    def get_bos_token_id(self) -> int: ...

    def encode(self, text: str, /) -> list[int]: ...

    def decode(self, ids: list[int], /) -> str: ...

    def get_vocab_size(self) -> int: ...


def terminal_ids(tokenizer: NanochatTokenizer) -> tuple[int, ...]:
    """assistant_end, if the tokenizer has it, and bos (a base model ends a document by starting the next)."""
    bos = tokenizer.get_bos_token_id()
    try:
        end = tokenizer.encode_special("<|assistant_end|>")
    except Exception:  # what an unknown special token raises is the tokenizer's own business
        return (bos,)
    return (end, bos) if end != bos else (bos,)
