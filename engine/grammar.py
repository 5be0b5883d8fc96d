"""Grammars: which tokens may come next in the answers of requests that ask for a form.

One matcher per sequence. It takes the tokens that its sequence was seen to emit, and gives a mask of the
vocabulary for the next one. All of that happens in worker threads, while steps run: the loop only says which
token came, and whoever samples waits for the mask. llguidance does the work.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:  # loaded with the first grammar
    import llguidance

THREADS = 4  # for masks
COMPILERS = 2  # threads of their own: a grammar may be long in the making, and rows wait for their masks
REMEMBERED = 32  # compiled grammars that wait for more of their kind

Mask = npt.NDArray[np.int32]  # [ceil(vocabulary / 32)], bit i of word j: id 32 * j + i is allowed


class GrammarError(Exception):
    """A grammar does not compile, or its matcher ran into one of its limits."""


class Vocabulary(Protocol):
    """What must be known of a tokenizer: the bytes of its tokens, and which have no text."""

    special_ids: frozenset[int]

    def token_bytes(self, id: int, /) -> bytes: ...

    def encode(self, text: str, /) -> list[int]: ...


class GrammarState:
    """Of one sequence. `mask`: of its next token, soon or already; it raises GrammarError.

    early: whether the mask has to be there before a step is launched, and not just before it samples.
    """

    __slots__ = ("_advance", "early", "mask")

    def __init__(self, mask: "Future[Mask]", advance: Callable[[int], "Future[Mask]"], early: bool) -> None:
        self.mask = mask
        self.early = early
        self._advance = advance

    @property
    def ready(self) -> bool:
        """Whether the mask is there."""
        return self.mask.done() and self.mask.exception() is None

    def accept(self, token: int) -> None:
        """The sequence has emitted this token, and goes on."""
        self.mask = self._advance(token)


class Grammars:
    """The grammars of one model's requests, and the threads that work on them.

    vocab_size: of the model's logits. terminal_ids: they are allowed just where an answer may end. early: see
    GrammarState. wake: called in a worker thread whenever a mask is there that somebody may wait for.
    """

    def __init__(
        self,
        tokenizer: object,
        vocab_size: int,
        terminal_ids: Sequence[int],
        *,
        early: bool,
        wake: Callable[[], None],
    ) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._terminal_ids = list(terminal_ids)
        self._early = early
        self._wake = wake
        self._pool = ThreadPoolExecutor(THREADS, "grammar")
        self._compilers = ThreadPoolExecutor(COMPILERS, "grammar compiler")
        self._lock = threading.Lock()  # for the two below
        self._vocabulary: llguidance.LLTokenizer | None = None
        # At their start, and used last at the end.
        self._compiled: OrderedDict[str, Future[llguidance.LLMatcher]] = OrderedDict()

    def open(self, text: str) -> GrammarState:
        """A matcher at its start; its mask comes when the grammar is compiled."""
        matcher: list[llguidance.LLMatcher] = []

        def start() -> Mask:
            matcher.append(self._matcher(text))
            return self._mask(matcher[0])

        def advance(token: int) -> Mask:
            if not matcher[0].consume_token(token):
                raise GrammarError(_reason(matcher[0]))
            return self._mask(matcher[0])

        return GrammarState(
            self._submit(self._compilers, start),
            lambda token: self._submit(self._pool, lambda: advance(token)),
            self._early,
        )

    def close(self) -> None:
        for pool in (self._compilers, self._pool):
            pool.shutdown(wait=True, cancel_futures=True)

    def _submit(self, pool: ThreadPoolExecutor, work: Callable[[], Mask]) -> "Future[Mask]":
        def run() -> Mask:
            try:
                return work()
            except GrammarError:
                raise
            except BaseException as error:  # a panic of the library is no Exception
                raise GrammarError(f"{type(error).__name__}: {error}") from error

        future = pool.submit(run)
        future.add_done_callback(lambda done: self._wake())
        return future

    # -- in worker threads
    # --------------------------------------------------------------------------------------

    def _matcher(self, text: str) -> "llguidance.LLMatcher":
        """A copy of the compiled grammar. Where another thread is at it, this waits for that."""
        with self._lock:
            making = self._compiled.get(text)
            mine = making is None
            if making is None:
                making = self._compiled[text] = Future()
            self._compiled.move_to_end(text)
            if len(self._compiled) > REMEMBERED:
                self._compiled.popitem(last=False)
        if mine:
            try:
                making.set_result(self._compile(text))
            except BaseException as error:
                making.set_exception(error)
                with self._lock:
                    self._compiled.pop(text, None)
        found = making.result()
        with self._lock:  # nobody else may copy it meanwhile
            return found.deep_copy()

    def _compile(self, text: str) -> "llguidance.LLMatcher":
        from llguidance import LLMatcher, LLParserLimits

        with self._lock:
            if self._vocabulary is None:
                self._vocabulary = self._build_vocabulary()
        limits = LLParserLimits(verbose_errors=False)
        made = LLMatcher(self._vocabulary, text, log_level=0, limits=limits)
        if made.is_error():
            raise GrammarError(_reason(made))
        return made

    def _build_vocabulary(self) -> "llguidance.LLTokenizer":
        from llguidance import LLTokenizer

        wrapper = _Wrapper(self._tokenizer, self._vocab_size, self._terminal_ids)  # type: ignore[arg-type]
        return LLTokenizer(wrapper, n_vocab=self._vocab_size, eos_token=self._terminal_ids)  # type: ignore[arg-type]

    def _mask(self, matcher: "llguidance.LLMatcher") -> Mask:
        mask: Mask = np.zeros(-(-self._vocab_size // 32), dtype=np.int32)
        matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        if matcher.is_error():
            raise GrammarError(_reason(matcher))
        if not mask.any():
            raise GrammarError("no token can go on")
        return mask


class _Wrapper:
    """A tokenizer as llguidance wants to see one. Ids that stand for nothing have no bytes."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Vocabulary, vocab_size: int, terminal_ids: list[int]) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = terminal_ids[0]
        self.tokens = [tokenizer.token_bytes(id) for id in range(vocab_size)]
        hidden = {*tokenizer.special_ids, *terminal_ids}
        self.special_token_ids = sorted(id for id in hidden if id < vocab_size)

    def __call__(self, text: str | bytes) -> list[int]:
        return self._tokenizer.encode(text if isinstance(text, str) else text.decode("utf-8", "replace"))


def _reason(matcher: "llguidance.LLMatcher") -> str:
    return " ".join(matcher.get_error().removesuffix("<non-verbose/>").split())[:300] or "it cannot go on"


def allowed_ids(masks: Sequence[Mask], vocab_size: int) -> npt.NDArray[np.bool_]:
    """Masks as booleans, [masks, vocabulary]."""
    bits = np.unpackbits(np.stack(masks).view(np.uint8), axis=1, bitorder="little", count=vocab_size)
    return bits.view(np.bool_)
