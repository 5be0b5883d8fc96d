"""What every route needs, and the one place where a request is let in."""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field

from starlette.types import Scope

from app.admission.gate import Gate, Place
from app.admission.replay import Replays
from app.answers.record import Spans
from app.answers.resume import Streams
from app.http.body import Uploads
from app.http.errors import Draining, EngineGone, RequestError
from app.http.fields import shown
from app.http.lifecycle import Lifecycle
from app.http.middleware import key_id
from app.requests.constraints import Constraint, GrammarCompiler
from app.requests.text import TextService
from app.settings.http import HttpSettings
from app.telemetry.metrics import Counts, Metrics
from engine.messages import EngineClient, EngineState, EngineUnavailable, ModelInfo, Request, TokenStream
from engine.text import ChatMessage, TokenizerError, Tool


@dataclass(slots=True)
class Context:
    """The parts of one server.

    With several front-end processes, `gather` turns what this one counted into what all have counted, and
    `cancel_elsewhere` ends an answer (id, owner) that another one has open, and says whether there was one.
    `spans` is where a span of each request goes, if anywhere.
    `place` is the one of the request at hand, see `entering`.
    """

    client: EngineClient
    text: TextService
    settings: HttpSettings
    gate: Gate
    place: Place | None = None
    lifecycle: Lifecycle = field(default_factory=Lifecycle)
    metrics: Metrics = field(default_factory=Metrics)
    spans: Spans | None = None
    gather: Callable[[Counts], Awaitable[Counts]] | None = None
    cancel_elsewhere: Callable[[str, str], Awaitable[bool]] | None = None
    grammars: GrammarCompiler = field(default_factory=GrammarCompiler)
    replays: Replays = field(init=False)
    streams: Streams = field(init=False)
    uploads: Uploads = field(init=False)

    def __post_init__(self) -> None:
        self.streams = Streams(self.settings, self.lifecycle, self.metrics)
        self.uploads = Uploads(self.settings)
        self.replays = Replays(self.client, self.lifecycle)

    @property
    def ready(self) -> bool:
        """Whether a balancer should send requests here."""
        if self.client.state != EngineState.READY or self.lifecycle.leaving or self.lifecycle.draining:
            return False
        return not self.stuck

    @property
    def stuck(self) -> bool:
        """Whether a step takes so long that who comes now had better go elsewhere. It may still end."""
        return self.client.stats().step_age_seconds > self.settings.stuck_seconds

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

    @contextmanager
    def entering(self, scope: Scope) -> "Iterator[Context]":
        """A context for the one request of `scope`. Raises QueueFull (429) or Overloaded (503)."""
        with self.gate.entering(key_id(scope)) as place:
            context = copy(self)  # its parts are shared
            context.place = place
            yield context

    async def grammar(self, wanted: Constraint | None) -> str | None:
        """What the engine is told of a constraint. Raises RequestError for one that does not compile."""
        return None if wanted is None else await self.grammars.compile(wanted)

    async def render(
        self,
        messages: list[ChatMessage],
        *,
        continue_final: bool = False,
        tools: Sequence[Tool] = (),
        field: str = "messages",
    ) -> list[int]:
        """The conversation as the model's template writes it. Raises RequestError, which names `field`, when
        the template refuses.
        """
        try:
            return await self.text.render(messages, continue_final=continue_final, tools=tools)
        except ValueError as error:
            message = f"'{field}' does not fit the chat template: {shown(error, 200)}"
            raise RequestError("invalid_value", message, field) from None

    def submit(self, request: Request) -> list[TokenStream]:
        """Raises EngineGone (503), RequestError for what the engine can never serve, or PoisonRequest."""
        self.replays.check(request)
        try:
            return self.client.submit(request)
        except EngineUnavailable as error:
            raise EngineGone(str(error) or "The engine is not ready.") from None
        except ValueError as error:
            raise RequestError("invalid_value", f"The engine refuses: {shown(error, 200)}") from None
