"""Conversations: `--thread NAME` continues one over runs, which share LangGraph's thread."""

import re
from typing import Any

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph.state import CompiledStateGraph

from orchestrator.driving import Attempt
from orchestrator.errors import InputError
from orchestrator.graphs.supervisor import AFRESH, SupervisorState
from orchestrator.text import one_line

__all__ = ["begin_turn", "check_thread_name"]

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


def check_thread_name(name: str | None) -> None:
    """Raises InputError where `name` names no conversation."""
    if name is not None and not _NAME.fullmatch(name):
        raise InputError(
            f"{one_line(name, 80)!r} is no name of a conversation", remedy="use 1 to 64 letters, digits, '_' and '-' for --thread"
        )


async def begin_turn(attempt: Attempt) -> None:
    """Before a run begins, or begins once more, in a conversation: what it has left there itself goes.

    Of the run before it the supervisor's state goes too, but for its turn. A graph of another kind begins with the state that the
    conversation has, as LangGraph's threads do.
    """
    graph: CompiledStateGraph[Any, Any, Any, Any] = attempt.graph
    if isinstance(graph.checkpointer, BaseCheckpointSaver):
        await graph.checkpointer.adelete_for_runs([attempt.run_id])
    if graph.builder.state_schema is not SupervisorState:
        return
    config: Any = {"configurable": {"thread_id": attempt.thread}}  # without the run's id: LangGraph would go on with that run
    if (await graph.aget_state(config)).created_at:
        await graph.aupdate_state(config, dict(AFRESH), as_node="write")
