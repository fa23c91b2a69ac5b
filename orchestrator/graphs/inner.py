"""A graph inside a node of a run, taken step by step without LangGraph's loop around each step.

A subgraph that is called costs LangGraph about a millisecond for its loop, its tasks and their stream, which nobody but the run reads. What
the graph does is the same: its own channels and reducers, its own nodes, writers and routers, in the same supersteps and order.
"""

import asyncio
import itertools
import logging
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import var_child_runnable_config
from langgraph._internal._constants import CONF, CONFIG_KEY_READ, CONFIG_KEY_SCRATCHPAD, CONFIG_KEY_SEND, RESUME, TASKS
from langgraph._internal._typing import MISSING
from langgraph.channels.base import BaseChannel
from langgraph.channels.binop import BinaryOperatorAggregate
from langgraph.channels.last_value import LastValue, LastValueAfterFinish
from langgraph.channels.named_barrier_value import NamedBarrierValueAfterFinish
from langgraph.constants import START
from langgraph.errors import GraphInterrupt, GraphRecursionError, NodeCancelledError, ParentCommand
from langgraph.graph.state import CompiledStateGraph
from langgraph.pregel._io import read_channel, read_channels
from langgraph.pregel._read import DEFAULT_BOUND, PregelNode
from langgraph.pregel._write import PASSTHROUGH, ChannelWrite, ChannelWriteEntry, ChannelWriteTupleEntry, _assemble_writes

from orchestrator.asking import Question, node_question, question_of
from orchestrator.events import current_branch
from orchestrator.flights import ended
from orchestrator.interrupts import asked_at_once, with_answers
from orchestrator.spans import HIDDEN, Span, Tracer, shown_as

__all__ = ["Inner", "inner_of"]

Channels = dict[str, BaseChannel[Any, Any, Any]]
Write = tuple[str, Any]

_LASTING = (LastValue, BinaryOperatorAggregate)  # channels whose value stays until another one is written
_LATE = (LastValueAfterFinish, NamedBarrierValueAfterFinish)  # channels of deferred nodes
_log = logging.getLogger("langgraph")  # of what LangGraph would warn of, in its words: `checks` reads them
_numbers = itertools.count()  # of the tasks of this process


Consult = Callable[[Question], Any]
"""Gives a person's answer to a question, or raises GraphInterrupt."""


class _Task(NamedTuple):
    """A node that is to run, with what it is given, or was `sent`; `place` is where it stands among the tasks of its step."""

    node: str
    given: Any
    triggers: tuple[str, ...]
    place: tuple[Any, ...]
    sent: bool = False


class Inner:
    """A compiled graph that is run inside a node of a run of ours, on the context, callbacks and store of that node."""

    def __init__(self, graph: CompiledStateGraph[Any, Any, Any, Any]) -> None:
        self._graph = graph
        self._nodes: dict[str, PregelNode] = graph.nodes
        self._channels: Any = graph.channels
        self._inner = {name: found for name, node in graph.nodes.items() if (found := inner_of(node.bound)) is not None}
        # Nodes of which nothing but such a graph, which has its own, reads or writes the state as it runs.
        self._bare = {name for name in self._inner if all(type(writer) is ChannelWrite for writer in graph.nodes[name].flat_writers)}
        self._triggered = graph.trigger_to_nodes
        start = graph.nodes[START].flat_writers
        # What a graph is given is written at once where no router looks at it.
        self._begins = start if all(type(writer) is ChannelWrite for writer in start) else None
        self._passing = tuple(name for name, channel in self._channels.items() if type(channel) not in _LASTING)

    async def run(self, given: Mapping[str, Any], tracer: Tracer, consult: "Consult | None" = None) -> dict[str, Any]:
        """What `ainvoke` would give; called inside a node of LangGraph's. Raises what the nodes raise, and GraphRecursionError.

        `consult`: answers what a node asks by `interrupt()`, or raises GraphInterrupt; None: LangGraph does.
        """
        config: Any = var_child_runnable_config.get() or {}
        path = str((config.get("metadata") or {}).get("langgraph_checkpoint_ns", ""))
        channels: Channels = {name: channel.from_checkpoint(MISSING) for name, channel in self._channels.items()}
        changed = _apply(channels, [(START, given)] if self._begins is None else _all_written(self._begins, given), (), ())
        most = config.get("recursion_limit", 25)
        around = _Around(channels, config, path, tracer, consult)
        for step in range(int(self._begins is not None), most + 1):
            tasks = self._due(channels, changed)
            if not tasks:
                return read_channels(channels, self._graph.output_channels)
            made = [self._made(task, step, around) for task in tasks]
            outcomes = [await made[0]] if len(made) == 1 else await _together(made)
            read = {trigger for task in tasks if not task.sent for trigger in self._nodes[task.node].triggers}
            writes = outcomes[0] if len(outcomes) == 1 else [*itertools.chain(*outcomes)]
            changed = _apply(channels, writes, read, self._passing)
        raise GraphRecursionError(f"the graph {self._graph.name!r} took more than {most} steps: it goes round without an end")

    def _due(self, channels: Channels, changed: set[str]) -> list[_Task]:
        """The tasks of the next step: nodes that what changed has triggered, then those that were sent something."""
        names = sorted({name for channel in changed for name in self._triggered.get(channel, ())})
        nodes = self._nodes
        tasks = [
            _Task(name, given, tuple(nodes[name].triggers), ("__pregel_pull", name))
            for name in names
            if (given := self._given(nodes[name], channels)) is not MISSING
        ]
        for at, one in enumerate(channels[TASKS].get() if TASKS in changed else ()):
            if one.node in nodes:
                tasks.append(_Task(one.node, one.arg, ("__pregel_push",), ("__pregel_push", at, False), sent=True))
            else:
                _log.warning(f"Ignoring unknown node name {one.node} in pending sends")
        return tasks

    def _given(self, node: PregelNode, channels: Channels) -> Any:
        if isinstance(node.channels, str):
            return read_channel(channels, node.channels) if channels[node.channels].is_available() else MISSING
        return {name: channels[name].get() for name in node.channels if channels[name].is_available()}

    async def _made(self, task: _Task, step: int, around: "_Around") -> list[Write]:
        """Run a node; what it and its routers write."""
        node, writes, number = self._nodes[task.node], list[Write](), f"inner{next(_numbers)}"
        channels, config, tracer = around.channels, around.config, around.tracer
        metadata = {
            **(config.get("metadata") or {}),
            "langgraph_step": step,
            "langgraph_node": task.node,
            "langgraph_triggers": task.triggers,
            "langgraph_path": task.place,
            "langgraph_checkpoint_ns": f"{around.path}|{task.node}:{number}",
            **(node.metadata or {}),
        }

        inside: Any = {**config, "metadata": metadata}
        if task.node not in self._bare:

            def read(select: str | list[str], fresh: bool = False) -> Any:
                return read_channels(_with(channels, writes) if fresh else channels, select)

            inside[CONF] = {**config.get(CONF, {}), CONFIG_KEY_SEND: writes.extend, CONFIG_KEY_READ: read}
        given = task.given if node.mapper is None or task.sent else node.mapper(task.given)
        token = var_child_runnable_config.set(inside)
        tracer.nodes[number] = None
        try:
            if task.node == START:
                output = given
            elif (kind := shown_as(metadata, task.node))[0] == HIDDEN:
                output = await self._output(task.node, given, inside, around)
            else:
                with self._span(kind, task, tracer) as span:
                    tracer.nodes[number] = span
                    output = await self._output(task.node, given, inside, around)
                    span.came = output if tracer.takes_content or span.kind == "node" else None
            for writer in node.flat_writers:
                if type(writer) is ChannelWrite:
                    writes += _written(writer, output)
                else:  # a router
                    await writer.ainvoke(output, inside)
        finally:
            var_child_runnable_config.reset(token)
            del tracer.nodes[number]
        for name in {name for name, _ in writes} - channels.keys() - {RESUME}:
            _log.warning(f"Task {task.node} with path {task.place} wrote to unknown channel {name}, ignoring it.")
        return writes

    def _span(self, kind: Sequence[str], task: _Task, tracer: Tracer) -> AbstractContextManager[Span]:
        """The span of a node that is a step of the run's trace."""
        name = next((word for word in kind[1:] if word != "round"), task.node)
        here = tracer.here()
        known: dict[str, Any] = {"branch": current_branch() or here.branch}
        if kind[0] == "agent":
            known |= {"role": name, "attempt": tracer.count(here, name)}
        return tracer.span(kind[0], name, parent=here, given=task.given, **known)  # type: ignore[arg-type]

    async def _output(self, name: str, given: Any, config: RunnableConfig, around: "_Around") -> Any:
        """What a node gives; what a graph inside asks of the graph around it (`Command.PARENT`) counts as given by its node."""
        inner, bound = self._inner.get(name), self._nodes[name].bound
        try:
            if inner is not None:
                return await inner.run(given, around.tracer, around.consult)
            if around.consult is None:
                return await _alone(bound.ainvoke(given, config))
            return await self._asking(name, partial(bound.ainvoke, given, config), config[CONF], around.consult)
        except ParentCommand as up:
            return replace(up.args[0], graph=None)

    async def _asking(self, name: str, work: Callable[[], Coroutine[Any, Any, Any]], known: dict[str, Any], consult: "Consult") -> Any:
        """What a node gives that may ask by `interrupt()`; with each answer it begins again from its top. `known`: its own configurable."""
        answers: list[Any] = []
        while True:
            # What is kept of an answer is ours to keep: the node writes it to nobody.
            known[CONFIG_KEY_SCRATCHPAD] = with_answers(known[CONFIG_KEY_SCRATCHPAD], answers)
            try:
                return await _alone(work())
            except GraphInterrupt as pause:
                asked = pause.args[0][0]
                if not question_of(asked.id, asked.value).native:
                    raise
                schema = dict(asked.response_schema) if isinstance(asked.response_schema, Mapping) else None
                answers.append(consult(node_question(name, asked.value, schema, number=len(answers) + 1, branch=current_branch())))


@dataclass(frozen=True, slots=True)
class _Around:
    """What the tasks of one run of a graph have in common."""

    channels: Channels
    config: Mapping[str, Any]
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


def _apply(channels: Channels, writes: Sequence[Write], read: Iterable[str], passing: Iterable[str]) -> set[str]:
    """Write to the channels, and begin another step, which the `passing` ones are told: which of them have a new value."""
    for name in read:
        channels[name].consume()
    values: dict[str, list[Any]] = {}
    for name, value in writes:
        if name in channels:
            values.setdefault(name, []).append(value)
    changed = {name for name, written in values.items() if channels[name].update(written) and channels[name].is_available()}
    for name in passing:
        channel = channels[name]
        if name not in changed and channel.is_available() and channel.update(()) and channel.is_available():
            changed.add(name)
    return changed


def _with(channels: Channels, writes: Iterable[Write]) -> Channels:
    """The channels as a router sees them after its node has written."""
    values: dict[str, list[Any]] = defaultdict(list)
    for name, value in writes:
        values[name].append(value)
    seen = {name: channel.copy() for name, channel in channels.items()}
    for name, channel in seen.items():
        channel.update(values[name])
    return seen


def _written(writer: ChannelWrite, output: Any) -> list[Write]:
    """What a writer makes of what its node gives."""
    found: list[Write] = []
    for entry in writer.writes:
        if isinstance(entry, ChannelWriteTupleEntry):
            found += entry.mapper(output if entry.value is PASSTHROUGH else entry.value) or ()
        elif isinstance(entry, ChannelWriteEntry) and entry.mapper is None and not entry.skip_none:
            found.append((entry.channel, output if entry.value is PASSTHROUGH else entry.value))
        else:
            found += _assemble_writes([_given_to(entry, output)])
    return found


def _all_written(writers: Iterable[Any], output: Any) -> list[Write]:
    return [write for writer in writers for write in _written(writer, output)]


def _given_to(entry: Any, output: Any) -> Any:
    return entry._replace(value=output) if isinstance(entry, ChannelWriteEntry) and entry.value is PASSTHROUGH else entry


async def _alone(work: Coroutine[Any, Any, Any]) -> Any:
    """What a node does, in a context of its own; a cancellation that is the node's own doing is its failure, as with LangGraph."""
    task, here = asyncio.create_task(work), asyncio.current_task()
    try:
        return await task
    except asyncio.CancelledError:
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
