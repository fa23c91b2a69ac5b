"""The trace of a run in LangSmith: one tree of runs under readable names, with tags, usage and cost, and its verdicts as feedback."""

import contextlib
import hashlib
import logging
import os
import sys
import threading
import uuid
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from orchestrator.spans import Span, Tracer
from orchestrator.text import counted
from orchestrator.tracing.redaction import Redactor
from orchestrator.tracing.sharing import Shared

if TYPE_CHECKING:
    from orchestrator.tracing.sending import Destination, Operation, Sender

__all__ = ["SWITCHES", "Facts", "LangSmithTrace", "is_on", "operation_of", "run_around", "scores_of", "shared_sender", "span_uuid"]

SWITCHES = (
    "LANGSMITH_TRACING",
    "LANGSMITH_TRACING_V2",
    "LANGCHAIN_TRACING",
    "LANGCHAIN_TRACING_V2",
)  # each is on for exactly the word `true`

_TYPES = {"model": "llm", "tool": "tool", "retriever": "retriever"}
_FLUSH = 3.0  # seconds that the end of a run gives what is still to be sent, where LangSmith has answered so far
_FLUSH_AFTER_FAILURE = 0.5
_URL_WAIT = 1.0


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What every span of an attempt is told with. `thread_id` groups the attempts of a run, and the runs of a conversation."""

    run_id: str
    workflow: str
    thread_id: str
    attempt: int = 1
    fingerprint: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    project: str | None = None
    tags: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    parent: Any = None  # LangSmith's run around, where the run was started inside one


run_around: "ContextVar[tuple[Tracer, LangSmithTrace] | None]" = ContextVar("run_around", default=None)
"""The run of ours that this code runs in, where it is sent to LangSmith: a run that a node or a tool of it starts is a part of it."""


def is_on() -> bool:
    """Whether LangSmith's own variables, or the `tracing_context` around, ask for traces."""
    if run_around.get() is not None:
        return True
    if "langsmith" in sys.modules:
        from langsmith.run_helpers import get_tracing_context

        context = get_tracing_context()
        if context["enabled"] is not None:
            return context["enabled"] is True
        if context["parent"] is not None:
            return True
    return "true" in {os.environ.get(name) for name in SWITCHES}


_log = logging.getLogger("orchestrator")


def shared_sender(redactor: Redactor) -> "contextlib.AbstractContextManager[Sender]":
    """The sender of the process, shared by all who trace at the same time. The last of them waits, within bounds, for what is still to
    be sent; what did not arrive is one line of the log. Enter and leave it in a thread.
    """
    from orchestrator.tracing.sending import Sender

    return _senders.use(redactor.content, lambda: Sender(redactor))


def _close(sender: "Sender") -> None:
    sender.flush(_FLUSH if sender.works else _FLUSH_AFTER_FAILURE)
    if lost := sender.close():
        cause = sender.cause or f"it took longer than {_FLUSH:g} s"
        _log.warning("a part of the trace did not reach LangSmith (%s): %s", counted(lost, "span"), cause)


_senders: "Shared[Sender]" = Shared(_close)


class LangSmithTrace:
    """The spans of one attempt on their way to LangSmith; `origins`: by what numbers and times their ids go, if not their own."""

    takes_content = True

    def __init__(self, sender: "Sender", facts: Facts, origins: Mapping[int, tuple[int, float]] | None = None) -> None:
        self._sender = sender
        self._facts = facts
        self._origins = origins or {}
        self._lock = threading.Lock()
        self._waiting: set[int] = set()  # spans that the sender has, and has not looked at yet
        self._posted: set[int] = set()
        self._open: dict[int, tuple[uuid.UUID, str]] = {}  # LangSmith's id and dotted order of spans that others may stand in
        self._root: Span | None = None
        self._is_sampled = True
        self._url: str | None = None
        self._url_known = threading.Event()

    @property
    def client(self) -> "Destination":
        """LangSmith's client, whose runs go the same way."""
        return self._sender.client

    def place(self, span: Span) -> dict[str, Any]:
        """Where a span stands, in LangSmith's terms."""
        return {**self._identity(span), "session_name": self._project()}

    def began(self, span: Span) -> None:
        """A span that begins is sent, too, where it does not end at once."""
        if span.parent is not None:
            self._put(span)
            return
        self._root, place = span, self.place(span)
        self._is_sampled = self._sender.client.samples(place["trace_id"])
        self._url = self._sender.known_url(place["session_name"], place["id"]) if self._is_sampled else None
        self._put(span, now=self._url is None)
        if self._url is None and self._is_sampled:
            self._sender.also(self._ask_url)
        else:
            self._url_known.set()

    def sent(self, span: Span) -> None:
        """It is told at its end."""

    def ended(self, span: Span) -> None:
        """A span in its last state."""
        self._put(span)

    def _put(self, span: Span, *, now: bool = False) -> None:
        if not self._is_sampled:
            return
        with self._lock:
            if span.id in self._waiting:
                return
            self._waiting.add(span.id)
        self._sender.put(lambda: self._operation(span), now=now)

    def _ask_url(self) -> None:
        if self._root is not None:
            self._url = self._sender.url_of(self.place(self._root) | {"name": self._root.name})
        self._url_known.set()

    def url(self) -> str | None:
        """Where the run can be looked at; waits a moment for LangSmith to say it. Call it in a thread."""
        if self._sender.works:
            self._url_known.wait(_URL_WAIT)
        return self._url

    def verdicts(self, scores: Mapping[str, float | int]) -> None:
        """Send what the run came to as feedback on it."""
        root = self._root
        if root is not None and scores and self._is_sampled:
            self._sender.also(lambda: self._sender.feedback(self.place(root), scores))

    def _project(self) -> str:
        from langsmith.utils import get_tracer_project

        return self._facts.project or get_tracer_project() or "default"

    def _operation(self, span: Span) -> "Operation":
        """A span as LangSmith takes it: whole where it is sent for the first time, else what its end has brought."""
        with self._lock:
            self._waiting.discard(span.id)
            is_new = span.id not in self._posted
            self._posted.add(span.id)
        place = self.place(span)
        if span.ended is not None:  # so have all that are inside, and none of them is looked at later
            self._open.pop(span.id, None)
        return operation_of(span, self._facts, self._sender.redactor, place, is_new=is_new)

    def _identity(self, span: Span) -> dict[str, Any]:
        """Where a span stands in the tree, in LangSmith's terms."""
        around, root = self._facts.parent, self._root or span
        span_id, order = self._known(span)
        trace_id = around.trace_id if around is not None else self._known(root)[0]
        parent_id = self._known(span.parent)[0] if span.parent is not None else around.id if around is not None else None
        found = {"id": span_id, "trace_id": trace_id, "dotted_order": order, "start_time": _at(span.began)}
        return found if parent_id is None else {**found, "parent_run_id": parent_id}

    def _known(self, span: Span) -> tuple[uuid.UUID, str]:
        """A span's id and dotted order."""
        found = self._open.get(span.id)
        if found is None:
            number, began = self._origins.get(span.id, (span.id, span.began))
            own = span_uuid(self._facts.run_id, self._facts.attempt, number, began)
            above: str = self._known(span.parent)[1] if span.parent is not None else getattr(self._facts.parent, "dotted_order", "")
            order = f"{_at(span.began):%Y%m%dT%H%M%S%fZ}{own}"
            found = own, f"{above}.{order}" if above else order
            if span.kind not in ("model", "tool"):
                self._open[span.id] = found
        return found


def _at(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def span_uuid(run_id: str, attempt: int, number: int, began: float) -> uuid.UUID:
    """LangSmith's id of a span: a UUID of version 7 (RFC 9562), the same whenever the span is sent."""
    digest = hashlib.blake2b(f"{run_id} {attempt} {number}".encode(), digest_size=10).digest()
    value = int(began * 1000).to_bytes(6) + digest
    bits = int.from_bytes(value) & ~(0xF << 76) & ~(0x3 << 62)
    return uuid.UUID(int=bits | 0x7 << 76 | 0x2 << 62)


def operation_of(span: Span, facts: Facts, redactor: Redactor, place: Mapping[str, Any], *, is_new: bool = True) -> "Operation":
    """A span as LangSmith's ingestion takes it, keys and all; `place` is where it stands there."""
    told: dict[str, Any] = {
        "name": redactor.name(span.name, span.kind),
        "tags": _tags(span, facts),
        "extra": {"metadata": _metadata(span, facts)},
    }
    if is_new:
        told["inputs"] = _inputs(span, redactor)
    if span.ended is not None:
        told |= {"outputs": _outputs(span, redactor), "error": redactor.error(span.error, span.state)}
    operation: Operation = {**place, **told, "run_type": _TYPES.get(span.kind, "chain")}
    if not is_new:
        operation["patch"] = True
    if span.ended is not None:
        operation["end_time"] = _at(span.ended)
    if span.first is not None:
        operation["events"] = [{"name": "new_token", "time": _at(span.first).isoformat()}]
    return operation


def _tags(span: Span, facts: Facts) -> list[str]:
    tags = [f"workflow:{facts.workflow}", *facts.tags]
    tags += [f"{name}:{value}" for name, value in (("role", span.role), ("model", span.model)) if value]
    return [*tags, span.state] if span.state in ("cancelled", "recalled", "waiting") else tags


def _metadata(span: Span, facts: Facts) -> dict[str, Any]:
    known: dict[str, Any] = {
        **facts.metadata,
        "run_id": facts.run_id,
        "workflow": facts.workflow,
        "thread_id": facts.thread_id,
        "attempt": span.attempt if span.parent is not None else facts.attempt,
        "task_id": span.branch,
        "role": span.role,
    }
    if span.parent is None:
        from langsmith.env import get_langchain_env_var_metadata

        known |= {"revision_id": get_langchain_env_var_metadata().get("revision_id")}
        known |= {"fingerprint": facts.fingerprint, "versions": dict(facts.versions)}
    if span.kind == "model":
        known |= {"ls_model_type": "chat", "ls_model_name": span.model, "ls_provider": span.provider, "usage_metadata": _usage(span)}
    if span.sent is not None:
        known["waited_seconds"] = round(span.sent - span.began, 4)
    if span.notes:
        known["notes"] = [text for _, text in span.notes]
    return {name: value for name, value in known.items() if value not in (None, "")}


def _usage(span: Span) -> dict[str, Any] | None:
    """Tokens and US dollars of a model call, as LangSmith counts them; none of one that was not made."""
    if span.state == "recalled" or span.ended is None:
        return None
    from orchestrator.usage.prices import prices

    given, written = span.usage
    told: dict[str, Any] = {"input_tokens": given, "output_tokens": written, "total_tokens": given + written}
    costs = prices(span.model, given, written)
    if costs is not None:
        told |= {"input_cost": costs[0], "output_cost": costs[1], "total_cost": costs[0] + costs[1]}
    return told


def _inputs(span: Span, redactor: Redactor) -> dict[str, Any]:
    given = span.given
    return redactor.body({"messages": given} if span.kind == "model" and isinstance(given, list | tuple) else given)


def _outputs(span: Span, redactor: Redactor) -> dict[str, Any]:
    return redactor.body({"messages": [span.came]} if span.kind == "model" and span.came is not None else span.came)


def scores_of(result: Mapping[str, Any]) -> dict[str, float | int]:
    """What LangSmith charts of a run: the share of claims that their quotes support, the gaps, and the branches that were lost."""
    output, branches = result.get("output") or {}, result.get("branches") or ()
    if not isinstance(output.get("findings"), list) or not isinstance(output.get("gaps"), list):
        return {}
    supported, rejected = len(output["findings"]), sum(len(branch.get("rejected") or ()) for branch in branches)
    share = {"supported_share": round(supported / (supported + rejected), 4)} if supported + rejected else {}
    lost = sum(branch.get("status") not in ("ok", "skipped") for branch in branches)
    return {**share, "gaps": len(output["gaps"]), "lost_branches": lost}
