"""What every route needs, and the one place where a request is let in."""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from starlette.types import Scope

from app.errors import Draining, EngineGone, RequestError
from app.fields import shown
from app.gate import Gate, Place
from app.lifecycle import Lifecycle
from app.metrics import Counts, Metrics
from app.middleware import key_id
from app.settings import HttpSettings
from app.text import TextService
from engine.messages import EngineClient, EngineState, EngineUnavailable, ModelInfo, Request, TokenStream
from engine.text import ChatMessage, TokenizerError


@dataclass(slots=True)
class Context:
    """The parts of one server.

    `gather` turns what this process counted into what all front-end processes counted, if there are several.
    `place` is the one of the request at hand, see `entering`.
    """

    client: EngineClient
    text: TextService
    settings: HttpSettings
    gate: Gate
    place: Place | None = None
    lifecycle: Lifecycle = field(default_factory=Lifecycle)
    metrics: Metrics = field(default_factory=Metrics)
    gather: Callable[[Counts], Awaitable[Counts]] | None = None

    @property
    def ready(self) -> bool:
        return self.client.state == EngineState.READY and not self.lifecycle.draining

    async def counts(self) -> Counts:
        """The whole server's."""
        own = self.metrics.counts(self.lifecycle)
        return own if self.gather is None else await self.gather(own)

    async def model(self) -> ModelInfo:
        """The loaded model, with its tokenizer in place. Raises Unavailable (503) when no request can be
        taken.
        """
        if self.lifecycle.draining:
            raise Draining()
        if self.client.state == EngineState.LOADING:
            raise EngineGone("The model is still being loaded.")
        if self.client.state != EngineState.READY:
            raise EngineGone("The engine is not running; it is being restarted.")
        try:
            info = self.client.info
            await self.text.prepare(info)
        except (EngineUnavailable, TokenizerError, OSError) as error:
            raise EngineGone(str(error)) from error
        return info

    @contextmanager
    def entering(self, scope: Scope) -> "Iterator[Context]":
        """A context for the one request of `scope`. Raises QueueFull (429) or Overloaded (503)."""
        with self.gate.entering(key_id(scope)) as place:
            yield replace(self, place=place)

    async def render(self, messages: list[ChatMessage], *, continue_final: bool = False) -> list[int]:
        """The conversation as the model's template writes it. Raises RequestError when the template
        refuses.
        """
        try:
            return await self.text.render(messages, continue_final=continue_final)
        except ValueError as error:
            message = f"'messages' do not fit the chat template: {shown(error, 200)}"
            raise RequestError("invalid_value", message, "messages") from None

    def submit(self, request: Request) -> list[TokenStream]:
        """Raises EngineGone (503), or RequestError for what the engine can never serve."""
        try:
            return self.client.submit(request)
        except EngineUnavailable as error:
            raise EngineGone(str(error) or "The engine is not ready.") from None
        except ValueError as error:
            raise RequestError("invalid_value", f"The engine refuses: {shown(error, 200)}") from None
