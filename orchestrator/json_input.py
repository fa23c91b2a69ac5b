"""JSON that people write: read strictly, and what is wrong with it told with its place."""

import json
import math
from typing import Any, NoReturn

from orchestrator.errors import InputError
from orchestrator.text import one_line

__all__ = ["parse_json"]

_REMEDY = 'write JSON, such as {"field": "value"}; in a shell between single quotes'


def parse_json(text: str, source: str, *, line: int = 1, remedy: str = _REMEDY) -> Any:
    """The value that `text` holds; numbers are finite and texts whole. Raises InputError with `source`, line and column.

    `line`: where the text begins in its source.
    """
    place = f"in {source}" if line == 1 else f"at {source}:{line}"
    try:
        value = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
        json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        where = f"at {source}:{line + error.lineno - 1}:{error.colno}"
        raise InputError(f"the input is not valid JSON: {error.msg}", where=where, remedy=remedy) from error
    except RecursionError as error:
        raise InputError("the input is nested too deeply", where=place, remedy="give it flatter") from error
    except UnicodeEncodeError as error:
        raise InputError("the input holds half a surrogate pair, which is no character", where=place, remedy="leave it out") from error
    except ValueError as error:
        raise InputError(f"the input is not valid JSON: {error}", where=place, remedy=remedy) from error
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{one_line(digits, 40)} is too large a number")
    return value
