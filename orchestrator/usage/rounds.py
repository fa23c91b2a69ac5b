"""How often agents go round."""

import asyncio
from collections import defaultdict
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

__all__ = ["Rounds"]


class Rounds:
    """Counts the calls of agents so that a loop shows, and a fan-out does not: what runs side by side is not added up."""

    def __init__(self) -> None:
        self._steps: dict[tuple[str, str, str], set[int]] = defaultdict(set)
        self._calls: dict[tuple[str, str], int] = defaultdict(int)
        self._tasks: WeakKeyDictionary[asyncio.Task[Any], dict[str, int]] = WeakKeyDictionary()

    def count(self, what: str, metadata: Mapping[str, Any] | None = None) -> int:
        """Count a call of `what`, and tell how many the agent has made.

        In a graph, whose metadata is LangGraph's, these are the calls of the node's task and the earlier supersteps in which the
        node made any; outside those of the asyncio task.
        """
        known = _metadata() if metadata is None else metadata
        step = known.get("langgraph_step")
        if not isinstance(step, int):
            return self._count_task(what)
        place = str(known.get("langgraph_checkpoint_ns", ""))
        steps = self._steps[place.rpartition("|")[0], str(known.get("langgraph_node")), what]
        steps.add(step)
        self._calls[place, what] += 1
        return self._calls[place, what] + sum(earlier < step for earlier in steps)

    def _count_task(self, what: str) -> int:
        task = asyncio.current_task()
        if task is None:
            return 1
        counts = self._tasks.setdefault(task, {})
        counts[what] = counts.get(what, 0) + 1
        return counts[what]


def _metadata() -> Mapping[str, Any]:
    """What LangGraph says of the node that this code runs in."""
    from langchain_core.runnables.config import var_child_runnable_config

    return (var_child_runnable_config.get() or {}).get("metadata") or {}
