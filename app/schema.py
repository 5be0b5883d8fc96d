"""From a JSON object to a typed request of the /v1 routes.

Nothing here touches the engine: what comes out is valid, what is not raises an ApiError that names its field.
Fields that nobody knows are ignored, known fields that this server does not act on are refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from app.errors import ApiError, ContextLengthExceeded, RequestError, Unsupported
from app.fields import Fields, as_integer, as_object, kind, missing, shown, wrong_type
from app.sampling import MAX_LOGPROBS, Sampling, parse_sampling, refuse_unsupported
from app.settings import HttpSettings
from app.tools import FIELDS as TOOL_FIELDS
from app.tools import NO_TOOLS, ToolUse, parse_tool_calls, parse_tools, tool_call_id
from engine.messages import ModelInfo
from engine.text import ChatMessage, ToolCall

ROLES = ("system", "developer", "user", "assistant")
MAX_MESSAGES = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """How the answer is wanted, apart from its tokens."""

    model: str
    stream: bool
    include_usage: bool
    continuous_usage: bool
    token_ids: bool


@dataclass(frozen=True, slots=True)
class ChatRequest:
    messages: list[ChatMessage]
    continue_final: bool
    sampling: Sampling
    delivery: Delivery
    tools: ToolUse | None


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """`prompts` are texts or token ids; `score_only` asks for the prompts' echo and no new token."""

    prompts: list[str | list[int]]
    add_bos: bool
    echo: bool
    score_only: bool
    sampling: Sampling
    delivery: Delivery


def served_names(info: ModelInfo, settings: HttpSettings) -> tuple[str, ...]:
    return settings.served_names or (info.name,)


def parse_chat(
    body: dict[str, object], info: ModelInfo, settings: HttpSettings, tool_source: str | None = None
) -> ChatRequest:
    """tool_source: the text of the model's chat template, if it knows tools. Raises ApiError (400, 404)."""
    fields = Fields(body)
    tools = parse_tools(fields, tool_source, settings.tool_call_parser)
    refuse_unsupported(fields, known=TOOL_FIELDS)
    for name in ("echo", "add_special_tokens"):
        if fields.boolean(name):
            raise Unsupported(name, "chat prompts are built by the model's template.")
    delivery = _parse_delivery(fields, info, settings)
    messages = _parse_messages(fields, tool_source is not None)
    wanted = fields.boolean("logprobs")
    top = fields.integer("top_logprobs", 0, MAX_LOGPROBS)
    if top is not None and not wanted:
        raise RequestError("invalid_value", "'top_logprobs' needs 'logprobs' to be true.", "top_logprobs")
    sampling = parse_sampling(
        fields,
        info,
        settings.sampling,
        max_n=settings.max_n,
        logprobs=(top or 0) if wanted else None,
    )
    if tools is not None and tools.constrained and sampling.ignore_eos:
        message = "'ignore_eos' cannot be had with calls that have to be: such an answer ends with them."
        raise RequestError("invalid_value", message, "ignore_eos")
    return ChatRequest(messages, _parse_continue(fields, messages), sampling, delivery, tools)


def parse_completion(body: dict[str, object], info: ModelInfo, settings: HttpSettings) -> CompletionRequest:
    """Raises ApiError (400, 404)."""
    fields = Fields(body)
    refuse_unsupported(fields)
    if fields.get("suffix") not in (None, ""):
        raise Unsupported("suffix", "the model cannot fill in the middle.")
    delivery = _parse_delivery(fields, info, settings)
    prompts = _parse_prompts(fields, info, settings)
    echo = fields.boolean("echo")
    logprobs = fields.integer("logprobs", 0, MAX_LOGPROBS)
    if echo and logprobs is not None:
        raise Unsupported("echo", "'echo' together with 'logprobs' needs logprobs of the prompt.")
    sampling = parse_sampling(
        fields,
        info,
        settings.sampling,
        max_n=settings.max_n,
        logprobs=logprobs,
        least_tokens=0 if echo else 1,
    )
    if sampling.n * len(prompts) > settings.max_choices:
        message = f"'n' times the number of prompts exceeds {settings.max_choices}."
        raise RequestError("out_of_range", message, "n" if sampling.n > 1 else "prompt")
    add_bos = fields.boolean("add_special_tokens", True)
    if not add_bos and "" in prompts:
        raise RequestError("invalid_value", "An empty 'prompt' needs 'add_special_tokens'.", "prompt")
    return CompletionRequest(prompts, add_bos, echo, sampling.max_tokens == 0, sampling, delivery)


def _parse_delivery(fields: Fields, info: ModelInfo, settings: HttpSettings) -> Delivery:
    names = served_names(info, settings)
    model = fields.string("model")
    if model and model not in names and model != info.name:
        message = f"The model '{shown(model)}' does not exist; this server has '{names[0]}'."
        raise ApiError(404, "model_not_found", message, type="not_found_error", param="model")
    stream = fields.boolean("stream")
    options = fields.nested("stream_options")
    if options is not None and not stream:
        raise RequestError("invalid_value", "'stream_options' needs 'stream' to be true.", "stream_options")
    options = options or Fields({})
    options.boolean("include_obfuscation")
    continuous = options.boolean("continuous_usage_stats")
    return Delivery(
        model=model or names[0],
        stream=stream,
        include_usage=options.boolean("include_usage"),
        continuous_usage=continuous,
        token_ids=fields.boolean("return_token_ids"),
    )


def _parse_messages(fields: Fields, knows_tools: bool) -> list[ChatMessage]:
    items = fields.items("messages")
    if items is None:
        raise missing("messages")
    if not items:
        raise RequestError("invalid_value", "'messages' must not be empty.", "messages")
    if len(items) > MAX_MESSAGES:
        raise RequestError("out_of_range", f"'messages' holds more than {MAX_MESSAGES} messages.", "messages")
    messages: list[ChatMessage] = []
    called: dict[str, str] = {}  # the function of each call so far, by the call's id
    for k, item in enumerate(items):
        message = _parse_message(as_object(item, f"messages[{k}]"), knows_tools, called)
        called.update((call.id, call.name) for call in message.tool_calls)
        messages.append(message)
    return messages


def _parse_message(fields: Fields, knows_tools: bool, called: Mapping[str, str]) -> ChatMessage:
    role = fields.string("role")
    if role is None:
        raise missing(fields.name("role"))
    if role == "function":
        raise Unsupported(fields.name("role"), "use the role 'tool' instead.")
    if role == "tool" and not knows_tools:
        raise Unsupported(fields.name("role"), NO_TOOLS)
    if role not in (*ROLES, "tool"):
        message = f"'{fields.name('role')}' must be one of {', '.join(ROLES)}, tool, got '{shown(role)}'."
        raise RequestError("invalid_value", message, fields.name("role"))
    if fields.get("function_call") is not None:
        raise Unsupported(fields.name("function_call"), "use 'tool_calls' instead.")
    calls: tuple[ToolCall, ...] = ()
    if fields.get("tool_calls") not in (None, []):
        if not knows_tools:
            raise Unsupported(fields.name("tool_calls"), NO_TOOLS)
        if role != "assistant":
            message = f"'{fields.name('tool_calls')}' belong to the role 'assistant'."
            raise RequestError("invalid_value", message, fields.name("tool_calls"))
        calls = parse_tool_calls(fields)
    content = fields.get("content")
    if content is None and not calls:
        raise missing(fields.name("content"))
    text = "" if content is None else _parse_content(content, fields.name("content"))
    if role == "tool":
        id = tool_call_id(fields, "tool_call_id")
        return ChatMessage(role, text, tool_call_id=id, name=fields.string("name") or called.get(id))
    return ChatMessage(role, text, calls)


def _parse_content(content: object, name: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise wrong_type(name, "a string or a list of text parts", content)
    texts = []
    for k, item in enumerate(content):
        part = as_object(item, f"{name}[{k}]")
        type = part.string("type")
        if type is None:
            raise missing(part.name("type"))
        if type != "text":
            message = f"'{part.name('type')}' is '{shown(type)}'; only text parts are supported."
            raise RequestError("unsupported_content_type", message, part.name("type"))
        text = part.string("text")
        if text is None:
            raise missing(part.name("text"))
        texts.append(text)
    return "".join(texts)


def _parse_continue(fields: Fields, messages: list[ChatMessage]) -> bool:
    continue_final = fields.boolean("continue_final_message")
    generation_prompt = fields.boolean("add_generation_prompt", not continue_final)
    if not continue_final:
        if not generation_prompt:
            raise Unsupported("add_generation_prompt", "only together with 'continue_final_message'.")
        return False
    if generation_prompt:
        message = "'continue_final_message' and 'add_generation_prompt' exclude each other."
        raise RequestError("invalid_value", message, "continue_final_message")
    if messages[-1].role != "assistant":
        message = "'continue_final_message' needs the last message to be the assistant's."
        raise RequestError("invalid_value", message, "continue_final_message")
    return True


def _parse_prompts(fields: Fields, info: ModelInfo, settings: HttpSettings) -> list[str | list[int]]:
    prompt = fields.get("prompt")
    if prompt is None:
        raise missing("prompt")
    if isinstance(prompt, str):
        return [prompt]
    if not isinstance(prompt, list):
        raise wrong_type("prompt", "a string, a list of strings, or token ids", prompt)
    if not prompt:
        raise RequestError("invalid_value", "'prompt' must not be empty.", "prompt")
    first = prompt[0]
    if not isinstance(first, (str, list)):
        return [_token_ids(prompt, "prompt", info)]
    if len(prompt) > settings.max_choices:
        raise RequestError(
            "out_of_range", f"'prompt' holds more than {settings.max_choices} prompts.", "prompt"
        )
    if isinstance(first, list):
        return [_token_ids(item, f"prompt[{k}]", info) for k, item in enumerate(prompt)]
    for k, item in enumerate(prompt):
        if not isinstance(item, str):
            raise wrong_type(f"prompt[{k}]", "a string like the first one", item)
    return list(prompt)


def _token_ids(value: object, name: str, info: ModelInfo) -> list[int]:
    if not isinstance(value, list):
        raise wrong_type(name, "a list of token ids", value)
    if not value:
        raise RequestError("invalid_value", f"'{name}' must not be empty.", name)
    if len(value) >= info.max_model_len:
        message = (
            f"The prompt has {len(value)} tokens; this model's context is {info.max_model_len} tokens, "
            "and at least one is needed for the answer."
        )
        raise ContextLengthExceeded(message, name)
    top = info.vocab_size
    for k, item in enumerate(value):
        if type(item) is not int:
            raise RequestError("invalid_type", f"'{name}[{k}]' must be a token id, got {kind(item)}.", name)
        if not 0 <= item < top:
            as_integer(item, f"{name}[{k}]", 0, top - 1)
    return value
