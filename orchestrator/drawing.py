"""A workflow shown to people: its graph as text and as Mermaid, and everything that `describe` says of it."""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

from pydantic import BaseModel
from typing_extensions import is_typeddict

from orchestrator.checks import GraphView
from orchestrator.text import one_line
from orchestrator.workflow import Workflow

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

__all__ = ["describe", "draw_mermaid", "draw_text"]

_NAMES = {"__start__": "START", "__end__": "END"}
_STRUCTURE = {
    "asks": "questions to a model each time, at most",
    "visits": "times in one run of {}, at most",
    "runs": "times that it runs the graph inside it, at most",
}
_LEGEND = {"─>": "always", "┄>": "on a condition", "×N": "once for each Send", "⧉": "a graph inside"}


def draw_text(workflow: Workflow) -> str:
    """The graph as lines of text, each node with where it leads, subgraphs indented below their node."""
    view = GraphView(workflow.graph)
    lines = [workflow.name or "workflow", *_drawn(view, "  ", ())]
    legend = [f"{mark} {meaning}" for mark, meaning in _LEGEND.items() if any(mark in line for line in lines)]
    return "\n".join([*lines, "", "   ".join(legend)])


def _drawn(view: GraphView, indent: str, seen: tuple[int, ...]) -> Iterator[str]:
    width = max(len(_NAMES.get(name, name)) for name in ("__start__", *view.nodes))
    for node in _in_order(view):
        marks = [
            mark
            for mark, holds in (("×N", node in view.fanned), ("⧉", node in view.subgraphs), ("waits for all", _deferred(view, node)))
            if holds
        ]
        yield f"{indent}{_NAMES.get(node, node):<{width}} {_arrows(view, node)}{'   ' if marks else ''}{' '.join(marks)}".rstrip()
        for graph in view.subgraphs.get(node, ()):
            if id(graph.builder) not in seen:
                yield f"{indent}    ⧉ {graph.name}"
                yield from _drawn(GraphView(graph), indent + "      ", (*seen, id(graph.builder)))


def _in_order(view: GraphView) -> list[str]:
    """START, then the nodes as one branch after the other comes to them, then those that nothing leads to."""
    order: list[str] = []
    ahead = [*reversed(view.nodes), "__start__"]
    while ahead:
        node = ahead.pop()
        if node not in order:
            order.append(node)
            ahead += [other for other in reversed(view.nodes) if other in view.successors(node)]
    return order


def _arrows(view: GraphView, node: str) -> str:
    always = {end for start, end in view.builder.edges if start == node}
    joined = {end: starts for starts, end in view.builder.waiting_edges if node in starts}
    order = [*view.nodes, "__end__"]
    plain = [_label(view, end) for end in order if end in always]
    plain += [f"{end} (with {', '.join(other for other in starts if other != node)})" for end, starts in joined.items()]
    routed = [_label(view, end) for end in order if end in view.successors(node) - always - set(joined)]
    open_ended = ["?"] if not routed and not plain and view.leads_anywhere(node) else []
    arrows = [f"{arrow} {', '.join(ends)}" for arrow, ends in (("─>", plain), ("┄>", routed + open_ended)) if ends]
    return "  ".join(arrows) or "─> END"


def _label(view: GraphView, end: str) -> str:
    return _NAMES.get(end, end) + (" ×N" if end in view.fanned else "")


def _deferred(view: GraphView, node: str) -> bool:
    return node in view.builder.nodes and view.builder.nodes[node].defer


def draw_mermaid(workflow: Workflow) -> str:
    """The graph with its subgraphs as a Mermaid flowchart: dashed where a condition decides, ×N where a Send starts many."""
    view = GraphView(workflow.graph)
    return "\n".join(["flowchart TD", "  START_([START])", "  END_([END])", *_boxes(view, "", "  ", ())])


def _boxes(view: GraphView, prefix: str, indent: str, seen: tuple[int, ...]) -> Iterator[str]:
    for node in _in_order(view)[1:]:
        graphs = [graph for graph in view.subgraphs.get(node, ()) if id(graph.builder) not in seen]
        if not graphs:
            yield f"{indent}{_id(prefix, node)}[{_quoted(node)}]"
            continue
        yield f"{indent}subgraph {_id(prefix, node)}[{_quoted(node)}]"
        for number, graph in enumerate(graphs):
            yield from _boxes(GraphView(graph), f"{prefix}{node}_{number}__", indent + "  ", (*seen, id(graph.builder)))
        yield f"{indent}end"
    for node in _in_order(view):
        always = {end for start, end in view.builder._all_edges if start == node}
        for end in (*view.nodes, "__end__"):
            if end in view.successors(node) and not (prefix and {node, end} & {*_NAMES}):
                arrow = "-->" if end in always else "-.->"
                yield f"{indent}{_id(prefix, node)} {arrow}{'|×N|' if end in view.fanned else ''} {_id(prefix, end)}"


def _id(prefix: str, node: str) -> str:
    """A name that Mermaid takes: `end` alone is one of its own words."""
    return _NAMES[node] + "_" if node in _NAMES else "n_" + re.sub(r"\W", lambda found: f"_{ord(found[0]):x}_", prefix + node)


def _quoted(text: str) -> str:
    return '"' + text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;") + '"'


def describe(workflow: Workflow) -> dict[str, Any]:
    """Everything to know of a workflow before running it, but its controls, as values that JSON holds."""
    view = GraphView(workflow.graph)
    return {
        "name": workflow.name,
        "description": workflow.description,
        "path": str(workflow.path) if workflow.path else None,
        "text_field": workflow.text_field,
        "input": [_input_field(key, info) for key, info in workflow.input_model.model_fields.items()],
        "output": _schema_fields(view.builder.output_schema),
        "nodes": [_node(view, node) for node in _in_order(view)[1:]],
        "agents": list(_agents(view, (), "")),
        "structure": list(_structure(view, workflow.name or "the workflow", (), "")),
        "notes": list(workflow.notes),
    }


def _node(view: GraphView, node: str) -> dict[str, Any]:
    ends = [_NAMES.get(end, end) for end in (*view.nodes, "__end__") if end in view.successors(node)]
    return {"name": node, "to": ends, "many": node in view.fanned, "subgraphs": [graph.name for graph in view.subgraphs.get(node, ())]}


def _agents(view: GraphView, seen: tuple[int, ...], prefix: str) -> Iterator[dict[str, Any]]:
    """Every subgraph with the fields that it takes and gives, at any depth."""
    for node, graph in ((node, graph) for node, graphs in view.subgraphs.items() for graph in graphs):
        if id(graph.builder) in seen:
            continue
        where = prefix + node
        yield {
            "name": graph.name,
            "node": where,
            "input": _schema_fields(graph.builder.input_schema),
            "output": _schema_fields(graph.builder.output_schema),
        }
        yield from _agents(GraphView(graph), (*seen, id(graph.builder)), f"{where}.")


def _structure(view: GraphView, within: str, seen: tuple[int, ...], prefix: str) -> Iterator[dict[str, Any]]:
    """What the graph itself bounds, at any depth: rounds, attempts, turns. What a control bounds is among the controls."""
    for node in view.nodes:
        for name, value in (view.builder.nodes[node].metadata or {}).items():
            if name in _STRUCTURE and isinstance(value, int) and value > 1:
                yield {"node": prefix + node, "limit": name, "value": value, "meaning": _STRUCTURE[name].format(within)}
        for graph in view.subgraphs.get(node, ()):
            if id(graph.builder) not in seen:
                yield from _structure(GraphView(graph), graph.name or node, (*seen, id(graph.builder)), f"{prefix}{node}.")


def _input_field(key: str, info: "FieldInfo") -> dict[str, Any]:
    described = {"name": key, "type": type_name(info.annotation), "required": info.is_required(), "description": info.description or ""}
    if not info.is_required():
        described["default"] = _plain(info.get_default(call_default_factory=False))
    return described


def _plain(value: Any) -> Any:
    """`value` as JSON holds it; what it cannot hold is told in words."""
    from pydantic_core import PydanticSerializationError, to_jsonable_python

    try:
        return to_jsonable_python(value)
    except PydanticSerializationError:
        return one_line(repr(value))


def _schema_fields(schema: Any) -> list[dict[str, Any]]:
    """The fields of a state schema; `required` where it says so itself."""
    if not isinstance(schema, type):
        return []
    if issubclass(schema, BaseModel):
        return [
            {"name": key, "type": type_name(info.annotation), "required": info.is_required()} for key, info in schema.model_fields.items()
        ]
    hints: Mapping[str, Any] = get_type_hints(schema)
    required: Any = getattr(schema, "__required_keys__", ()) if is_typeddict(schema) else _required_fields(schema, hints)
    return [{"name": key, "type": type_name(hint), "required": key in required} for key, hint in hints.items()]


def _required_fields(schema: type[Any], hints: Mapping[str, Any]) -> set[str]:
    if not dataclasses.is_dataclass(schema):
        return set(hints)
    missing = dataclasses.MISSING
    return {item.name for item in dataclasses.fields(schema) if item.default is missing and item.default_factory is missing}


def type_name(annotation: Any) -> str:
    """A type as people read it: `list[str]`, `text`-like names without their modules."""
    if annotation is None or annotation is type(None):
        return "null"
    origin, arguments = get_origin(annotation), get_args(annotation)
    if hasattr(annotation, "__metadata__"):
        return type_name(arguments[0])
    if origin is None:
        return getattr(annotation, "__name__", None) or one_line(str(annotation).replace("typing.", ""), 80)
    inner = [type_name(argument) if not isinstance(argument, str | int) else repr(argument) for argument in arguments]
    name = getattr(origin, "__name__", str(origin))
    if name in ("Union", "UnionType", "Literal"):
        return " | ".join(inner)
    return f"{name}[{', '.join(inner)}]"
