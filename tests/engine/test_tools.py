"""The tool machine: which tokens follow a closed python block."""

import pytest

from engine.text import BytePairTokenizer, Tokenizer, load_tokenizer
from engine.tools import MAX_EXPRESSION_TOKENS, ToolMachine
from tests.engine.golden import G1


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(G1)


def run(machine: ToolMachine, tokens: list[int]) -> list[list[int]]:
    return [machine.observe(token) for token in tokens]


def block(tokenizer: Tokenizer, expression: str) -> list[int]:
    return [
        tokenizer.encode_special("<|python_start|>"),
        *tokenizer.encode(expression),
        tokenizer.encode_special("<|python_end|>"),
    ]


def output(tokenizer: Tokenizer, result: str) -> list[int]:
    return [
        tokenizer.encode_special("<|output_start|>"),
        *tokenizer.encode(result),
        tokenizer.encode_special("<|output_end|>"),
    ]


def test_a_closed_block_forces_its_result_once(tokenizer: Tokenizer) -> None:
    machine = ToolMachine(tokenizer)
    *before, last = run(machine, [*tokenizer.encode("That is "), *block(tokenizer, "1,000*3")])
    assert not any(before)
    assert last == output(tokenizer, "3000")
    # The forced tokens come by like any others and force nothing more; the next block works again.
    assert not any(run(machine, last))
    assert run(machine, block(tokenizer, "7//2"))[-1] == output(tokenizer, "3")


@pytest.mark.parametrize("expression", ["", "1/0", "hello", "1" * (2 * MAX_EXPRESSION_TOKENS)])
def test_blocks_without_a_result_force_nothing(tokenizer: Tokenizer, expression: str) -> None:
    assert not any(run(ToolMachine(tokenizer), block(tokenizer, expression)))


def test_an_end_without_a_block_and_a_block_in_a_block(tokenizer: Tokenizer) -> None:
    start, end = tokenizer.encode_special("<|python_start|>"), tokenizer.encode_special("<|python_end|>")
    machine = ToolMachine(tokenizer)
    assert not any(run(machine, [*tokenizer.encode("1+1"), end, end]))
    nested = [start, *tokenizer.encode("9*"), start, *tokenizer.encode("1+1"), end]
    assert run(machine, nested)[-1] == output(tokenizer, "2")
    assert machine.observe(end) == []


def test_machines_do_not_share_state(tokenizer: Tokenizer) -> None:
    first, second = ToolMachine(tokenizer), ToolMachine(tokenizer)
    *opened, end = block(tokenizer, "2*3")
    run(first, opened)
    assert second.observe(end) == []
    assert first.observe(end) == output(tokenizer, "6")


class FiveMethods:
    """A caller's own tokenizer, with no more than nanochat's methods."""

    def __init__(self, inner: Tokenizer) -> None:
        self.encode_special = inner.encode_special
        self.get_bos_token_id = inner.get_bos_token_id
        self.encode = inner.encode
        self.decode = inner.decode
        self.get_vocab_size = inner.get_vocab_size


def test_five_methods_are_enough(tokenizer: Tokenizer) -> None:
    machine = ToolMachine(FiveMethods(tokenizer))
    assert machine.active
    assert run(machine, block(tokenizer, "'strawberry'.count('r')"))[-1] == output(tokenizer, "3")


class NoneForUnknown(FiveMethods):
    def __init__(self, inner: Tokenizer) -> None:
        super().__init__(inner)
        self.encode_special = inner.special_tokens.get  # type: ignore[assignment]


@pytest.mark.parametrize("wrap", [FiveMethods, NoneForUnknown])
def test_inert_without_the_tool_tokens(tokenizer: Tokenizer, wrap: type[FiveMethods]) -> None:
    ranks = {bytes([byte]): byte for byte in range(256)}
    for missing in ("<|python_start|>", "<|python_end|>", "<|output_start|>", "<|output_end|>"):
        specials = [token for token in tokenizer.special_tokens if token != missing]
        plain = BytePairTokenizer(ranks, {token: 256 + i for i, token in enumerate(specials)})
        machine = ToolMachine(wrap(plain))
        assert not machine.active
        assert not any(run(machine, list(range(plain.get_vocab_size()))))
