"""Function calls in a model's text, found while it arrives.

A model writes a call as a JSON object with the function's name and its arguments, between marks that its chat
template taught it. What could be the beginning of a call is held back until it is certain, and nothing else;
the arguments of a call are given out as they arrive. The result does not depend on where the text was cut.

A call counts once its object is complete; a closing mark behind it is not waited for. What turns out to be no
call (broken JSON, a function that was not offered) is content like any other text.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from engine.text.call_format import CallFormat
from engine.text.json_scan import WHITE_SPACE, JsonScanner

MAX_SPACE = 256  # white space before a call that is taken as a part of it


@dataclass(frozen=True, slots=True)
class Said:
    """Content."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegan:
    """A call whose name is certain, and that has arguments; calls count from 0."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """More of a call's arguments, as the model writes them."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class CallEnded:
    """A call is complete: its arguments, joined, are a JSON object."""

    index: int


@dataclass(frozen=True, slots=True)
class CallBroken:
    """A call that had begun turned out to be none. All of its text follows as content."""

    index: int


CallEvent = Said | CallBegan | CallArguments | CallEnded | CallBroken


class CallParser:
    """Reads one answer. `names`: the functions that may be called. `calls`: how many were completed;
    `broken`: whether one that had begun was not.
    """

    __slots__ = (
        "_after_call",
        "_began",
        "_format",
        "_held",
        "_mode",
        "_names",
        "_object",
        "_raw",
        "broken",
        "calls",
    )

    def __init__(self, format: CallFormat, names: Collection[str]) -> None:
        self.calls = 0
        self.broken = False
        self._format = format
        self._names = tuple(names)
        self._mode = "start" if format.bare else "text"
        self._held = ""  # not certain to be content, nor to be a part of a call
        self._after_call = False  # since the last call there was nothing but white space
        self._began = 0
        self._object: _CallObject | None = None
        self._raw: list[str] = []  # of the call that is being read, from the white space before its marker

    def push(self, text: str) -> list[CallEvent]:
        """What `text` makes certain, in order."""
        events: list[CallEvent] = []
        while text:
            match self._mode:
                case "text":
                    text = self._text(text, events)
                case "object":
                    text = self._in_object(text, events)
                case "after":
                    text = self._after(text, events)
                case _:
                    text = self._before_object(text, events)
        return events

    def end(self, *, cut: bool) -> list[CallEvent]:
        """What is left when the answer has ended. `cut`: by the limit on tokens, in the middle of a call
        perhaps, which then stays as it is.
        """
        events: list[CallEvent] = []
        if self._mode == "object":
            if not (cut and self._object is not None and self._object.began):
                self._give_up(events)
        elif not (
            self._after_call and (not self._held.strip(WHITE_SPACE) or (cut and self._mode == "after"))
        ):
            self._say(self._held, events)
        self._held = ""
        self._mode = "text"
        return events

    def _say(self, text: str, events: list[CallEvent]) -> None:
        if text:
            events.append(Said(text))
            self._after_call = False

    def _text(self, text: str, events: list[CallEvent]) -> str:
        """Content, up to a marker."""
        text = self._held + text
        marker = self._format.marker
        found = text.find(marker)
        if found < 0:
            tail = _overlap(text, marker)
            start = _space_before(text, len(text) - tail)
            self._held = text[start:]
            self._say(text[:start], events)
            return ""
        start = _space_before(text, found)
        self._say(text[:start], events)
        behind = found + len(marker)
        self._held = text[start:behind]
        self._mode = "opener" if self._format.opener else "opened"
        return text[behind:]

    def _before_object(self, text: str, events: list[CallEvent]) -> str:
        """White space, and the character that must come next: an opener or an object's brace."""
        rest = text.lstrip(WHITE_SPACE)
        space = text[: len(text) - len(rest)]
        if self._mode == "start" and len(self._held) + len(space) > MAX_SPACE:
            self._mode = "text"
            return self._again(text)
        self._held += space
        if not rest:
            return ""
        if self._mode == "opener" and rest[0] == self._format.opener:
            self._held += rest[0]
            self._mode = "opened"
            return rest[1:]
        if self._mode != "opener" and rest[0] == "{":
            self._raw = [self._held]
            self._held = ""
            self._object = _CallObject(self._names, self._began)
            self._mode = "object"
            return rest
        if self._mode == "start":
            self._mode = "text"
            return rest
        self._mode = "text"
        self._say(self._held, events)
        self._held = ""
        return rest

    def _again(self, text: str) -> str:
        """What is held, to be read as content may be."""
        held, self._held = self._held, ""
        return held + text

    def _in_object(self, text: str, events: list[CallEvent]) -> str:
        object = self._object
        assert object is not None
        end = object.feed(text, events)
        self._raw.append(text[:end])
        self._began = object.index + object.began
        if object.failed:
            self._give_up(events)
        elif object.done:
            self.calls += 1
            self._after_call = True
            self._object = None
            self._raw = []
            self._mode = "after"
        return text[end:]

    def _give_up(self, events: list[CallEvent]) -> None:
        if self._object is not None and self._object.began:
            events.append(CallBroken(self._object.index))
            self.broken = True
        self._say("".join(self._raw), events)
        self._object = None
        self._raw = []
        self._mode = "text"

    def _after(self, text: str, events: list[CallEvent]) -> str:
        """Behind a call: its closer, a separator and the next call, or something else."""
        format = self._format
        at = 0
        while at < len(text):
            seen = (self._held + text[at]).lstrip(WHITE_SPACE)
            if seen and seen == format.separator:
                self._held += text[at]
                self._mode = "opened"
                return text[at + 1 :]
            if seen and seen == format.closer:
                self._held = ""
                self._mode = "text"
                return text[at + 1 :]
            if seen and not format.closer.startswith(seen):
                break
            if len(self._held) >= MAX_SPACE:
                break
            self._held += text[at]
            at += 1
        else:
            return ""
        self._mode = "text"
        return self._again(text[at:])


def _overlap(text: str, marker: str) -> int:
    """The length of the longest end of `text` (without the marker) that is a beginning of `marker`."""
    for size in range(min(len(marker) - 1, len(text)), 0, -1):
        if text.endswith(marker[:size]):
            return size
    return 0


def _space_before(text: str, end: int) -> int:
    """Where the white space that ends at `end` begins."""
    start = end
    while start > 0 and end - start < MAX_SPACE and text[start - 1] in WHITE_SPACE:
        start -= 1
    return start


class _CallObject:
    """Reads one `{"name": ..., "arguments": {...}}`, from its brace on. Keys come in any order, each once;
    `type` ("function") and `id` may be among them.
    """

    __slots__ = (
        "_buffer",
        "_choices",
        "_early",
        "_given",
        "_key",
        "_keys",
        "_name",
        "_names",
        "_scanner",
        "_state",
        "began",
        "done",
        "failed",
        "index",
    )

    def __init__(self, names: Sequence[str], index: int) -> None:
        self.index = index
        self.began = False
        self.done = False
        self.failed = False
        self._names = [name + '"' for name in names]
        self._keys = {'name"', 'arguments"', 'parameters"', 'type"', 'id"'}
        self._name: str | None = None
        self._given = False  # whether arguments were there
        self._early: list[str] = []  # arguments that came before the name
        self._state = "brace"
        self._key = ""
        self._buffer = ""
        self._choices: Collection[str] = ()
        self._scanner: JsonScanner | None = None

    def feed(self, text: str, events: list[CallEvent]) -> int:
        """The index behind what belongs to the object; see JsonScanner.feed."""
        at = 0
        while at < len(text) and not self.done:
            if self._scanner is not None:
                at = self._scan(self._scanner, text, at, events)
            elif self._take(text[at], events):
                at += 1
            elif self._scanner is None:
                self.failed = True
            if self.failed:
                return at
        return at

    def _scan(self, scanner: JsonScanner, text: str, start: int, events: list[CallEvent]) -> int:
        end = scanner.feed(text, start)
        if self._given and self._key in ("arguments", "parameters") and end > start:
            self._argue(text[start:end], events)
        self.failed = scanner.failed
        if scanner.done:
            self._scanner = None
            self._state = "next"
        return end

    def _argue(self, text: str, events: list[CallEvent]) -> None:
        if self._name is None:
            self._early.append(text)
            return
        self._begin(events)
        events.append(CallArguments(self.index, text))

    def _begin(self, events: list[CallEvent]) -> None:
        if not self.began and self._name is not None:
            self.began = True
            events.append(CallBegan(self.index, self._name))

    def _take(self, character: str, events: list[CallEvent]) -> bool:
        """False: this character cannot stand here, or (with a scanner set) belongs to a value."""
        state = self._state
        if state == "choice":
            return self._choose(character, events)
        if character in WHITE_SPACE and state != "brace":
            return True
        match state, character:
            case "brace", "{":
                self._state = "key"
            case "key", '"':
                self._expect(self._keys)
            case "colon", ":":
                self._state = "value"
            case "value", '"' if self._key == "name":
                self._expect(self._names)
            case "value", '"' if self._key == "type":
                self._expect(('function"',))
            case "value", '"' if self._key == "id":
                self._scanner = JsonScanner()
                return False
            case "value", "{" if self._key in ("arguments", "parameters"):
                self._given = True
                self._scanner = JsonScanner()
                return False
            case "next", ",":
                self._state = "key"
            case "next", "}":
                return self._finish(events)
            case _:
                return False
        return True

    def _expect(self, choices: Collection[str]) -> None:
        """One of some strings, the opening quote of which was just read."""
        self._state = "choice"
        self._choices = choices
        self._buffer = ""

    def _choose(self, character: str, events: list[CallEvent]) -> bool:
        self._buffer += character
        if self._buffer in self._choices:
            word = self._buffer[:-1]
            if self._choices is self._keys:
                self._key = word
                self._keys -= (
                    {'arguments"', 'parameters"'} if word in ("arguments", "parameters") else {word + '"'}
                )
                self._state = "colon"
                return True
            if self._key == "name":
                self._name = word
                if self._early:
                    self._argue("".join(self._early), events)
            self._state = "next"
            return True
        return any(choice.startswith(self._buffer) for choice in self._choices)

    def _finish(self, events: list[CallEvent]) -> bool:
        if self._name is None:
            return False
        if not self._given:
            self._begin(events)
            events.append(CallArguments(self.index, "{}"))
        events.append(CallEnded(self.index))
        self.done = True
        return True
