"""The sampling fields that all text routes share, and the fields that are refused by name."""

from collections.abc import Collection
from dataclasses import dataclass

from app.http.errors import ContextLengthExceeded, RequestError, Unsupported
from app.http.fields import Fields, as_integer, as_number, shown, wrong_type
from app.requests.constraints import Constraint, parse_constraint
from app.settings.http import SamplingDefaults
from engine.messages import ModelInfo, SamplingParams

MAX_TOKENS = 2**31 - 1
MAX_STOPS = 16
MAX_STOP_CHARS = 256
MAX_STOP_IDS = 64
MAX_BIASES = 1024
MAX_LOGPROBS = 20
MAX_SALT = 128
MAX_BAD_WORDS = 128
MAX_BAD_WORD_CHARS = 64
MAX_PRIORITY = 100
LOWEST_TEMPERATURE = 0.01  # less than this, and not 0, is taken for it
_SEED_BITS = 63

# Known fields and the values of theirs that change nothing; any other value is refused by name.
NEUTRAL: dict[str, tuple[object, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "web_search_options": (),
    "guided_whitespace_pattern": (),
    "ebnf": (),
    "grammar": (),
    "allowed_token_ids": (),
    "logits_processors": ([],),
    "custom_logit_processor": (),
    "kv_transfer_params": (),
    "vllm_xargs": ({},),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "documents": ([],),
    "use_beam_search": (False,),
    "length_penalty": (1, 1.0),
    "early_stopping": (False,),
}
REFUSED_BECAUSE: dict[str, str] = {
    "functions": "replaced by 'tools'",
    "function_call": "replaced by 'tool_choice'",
    "modalities": "answers are text",
    "audio": "answers are text",
    "chat_template": "a template is code; the model's own is used",
    "logits_processors": "code from the wire is never run",
    "custom_logit_processor": "code from the wire is never run",
    "use_beam_search": "there is no beam search",
    "length_penalty": "of beam search",
    "early_stopping": "of beam search",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How one HTTP request samples, before the length of its prompt is known."""

    n: int
    max_tokens: int | None  # None: the room that is left, or the server's default if that is shorter
    max_tokens_field: str
    default_max_tokens: int | None
    min_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: dict[int, float]
    seed: int
    stop: tuple[str, ...]
    include_stop: bool
    stop_token_ids: tuple[int, ...]
    ignore_eos: bool
    logprobs: int | None
    skip_special: bool
    cache_salt: bytes
    bad_words: tuple[str, ...] = ()
    truncate: int | None = None  # the most prompt tokens to keep; -1: as many as the context has room for
    priority: int = 0
    prompt_logprobs: int | None = None  # alternatives for each token of the prompt; None: it is not scored
    constraint: Constraint | None = None

    def cut(self, prompt: list[int], info: ModelInfo) -> list[int]:
        """The end of the prompt that `truncate` leaves."""
        if self.truncate is None:
            return prompt
        room = max(info.max_model_len - (self.max_tokens or 1), 1)
        return prompt[-(room if self.truncate == -1 else self.truncate) :]

    def params(
        self, prompt_tokens: int, info: ModelInfo, prompt_field: str, grammar: str | None = None
    ) -> SamplingParams:
        """For a prompt of this length. grammar: what `constraint` was compiled to. Raises
        ContextLengthExceeded with both numbers.
        """
        room = info.max_model_len - prompt_tokens
        if room <= 0:
            raise ContextLengthExceeded(
                f"The prompt has {prompt_tokens} tokens; this model's context is {info.max_model_len}, "
                "and at least one token is needed for the answer.",
                prompt_field,
            )
        if self.max_tokens is not None and self.max_tokens > room:
            raise ContextLengthExceeded(
                f"The prompt has {prompt_tokens} tokens and '{self.max_tokens_field}' is {self.max_tokens}; "
                f"together they exceed this model's context of {info.max_model_len} tokens.",
                self.max_tokens_field,
            )
        limit = self.max_tokens if self.max_tokens is not None else min(room, self.default_max_tokens or room)
        if self.min_tokens > limit:
            message = f"'min_tokens' is {self.min_tokens}, but at most {limit} tokens can be generated."
            raise RequestError("out_of_range", message, "min_tokens")
        return SamplingParams(
            max_tokens=max(limit, 1),  # 0: the prompt is scored, and the engine's one token dropped
            min_tokens=self.min_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=self.logit_bias,
            seed=self.seed & ((1 << _SEED_BITS) - 1),
            stop_token_ids=self.stop_token_ids,
            ignore_eos=self.ignore_eos,
            logprobs=self.logprobs,
            prompt_logprobs=self.prompt_logprobs,
            grammar=grammar,
        )


def refuse_unsupported(fields: Fields, *, known: Collection[str] = ()) -> None:
    """`known`: fields that the route acts on."""
    for name, neutral in NEUTRAL.items():
        value = fields.get(name)
        if value is None or name in known:
            continue
        if not any(same(value, harmless) for harmless in neutral):
            why = REFUSED_BECAUSE.get(name)
            raise Unsupported(name, f"{why}." if why else "")


def parse_sampling(
    fields: Fields,
    info: ModelInfo,
    defaults: SamplingDefaults,
    *,
    max_n: int,
    logprobs: int | None,
    prompt_logprobs: int | None = None,
    least_tokens: int = 1,
    allow_priority: bool = False,
) -> Sampling:
    """Reads every shared field. Ranges are those of the documented API; RequestError names the first bad
    field.
    """
    n = fields.integer("n", 1, max_n) or 1
    old_limit = fields.integer("max_tokens", least_tokens, MAX_TOKENS)
    limit = fields.integer("max_completion_tokens", least_tokens, MAX_TOKENS)
    seed = fields.integer("seed", -(2**63), 2**63 - 1)
    top_k = fields.integer("top_k", -1, MAX_TOKENS)
    constraint = parse_constraint(fields)
    if constraint is not None and fields.boolean("ignore_eos"):
        message = (
            f"'ignore_eos' cannot be had with '{constraint.field}': that answer ends when it is complete."
        )
        raise RequestError("invalid_value", message, "ignore_eos")
    salt = (fields.string("cache_salt") or "").encode()
    if len(salt) > MAX_SALT:
        raise RequestError("out_of_range", f"'cache_salt' is longer than {MAX_SALT} bytes.", "cache_salt")
    return Sampling(
        n=n,
        max_tokens=old_limit if limit is None else limit,
        max_tokens_field="max_tokens" if limit is None else "max_completion_tokens",
        default_max_tokens=defaults.max_tokens,
        min_tokens=fields.integer("min_tokens", 0, MAX_TOKENS) or 0,
        temperature=_parse_temperature(fields, defaults),
        top_k=min(max(defaults.top_k if top_k is None else top_k, 0), info.vocab_size),
        top_p=_or(fields.number("top_p", 0, 1, above=True), defaults.top_p),
        min_p=fields.number("min_p", 0, 1) or 0.0,
        repetition_penalty=_or(fields.number("repetition_penalty", 0.01, 10), 1.0),
        presence_penalty=fields.number("presence_penalty", -2, 2) or 0.0,
        frequency_penalty=fields.number("frequency_penalty", -2, 2) or 0.0,
        logit_bias=_parse_bias(fields, info),
        seed=defaults.draw_seed() if seed is None else seed,
        stop=parse_stop(fields),
        include_stop=fields.boolean("include_stop_str_in_output"),
        stop_token_ids=_parse_stop_ids(fields, info),
        ignore_eos=fields.boolean("ignore_eos"),
        logprobs=logprobs,
        skip_special=fields.boolean("skip_special_tokens", True),
        cache_salt=salt,
        bad_words=_parse_bad_words(fields),
        truncate=_parse_truncate(fields, info),
        priority=_parse_priority(fields, allow_priority),
        prompt_logprobs=prompt_logprobs,
        constraint=constraint,
    )


def same(value: object, harmless: object) -> bool:
    """Equal as JSON: Python's False == 0 must not let `"priority": false` pass."""
    return value == harmless and isinstance(value, bool) == isinstance(harmless, bool)


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _parse_temperature(fields: Fields, defaults: SamplingDefaults) -> float:
    value = _or(fields.number("temperature", 0, 2), defaults.temperature)
    return max(value, LOWEST_TEMPERATURE) if value else 0.0


def _parse_truncate(fields: Fields, info: ModelInfo) -> int | None:
    keep = fields.integer("truncate_prompt_tokens", -1, info.max_model_len)
    if keep == 0:
        message = "'truncate_prompt_tokens' must be -1 or at least 1: nothing would be left of the prompt."
        raise RequestError("out_of_range", message, "truncate_prompt_tokens")
    return keep


def _parse_priority(fields: Fields, allowed: bool) -> int:
    priority = fields.integer("priority", -MAX_PRIORITY, MAX_PRIORITY) or 0
    if priority and not allowed:
        raise Unsupported("priority", "it was started without --allow-priority.")
    return priority


def _parse_bad_words(fields: Fields) -> tuple[str, ...]:
    items = fields.items("bad_words") or []
    if len(items) > MAX_BAD_WORDS:
        raise RequestError("out_of_range", f"'bad_words' holds more than {MAX_BAD_WORDS} words.", "bad_words")
    words = []
    for k, item in enumerate(items):
        name = f"bad_words[{k}]"
        if not isinstance(item, str):
            raise wrong_type(name, "a string", item)
        if not 0 < len(item) <= MAX_BAD_WORD_CHARS:
            message = f"'{name}' must have between 1 and {MAX_BAD_WORD_CHARS} characters, got {len(item)}."
            raise RequestError("out_of_range", message, name)
        words.append(item)
    return tuple(words)


def parse_stop(fields: Fields, name: str = "stop") -> tuple[str, ...]:
    value = fields.get(name)
    if value is None:
        return ()
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list):
        raise wrong_type(name, "a string or a list of strings", value)
    if len(items) > MAX_STOPS:
        raise RequestError("out_of_range", f"'{name}' holds more than {MAX_STOPS} strings.", name)
    stops = []
    for item in items:
        if not isinstance(item, str):
            raise wrong_type(name, "a string or a list of strings", value)
        if not 0 < len(item) <= MAX_STOP_CHARS:
            message = (
                f"'{name}' strings must have between 1 and {MAX_STOP_CHARS} characters, got {len(item)}."
            )
            raise RequestError("out_of_range", message, name)
        stops.append(item)
    return tuple(stops)


def _parse_stop_ids(fields: Fields, info: ModelInfo) -> tuple[int, ...]:
    items = fields.items("stop_token_ids") or []
    if len(items) > MAX_STOP_IDS:
        raise RequestError(
            "out_of_range", f"'stop_token_ids' holds more than {MAX_STOP_IDS} ids.", "stop_token_ids"
        )
    return tuple(as_integer(item, "stop_token_ids", 0, info.vocab_size - 1) for item in items)


def _parse_bias(fields: Fields, info: ModelInfo) -> dict[int, float]:
    bias = fields.nested("logit_bias")
    if bias is None:
        return {}
    if len(bias.values) > MAX_BIASES:
        raise RequestError(
            "out_of_range", f"'logit_bias' holds more than {MAX_BIASES} entries.", "logit_bias"
        )
    result: dict[int, float] = {}
    for key, value in bias.values.items():
        if not (key.isascii() and key.isdecimal() and len(key) <= 10 and int(key) < info.vocab_size):
            message = (
                f"'logit_bias' has the key '{shown(key)}'; keys are ids from 0 to {info.vocab_size - 1}."
            )
            raise RequestError("out_of_range", message, "logit_bias")
        result[int(key)] = as_number(value, "logit_bias", -100, 100)
    return result
