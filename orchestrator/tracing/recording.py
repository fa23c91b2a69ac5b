"""The trace of an attempt while it lasts: kept in the store, and sent to whom the user wants it sent."""

import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from langgraph.graph.state import CompiledStateGraph

from orchestrator.choices import inner_graphs
from orchestrator.outcome import Result
from orchestrator.spans import SpanState, Tracer
from orchestrator.storage import Fence, RunRecord, Storage
from orchestrator.text import one_line
from orchestrator.tracing.foreign import ForeignTracer, has_foreign_nodes
from orchestrator.tracing.langsmith import Facts, LangSmithTrace, is_on, run_around, scores_of, shared_sender
from orchestrator.tracing.local import LocalTrace
from orchestrator.tracing.otlp import Collector, OtlpTrace, shared_collector
from orchestrator.tracing.redaction import Redactor, content_asked

if TYPE_CHECKING:
    from orchestrator.tracing.sending import Sender

__all__ = ["RunTrace", "open_trace", "traces_sent"]

_STATES: Mapping[str, SpanState] = {"complete": "ok", "partial": "ok", "interrupted": "waiting", "cancelled": "cancelled"}
_log = logging.getLogger("orchestrator")


class RunTrace:
    """The spans of one attempt, and where they go."""

    def __init__(self, name: str, values: Mapping[str, Any], local: LocalTrace, remotes: Sequence[LangSmithTrace | OtlpTrace]) -> None:
        self._local = local
        self._remote = next((remote for remote in remotes if isinstance(remote, LangSmithTrace)), None)
        self.tracer = Tracer(name, [local, *remotes], given=dict(values))

    @contextmanager
    def around(self, graph: CompiledStateGraph[Any, Any, Any, Any]) -> Iterator[None]:
        """Inside, LangChain's own tracer is off: everything would be sent twice, or though nothing is to be. What it would tell of a
        user's own nodes comes into the same tree.
        """
        if not is_on():
            yield
            return
        from langsmith.run_helpers import tracing_context

        remote, graphs = self._remote, [graph, *inner_graphs(graph)]
        context = tracing_context(enabled=False)
        if remote is not None and has_foreign_nodes(graphs):
            self.tracer.callbacks = [ForeignTracer(self.tracer, remote, [str(each.name) for each in graphs])]
            context = tracing_context(enabled=True, client=remote.client)
        token = run_around.set(None if remote is None else (self.tracer, remote))
        try:
            with context:
                yield
        finally:
            run_around.reset(token)

    async def finished(self, result: Result) -> Result:
        """The attempt came to `result`, and says where it can be looked at. What is kept of it is durable before what is stored next."""
        self.tracer.close(_STATES.get(result.status, "failed"), result.error, came=result.output)
        self._local.hand_over()
        if self._remote is None:
            return result
        self._remote.verdicts(scores_of(result.model_dump()))
        url = await asyncio.to_thread(self._remote.url)
        return result.model_copy(update={"trace_url": url}) if url else result

    async def aclose(self) -> None:
        """Say what could not be stored of a run that is; where the store itself failed, that is told anyway."""
        await self._local.aclose()
        if self._local.failed is not None:
            _log.warning("a part of the trace was not stored: %s", one_line(self._local.failed))

    async def broken_off(self, error: BaseException) -> None:
        """The attempt ended without a result."""
        self.tracer.close("failed" if isinstance(error, Exception) else "cancelled", str(error) or type(error).__name__)
        await self._local.aclose()


@asynccontextmanager
async def open_trace(storage: Storage, record: RunRecord, fence: Fence, attempt: int, values: Mapping[str, Any]) -> AsyncIterator[RunTrace]:
    """The trace of an attempt of a run; at its end what LangSmith has not got yet is sent, within bounds."""
    local = LocalTrace(storage.trace, record.number, attempt, fence)
    stack = contextlib.ExitStack()
    roads = await asyncio.to_thread(_opened, stack) if is_on() or _to_collector() else []
    try:
        facts = _facts(record, attempt) if roads else None
        remotes = [OtlpTrace(road, facts) if isinstance(road, Collector) else LangSmithTrace(road, facts) for road in roads if facts]
        yield RunTrace(record.workflow, values, local, remotes)
    finally:
        if roads:
            await asyncio.to_thread(stack.close)


def _opened(stack: contextlib.ExitStack) -> "list[Sender | Collector]":
    """Where spans are sent, as the environment asks; what is opened is left with `stack`. Raises InputError."""
    redactor = _redactor()
    if redactor is None:
        return []
    roads: list[Sender | Collector] = []
    if is_on() and not _truish("LANGSMITH_OTEL_ONLY"):
        roads.append(stack.enter_context(shared_sender(redactor)))
    if _to_collector():
        roads.append(stack.enter_context(shared_collector(redactor)))
    return roads


def _to_collector() -> bool:
    return _truish("ORCHESTRATOR_TRACE_OTLP") or (is_on() and (_truish("LANGSMITH_OTEL_ENABLED") or _truish("LANGSMITH_OTEL_ONLY")))


def _truish(name: str) -> bool:
    return os.environ.get(name, "").strip().lower() in ("true", "1")


@contextmanager
def traces_sent() -> Iterator[None]:
    """What runs inside have to send is waited for at the end of the block, and not at the end of each run."""
    with contextlib.ExitStack() as stack:
        if is_on() or _to_collector():
            _opened(stack)
        yield


def _redactor() -> Redactor | None:
    """What takes keys out; where it cannot be made nothing is sent, and the log says so."""
    try:
        return Redactor(content_asked())
    except Exception as error:  # noqa: BLE001 - whatever is wrong with it, nothing may leave without it
        _log.warning("tracing is off: keys could not be taken out of the trace: %s", one_line(error))
        return None


def _facts(record: RunRecord, attempt: int) -> Facts:
    from langsmith.run_helpers import get_tracing_context

    context, around = get_tracing_context(), run_around.get()
    return Facts(
        run_id=record.run_id,
        workflow=record.workflow,
        thread_id=record.thread or record.run_id,
        attempt=attempt,
        fingerprint=_short(record.fingerprint),
        versions=_versions(),
        project=context["project_name"],
        tags=tuple(context["tags"] or ()),
        metadata=dict(context["metadata"] or {}),
        parent=context["parent"] if around is None else SimpleNamespace(**around[1].place(around[0].here())),
    )


def _short(fingerprint: str) -> str:
    """A fingerprint is kilobytes long: what tells two of them apart."""
    import hashlib

    return hashlib.sha256(fingerprint.encode()).hexdigest()[:16] if fingerprint else ""


@cache
def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in ("orchestrator", "langgraph", "langchain-core", "langchain-openai", "langsmith"):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
