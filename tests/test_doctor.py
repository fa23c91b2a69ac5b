"""What doctor says of a machine: each thing that can be wrong, and what to do about it."""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from orchestrator import doctor
from orchestrator.cli import main
from orchestrator.doctor import Finding, diagnose

Answer = Callable[[BaseHTTPRequestHandler], None]


@contextmanager
def endpoint(answer: Answer) -> Iterator[tuple[str, list[str | None]]]:
    """A server on this machine whose GET is `answer`: its base URL, and the Authorization headers that it was sent."""
    keys: list[str | None] = []

    class Served(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # http.server's own name
            keys.append(self.headers["Authorization"])
            answer(self)

        def log_message(self, *_: object) -> None:
            """Tests are quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Served)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", keys
    finally:
        server.shutdown()
        server.server_close()


def replies(status: int, body: bytes = b"", **headers: str) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    return answer


def models(*names: str) -> bytes:
    return json.dumps({"object": "list", "data": [{"id": name} for name in names]}).encode()


def ask(monkeypatch: pytest.MonkeyPatch, answer: Answer, key: str = "sk-canary-123456") -> tuple[list[Finding], list[str | None]]:
    """What doctor says of a model at an endpoint that answers so."""
    with endpoint(answer) as (url, keys):
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        monkeypatch.setenv("OPENAI_API_KEY", key)
        found = [
            finding
            for finding in diagnose(os.environ, model="openai:small", folder=Path(__file__).parent)
            if finding.name in ("model", "endpoint")
        ]
    return [Finding(f.name, f.state, f.told.replace(url, "URL"), f.remedy) for f in found], keys


@pytest.mark.parametrize(
    ("answer", "finding"),
    [
        (replies(200, models("small", "large")), Finding("endpoint", "ok", "URL answers and lists 'small'")),
        (
            replies(200, models("large")),
            Finding("endpoint", "warn", "URL does not list the model 'small': it has large", "name one with --model openai:NAME"),
        ),
        (replies(401), Finding("endpoint", "fail", "URL refused the key (HTTP 401)", "export a valid OPENAI_API_KEY")),
        (
            replies(404),
            Finding("endpoint", "warn", "URL answers, but GET /models says HTTP 404", "check that OPENAI_BASE_URL ends in /v1"),
        ),
        (
            replies(302, Location="http://127.0.0.1:1/canary"),
            Finding("endpoint", "warn", "URL answers, but GET /models says HTTP 302", "check that OPENAI_BASE_URL ends in /v1"),
        ),
        (
            replies(200, b"<html>"),
            Finding("endpoint", "warn", "URL answers, but not as an OpenAI-compatible server does", "check OPENAI_BASE_URL"),
        ),
        (
            replies(200, b"[1]"),
            Finding("endpoint", "warn", "URL answers, but not as an OpenAI-compatible server does", "check OPENAI_BASE_URL"),
        ),
    ],
    ids=["ok", "other models", "key refused", "no such path", "redirect", "html", "list"],
)
def test_the_endpoint(answer: Answer, finding: Finding, monkeypatch: pytest.MonkeyPatch) -> None:
    found, keys = ask(monkeypatch, answer)
    assert found == [Finding("model", "ok", "openai:small (asked for)"), finding]
    assert keys == ["Bearer sk-canary-123456"]


def test_an_endpoint_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    monkeypatch.setattr(doctor, "ENDPOINT_SECONDS", 0.2)

    found, _ = ask(monkeypatch, lambda request: (over.wait(10), None)[1])
    over.set()

    assert found[1] == Finding(
        "endpoint", "fail", "URL gave no answer within 0.2 s", "check the network and OPENAI_BASE_URL, or use --model offline"
    )


def test_an_endpoint_that_drips_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def drip(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        for _ in range(200):
            try:
                request.wfile.write(b" ")
            except OSError:
                return
            time.sleep(0.01)

    monkeypatch.setattr(doctor, "ENDPOINT_SECONDS", 0.3)
    found, _ = ask(monkeypatch, drip)
    assert (found[1].state, found[1].told) == ("fail", "URL gave no answer within 0.3 s")


def test_an_endpoint_that_is_not_there(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary-123456")

    assert main(["doctor"]) == 1

    out = capsys.readouterr().out
    assert "fail  endpoint: http://127.0.0.1:9/v1 is not reached: " in out
    assert "      do: check the network and OPENAI_BASE_URL, or use --model offline\n" in out
    assert "sk-canary" not in out


def named(found: list[Finding], name: str) -> Finding:
    return next(finding for finding in found if finding.name == name)


def test_offline_asks_nobody(tmp_path: Path) -> None:
    found = diagnose({}, folder=tmp_path)
    assert named(found, "model") == Finding(
        "model",
        "ok",
        "offline (no model is named and OPENAI_API_KEY is not set): nothing is sent anywhere",
        "for a language model: export OPENAI_API_KEY, or --model provider:model",
    )
    assert [finding.name for finding in found if finding.name == "endpoint"] == []


def test_a_model_that_cannot_work(tmp_path: Path) -> None:
    found = named(diagnose({}, model={"writer": "opnai:x"}, folder=tmp_path), "model of writer")
    assert found == Finding(
        "model of writer", "fail", "opnai:x (asked for): unknown provider 'opnai' in 'opnai:x'", "did you mean 'openai'?"
    )


def test_storage_that_is_not_there_yet(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATOR_HOME", str(home / "new"))
    assert named(diagnose({}, folder=tmp_path), "storage") == Finding("storage", "ok", f"{home / 'new'}, made at the first run")
    assert not (home / "new").exists()


def test_storage_that_is_open_to_others(home: Path) -> None:
    (home / "index").mkdir(mode=0o755)
    (home / "index").chmod(0o755)
    assert named(diagnose({}, folder=home), "storage") == Finding(
        "storage", "warn", f"{home} is open to others (mode 755)", f"chmod -R go= {home}"
    )


def test_storage_that_is_a_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("ORCHESTRATOR_HOME", str(home / "file"))
    assert named(diagnose({}, folder=home), "storage") == Finding(
        "storage", "fail", f"{home / 'file'} is no folder", "set ORCHESTRATOR_HOME to a folder of yours that can be written to"
    )


def test_documents(documents: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (documents / "a.pdf").write_bytes(b"%PDF-1.4 junk")
    monkeypatch.chdir(documents.parent)
    found = named(diagnose({}, documents=["papers"]), "documents")
    assert (found.state, found.told) == ("warn", "papers: read 3, skipped 1")
    assert found.remedy.startswith("look at papers/a.pdf: ")
    assert named(diagnose({}, documents=["missing"]), "documents").state == "fail"


@pytest.mark.parametrize(
    ("environ", "finding"),
    [
        ({}, Finding("tracing", "ok", "LangSmith is off")),
        (
            {"LANGSMITH_TRACING": "1"},
            Finding("tracing", "warn", "LANGSMITH_TRACING is '1': LangSmith stays off", "export LANGSMITH_TRACING=true, or unset it"),
        ),
        (
            {"LANGSMITH_TRACING": "true"},
            Finding("tracing", "warn", "LangSmith is on, and LANGSMITH_API_KEY is not set", "export LANGSMITH_API_KEY"),
        ),
        (
            {"LANGSMITH_TRACING": "true", "LANGSMITH_API_KEY": "lsv2-canary", "LANGSMITH_PROJECT": "p"},
            Finding("tracing", "ok", "LangSmith is on: project 'p' at LangSmith's own endpoint; the key is set"),
        ),
    ],
)
def test_tracing(environ: dict[str, str], finding: Finding, tmp_path: Path) -> None:
    assert named(diagnose(environ, folder=tmp_path), "tracing") == finding


def test_a_foreign_package_of_our_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents" / "__init__.py").write_text("", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "agents", raising=False)

    found = named(diagnose({}, folder=tmp_path / "elsewhere"), "agents")

    assert (found.state, found.told) == ("warn", f"`import agents` means {tmp_path / 'agents'}, not this project's package")


def test_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    code = main(["doctor", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert (code, told["ok"]) == (0, True)
    assert {"name": "tracing", "state": "ok", "told": "LangSmith is off", "remedy": ""} in told["checks"]
