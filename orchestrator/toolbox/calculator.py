"""The calculator: arithmetic of a model's expression, without `eval`, and within bounds of size and time."""

import ast
import math
import operator
from collections.abc import Callable
from typing import Any

from orchestrator.errors import ToolError
from orchestrator.text import one_line

__all__ = ["calculate"]

EXPRESSION_CHARACTERS = 500
RESULT_BITS = 10_000  # of a whole number, about 3,000 digits: Python itself writes at most 4,300
_DIGITS = 15  # that a float is sure of
_MOST_DIGITS = 400  # that are rounded to: a float has no more
_LARGEST_COUNT = 1_000  # of what is arranged or multiplied in factorial, comb and perm
_PARTS = (
    ast.Expression, ast.Constant, ast.BinOp, ast.UnaryOp, ast.Compare, ast.Call, ast.Name, ast.Load, ast.operator, ast.unaryop, ast.cmpop,
)  # fmt: skip
_REMEDY = "Write arithmetic as in Python: numbers without separators, + - * / // % **, brackets, and functions such as sqrt(2)"


def calculate(expression: str) -> str:
    """The value of an arithmetic expression as text; raises ToolError."""
    from simpleeval import InvalidExpression, SimpleEval  # type: ignore[import-untyped]

    if len(expression) > EXPRESSION_CHARACTERS:
        raise ToolError(f"The expression is longer than {EXPRESSION_CHARACTERS} characters", remedy="Work it out in parts")
    try:
        _check(expression.strip())
        value = SimpleEval(operators=_OPERATORS, functions=_FUNCTIONS, names=_NAMES).eval(expression.strip())
        return _written(value)
    except ToolError:
        raise
    except ZeroDivisionError as error:
        raise ToolError("That divides by zero") from error
    except SyntaxError as error:
        raise ToolError("That is no arithmetic expression", remedy=_REMEDY) from error
    except (ValueError, OverflowError, TypeError, ArithmeticError, RecursionError, MemoryError) as error:
        raise ToolError(f"That has no value: {one_line(error, 100) or type(error).__name__}", remedy=_REMEDY) from error
    except InvalidExpression as error:
        raise ToolError(f"That cannot be worked out: {one_line(error, 100)}", remedy=_REMEDY) from error


def _check(expression: str) -> None:
    for part in ast.walk(ast.parse(expression, mode="eval")):
        if not isinstance(part, _PARTS):
            raise ToolError(f"{type(part).__name__} is no arithmetic", remedy=_REMEDY)
        if isinstance(part, ast.Constant) and (isinstance(part.value, bool) or not isinstance(part.value, int | float)):
            raise ToolError("Only numbers can be worked with", remedy=_REMEDY)


def _small(value: Any) -> Any:
    if isinstance(value, int) and value.bit_length() > RESULT_BITS:
        raise ToolError(f"The number has more than {RESULT_BITS:,} bits", remedy="Work with smaller numbers, or with logarithms")
    return value


def _bounded(function: Callable[..., Any], bits: Callable[[int, int], int]) -> Callable[[Any, Any], Any]:
    """`function` of two numbers, not begun where two whole ones would give more than RESULT_BITS."""

    def bounded(left: Any, right: Any) -> Any:
        if isinstance(left, int) and isinstance(right, int) and bits(left, right) > RESULT_BITS:
            _small(1 << (RESULT_BITS + 1))
        result = function(left, right)
        if isinstance(result, complex):
            raise ToolError("The result is no real number")
        return _small(result)

    return bounded


def _counting(function: Callable[..., int]) -> Callable[..., int]:
    def counting(*numbers: Any) -> int:
        if any(not isinstance(number, int) or not 0 <= number <= _LARGEST_COUNT for number in numbers):
            raise ToolError(f"{function.__name__} takes whole numbers from 0 to {_LARGEST_COUNT:,}")
        return int(_small(function(*numbers)))

    return counting


def _divided(left: Any, right: Any) -> Any:
    """A whole number where whole ones divide without a rest: a float has 53 bits of it."""
    whole = isinstance(left, int) and isinstance(right, int) and right != 0 and left % right == 0
    return left // right if whole else left / right


def _rounded(number: Any, digits: Any = None) -> Any:
    if digits is not None and not (isinstance(digits, int) and abs(digits) <= _MOST_DIGITS):  # 10**-digits is worked out for it
        raise ToolError(f"round takes a whole number of digits, at most {_MOST_DIGITS}")
    return round(number, digits)


# At least so many bits, and at most twice as many: the result is looked at again.
_power = _bounded(operator.pow, lambda base, exponent: (abs(base).bit_length() - 1) * max(exponent, 0))
_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: _bounded(operator.add, lambda left, right: max(left.bit_length(), right.bit_length())),
    ast.Sub: _bounded(operator.sub, lambda left, right: max(left.bit_length(), right.bit_length())),
    ast.Mult: _bounded(operator.mul, lambda left, right: left.bit_length() + right.bit_length()),
    ast.Div: _divided,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: _power,
    ast.BitXor: _power,  # as people write a power; nobody asks a calculator for exclusive or
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_NAMES = {"pi": math.pi, "e": math.e, "tau": math.tau}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{
        function.__name__: function
        for function in (
            math.sqrt, math.cbrt, math.exp, math.log, math.log2, math.log10, math.floor, math.ceil, math.trunc, math.hypot,
            math.sin, math.cos, math.tan, math.asin, math.acos, math.atan, math.atan2, math.sinh, math.cosh, math.tanh,
            math.degrees, math.radians, abs, min, max,
        )
    },
    **{function.__name__: _counting(function) for function in (math.factorial, math.comb, math.perm)},
    "pow": _power,
    "round": _rounded,
    "gcd": lambda *numbers: math.gcd(*numbers),
}  # fmt: skip


def _written(value: Any) -> str:
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ToolError("The result is not finite")
        return repr(int(value)) if value.is_integer() and abs(value) < 10**_DIGITS else f"{value:.{_DIGITS}g}"
    if not isinstance(value, int):
        raise ToolError("That is no number", remedy=_REMEDY)
    return str(_small(value))
