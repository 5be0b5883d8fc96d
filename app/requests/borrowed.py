"""What /v1/responses and /v1/messages have of the older routes: sampling fields, by the same names, and known
fields that are refused.
"""

from collections.abc import Collection, Sequence

from app.http.errors import RequestError, Unsupported
from app.http.fields import Fields
from app.requests.catalogue import Field
from app.requests.dialect_fields import BORROWED
from app.requests.openai import Delivery, check_model
from app.requests.sampling import Sampling, parse_sampling, same
from app.requests.tools import ToolUse
from app.settings.http import MAX_INTERVAL, HttpSettings
from engine.messages import ModelInfo

UNREAD = ("spaces_between_special_tokens",)  # has no effect


def refuse(fields: Fields, refused: Sequence[Field]) -> None:
    """Raises Unsupported for a refused field with a value that would change something."""
    for field in refused:
        value = fields.get(field.name)
        harmless = field.schema.get("enum", ())
        if value is not None and not (
            isinstance(harmless, list) and any(same(value, other) for other in harmless)
        ):
            raise Unsupported(fields.name(field.name), f"{field.about}.")


def borrowed_sampling(
    fields: Fields,
    info: ModelInfo,
    settings: HttpSettings,
    names: Collection[str],
    logprobs: int | None = None,
) -> Sampling:
    """From the borrowed fields and `names`, for one answer. Raises RequestError."""
    chosen = Fields({name: fields.get(name) for name in (*BORROWED, *names) if name not in UNREAD})
    return parse_sampling(
        chosen, info, settings.sampling, max_n=1, logprobs=logprobs, allow_priority=settings.allow_priority
    )


def borrowed_delivery(fields: Fields, info: ModelInfo, settings: HttpSettings) -> Delivery:
    """Raises ApiError (400, 404)."""
    return Delivery(
        model=check_model(fields, info, settings),
        stream=fields.boolean("stream"),
        include_usage=False,
        continuous_usage=False,
        token_ids=False,
        interval=fields.integer("stream_interval", 1, MAX_INTERVAL) or settings.stream_interval,
    )


def check_end(sampling: Sampling, tools: ToolUse | None) -> None:
    """Raises RequestError where an answer that has to end by itself is told not to."""
    if sampling.ignore_eos and sampling.constraint is not None:
        field = sampling.constraint.field
        message = f"'ignore_eos' cannot be had with '{field}': that answer ends when it is complete."
        raise RequestError("invalid_value", message, "ignore_eos")
    if sampling.ignore_eos and tools is not None and tools.constrained:
        message = "'ignore_eos' cannot be had with calls that have to be: such an answer ends with them."
        raise RequestError("invalid_value", message, "ignore_eos")
