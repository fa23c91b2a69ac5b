"""What traces cost: CPU a model call without any, with the local one that is always kept, and with LangSmith; and the page of a large run.

python -m benchmarks.tracing [alone] [cost] [page] [--branches N] [--rounds N]
"""

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.fanout import serve
from orchestrator.process import collect_rarely


def langsmith(pipe: Connection) -> None:
    """LangSmith's ingestion, in a process of its own: takes everything and keeps nothing."""
    received = {"requests": 0, "bytes": 0}

    class Ingestion(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            sizes = {"size_limit": 100, "size_limit_bytes": 20_971_520, "scale_up_nthreads_limit": 16}
            sizes |= {"scale_up_qsize_trigger": 1000, "scale_down_nempty_trigger": 4}
            config = {"use_multipart_endpoint": True, **sizes}
            flags = json.dumps({"instance_flags": {"zstd_compression_enabled": True}, "batch_ingest_config": config}).encode()
            number = "00000000-0000-0000-0000-000000000001"
            project: dict[str, Any] = {"id": number, "tenant_id": number, "name": "default", "start_time": "2026-01-01T00:00:00"}
            project["reference_dataset_id"] = None
            self.answer(flags if self.path == "/info" else json.dumps([project]).encode())

        def do_POST(self) -> None:
            received["requests"] += 1
            received["bytes"] += len(self.rfile.read(int(self.headers["content-length"])))
            self.answer(b"{}")

        def answer(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Ingestion)
    pipe.send(f"http://127.0.0.1:{server.server_address[1]}")
    import threading

    threading.Thread(target=server.serve_forever, daemon=True).start()
    pipe.recv()
    pipe.send(received)


@contextlib.contextmanager
def traced(how: str, endpoint: str) -> Iterator[None]:
    """A run inside is traced not at all, as it always is, or by LangSmith too."""
    from orchestrator import spans
    from orchestrator.tracing import recording

    if how == "none":
        recording.Tracer = lambda name, sinks, given: spans.Tracer(name, (), given)  # type: ignore[assignment,misc]
    os.environ.update(
        LANGSMITH_TRACING="true" if how == "langsmith" else "false", LANGSMITH_ENDPOINT=endpoint, LANGSMITH_API_KEY="lsv2_none"
    )
    try:
        yield
    finally:
        recording.Tracer = spans.Tracer  # type: ignore[misc]


_sending: list[float] = []  # seconds of CPU that the thread which sends has taken, request by request


def _watch_the_sender() -> None:
    from orchestrator.tracing.sending import Sender

    original = Sender._send

    def timed(self: Sender, waiting: Any) -> None:
        began = time.thread_time()
        original(self, waiting)
        _sending.append(time.thread_time() - began)

    Sender._send = timed  # type: ignore[method-assign]


def many(branches: int) -> Any:
    """The research workflow with a planner that asks as many questions as there are to be branches: a model's plan has 200 at most."""
    from langgraph.graph import START, StateGraph
    from typing_extensions import TypedDict

    from agents import create_researcher, create_verifier, create_writer
    from orchestrator import Workflow, create_supervisor

    class Asked(TypedDict):
        question: str
        findings: list[Any]

    class Planned(TypedDict):
        questions: list[str]

    class State(Asked, Planned):
        pass

    async def plan(state: State) -> dict[str, Any]:
        return {"questions": [] if state.get("findings") else [f"What is said of topic {number}?" for number in range(branches)]}

    planner = StateGraph(State, input_schema=Asked, output_schema=Planned).add_node("plan", plan).add_edge(START, "plan")
    agents = planner.compile(name="planner"), create_researcher(), create_verifier(), create_writer()
    return Workflow(create_supervisor(*agents), name="many")


async def one_run(documents: Path, branches: int, db: str) -> tuple[int, float]:
    """A run: its model calls, and CPU seconds of this process."""
    from orchestrator import run

    workflow = "research" if branches <= 200 else many(branches)
    given = {"question": "What is said of every topic?", "documents": [str(documents)]}
    began = time.process_time()
    result = await run(workflow, given, model="openai:bench", controls={"max_concurrency": 200, "max_branches": branches}, db=db)
    if result.status != "complete":
        raise SystemExit(f"the run is {result.status}: {result.error}")
    return int(result.usage["model_calls"]), time.process_time() - began


def cost(documents: Path, branches: int, rounds: int, folder: Path) -> str:
    """Milliseconds of CPU a call, each way in turn: medians, and what the ways add."""
    here, there = multiprocessing.Pipe()
    sink = multiprocessing.get_context("spawn").Process(target=langsmith, args=(there,), daemon=True)
    sink.start()
    endpoint = here.recv()
    times: dict[str, list[float]] = {"none": [], "local": [], "langsmith": []}
    added: dict[str, list[float]] = {"local": [], "langsmith": []}
    thread: list[float] = []
    _watch_the_sender()

    async def measured() -> None:
        for number in range(rounds + 1):
            if number == 1:
                collect_rarely()  # as the command line does in its process
            for how, seen in times.items():
                with traced(how, endpoint):
                    _sending.clear()
                    calls, cpu = await one_run(documents, branches, f"sqlite:///{folder / 'cost.db'}")
                if number:  # the first is for imports and compiled regular expressions
                    seen.append(1000 * cpu / calls)
                    if how == "langsmith":
                        thread.append(1000 * sum(_sending) / calls)
            if number:
                for how, seen in added.items():
                    seen.append(times[how][-1] - times["none"][-1])

    asyncio.run(measured())
    here.send(None)
    received = here.recv()
    lines = [
        f"  {how:<10} {statistics.median(seen):6.2f} ms CPU a call ({min(seen):.2f} to {max(seen):.2f})" for how, seen in times.items()
    ]
    lines += [
        f"  {how:<10} +{statistics.median(seen):.3f} ms over none ({min(seen):+.3f} to {max(seen):+.3f})" for how, seen in added.items()
    ]
    lines.append(f"  of it the thread that sends: {statistics.median(thread):.2f} ms ({min(thread):.2f} to {max(thread):.2f})")
    return "\n".join([*lines, f"  LangSmith was sent {received['bytes'] / 1e6:.1f} MB in {received['requests']} requests"])


async def alone(branches: int, rounds: int) -> str:
    """What the tracer and the store take by themselves, with no run around: the spans of branches with two model calls each.

    How fast the machine is just now is told beside it, as a loop that always does the same work.
    """
    from langchain_core.runnables.config import var_child_runnable_config

    from orchestrator.spans import Tracer
    from orchestrator.state import Task
    from orchestrator.storage import RunRecord, scratch_storage
    from orchestrator.tracing.local import LocalTrace

    def node(tracer: Tracer, path: list[str], name: str, shown: str, given: Any = None) -> list[str]:
        place = f"{name}:{len(path)}-{next(numbers)}"
        tracer.step(path, {"id": place.partition(":")[2], "name": name, "input": given, "metadata": {"trace": {name: shown}}})
        return [*path, place]

    def over(tracer: Tracer, path: list[str]) -> None:
        tracer.step(path[:-1], {"id": path[-1].partition(":")[2], "name": "", "result": {}, "error": None, "interrupts": []})

    def call(tracer: Tracer, path: list[str], role: str) -> None:
        var_child_runnable_config.set({"metadata": {"langgraph_checkpoint_ns": "|".join(path), "trace": {"work": "hidden"}}})
        with tracer.span("model", f"{role} model", given=[], role=role, model="bench", provider="openai", branch="t1", attempt=1) as span:
            tracer.sent(span)

    import itertools

    numbers, seen = itertools.count(), list[float]()
    async with scratch_storage() as storage:
        for number in range(rounds):
            fence = await storage.runs.create(RunRecord(run_id=f"run-{number}", workflow="w"))
            began = time.process_time()
            local = LocalTrace(storage.trace, number + 1, 1, fence)
            tracer = Tracer("w", [local])
            for branch in range(branches):
                top = node(
                    tracer, [], "branch", "branch round", {"task": Task(id=f"t{branch}", question=f"What is said of topic {branch}?")}
                )
                for role in ("researcher", "verifier"):
                    agent = node(tracer, top, role, "agent")
                    inner = node(tracer, agent, "work", "hidden")
                    call(tracer, inner, role)
                    over(tracer, inner)
                    over(tracer, agent)
                over(tracer, top)
            tracer.close("ok")
            await local.aclose()
            seen.append(1000 * (time.process_time() - began) / (2 * branches))
    began, total = time.process_time(), 0
    for step in range(5_000_000):
        total += step
    speed = (time.process_time() - began) / 5
    measured = f"{statistics.median(seen):.3f} ms CPU a call ({min(seen):.3f} to {max(seen):.3f})"
    return f"  {measured}; a loop of a million steps takes {speed:.3f} s here"


def page(documents: Path, branches: int, folder: Path) -> str:
    """A run of many branches as a page: its size, and how long it takes to read and to write it."""
    db = f"sqlite:///{folder / 'page.db'}"
    with traced("local", ""):
        calls, _ = asyncio.run(one_run(documents, branches, db))
    import sqlite3

    with sqlite3.connect(folder / "page.db") as database:
        [run_id] = database.execute("SELECT run_id FROM runs").fetchone()
    file, began = folder / "trace.html", time.perf_counter()
    command = [sys.executable, "-m", "orchestrator", "trace", run_id, "--db", db, "--html", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    took = time.perf_counter() - began
    return f"  {branches:,} branches, {calls:,} calls: {file.stat().st_size / 1e6:.2f} MB in {took:.1f} s; {done.stderr.strip()}"


def main() -> None:
    """Measure what is asked for and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="*", choices=("alone", "cost", "page", []), default=[])
    parser.add_argument("--branches", type=int)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--keep", type=Path, help="leave the page and the store in this folder")
    found = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = found.keep or Path(scratch)
        documents = folder / "documents"
        documents.mkdir(parents=True, exist_ok=True)
        for number in range(500):
            text = "\n\n".join(
                f"# Part {part}\nOf topic {number} it is said that part {part} has {number * part} pieces." for part in range(6)
            )
            (documents / f"{number}.md").write_text(text)
        for what in found.what or ("alone", "cost", "page"):
            if what == "alone":
                print(what, asyncio.run(alone(found.branches or 500, found.rounds)), sep="\n", flush=True)
                continue
            branches = found.branches or (50 if what == "cost" else 1000)
            here, there = multiprocessing.Pipe()
            server = multiprocessing.get_context("spawn").Process(target=serve, args=(there, branches, 0.05))
            server.start()
            os.environ.update(OPENAI_BASE_URL=here.recv(), OPENAI_API_KEY="none")
            print(what, flush=True)
            print(cost(documents, branches, found.rounds, folder) if what == "cost" else page(documents, branches, folder), flush=True)
            here.send(None)
            here.recv()
            server.join()


if __name__ == "__main__":
    main()
