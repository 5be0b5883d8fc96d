"""What a reader sees of an answer with tool blocks, told by a second way than the decoder's."""

import re

from engine.text import Tokenizer


def outside_blocks(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    """The ordinary ids that stand in no block, found over the whole answer at once."""
    kinds = "".join(
        "o" if not tokenizer.is_special(id) else "(" if id in tokenizer.block_starts else ")" for id in ids
    )
    shown = re.sub(r"\(o*", lambda block: " " * len(block[0]), kinds)
    return [id for id, kind in zip(ids, shown, strict=True) if kind == "o"]
