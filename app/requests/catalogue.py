"""Every field of a request body that this server knows: its type and range, and what becomes of it.

From this table come /openapi.json, the tables in docs/api.md (`python -m benchmarks.api_table` writes them
there) and, with --strict-fields, what counts as unknown. Tests hold it against what the parsers read and
refuse.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from app.requests.constraints import (
    MAX_CHOICE_CHARS,
    MAX_CHOICES,
    MAX_GRAMMAR_CHARS,
    MAX_NAME,
    MAX_REGEX_CHARS,
)
from app.requests.sampling import (
    MAX_BAD_WORD_CHARS,
    MAX_BAD_WORDS,
    MAX_BIASES,
    MAX_LOGPROBS,
    MAX_PRIORITY,
    MAX_SALT,
    MAX_STOP_CHARS,
    MAX_STOP_IDS,
    MAX_STOPS,
    MAX_TOKENS,
    NEUTRAL,
    REFUSED_BECAUSE,
)
from app.requests.tools import MAX_TOOLS
from app.settings.http import MAX_INTERVAL, HttpSettings

Schema = Mapping[str, object]
Effect = Literal["acts", "ignored", "refused"]

MAX_MESSAGES = 500

BOOLEAN: Schema = {"type": "boolean"}
STRING: Schema = {"type": "string"}
TOKEN: Schema = {"type": "integer", "minimum": 0}
ANY: Schema = {}


@dataclass(frozen=True, slots=True)
class Field:
    """One field. `schema` is JSON Schema without null, which always counts as absent; `default` says in words
    what absence means. A refused field may only have one of the values in `schema`, which change nothing.
    """

    name: str
    schema: Schema
    about: str
    default: str = ""
    effect: Effect = "acts"
    required: bool = False


def integer(low: int, high: int) -> Schema:
    return {"type": "integer", "minimum": low, "maximum": high}


def number(low: float, high: float) -> Schema:
    return {"type": "number", "minimum": low, "maximum": high}


def items(item: Schema, most: int | None = None, least: int = 0) -> Schema:
    schema: dict[str, object] = {"type": "array", "items": item}
    if least:
        schema["minItems"] = least
    return schema if most is None else {**schema, "maxItems": most}


def text(least: int, most: int) -> Schema:
    return {"type": "string", "minLength": least, "maxLength": most}


STREAM_OPTIONS: Schema = {
    "type": "object",
    "properties": {
        "include_usage": {"type": ["boolean", "null"], "description": "a last event with the usage"},
        "continuous_usage_stats": {"type": ["boolean", "null"], "description": "the usage in every event"},
        "include_obfuscation": {"type": ["boolean", "null"], "description": "accepted; nothing is padded"},
    },
}
STOP: Schema = {"anyOf": [text(1, MAX_STOP_CHARS), items(text(1, MAX_STOP_CHARS), MAX_STOPS)]}
LOGIT_BIAS: Schema = {
    "type": "object",
    "propertyNames": {"pattern": "^[0-9]{1,10}$"},
    "additionalProperties": number(-100, 100),
    "maxProperties": MAX_BIASES,
}
RESPONSE_FORMAT: Schema = {
    "type": "object",
    "properties": {
        "type": {"enum": ["text", "json_object", "json_schema"]},
        "json_schema": {
            "type": ["object", "null"],
            "properties": {
                "name": text(1, MAX_NAME),
                "description": {"type": ["string", "null"]},
                "schema": {"description": "a JSON schema (docs/structured.md says of which keywords)"},
                "strict": {"type": ["boolean", "null"], "description": "a schema is always kept to"},
            },
            "required": ["name"],
        },
    },
    "required": ["type"],
}
STRUCTURED_OUTPUTS: Schema = {
    "type": "object",
    "properties": {
        "json": {},
        "regex": {"type": ["string", "null"]},
        "choice": {"anyOf": [items(text(0, MAX_CHOICE_CHARS), MAX_CHOICES), {"type": "null"}]},
        "grammar": {"type": ["string", "null"]},
        "json_object": {"type": ["boolean", "null"]},
    },
}
TOOL: Schema = {
    "type": "object",
    "properties": {
        "type": {"const": "function"},
        "function": {
            "type": "object",
            "properties": {
                "name": {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"},
                "description": {"type": ["string", "null"]},
                "parameters": {"type": ["object", "null"], "description": "a JSON schema of an object"},
                "strict": {"type": ["boolean", "null"]},
            },
            "required": ["name"],
        },
    },
    "required": ["type", "function"],
}
TOOL_CHOICE: Schema = {
    "anyOf": [
        {"enum": ["none", "auto", "required"]},
        {"type": "object", "properties": {"type": {"enum": ["function", "allowed_tools"]}}},
    ]
}
MESSAGE: Schema = {"$ref": "#/components/schemas/Message"}

ROOM = "the room left in the context, or the server's --max-tokens"
TEMPERATURE = "1 (or --temperature)"

STREAM_INTERVAL = Field(
    "stream_interval", integer(1, MAX_INTERVAL), "tokens per event of a stream", "the server's"
)
MODEL = Field("model", STRING, "a name of the served model; another one is a 404", "the served model")

IGNORED = (
    "user",
    "safety_identifier",
    "metadata",
    "store",
    "service_tier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "prediction",
    "verbosity",
    "reasoning_effort",
    "moderation",
    "request_id",
    "session_id",
)


def _constraints() -> list[Field]:
    either: Schema = {"anyOf": [{"type": "object"}, STRING]}
    choices = items(text(0, MAX_CHOICE_CHARS), MAX_CHOICES)
    return [
        Field("response_format", RESPONSE_FORMAT, "what the answer has to look like", "text"),
        Field("structured_outputs", STRUCTURED_OUTPUTS, "the same, as vLLM names it; one of its fields"),
        Field("json_schema", either, "a JSON schema that the answer satisfies"),
        Field("regex", text(0, MAX_REGEX_CHARS), "a regular expression that the whole answer matches"),
        Field("guided_json", either, "an older name of `json_schema`"),
        Field("guided_regex", text(0, MAX_REGEX_CHARS), "an older name of `regex`"),
        Field("guided_choice", choices, "texts of which the answer is one"),
        Field("guided_grammar", text(0, MAX_GRAMMAR_CHARS), "a grammar in llguidance's Lark"),
    ]


def _tools() -> list[Field]:
    return [
        Field("tools", items(TOOL, MAX_TOOLS), "functions that the model may call"),
        Field("tool_choice", TOOL_CHOICE, "whether it has to call one, and which", "`auto`"),
        Field("parallel_tool_calls", BOOLEAN, "false ends the answer with the first call", "true"),
    ]


PROMPT_LOGPROBS = "report the logprobs of the prompt, with so many alternatives; not with `stream`"


def _delivery() -> list[Field]:
    return [
        Field("stream", BOOLEAN, "answer with server-sent events", "false"),
        Field("stream_options", STREAM_OPTIONS, "only with `stream`"),
        STREAM_INTERVAL,
        Field("return_token_ids", BOOLEAN, "add the ids of prompt and answer", "false"),
        Field(
            "return_tokens_as_token_ids", BOOLEAN, "logprobs name tokens `token_id:N`, not by text", "false"
        ),
    ]


def sampling_fields(settings: HttpSettings, least_tokens: int) -> list[Field]:
    limit = integer(least_tokens, MAX_TOKENS)
    return [
        Field("max_tokens", limit, "most tokens of the answer; prompt and answer must fit the context", ROOM),
        Field("max_completion_tokens", limit, "the same; stands above `max_tokens`", ROOM),
        Field("min_tokens", integer(0, MAX_TOKENS), "no end and no stop string before so many tokens", "0"),
        Field("n", integer(1, settings.max_n), "answers to each prompt; the first is that of `n` = 1", "1"),
        Field(
            "temperature",
            number(0, 2),
            "0 takes the best token; up to 0.01 counts as 0.01",
            TEMPERATURE,
        ),
        Field("top_p", {"type": "number", "exclusiveMinimum": 0, "maximum": 1}, "nucleus sampling", "1"),
        Field("top_k", integer(-1, MAX_TOKENS), "the best so many tokens; -1 and 0: all", "0 (or --top-k)"),
        Field("min_p", number(0, 1), "least probability, as a share of the best token's", "0"),
        Field("repetition_penalty", number(0.01, 10), "divides logits of tokens seen before", "1"),
        Field("presence_penalty", number(-2, 2), "subtracted for tokens of the answer so far", "0"),
        Field("frequency_penalty", number(-2, 2), "subtracted once per occurrence in the answer", "0"),
        Field("logit_bias", LOGIT_BIAS, "token id (as a string) to what is added to its logit"),
        Field(
            "bad_words",
            items(text(1, MAX_BAD_WORD_CHARS), MAX_BAD_WORDS),
            "words that are not written; each must be a single token, alone and behind a space",
        ),
        Field("seed", integer(-(2**63), 2**63 - 1), "same seed, same answer", "drawn, and reported"),
        Field("stop", STOP, "the text ends before the first of these"),
        Field("include_stop_str_in_output", BOOLEAN, "the text ends with the stop, not before it", "false"),
        Field("stop_token_ids", items(TOKEN, MAX_STOP_IDS), "ids that end the answer"),
        Field("ignore_eos", BOOLEAN, "the model's own end does not end the answer", "false"),
        Field("skip_special_tokens", BOOLEAN, "special tokens have no text", "true"),
        Field("spaces_between_special_tokens", BOOLEAN, "nothing is ever put between tokens", "", "ignored"),
        Field(
            "truncate_prompt_tokens",
            {"type": "integer", "minimum": -1, "not": {"const": 0}},
            "keep only so many tokens of the prompt's end; -1: as many as there is room for",
        ),
        Field("cache_salt", text(0, MAX_SALT), "prompts share cached blocks only within one salt"),
        Field(
            "priority",
            integer(-MAX_PRIORITY, MAX_PRIORITY) if settings.allow_priority else {"const": 0},
            "smaller goes first; other than 0 only with --allow-priority",
            "0",
        ),
    ]


def _others(known: Collection[str] = ()) -> list[Field]:
    """Fields that change nothing; `known` ones are listed elsewhere."""
    refused = [
        Field(
            name,
            {"enum": list(values)} if values else {"type": "null"},
            REFUSED_BECAUSE.get(name, "not supported"),
            effect="refused",
        )
        for name, values in NEUTRAL.items()
        if name not in known
    ]
    return [*refused, *(Field(name, ANY, "accepted", effect="ignored") for name in IGNORED)]


def chat_fields(settings: HttpSettings) -> list[Field]:
    """POST /v1/chat/completions."""
    messages = items(MESSAGE, MAX_MESSAGES, 1)
    return [
        MODEL,
        Field("messages", messages, "the conversation; `developer` is `system`", required=True),
        Field("add_generation_prompt", BOOLEAN, "false only with `continue_final_message`", "true"),
        Field("continue_final_message", BOOLEAN, "go on with the last message, an assistant's", "false"),
        Field("logprobs", BOOLEAN, "report the logprob of each token", "false"),
        Field("top_logprobs", integer(0, MAX_LOGPROBS), "alternatives beside it; only with `logprobs`", "0"),
        *sampling_fields(settings, 1),
        *_delivery(),
        Field("prompt_logprobs", integer(0, MAX_LOGPROBS), PROMPT_LOGPROBS),
        Field("best_of", {"const": 1}, "of /v1/completions", effect="refused"),
        *_constraints(),
        *_tools(),
        Field("echo", {"const": False}, "of /v1/completions", effect="refused"),
        Field("add_special_tokens", {"const": False}, "the template does that", effect="refused"),
        *_others(("tools", "tool_choice")),
    ]


def completion_fields(settings: HttpSettings) -> list[Field]:
    """POST /v1/completions."""
    ids = items(TOKEN, least=1)
    prompts: list[Schema] = [
        STRING,
        items(STRING, settings.max_choices, 1),
        ids,
        items(ids, settings.max_choices, 1),
    ]
    return [
        MODEL,
        Field("prompt", {"anyOf": prompts}, "text, token ids, or a list of either", required=True),
        Field("add_special_tokens", BOOLEAN, "put BOS before a text", "true"),
        Field("echo", BOOLEAN, "put the prompt before the answer; `max_tokens` may then be 0", "false"),
        Field("prompt_logprobs", integer(0, MAX_LOGPROBS), PROMPT_LOGPROBS),
        Field(
            "best_of",
            integer(1, settings.max_n),
            "generate so many, answer with the `n` likeliest per token; not with `stream`",
            "`n`",
        ),
        Field("suffix", {"const": ""}, "the model cannot fill in the middle", effect="refused"),
        Field(
            "logprobs",
            integer(0, MAX_LOGPROBS),
            "report logprobs, with so many alternatives; with `echo` those of the prompt, too",
        ),
        *sampling_fields(settings, 0),
        *_delivery(),
        *_constraints(),
        Field("parallel_tool_calls", ANY, "accepted", effect="ignored"),
        *_others(),
    ]


def tokenize_fields(settings: HttpSettings) -> list[Field]:
    """POST /tokenize."""
    return [
        MODEL,
        Field("prompt", STRING, "the text; this or `messages`"),
        Field("content", STRING, "another name of `prompt`"),
        Field("messages", items(MESSAGE, MAX_MESSAGES, 1), "a conversation, as the template writes it"),
        Field("add_special_tokens", BOOLEAN, "put BOS before a text", "true"),
        Field("add_generation_prompt", BOOLEAN, "false only with `continue_final_message`", "true"),
        Field("continue_final_message", BOOLEAN, "leave the last message open", "false"),
        Field("return_token_strs", BOOLEAN, "add the tokens as strings", "false"),
    ]


def detokenize_fields(settings: HttpSettings) -> list[Field]:
    """POST /detokenize."""
    return [MODEL, Field("tokens", items(TOKEN), "ids of the vocabulary", required=True)]


def names(fields: Sequence[Field]) -> frozenset[str]:
    return frozenset(field.name for field in fields)


_DEFAULTS = HttpSettings()
CHAT_NAMES = names(chat_fields(_DEFAULTS))
COMPLETION_NAMES = names(completion_fields(_DEFAULTS))
TOKENIZE_NAMES = names(tokenize_fields(_DEFAULTS))
DETOKENIZE_NAMES = names(detokenize_fields(_DEFAULTS))

ROUTES = {
    "/v1/chat/completions": chat_fields,
    "/v1/completions": completion_fields,
    "/tokenize": tokenize_fields,
    "/detokenize": detokenize_fields,
}
