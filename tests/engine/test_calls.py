"""Function calls in text that arrives in pieces."""

import json
import re
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.text import (
    CALL_FORMATS,
    CallArguments,
    CallBegan,
    CallBroken,
    CallEnded,
    CallEvent,
    CallFormat,
    CallParser,
    Said,
    detect_call_format,
)
from engine.text.json_scan import JsonScanner
from tests.engine import tool_templates

FEW = settings(max_examples=60)
NAMES = ("clock", "get_weather", "get-2", "x")
HERMES, LLAMA3, MISTRAL = (CALL_FORMATS[name] for name in ("hermes", "llama3", "mistral"))
FORMATS = (HERMES, LLAMA3, MISTRAL)
WHITE = " \t\n\r"

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.dictionaries(st.text(max_size=6), VALUES, max_size=3)


def events(parser: CallParser, pieces: Sequence[str], *, cut: bool = False) -> list[CallEvent]:
    """All events, with neighbours of a kind joined."""
    found = [event for piece in pieces for event in parser.push(piece)] + parser.end(cut=cut)
    joined: list[CallEvent] = []
    for event in found:
        last = joined[-1] if joined else None
        if isinstance(event, Said) and isinstance(last, Said):
            joined[-1] = Said(last.text + event.text)
        elif isinstance(event, CallArguments) and isinstance(last, CallArguments):
            joined[-1] = CallArguments(event.index, last.text + event.text)
        else:
            joined.append(event)
    return joined


def read(format: CallFormat, text: str, *, cut: bool = False) -> list[CallEvent]:
    return events(CallParser(format, NAMES), [text], cut=cut)


def call(index: int, name: str, arguments: str) -> list[CallEvent]:
    return [CallBegan(index, name), CallArguments(index, arguments), CallEnded(index)]


def said(found: Sequence[CallEvent]) -> str:
    return "".join(event.text for event in found if isinstance(event, Said))


# ---- answers as models write them


@st.composite
def answers(draw: st.DrawFn, format: CallFormat) -> tuple[str, list[CallEvent]]:
    """Text, then calls, then text; and what a reader must find."""
    words = st.text("abc <\n[({;,]}/tool_call|TOOLCALLS", max_size=30)
    words = words.filter(lambda text: format.marker not in text)
    before = "" if format.bare and draw(st.booleans()) else draw(words.map(lambda text: text.strip()))
    if format.bare and before.startswith("{"):
        before = "x" + before
    after = draw(words.map(lambda text: text.lstrip(WHITE + ";,]}</")))
    space = st.sampled_from(["", " ", "\n", "\n\n"])
    objects: list[str] = []
    found: list[CallEvent] = [Said(before)] if before else []
    for index in range(draw(st.integers(0, 3))):
        name, value = draw(st.sampled_from(NAMES)), draw(OBJECTS)
        arguments = json.dumps(
            value, ensure_ascii=draw(st.booleans()), indent=draw(st.sampled_from([None, 1]))
        )
        key = draw(st.sampled_from(["arguments", "parameters"]))
        parts = [f'"name":{draw(space)}"{name}"', f'"{key}": {arguments}']
        parts += draw(st.sampled_from([[], ['"type": "function"'], ['"id": "a\\"}b"']]))
        body = ("," + draw(space)).join(draw(st.permutations(parts)))
        objects.append("{" + draw(space) + body + draw(space) + "}")
        found += call(index, name, arguments)
    text = before
    if objects:
        blocks = [objects] if format.separator else [[item] for item in objects]
        for block in blocks:
            inner = f"{draw(space)}{format.separator}{draw(space)}".join(block)
            bare = format.bare and not text
            marker = "" if bare and draw(st.booleans()) else format.marker
            text += draw(space) + marker + draw(space) + format.opener + draw(space) + inner + draw(space)
            text += format.closer + draw(space)
        if not after:
            return text, found
        gap = "" if text[-1] not in WHITE else text[len(text.rstrip(WHITE)) :]
        text += after
        # White space behind a call without a closer belongs to what follows it, too.
        return text, [*found, Said(gap + after)]
    return text + after, [Said(before + after)] if before + after else []


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
def test_answers(format: CallFormat) -> None:
    @FEW
    @given(answers(format), st.integers(1, 7))
    def check(case: tuple[str, list[CallEvent]], size: int) -> None:
        text, expected = case
        for step in (len(text) or 1, size, 1):
            pieces = [text[at : at + step] for at in range(0, len(text), step)]
            assert events(CallParser(format, NAMES), pieces) == expected

    check()


FRAGMENTS = [
    *(
        "<tool_call>",
        "</tool_call>",
        "<|python_tag|>",
        "[TOOL_CALLS]",
        "<tool",
        "[",
        "]",
        ";",
        ",",
        " ",
        "\n",
    ),
    *(
        '{"name": "clock"',
        '{"name": "nobody"',
        ', "arguments": {',
        ', "parameters": {',
        '{"arguments": {"a": "<',
    ),
    *('"a": 1', '"b": [1, 2', "}", "}}", "x", "}, "),
]


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
def test_any_text(format: CallFormat) -> None:
    """Cuts change nothing, complete calls are valid, and without calls every character comes through."""

    @FEW
    @given(
        st.lists(st.sampled_from(FRAGMENTS), max_size=12), st.booleans(), st.randoms(use_true_random=False)
    )
    def check(fragments: list[str], cut: bool, random: "st.Random") -> None:  # type: ignore[name-defined]
        text = "".join(fragments)
        whole = read(format, text, cut=cut)
        places = sorted(random.sample(range(len(text) + 1), min(4, len(text))))
        pieces = [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]
        assert events(CallParser(format, NAMES), pieces, cut=cut) == whole
        assert events(CallParser(format, NAMES), list(text), cut=cut) == whole
        ended = {event.index for event in whole if isinstance(event, CallEnded)}
        for event in whole:
            if isinstance(event, CallArguments) and event.index in ended:
                assert isinstance(json.loads(event.text), dict)
        if not any(isinstance(event, CallBegan) for event in whole):
            assert said(whole) == text

    check()


# ---- what waits


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
def test_only_a_possible_call_waits(format: CallFormat) -> None:
    marker = format.marker
    beginning = "|".join(re.escape(marker[:size]) for size in range(len(marker) - 1, 0, -1))
    tail = re.compile(rf"[{WHITE}]*(?:{beginning})?\Z")

    @FEW
    @given(st.text(marker[:6] + " \nx", max_size=40).filter(lambda text: marker not in text))
    def check(text: str) -> None:
        parser = CallParser(format, NAMES)
        sent = ""
        for end, character in enumerate("x" + text, 1):
            sent += said(parser.push(character))
            waiting = tail.search(("x" + text)[:end])
            assert waiting is not None and sent == ("x" + text)[: waiting.start()]

    check()


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
@pytest.mark.parametrize("before", ["", "Let me see."])
def test_nothing_of_a_call_is_content(format: CallFormat, before: str) -> None:
    arguments = '{"place": "Köln \\"é\\"", "days": [1, 2.5e-3, null]}'
    marker = "" if format.bare and not before else format.marker
    head = f'\n{marker}{format.opener}{{"name": "get_weather", "{format.arguments}": '
    parser = CallParser(format, NAMES)
    assert said([event for character in before + head for event in parser.push(character)]) == before
    given_out = ""
    for end, character in enumerate(arguments, 1):
        for event in parser.push(character):
            if isinstance(event, CallArguments):
                given_out += event.text
        assert given_out == arguments[:end]  # at once
    assert parser.push("}") == [CallEnded(0)]
    assert parser.push(format.closer) == [] and parser.end(cut=False) == []


@pytest.mark.parametrize(
    ("text", "certain"),
    [
        ('{"city": "Paris"}', '{"c'),
        ('{"name": "Bob", "age": 7}', '{"name": "B'),
        ('{"name": "clocks"}', '{"name": "clocks'),
        ('{"name": "clock", "age": 7}', '{"name": "clock", "ag'),
        ('{"name": "clock", "parameters": [1]}', '{"name": "clock", "parameters": ['),
        ("{'name': 'clock'}", "{'"),
        ("[1, 2]", "["),
    ],
)
def test_objects_that_are_no_calls_go_on_at_once(text: str, certain: str) -> None:
    parser = CallParser(LLAMA3, NAMES)
    assert said(parser.push(certain[:-1])) == ""
    assert said(parser.push(certain[-1])) == certain
    assert said(parser.push(text[len(certain) :]) + parser.end(cut=False)) == text[len(certain) :]


# ---- what is no call


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>\n{"name": "nobody", "arguments": {}}\n</tool_call>',
        "<tool_call>get_weather(place='Bonn')</tool_call>",
        '<tool_call>{"arguments": {}}</tool_call>',
        '<tool_call>{"name": "clock", "arguments": "{}"}</tool_call>',
        '<tool_call>{"name": "clock", "name": "x"}</tool_call>',
        '<tool_call>{"name": "clock"',
        "<tool_call>",
    ],
)
def test_malformed_calls_are_content(text: str) -> None:
    parser = CallParser(HERMES, NAMES)
    assert events(parser, ["So: ", text]) == [Said("So: " + text)]
    assert parser.calls == 0 and not parser.broken


def test_a_call_that_breaks_off() -> None:
    text = '<tool_call>\n{"name": "clock", "arguments": {"a": 01}}\n</tool_call>'
    parser = CallParser(HERMES, NAMES)
    assert events(parser, [text]) == [
        CallBegan(0, "clock"),
        CallArguments(0, '{"a": 0'),
        CallBroken(0),
        Said(text),
    ]
    assert parser.calls == 0 and parser.broken


def test_a_call_that_the_limit_cuts() -> None:
    text = '<tool_call>{"name": "clock", "arguments": {"a'
    began = [CallBegan(0, "clock"), CallArguments(0, '{"a')]
    assert read(HERMES, text, cut=True) == began
    assert read(HERMES, text) == [*began, CallBroken(0), Said(text)]
    assert read(HERMES, "<tool_call>{", cut=True) == [Said("<tool_call>{")]


def test_depth_is_limited() -> None:
    for depth, complete in ((63, True), (64, False)):
        arguments = '{"a": ' + "[" * depth + "]" * depth + "}"
        found = read(HERMES, f'<tool_call>{{"name": "clock", "arguments": {arguments}}}</tool_call>')
        assert any(isinstance(event, CallEnded) for event in found) == complete


def test_calls_without_arguments() -> None:
    assert read(HERMES, '<tool_call>{"name": "clock"}</tool_call>') == call(0, "clock", "{}")


# ---- JSON


def _complete(text: str) -> int | None:
    """Where Python's own decoder finds the end of the value that `text` begins with."""

    def refuse(constant: str) -> object:
        raise ValueError(constant)

    try:
        return json.JSONDecoder(parse_constant=refuse).raw_decode(text)[1]
    except ValueError:
        return None


@FEW
@given(
    OBJECTS,
    st.booleans(),
    st.lists(st.tuples(st.integers(0, 200), st.sampled_from(list('"{}[],:\\u0-+.eEtn \x01é'))), max_size=2),
)
def test_json_ends_where_it_ends(value: dict[str, object], ascii: bool, edits: list[tuple[int, str]]) -> None:
    text = json.dumps(value, ensure_ascii=ascii)
    for at, character in edits:
        at = 1 + at % len(text)
        text = text[:at] + character + text[at:]
    scanner = JsonScanner()
    end = scanner.feed(text)
    assert (end if scanner.done else None) == _complete(text)
    letters = JsonScanner()
    taken = 0
    for character in text:
        if letters.done or letters.failed:
            break
        taken += letters.feed(character)
    assert (letters.done, letters.failed, taken) == (scanner.done, scanner.failed, end)


def test_which_format_a_template_shows() -> None:
    assert detect_call_format(tool_templates.QWEN) is HERMES
    assert detect_call_format(tool_templates.LLAMA) is LLAMA3
    assert detect_call_format(tool_templates.MISTRAL) is MISTRAL
    assert detect_call_format("<tool_call>\n<function=name>") is None
    assert detect_call_format("{% for tool in tools %}{{ tool }}{% endfor %}") is None
