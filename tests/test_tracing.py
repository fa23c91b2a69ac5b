"""LangSmith's own protocol, received on this machine: what arrives is one tree that a person can read."""

import email
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

QUESTION = "What limits the depth of a resume?"
INGESTION = {
    "use_multipart_endpoint": True,
    "size_limit": 100,
    "size_limit_bytes": 20_971_520,
    "scale_up_nthreads_limit": 16,
    "scale_up_qsize_trigger": 1_000,
    "scale_down_nempty_trigger": 4,
}
Spans = dict[str, dict[str, Any]]


@contextmanager
def receiver() -> Iterator[tuple[str, Spans]]:
    """LangSmith's ingestion: GET /info, POST /runs/multipart; runs by id, as far as they arrived."""
    spans: Spans = {}

    class Ingestion(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer({"version": "0.13.0", "batch_ingest_config": INGESTION})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            for part in email.message_from_bytes(f"Content-Type: {self.headers['content-type']}\r\n\r\n".encode() + body).get_payload():
                _, run_id, *field = str(part.get_param("name", header="content-disposition")).split(".")
                value = json.loads(part.get_payload(decode=True))
                span = spans.setdefault(run_id, {})
                span.update({field[0]: value} if field else {key: item for key, item in value.items() if item is not None})
            self.answer({})

        def answer(self, value: dict[str, Any]) -> None:
            text = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Ingestion)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", spans
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def research(documents: Path, endpoint: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "LANGSMITH_TRACING": "true", "LANGSMITH_ENDPOINT": endpoint, "LANGSMITH_API_KEY": "lsv2_test"}
    command = [sys.executable, "-m", "orchestrator", "research", QUESTION, "--documents", str(documents), "--model", "offline", "--json"]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=50, check=False)


def tree(spans: Spans, parent: str | None = None) -> list[Any]:
    """Names as nested lists, in the order in which the runs began."""
    children = sorted((span["start_time"], run_id) for run_id, span in spans.items() if span.get("parent_run_id") == parent)
    return [[spans[run_id]["name"], *tree(spans, run_id)] for _, run_id in children]


def leaf(role: str, node: str) -> list[Any]:
    return [role, [node, [f"{role} model"]]]


def test_a_run_is_one_tree_under_names_that_a_person_recognises(documents: Path) -> None:
    with receiver() as (endpoint, spans):
        done = research(documents, endpoint)
    assert done.returncode == 0, done.stderr
    judgements = [["verifier model"]] * len(json.loads(done.stdout)["output"]["findings"])
    branch = [
        f"branch t1: {QUESTION}",
        ["researcher", ["researcher", ["search"], ["research", ["researcher model"], ["after_research"]]]],
        ["verifier", ["verifier", ["verify", *judgements]]],
    ]
    plan = ["plan", leaf("planner", "plan"), ["fan_out"]]
    assert tree(spans) == [["research", plan, ["branch", branch], ["join", ["after_join"]], plan, ["write", leaf("writer", "write")]]]
    assert {span["extra"]["metadata"]["workflow"] for span in spans.values()} == {"research"}
    assert {tag for span in spans.values() for tag in span["tags"] if tag.startswith("role:")} == {
        "role:planner",
        "role:researcher",
        "role:verifier",
        "role:writer",
    }


def test_a_langsmith_that_is_not_there_changes_nothing_but_a_few_lines(documents: Path) -> None:
    with receiver() as (endpoint, _):
        pass  # its port is free again
    done = research(documents, endpoint)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"] == "complete"
    assert sum("langsmith" in line.lower() or "trac" in line.lower() for line in done.stderr.splitlines()) <= 3, done.stderr


_THREADS = """
import asyncio, sys, threading
from orchestrator import run
from orchestrator.tracing import langsmith_tracing
with langsmith_tracing() as on:
    result = asyncio.run(run("research", {"question": sys.argv[1], "documents": [sys.argv[2]]}, model="offline"))
for thread in threading.enumerate():
    if thread is not threading.main_thread():
        thread.join(10)
print(on, result.status, [thread.name for thread in threading.enumerate()])
"""


def test_no_thread_of_langsmith_goes_on_after_the_block(documents: Path) -> None:
    with receiver() as (endpoint, spans):
        environ = {**os.environ, "LANGSMITH_TRACING": "true", "LANGSMITH_ENDPOINT": endpoint, "LANGSMITH_API_KEY": "lsv2_test"}
        command = [sys.executable, "-c", _THREADS, QUESTION, str(documents)]
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=50, check=False)
    assert (done.stdout, done.stderr) == ("True complete ['MainThread']\n", "")
    assert {span["name"] for span in spans.values()} >= {"research", "planner", "writer"}
