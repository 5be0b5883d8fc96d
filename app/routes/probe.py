"""GET /health_generate: does the model still write? One token shows it."""

import asyncio
from time import perf_counter

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from app.http.errors import ApiError, EngineGone
from app.requests.sampling import MAX_PRIORITY
from app.routes.context import Context
from engine.messages import Request, SamplingParams

FRESH_SECONDS = 5.0  # how long a result is shown again
PATIENCE_SECONDS = 10.0


class GenerationProbe:
    """Whoever asks while a token is under way waits for the same one; its result is kept for a while."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self._run: asyncio.Task[float | ApiError] | None = None
        self._at = 0.0

    async def show(self, request: HttpRequest) -> Response:
        """200 with the seconds that the token took, or 503."""
        await self.context.model()
        run = self._run
        if run is None or (run.done() and perf_counter() - self._at >= FRESH_SECONDS):
            run = self._run = asyncio.create_task(self._generate(), name="health_generate")
        result = await asyncio.shield(run)
        if isinstance(result, ApiError):
            raise result
        body = {"status": "ok", "seconds": result, "age_seconds": perf_counter() - self._at}
        return Response(msgspec.json.encode(body), media_type="application/json")

    async def _generate(self) -> float | ApiError:
        context = self.context
        started = perf_counter()
        try:
            request = Request(
                id=context.client.next_id(1),
                prompt=[context.text.tokenizer.get_bos_token_id()],
                params=SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True),
                priority=-MAX_PRIORITY - 1,  # not behind a queue: the question is whether anything moves
            )
            (stream,) = context.submit(request)
            try:
                async with asyncio.timeout(PATIENCE_SECONDS):
                    while (finish := (await stream.next()).finish) is None:
                        pass
            except TimeoutError:
                return EngineGone(f"The engine made no token in {PATIENCE_SECONDS:g} seconds.")
            finally:
                if not stream.finished:
                    context.client.abort([stream.id])
            if finish.reason not in ("stop", "length"):
                return EngineGone(finish.message or f"The engine ended the request ({finish.reason}).")
            return perf_counter() - started
        except ApiError as error:
            return error
        finally:
            self._at = perf_counter()
