"""LangSmith's own protocol, received on this machine: multipart, compressed, feedback, projects; and how it can fail."""

import email
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import zstandard

INGESTION = {
    "use_multipart_endpoint": True,
    "size_limit": 100,
    "size_limit_bytes": 20_971_520,
    "scale_up_nthreads_limit": 16,
    "scale_up_qsize_trigger": 1_000,
    "scale_down_nempty_trigger": 4,
}
PROJECT, TENANT = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"
Spans = dict[str, dict[str, Any]]


@dataclass
class Receiver:
    """What arrived: runs by id, as far as they did, feedback, and every request's path. `fault`: how requests are answered.

    `fault` is None, a status such as 500, or seconds to wait before the answer (`"slow 3"`), or `"hang"`.
    """

    url: str = ""
    spans: Spans = field(default_factory=dict)
    feedback: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    encodings: set[str] = field(default_factory=set)
    fault: int | str | None = None
    failures: int = 0  # requests that fail before the others are answered

    def environ(self) -> dict[str, str]:
        """The variables that send traces here."""
        return {"LANGSMITH_TRACING": "true", "LANGSMITH_ENDPOINT": self.url, "LANGSMITH_API_KEY": "lsv2_test", "LANGSMITH_PROJECT": "tests"}

    def tree(self, parent: str | None = None) -> list[Any]:
        """Names as nested lists, in the order in which the runs began."""
        children = sorted((span["start_time"], run_id) for run_id, span in self.spans.items() if span.get("parent_run_id") == parent)
        return [[self.spans[run_id]["name"], *self.tree(run_id)] for _, run_id in children]

    def named(self, name: str) -> list[dict[str, Any]]:
        """The runs of a name, in the order in which they began."""
        return sorted((span for span in self.spans.values() if span["name"] == name), key=lambda span: span["start_time"])

    def take(self, headers: Mapping[str, str], body: bytes) -> None:
        """Take in a multipart request."""
        self.encodings.add(headers.get("content-encoding", ""))
        if headers.get("content-encoding") == "zstd":
            body = zstandard.ZstdDecompressor().decompressobj().decompress(body)
        self.bodies.append(body)
        whole = email.message_from_bytes(f"Content-Type: {headers['content-type']}\r\n\r\n".encode() + body)
        for part in whole.get_payload():
            _, run_id, *name = str(part.get_param("name", header="content-disposition")).split(".")  # type: ignore[union-attr]
            value = json.loads(part.get_payload(decode=True))  # type: ignore[union-attr,arg-type]
            span = self.spans.setdefault(run_id, {})
            span.update({name[0]: value} if name else {key: item for key, item in value.items() if item is not None})


def _answer_to(receiver: Receiver, path: str) -> Any:
    if path == "/info":
        return {"version": "0.13.0", "batch_ingest_config": INGESTION, "instance_flags": {"zstd_compression_enabled": True}}
    if path.startswith("/sessions"):
        project = {"id": PROJECT, "name": "tests", "tenant_id": TENANT, "start_time": "2026-01-01T00:00:00Z", "reference_dataset_id": None}
        return [project]
    return {}


@contextmanager
def receiving(fault: int | str | None = None) -> Iterator[Receiver]:
    """A server that answers as LangSmith's ingestion does."""
    receiver, over = Receiver(fault=fault), threading.Event()

    class Ingestion(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.handled(b"")

        def do_POST(self) -> None:
            self.handled(self.rfile.read(int(self.headers["content-length"])))

        def handled(self, body: bytes) -> None:
            receiver.paths.append(self.path)
            if receiver.fault == "hang":
                over.wait(30)
                return
            if isinstance(receiver.fault, str):
                over.wait(float(receiver.fault.split()[1]))
            if receiver.failures:
                receiver.failures -= 1
                self.answer({"detail": "not now"}, 503)
                return
            if isinstance(receiver.fault, int):
                self.answer({"detail": "no"}, receiver.fault)
                return
            if self.path == "/runs/multipart":
                receiver.take({name.lower(): value for name, value in self.headers.items()}, body)
            elif self.path == "/feedback":
                receiver.feedback.append(json.loads(body))
            self.answer(_answer_to(receiver, self.path))

        def answer(self, value: Any, status: int = 200) -> None:
            text = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(text)))
            self.send_header("content-type", "application/json")
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Ingestion)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    receiver.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield receiver
    finally:
        over.set()
        server.shutdown()
        thread.join()
        server.server_close()


def waited_for(receiver: Receiver, count: int, seconds: float = 10.0) -> None:
    """Wait until as many runs have arrived."""
    until = time.monotonic() + seconds
    while len(receiver.spans) < count and time.monotonic() < until:
        time.sleep(0.05)
