"""Stop strings in text that arrives in pieces of any size.

The match that is complete first wins; of several that end at the same character, the longest. So the result
does not depend on where the pieces were cut, and nothing waits for a longer match once one is complete.

An Aho-Corasick automaton walks over each character once. Its depth is the length of the longest tail that is
the beginning of a stop string, and exactly that tail is held back.
"""

from collections import deque
from collections.abc import Sequence


class StopMatcher:
    """Watches one choice's text for `stops` (none of them empty: ValueError).

    With `include`, the text that is let through ends with the stop string instead of before it.
    `matched` is the stop string that was found, None until then.
    """

    __slots__ = ("_held", "_include", "_node", "_root", "matched")

    def __init__(self, stops: Sequence[str], include: bool = False) -> None:
        if not all(stops):
            raise ValueError("a stop string must not be empty")
        self._root = _automaton(stops) if stops else None
        self._node = self._root
        self._held = ""
        self._include = include
        self.matched: str | None = None

    def push(self, text: str) -> tuple[str, str | None]:
        """(text that is safe to send, the stop string that is now complete or None).

        Text after a match is dropped, and so is everything pushed later.
        """
        node = self._node
        if node is None:
            return text, None
        if self.matched is not None:
            return "", self.matched
        for position, character in enumerate(text, 1):
            while (child := node.children.get(character)) is None and node.fail is not None:
                node = node.fail
            node = child if child is not None else node
            if node.stop is not None:
                self.matched = node.stop
                seen = self._held + text[:position]
                self._held = ""
                return seen if self._include else seen[: len(seen) - len(node.stop)], node.stop
        self._node = node
        seen = self._held + text
        safe = len(seen) - node.depth
        self._held = seen[safe:]
        return seen[:safe], None

    def flush(self) -> str:
        """The held-back tail, when the text has ended without a match."""
        held, self._held = self._held, ""
        self._node = self._root
        return held


class _Node:
    """A prefix of some stop string. `fail` is the longest shorter tail of it that is a prefix, too."""

    __slots__ = ("children", "depth", "fail", "stop")

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.children: dict[str, _Node] = {}
        self.fail: _Node | None = None  # None for the root only
        self.stop: str | None = None  # the longest stop string that this prefix ends with


def _automaton(stops: Sequence[str]) -> _Node:
    root = _Node(0)
    for stop in stops:
        node = root
        for character in stop:
            node = node.children.setdefault(character, _Node(node.depth + 1))
        node.stop = stop
    queue = deque(root.children.values())
    for node in queue:
        node.fail = root
    while queue:
        node = queue.popleft()
        for character, child in node.children.items():
            fail = node.fail
            while fail is not None and character not in fail.children:
                fail = fail.fail
            child.fail = fail.children[character] if fail is not None else root
            if child.stop is None:
                child.stop = child.fail.stop
            queue.append(child)
    return root
