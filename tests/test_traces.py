"""The trace that is always kept: as many spans as things that ran, each under what it belongs to, whatever became of the run."""

import asyncio
import itertools
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

from command_line import Python, environ
from research_made import is_at, research, topics_script, write_topics

from orchestrator import resume, run
from orchestrator.errors import StorageError
from orchestrator.journal import Journal, Request
from orchestrator.spans import Tracer
from orchestrator.storage import RunRecord, Storage, open_storage
from orchestrator.storage.database import Statement
from orchestrator.storage.journal import JournalUsage
from orchestrator.testing import Reply, agents_script, answer_for, model_server
from orchestrator.tracing.critical import critical_path, spent_on
from orchestrator.tracing.reading import trace_document

QUESTION = "What limits the depth of a resume?"


async def trace_of(run_id: str, db: str | None = None) -> dict[str, Any]:
    async with open_storage(db) as storage:
        record = await storage.runs.get(run_id)
        assert record is not None
        return await trace_document(storage, record)


def tree(trace: dict[str, Any], parent: int | None = None) -> list[Any]:
    """Names as nested lists."""
    return [[span["name"], *tree(trace, span["id"])] for span in trace["spans"] if span["parent"] == parent]


def named(trace: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return [span for span in trace["spans"] if span["name"] == name]


def under(trace: dict[str, Any], span: dict[str, Any]) -> list[str]:
    """The names around a span, from the inside."""
    by_id = {each["id"]: each for each in trace["spans"]}
    names = []
    while span["parent"] is not None:
        span = by_id[span["parent"]]
        names.append(span["name"])
    return names


async def test_as_many_spans_as_ran_in_fifty_branches(tmp_path: Path) -> None:
    """R-bar: the whole tree of a run of 50 branches, counted where the requests arrive."""
    script = topics_script(50)
    seen: Counter[int] = Counter()

    def reply(request: dict[str, Any]) -> Any:
        if is_at(request, "five"):
            seen[len(seen)] += 1
            return Reply(status=500) if len(seen) <= 3 else script(request)
        return script(request)

    async with model_server(reply) as server:
        result = await research(server, write_topics(tmp_path / "topics", 50))
        asked = len(server.requests)
    trace = await trace_of(result.run_id)
    kinds = Counter(span["kind"] for span in trace["spans"])
    assert (kinds["run"], kinds["round"], kinds["branch"], kinds["retriever"]) == (1, 2, 50, 50)
    assert kinds["model"] == asked == result.usage["model_calls"]
    assert kinds["agent"] == 2 + 2 * 50 + 1  # the planner twice, a researcher and a verifier for each branch, the writer
    assert not any(span["name"] in ("", "Unnamed", "unnamed") for span in trace["spans"])
    assert {span["state"] for span in trace["spans"]} == {"ok", "failed"}
    assert sum(span["state"] == "failed" for span in trace["spans"]) == 3
    assert sum(span["attempt"] > 1 for span in trace["spans"]) >= 3  # a retry stands beside what it repeats
    for span in trace["spans"]:
        if span["role"] == "verifier" and span["kind"] == "model":
            assert under(trace, span)[0] == "verifier"
            assert under(trace, span)[1].startswith(f"branch {span['branch'].removeprefix('t')}: ")
    assert trace["usage"]["input_tokens"] == result.usage["input_tokens"]
    assert sum(row["calls"] for row in trace["roles"]) == asked


async def test_what_was_asked_and_answered_stands_with_each_call(documents: Path) -> None:
    result = await run("research", {"question": QUESTION, "documents": [str(documents)]}, model="offline")
    trace = await trace_of(result.run_id)
    [call] = named(trace, "researcher model")
    body = trace["bodies"][str(call["id"])]
    assert [message["role"] for message in body["messages"]] == ["system", "human"]
    assert QUESTION in body["messages"][1]["text"]
    assert body["answer"]["calls"][0]["name"] == "Findings"
    [finding] = [found for found in trace["findings"] if "depth of a resume" in found["claim"]]
    [citation] = finding["citations"]
    assert (finding["branch"], finding["label"]) == ("t1", "supported")
    assert citation["quote"] == "The depth of a resume is limited by the journal."
    assert citation["after"].startswith(" The journal was designed by Ada Byron.")


async def test_times_are_in_order_and_the_critical_path_has_no_gaps(documents: Path) -> None:
    async with model_server(lambda request: Reply(value=agents_script()(request), delay=0.05)) as server:
        given = {"question": QUESTION, "documents": [str(documents)]}
        result = await run("research", given, model=server.chat_model(), controls={"max_concurrency": 1})
    trace = await trace_of(result.run_id)
    by_id = {span["id"]: span for span in trace["spans"]}
    for span in trace["spans"]:
        assert span["start"] <= (span["sent"] or span["start"]) <= (span["end"] or trace["seconds"])
        if span["parent"] is not None:
            assert by_id[span["parent"]]["start"] <= span["start"] + 0.001
    path = trace["critical"]
    assert path[0][1] == 0.0
    assert abs(path[-1][2] - trace["seconds"]) < 0.001
    assert all(abs(before[2] - after[1]) < 0.001 for before, after in itertools.pairwise(path))
    assert spent_on(path)["model"] >= 5 * 0.05


def test_the_critical_path_follows_what_ended_last() -> None:
    def span(number: int, parent: int | None, start: float, end: float, **known: Any) -> dict[str, Any]:
        return {"id": number, "parent": parent, "start": start, "end": end, "sent": None, "kind": "node", **known}

    spans = [
        span(0, None, 0, 10),
        span(1, 0, 1, 4),
        span(2, 0, 1, 6, kind="model", sent=3),
        span(3, 0, 7, 9, kind="tool"),
        span(4, 0, 7, 8),
    ]
    assert critical_path(spans, 10) == [
        (0, 0, 1, "own work"),
        (2, 1, 3, "waiting for a turn"),
        (2, 3, 6, "model"),
        (0, 6, 7, "own work"),
        (3, 7, 9, "tool"),
        (0, 9, 10, "own work"),
    ]


async def test_a_lost_branch_a_cancelled_request_and_a_limit_are_marked_as_such(tmp_path: Path) -> None:
    script = topics_script(3)

    def reply(request: dict[str, Any]) -> Any:
        if is_at(request, "one"):
            return Reply(status=400, value={"error": {"message": "no"}})
        return Reply(value=script(request), delay=5.0 if answer_for(request) == "Judgement" else 0.0)

    async with model_server(reply) as server:
        result = await research(server, write_topics(tmp_path / "topics", 3), branch_timeout=0.7)
    trace = await trace_of(result.run_id)
    states = {span["name"].partition(":")[0]: (span["state"], span["error"]) for span in trace["spans"] if span["kind"] == "branch"}
    assert states["branch 1"][0] == "failed"
    assert "(400)" in states["branch 1"][1]
    assert [states[f"branch {number}"][0] for number in (2, 3)] == ["failed", "failed"]
    assert all(states[f"branch {number}"][1].startswith("timed_out: ") for number in (2, 3))
    cut = [span for span in trace["spans"] if span["role"] == "verifier" and span["kind"] == "model"]
    assert {(span["state"], span["end"] is not None) for span in cut} == {("cancelled", True)}


KILLED = """
import asyncio, sys
from orchestrator import run
asyncio.run(run("research", {"question": "What is said of every topic?", "documents": [sys.argv[1]]}, model="openai:m", run_id="killed"))
"""


async def test_a_killed_run_has_a_trace_and_its_resume_stands_beside_it(tmp_path: Path) -> None:
    script, topics = topics_script(6), write_topics(tmp_path / "topics", 6)
    slow = True

    def reply(request: dict[str, Any]) -> Any:
        return Reply(value=script(request), delay=30.0 if slow and answer_for(request) == "Judgement" else 0.0)

    async with model_server(reply) as server:
        process = await asyncio.to_thread(lambda: Python("-c", KILLED, str(topics), env=environ(**server.environ)))
        await asyncio.to_thread(_until, lambda: sum(answer_for(request.body) == "Judgement" for request in server.requests) == 6)
        process.send_signal(signal.SIGKILL)
        await asyncio.to_thread(process.wait)
        dead = await trace_of("killed")
        slow = False
        result = await resume("killed", model=server.chat_model(model="m"))
    assert result.status == "complete"
    assert dead["status"] == "crashed"
    answered = [span for span in dead["spans"] if span["kind"] == "model" and span["state"] == "ok"]
    assert Counter(span["role"] for span in answered) == {"planner": 1, "researcher": 6}
    trace = await trace_of("killed")
    assert [span["name"] for span in trace["spans"] if span["parent"] == 0] == ["attempt 1", "attempt 2"]
    recalled = [span for span in trace["spans"] if span["state"] == "recalled"]
    assert Counter(span["role"] for span in recalled) == {"researcher": 6}
    assert all("attempt 2" in under(trace, span) for span in recalled)
    assert all(trace["bodies"][str(span["id"])]["answer"] for span in recalled)
    lost = [span for span in trace["spans"] if span["state"] == "lost"]
    assert [span for span in lost if span["end"] is not None or "attempt 1" not in [span["name"], *under(trace, span)]] == []
    assert trace["usage"]["model_calls"] == sum(span["kind"] == "model" and span["state"] != "recalled" for span in trace["spans"])


def _until(done: Any) -> None:
    until = time.monotonic() + 20
    while not done() and time.monotonic() < until:
        time.sleep(0.05)
    assert done()


async def test_of_a_process_that_died_before_it_wrote_its_spans_the_journal_has_the_calls() -> None:
    async with open_storage("memory://") as storage:
        record, fence = await _stored(storage)
        journal = await Journal.open(storage.journal, record.number, fence)
        request = Request(kind="model", role="researcher", model="m", content={"messages": [["human", "hello"]]}, scope="branch t1")
        used = JournalUsage(model_calls=1, input_tokens=12, output_tokens=3)
        await journal.record(request, {"content": "an answer"}, usage=used, seconds=0.5)
        await journal.aclose()
        spans = [[0, None, "run", "w", 1.0, "", None, "", 1, None, None, None, "running", None, 0, 0, None, [], None, None]]
        branch = [7, 0, "branch", "branch 1: Q", 1.0, "", "t1", "", 1, None, None, None, "running", None, 0, 0, None, [], None, None]
        await storage.trace.append(record.number, 1, 0, [*spans, branch], fence)
        trace = await trace_document(storage, record)
    assert tree(trace) == [["w", ["branch 1: Q", ["researcher model"]]]]
    assert [span["id"] for span in trace["spans"]] == [0, 7, 8]
    assert trace["bodies"]["8"]["answer"]["text"] == "an answer"
    assert (trace["usage"]["input_tokens"], trace["usage"]["output_tokens"]) == (12, 3)


async def test_a_run_from_before_there_were_traces_has_its_calls(documents: Path) -> None:
    result = await run("research", {"question": QUESTION, "documents": [str(documents)]}, model="offline")
    async with open_storage() as storage:
        await storage.database.run(Statement("DELETE FROM trace"))
    trace = await trace_of(result.run_id)
    assert trace["usage"]["model_calls"] == result.usage["model_calls"]
    assert trace["usage"]["input_tokens"] == result.usage["input_tokens"]
    assert {span["parent"] for span in trace["spans"][1:]} == {0}


async def test_a_fork_has_its_own_calls_alone(documents: Path) -> None:
    from orchestrator import fork

    first = await run("research", {"question": QUESTION, "documents": [str(documents)]}, model="offline")
    second = await fork(first.run_id, "write")
    trace = await trace_of(second.run_id)
    assert tree(trace) == [["research", ["writer", ["writer model"], ["documents"]]]]
    assert named(trace, "writer model")[0]["state"] == "recalled"


async def _stored(storage: Storage) -> tuple[RunRecord, Any]:
    _, fence = await storage.runs.create(RunRecord(run_id="run-1", workflow="w"))
    record = await storage.runs.get("run-1")
    assert record is not None
    return record, fence


async def test_a_plain_graph_has_its_nodes_with_what_went_in_and_out(tmp_path: Path) -> None:
    from typing import TypedDict

    from langgraph.graph import START, StateGraph

    class State(TypedDict, total=False):
        text: str

    async def loud(state: State) -> State:
        return {"text": state["text"].upper()}

    async def fail(state: State) -> State:
        raise ValueError("not so loud")

    graph = StateGraph(State).add_node("loud", loud).add_node("fail", fail).add_edge(START, "loud").add_edge("loud", "fail")
    result = await run(graph, {"text": "a" * 1000}, run_id="plain")
    trace = await trace_of(result.run_id)
    assert tree(trace) == [["graph", ["loud"], ["fail"]]]
    [node] = named(trace, "loud")
    assert trace["bodies"][str(node["id"])] == {"input": {"text": "a" * 400 + "…"}, "output": {"text": "A" * 400 + "…"}}
    assert (named(trace, "fail")[0]["state"], named(trace, "fail")[0]["error"]) == ("failed", "not so loud")


async def test_spans_that_cannot_be_stored_are_told_and_end_no_run(documents: Path, monkeypatch: Any, caplog: Any) -> None:
    from orchestrator.storage.trace import TraceTable

    def refuse(*_: Any) -> Any:
        raise StorageError("there is no room")

    monkeypatch.setattr(TraceTable, "append", refuse)
    result = await run("research", {"question": QUESTION, "documents": [str(documents)]}, model="offline")
    assert result.status == "complete"
    assert caplog.messages == ["a part of the trace was not stored: there is no room"]


def test_a_tracer_without_sinks_keeps_nothing() -> None:
    tracer = Tracer("w")
    with tracer.span("model", "call", given=["long"]) as span:
        assert tracer.here() is tracer.root
    assert (span.given, tracer.root.under_way, span.state) == (None, set(), "ok")
