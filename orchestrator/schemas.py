"""Whether a JSON value fits a JSON Schema, as far as schemas of answers go: those of pydantic models, TypedDicts and dataclasses."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from orchestrator.text import one_line

__all__ = ["misfit"]

_DEEPEST = 64  # a schema may hold itself
_TYPES: dict[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "integer": lambda value: not isinstance(value, bool) and (isinstance(value, int) or (isinstance(value, float) and value.is_integer())),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
}
_BOUNDS: dict[str, tuple[str, Callable[[Any, Any], bool]]] = {
    "minimum": ("at least", lambda value, bound: value >= bound),
    "maximum": ("at most", lambda value, bound: value <= bound),
    "exclusiveMinimum": ("more than", lambda value, bound: value > bound),
    "exclusiveMaximum": ("less than", lambda value, bound: value < bound),
}
_SIZES = {"minLength": (str, 1), "maxLength": (str, -1), "minItems": (list, 1), "maxItems": (list, -1)}


def misfit(value: Any, schema: Mapping[str, Any] | bool) -> str:
    """Why `value` does not fit `schema`, with the path of what is wrong; "" where it fits. Keywords that are not known forbid nothing."""
    return _misfit(value, schema, schema if isinstance(schema, Mapping) else {}, "the answer", 0)


def _misfit(value: Any, schema: Any, root: Mapping[str, Any], path: str, depth: int) -> str:
    if schema is False or depth > _DEEPEST:
        return f"{path} is not allowed"
    if not isinstance(schema, Mapping):
        return ""
    if isinstance(schema.get("$ref"), str):
        return _misfit(value, _resolved(root, schema["$ref"]), root, path, depth + 1)
    for check in (_plainly, _choice, _inside):
        if why := check(value, schema, root, path, depth):
            return why
    return ""


def _resolved(root: Mapping[str, Any], reference: str) -> Any:
    found: Any = root
    for part in reference.removeprefix("#").strip("/").split("/"):
        found = found.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(found, Mapping) and part else found
    return found


def _plainly(value: Any, schema: Mapping[str, Any], root: Mapping[str, Any], path: str, depth: int) -> str:
    """What one value alone must be."""
    wanted = schema.get("type")
    types = [wanted] if isinstance(wanted, str) else list(wanted or ())
    if types and not any(_TYPES.get(name, lambda _: True)(value) for name in types):
        return f"{path} must be {' or '.join(map(str, types))}, not {one_line(repr(value), 60)}"
    allowed = [schema["const"]] if "const" in schema else schema.get("enum")
    if allowed is not None and not any(value == item and type(value) is type(item) for item in allowed):
        return f"{path} must be one of {', '.join(one_line(repr(item), 40) for item in allowed)}, not {one_line(repr(value), 60)}"
    if _TYPES["number"](value):
        for keyword, (words, holds) in _BOUNDS.items():
            if _TYPES["number"](schema.get(keyword)) and not holds(value, schema[keyword]):
                return f"{path} must be {words} {schema[keyword]:g}, not {one_line(repr(value), 60)}"
    for keyword, (kind, sign) in _SIZES.items():
        if isinstance(value, kind) and isinstance(schema.get(keyword), int) and (len(value) - schema[keyword]) * sign < 0:
            return f"{path} must have {'at least' if sign > 0 else 'at most'} {schema[keyword]} {'characters' if kind is str else 'items'}"
    if isinstance(value, str) and isinstance(schema.get("pattern"), str) and not re.search(schema["pattern"], value):
        return f"{path} must match {one_line(schema['pattern'], 80)}"
    return ""


def _choice(value: Any, schema: Mapping[str, Any], root: Mapping[str, Any], path: str, depth: int) -> str:
    """anyOf, oneOf and allOf."""
    for keyword in ("anyOf", "oneOf"):
        if options := schema.get(keyword):
            reasons = [_misfit(value, option, root, path, depth + 1) for option in options]
            if all(reasons):
                return "; ".join(dict.fromkeys(reasons))
    return next(filter(None, (_misfit(value, part, root, path, depth + 1) for part in schema.get("allOf") or ())), "")


def _inside(value: Any, schema: Mapping[str, Any], root: Mapping[str, Any], path: str, depth: int) -> str:
    """The items of a list, the fields of an object."""
    if isinstance(value, list) and "items" in schema:
        places = (_misfit(item, schema["items"], root, f"{path}[{place}]", depth + 1) for place, item in enumerate(value))
        return next(filter(None, places), "")
    if not isinstance(value, dict):
        return ""
    known = schema.get("properties") or {}
    for name in schema.get("required") or ():
        if name not in value:
            return f"{path} lacks {name!r}"
    for name, item in value.items():
        inner = known.get(name, schema.get("additionalProperties", True))
        if inner is False:
            return f"{path} has no field {one_line(name, 60)!r}; its fields are {', '.join(known)}"
        if why := _misfit(item, inner, root, f"{path}.{one_line(name, 60)}", depth + 1):
            return why
    return ""
