"""Spans for an OpenTelemetry collector, received by OTLP over HTTP; without its packages nothing is sent anywhere."""

import gzip
import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from command_line import environ, orchestrator
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

QUESTION = "What limits the depth of a resume?"


@contextmanager
def collector(status: int = 200) -> Iterator[tuple[str, list[Any]]]:
    """A collector's address, and the spans that it has received."""
    spans: list[Any] = []

    class Collecting(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            body = gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body
            if status == 200 and self.path == "/v1/traces":
                told = ExportTraceServiceRequest.FromString(body)
                spans.extend(span for resource in told.resource_spans for scope in resource.scope_spans for span in scope.spans)
            self.send_response(status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Collecting)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", spans
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def research(documents: Path, endpoint: str, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    words = ["research", QUESTION, "--documents", str(documents), "--model", "offline", "--json", *options]
    told = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "LANGSMITH_TRACING": "false", **variables}
    return orchestrator(None, *words, env=environ(**told))


def tree(spans: list[Any], parent: bytes = b"") -> list[Any]:
    """Names as nested lists, in the order in which the spans began."""
    inside = sorted((span for span in spans if span.parent_span_id == parent), key=lambda span: span.start_time_unix_nano)
    return [[span.name, *tree(spans, span.span_id)] for span in inside]


def attributes(span: Any) -> dict[str, Any]:
    return {told.key: getattr(told.value, told.value.WhichOneof("value")) for told in span.attributes}


def test_the_same_tree_with_the_attributes_of_generative_ai(documents: Path) -> None:
    with collector() as (endpoint, spans):
        done = research(documents, endpoint, "--trace-otlp", "--run-id", "mine")
    assert done.returncode == 0, done.stderr
    judgements = [["chat offline"]] * len(json.loads(done.stdout)["output"]["findings"])
    branch = [f"branch 1: {QUESTION}", ["invoke_agent researcher", ["search"], ["chat offline"]], ["invoke_agent verifier", *judgements]]
    planner = "invoke_agent planner"
    rounds = [["round 1", [planner, ["documents"], ["chat offline"]], branch], ["round 2", [planner, ["chat offline"]]]]
    assert tree(spans) == [["research", *rounds, ["invoke_agent writer", ["chat offline"]]]]
    call = next(attributes(span) for span in spans if span.name == "chat offline" and attributes(span)["gen_ai.agent.name"] == "researcher")
    assert (call["gen_ai.operation.name"], call["gen_ai.request.model"], call["gen_ai.conversation.id"]) == ("chat", "offline", "mine")
    assert call["gen_ai.usage.input_tokens"] > call["gen_ai.usage.output_tokens"] > 0
    assert [message["role"] for message in json.loads(call["gen_ai.input.messages"])] == ["system", "user"]


def test_without_content_no_text_is_sent(documents: Path) -> None:
    with collector() as (endpoint, spans):
        done = research(documents, endpoint, "--trace-otlp", "--trace-content", "none")
    assert done.returncode == 0, done.stderr
    assert "branch 1" in {span.name for span in spans}
    assert not any("messages" in name or "input" in name.split(".")[-1:] for span in spans for name in attributes(span))
    assert "resume" not in str(spans)


def test_a_collector_that_refuses_costs_one_line(documents: Path) -> None:
    with collector(401) as (endpoint, _):
        done = research(documents, endpoint, ORCHESTRATOR_TRACE_OTLP="true")
    assert (done.returncode, json.loads(done.stdout)["status"]) == (0, "complete")
    assert sum("collector" in line for line in done.stderr.splitlines()) == 1, done.stderr


@pytest.mark.parametrize("environ", [{"ORCHESTRATOR_TRACE_OTLP": "true"}, {"LANGSMITH_TRACING": "true", "LANGSMITH_OTEL_ENABLED": "true"}])
def test_missing_packages_are_an_error_and_no_upload_elsewhere(environ: dict[str, str], documents: Path, tmp_path: Path) -> None:
    (tmp_path / "opentelemetry").mkdir()  # hides the installed one
    (tmp_path / "opentelemetry" / "__init__.py").touch()
    with collector() as (endpoint, spans):
        done = research(documents, endpoint, PYTHONPATH=str(tmp_path), LANGSMITH_ENDPOINT=endpoint, LANGSMITH_API_KEY="lsv2_x", **environ)
    assert (done.returncode, done.stdout, spans) == (2, "", [])
    assert 'pip install "orchestrator[otlp]"' in done.stderr
