"""Events: what happens in a run, told once. The terminal, JSON lines, streams and pages all read these."""

import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["RUN_ID", "Event", "EventKind", "current_branch", "in_branch", "listening", "new_run_id", "overhearing", "tell"]

EventKind = Literal[
    "run_started",  # workflow, model, reason, notes, attempt, limits: those set on the whole run, by name, used: by earlier attempts
    "documents",  # read, skipped: [{uri, reason}], passages, where they are indexed
    "plan",  # tasks: [{id, question}], round, merged: [{question, into}], noun: what a task is, where it is no question
    "branch_started",  # question
    "branch_step",  # step: "read" | "map" | "search" | "research" | "tools" | "verify" | "repair", detail
    "branch_finished",  # status, error, gap, findings, attempts, seconds, note: what it was about, where it was no question
    "verdict",  # claim, label, reason
    "step_started",  # node
    "step_finished",  # node, error
    "model_started",  # model
    "model_finished",  # model, input_tokens, output_tokens, seconds, error
    "token",  # text: a piece of an answer that is streamed; may be dropped where the consumer is slow
    "throttled",  # host, seconds that everybody waits, in_flight: how many calls may be in flight from now on
    "retry",  # attempt (the one that failed), seconds until the next, error
    "fallback",  # model that failed, next, error
    "shared",  # model: an identical call was in flight, and this one got its answer
    "recalled",  # model, or tool, row: what an earlier attempt was answered is given again, and nothing is called
    "tool_started",  # tool, input
    "tool_finished",  # tool, error
    "question",  # name, asks: "clarify" | "plan" | "tools" | "custom", text, detail, choices, takes: the run or a branch waits for it
    "asking",  # questions: their names; a person at the terminal is asked now, so nobody else should write there
    "answered",  # questions: the names of those that were answered
    "listening",  # patience: a microphone is open, and so many seconds of silence end the conversation
    "heard",  # text, seconds: what somebody said, written down; text is "" where no word was understood
    "saying",  # number, text: the sentence of an answer that is made into sound now
    "audio",  # number, seconds: the sound of that sentence, which begins now
    "spoken",  # sentences, seconds, file: an answer was spoken to its end; file is "" for the loudspeaker
    "interrupted",  # said: sentences of the answer that were begun when somebody spoke
    "report",  # markdown characters, findings, gaps
    "custom",  # data: what a node wrote to LangGraph's stream; may be dropped where the consumer is slow
    "dropped",  # count: of token and custom events that a slow consumer was spared
    "log",  # level, message
    "result",  # the whole result of the run; always the last event
]


RUN_ID = re.compile(r"[A-Za-z0-9_.-]{1,128}")


def new_run_id() -> str:
    """The time to the second and five random bytes: `20261120-215609-03d3045e1f`. With three, one of thirty times that 1,000 runs began in
    one second two of them drew the same (n²/2 of 2^24)."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(5)}"


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


_listener: ContextVar[Callable[[Event], None] | None] = ContextVar("listener", default=None)
_branch: ContextVar[str | None] = ContextVar("branch", default=None)


@contextmanager
def listening(listener: Callable[[Event], None]) -> Iterator[None]:
    """Every event told inside, in every task started inside, goes to `listener`."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


@contextmanager
def overhearing(listener: Callable[[Event], None]) -> Iterator[None]:
    """Every event told inside, in every task started inside, goes to `listener` before it goes where it would go anyway."""
    outer = _listener.get()

    def both(event: Event) -> None:
        listener(event)
        _deliver(event, outer)

    with listening(both):
        yield


@contextmanager
def in_branch(task_id: str) -> Iterator[None]:
    """Every event told inside belongs to the branch of this task."""
    token = _branch.set(task_id)
    try:
        yield
    finally:
        _branch.reset(token)


def current_branch() -> str | None:
    """The task id of the branch that this code runs in."""
    return _branch.get()


def tell(kind: EventKind, *, branch: str | None = None, role: str | None = None, **fields: Any) -> None:
    """Tell an event to the run's listener; without one to LangGraph's custom stream, and outside a graph to nobody."""
    _deliver(Event(kind, fields, branch or _branch.get(), role), _listener.get())


def _deliver(event: Event, listener: Callable[[Event], None] | None) -> None:
    if listener is not None:
        listener(event)
        return
    from langgraph.config import get_stream_writer

    try:
        write = get_stream_writer()
    except (RuntimeError, KeyError):  # not inside a graph: nothing at all is set, or only a tool's own config
        return
    write(event)
