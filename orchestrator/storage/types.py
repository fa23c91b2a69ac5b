"""The types that are stored beside plain data: how each becomes plain data, and how it is built again. Nothing else is."""

import dataclasses
import re
import sys
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from importlib import import_module
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple
from uuid import UUID
from weakref import WeakKeyDictionary
from zoneinfo import ZoneInfo

from langgraph.checkpoint.serde._msgpack import SAFE_MSGPACK_TYPES
from langgraph.checkpoint.serde.types import _DeltaSnapshot
from pydantic import BaseModel, SecretBytes, SecretStr

from orchestrator.errors import StorageTypeError
from orchestrator.text import one_line

__all__ = ["BUILT", "OBJECT", "STANDARD", "TEXT", "TUPLE", "Standard", "TypeName", "Types", "flat_form", "types_of"]

TypeName = tuple[str, ...]
"""A module and the name of a class in it."""

OBJECT, TEXT, TUPLE = 0, 1, 2
"""The codes of a value of a class, of a reference to a text, and of a tuple."""

_OURS = "orchestrator.state"
_SAFE = frozenset(name for name in SAFE_MSGPACK_TYPES if name[0].startswith(("langchain_core.", "langgraph.")))


class Standard(NamedTuple):
    """A type of the standard library: its code, how it becomes plain data and how it is built from them."""

    code: int
    plain: Callable[[Any], Any]
    built: Callable[[Any], Any]


def _strings(kind: type) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    return str, kind


def _time_plain(value: time) -> Any:
    return [value.hour, value.minute, value.second, value.microsecond, value.tzinfo, value.fold]


def _time_built(plain: Any) -> time:
    return time(*plain[:5], fold=plain[5])


def _datetime_plain(value: datetime) -> Any:
    return [value.replace(tzinfo=None).isoformat(), value.tzinfo, value.fold]


def _datetime_built(plain: Any) -> datetime:
    return datetime.fromisoformat(plain[0]).replace(tzinfo=plain[1], fold=plain[2])


def _ordered(value: Iterable[Any]) -> list[Any]:
    """A set's items in an order that does not change from process to process, so that equal sets are equal bytes."""
    return sorted(value, key=lambda item: (type(item).__name__, repr(item)))


_TABLE: tuple[tuple[int, type, Callable[[Any], Any], Callable[[Any], Any]], ...] = (
    (3, datetime, _datetime_plain, _datetime_built),
    (4, date, date.isoformat, date.fromisoformat),
    (5, time, _time_plain, _time_built),
    (6, timedelta, lambda value: [value.days, value.seconds, value.microseconds], lambda plain: timedelta(*plain)),
    (7, timezone, lambda value: list(value.__getinitargs__()), lambda plain: timezone(*plain)),
    (8, ZoneInfo, str, ZoneInfo),
    (9, UUID, lambda value: value.bytes, lambda plain: UUID(bytes=plain)),
    (10, Decimal, *_strings(Decimal)),
    (11, set, _ordered, set),
    (12, frozenset, _ordered, frozenset),
    (13, deque, lambda value: [list(value), value.maxlen], lambda plain: deque(*plain)),
    (14, IPv4Address, *_strings(IPv4Address)),
    (15, IPv4Interface, *_strings(IPv4Interface)),
    (16, IPv4Network, *_strings(IPv4Network)),
    (17, IPv6Address, *_strings(IPv6Address)),
    (18, IPv6Interface, *_strings(IPv6Interface)),
    (19, IPv6Network, *_strings(IPv6Network)),
    (20, type(Path()), *_strings(Path)),
    (21, PurePosixPath, *_strings(PurePosixPath)),
    (22, PureWindowsPath, *_strings(PureWindowsPath)),
    (23, re.Pattern, lambda value: [value.pattern, value.flags], lambda plain: re.compile(*plain)),
    (24, complex, lambda value: [value.real, value.imag], lambda plain: complex(*plain)),
    (25, bytearray, bytes, bytearray),
    (26, _DeltaSnapshot, lambda value: value.value, _DeltaSnapshot),
)

STANDARD = {kind: Standard(code, plain, built) for code, kind, plain, built in _TABLE}
"""The standard types by class; a subclass is a type of its own."""

BUILT: dict[int, Callable[[Any], Any]] = {**{standard.code: standard.built for standard in STANDARD.values()}, TUPLE: tuple}
"""How the value of a code is built; of `OBJECT` and `TEXT` the codec knows."""


class Types:
    """The classes whose values are stored: LangChain's and LangGraph's data, those of `orchestrator.state`, and the named ones."""

    def __init__(self, names: frozenset[TypeName] = frozenset()) -> None:
        self._names = names

    def with_names(self, names: Iterable[TypeName]) -> "Types":
        """These types and the classes `names`."""
        added = frozenset(names) - self._names - _SAFE
        return Types(self._names | added) if added else self

    def plain(self, value: Any) -> Any:
        """The plain data of a value of a known class. Raises StorageTypeError where it is not known, or could not be found again."""
        kind: type = type(value)
        if not _is_own(kind):
            self._check(kind, value)
        return _form(kind).plain(value)

    def _check(self, kind: type, value: Any) -> None:
        name = (kind.__module__, kind.__name__)
        if not self._knows(name):
            raise _unknown(name, value)
        if _found(name) is not kind:
            where = f"{kind.__module__}.{kind.__qualname__} is not what {kind.__module__} calls {kind.__name__!r}"
            raise StorageTypeError(
                "a value cannot be stored: its class could not be found again", where=where, remedy="define it at module level"
            )

    def build(self, name: TypeName, plain: Any) -> Any:
        """The value again. Raises StorageTypeError where its class is not known, is gone, or has other fields by now."""
        if not (isinstance(name[0], str) and isinstance(name[1], str) and self._knows(name)):
            raise StorageTypeError(
                f"a stored value is of the type {one_line('.'.join(map(str, name)), 120)}, which is not known to be data",
                remedy="nothing of it was run; name the class in the graph's state schema where it is the workflow's own",
            )
        kind = _found(name)
        if kind is None:
            raise StorageTypeError(
                f"a stored value is of {'.'.join(name)}, which is gone", remedy="resume with the code that it was stored by"
            )
        try:
            return _form(kind).built(kind, plain)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise StorageTypeError(
                f"a stored value of {'.'.join(name)} does not fit its class any more: {error}",
                remedy="resume with the code that it was stored by",
            ) from error

    @staticmethod
    def is_frozen(kind: type) -> bool:
        """Whether values of `kind` never change: those of `orchestrator.state`."""
        return _is_own(kind)

    def _knows(self, name: TypeName) -> bool:
        return name in _SAFE or name in self._names or name[0] == _OURS


def _unknown(name: TypeName, value: Any) -> StorageTypeError:
    if isinstance(value, SecretStr | SecretBytes):
        return StorageTypeError(
            f"a value of {'.'.join(name)} is not stored", remedy="secrets do not belong into the state: read them from the environment"
        )
    return StorageTypeError(
        f"a value of the type {'.'.join(name)} cannot be stored",
        remedy="name the class in the graph's state schema, or keep plain data in the state (model_dump(), asdict()); "
        "what need not be kept is a key of the type UntrackedValue",
    )


def _found(name: TypeName) -> type | None:
    """The class of a known name, as its module has it by now: a workflow's may be loaded again. It is imported where it is not yet."""
    module = sys.modules.get(name[0])
    if module is None:
        try:
            module = import_module(name[0])
        except ImportError:
            return None
    kind = getattr(module, name[1], None)
    return kind if isinstance(kind, type) and kind.__module__ == name[0] else None


@lru_cache(maxsize=1024)
def _is_own(kind: type) -> bool:
    """Whether a class is one of `orchestrator.state`, which is never loaded again."""
    return kind.__module__ == _OURS and _found((_OURS, kind.__name__)) is kind


@lru_cache(maxsize=1024)
def flat_form(kind: Any) -> Callable[[Any], Any] | None:
    """What makes plain data of values of `kind` where these are dicts, lists, strings and numbers alone, all the way down; else None."""
    return kind.__pydantic_serializer__.to_python if _is_own(kind) and _form(kind) is _OURS_MODEL else None


class _Form(NamedTuple):
    """How values of a kind of class become plain data, and how one is built from them."""

    plain: Callable[[Any], Any]
    built: Callable[[Any, Any], Any]


def _model_plain(value: Any) -> dict[str, Any]:
    fields = type(value).model_fields
    return {**{name: item for name, item in value.__dict__.items() if name in fields}, **(value.__pydantic_extra__ or {})}


def _model_built(kind: Any, plain: Mapping[str, Any]) -> Any:
    """Without its validators, which have seen the value already; a field that is required must be there."""
    missing = [name for name, field in kind.model_fields.items() if field.is_required() and name not in plain]
    unknown = set() if kind.model_config.get("extra") == "allow" else plain.keys() - kind.model_fields.keys()
    _check_fields(missing, unknown)
    return kind.model_construct(**plain)


def _data_plain(value: Any) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def _data_built(kind: Any, plain: Mapping[str, Any]) -> Any:
    """Without `__init__` and `__post_init__`, which the value has been through already."""
    names = [field.name for field in dataclasses.fields(kind)]
    _check_fields([name for name in names if name not in plain], plain.keys() - set(names))
    value = object.__new__(kind)
    for name in names:
        object.__setattr__(value, name, plain[name])
    return value


def _check_fields(missing: Iterable[str], unknown: Iterable[str]) -> None:
    if missing or unknown:
        raise TypeError(f"its fields have changed ({', '.join([*missing, *unknown])})")


def _slots_plain(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in type(value).__slots__ if hasattr(value, name)}


def _shallow_plain(value: Any) -> dict[str, Any]:
    """A finding is in a branch and in the report, and a source in many branches: each is stored once."""
    kind: Any = type(value)
    plain: dict[str, Any] = dict(value.__dict__)
    for name, inside in _inside(kind).items():
        if type(plain[name]) is inside:
            plain[name] = inside.__pydantic_serializer__.to_python(plain[name])
    return plain


@lru_cache(maxsize=64)
def _inside(kind: Any) -> dict[str, type[BaseModel]]:
    """The fields of one of our models that hold another one, and no list of them."""
    kinds = {name: field.annotation for name, field in kind.model_fields.items()}
    return {name: each for name, each in kinds.items() if isinstance(each, type) and issubclass(each, BaseModel)}


_MODEL = _Form(_model_plain, _model_built)
_OURS_MODEL = _Form(
    lambda value: value.model_dump(), lambda kind, plain: kind.model_validate(plain)
)  # smaller: its fields tell their types
_SHALLOW = _Form(_shallow_plain, _OURS_MODEL.built)
_ENUM = _Form(lambda value: value.value, lambda kind, plain: kind(plain))
_NAMED_TUPLE = _Form(lambda value: value._asdict(), lambda kind, plain: kind(**plain))
_DATA = _Form(_data_plain, _data_built)
_SLOTS = _Form(_slots_plain, lambda kind, plain: kind(**plain))
_OLD_MODEL = _Form(lambda value: value.dict(), lambda kind, plain: kind(**plain))


@lru_cache(maxsize=1024)
def _form(kind: type[Any]) -> _Form:
    if issubclass(kind, BaseModel):
        if kind.__module__ != _OURS:
            return _MODEL
        return _SHALLOW if "findings" in kind.model_fields else _OURS_MODEL
    if issubclass(kind, Enum):
        return _ENUM
    if issubclass(kind, tuple) and hasattr(kind, "_asdict"):
        return _NAMED_TUPLE
    if dataclasses.is_dataclass(kind):
        return _DATA
    if hasattr(kind, "__slots__"):
        return _SLOTS
    if hasattr(kind, "__fields__") and hasattr(kind, "dict"):  # a model of pydantic.v1
        return _OLD_MODEL
    raise StorageTypeError(
        f"a value of the type {kind.__module__}.{kind.__qualname__} cannot be stored", remedy="keep plain data in the state"
    )


_of_schemas: WeakKeyDictionary[Any, frozenset[TypeName]] = WeakKeyDictionary()


def types_of(graph: Any) -> set[TypeName]:
    """The classes that the state schemas of a compiled graph, and of those inside it, name: as LangGraph's own strict mode finds them."""
    names: set[TypeName] = set()
    for each in (graph, *(inner for _, inner in graph.get_subgraphs(recurse=True))):
        builder = getattr(each, "builder", None)
        if builder is None:  # a graph without schemas, as of LangGraph's functional API
            names |= _collected(channels={key: channel for key, channel in each.channels.items() if hasattr(channel, "ValueType")})
            continue
        for schema in {*builder.schemas, *(node.input_schema for node in builder.nodes.values())} - {None}:
            names |= _of_schema(schema)
    return names


def _of_schema(schema: Any) -> frozenset[TypeName]:
    """Kept for as long as the schema lives: finding them takes milliseconds, and a process may run a workflow a thousand times."""
    try:
        found = _of_schemas.get(schema)
        if found is None:
            found = _of_schemas[schema] = _collected(schemas=[schema])
    except TypeError:  # what is no class, so that nothing can follow its life
        return _collected(schemas=[schema])
    return found


def _collected(**given: Any) -> frozenset[TypeName]:
    from langgraph._internal._serde import collect_allowlist_from_schemas

    return frozenset(collect_allowlist_from_schemas(**given))
