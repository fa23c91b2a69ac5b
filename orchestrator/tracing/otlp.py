"""Spans for an OpenTelemetry collector: `gen_ai.*` attributes, as OpenTelemetry's semantic conventions for generative AI have them."""

import contextlib
import json
import logging
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.errors import InputError
from orchestrator.spans import Span
from orchestrator.text import counted
from orchestrator.tracing.langsmith import Facts
from orchestrator.tracing.redaction import Redactor
from orchestrator.tracing.sharing import Shared

if TYPE_CHECKING:
    pass

__all__ = ["Collector", "OtlpTrace", "check_packages", "shared_collector"]

_TIMEOUT = 5  # seconds of one export
_FLUSH = 3.0  # seconds that the last run gives what is still to be sent
_NANO = 1_000_000_000
_OPERATIONS = {"model": "chat", "tool": "execute_tool", "agent": "invoke_agent", "run": "invoke_workflow", "retriever": "retrieval"}
_log = logging.getLogger("orchestrator")


def check_packages() -> None:
    """Raises InputError where OpenTelemetry is not installed: nothing is sent anywhere else then."""
    try:
        import opentelemetry.exporter.otlp.proto.http.trace_exporter
        import opentelemetry.sdk.trace  # noqa: F401
    except ImportError as error:
        raise InputError(
            "OpenTelemetry is asked for, and its packages are not installed",
            where=f"{error}; asked for by --trace-otlp, ORCHESTRATOR_TRACE_OTLP or LANGSMITH_OTEL_ENABLED",
            remedy='pip install "orchestrator[otlp]"',
        ) from error


class Collector:
    """The road to the collector that OpenTelemetry's own variables name (OTEL_EXPORTER_OTLP_ENDPOINT, by default port 4318 here)."""

    def __init__(self, redactor: Redactor) -> None:
        check_packages()
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

        self.redactor = redactor
        self.lost = 0
        self.waiting = 0
        collector, inner = self, OTLPSpanExporter(timeout=_TIMEOUT)

        class Counting(SpanExporter):
            def export(self, spans: Sequence[Any]) -> SpanExportResult:
                try:
                    result = inner.export(spans)
                except Exception:  # noqa: BLE001 - whatever it is, the run goes on
                    result = SpanExportResult.FAILURE
                collector.waiting -= len(spans)
                collector.lost += 0 if result is SpanExportResult.SUCCESS else len(spans)
                return result

            def shutdown(self) -> None:
                inner.shutdown()  # type: ignore[no-untyped-call]

        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # what goes wrong is told once, at the end
        self.provider: TracerProvider = TracerProvider(resource=Resource.create({"service.name": "orchestrator"}), shutdown_on_exit=False)
        self.provider.add_span_processor(BatchSpanProcessor(Counting(), schedule_delay_millis=1000))

    def close(self) -> int:
        """Send what is left, within bounds; how many spans were lost."""
        ending = threading.Thread(target=self.provider.shutdown, name="orchestrator otlp", daemon=True)
        ending.start()
        ending.join(_FLUSH)
        return self.lost + (self.waiting if ending.is_alive() else 0)


def shared_collector(redactor: Redactor) -> contextlib.AbstractContextManager[Collector]:
    """The collector of the process, shared by all who trace at the same time; enter and leave it in a thread. Raises InputError."""
    return _collectors.use(redactor.content, lambda: Collector(redactor))


def _close(collector: Collector) -> None:
    if lost := collector.close():
        _log.warning("a part of the trace did not reach the OpenTelemetry collector (%s)", counted(lost, "span"))


_collectors: Shared[Collector] = Shared(_close)


class OtlpTrace:
    """The spans of one attempt on their way to the collector; each is sent when it has ended."""

    takes_content = True

    def __init__(self, collector: Collector, facts: Facts) -> None:
        self._collector = collector
        self._facts = facts
        self._tracer = collector.provider.get_tracer("orchestrator", str(facts.versions.get("orchestrator", "")))
        self._made: dict[int, Any] = {}

    def began(self, span: Span) -> None:
        """OpenTelemetry's span is made when ours begins: those inside name it as their parent."""
        from opentelemetry import trace

        parent = None if span.parent is None else self._made.get(span.parent.id)
        context = trace.set_span_in_context(parent) if parent is not None else None
        kind = trace.SpanKind.CLIENT if span.kind == "model" else trace.SpanKind.INTERNAL
        self._collector.waiting += 1
        self._made[span.id] = self._tracer.start_span(self._name(span), context, kind=kind, start_time=int(span.began * _NANO))

    def sent(self, span: Span) -> None:
        """It is told at its end."""

    def ended(self, span: Span) -> None:
        """A span is over."""
        from opentelemetry.trace import Status, StatusCode

        made = self._made.pop(span.id, None)
        if made is None:
            return
        redactor = self._collector.redactor
        made.update_name(self._name(span))
        told = redactor.clean(dict(self._attributes(span)))
        made.set_attributes({name: value for name, value in told.items() if value not in (None, "")})
        error = redactor.error(span.error or span.state, span.state)
        if error is not None:
            made.set_status(Status(StatusCode.ERROR, redactor.text(error)))
            made.set_attribute("error.type", span.state)
        made.end(end_time=int((span.ended or span.began) * _NANO))

    def _name(self, span: Span) -> str:
        redactor = self._collector.redactor
        named = {"model": f"chat {span.model}", "tool": f"execute_tool {span.name}", "agent": f"invoke_agent {span.name}"}
        return redactor.text(named.get(span.kind) or redactor.name(span.name, span.kind))

    def _attributes(self, span: Span) -> Mapping[str, Any]:
        facts, redactor = self._facts, self._collector.redactor
        told: dict[str, Any] = {
            "gen_ai.operation.name": _OPERATIONS.get(span.kind),
            "gen_ai.conversation.id": facts.thread_id,
            "gen_ai.agent.name": span.role,
            "orchestrator.run_id": facts.run_id,
            "orchestrator.workflow": facts.workflow,
            "orchestrator.task_id": span.branch,
            "orchestrator.attempt": span.attempt,
            "orchestrator.state": span.state,
        }
        if span.kind == "model":
            told |= {"gen_ai.provider.name": span.provider, "gen_ai.request.model": span.model}
            if span.state != "recalled":
                told |= {"gen_ai.usage.input_tokens": span.usage[0], "gen_ai.usage.output_tokens": span.usage[1]}
        elif span.kind == "tool":
            told |= {"gen_ai.tool.name": span.name, "gen_ai.tool.type": "function"}
        if span.sent is not None:
            told["orchestrator.waited_seconds"] = round(span.sent - span.began, 4)
        if redactor.content != "none":
            content = redactor.clean(self._content(span))
            told |= {name: json.dumps(value, ensure_ascii=False, default=str) for name, value in content.items() if value}
        return told

    def _content(self, span: Span) -> dict[str, Any]:
        body = self._collector.redactor.body
        if span.kind == "model":
            given, came = body({"messages": span.given}), body({"messages": [span.came] if span.came is not None else []})
            return {"gen_ai.input.messages": _parts(given), "gen_ai.output.messages": _parts(came)}
        if span.kind == "tool":
            return {"gen_ai.tool.call.arguments": body(span.given), "gen_ai.tool.call.result": body(span.came)}
        return {"orchestrator.input": body(span.given), "orchestrator.output": body(span.came)}


def _parts(told: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Messages as the semantic conventions have them."""
    messages = []
    for message in told.get("messages") or ():
        parts: list[dict[str, Any]] = [{"type": "text", "content": message.get("content")}] if message.get("content") else []
        parts += [{"type": "tool_call", "id": call.get("id"), **call["function"]} for call in message.get("tool_calls") or ()]
        messages.append({"role": message.get("role"), "parts": parts})
    return messages
