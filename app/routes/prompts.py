"""From validated prompts to choices that the engine works on."""

from collections.abc import Callable, Collection, Sequence

from app.answers.choices import Choice
from app.answers.scored_choice import ScoredChoice
from app.answers.scores import PromptScores
from app.requests.sampling import Sampling
from app.requests.text import TextService
from app.routes.context import Context
from app.settings.http import HttpSettings
from engine.messages import ModelInfo, Request, SamplingParams, TokenStream

ChoiceMaker = Callable[
    [int, TokenStream | None, list[int], Sampling, TextService, Collection[int], str], Choice
]
Prompt = tuple[list[int], str]  # token ids, and the text to echo before the answer


def submit(
    context: Context,
    info: ModelInfo,
    prompts: Sequence[Prompt],
    params: Sequence[SamplingParams],
    sampling: Sampling,
    *,
    tools: bool = False,
    hidden: frozenset[int] = frozenset(),
    make: ChoiceMaker = Choice,
) -> list[Choice]:
    """One engine request per prompt; without `params` nothing is generated. Choice index: prompt * n + k.

    `hidden` ids have no text; `make` is the kind of choice. Either every prompt is submitted or none. Raises
    QueueFull (429), Unavailable (503), or RequestError for a prompt that the engine can never serve.
    """
    place = context.place
    if place is not None and params:
        longest = max(each.max_tokens for each in params)
        place.queue([len(prompt) for prompt, _ in prompts], sampling.n, longest, info)
    salt = cache_salt(sampling, place.key if place is not None else "", context.settings)
    choices: list[Choice] = []
    try:
        for at, (prompt, text) in enumerate(prompts):
            if not params:
                choices += [
                    make(len(choices) + k, None, prompt, sampling, context.text, hidden, text)
                    for k in range(sampling.n)
                ]
                continue
            request = Request(
                id=context.client.next_id(sampling.n),
                prompt=prompt,
                params=params[at],
                n=sampling.n,
                tools=tools,
                cache_salt=salt,
                priority=sampling.priority,
            )
            streams = enumerate(context.submit(request), at * sampling.n)
            if sampling.prompt_logprobs is not None:
                scores = PromptScores(prompt)
                choices += [
                    ScoredChoice(index, stream, prompt, sampling, context.text, text, scores)
                    for index, stream in streams
                ]
                continue
            choices += [
                make(index, stream, prompt, sampling, context.text, hidden, text) for index, stream in streams
            ]
    except BaseException:
        context.client.abort([choice.stream.id for choice in choices if choice.stream is not None])
        if place is not None:
            place.leave()
        raise
    for choice in choices:
        choice.place = place
        if choice.stream is not None and place is not None:
            choice.stream.on_admission = place.admit
    return choices


def cache_salt(sampling: Sampling, key: str, settings: HttpSettings) -> bytes:
    """What separates cached prompts. No client can name the salt of another key: its own comes first, and all
    keys' ids have one length.
    """
    return key.encode() + sampling.cache_salt if settings.cache_salt_per_key else sampling.cache_salt
