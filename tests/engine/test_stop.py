"""Stop strings: the same result however the text is cut, and nothing is held back longer than needed."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.text import StopMatcher

# Few letters, so that matches, overlaps and near misses are common.
TEXT = st.text("ab\nß", max_size=24)
STOPS = st.lists(st.text("ab\nß", min_size=1, max_size=4), min_size=1, max_size=4)


def oracle(text: str, stops: list[str]) -> tuple[int, int, str] | None:
    """(start, end, stop) of the match that is complete first; the longest of those that end together."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            stop = max(ending, key=len)
            return end - len(stop), end, stop
    return None


def cut(text: str, places: list[int]) -> list[str]:
    edges = sorted({0, len(text), *(place for place in places if place < len(text))})
    return [text[a:b] for a, b in pairwise(edges)]


@given(TEXT, STOPS, st.lists(st.integers(0, 24)), st.booleans())
def test_equals_searching_the_whole_text(
    text: str, stops: list[str], places: list[int], include: bool
) -> None:
    matcher = StopMatcher(stops, include)
    sent, matched = "", None
    for piece in cut(text, places):
        safe, matched = matcher.push(piece)
        sent += safe
        if matched is not None:
            break
    found = oracle(text, stops)
    if found is None:
        assert matched is None and matcher.matched is None
        assert sent + matcher.flush() == text
    else:
        start, end, stop = found
        assert matched == matcher.matched == stop
        assert sent == text[: end if include else start]
        assert matcher.push("more") == ("", stop)
        assert matcher.flush() == ""


@given(TEXT, STOPS)
def test_holds_back_only_a_live_partial_match(text: str, stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    sent = ""
    for position, character in enumerate(text, 1):
        safe, matched = matcher.push(character)
        sent += safe
        if matched is not None:
            return
        held = text[len(sent) : position]
        assert not held or any(stop.startswith(held) for stop in stops)
        longer = [text[i:position] for i in range(len(sent))]
        assert not any(stop.startswith(tail) for stop in stops for tail in longer)


def test_cases_worth_reading() -> None:
    matcher = StopMatcher(["</s>", "User:"])
    assert matcher.push("Hello <") == ("Hello ", None)
    assert matcher.push("b> Us") == ("<b> ", None)
    assert matcher.push("e") == ("", None)
    assert matcher.push("r: hi") == ("", "User:")
    assert StopMatcher(["ab", "b"]).push("xab") == ("x", "ab")
    assert StopMatcher(["abcd", "bc"]).push("xabcd") == ("xa", "bc")
    assert StopMatcher(["stop"], include=True).push("a stop b") == ("a stop", "stop")
    assert StopMatcher([]).push("text") == ("text", None)
    assert StopMatcher([]).flush() == ""


def test_an_empty_stop_string_is_an_error() -> None:
    with pytest.raises(ValueError, match="empty"):
        StopMatcher(["a", ""])
