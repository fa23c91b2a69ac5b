"""The checks of a graph at load, and the net under a run for what no check can see.

LangGraph takes a router or a `Send` that names no node for a run that succeeded, drops keys that the state does not have, and
finds a key that two branches write at once only when they do. All of that is told here before the run, with the names.
"""

import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, get_type_hints

from orchestrator.errors import GraphError
from orchestrator.returns import Returns, function_of, may_stop, names, read_returns
from orchestrator.text import nearest

if TYPE_CHECKING:
    from langgraph.graph import StateGraph
    from langgraph.graph.state import CompiledStateGraph

    Builder = StateGraph[Any, Any, Any, Any]
    Graph = Builder | CompiledStateGraph[Any, Any, Any, Any]

__all__ = ["GraphView", "check_graph", "copied", "needed_keys", "shape_of", "unknown_targets", "views"]

_START, _END = "__start__", "__end__"


def check_graph(graph: "Graph", name: str = "", *, where: str = "") -> list[str]:
    """Notes on a graph and its subgraphs; raises GraphError with every problem that was found. `where`: its file, for the error."""
    problems: list[str] = []
    notes: list[str] = []
    for prefix, view in views(graph):
        problems += [prefix + problem for problem in view.problems()]
        notes += [prefix + note for note in view.notes()]
    if not problems:
        problems += _compile_problems(graph)
    if problems:
        what = f"The graph of workflow {name!r} fails its checks" if name else "The graph fails its checks"
        raise GraphError(what, problems, where=where, remedy="Correct the graph in its module")
    return notes


def shape_of(graph: "Graph") -> tuple[int, ...]:
    """Different for a builder that got another node, edge or key: what was found out about a graph holds as long as it is the same."""
    builder = GraphView(graph).builder
    return len(builder.nodes), len(builder._all_edges), len(builder.channels), sum(map(len, builder.branches.values()))


def needed_keys(graph: "Graph") -> frozenset[str]:
    """The state keys that a run must be given where the state itself is the input.

    These are the keys that the first nodes read outright, and those that no node writes; the latter only where every node's
    source tells what it writes.
    """
    view = GraphView(graph)
    first = [view.returns[node] for node in view.successors(_START) if node in view.functions]
    needed = {key for found in (*first, *view.routers(_START)) if found for key in found.reads}
    if all(view.keys_known(node) for node in view.nodes):
        needed |= set(view.builder.channels) - {key for node in view.nodes for key in view.branch_keys(node, [])}
    return frozenset(needed)


def views(graph: "Graph", prefix: str = "", seen: tuple[int, ...] = ()) -> Iterator[tuple[str, "GraphView"]]:
    """A graph and all graphs inside it, each with where it is (`node: `), and once."""
    view = GraphView(graph)
    if id(view.builder) in seen:
        return
    yield prefix, view
    for node, subgraphs in view.subgraphs.items():
        for subgraph in subgraphs:
            inside = node if len(subgraphs) == 1 else f"{node}/{subgraph.name}"
            yield from views(subgraph, f"{prefix}{inside}: ", (*seen, id(view.builder)))


def _compile_problems(graph: "Graph") -> list[str]:
    from langgraph.graph import StateGraph

    if isinstance(graph, StateGraph):
        try:
            copied(graph).validate()  # all that `compile` checks
        except ValueError as error:
            return [str(error)]
    return []


def copied(builder: "Builder") -> "Builder":
    """The builder once more: `compile` writes its default policies into a builder, and then cannot compile it again."""
    from copy import copy

    other = copy(builder)
    other.nodes = {key: copy(spec) for key, spec in builder.nodes.items() if key != "__default_error_handler__"}
    return other


@dataclass(frozen=True)
class GraphView:
    """A graph as its checks and its drawing see it: nodes, subgraphs, and where each step may lead."""

    graph: "Graph"

    @cached_property
    def builder(self) -> "Builder":
        """The StateGraph behind the graph."""
        from langgraph.graph.state import CompiledStateGraph

        return self.graph.builder if isinstance(self.graph, CompiledStateGraph) else self.graph

    @cached_property
    def nodes(self) -> list[str]:
        """The nodes, without the error handlers that LangGraph adds by itself."""
        return [name for name, spec in self.builder.nodes.items() if not spec.is_error_handler]

    @cached_property
    def functions(self) -> dict[str, Any]:
        """The Python function of each node that is one."""
        return {name: None if name in self.subgraph_nodes else function_of(spec.runnable) for name, spec in self.builder.nodes.items()}

    @cached_property
    def returns(self) -> dict[str, Returns | None]:
        """What each node's source says."""
        return {name: read_returns(function) if function else None for name, function in self.functions.items()}

    @cached_property
    def subgraph_nodes(self) -> dict[str, Any]:
        """Nodes that are graphs themselves."""
        from langgraph.pregel import Pregel

        return {name: spec.runnable for name, spec in self.builder.nodes.items() if isinstance(spec.runnable, Pregel)}

    @cached_property
    def subgraphs(self) -> dict[str, list["CompiledStateGraph[Any, Any, Any, Any]"]]:
        """The subgraphs of each node that has some: the node itself, or what its function calls."""
        from langgraph.graph.state import CompiledStateGraph

        found = {name: _graphs_of(spec.runnable) for name, spec in self.builder.nodes.items()}
        found = {name: [graph for graph in graphs if isinstance(graph, CompiledStateGraph)] for name, graphs in found.items()}
        return {name: graphs for name, graphs in found.items() if graphs}

    @cached_property
    def sources(self) -> list[Returns]:
        """What the sources of all nodes and routers say."""
        return [found for node in (_START, *self.builder.nodes) for found in (*self.routers(node), self.returns.get(node)) if found]

    @cached_property
    def fanned(self) -> set[str]:
        """The nodes that a Send starts many times at once."""
        return {name for found in self.sources for name in found.fanned}

    def routers(self, node: str) -> list[Returns | None]:
        """What the source of each router after `node` says."""
        functions = [function_of(branch.path) for branch in self.builder.branches.get(node, {}).values()]
        return [read_returns(function) if function else None for function in functions]

    def keys(self, node: str) -> set[str]:
        """The state keys that a node is known to write."""
        if node in self.subgraph_nodes:
            return _output_keys(self.subgraph_nodes[node]) & set(self.builder.channels)
        found = self.returns[node]
        return found.keys if found is not None else set()

    def keys_known(self, node: str) -> bool:
        """Whether `keys` are all that the node may write."""
        found = self.returns[node]
        return node in self.subgraph_nodes or (found is not None and found.keys_known)

    def successors(self, node: str) -> set[str]:
        """Where the graph is known to go from `node`, END included."""
        ends = {end for start, end in self.builder._all_edges if start == node}
        for branch, found in zip(self.builder.branches.get(node, {}).values(), self.routers(node), strict=True):
            ends |= set(branch.ends.values()) if branch.ends else _texts(found.constants) if found else set()
            ends |= found.sends if found else set()
        spec = self.builder.nodes.get(node)
        if spec is not None:
            ends |= set(spec.ends or ()) | ({spec.error_handler_node} if spec.error_handler_node else set())
            returned = self.returns[node]
            ends |= returned.gotos | returned.sends if returned else set()
        return ends

    def leads_anywhere(self, node: str) -> bool:
        """Whether `node` or a router after it may go where its source does not tell."""
        for branch, found in zip(self.builder.branches.get(node, {}).values(), self.routers(node), strict=True):
            if found is None or (not found.targets_known and (not branch.ends or _may_send(branch.path))):
                return True
        return node != _START and self._commands_anywhere(node)

    def _commands_anywhere(self, node: str) -> bool:
        if node in self.subgraph_nodes:
            return any(map(_goes_to_parent, self.subgraphs.get(node, ())))
        function, found = self.functions[node], self.returns[node]
        if function is None or found is None:
            return True
        return not (found.keys_known and found.targets_known) and not _returns_update(function)

    def problems(self) -> list[str]:
        """A sentence for each thing that cannot work."""
        if "__root__" in self.builder.channels:
            return [*self._unknown_targets()]
        found = [*self._unknown_targets(), *self._unknown_keys(), *self._doubly_written()]
        return found or [*self._unreachable(), *self._endless()]

    def _unknown_targets(self) -> Iterator[str]:
        known = {*self.builder.nodes, _END}
        for start, end in sorted(self.builder._all_edges):
            for name in {start} - known - {_START} | {end} - known:
                yield f"the edge {start!r} -> {end!r} names no node: there is no {name!r}{_near(name, known)}"
        for start, branches in self.builder.branches.items():
            if start not in known and start != _START:
                yield f"conditional edges start at {start!r}, which is no node{_near(start, known)}"
            for (label, branch), found in zip(branches.items(), self.routers(start), strict=True):
                router = f"the router after {start!r}" if label == "condition" else f"router {label!r}"  # LangGraph's name of a lambda
                yield from self._unknown_routes(router, branch, found, known)
        for node in self.builder.nodes:
            spec, returned = self.builder.nodes[node], self.returns[node]
            named = set(spec.ends or ()) | (returned.gotos | returned.sends if returned and returned.certain else set())
            for name in sorted(named - known):
                yield f"node {node!r} goes to {name!r}, which is no node{_near(name, known)}"

    def _unknown_routes(self, router: str, branch: Any, found: Returns | None, known: set[str]) -> Iterator[str]:
        ends = set(branch.ends.values()) if branch.ends else set()
        certain = found is not None and found.certain
        sends = (found.sends if found and certain else set()) - set(self.builder.nodes)
        constants = found.constants if found and certain else set()
        for name in sorted(sends | (ends | (set() if branch.ends else _texts(constants))) - known):
            yield f"{router} goes to {name!r}, which is no node{_near(name, known)}"
        if branch.ends:
            for value in sorted(map(repr, constants - set(branch.ends))):
                yield f"{router} returns {value}, which is not among its declared targets: {', '.join(map(repr, branch.ends))}"

    def _unknown_keys(self) -> Iterator[str]:
        channels = {*self.builder.channels, *self.builder.managed}
        for node, returned in self.returns.items():
            for key in sorted(returned.keys - channels if returned and returned.certain else ()):
                yield f"node {node!r} writes {key!r}, which is no key of the state{_near(key, channels)}"

    def _doubly_written(self) -> Iterator[str]:
        from langgraph.channels import LastValue

        for node in sorted(self.fanned & set(self.nodes)):
            sent = [found.sent_keys.get(node, set()) for found in self.sources if node in found.sends]
            for key in sorted(self.branch_keys(node, sent)):
                if isinstance(self.builder.channels.get(key), LastValue):
                    yield f"every branch of {node!r} writes {key!r}, which has no reducer: annotate it, as in Annotated[list, operator.add]"

    def branch_keys(self, node: str, sent: list[set[str] | None]) -> set[str]:
        """What a branch writes; a subgraph also hands back what it was sent, as far as its output has it."""
        graph = self.subgraph_nodes.get(node)
        if graph is None:
            return self.keys(node)
        view = GraphView(graph)
        declared = view.builder.output_schema is not view.builder.state_schema
        inner = {key for name in view.nodes for key in view.keys(name)} | {key for keys in sent for key in keys or ()}
        return self.keys(node) if declared else self.keys(node) & inner

    @cached_property
    def reached(self) -> set[str]:
        """The nodes that the graph is known to come to."""
        reached: set[str] = set()
        ahead = [_START]
        while ahead:
            node = ahead.pop()
            if node not in reached:
                reached.add(node)
                ahead += [end for end in self.successors(node) if end in self.builder.nodes]
        return reached

    def _unreachable(self) -> Iterator[str]:
        lost = [node for node in self.nodes if node not in self.reached]
        if lost and len(self.reached) > 1 and not any(self.leads_anywhere(node) for node in self.reached):
            for node in lost:
                yield f"node {node!r} cannot be reached: no edge, router or Send leads to it"

    def _endless(self) -> Iterator[str]:
        """The cycle that no run can leave, unless one of its nodes may leave it by itself."""
        ending = {_END}
        while more := {node for node in self.reached - ending if self._may_end(node, ending)}:
            ending |= more
        cycle = [node for node in self.nodes if node in self.reached - ending]
        interrupts = getattr(self.graph, "interrupt_before_nodes", ()) or getattr(self.graph, "interrupt_after_nodes", ())
        if cycle and not interrupts and not any(self._may_leave(node) for node in cycle):
            yield f"the graph can never end: from {', '.join(map(repr, cycle))} no way leads to END"

    def _may_end(self, node: str, ending: set[str]) -> bool:
        """Whether some choice at `node` ends: every plain edge must, and one way of each router."""
        if not all(end in ending for start, end in self.builder.edges if start == node):
            return False
        for branch, found in zip(self.builder.branches.get(node, {}).values(), self.routers(node), strict=True):
            targets = set(branch.ends.values()) if branch.ends else _texts(found.constants) if found else set()
            certain = found is not None and found.targets_known and not found.sends and not found.may_be_empty
            if certain and targets and not targets & ending:
                return False
        return True

    def _may_leave(self, node: str) -> bool:
        function = self.functions[node]
        return function is None or may_stop(function)

    def notes(self) -> list[str]:
        """What is accepted, and worth knowing."""
        names = [repr(node) for node in self.nodes if _is_synchronous(self.builder.nodes[node].runnable)]
        if not names:
            return []
        verb = "node {} is synchronous: it runs in a thread" if len(names) == 1 else "nodes {} are synchronous: they run in threads"
        return [verb.format(", ".join(names)) + " and cannot be cancelled"]


def _graphs_of(runnable: Any) -> list[Any]:
    """The graphs that a node is or that its function names, closure and module included."""
    from langchain_core.runnables import RunnableSequence
    from langgraph.pregel import Pregel

    if isinstance(runnable, Pregel):
        return [runnable]
    if isinstance(runnable, RunnableSequence):
        return [graph for step in runnable.steps for graph in _graphs_of(step)]
    function = function_of(runnable)
    if function is None:
        return []
    cells = [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]
    named = [function.__globals__[name] for name in function.__code__.co_names if name in function.__globals__]
    graphs = [value for value in (*cells, *named) if isinstance(value, Pregel)]
    return list({id(graph): graph for graph in graphs}.values())


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False


def _output_keys(graph: Any) -> set[str]:
    channels = graph.output_channels
    return {channels} if isinstance(channels, str) else set(channels)


def _texts(values: Iterable[Any]) -> set[str]:
    return {value for value in values if isinstance(value, str)}


def _near(name: str, names: Iterable[str]) -> str:
    near = nearest(name, (other for other in names if not other.startswith("__")))
    return f". Did you mean {near!r}?" if near else ""


def _may_send(router: Any) -> bool:
    """Whether a router with declared targets may send elsewhere too: it, or a function that it names, knows Send."""
    function = function_of(router)
    return function is None or names(function, {"Send"})


def _returns_update(function: Any) -> bool:
    """Whether the annotation says that a node returns a state update and no Command."""
    try:
        annotation = get_type_hints(function).get("return", Any)
    except (NameError, TypeError):
        annotation = function.__annotations__.get("return", Any)
    return not any(word in str(annotation) for word in ("Command", "Send", "object")) and annotation is not Any


def _goes_to_parent(graph: Any) -> bool:
    """Whether a node of the subgraph may send a command to the graph around it."""
    view = GraphView(graph)
    unknown = any(function is None and name not in view.subgraph_nodes for name, function in view.functions.items())
    return unknown or any("PARENT" in function.__code__.co_names for function in view.functions.values() if function)


def _is_synchronous(runnable: Any) -> bool:
    from functools import partial

    from langchain_core.runnables import RunnableLambda
    from langgraph._internal._runnable import RunnableCallable

    if isinstance(runnable, RunnableCallable):
        return runnable.func is not None and (runnable.afunc is None or isinstance(runnable.afunc, partial))
    return isinstance(runnable, RunnableLambda) and not hasattr(runnable, "afunc")


_seen: ContextVar[list[str] | None] = ContextVar("unknown_targets", default=None)
_UNKNOWN = re.compile(r"wrote to unknown channel branch:to:(.*), ignoring it\.|Ignoring unknown node name (.*) in pending sends", re.DOTALL)


class _Net(logging.Filter):
    """Takes LangGraph's warnings of unknown targets out of the log and into the list of the run that caused them."""

    def filter(self, record: logging.LogRecord) -> bool:
        names, found = _seen.get(), _UNKNOWN.search(record.getMessage())
        if names is None or found is None:
            return True
        name = found[1] or found[2] or ""
        if name not in names:
            names.append(name)
        return False


_net = _Net()


@contextmanager
def unknown_targets() -> Iterator[list[str]]:
    """A list that gets the names of targets that no node has, while the runs started inside go on.

    It rests on LangGraph's own warning, which is all that such a run leaves behind; concurrent runs do not mix.
    """
    logging.getLogger("langgraph").addFilter(_net)  # adding the same filter again changes nothing
    names: list[str] = []
    token = _seen.set(names)
    try:
        yield names
    finally:
        if _seen.get() is names:
            _seen.reset(token)
