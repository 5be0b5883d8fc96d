"""Chat templates written in jinja, from Hugging Face folders.

The template is a stranger's program: it runs in jinja's immutable sandbox. It renders to one string, in which
the special tokens of the template's own text must become ids while the same spellings inside messages must
not. So a mark is put before every character of a message where such a spelling begins (or could begin or end
across the message's edge); in the rendered text a marked character is literal, and the marks vanish. Text
between special tokens is encoded in one piece, so borders between template and message tokenise as they do in
training.

A template that reads the variable `tools` knows tools. They are shown to it as OpenAI's clients send them,
and calls of earlier turns with their arguments as objects; every text in them is marked as messages are,
except plain words, which templates compare and look up.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from engine.text.files import CONFIG, read_json, token_spelling
from engine.text.template import ChatMessage, TemplateError, Tool, checked, refuse_tools, terminal_ids
from engine.text.tokenizer import Tokenizer, TokenizerError

MAX_RENDERED_CHARACTERS = 2**24

_WORD = re.compile(r"\w*")


class JinjaTemplate:
    """A sandboxed chat template over one tokenizer.

    The template sees `messages`, `add_generation_prompt`, the named special tokens of tokenizer_config.json,
    and what transformers offers: `raise_exception`, `strftime_now`, `tojson`, loop controls, generation
    blocks, and `tools`. `tool_use` is another template that conversations with tools take. Raises
    TokenizerError when a template does not compile.
    """

    def __init__(self, source: str, tokenizer: Tokenizer, folder: Path, tool_use: str | None = None) -> None:
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
        try:
            self._template = environment.from_string(source)
            self._tool_template = environment.from_string(tool_use or source)
            knows_tools = _reads(environment.parse(tool_use or source), "tools")
        except jinja2.TemplateError as error:
            raise TokenizerError(f"the chat template does not compile: {error}") from error
        self.tool_source = (tool_use or source) if knows_tools else None
        config = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
        spellings = {name: token_spelling(value) for name, value in config.items() if name.endswith("_token")}
        self._names = {name: spelling for name, spelling in spellings.items() if spelling is not None}
        own = {"bos_token": tokenizer.bos, "eos_token": tokenizer.eos or ""}
        # A file that says there is no BOS is believed: its template then has none to write.
        self._names = {name: spelling for name, spelling in own.items() if name not in config} | self._names
        self._tokenizer = tokenizer
        self._specials = tokenizer.special_tokens
        longest_first = sorted(self._specials, key=len, reverse=True)
        self._alternatives = "|".join(map(re.escape, longest_first))
        # Every tail of text that could go on as a special token, and every head that could end one.
        self._heads = {token[:i] for token in self._specials for i in range(1, len(token))}
        self._tails = {token[i:] for token in self._specials for i in range(1, len(token))}
        self._longest = len(longest_first[0])
        self.terminal_ids = terminal_ids(folder, tokenizer)

    def render(
        self, messages: Sequence[ChatMessage], *, continue_final: bool = False, tools: Sequence[Tool] = ()
    ) -> list[int]:
        if self.tool_source is None:
            refuse_tools(tools)
        turns = checked(messages, continue_final, tools=self.tool_source is not None)
        mark, end = _unused_characters("".join(_texts([_as_given(turn) for turn in turns], list(tools))))
        shielded = [self._shield_turn(turn, mark) for turn in turns]
        if continue_final:
            shielded[-1]["content"] = f"{shielded[-1]['content']}{end}"
        text = self._run(shielded, [self._shield_all(tool, mark) for tool in tools], not continue_final)
        if continue_final:
            text, found, _ = text.rpartition(end)
            if not found:
                raise TemplateError("the model's chat template does not show the message to be continued")
        return self._encode(text, mark)

    def _run(
        self, messages: list[dict[str, object]], tools: list[object], add_generation_prompt: bool
    ) -> str:
        given = {"messages": messages, "add_generation_prompt": add_generation_prompt}
        with_tools = bool(tools) or any("tool_calls" in turn or turn["role"] == "tool" for turn in messages)
        template = self._tool_template if with_tools else self._template
        try:
            # Piece by piece, so that a runaway template is stopped before it fills the memory.
            pieces: list[str] = []
            size = 0
            for piece in template.generate(given, tools=tools or None, documents=None, **self._names):
                pieces.append(piece)
                size += len(piece)
                if size > MAX_RENDERED_CHARACTERS:
                    raise TemplateError(f"the rendered text exceeds {MAX_RENDERED_CHARACTERS} characters")
            return "".join(pieces)
        except TemplateError:
            raise
        except Exception as error:  # the template's own program failed, with whatever error it caused
            raise TemplateError(f"the model's chat template refuses this conversation: {error}") from error

    def _shield_turn(self, turn: ChatMessage, mark: str) -> dict[str, object]:
        given = _as_given(turn)
        content = self._shield(turn.content, mark)
        rest = {key: value for key, value in given.items() if key not in ("role", "content")}
        return {"role": turn.role, "content": content} | {
            key: self._shield_all(value, mark) for key, value in rest.items()
        }

    def _shield_all(self, value: object, mark: str) -> object:
        """`value` with every text in it shielded that is more than one word."""
        if isinstance(value, str):
            return value if _WORD.fullmatch(value) else self._shield(value, mark)
        if isinstance(value, Mapping):
            return {self._shield_all(key, mark): self._shield_all(item, mark) for key, item in value.items()}
        if isinstance(value, list):
            return [self._shield_all(item, mark) for item in value]
        return value

    def _shield(self, text: str, mark: str) -> str:
        """`text` with a mark before each character that must not begin (or carry on) a special token."""
        marks = {match.start() for match in re.finditer(f"(?={self._alternatives})", text)}
        # Templates often trim, so what counts as the edge is looked at with and without the white space.
        left = len(text) - len(text.lstrip())
        right = len(text.rstrip())
        for start, stop in {(0, len(text)), (left, right)}:
            inside = start < stop and any(text[start:stop] in token for token in self._specials)
            if inside or any(text.startswith(tail, start) for tail in self._tails):
                marks.add(start)
        for stop in {len(text), right}:
            for start in range(max(0, stop - self._longest), stop):
                if text[start:stop] in self._heads:
                    marks.add(start)
        pieces: list[str] = []
        previous = 0
        for position in sorted(marks):
            pieces += [text[previous:position], mark]
            previous = position
        return "".join([*pieces, text[previous:]])

    def _encode(self, text: str, mark: str) -> list[int]:
        ids: list[int] = []
        literal: list[str] = []
        start = 0
        for match in re.finditer(f"{mark}(.?)|({self._alternatives})", text, re.DOTALL):
            literal.append(text[start : match.start()])
            start = match.end()
            if match[2] is None:
                literal.append(match[1])
                continue
            ids += self._piece("".join(literal), not ids)
            ids.append(self._specials[match[2]])
            literal = []
        return ids + self._piece("".join([*literal, text[start:]]), not ids)

    def _piece(self, text: str, first: bool) -> list[int]:
        return self._tokenizer.encode(text) if first else self._tokenizer.encode_inside(text)


def _as_given(turn: ChatMessage) -> dict[str, object]:
    """A message as templates know it: OpenAI's, but with the arguments of calls as objects."""
    given: dict[str, object] = {"role": turn.role, "content": turn.content}
    if turn.tool_calls:
        given["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in turn.tool_calls
        ]
    if turn.tool_call_id is not None:
        given["tool_call_id"] = turn.tool_call_id
    if turn.name is not None:
        given["name"] = turn.name
    return given


def _texts(*values: object) -> list[str]:
    """Every text in JSON values, keys among them."""
    found: list[str] = []
    open: list[object] = [*values]
    while open:
        value = open.pop()
        if isinstance(value, str):
            found.append(value)
        elif isinstance(value, Mapping):
            open += [*value.keys(), *value.values()]
        elif isinstance(value, list):
            open += value
    return found


def _reads(template: jinja2.nodes.Template, variable: str) -> bool:
    return any(name.name == variable and name.ctx == "load" for name in template.find_all(jinja2.nodes.Name))


def _unused_characters(text: str) -> tuple[str, str]:
    """Two private-use characters that do not occur in `text`."""
    present = set(text)
    candidates: Iterable[int] = (*range(0xF0000, 0xFFFFE), *range(0x100000, 0x10FFFE))
    unused = (chr(code) for code in candidates if chr(code) not in present)
    try:
        return next(unused), next(unused)
    except StopIteration:
        raise TemplateError("the conversation uses every private-use character") from None


def _refuse(message: object) -> NoReturn:
    raise jinja2.TemplateError(str(message))


def _tojson(value: object, indent: int | None = None, ensure_ascii: bool = False) -> str:
    """Plain JSON: jinja's own filter escapes for HTML. Never to ASCII, which would write the marks
    differently."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


class _Generation(jinja2.ext.Extension):
    """`{% generation %}`: marks the assistant's part for training; here it is only its content."""

    tags = {"generation"}  # noqa: RUF012 (as the base class declares it)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)
