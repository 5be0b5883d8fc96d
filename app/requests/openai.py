"""From a JSON object to a typed request of the /v1 routes.

Nothing here touches the engine: what comes out is valid, what is not raises an ApiError that names its field.
Fields that nobody knows are ignored, known fields that this server does not act on are refused.
"""

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from app.http.errors import ApiError, ContextLengthExceeded, RequestError, Unsupported
from app.http.fields import Fields, as_integer, as_object, kind, missing, shown, wrong_type
from app.requests.catalogue import CHAT_NAMES, COMPLETION_NAMES
from app.requests.sampling import MAX_LOGPROBS, MAX_TOKENS, Sampling, parse_sampling, refuse_unsupported
from app.requests.tools import FIELDS as TOOL_FIELDS
from app.requests.tools import NO_TOOLS, ToolUse, parse_tool_calls, parse_tools, tool_call_id
from app.settings.http import MAX_INTERVAL, HttpSettings
from engine.messages import ModelInfo
from engine.text import ChatMessage, ToolCall

log = logging.getLogger("fastpath.http")

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
    token_names: bool = False  # logprobs name tokens by their ids
    interval: int = 1  # tokens per event
    prompt_logprobs: int | None = None  # vLLM's list of the prompt's logprobs, with so many alternatives


@dataclass(frozen=True, slots=True)
class ChatRequest:
    messages: list[ChatMessage]
    continue_final: bool
    sampling: Sampling
    delivery: Delivery
    tools: ToolUse | None


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """`prompts` are texts or token ids; `score_only` asks for no new token, but for the prompts' echo and
    maybe their logprobs. `logprobs` is what the client asked for; `sampling` may need more. `keep` of the
    `sampling.n` choices of a prompt are returned, the likeliest; None: all.
    """

    prompts: list[str | list[int]]
    add_bos: bool
    echo: bool
    score_only: bool
    logprobs: int | None
    keep: int | None
    sampling: Sampling
    delivery: Delivery


def served_names(info: ModelInfo, settings: HttpSettings) -> tuple[str, ...]:
    return settings.served_names or (info.name,)


def parse_chat(
    body: dict[str, object], info: ModelInfo, settings: HttpSettings, tool_source: str | None = None
) -> ChatRequest:
    """tool_source: the text of the model's chat template, if it knows tools. Raises ApiError (400, 404)."""
    fields = Fields(body)
    check_names(fields, CHAT_NAMES, settings)
    tools = parse_tools(fields, tool_source, settings.tool_call_parser)
    refuse_unsupported(fields, known=TOOL_FIELDS)
    for name in ("echo", "add_special_tokens"):
        if fields.boolean(name):
            raise Unsupported(name, "chat prompts are built by the model's template.")
    if fields.integer("best_of", 1, MAX_TOKENS) not in (None, 1):
        raise Unsupported("best_of", "only /v1/completions chooses among more choices than it returns.")
    delivery = _parse_delivery(fields, info, settings)
    messages = parse_messages(fields, tool_source is not None)
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
        allow_priority=settings.allow_priority,
        prompt_logprobs=delivery.prompt_logprobs,
    )
    if tools is not None and delivery.prompt_logprobs is not None:
        raise Unsupported("prompt_logprobs", "not together with 'tools'.")
    if tools is not None and tools.constrained and sampling.ignore_eos:
        message = "'ignore_eos' cannot be had with calls that have to be: such an answer ends with them."
        raise RequestError("invalid_value", message, "ignore_eos")
    return ChatRequest(messages, parse_continue(fields, messages), sampling, delivery, tools)


def parse_completion(body: dict[str, object], info: ModelInfo, settings: HttpSettings) -> CompletionRequest:
    """Raises ApiError (400, 404)."""
    fields = Fields(body)
    check_names(fields, COMPLETION_NAMES, settings)
    refuse_unsupported(fields)
    if fields.get("suffix") not in (None, ""):
        raise Unsupported("suffix", "the model cannot fill in the middle.")
    delivery = _parse_delivery(fields, info, settings)
    prompts = _parse_prompts(fields, info, settings)
    echo = fields.boolean("echo")
    logprobs = fields.integer("logprobs", 0, MAX_LOGPROBS)
    echoed = logprobs if echo else None
    scored = [count for count in (echoed, delivery.prompt_logprobs) if count is not None]
    sampling = parse_sampling(
        fields,
        info,
        settings.sampling,
        max_n=settings.max_n,
        logprobs=logprobs,
        prompt_logprobs=max(scored, default=None),
        least_tokens=0 if echo else 1,
        allow_priority=settings.allow_priority,
    )
    keep, many = None, "n"
    best_of = _parse_best_of(fields, sampling.n, delivery.stream, settings)
    if best_of > sampling.n:
        keep, many = sampling.n, "best_of"
        # Their logprobs rank them, whether the client wants to see any or not.
        sampling = replace(sampling, n=best_of, logprobs=logprobs or 0)
    if sampling.n * len(prompts) > settings.max_choices:
        message = f"'{many}' times the number of prompts exceeds {settings.max_choices}."
        raise RequestError("out_of_range", message, many if sampling.n > 1 else "prompt")
    add_bos = fields.boolean("add_special_tokens", True)
    if not add_bos and "" in prompts:
        raise RequestError("invalid_value", "An empty 'prompt' needs 'add_special_tokens'.", "prompt")
    score_only = sampling.max_tokens == 0
    return CompletionRequest(prompts, add_bos, echo, score_only, logprobs, keep, sampling, delivery)


def _parse_best_of(fields: Fields, n: int, stream: bool, settings: HttpSettings) -> int:
    """How many choices are generated for each prompt."""
    best_of = fields.integer("best_of", 1, settings.max_n)
    if best_of is None:
        return n
    if best_of < n:
        raise RequestError("out_of_range", f"'best_of' is {best_of}, less than 'n', which is {n}.", "best_of")
    if stream and best_of > 1:
        message = "'best_of' needs 'stream' to be false: who is best is known at the end."
        raise RequestError("invalid_value", message, "best_of")
    return best_of


def check_names(fields: Fields, known: frozenset[str], settings: HttpSettings) -> None:
    """Fields that nobody knows: refused by name with `strict_fields`, otherwise ignored."""
    unknown = fields.values.keys() - known
    if not unknown:
        return
    name = shown(min(unknown))
    if settings.strict_fields:
        raise RequestError("unknown_field", f"There is no field '{name}'.", name)
    if log.isEnabledFor(logging.DEBUG):
        log.debug("unknown fields in a request: %s", ", ".join(map(shown, sorted(unknown)[:10])))


def check_model(fields: Fields, info: ModelInfo, settings: HttpSettings) -> str:
    """The model's name as the request spells it. Raises ApiError (404) for one that is not served."""
    names = served_names(info, settings)
    model = fields.string("model")
    if model and model not in names and model != info.name:
        message = f"The model '{shown(model)}' does not exist; this server has '{names[0]}'."
        raise ApiError(404, "model_not_found", message, type="not_found_error", param="model")
    return model or names[0]


def _parse_delivery(fields: Fields, info: ModelInfo, settings: HttpSettings) -> Delivery:
    model = check_model(fields, info, settings)
    stream = fields.boolean("stream")
    options = fields.nested("stream_options")
    if options is not None and not stream:
        raise RequestError("invalid_value", "'stream_options' needs 'stream' to be true.", "stream_options")
    options = options or Fields({})
    prompt_logprobs = fields.integer("prompt_logprobs", 0, MAX_LOGPROBS)
    if stream and prompt_logprobs is not None:
        message = "'prompt_logprobs' needs 'stream' to be false; 'echo' with 'logprobs' can be streamed."
        raise RequestError("invalid_value", message, "prompt_logprobs")
    options.boolean("include_obfuscation")
    continuous = options.boolean("continuous_usage_stats")
    return Delivery(
        model=model,
        stream=stream,
        include_usage=options.boolean("include_usage"),
        continuous_usage=continuous,
        token_ids=fields.boolean("return_token_ids"),
        token_names=fields.boolean("return_tokens_as_token_ids"),
        interval=fields.integer("stream_interval", 1, MAX_INTERVAL) or settings.stream_interval,
        prompt_logprobs=prompt_logprobs,
    )


def message_items(fields: Fields) -> list[object]:
    """`messages`, of which there must be some, and not too many. Raises RequestError."""
    items = fields.items("messages")
    if items is None:
        raise missing("messages")
    if not items:
        raise RequestError("invalid_value", "'messages' must not be empty.", "messages")
    if len(items) > MAX_MESSAGES:
        raise RequestError("out_of_range", f"'messages' holds more than {MAX_MESSAGES} messages.", "messages")
    return items


def parse_messages(fields: Fields, knows_tools: bool) -> list[ChatMessage]:
    messages: list[ChatMessage] = []
    called: dict[str, str] = {}  # the function of each call so far, by the call's id
    for k, item in enumerate(message_items(fields)):
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
    text = "" if content is None else parse_content(content, fields.name("content"))
    if role == "tool":
        id = tool_call_id(fields, "tool_call_id")
        return ChatMessage(role, text, tool_call_id=id, name=fields.string("name") or called.get(id))
    return ChatMessage(role, text, calls)


def parse_content(content: object, name: str, types: Collection[str] = ("text",), first: int = 0) -> str:
    """The joined text of a string or of parts, each of one of `types`; they count from `first`."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise wrong_type(name, "a string or a list of text parts", content)
    texts = []
    for k, item in enumerate(content, first):
        part = as_object(item, f"{name}[{k}]")
        type = part.string("type")
        if type is None:
            raise missing(part.name("type"))
        if type not in types:
            message = f"'{part.name('type')}' is '{shown(type)}'; only text parts are supported."
            raise RequestError("unsupported_content_type", message, part.name("type"))
        text = part.string("text")
        if text is None:
            raise missing(part.name("text"))
        texts.append(text)
    return "".join(texts)


def parse_continue(fields: Fields, messages: list[ChatMessage]) -> bool:
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
    whole = fields.get("truncate_prompt_tokens") is None
    first = prompt[0]
    if not isinstance(first, (str, list)):
        return [_token_ids(prompt, "prompt", info, whole)]
    if len(prompt) > settings.max_choices:
        raise RequestError(
            "out_of_range", f"'prompt' holds more than {settings.max_choices} prompts.", "prompt"
        )
    if isinstance(first, list):
        return [_token_ids(item, f"prompt[{k}]", info, whole) for k, item in enumerate(prompt)]
    for k, item in enumerate(prompt):
        if not isinstance(item, str):
            raise wrong_type(f"prompt[{k}]", "a string like the first one", item)
    return list(prompt)


def _token_ids(value: object, name: str, info: ModelInfo, whole: bool) -> list[int]:
    if not isinstance(value, list):
        raise wrong_type(name, "a list of token ids", value)
    if not value:
        raise RequestError("invalid_value", f"'{name}' must not be empty.", name)
    if whole and len(value) >= info.max_model_len:
        message = (
            f"The prompt has {len(value)} tokens; this model's context is {info.max_model_len} tokens, "
            "and at least one is needed for the answer."
        )
        raise ContextLengthExceeded(message, name)
    # What truncation drops in any case need not be looked at: it may be much.
    first = max(len(value) - info.max_model_len, 0)
    return token_ids(value[first:], name, info, first)


def token_ids(value: list[object], name: str, info: ModelInfo, first: int = 0) -> list[int]:
    """Raises RequestError that names the first item that is no id of the vocabulary; items count from
    `first`.
    """
    top = info.vocab_size
    for k, item in enumerate(value, first):
        if type(item) is not int:
            raise RequestError("invalid_type", f"'{name}[{k}]' must be a token id, got {kind(item)}.", name)
        if not 0 <= item < top:
            as_integer(item, f"{name}[{k}]", 0, top - 1)
    return value  # type: ignore[return-value]
