"""An engine without a model: it says what the test tells it to, and remembers what it was asked."""

import asyncio
from collections.abc import Callable, Iterable

from engine.messages import (
    EngineState,
    EngineStats,
    EngineUnavailable,
    Finish,
    Frame,
    ModelInfo,
    PromptLogprobs,
    Request,
    StreamRouter,
    TokenLogprobs,
    TokenStream,
)
from engine.text import NANOCHAT_SPECIALS, BytePairTokenizer, NanochatTemplate
from tests.app.server_process import DEADLINE

SPECIALS = {spelling: 256 + k for k, spelling in enumerate(NANOCHAT_SPECIALS)}
BOS = SPECIALS["<|bos|>"]
END = SPECIALS["<|assistant_end|>"]
PYTHON_START = SPECIALS["<|python_start|>"]
VOCAB = 256 + len(SPECIALS)


def byte_tokenizer() -> BytePairTokenizer:
    """One token per byte, so that every character beyond ASCII is split over tokens."""
    return BytePairTokenizer({bytes([byte]): byte for byte in range(256)}, SPECIALS)


def byte_template() -> NanochatTemplate:
    return NanochatTemplate(byte_tokenizer())


Script = Callable[[Request, int], list[int]]


def says(text: str) -> Script:
    """A model that says `text` and ends its turn."""
    return lambda request, choice: [*text.encode(), END]


def scores(request: Request, first: int, count: int) -> PromptLogprobs:
    """Of some tokens of a prompt: token i has the logprob -i / 8 and is one worse than the alternatives."""
    wanted = request.params.prompt_logprobs or 0
    places = range(first, min(first + count, len(request.prompt)))
    tops = [[(request.prompt[i] + 1 + k) % VOCAB for k in range(wanted)] for i in places]
    values = [[-i / 16 - k / 64 for k in range(wanted)] for i in places]
    lists = [-i / 8 for i in places], [wanted + 1 for _ in places], tops, values
    return PromptLogprobs(request.id, first, *lists)


class ScriptedEngine:
    """EngineClient over a router. With `script`, each choice gets its tokens one per loop turn; without, the
    test calls `emit`. A script that is cut by max_tokens ends with "length".
    """

    def __init__(self, script: Script | None = None, *, max_model_len: int = 256, max_rows: int = 8) -> None:
        self.script = script
        self.likes: Callable[[int, int], float] | None = None  # the logprob of a choice's n-th token
        self.router = StreamRouter()
        self.requests: list[Request] = []
        self.aborted: list[int] = []
        self.state = EngineState.READY
        self.model: ModelInfo | None = ModelInfo(
            name="scripted",
            path="nowhere",
            generation="G1",
            vocab_size=VOCAB,
            max_model_len=max_model_len,
            terminal_ids=[END, BOS],
            max_rows=max_rows,
            block_size=16,
            num_blocks=64,
            device="cpu",
            dtype="float32",
            parameters=1000,
            sampling_defaults={"temperature": 0.6, "top_k": 50},
            features=[("batching", "continuous", "continuous", "default")],
            created=1700000000,
        )
        self._next_id = 1
        self._changed = asyncio.Event()
        self._scored: dict[int, asyncio.Event] = {}  # by request: its prompt's logprobs are out
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def info(self) -> ModelInfo:
        if self.model is None:
            raise EngineUnavailable("loading")
        return self.model

    def next_id(self, n: int) -> int:
        self._next_id += n
        return self._next_id - n

    def submit(self, request: Request) -> list[TokenStream]:
        if self.state != EngineState.READY:
            raise EngineUnavailable("not ready")
        streams = self.router.open(request)
        self.requests.append(request)
        self._changed.set()
        if self.script is not None:
            for k in range(request.n):
                task = asyncio.ensure_future(self._play(request, k, self.script(request, k)))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        return streams

    def abort(self, streams: Iterable[int]) -> None:
        closed = self.router.close(streams)
        self.aborted += closed
        self._changed.set()

    def stats(self) -> EngineStats:
        return EngineStats(running=len(self.router), blocks_total=64, blocks_used=len(self.router))

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()

    @property
    def open_streams(self) -> int:
        return len(self.router)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Waits for a condition over what submit and abort change."""
        async with asyncio.timeout(DEADLINE):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    def emit(
        self,
        stream: int,
        tokens: Iterable[int],
        finish: Finish | None = None,
        logprobs: Iterable[TokenLogprobs] = (),
        prompt: PromptLogprobs | None = None,
    ) -> None:
        """One frame with these tokens of one stream."""
        ids = list(tokens)
        finished = [] if finish is None else [finish]
        prompts = [] if prompt is None else [prompt]
        frame = Frame([stream] * len(ids), ids, [], list(logprobs), finished, self.stats(), prompts)
        self.router.dispatch(frame)

    async def _play(self, request: Request, choice: int, tokens: list[int]) -> None:
        id = request.id + choice
        limit = request.params.max_tokens
        wants = request.params.logprobs
        if request.params.prompt_logprobs is not None:
            scored = self._scored.setdefault(request.id, asyncio.Event())
            for first in range(1, len(request.prompt), 3) if choice == 0 else ():
                await asyncio.sleep(0)
                self.emit(id, [], prompt=scores(request, first, 3))
            if choice == 0:
                scored.set()
            await scored.wait()
        for at, token in enumerate(tokens[:limit]):
            await asyncio.sleep(0)
            stop = token if token == END or token in request.params.stop_token_ids else None
            finish = None
            if stop is not None:
                finish = Finish(id, "stop", stop_token=stop)
            elif at + 1 == limit:
                finish = Finish(id, "length")
            logprobs = []
            if wants is not None:
                tops = [(token + k) % VOCAB for k in range(wants)]
                own = -0.5 if self.likes is None else self.likes(choice, at)
                logprobs = [TokenLogprobs(0, own, tops, [-0.5 - k for k in range(wants)])]
            self.emit(id, [token], finish, logprobs)
            if finish is not None:
                return
