"""A graph's input schema as a pydantic model: what the command line offers, and what a run's input is checked against."""

import dataclasses
import inspect
import json
import types
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, NotRequired, Required, Union, get_args, get_origin, get_type_hints

import typing_extensions
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, create_model
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticUndefined
from typing_extensions import ReadOnly, is_typeddict

from orchestrator.checks import GraphView, needed_keys
from orchestrator.errors import InputError
from orchestrator.text import nearest, one_line

if TYPE_CHECKING:
    from langgraph.graph import StateGraph

    from orchestrator.checks import Graph

__all__ = ["build_input_model", "takes_messages", "takes_several", "text_field", "validate_input"]

_CONFIG = ConfigDict(extra="forbid", arbitrary_types_allowed=True, protected_namespaces=(), populate_by_name=True)


def build_input_model(graph: "Graph", name: str) -> type[BaseModel]:
    """The input schema of a graph as a pydantic model that forbids further fields.

    Where the graph declares no input schema its state is the input: what has a reducer, and what the graph's own nodes fill,
    need not be given then.
    """
    builder = GraphView(graph).builder
    schema = builder.input_schema
    if "__root__" in builder.schemas[schema]:
        what = f"Workflow {name!r} takes one value without a name" if name else "The workflow takes one value without a name"
        raise InputError(what, remedy="Give its graph a state with named fields: a TypedDict, a dataclass or a pydantic model")
    hints = get_type_hints(schema, include_extras=True)
    needed = None
    if schema is builder.state_schema:  # a model or a dataclass is made of the whole state at every node: its own fields decide
        needed = needed_keys(graph) if is_typeddict(schema) else frozenset(hints)
    fields: dict[str, Any] = {}
    for key in builder.schemas[schema]:
        if key in builder.managed or key not in hints:
            continue
        annotation, info = _field(key, hints[key], schema)
        if needed is not None and info.is_required() and (key not in needed or _has_reducer(builder, key)):
            info = FieldInfo.merge_field_infos(info, default=None)
        fields[key] = (annotation, info)
    title = f"{name or 'workflow'}_input"
    if isinstance(schema, type) and issubclass(schema, BaseModel):
        loosened = {key: value for key, value in fields.items() if schema.model_fields[key].is_required() and not value[1].is_required()}
        base = type(schema.__name__, (schema,), {"model_config": _CONFIG, "__module__": schema.__module__})
        return create_model(title, __base__=base, **loosened)
    return create_model(title, __config__=_CONFIG, **fields)


def _readable(annotation: Any, known: dict[Any, Any]) -> Any:
    """`annotation` with every TypedDict of `typing` as one of `typing_extensions`: before Python 3.12 pydantic reads no other."""
    if is_typeddict(annotation):
        if annotation in known:
            return known[annotation]
        known[annotation] = annotation  # one that holds itself stays as it is
        hints = {
            key: (Required if key in annotation.__required_keys__ else NotRequired)[_readable(hint, known)]
            for key, hint in get_type_hints(annotation).items()
        }
        known[annotation] = typing_extensions.TypedDict(annotation.__name__, hints)  # type: ignore[operator]  # made at run time
        return known[annotation]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is None or origin is Literal:
        return annotation
    readable = tuple(_readable(argument, known) for argument in arguments)
    if readable == arguments:
        return annotation
    if origin in (Union, types.UnionType):
        return Union[readable]  # noqa: UP007 - the members are known at run time only
    return Annotated[readable] if origin is Annotated else origin[readable]


def _has_reducer(builder: "StateGraph[Any, Any, Any, Any]", key: str) -> bool:
    from langgraph.channels import BinaryOperatorAggregate

    return isinstance(builder.channels.get(key), BinaryOperatorAggregate)


def _field(key: str, hint: Any, schema: type[Any]) -> tuple[Any, FieldInfo]:
    """The annotation and field info of one key; what a TypedDict marks NotRequired has the default None."""
    optional = is_typeddict(schema) and key not in schema.__required_keys__
    if isinstance(schema, type) and issubclass(schema, BaseModel):
        return schema.model_fields[key].annotation, schema.model_fields[key]
    annotation, metadata = _bare(_readable(hint, {}))
    infos = [item for item in metadata if isinstance(item, FieldInfo)]
    kept = [item for item in metadata if not isinstance(item, FieldInfo) and not _is_reducer(item)]
    if any(getattr(item, "__name__", "") in ("add_messages", "_add_messages") for item in metadata):
        kept.append(BeforeValidator(_messages))
        annotation = Any
    for item in kept:
        annotation = Annotated[annotation, item]
    default = _dataclass_default(schema, key)
    info = FieldInfo.merge_field_infos(*infos, **default) if infos or default else FieldInfo()
    if optional and info.is_required():
        info = FieldInfo.merge_field_infos(info, default=None)
    return annotation, info


def _bare(hint: Any) -> tuple[Any, list[Any]]:
    """A hint without Required, NotRequired, ReadOnly and Annotated, and the metadata it carried, outermost last."""
    metadata: list[Any] = []
    while True:
        origin = get_origin(hint)
        if origin is Annotated:
            metadata = [*hint.__metadata__, *metadata]
            hint = hint.__origin__
        elif origin in (Required, NotRequired, ReadOnly):
            hint = get_args(hint)[0]
        else:
            return hint, metadata


def _is_reducer(item: Any) -> bool:
    """Whether LangGraph reads this metadata: a channel, or a function of two arguments."""
    return inspect.isroutine(item) or "langgraph" in (getattr(item, "__module__", None) or type(item).__module__)


def _dataclass_default(schema: type[Any], key: str) -> dict[str, Any]:
    if not dataclasses.is_dataclass(schema):
        return {}
    field = next(field for field in dataclasses.fields(schema) if field.name == key)
    if field.default is not dataclasses.MISSING:
        return {"default": field.default}
    if field.default_factory is not dataclasses.MISSING:
        return {"default_factory": field.default_factory}
    return {}


def _messages(value: Any) -> Any:
    """Messages as LangGraph's add_messages takes them: a text, one message, or a list of what LangChain converts."""
    from langchain_core.messages import convert_to_messages

    try:
        return convert_to_messages(value if isinstance(value, list) else [value])
    except NotImplementedError as error:
        raise ValueError(str(error).partition(" For troubleshooting")[0].rstrip("\n .")) from error


def text_field(model: type[BaseModel]) -> str | None:
    """The field that a bare text fills: the first required text, else the first required list of texts, which takes several, else the
    first text, else the messages.
    """
    fields = model.model_fields
    texts = [key for key, info in fields.items() if _is_text(info.annotation)]
    required = [key for key in texts if fields[key].is_required()]
    lists = [key for key in fields if fields[key].is_required() and takes_several(model, key)]
    messages = [key for key in fields if takes_messages(model, key)]
    return next(iter([*required, *lists, *texts, *messages]), None)


def takes_several(model: type[BaseModel], key: str) -> bool:
    """Whether a field holds a list of texts."""
    annotation, _ = _bare(model.model_fields[key].annotation)
    return get_origin(annotation) in (list, Sequence) and get_args(annotation) == (str,)


def _is_text(annotation: Any) -> bool:
    annotation, _ = _bare(annotation)
    if get_origin(annotation) in (Union, types.UnionType):
        return set(get_args(annotation)) - {types.NoneType} == {str}
    return annotation is str


def takes_messages(model: type[BaseModel], key: str) -> bool:
    """Whether a field holds the messages of a conversation: a key whose reducer is add_messages."""
    info = model.model_fields[key]
    metadata = [*info.metadata, *_bare(info.annotation)[1]]
    return any(isinstance(item, BeforeValidator) and item.func is _messages for item in metadata)


def validate_input(model: type[BaseModel], values: Mapping[str, Any] | BaseModel, name: str) -> dict[str, Any]:
    """`values` checked and converted; raises InputError that names each field's path, what is wrong and the remedy.

    The result holds what was given, and the defaults that the schema declares; a key that was left out is left out.
    """
    if isinstance(values, BaseModel):
        values = {key: getattr(values, key) for key in values.model_fields_set}
    values = {key: _structured(value, model.model_fields.get(key)) for key, value in values.items()}
    try:
        checked = model.model_validate(values)
    except ValidationError as error:
        raise _input_error(error, model, name) from error
    given = checked.model_fields_set
    result = {}
    for key, info in model.model_fields.items():
        if key in given or info.default_factory is not None or info.default not in (None, PydanticUndefined):
            result[key] = getattr(checked, key)
    return result


def _structured(value: Any, info: FieldInfo | None) -> Any:
    """JSON that stands in a text for a field that takes no text: a list or an object from the command line."""
    if info is None or not isinstance(value, str) or value[:1] not in ("{", "[") or info.annotation is Any or _is_text(info.annotation):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value


def _input_error(error: ValidationError, model: type[BaseModel], name: str) -> InputError:
    found = error.errors(include_url=False)
    sentences, remedies = zip(*(_problem(detail, model, name) for detail in found[:5]), strict=True)
    more = f"; and {len(found) - 5} more" if len(found) > 5 else ""
    where = f"In the input of workflow {name!r}" if name else "In the input"
    remedy = "; ".join(dict.fromkeys(item for item in remedies if item))
    return InputError("; ".join(sentences) + more, where=where, remedy=remedy)


def _problem(detail: ErrorDetails, model: type[BaseModel], name: str) -> tuple[str, str]:
    path = ".".join(str(part) for part in detail["loc"]) or "input"
    head = str(detail["loc"][0]) if detail["loc"] else ""
    info = model.model_fields.get(head)
    meaning = f": {info.description}" if info is not None and info.description else ""
    if detail["type"] == "missing":
        return f"{path!r} is missing", f"Give {path!r}{meaning}"
    if detail["type"] == "extra_forbidden":
        near = nearest(head, model.model_fields, 0.5) if len(detail["loc"]) == 1 else ""
        fields = "The fields are: " + ", ".join(model.model_fields)
        return f"{path!r} is no field of the input", f"Did you mean {near!r}?" if near else fields
    message = detail["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if not detail["loc"]:  # a rule about several fields
        return message, f"`describe {name}` tells what each field takes" if name else "Give other values"
    return f"{path!r}: {message}, got {one_line(repr(detail['input']), 80)}", f"Give another {head!r}{meaning}"
