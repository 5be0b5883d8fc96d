"""What every route needs, and the one place where a request is let in."""

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from app.errors import Draining, EngineGone, RequestError, Unavailable
from app.fields import shown
from app.lifecycle import Lifecycle
from app.metrics import Counts, Metrics
from app.settings import HttpSettings
from app.text import TextService
from engine.messages import EngineClient, EngineState, EngineUnavailable, ModelInfo, Request, TokenStream
from engine.text import ChatMessage, TokenizerError


@dataclass(slots=True)
class Context:
    """The parts of one server.

    With several front-end processes, `gather` turns what this one counted into what all have counted, and
    `cancel_elsewhere` ends an answer (id, owner) that another one has open, and says whether there was one.
    """

    client: EngineClient
    text: TextService
    settings: HttpSettings
    lifecycle: Lifecycle = field(default_factory=Lifecycle)
    metrics: Metrics = field(default_factory=Metrics)
    gather: Callable[[Counts], Awaitable[Counts]] | None = None
    cancel_elsewhere: Callable[[str, str], Awaitable[bool]] | None = None

    @property
    def ready(self) -> bool:
        return self.client.state == EngineState.READY and not self.lifecycle.draining

    async def counts(self) -> Counts:
        """The whole server's."""
        own = self.metrics.counts(self.lifecycle)
        return own if self.gather is None else await self.gather(own)

    async def cancel(self, id: str, owner: str) -> bool:
        """Ends the owner's open answer of this id, whichever process has it; False if none has."""
        if self.lifecycle.cancel(id, owner):
            return True
        return self.cancel_elsewhere is not None and await self.cancel_elsewhere(id, owner)

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

    def check_room(self, choices: int, info: ModelInfo) -> None:
        """Raises Unavailable (503) when too many choices wait already."""
        # This process knows its own at once; the engine knows those of all processes, a message ago.
        stats = self.client.stats()
        waiting = max(self.lifecycle.open_choices, stats.running + stats.waiting) - info.max_rows
        if waiting + choices > self.settings.max_queue and waiting > 0:
            seconds = math.ceil(self.metrics.mean_latency() * (waiting / max(info.max_rows, 1)))
            raise Unavailable(
                "overloaded", f"The queue is full ({waiting} waiting).", min(max(seconds, 1), 60)
            )

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
