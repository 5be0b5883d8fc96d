"""Which sequences have to keep to a grammar, and what becomes of those whose grammar fails.

All methods run on the loop and return at once; the work is done by the threads of engine.grammar.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from engine.grammar import Grammars, GrammarState
from engine.messages import Request
from engine.sequence import Sequence


@dataclass(slots=True)
class Forms:
    """tokenizer: as far as it tells the bytes of its tokens. terminal_ids: the model's, which end an answer.

    early: whether a mask has to be there before its step is launched. wake: called from any thread when
    a sequence may be planned that had to wait for its grammar.
    """

    tokenizer: object
    vocab_size: int
    terminal_ids: tuple[int, ...]
    early: bool
    wake: Callable[[], None] = lambda: None
    _grammars: Grammars | None = None  # from the first request that has one
    _states: dict[int, GrammarState] = field(default_factory=dict)  # by stream id
    _working: dict[int, Sequence] = field(default_factory=dict)  # those whose next mask is being made

    def __len__(self) -> int:
        """Sequences that have a grammar."""
        return len(self._states)

    def check(self, request: Request) -> None:
        """Raises ValueError for a request that asks for what cannot be had with a grammar."""
        if request.params.grammar is None:
            return
        if request.params.ignore_eos or request.tools:
            raise ValueError("grammar cannot be had with ignore_eos or tools")
        if not (hasattr(self.tokenizer, "token_bytes") and hasattr(self.tokenizer, "special_ids")):
            raise ValueError("grammar needs a tokenizer that tells the bytes of its tokens")
        if not self.terminal_ids:
            raise ValueError("grammar needs a model with a token that ends its answers")

    def open(self, sequence: Sequence, grammar: str) -> None:
        """The sequence can be admitted when its grammar is compiled."""
        if self._grammars is None:
            self._grammars = Grammars(
                self.tokenizer,
                self.vocab_size,
                self.terminal_ids,
                early=self.early,
                wake=lambda: self.wake(),
            )
        sequence.grammar = self._states[sequence.id] = self._grammars.open(grammar)
        self._working[sequence.id] = sequence

    def accept(self, sequence: Sequence, token: int) -> bool:
        """Tells the sequence's grammar, if it has one, what was emitted; whether it has one."""
        state = self._states.get(sequence.id)
        if state is None:
            return False
        state.accept(token)
        self._working[sequence.id] = sequence
        return True

    def completes(self, sequence: Sequence, token: int) -> bool:
        """Whether a token says that an answer has its form: nothing can come behind it."""
        return sequence.id in self._states and token in self.terminal_ids

    def failed(self) -> Iterator[tuple[Sequence, BaseException]]:
        """Those whose next mask will never come, and why."""
        for sequence in list(self._working.values()):
            state = sequence.grammar
            if state is not None and state.mask.done():
                del self._working[sequence.id]
                error = state.mask.exception()
                if error is not None:
                    yield sequence, error

    def forget(self, sequence: Sequence) -> None:
        self._states.pop(sequence.id, None)
        self._working.pop(sequence.id, None)

    def close(self) -> None:
        """Ends the threads; waits for them."""
        if self._grammars is not None:
            self._grammars.close()
