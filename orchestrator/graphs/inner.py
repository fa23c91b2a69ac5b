"""A graph inside a node of a run, taken step by step without LangGraph's loop around each step.

A subgraph that is called costs LangGraph about a millisecond for its loop, its tasks and their stream, which nobody but the run reads. What
the graph does is the same: its own channels and reducers, its own nodes, writers and routers, in the same supersteps and order.
"""

import asyncio
import itertools
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from operator import attrgetter
from typing import Any, NamedTuple, cast

from langchain_core.runnables import Runnable
from langchain_core.runnables.config import var_child_runnable_config
from langgraph._internal._constants import CONF, CONFIG_KEY_READ, CONFIG_KEY_SCRATCHPAD, CONFIG_KEY_SEND, PULL, PUSH, RESUME, TASKS
from langgraph._internal._typing import MISSING
from langgraph.channels.base import BaseChannel
from langgraph.channels.binop import BinaryOperatorAggregate
from langgraph.channels.ephemeral_value import EphemeralValue
from langgraph.channels.last_value import LastValue, LastValueAfterFinish
from langgraph.channels.named_barrier_value import NamedBarrierValueAfterFinish
from langgraph.constants import START
from langgraph.errors import GraphInterrupt, GraphRecursionError, NodeCancelledError, ParentCommand
from langgraph.graph.state import CompiledStateGraph
from langgraph.pregel._read import DEFAULT_BOUND, PregelNode
from langgraph.pregel._write import PASSTHROUGH, ChannelWrite, ChannelWriteEntry, ChannelWriteTupleEntry, _assemble_writes

from orchestrator.asking import Question, node_question, question_of
from orchestrator.events import current_branch
from orchestrator.flights import ended
from orchestrator.interrupts import asked_at_once, with_answers
from orchestrator.spans import HIDDEN, Span, Tracer, shown_as

__all__ = ["Inner", "inner_of"]

Write = tuple[str, Any]
Maker = Callable[[Any], Sequence[Write] | None]
"""Makes writes of what a node gives."""

_LATE = (LastValueAfterFinish, NamedBarrierValueAfterFinish)  # channels of deferred nodes
_log = logging.getLogger("langgraph")  # of what LangGraph would warn of, in its words: `checks` reads them
_numbers = itertools.count()  # of the tasks of this process


Consult = Callable[[Question], Any]
"""Gives a person's answer to a question, or raises GraphInterrupt."""


class _Task(NamedTuple):
    """A node that is to run, with what it is given, or was `sent`; `told`: what the metadata of what runs in it say of it."""

    node: "_Node"
    given: Any
    told: Mapping[str, Any]
    sent: bool = False


class Inner:
    """A compiled graph that is run inside a node of a run of ours, on the context, callbacks and store of that node."""

    def __init__(self, graph: CompiledStateGraph[Any, Any, Any, Any]) -> None:
        self._graph = graph
        self._nodes = {name: _Node(name, node) for name, node in graph.nodes.items()}
        self._triggered = {channel: [self._nodes[name] for name in names] for channel, names in graph.trigger_to_nodes.items()}
        self._kinds = _Kinds(graph)
        start = self._nodes[START].writers
        # What a graph is given is written at once where no router looks at it.
        self._begins = None if any(router is not None for _, router in start) else start

    async def run(self, given: Mapping[str, Any], tracer: Tracer, consult: "Consult | None" = None) -> dict[str, Any]:
        """What `ainvoke` would give; called inside a node of LangGraph's. Raises what the nodes raise, and GraphRecursionError.

        `consult`: answers what a node asks by `interrupt()`, or raises GraphInterrupt; None: LangGraph does.
        """
        config: Any = var_child_runnable_config.get() or {}
        metadata = config.get("metadata") or {}
        values = _Values(self._kinds)
        around = _Around(values, config, metadata, str(metadata.get("langgraph_checkpoint_ns", "")), tracer, consult)
        begins = self._begins
        changed = values.apply([(START, given)] if begins is None else [write for make, _ in begins for write in make(given) or ()])
        most = config.get("recursion_limit", 25)
        for step in range(int(begins is not None), most + 1):
            tasks = self._due(values, changed)
            if len(tasks) == 1:
                writes = await self._made(tasks[0], step, around)
            elif tasks:
                outcomes = await _together([self._made(task, step, around) for task in tasks])
                writes = [*itertools.chain(*outcomes)]
            else:
                came: dict[str, Any] = values.read(self._graph.output_channels)
                return came
            changed = values.apply(writes, tasks)
        raise GraphRecursionError(f"the graph {self._graph.name!r} took more than {most} steps: it goes round without an end")

    def _due(self, values: "_Values", changed: set[str]) -> list[_Task]:
        """The tasks of the next step: nodes that what changed has triggered, then those that were sent something."""
        tasks: list[_Task] = []
        nodes = [node for channel in changed for node in self._triggered.get(channel, ())]
        for node in sorted(set(nodes), key=_name) if len(nodes) > 1 else nodes:
            given = values.given(node.reads)
            if given is not MISSING:
                tasks.append(_Task(node, given, node.told))
        for at, one in enumerate(values.get(TASKS) if TASKS in changed else ()):
            if one.node in self._nodes:
                tasks.append(_Task(self._nodes[one.node], one.arg, _told(one.node, (PUSH,), (PUSH, at, False)), sent=True))
            else:
                _log.warning(f"Ignoring unknown node name {one.node} in pending sends")
        return tasks

    async def _made(self, task: _Task, step: int, around: "_Around") -> list[Write]:
        """Run a node; what it and its routers write."""
        node, known, number = task.node, self._kinds.all, f"inner{next(_numbers)}"
        writes: list[Write] = []
        values, tracer, place = around.values, around.tracer, f"{around.path}|{task.node.name}:{number}"
        metadata = {**around.metadata, **task.told, "langgraph_step": step, "langgraph_checkpoint_ns": place, **node.metadata}
        inside: Any = {**around.config, "metadata": metadata}
        if not node.bare:

            def read(select: str | list[str], fresh: bool = False) -> Any:
                return (values.after(writes) if fresh else values).read(select)

            inside[CONF] = {**around.config.get(CONF, {}), CONFIG_KEY_SEND: writes.extend, CONFIG_KEY_READ: read}
        given = task.given if node.mapper is None or task.sent else node.mapper(task.given)
        token = var_child_runnable_config.set(inside)
        tracer.nodes[number] = None
        try:
            if node.name == START:
                output = given
            elif (shown := node.shown or shown_as(metadata, node.name))[0] == HIDDEN:
                output = await _output(node, given, inside, around)
            else:
                with _span(shown, node.name, task.given, tracer) as span:
                    tracer.nodes[number] = span
                    output = await _output(node, given, inside, around)
                    span.came = output if tracer.takes_content or span.kind == "node" else None
            for make, router in node.writers:
                if router is None:
                    writes += make(output) or ()
                else:
                    await router.ainvoke(output, inside)
        finally:
            var_child_runnable_config.reset(token)
            del tracer.nodes[number]
        for name, _ in writes:
            if name not in known and name != RESUME:
                _log.warning(f"Task {node.name} with path {task.told['langgraph_path']} wrote to unknown channel {name}, ignoring it.")
        return writes


class _Node:
    """A node of a graph, with what never changes about it."""

    __slots__ = ("bare", "bound", "inner", "mapper", "metadata", "name", "reads", "shown", "told", "writers")

    def __init__(self, name: str, node: PregelNode) -> None:
        self.name = name
        self.bound = node.bound
        self.reads = node.channels
        self.mapper = node.mapper
        self.metadata = node.metadata or {}
        self.told = _told(name, tuple(node.triggers), (PULL, name))
        self.shown = shown_as(self.metadata, name) if "trace" in self.metadata else None  # None: as the graph around says
        self.inner = inner_of(node.bound)
        self.writers = [part for writer in node.flat_writers for part in _parts(writer)]
        # Nothing but such a graph, which has its own, reads or writes the state as it runs.
        self.bare = self.inner is not None and all(router is None for _, router in self.writers)


_name = attrgetter("name")


def _told(node: str, triggers: tuple[str, ...], path: tuple[Any, ...]) -> dict[str, Any]:
    return {"langgraph_node": node, "langgraph_triggers": triggers, "langgraph_path": path}


def _span(shown: Sequence[str], node: str, given: Any, tracer: Tracer) -> AbstractContextManager[Span]:
    """The span of a node that is a step of the run's trace."""
    name = next((word for word in shown[1:] if word != "round"), node)
    here = tracer.here()
    known: dict[str, Any] = {"branch": current_branch() or here.branch}
    if shown[0] == "agent":
        known |= {"role": name, "attempt": tracer.count(here, name)}
    return tracer.span(shown[0], name, parent=here, given=given, **known)  # type: ignore[arg-type]


async def _output(node: _Node, given: Any, config: Any, around: "_Around") -> Any:
    """What a node gives; what a graph inside asks of the graph around it (`Command.PARENT`) counts as given by its node.

    One that asks a person by `interrupt()` begins again from its top with each answer.
    """
    consult = around.consult
    answers: list[Any] = []
    try:
        if node.inner is not None:
            return await node.inner.run(given, around.tracer, consult)
        while consult is not None:
            # What is kept of an answer is ours to keep: the node writes it to nobody.
            config[CONF][CONFIG_KEY_SCRATCHPAD] = with_answers(config[CONF][CONFIG_KEY_SCRATCHPAD], answers)
            try:
                return await _alone(node.bound.ainvoke(given, config))
            except GraphInterrupt as pause:
                answers.append(_answered(node.name, pause, consult, len(answers) + 1))
        return await _alone(node.bound.ainvoke(given, config))
    except ParentCommand as up:
        return replace(up.args[0], graph=None)


def _answered(node: str, pause: GraphInterrupt, consult: "Consult", number: int) -> Any:
    """What a person answers to what a node asks by `interrupt()`."""
    asked = pause.args[0][0]
    if not question_of(asked.id, asked.value).native:
        raise pause
    schema = dict(asked.response_schema) if isinstance(asked.response_schema, Mapping) else None
    return consult(node_question(node, asked.value, schema, number=number, branch=current_branch()))


class _Around(NamedTuple):
    """What the tasks of one run of a graph have in common."""

    values: "_Values"
    config: Mapping[str, Any]
    metadata: Mapping[str, Any]
    path: str
    tracer: Tracer
    consult: "Consult | None"


def inner_of(graph: Runnable[Any, Any]) -> Inner | None:
    """The graph as one that can be taken step by step; None for what is none, or asks for what only LangGraph's loop does: checkpoints
    of its own, pauses, deferred nodes, retries, caches, timeouts, error handlers, managed values.
    """
    if not isinstance(graph, CompiledStateGraph):
        return None
    of, found = getattr(graph, "_inner", (None, None))  # kept by the graph itself, with which it goes; a copy has it, too
    if of != id(graph):
        found = Inner(graph) if _is_plain(graph) else None
        graph._inner = id(graph), found  # type: ignore[attr-defined]
    return found


def _is_plain(graph: CompiledStateGraph[Any, Any, Any, Any]) -> bool:
    if graph.checkpointer is not False or graph.interrupt_before_nodes or graph.interrupt_after_nodes or graph.cache or graph.step_timeout:
        return False
    if graph.retry_policy or graph.cache_policy or graph.config or any(isinstance(channel, _LATE) for channel in graph.channels.values()):
        return False
    if not all(isinstance(channel, BaseChannel) for channel in graph.channels.values()) or graph.store is not None:
        return False
    nodes = graph.nodes.values()
    special = (node.retry_policy or node.cache_policy or node.timeout or node.is_error_handler or node.error_handler_node for node in nodes)
    return not any(special) and all(node.bound is DEFAULT_BOUND or name != START for name, node in graph.nodes.items())


class _Kinds:
    """The channels of a graph by what they do, as they are before anything was written."""

    def __init__(self, graph: CompiledStateGraph[Any, Any, Any, Any]) -> None:
        self.all = cast("dict[str, Any]", graph.channels)
        lasting = {name for name, channel in self.all.items() if type(channel) is LastValue}
        self.passing = {name for name, channel in self.all.items() if type(channel) is EphemeralValue}  # they hold for one step
        self.simple = lasting | self.passing
        self.several = {name for name in self.passing if not self.all[name].guard}  # may be written to more than once in one
        self.heard = lasting & graph.trigger_to_nodes.keys()
        others = {name: channel for name, channel in self.all.items() if name not in self.simple}
        self.begun = [name for name, channel in others.items() if channel.from_checkpoint(MISSING).is_available()]
        self.consuming = {name for name, channel in others.items() if type(channel).consume is not BaseChannel.consume}


class _Values:
    """What the channels of one run of a graph hold. Of most of them that is the value last written, and of those there is no object."""

    __slots__ = ("_held", "_kinds", "_others", "_passing")

    def __init__(self, kinds: _Kinds) -> None:
        self._kinds = kinds
        self._held: dict[str, Any] = {}  # by the names of lasting and passing ones
        self._passing: set[str] = set()  # that hold something
        self._others: dict[str, BaseChannel[Any, Any, Any]] = {name: kinds.all[name].from_checkpoint(MISSING) for name in kinds.begun}

    def get(self, name: str) -> Any:
        """What a channel holds; MISSING where that is nothing."""
        other = self._others.get(name)
        if other is None:
            return self._held.get(name, MISSING)
        return other.get() if other.is_available() else MISSING

    def read(self, select: str | Sequence[str]) -> Any:
        """What channels hold, by their names, without those that hold nothing; of a single one None, where that is nothing."""
        found = self.given(select)
        return None if found is MISSING else found

    def given(self, select: str | Sequence[str]) -> Any:
        """As `read`, with MISSING for None."""
        if isinstance(select, str):
            return self.get(select)
        if not self._others:
            held = self._held
            return {name: held[name] for name in select if name in held}
        return {name: value for name in select if (value := self.get(name)) is not MISSING}

    def apply(self, writes: Sequence[Write], tasks: Iterable[_Task] = ()) -> set[str]:
        """Write what `tasks` have come to, and begin another step: which of the channels have a new value."""
        kinds, held, simple = self._kinds, self._held, self._kinds.simple
        written: dict[str, Any] = {}
        others: dict[str, list[Any]] = {}
        for name, value in writes:
            if name in simple:
                if name in written and name not in kinds.several:
                    kinds.all[name].copy().update((written[name], value))  # raises what LangGraph says of it
                written[name] = value
            elif name in kinds.all:
                others.setdefault(name, []).append(value)
        for name in self._passing:
            del held[name]
        held |= written
        self._passing = written.keys() & kinds.passing
        changed = self._passing | (written.keys() & kinds.heard) if kinds.heard else self._passing
        if others or self._others:
            changed = changed | self._apply_others(others, tasks)
        return changed

    def _apply_others(self, writes: Mapping[str, Sequence[Any]], tasks: Iterable[_Task]) -> set[str]:
        kinds, others = self._kinds, self._others
        if kinds.consuming:
            for name in {name for task in tasks if not task.sent for name in task.node.told["langgraph_triggers"]}:
                if name in others:
                    others[name].consume()
        for name in writes.keys() - others.keys():
            others[name] = kinds.all[name].from_checkpoint(MISSING)
        changed = {name for name, values in writes.items() if others[name].update(values) and others[name].is_available()}
        for name, other in others.items():
            if type(other) is BinaryOperatorAggregate or name in changed or not other.is_available():
                continue
            if other.update(()) and other.is_available():
                changed.add(name)
        return changed

    def after(self, writes: Sequence[Write]) -> "_Values":
        """The values as a router sees them after its node has written."""
        seen = _Values(self._kinds)
        seen._held, seen._passing = dict(self._held), self._passing
        seen._others = {name: other.copy() for name, other in self._others.items()}
        seen.apply(writes)
        return seen


def _parts(writer: Any) -> list[tuple[Maker, Any]]:
    """What makes writes of what a node gives, part by part; or a router, which writes them itself."""
    if type(writer) is not ChannelWrite:
        return [(_nothing, writer)]
    return [(_maker(entry), None) for entry in writer.writes]


def _maker(entry: Any) -> Maker:
    if isinstance(entry, ChannelWriteTupleEntry) and entry.value is PASSTHROUGH:
        return entry.mapper
    if not isinstance(entry, ChannelWriteEntry):
        return lambda _: _assemble_writes([entry])
    if entry.value is PASSTHROUGH:
        return lambda output: _assemble_writes([entry._replace(value=output)])
    if entry.mapper is not None or entry.skip_none:
        return lambda _: _assemble_writes([entry])
    written = [(entry.channel, entry.value)]
    return lambda _: written


def _nothing(_: Any) -> None:
    return None


async def _alone(work: Coroutine[Any, Any, Any]) -> Any:
    """What a node does, in a context of its own; a cancellation that is the node's own doing is its failure, as with LangGraph."""
    task = asyncio.get_running_loop().create_task(work)
    try:
        return await task
    except asyncio.CancelledError:
        here = asyncio.current_task()
        if here is not None and not here.cancelling() and task.cancelled():
            raise NodeCancelledError("a node raised CancelledError") from None
        raise
    finally:
        if not task.done():
            await ended([task])


async def _together(made: Sequence[Coroutine[Any, Any, list[Write]]]) -> list[list[Write]]:
    """The outcome of each, in order. The first failure ends the others, as in a step of LangGraph's; where one asks a person they end
    in their own time, and all that is asked is asked at once.
    """
    tasks = [asyncio.ensure_future(one) for one in made]
    try:
        left = set(tasks)
        while left:
            done, left = await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if not isinstance(task.exception(), GraphInterrupt):
                    task.result()
    finally:
        await ended(tasks)
    if pauses := [error for task in tasks if isinstance(error := task.exception(), GraphInterrupt)]:
        raise asked_at_once(pauses)
    return [task.result() for task in tasks]
