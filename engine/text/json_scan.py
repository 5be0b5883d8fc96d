"""Follows a JSON value that arrives in pieces: where it ends, or at which character it is none.

Strict (RFC 8259): no NaN, no bare line breaks in strings, no commas too many. Nothing is built; what the
value says is for others. Every character is looked at once.
"""

import re

MAX_DEPTH = 64
WHITE_SPACE = " \t\n\r"

_PLAIN = re.compile(r'[^"\\\x00-\x1f]+')
_ESCAPES = frozenset('"\\/bfnrt')
_HEX = frozenset("0123456789abcdefABCDEF")
_DIGITS = frozenset("0123456789")
_LITERALS = {"t": "rue", "f": "alse", "n": "ull"}
# Numbers: part -> (characters, next part). A part in _COMPLETE may be the last one.
_NUMBER: dict[str, tuple[tuple[frozenset[str], str], ...]] = {
    "sign": ((frozenset("0"), "zero"), (_DIGITS, "whole")),
    "zero": ((frozenset("."), "point"), (frozenset("eE"), "e")),
    "whole": ((_DIGITS, "whole"), (frozenset("."), "point"), (frozenset("eE"), "e")),
    "point": ((_DIGITS, "fraction"),),
    "fraction": ((_DIGITS, "fraction"), (frozenset("eE"), "e")),
    "e": ((frozenset("+-"), "power"), (_DIGITS, "exponent")),
    "power": ((_DIGITS, "exponent"),),
    "exponent": ((_DIGITS, "exponent"),),
}
_COMPLETE = frozenset({"zero", "whole", "fraction", "exponent"})


class JsonScanner:
    """One object, list or string; numbers and words may only stand inside, for alone they have no end.

    `done`: the value is complete. `failed`: it can never be.
    """

    __slots__ = ("_left", "_number", "_stack", "_state", "done", "failed")

    def __init__(self) -> None:
        self.done = False
        self.failed = False
        self._state = "value"
        self._stack: list[str] = []  # "}" and "]" that are still to come
        self._left = ""  # of a word; of \\uXXXX, one character per digit
        self._number = ""

    def feed(self, text: str, start: int = 0) -> int:
        """Reads on from `start`; the index behind what belongs to the value. Less than all is consumed only
        once the value is `done` (at its end) or has `failed` (at the first wrong character).
        """
        at = start
        while at < len(text) and not self.done:
            if self._state == "string" and (plain := _PLAIN.match(text, at)) is not None:
                at = plain.end()
                continue
            if not self._take(text[at]):
                self.failed = True
                return at
            at += 1
        return at

    def _take(self, character: str) -> bool:
        match self._state:
            case "string":
                if character == '"':
                    self._close()
                elif character == "\\":
                    self._state = "escape"
                else:
                    return False
            case "key string":
                return self._key(character)
            case "escape" | "key escape":
                return self._escape(character)
            case "word":
                if character != self._left[0]:
                    return False
                self._left = self._left[1:]
                if not self._left:
                    self._close()
            case "number":
                return self._digit(character)
            case _:
                return character in WHITE_SPACE or self._structure(character)
        return True

    def _key(self, character: str) -> bool:
        if character == '"':
            self._state = "colon"
        elif character == "\\":
            self._state = "key escape"
        elif character < " ":
            return False
        return True

    def _escape(self, character: str) -> bool:
        if self._left:
            self._left = self._left[1:]
            if character not in _HEX:
                return False
        elif character == "u":
            self._left = "XXXX"
        elif character not in _ESCAPES:
            return False
        if not self._left:
            self._state = "string" if self._state == "escape" else "key string"
        return True

    def _digit(self, character: str) -> bool:
        for characters, then in _NUMBER[self._number]:
            if character in characters:
                self._number = then
                return True
        if self._number not in _COMPLETE:
            return False
        self._close()
        return character in WHITE_SPACE or self._structure(character)

    def _structure(self, character: str) -> bool:
        state = self._state
        if state in ("value", "value or end") and self._value(character):
            return True
        if character == '"' and state in ("key", "key or end"):
            self._state = "key string"
        elif character == ":" and state == "colon":
            self._state = "value"
        elif character == "," and state == "next":
            self._state = "key" if self._stack[-1] == "}" else "value"
        elif state in ("next", "key or end", "value or end") and character == self._stack[-1]:
            self._stack.pop()
            self._close()
        else:
            return False
        return True

    def _value(self, character: str) -> bool:
        """Whether a value begins with this character here."""
        if character == '"':
            self._state = "string"
        elif character in "{[":
            if len(self._stack) == MAX_DEPTH:
                return False
            self._stack.append("}" if character == "{" else "]")
            self._state = "key or end" if character == "{" else "value or end"
        elif not self._stack:
            return False
        elif character in _LITERALS:
            self._state, self._left = "word", _LITERALS[character]
        elif character == "-" or character in _DIGITS:
            self._state = "number"
            self._number = {"-": "sign", "0": "zero"}.get(character, "whole")
        else:
            return False
        return True

    def _close(self) -> None:
        self._state = "next"
        self.done = not self._stack
