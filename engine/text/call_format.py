"""How models write function calls: the formats that are known here, and which one a chat template shows."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class CallFormat:
    """How a family of models writes calls: `marker opener object (separator object)* closer`, with white
    space between any two of them.

    bare: an object at the very beginning of an answer may be a call without a marker. arguments: the key that
    the model was taught; both usual ones are understood. marks: spellings that may be special tokens.
    short_ids: the template wants ids of nine letters and digits.
    """

    name: str
    marker: str
    opener: str = ""
    separator: str = ""
    closer: str = ""
    bare: bool = False
    arguments: str = "arguments"
    marks: tuple[str, ...] = ()
    short_ids: bool = False


HERMES = CallFormat(
    name="hermes", marker="<tool_call>", closer="</tool_call>", marks=("<tool_call>", "</tool_call>")
)
LLAMA3 = CallFormat(
    name="llama3",
    marker="<|python_tag|>",
    separator=";",
    bare=True,
    arguments="parameters",
    marks=("<|python_tag|>",),
)
MISTRAL = CallFormat(
    name="mistral",
    marker="[TOOL_CALLS]",
    opener="[",
    separator=",",
    closer="]",
    marks=("[TOOL_CALLS]",),
    short_ids=True,
)
CALL_FORMATS = {format.name: format for format in (HERMES, LLAMA3, MISTRAL)}


def detect_call_format(template: str) -> CallFormat | None:
    """The format that a chat template's text shows; None for one that is not known here."""
    if "<tool_call>" in template:
        # Some write what is inside as XML.
        return None if "<function=" in template or "<arg_key>" in template else HERMES
    if "[TOOL_CALLS]" in template:
        return None if "[ARGS]" in template else MISTRAL
    if "<|python_tag|>" in template or '"parameters": dictionary' in template:
        return LLAMA3
    return None
