"""The tree of what a run does, as it does it: spans of rounds, branches, agents, steps and calls, told to whoever keeps or sends them."""

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Protocol
from uuid import UUID

from orchestrator.errors import said
from orchestrator.events import Event, current_branch
from orchestrator.state import Task
from orchestrator.text import one_line

__all__ = ["HIDDEN", "Sink", "Span", "SpanKind", "SpanState", "Tracer", "shown_as", "told_of"]

SpanKind = Literal["run", "round", "branch", "agent", "node", "retriever", "documents", "model", "tool", "chain"]
SpanState = Literal["running", "ok", "failed", "cancelled", "recalled", "waiting"]

HIDDEN = "hidden"
"""What a node of a graph is shown as that is no step of its own to a person: what happens in it belongs to the step around it."""

_ENDED: Mapping[str, SpanState] = {"ok": "ok", "skipped": "cancelled"}  # a branch's status; the others are failures
_LONGEST_NAME = 120


def shown_as(metadata: Mapping[str, Any], node: str) -> Sequence[str]:
    """How a node of a LangGraph graph is shown: HIDDEN, or its kind, and its name where that is another.

    Its graph says so in the node's metadata, `{"trace": {NODE: "KIND NAME"}}`: LangGraph hands metadata down to the graphs inside.
    """
    return str(told_of(metadata).get(node, "node")).split()


def told_of(metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a node's metadata says of how nodes are shown, by their names."""
    told = metadata.get("trace")
    return told if isinstance(told, Mapping) else {}


@dataclass(slots=True, eq=False)
class Span:
    """A part of a run with a beginning and an end. Times are seconds since the epoch; `ended` is None as long as it goes on.

    `sent`: when a call's turn came; `first`: its first token. `attempt`: 2 where it was tried again. `row`: the call in the journal.
    `given` and `came` are what went in and came out, kept only where somebody sends them; `usage`: tokens in and out.
    """

    id: int
    parent: "Span | None"
    kind: SpanKind
    name: str
    began: float
    role: str = ""
    branch: str | None = None
    model: str = ""
    provider: str = ""
    attempt: int = 1
    sent: float | None = None
    first: float | None = None
    ended: float | None = None
    state: SpanState = "running"
    error: str | None = None
    usage: tuple[int, int] = (0, 0)
    row: int | None = None
    notes: list[tuple[float, str]] = field(default_factory=list)
    given: Any = None
    came: Any = None
    under_way: "set[Span]" = field(default_factory=set)  # spans inside that go on


class Sink(Protocol):
    """Who keeps or sends spans. Its methods are called from any thread, return at once, and raise nothing."""

    takes_content: bool
    """Whether it wants `given` and `came` of spans."""

    def began(self, span: Span) -> None:
        """A span has begun."""

    def sent(self, span: Span) -> None:
        """The turn of a span that goes on has come."""

    def ended(self, span: Span) -> None:
        """A span has ended; only its `row` may become known a moment later."""


class Tracer:
    """The spans of one attempt of a run; without sinks nothing is done."""

    def __init__(self, name: str = "", sinks: Sequence[Sink] = (), given: Any = None) -> None:
        self.sinks = tuple(sinks)
        self.takes_content = any(sink.takes_content for sink in self.sinks)
        self._epoch, self._clock = time.time(), time.monotonic()  # the clock of a machine may be set meanwhile
        self._ids = itertools.count()
        self.nodes: dict[str, Span | None] = {}  # by the ids of LangGraph's tasks, while they last; None: not shown
        self._branches: dict[str, Span] = {}
        self._rounds: dict[tuple[str, ...], Span] = {}  # that go on, by the graph that they are of
        self.foreign: dict[UUID, Span] = {}  # by LangChain's ids of runs, where its callbacks are listened to
        self.callbacks: list[Any] | None = None  # LangChain's, that the run's graph is given; None: those around
        self.planned = 0.0  # when the branches of the round that goes on were planned
        self.rounds = 0  # that earlier attempts of the run have finished
        self._counted: dict[tuple[int, str], int] = {}
        self.root = self.begin("run", name, parent=None, given=given)

    def now(self) -> float:
        """Seconds since the epoch, to a tenth of a millisecond: as they are stored, so that ids and orders are the same later."""
        return int((self._epoch + time.monotonic() - self._clock) * 10_000 + 0.5) / 10_000

    def begin(self, kind: SpanKind, name: str, *, parent: Span | None, given: Any = None, began: float | None = None, **known: Any) -> Span:
        """A span that begins now, or has waited since `began`; `known` are further fields of it."""
        span = Span(next(self._ids), parent, kind, name, self.now() if began is None else began, **known)
        if not self.sinks:
            return span
        if self.takes_content or kind == "node":
            span.given = given
        around = parent
        while around is not None and around.ended is not None and around.parent is not None:  # left behind by a step that has ended
            around = around.parent
        if around is not None:
            around.under_way.add(span)
        for sink in self.sinks:
            sink.began(span)
        return span

    def end(self, span: Span, state: SpanState = "ok", error: str | None = None, came: Any = None) -> None:
        """A span is over, and with it what still goes on inside; one that is over already stays as it is."""
        if span.ended is not None:
            return
        if span.under_way:
            for inside in list(span.under_way):
                self.end(inside, "cancelled")
        around = span.parent
        while around is not None and span not in around.under_way:
            around = around.parent
        if around is not None:
            around.under_way.discard(span)
        if not (state == "ok" and span.state == "recalled"):
            span.state = state
        span.ended, span.error = self.now(), error
        if came is not None and (self.takes_content or span.kind == "node"):
            span.came = came
        for sink in self.sinks:
            sink.ended(span)

    def sent(self, span: Span) -> None:
        """The turn of a span has come: until now it has waited."""
        span.sent = self.now()
        for sink in self.sinks:
            sink.sent(span)

    def span(
        self, kind: SpanKind, name: str, *, parent: Span | None = None, given: Any = None, holds: bool = True, **known: Any
    ) -> AbstractContextManager[Span]:
        """A span around what is inside, under `parent` or the one around this code; what is raised is its error.

        Unless it `holds` what is begun inside, as whoever reads a stream is no part of it, that stands beside it.
        """
        return _Held(self, self.begin(kind, name, parent=parent or self.here(), given=given, **known), holds)

    def is_inside(self) -> bool:
        """Whether this code runs in a span that it was begun around, and not only in a node of LangGraph's."""
        inside = _inside.get()
        return inside is not None and inside[0] is self and inside[1].ended is None

    def here(self) -> Span:
        """The span that this code runs in: of a call around it, else of the graph's node."""
        if not self.sinks:
            return self.root
        inside = _inside.get()
        if inside is not None and self.is_inside():
            return inside[1]
        metadata = _metadata()
        return self.at(_place(metadata), metadata)

    @contextmanager
    def branch(self, task: Task) -> Iterator[Span]:
        """The span of a branch, around its work in the node that it runs in; it has waited since it was planned."""
        path = _place(_metadata())
        *around, node = path
        parent = self._round(tuple(around), self._around(around), begins=False)
        named = task.id if task.id.endswith(task.question) else f"{task.id.removeprefix('t')}: {task.question}"
        name = one_line(f"branch {named}", _LONGEST_NAME)
        began = min(self.now(), max(parent.began, self.planned))
        with self.span("branch", name, parent=parent, given={"task": task}, began=began, branch=task.id) as span:
            self.nodes[node.partition(":")[2]] = span  # for LangGraph's own tasks inside
            self._branches[task.id] = span
            try:
                yield span
            finally:
                del self._branches[task.id]

    def at(self, path: Sequence[str], metadata: Mapping[str, Any]) -> Span:
        """The span of the innermost node of `path`; nodes inside that the stream has not told yet begin here."""
        span = self.root
        for place, part in enumerate(path):
            name, _, task = part.partition(":")
            if task in self.nodes:
                span = self.nodes[task] or span
            elif task and place and (place + 1 < len(path) or shown_as(metadata, name)[0] != HIDDEN):
                span = self.nodes[task] = self.begin("node", name, parent=span, branch=span.branch)
        return self._branches.get(current_branch() or "", span) if span is self.root else span

    def step(self, path: Sequence[str], task: Mapping[str, Any]) -> None:
        """A task of LangGraph's `tasks` stream, of the graph at `path`, has begun or ended."""
        if not self.sinks:
            return
        if "result" not in task:
            self._step_began(tuple(path), task)
            return
        span = self.nodes.pop(task["id"], None)
        if span is None or span.kind == "branch":
            return
        error = str(task["error"]) if task["error"] else None
        self.end(span, "waiting" if task["interrupts"] else "failed" if error else "ok", error, came=task["result"])

    def _step_began(self, path: tuple[str, ...], task: Mapping[str, Any]) -> None:
        metadata = task.get("metadata") or {}
        kind, *named = shown_as(metadata, task["name"])
        parent = self._around(path)
        if kind == HIDDEN:
            self.nodes[task["id"]] = None
            return
        if "round" in named:
            named.remove("round")
            parent = self._round(path, parent, begins=kind == "agent")
        else:
            self._end_round(path)
        if kind == "branch":  # or several, which begin one by one
            self.nodes.setdefault(task["id"], None)
            return
        known: dict[str, Any] = {"branch": parent.branch}
        name = named[0] if named else task["name"]
        if kind == "agent":
            known |= {"role": name, "attempt": self.count(parent, name)}
        span = self.nodes.get(task["id"])
        if span is None:
            span = self.begin(kind, name, parent=parent, given=task.get("input"), **known)  # type: ignore[arg-type]
            self.nodes[task["id"]] = span
        else:  # a call in it was quicker than its own beginning
            span.kind, span.name, span.given = kind, name, task.get("input")  # type: ignore[assignment]
            span.role, span.branch, span.attempt = known.get("role", ""), known["branch"], known.get("attempt", 1)

    def _around(self, path: Sequence[str]) -> Span:
        """The span of the node that a graph inside runs in."""
        nodes = (self.nodes.get(part.partition(":")[2]) for part in reversed(path))
        return next((span for span in nodes if span is not None), self.root)

    def _round(self, path: tuple[str, ...], parent: Span, *, begins: bool) -> Span:
        """The round of the graph at `path` that goes on; the next one where one `begins`, and where none does."""
        if begins:
            self._end_round(path)
        if path not in self._rounds:
            number = self.rounds + self.count(parent, "round")
            self._rounds[path] = self.begin("round", f"round {number}", parent=parent)
        return self._rounds[path]

    def _end_round(self, path: tuple[str, ...]) -> None:
        span = self._rounds.pop(path, None)
        if span is not None:
            self.end(span)

    def count(self, parent: Span, name: str) -> int:
        """How often something of this name began in a span, this time included."""
        key = (parent.id, name)
        self._counted[key] = self._counted.get(key, 0) + 1
        return self._counted[key]

    def told(self, event: Event) -> None:
        """Take in an event of the run, in the context of whoever tells it."""
        take = _TAKES.get(event.kind)
        if take is not None and self.sinks:
            take(self, event)

    def note(self, text: str) -> None:
        """Something that happened in the span around this code."""
        self.here().notes.append((self.now(), text))

    def close(self, state: SpanState, error: str | None = None, came: Any = None) -> None:
        """The attempt is over."""
        self.end(self.root, state, error, came)


class _Held(AbstractContextManager[Span]):
    """A span until the end of a block."""

    __slots__ = ("_span", "_token", "_tracer")

    def __init__(self, tracer: Tracer, span: Span, holds: bool) -> None:
        self._tracer, self._span = tracer, span
        self._token = _inside.set((tracer, span)) if holds else None

    def __enter__(self) -> Span:
        return self._span

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._token is not None:
            _inside.reset(self._token)
        if isinstance(error, Exception):
            paused = type(error).__name__ == "GraphInterrupt"  # a person is asked
            self._tracer.end(self._span, "waiting" if paused else "failed", None if paused else said(error))
        else:
            self._tracer.end(self._span, "ok" if error is None else "cancelled")


_inside: ContextVar[tuple[Tracer, Span] | None] = ContextVar("inside", default=None)  # a run in a tool of another one has its own


def _metadata() -> Mapping[str, Any]:
    """What LangGraph says of the node that this code runs in."""
    from langchain_core.runnables.config import var_child_runnable_config

    return (var_child_runnable_config.get() or {}).get("metadata") or {}


def _place(metadata: Mapping[str, Any]) -> list[str]:
    """The nodes and tasks around, the outermost first."""
    return str(metadata.get("langgraph_checkpoint_ns") or "").split("|")


def _planned(tracer: Tracer, event: Event) -> None:
    tracer.planned = tracer.now()


def _branch_started(tracer: Tracer, event: Event) -> None:
    """It may have waited until then, as only so many are under way at once."""
    span = tracer._branches.get(event.branch or "")
    if span is not None and span.sent is None:
        tracer.sent(span)


def _branch_finished(tracer: Tracer, event: Event) -> None:
    """A branch that fails says so as data: its node ends well."""
    span = tracer._branches.get(event.branch or "")
    status = str(event.fields.get("status", ""))
    if span is not None and status != "ok":
        state = _ENDED.get(status, "failed")
        tracer.end(span, state, f"{status}: {event.fields.get('error') or event.fields.get('gap') or status}")


def _recalled(tracer: Tracer, event: Event) -> None:
    """A call that an earlier attempt was answered: it is given again, and nothing is used."""
    fields, here = event.fields, tracer.here()
    if here.kind == "tool":  # which asked the journal first
        here.state, here.row = "recalled", fields.get("row")
        return
    is_tool = "tool" in fields
    name = fields.get("tool") or f"{event.role or 'model'} model"
    known: dict[str, Any] = {"role": event.role or "", "branch": event.branch, "model": fields.get("model") or "", "row": fields.get("row")}
    span = tracer.begin("tool" if is_tool else "model", name, parent=here, **known)
    tracer.end(span, "recalled")


def _noted(words: Callable[[Mapping[str, Any]], str]) -> Callable[[Tracer, Event], None]:
    return lambda tracer, event: tracer.note(one_line(words(event.fields), 300))


_TAKES: dict[str, Callable[[Tracer, Event], None]] = {
    "plan": _planned,
    "branch_started": _branch_started,
    "branch_finished": _branch_finished,
    "recalled": _recalled,
    "retry": _noted(lambda told: f"attempt {told['attempt']} failed, again in {told['seconds']:.1f} s: {told['error']}"),
    "fallback": _noted(lambda told: f"{told['model']} failed, asking {told['next']} instead: {told['error']}"),
    "shared": _noted(lambda told: f"an identical call of {told['model']} was in flight: this is its answer, too"),
    "throttled": _noted(lambda told: f"the endpoint asks for fewer requests: everyone waits {told['seconds']:.3g} s"),
    "question": _noted(lambda told: f"a person is asked: {told['text']}"),
    "verdict": _noted(lambda told: f"{told['label']}: {told['claim']}"),
}
