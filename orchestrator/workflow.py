"""A workflow: a LangGraph graph with a name and controls, loaded from a module of the user or of this project."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from inspect import Parameter, getdoc, isasyncgenfunction, iscoroutinefunction, isfunction, isgeneratorfunction, signature
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from orchestrator.errors import GraphError, WorkflowLoadError
from orchestrator.places import Place, WorkflowEntry, find_workflow, list_workflows
from orchestrator.text import one_line

if TYPE_CHECKING:
    from langgraph.graph import StateGraph
    from langgraph.graph.state import CompiledStateGraph
    from pydantic import BaseModel

    from orchestrator.controls import Controls

__all__ = ["Workflow", "WorkflowEntry", "list_workflows", "load_workflow"]

IMPORT_LIMIT = 30.0
"""Seconds that a workflow's module may take to import."""

_ATTRIBUTES = {
    "interrupt_before": "interrupt_before_nodes",
    "interrupt_after": "interrupt_after_nodes",
    "transformers": "stream_transformers",
}
_Ready = tuple[tuple[int, ...], "Workflow", "CompiledStateGraph[Any, Any, Any, Any]"]
_VARIABLE = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)


def _controls() -> "Controls":
    from orchestrator.controls import Controls

    return Controls()


@dataclass(frozen=True)
class Workflow:
    """A LangGraph graph, built or compiled, with a name, a description and the limits of its runs.

    `spec`: what `load_workflow` loads it by once more, also from another working directory; "" for one that was made in Python.
    """

    graph: "StateGraph[Any, Any, Any, Any] | CompiledStateGraph[Any, Any, Any, Any]"
    name: str = ""
    description: str = ""
    controls: "Controls" = field(default_factory=_controls)
    path: Path | None = None
    notes: tuple[str, ...] = ()
    spec: str = ""

    def __post_init__(self) -> None:
        if not _is_graph(self.graph):
            raise WorkflowLoadError(
                f"A Workflow takes a StateGraph or a compiled one, not {_kind(self.graph)}", remedy=_graph_remedy(self.graph)
            )

    def compile(self, *, checkpointer: Any = None, **kwargs: Any) -> "CompiledStateGraph[Any, Any, Any, Any]":
        """The graph ready to run, under the workflow's name; `kwargs` are those of `StateGraph.compile`.

        A compiled graph keeps what it was compiled with, as far as nothing else is given. Raises GraphError.
        """
        from langgraph.graph.state import CompiledStateGraph

        from orchestrator.checks import copied

        if isinstance(self.graph, CompiledStateGraph):
            compiled: CompiledStateGraph[Any, Any, Any, Any] = _recompiled(self.graph, self.name, checkpointer, kwargs)
            return compiled
        try:
            return copied(self.graph).compile(checkpointer=checkpointer, **{"name": self.name or "workflow", **kwargs})
        except ValueError as error:
            raise GraphError(f"The graph of workflow {self.name!r} cannot be compiled", [str(error)]) from error

    def ready(self) -> "tuple[Workflow, CompiledStateGraph[Any, Any, Any, Any]]":
        """This workflow with the notes of its checks, and its graph compiled for runs, which must leave it as it is.

        Both are made once, as long as its builder gets no further node or edge. Raises GraphError.
        """
        from orchestrator.checks import check_graph, shape_of

        shape = shape_of(self.graph)
        known: _Ready | None = self.__dict__.get("_ready")
        if known is None or known[0] != shape:
            made_here = self.path is None  # made in Python: nobody has checked it yet
            checked = replace(self, notes=(*self.notes, *check_graph(self.graph, self.name))) if made_here else self
            known = shape, checked, checked.compile()
            for workflow in (self, checked):
                workflow.__dict__["_ready"] = known
        return known[1:]

    @cached_property
    def input_model(self) -> "type[BaseModel]":
        """The graph's input as a pydantic model; further fields are forbidden."""
        from orchestrator.inputs import build_input_model

        return build_input_model(self.graph, self.name)

    @cached_property
    def text_field(self) -> str | None:
        """The input field that a bare text fills, if there is one."""
        from orchestrator.inputs import text_field

        return text_field(self.input_model)

    @cached_property
    def talks(self) -> bool:
        """Whether a bare text is a message of a conversation: then it can be talked to, a run a turn."""
        from orchestrator.inputs import takes_messages

        return self.text_field is not None and takes_messages(self.input_model, self.text_field)

    def validate_input(self, values: "Mapping[str, Any] | BaseModel") -> dict[str, Any]:
        """The input checked and converted, texts of a command line too; raises InputError with the path of the field."""
        from orchestrator.inputs import validate_input

        return validate_input(self.input_model, values, self.name)


def load_workflow(spec: str, *, folder: Path | None = None, limit: float = IMPORT_LIMIT) -> Workflow:
    """The workflow that `spec` names, its graph checked.

    `spec` is a name (`workflows/NAME.py` of `folder`, then its `langgraph.json`, then the shipped ones), a dotted module, or
    `path/to/file.py[:attribute]`. `folder` is the working directory by default; the import may take `limit` seconds.
    Raises InputError, WorkflowNotFoundError, WorkflowLoadError or GraphError.
    """
    import langgraph.graph  # noqa: F401 - outside the time limit of the module

    from orchestrator.checks import check_graph
    from orchestrator.importing import file_notes, import_place, users_code

    folder = (folder or Path.cwd()).resolve()
    place = find_workflow(spec, folder)
    module = import_place(place, folder, limit=limit)
    offered = _offered(module, place)
    with users_code(place, folder, limit=limit):
        workflow = _as_workflow(_built(offered, place), place)
    name = workflow.name or place.name
    checked = check_graph(workflow.graph, name, where=place.label)
    path = place.path or (Path(module.__file__) if module.__file__ else None)
    description = workflow.description or one_line((getdoc(module) or "").partition("\n")[0])
    return replace(
        workflow,
        name=name,
        description=description,
        path=path,
        notes=(*workflow.notes, *file_notes(place), *checked),
        spec=_spec(spec, place),
    )


def _spec(spec: str, place: Place) -> str:
    """`spec` as it holds in every folder: a file by its whole path; a name and a dotted module are looked up from the run's folder."""
    if place.path is None or not spec.partition(":")[0].endswith(".py"):
        return spec
    return f"{place.path}:{place.attribute}" if place.attribute else str(place.path)


def _offered(module: ModuleType, place: Place) -> Any:
    """What the module offers: the attribute asked for, else `workflow`, else `graph`."""
    for name in (place.attribute,) if place.attribute else ("workflow", "graph"):
        if hasattr(module, name):
            return getattr(module, name)
    wanted = place.attribute or "workflow"
    found = [f"{name} ({_kind(value)})" for name, value in vars(module).items() if not name.startswith("_") and _is_own(value, module)]
    raise WorkflowLoadError(
        f"{place.label} defines no `{wanted}`; found: {', '.join(found[:12]) or 'nothing'}",
        remedy="Write `workflow = Workflow(graph)`, or name the graph's variable: FILE.py:VARIABLE",
    )


def _is_own(value: Any, module: ModuleType) -> bool:
    return _is_graph(value) or isinstance(value, Workflow) or getattr(value, "__module__", None) == module.__name__


def _built(value: Any, place: Place) -> Any:
    """The value, or what it returns where a function that builds the graph was asked for by name."""
    if not place.attribute or not isfunction(value):
        return value
    needed = [item for item in signature(value).parameters.values() if item.default is item.empty and item.kind not in _VARIABLE]
    if needed or iscoroutinefunction(value) or isgeneratorfunction(value) or isasyncgenfunction(value):
        what = f"{place.label}: `{place.attribute}` is no plain function without arguments"
        raise WorkflowLoadError(what, remedy="Name a graph, or a function that takes nothing and returns one")
    return value()


def _as_workflow(value: Any, place: Place) -> Workflow:
    if isinstance(value, Workflow):
        return value
    if not _is_graph(value):
        name = place.attribute or "workflow"
        raise WorkflowLoadError(f"{place.label}: `{name}` is {_kind(value)}, not a Workflow or a graph", remedy=_graph_remedy(value))
    return Workflow(value)


def _is_graph(value: Any) -> bool:
    from langgraph.graph import StateGraph
    from langgraph.graph.state import CompiledStateGraph

    return isinstance(value, StateGraph | CompiledStateGraph)


def _kind(value: Any) -> str:
    if isinstance(value, type):
        return "class"
    return "function" if callable(value) and hasattr(value, "__code__") else type(value).__name__


def _graph_remedy(value: Any) -> str:
    from langgraph.pregel import Pregel

    if isinstance(value, Pregel):
        return "A graph of the functional API has no state schema: make it a node of a StateGraph"
    return "Write `workflow = Workflow(graph)` with a StateGraph, compiled or not"


def _recompiled(graph: "CompiledStateGraph[Any, Any, Any, Any]", name: str, checkpointer: Any, options: Mapping[str, Any]) -> Any:
    from copy import copy

    changes = {_ATTRIBUTES.get(key, key): value for key, value in options.items()}
    if checkpointer is not None:
        changes["checkpointer"] = checkpointer
    if name and graph.name != name:
        changes.setdefault("name", name)
    if not changes:
        return graph
    other = copy(graph)
    for key, value in changes.items():
        setattr(other, key, value)
    return other
