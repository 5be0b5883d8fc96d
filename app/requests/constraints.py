"""What an answer has to look like: the fields that say so, and the grammar that makes it so.

A constraint becomes grammar text of llguidance, which the engine takes in `SamplingParams.grammar`. Here that
text is compiled once for its errors, in a thread and with limits, so that a bad one costs its sender a 400
and nobody else anything.
"""

import asyncio
import json
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import msgspec

from app.http.errors import Overloaded, RequestError, Unsupported
from app.http.fields import Fields, missing, shown, wrong_type
from app.requests.json_schema import check_schema

if TYPE_CHECKING:  # 8 MB that are loaded with the first constraint
    import llguidance

MAX_SCHEMA_BYTES = 256 * 1024
MAX_REGEX_CHARS = 4096
MAX_GRAMMAR_CHARS = 64 * 1024
MAX_CHOICES = 10_000
MAX_CHOICE_CHARS = 1024
MAX_NAME = 64
COMPILE_SECONDS = 0.9
WAIT_SECONDS = 10.0  # for its turn to be compiled
COMPILERS = 2  # threads
REMEMBERED = 64  # grammars that are known to be good

# Between the parts of an answer in JSON there is a space at most: with free white space a model can go on
# without an end. Characters stand for themselves, but for those with a short escape: else a key that the
# schema forbids could be written as one that it does not know.
STYLE = {
    "whitespace_flexible": False,
    "item_separator": ", ?",
    "key_separator": ": ?",
    "json_allowed_escapes": '"\\bfnrt',
}

Kind = Literal["json_schema", "regex", "choice", "lark"]


@dataclass(frozen=True, slots=True)
class Constraint:
    """`source` is a JSON schema, a regex, a list of texts, or a grammar in llguidance's Lark; `field` is the
    one that asked for it. Made by `parse_constraint`, or directly for a schema of one's own.
    """

    field: str
    kind: Kind
    source: object


# ---- fields


def parse_constraint(fields: Fields) -> Constraint | None:
    """What the request asks for, by whichever of its fields; nothing is compiled. Raises RequestError,
    also where two fields ask.
    """
    found = [
        *_response_format(fields),
        *_structured_outputs(fields),
        *_flat(fields),
    ]
    if len(found) > 1:
        names = f"'{found[0].field}' and '{found[1].field}'"
        raise RequestError("invalid_value", f"Only one of {names} can shape the answer.", found[1].field)
    return found[0] if found else None


def _response_format(fields: Fields) -> list[Constraint]:
    format = fields.nested("response_format")
    if format is None:
        return []
    type = format.string("type")
    if type is None:
        raise missing(format.name("type"))
    if type == "text":
        return []
    if type == "json_object":
        return [Constraint("response_format", "json_schema", {"type": "object"})]
    if type != "json_schema":
        message = f"'{format.name('type')}' must be text, json_object or json_schema, got '{shown(type)}'."
        raise RequestError("invalid_value", message, format.name("type"))
    wanted = format.nested("json_schema")
    if wanted is None:
        raise missing(format.name("json_schema"))
    return [schema_constraint(wanted)]


def schema_constraint(wanted: Fields) -> Constraint:
    """From OpenAI's object of a named schema. Raises RequestError."""
    name = wanted.string("name")
    if name is None:
        raise missing(wanted.name("name"))
    if not 0 < len(name) <= MAX_NAME or not all(c.isascii() and (c.isalnum() or c in "_-") for c in name):
        message = f"'{wanted.name('name')}' must be 1 to {MAX_NAME} letters, digits, '_' or '-'."
        raise RequestError("invalid_value", message, wanted.name("name"))
    wanted.string("description")
    wanted.boolean("strict")  # a schema is always kept to
    schema = wanted.get("schema")
    if schema is None:
        schema = {"type": "object"}
    return Constraint(wanted.name("schema"), "json_schema", schema)


def _structured_outputs(fields: Fields) -> list[Constraint]:
    options = fields.nested("structured_outputs")
    if options is None:
        return []
    known = ("json", "regex", "choice", "grammar", "json_object")
    for name, value in options.values.items():
        if name not in known and value is not None:
            raise Unsupported(options.name(name))
    found = _named(options, {"json": "json", "regex": "regex", "choice": "choice", "grammar": "grammar"})
    if options.boolean("json_object"):
        found.append(Constraint(options.name("json_object"), "json_schema", {"type": "object"}))
    if not found:
        raise RequestError(
            "invalid_value", f"'structured_outputs' needs one of {', '.join(known)}.", "structured_outputs"
        )
    return found


def _flat(fields: Fields) -> list[Constraint]:
    old = {f"guided_{name}": name for name in ("json", "regex", "choice", "grammar")}
    found = _named(fields, old | {"json_schema": "json", "regex": "regex"})
    return [wanted for wanted in found if wanted.kind != "choice" or wanted.source]


def _named(fields: Fields, names: dict[str, str]) -> list[Constraint]:
    found: list[Constraint] = []
    for name, meaning in names.items():
        value, path = fields.get(name), fields.name(name)
        if value is None:
            continue
        if meaning == "json":
            found.append(Constraint(path, "json_schema", value))
        elif meaning == "choice":
            found.append(Constraint(path, "choice", fields.items(name)))
        else:
            found.append(Constraint(path, "regex" if meaning == "regex" else "lark", fields.string(name)))
    return found


# ---- grammar text


def grammar_text(wanted: Constraint) -> str:
    """llguidance's grammar for a constraint. Raises RequestError; that it compiles is not said."""
    if wanted.kind == "json_schema":
        return schema_grammar(wanted.source, wanted.field)
    if wanted.kind == "choice":
        return choice_grammar(wanted.source, wanted.field)
    if not isinstance(wanted.source, str):
        raise wrong_type(wanted.field, "a string", wanted.source)
    if wanted.kind == "regex":
        return regex_grammar(wanted.source, wanted.field)
    return lark_grammar(wanted.source, wanted.field)


def schema_grammar(schema: object, field: str) -> str:
    """schema: decoded, or a text that holds it."""
    from llguidance import LLMatcher

    if isinstance(schema, str):
        try:
            schema = msgspec.json.decode(schema)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            message = f"'{field}' is not valid JSON: {shown(error, 100)}"
            raise RequestError("invalid_schema", message, field) from None
    checked = check_schema(schema, field)
    text = msgspec.json.encode(checked)
    if len(text) > MAX_SCHEMA_BYTES:
        raise RequestError("out_of_range", f"'{field}' is larger than {MAX_SCHEMA_BYTES} bytes.", field)
    return LLMatcher.grammar_from_json_schema(text.decode(), overrides=STYLE)  # type: ignore[arg-type]


def guided_schema(schema: dict[str, object]) -> dict[str, object]:
    """For use behind `%json` in a Lark grammar: a checked schema in the style of all our JSON."""
    return {**schema, "x-guidance": STYLE}


def regex_grammar(pattern: str, field: str) -> str:
    from llguidance import LLMatcher

    if len(pattern) > MAX_REGEX_CHARS:
        message = f"'{field}' is longer than {MAX_REGEX_CHARS} characters."
        raise RequestError("out_of_range", message, field)
    return LLMatcher.grammar_from_regex(pattern)


def choice_grammar(texts: object, field: str) -> str:
    """One of these texts, as it stands."""
    if not isinstance(texts, list) or not texts:
        raise RequestError("invalid_value", f"'{field}' must be a list of at least one string.", field)
    if len(texts) > MAX_CHOICES:
        raise RequestError("out_of_range", f"'{field}' holds more than {MAX_CHOICES} strings.", field)
    for text in texts:
        if not isinstance(text, str):
            raise wrong_type(field, "a list of strings", text)
        if not 0 < len(text) <= MAX_CHOICE_CHARS:
            message = f"'{field}' strings must have between 1 and {MAX_CHOICE_CHARS} characters."
            raise RequestError("out_of_range", message, field)
    return "start: " + " | ".join(map(lark_literal, dict.fromkeys(texts)))


def lark_literal(text: str) -> str:
    """A string of llguidance's Lark that stands for exactly this text."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def lark_grammar(text: str, field: str) -> str:
    if len(text) > MAX_GRAMMAR_CHARS:
        message = f"'{field}' is longer than {MAX_GRAMMAR_CHARS} characters."
        raise RequestError("out_of_range", message, field)
    return text


# ---- compiling


class _Bytes:
    """A vocabulary of the single bytes, as llguidance wants to see one: enough to find what is wrong."""

    is_tokenizer_wrapper = True
    eos_token_id = 256
    bos_token_id = None
    special_token_ids = (256,)

    def __init__(self) -> None:
        self.tokens = [bytes([byte]) for byte in range(256)] + [b"<end>"]

    def __call__(self, text: str | bytes) -> Sequence[int]:
        return list(text.encode() if isinstance(text, str) else text)


class GrammarCompiler:
    """Turns constraints into grammars that are known to compile. For the tasks of one event loop."""

    def __init__(self) -> None:
        self._good: OrderedDict[str, None] = OrderedDict()  # texts, the last used ones at the end
        self._slots = asyncio.Semaphore(COMPILERS)

    async def compile(self, wanted: Constraint) -> str:
        """The grammar's text. Raises RequestError (400) that names the field, or Overloaded (503) where so
        many wait that its turn does not come.
        """
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                await self._slots.acquire()
        except TimeoutError:
            raise _busy() from None
        try:
            work = self._pool.submit(self._compile, wanted)
            future = asyncio.wrap_future(work)
            done, _ = await asyncio.wait((future,), timeout=COMPILE_SECONDS)
        finally:
            self._slots.release()
        if not done:
            if work.cancel():  # no thread was free: the fault of others
                raise _busy()
            # Its own limits end it soon; nobody waits for it any more.
            future.add_done_callback(lambda late: late.exception())
            raise _too_complex(wanted.field)
        text = future.result()
        self._good[text] = None
        self._good.move_to_end(text)
        if len(self._good) > REMEMBERED:
            self._good.popitem(last=False)
        return text

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        # More threads than are let in: one that ran out of its time is still busy for a while.
        return ThreadPoolExecutor(2 * COMPILERS, "grammar")

    @cached_property
    def _bytes(self) -> "llguidance.LLTokenizer":
        from llguidance import LLTokenizer

        return LLTokenizer(_Bytes())  # type: ignore[arg-type]

    def _compile(self, wanted: Constraint) -> str:
        """In a thread."""
        from llguidance import LLMatcher, LLParserLimits

        text = grammar_text(wanted)
        if text in self._good:
            return text
        limits = LLParserLimits(verbose_errors=False)
        try:
            matcher = LLMatcher(self._bytes, text, log_level=0, limits=limits)
            if not matcher.is_error():
                matcher.compute_bitmask()  # finds a grammar without any sentence
        except BaseException as error:  # a panic in there is no Exception, and belongs to this request
            raise _wrong(wanted, f"{type(error).__name__}: {error}") from None
        if matcher.is_error():
            raise _wrong(wanted, matcher.get_error())
        return text


def _wrong(wanted: Constraint, error: str) -> RequestError:
    if "TooComplex" in error or "too large" in error or "limit" in error:
        return _too_complex(wanted.field, error)
    reason = " ".join(error.removesuffix("<non-verbose/>").split())
    if reason in ("NoExtension", "NoExtensionBias"):
        reason = "no text can satisfy it"
    if reason.startswith("oneOf"):
        reason = "'oneOf' is supported where its alternatives are known to exclude each other; use 'anyOf'"
    message = f"'{wanted.field}': {shown(reason, 300)}."
    if wanted.kind == "json_schema":
        return RequestError("invalid_schema", message, wanted.field)
    return RequestError("invalid_grammar", message, wanted.field)


def _busy() -> Overloaded:
    return Overloaded("Too many answers are asked for in forms that have to be compiled first.", 2, 2000)


def _too_complex(field: str, error: str = "") -> RequestError:
    detail = f" ({shown(' '.join(error.split()), 100)})" if error else ""
    return RequestError("grammar_too_complex", f"'{field}' takes too long to compile{detail}.", field)
