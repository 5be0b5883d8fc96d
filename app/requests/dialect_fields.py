"""The fields of /v1/responses and /v1/messages; a part of the table in app/requests/catalogue.py."""

from collections.abc import Sequence

from app.requests import catalogue
from app.requests.catalogue import (
    ANY,
    BOOLEAN,
    MAX_MESSAGES,
    MODEL,
    ROOM,
    STREAM_INTERVAL,
    STRING,
    TEMPERATURE,
    Field,
    Schema,
    integer,
    items,
    names,
    number,
    sampling_fields,
    text,
)
from app.requests.constraints import MAX_NAME
from app.requests.sampling import MAX_LOGPROBS, MAX_STOP_CHARS, MAX_STOPS, MAX_TOKENS
from app.requests.tools import MAX_TOOLS
from app.settings.http import HttpSettings

OUTPUT_LOGPROBS = "message.output_text.logprobs"
INCLUDABLE = (OUTPUT_LOGPROBS, "reasoning.encrypted_content")  # of the latter there is none
OBFUSCATION: Schema = {
    "type": "object",
    "properties": {
        "include_obfuscation": {"type": ["boolean", "null"], "description": "accepted; nothing is padded"}
    },
}
# What /v1/responses and /v1/messages have of the sampling fields beside their own.
BORROWED = (
    "seed",
    "min_tokens",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "bad_words",
    "include_stop_str_in_output",
    "stop_token_ids",
    "ignore_eos",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "truncate_prompt_tokens",
    "cache_salt",
    "priority",
)
FUNCTION: dict[str, object] = {
    "name": {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"},
    "description": {"type": ["string", "null"]},
    "strict": {"type": ["boolean", "null"]},
}
SCHEMA: Schema = {"type": ["object", "null"], "description": "a JSON schema of an object"}
FLAT_TOOL: Schema = {
    "type": "object",
    "properties": {"type": {"const": "function"}, **FUNCTION, "parameters": SCHEMA},
    "required": ["type", "name"],
}
FLAT_CHOICE: Schema = {
    "anyOf": [
        {"enum": ["none", "auto", "required"]},
        {"type": "object", "properties": {"type": {"enum": ["function", "allowed_tools"]}}},
    ]
}
ANTHROPIC_TOOL: Schema = {
    "type": "object",
    "properties": {"type": {"enum": ["custom", None]}, **FUNCTION, "input_schema": {"type": "object"}},
    "required": ["name", "input_schema"],
}
ANTHROPIC_CHOICE: Schema = {
    "type": "object",
    "properties": {
        "type": {"enum": ["auto", "any", "tool", "none"]},
        "name": {"description": "of a tool"},
        "disable_parallel_tool_use": {"type": ["boolean", "null"]},
    },
    "required": ["type"],
}
TEXT: Schema = {
    "type": "object",
    "properties": {
        "format": {
            "type": ["object", "null"],
            "properties": {
                "type": {"enum": ["text", "json_object", "json_schema"]},
                "name": {"description": f"of a json_schema: 1 to {MAX_NAME} letters, digits, '_' or '-'"},
                "schema": {"description": "a JSON schema (docs/structured.md says of which keywords)"},
                "strict": {"description": "a schema is always kept to"},
            },
            "required": ["type"],
        },
        "verbosity": {},
    },
}
OUTPUT_CONFIG: Schema = {
    "type": "object",
    "properties": {
        "format": {
            "type": ["object", "null"],
            "properties": {"type": {"const": "json_schema"}, "schema": {}},
            "required": ["type", "schema"],
        },
        "effort": {},
    },
}
STOPS = items(text(1, MAX_STOP_CHARS), MAX_STOPS)
NO_THINKING: Schema = {"type": "object", "properties": {"type": {"const": "disabled"}}, "required": ["type"]}


def _refused(name: str, why: str, *harmless: object) -> Field:
    schema: Schema = {"enum": list(harmless)} if harmless else {"type": "null"}
    return Field(name, schema, why, effect="refused")


def _ignored(*names: str) -> list[Field]:
    return [Field(name, ANY, "accepted", effect="ignored") for name in names]


def _borrowed(settings: HttpSettings, *names: str) -> list[Field]:
    """Sampling fields of the older routes."""
    wanted = {*names, *BORROWED}
    return [field for field in sampling_fields(settings, 1) if field.name in wanted]


def response_fields(settings: HttpSettings) -> list[Field]:
    """POST /v1/responses."""
    messages: Schema = {"anyOf": [STRING, items({"$ref": "#/components/schemas/InputItem"}, MAX_MESSAGES, 1)]}
    kept = "this server keeps no answers; send the whole conversation in 'input'"
    return [
        MODEL,
        Field("input", messages, "a user's message, or the conversation", required=True),
        Field("instructions", STRING, "a system message in front of it"),
        Field("max_output_tokens", integer(1, MAX_TOKENS), "most tokens of the answer", ROOM),
        *_borrowed(settings, "temperature", "top_p", "top_k", "stop"),
        Field("include", items({"enum": list(INCLUDABLE)}), f"`{OUTPUT_LOGPROBS}`: logprobs of each token"),
        Field("top_logprobs", integer(0, MAX_LOGPROBS), "alternatives beside it; only with the former", "0"),
        Field("stream", BOOLEAN, "answer with server-sent events", "false"),
        Field("stream_options", OBFUSCATION, "only with `stream`"),
        STREAM_INTERVAL,
        Field("text", TEXT, "`format` shapes the answer; `verbosity` has no effect"),
        Field("tools", items(FLAT_TOOL, MAX_TOOLS), "functions, for a chat template that knows tools"),
        Field("tool_choice", FLAT_CHOICE, "which of them may or must be called", "`auto`"),
        Field("parallel_tool_calls", BOOLEAN, "false: the answer ends with its first call", "true"),
        Field("store", BOOLEAN, "nothing is stored, and the response says so", "false"),
        Field("metadata", {"type": "object"}, "repeated in the response"),
        Field("user", STRING, "repeated in the response"),
        _refused("previous_response_id", kept),
        _refused("conversation", kept),
        _refused("prompt", "there are no stored prompts"),
        _refused("background", "an answer ends with its connection", False),
        _refused("context_management", "nothing is left out of a conversation", []),
        _refused("truncation", "nothing is left out of a conversation", "disabled"),
        _refused("messages", "the conversation is in 'input' here"),
        _refused("max_tokens", "it is 'max_output_tokens' here"),
        _refused("max_completion_tokens", "it is 'max_output_tokens' here"),
        _refused("response_format", "it is 'text.format' here"),
        _refused("n", "there is one answer", 1),
        _refused("image", "answers are text"),
        *_ignored("reasoning", "max_tool_calls", "safety_identifier", "service_tier", "prompt_cache_key"),
        *_ignored("prompt_cache_retention", "prompt_cache_options", "moderation"),
    ]


def _message_conversation() -> list[Field]:
    blocks = {"$ref": "#/components/schemas/TextBlock"}
    turns = items({"$ref": "#/components/schemas/Turn"}, MAX_MESSAGES, 1)
    return [
        MODEL,
        Field(
            "messages",
            turns,
            "the conversation; an assistant's turn at its end is gone on with",
            required=True,
        ),
        Field("system", {"anyOf": [STRING, items(blocks)]}, "a system message in front of it"),
    ]


def message_fields(settings: HttpSettings) -> list[Field]:
    """POST /v1/messages."""
    return [
        *_message_conversation(),
        Field(
            "max_tokens",
            integer(1, MAX_TOKENS),
            "most tokens of the answer; prompt and answer must fit the context",
            required=True,
        ),
        Field(
            "stop_sequences",
            items(text(1, MAX_STOP_CHARS), MAX_STOPS),
            "the text ends before the first of these",
        ),
        Field("temperature", number(0, 1), "0 takes the best token; up to 0.01 counts as 0.01", TEMPERATURE),
        *_borrowed(settings, "top_p", "top_k"),
        Field("output_config", OUTPUT_CONFIG, "`format` shapes the answer; `effort` has no effect"),
        Field("stream", BOOLEAN, "answer with server-sent events", "false"),
        STREAM_INTERVAL,
        *_tools_and_thoughts(),
        *_ignored("metadata", "service_tier", "cache_control", "inference_geo", "speed", "diagnostics"),
        *_ignored("user_profile_id", "workspace_id"),
    ]


def _tools_and_thoughts() -> list[Field]:
    return [
        Field("tools", items(ANTHROPIC_TOOL, MAX_TOOLS), "functions, for a chat template that knows tools"),
        Field("tool_choice", ANTHROPIC_CHOICE, "which of them may or must be called", "`auto`"),
        Field("thinking", NO_THINKING, "any other type is an error: the model does not think first"),
        _refused("container", "there are no tools that run here"),
        _refused("mcp_servers", "there are no tools that run here", []),
        _refused("context_management", "nothing is left out of a conversation"),
    ]


def count_fields(settings: HttpSettings) -> list[Field]:
    """POST /v1/messages/count_tokens."""
    return [
        *_message_conversation(),
        *_tools_and_thoughts(),
        *_ignored("output_config", "cache_control", "speed", "user_profile_id", "workspace_id"),
    ]


def refused(fields: Sequence[Field]) -> tuple[Field, ...]:
    return tuple(field for field in fields if field.effect == "refused")


_DEFAULTS = HttpSettings()
RESPONSE_NAMES = names(response_fields(_DEFAULTS))
MESSAGE_NAMES = names(message_fields(_DEFAULTS))
COUNT_NAMES = names(count_fields(_DEFAULTS))
RESPONSE_REFUSED = refused(response_fields(_DEFAULTS))
MESSAGE_REFUSED = refused(message_fields(_DEFAULTS))
COUNT_REFUSED = refused(count_fields(_DEFAULTS))

ROUTES = {
    **catalogue.ROUTES,
    "/v1/responses": response_fields,
    "/v1/messages": message_fields,
    "/v1/messages/count_tokens": count_fields,
}
