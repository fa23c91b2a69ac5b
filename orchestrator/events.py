"""Events: what happens in a run, told once. The terminal, JSON lines, streams and pages all read these."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["Event", "EventKind", "tell"]

EventKind = Literal[
    "run_started",  # workflow, model, reason, notes
    "documents",  # read, skipped: [{uri, reason}], passages
    "plan",  # tasks: [{id, question}], round
    "branch_started",  # question
    "branch_step",  # step: "search" | "research" | "verify" | "repair", detail
    "branch_finished",  # status, error, findings, attempts, seconds
    "verdict",  # claim, label, reason
    "step_started",  # node
    "step_finished",  # node, error
    "model_started",  # model
    "model_finished",  # model, input_tokens, output_tokens, seconds, error
    "tool_started",  # tool, input
    "tool_finished",  # tool, error
    "report",  # markdown characters, findings, gaps
    "log",  # level, message
    "result",  # the whole result of the run; always the last event
]


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened. `at` is seconds since the epoch; `branch` is a task id, `role` an agent's."""

    kind: EventKind
    fields: Mapping[str, Any] = field(default_factory=dict)
    branch: str | None = None
    role: str | None = None
    at: float = field(default_factory=time.time)

    def to_json(self, run_id: str) -> dict[str, Any]:
        """The event as one flat JSON object."""
        where = {key: value for key, value in (("branch", self.branch), ("role", self.role)) if value is not None}
        return {"event": self.kind, "run_id": run_id, "at": round(self.at, 3), **where, **self.fields}


def tell(kind: EventKind, *, branch: str | None = None, role: str | None = None, **fields: Any) -> None:
    """Write an event to LangGraph's custom stream of the node that is running."""
    from langgraph.config import get_stream_writer

    get_stream_writer()(Event(kind, fields, branch, role))
