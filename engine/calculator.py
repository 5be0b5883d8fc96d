"""The calculator behind nanochat's python blocks: sums, and letters counted in a word.

The model writes the expression, so it is a stranger's input. It is parsed and walked, never evaluated by
Python: numbers, + - * / //, signs, parentheses, and 'text'.count('part'). What nanochat's own filters refuse
has no result here either, except words such as "open" inside a counted text: they are only dangerous to
`eval`.
"""

import ast
import math
import re
import string

MAX_CHARACTERS = 512
MAX_DEPTH = 256
MAX_BITS = 4096  # of an integer; floats end at their own range

_ARITHMETIC = frozenset("0123456789*+-/.() ")
_COUNTING = frozenset(string.ascii_letters + string.digits + "'\"()._ ")
_LITERAL = re.compile("'[^']*'|\"[^\"]*\"")

Value = int | float


class _NoResult(Exception):
    """The expression means nothing here."""


def calculate(expression: str) -> str | None:
    """The result as Python prints it ("3000", "3.0"), or None if the expression has none. Never raises."""
    if len(expression) > MAX_CHARACTERS:
        return None
    expression = expression.replace(",", "")
    if not (_is_sum(expression) or _is_count(expression)):
        return None
    try:
        tree = ast.parse(expression.strip(), mode="eval")
        return str(_value(tree.body, MAX_DEPTH))
    except (_NoResult, SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError):
        return None


def _is_sum(expression: str) -> bool:
    return set(expression) <= _ARITHMETIC and "**" not in expression


def _is_count(expression: str) -> bool:
    if not set(expression) <= _COUNTING or ".count(" not in expression:
        return False
    # Python's parser warns on standard error about texts such as "1if", so those do not reach it.
    outside = _LITERAL.sub("", expression).replace("count", "")
    return set(outside) <= set("(). ")


def _value(node: ast.expr, depth: int) -> Value:
    if depth == 0:
        raise _NoResult
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return _bounded(number)
        case ast.UnaryOp(op=ast.UAdd() | ast.USub() as sign, operand=operand):
            value = _value(operand, depth - 1)
            return -value if isinstance(sign, ast.USub) else value
        case ast.BinOp(left=left, op=operator, right=right):
            return _bounded(_combine(_value(left, depth - 1), operator, _value(right, depth - 1)))
        case ast.Call(
            func=ast.Attribute(value=ast.Constant(value=str(text)), attr="count"),
            args=[ast.Constant(value=str(part))],
            keywords=[],
        ):
            return text.count(part)
    raise _NoResult


def _combine(left: Value, operator: ast.operator, right: Value) -> Value:
    match operator:
        case ast.Add():
            return left + right
        case ast.Sub():
            return left - right
        case ast.Mult():
            return left * right
        case ast.Div():
            return left / right
        case ast.FloorDiv():
            return left // right
    raise _NoResult


def _bounded(value: Value) -> Value:
    if isinstance(value, int):
        if value.bit_length() > MAX_BITS:
            raise _NoResult
    elif not math.isfinite(value):
        raise _NoResult
    return value
