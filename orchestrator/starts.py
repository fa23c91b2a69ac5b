"""The checkpoint that a fork begins with, its edits included: it stands for an input, each time that the fork begins once more."""

from collections.abc import Mapping
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import StateSnapshot

__all__ = ["begin_at", "place_of", "start_of"]

_STARTS = ("fork", "update")  # what LangGraph calls a checkpoint that was copied, and one that was edited


def place_of(thread: str) -> RunnableConfig:
    """Where the outermost graph's checkpoints of a thread are."""
    return {"configurable": {"thread_id": thread, "checkpoint_ns": ""}}


async def start_of(saver: BaseCheckpointSaver[Any], thread: str) -> CheckpointTuple | None:
    """The checkpoint that the fork with this thread began with; None where the thread is of no fork."""
    found = [each for source in _STARTS async for each in saver.alist(place_of(thread), filter={"source": source}, limit=1)]
    return max(found, key=lambda each: each.checkpoint["id"], default=None)  # the newest of both


async def begin_at(
    graph: CompiledStateGraph[Any, Any, Any, Any], thread: str, start: CheckpointTuple, run_id: str, values: Mapping[str, Any] | None = None
) -> StateSnapshot:
    """Copy a checkpoint to a new thread, with other `values` of some keys, and give the state that the graph goes on from there."""
    saver: Any = graph.checkpointer
    edits = dict(values or {})
    versions = dict(start.checkpoint["channel_versions"])
    versions |= {key: saver.get_next_version(versions.get(key), None) for key in edits}
    checkpoint = {**start.checkpoint, "channel_values": {**start.checkpoint["channel_values"], **edits}, "channel_versions": versions}
    await saver.aput(place_of(thread), checkpoint, {**start.metadata, "source": "fork", "run_id": run_id}, versions)
    return await graph.aget_state(place_of(thread))
