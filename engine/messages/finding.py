"""What a look at a configuration has found, one thing at a time."""

from typing import Literal

import msgspec

State = Literal["ok", "note", "wrong"]


class Finding(msgspec.Struct, frozen=True):
    """what: the thing looked at, such as "tokenizer". state: "ok", "note" (it is served all the same) or
    "wrong". says: in words. flag: what mends it, "" where nothing needs to. code: the exit code that a server
    would end with, 0 where it would not.
    """

    what: str
    state: State
    says: str
    flag: str = ""
    code: int = 0
