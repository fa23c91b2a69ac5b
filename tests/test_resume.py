"""Runs that go on: what is finished stays so, what is left is done, whatever ended the run, on every store."""

import asyncio
import contextlib
import operator
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import Send, interrupt
from typing_extensions import TypedDict

from agents import create_planner, create_researcher, create_verifier, create_writer
from orchestrator import Budget, Controls, Event, Result, Workflow, create_supervisor, resume, run, stream
from orchestrator.asking import Question
from orchestrator.errors import InputError
from orchestrator.resuming import stream_resume
from orchestrator.storage import Storage, heartbeat, open_storage
from orchestrator.storage.database import Statement
from orchestrator.testing import ModelServer, Reply, Responder, answer_for, model_server
from tests.research_made import topics_script, write_topics


class State(TypedDict, total=False):
    """Of the graphs below."""

    number: int
    done: Annotated[list[str], operator.add]


class Steps:
    """A graph a -> (b, c) -> d that counts what its nodes do; `broken`: the nodes that raise."""

    def __init__(self, *broken: str) -> None:
        self.broken = set(broken)
        self.made: list[str] = []
        graph = StateGraph(State)
        for name in "abcd":
            graph.add_node(name, self._node(name))
        graph.add_edge(START, "a")
        for name in "bc":
            graph.add_edge("a", name)
        graph.add_edge(["b", "c"], "d")
        graph.add_edge("d", END)
        self.graph = graph
        self.workflow = Workflow(graph, name="steps")

    def _node(self, name: str) -> Any:
        async def node(state: State) -> dict[str, list[str]]:
            self.made.append(name)
            if name in self.broken:
                raise RuntimeError(f"{name} is broken")
            return {"done": [name]}

        return node


@pytest.fixture
async def store(storage_url: str) -> AsyncIterator[Storage]:
    """An open store, which is what keeps `memory://`."""
    async with open_storage(storage_url) as storage:
        yield storage


async def test_a_run_goes_on_where_a_node_failed(store: Storage, storage_url: str) -> None:
    steps = Steps("b")
    failed = await run(steps.workflow, {"number": 1}, model="offline", run_id="r", db=storage_url)
    assert (failed.status, failed.output["done"]) == ("failed", ["a", "c"])
    steps.broken.clear()
    done = await resume("r", workflow=steps.workflow, db=storage_url)
    assert (done.status, done.output, done.error) == ("complete", {"number": 1, "done": ["a", "b", "c", "d"]}, None)
    assert sorted(steps.made) == ["a", "b", "b", "c", "d"]


async def test_a_new_run_asks_its_store_for_nothing_but_its_number(
    store: Storage, storage_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, submit = list[str](), store.database.submit

    def watched(*statements: Statement, **options: Any) -> Any:
        asked.extend(sql for sql, _ in statements if sql.startswith("SELECT"))
        return submit(*statements, **options)

    monkeypatch.setattr(heartbeat, "collect_daily", lambda _: asyncio.sleep(0))
    monkeypatch.setattr(store.database, "submit", watched)
    await run(Steps().workflow, {"number": 1}, model="offline", db=storage_url)
    assert asked == ["SELECT number FROM runs WHERE run_id = ? AND owner = ?"]


async def test_of_a_run_that_is_done_the_result_is_told_once_more(store: Storage, storage_url: str) -> None:
    steps = Steps()
    first = await run(steps.workflow, {"number": 1}, model="offline", run_id="r", db=storage_url)
    assert await resume("r", db=storage_url) == first
    assert steps.made.count("a") == 1
    again = await resume("r", workflow=steps.workflow, restart=True, db=storage_url)
    assert (again.output, steps.made.count("a")) == (first.output, 2)


async def test_an_end_that_was_not_written_down_is_no_reason_to_do_anything_again(store: Storage, storage_url: str) -> None:
    """A process that dies between the last checkpoint and the row; `state.next` would say the same of a run that is not done."""
    steps = Steps()
    first = await run(steps.workflow, {"number": 1}, model="offline", run_id="r", db=storage_url)
    await store.database.run(Statement("UPDATE runs SET status = 'running', owner = 'gone', result = NULL WHERE run_id = 'r'"))
    again = await resume("r", workflow=steps.workflow, db=storage_url)
    assert again.model_dump(exclude={"seconds"}) == first.model_dump(exclude={"seconds"})
    assert sorted(steps.made) == ["a", "b", "c", "d"]


async def test_a_run_that_died_before_its_first_step_begins(store: Storage, storage_url: str) -> None:
    steps = Steps()
    await run(steps.workflow, {"number": 1}, model="offline", run_id="r", db=storage_url)
    await store.checkpoints().adelete_thread("r")
    await store.database.run(Statement("UPDATE runs SET status = 'running', owner = 'gone', result = NULL WHERE run_id = 'r'"))
    result = await resume("r", workflow=steps.workflow, db=storage_url)
    assert (result.status, result.output) == ("complete", {"number": 1, "done": ["a", "b", "c", "d"]})


async def test_of_two_that_resume_at_once_one_does(store: Storage, storage_url: str) -> None:
    steps = Steps("b")
    await run(steps.workflow, {"number": 1}, model="offline", run_id="r", db=storage_url)
    steps.broken.clear()
    both = await asyncio.gather(*(resume("r", workflow=steps.workflow, db=storage_url) for _ in range(2)), return_exceptions=True)
    refused = [error for error in both if isinstance(error, InputError)]
    assert all("is already running" in error.what for error in refused)
    assert {result.status for result in both if isinstance(result, Result)} == {"complete"}
    assert sorted(steps.made) == ["a", "b", "b", "c", "d"]


async def test_what_no_run_has_or_no_other_process_can_make_is_refused(store: Storage, storage_url: str) -> None:
    steps = Steps("b")
    async with model_server() as server:
        await run(steps.workflow, {"number": 1}, model={"": server.chat_model()}, run_id="mine", db=storage_url)
    with pytest.raises(InputError, match=r"no run 'mime'.*did you mean mine"):
        await resume("mime", db=storage_url)
    with pytest.raises(InputError, match=r"was made in Python.*workflow="):
        await resume("mine", db=storage_url)
    with pytest.raises(InputError, match="the model of run 'mine' was made in Python"):
        await resume("mine", workflow=steps.workflow, db=storage_url)
    with pytest.raises(InputError, match="the run asks nothing"):
        await resume("mine", workflow=steps.workflow, answers="yes", db=storage_url)
    record = await store.runs.get("mine")
    assert record is not None
    assert (record.status, record.attempts) == ("failed", 1)


async def test_code_that_changed_is_refused_unless_it_is_accepted(store: Storage, storage_url: str) -> None:
    steps = Steps("b")
    await run(steps.workflow, {"number": 1}, model="offline", run_id="r", db=storage_url)
    steps.broken.clear()
    changed = Steps()
    changed.graph.add_node("e", changed._node("e"))
    changed.graph.add_edge("a", "e")
    with pytest.raises(InputError, match=r"the code of run 'r' has changed.*--accept-changes"):
        await resume("r", workflow=changed.workflow, db=storage_url)
    done = await resume("r", workflow=changed.workflow, accept_changes=True, db=storage_url)
    assert (done.status, sorted(changed.made)) == ("complete", ["b", "d"])


async def test_answers_reach_the_questions_that_they_are_for(store: Storage, storage_url: str) -> None:
    async def ask(state: dict[str, int]) -> dict[str, list[str]]:
        number = state["number"]
        return {"done": [f"{number}: {interrupt({'question': f'what is {number} squared?'})}"]}

    graph = StateGraph(State)
    graph.add_node("ask", ask)
    graph.add_conditional_edges(START, lambda _: [Send("ask", {"number": number}) for number in (3, 4)], ["ask"])
    graph.add_edge("ask", END)
    workflow = Workflow(graph, name="asking")
    waits = await run(workflow, {"number": 0}, model="offline", run_id="r", db=storage_url)
    assert (waits.status, [question.text for question in waits.questions]) == ("interrupted", ["what is 3 squared?", "what is 4 squared?"])
    three, four = (question.id for question in waits.questions)
    assert (await resume("r", workflow=workflow, db=storage_url)).questions == waits.questions
    with pytest.raises(InputError, match="2 questions are pending"):
        await resume("r", workflow=workflow, answers="9", db=storage_url)
    half = await resume("r", workflow=workflow, answers={four: "16"}, db=storage_url)
    assert (half.status, [question.id for question in half.questions]) == ("interrupted", [three])
    done = await resume("r", workflow=workflow, answers="9", db=storage_url)
    assert (done.status, done.output["done"]) == ("complete", ["3: 9", "4: 16"])
    assert "questions" not in done.model_dump()


def _asking() -> Workflow:
    graph = StateGraph(State)
    graph.add_node("ask", lambda state: {"done": [str(interrupt("what is 3 squared?"))]})
    graph.add_edge(START, "ask")
    graph.add_edge("ask", END)
    return Workflow(graph, name="asking")


async def test_who_is_asked_may_fail_and_the_run_waits_on(store: Storage, storage_url: str) -> None:
    async def breaks(questions: Sequence[Question]) -> dict[str, Any]:
        raise RuntimeError("nobody is at the desk")

    async def never(questions: Sequence[Question]) -> dict[str, Any]:
        await asyncio.Event().wait()
        return {}

    with pytest.raises(RuntimeError, match="at the desk"):
        await run(_asking(), {"number": 0}, model="offline", run_id="r", db=storage_url, person=breaks)
    left = asyncio.create_task(run(_asking(), {"number": 0}, model="offline", run_id="s", db=storage_url, person=never))
    await asyncio.sleep(0.5)
    left.cancel()
    await asyncio.gather(left, return_exceptions=True)
    for run_id in "rs":
        record = await store.runs.get(run_id)
        assert record is not None
        assert (record.status, [asked["text"] for asked in record.questions]) == ("interrupted", ["what is 3 squared?"])
        done = await resume(run_id, workflow=_asking(), answers="9", db=storage_url)
        assert (done.status, done.output["done"]) == ("complete", ["9"])


async def test_a_graph_that_was_compiled_to_pause_goes_on(store: Storage, storage_url: str) -> None:
    steps = Steps()
    workflow = Workflow(steps.graph.compile(interrupt_before=["d"]), name="steps")
    pauses = await run(workflow, {"number": 1}, model="offline", run_id="r", db=storage_url)
    assert (pauses.status, pauses.error) == ("interrupted", "the graph pauses before 'd', as it was compiled to; resume goes on")
    done = await resume("r", workflow=workflow, db=storage_url)
    assert (done.status, done.output["done"]) == ("complete", ["a", "b", "c", "d"])


async def test_a_graph_with_a_checkpointer_of_its_own_is_kept_in_the_store_all_the_same(store: Storage, storage_url: str) -> None:
    own, steps = InMemorySaver(), Steps("b")
    workflow = Workflow(steps.graph.compile(checkpointer=own), name="steps")
    await run(workflow, {"number": 1}, model="offline", run_id="r", db=storage_url)
    steps.broken.clear()
    done = await resume("r", workflow=workflow, db=storage_url)
    assert (done.status, done.output["done"], sorted(steps.made)) == ("complete", ["a", "b", "c", "d"], ["a", "b", "b", "c", "d"])
    assert list(own.list(None)) == []


async def test_a_run_among_a_hundred_others_goes_on_alone(store: Storage, storage_url: str) -> None:
    every = [Steps("b") if number == 50 else Steps() for number in range(101)]
    started = (run(each.workflow, {"number": n}, model="offline", run_id=f"r{n}", db=storage_url) for n, each in enumerate(every))
    results = await asyncio.gather(*started)
    assert [n for n, result in enumerate(results) if result.status != "complete"] == [50]
    every[50].broken.clear()
    others = (run(each.workflow, {"number": n}, model="offline", db=storage_url) for n, each in enumerate(every[:20]))
    done, *results = await asyncio.gather(resume("r50", workflow=every[50].workflow, db=storage_url), *others)
    assert {result.status for result in results} == {"complete"}
    assert (done.output, sorted(every[50].made)) == ({"number": 50, "done": ["a", "b", "c", "d"]}, ["a", "b", "b", "c", "d"])


def _told(server: ModelServer) -> list[str]:
    return [str(request.body["messages"]) for request in server.requests]


async def _research(server: ModelServer, documents: Path, url: str, **controls: Any) -> Result:
    given = {"question": "What is said of every topic?", "documents": [str(documents)]}
    return await run("research", given, model={"": server.chat_model()}, controls=controls, run_id="r", db=url)


async def test_what_a_run_had_is_kept_where_its_documents_are_gone(store: Storage, storage_url: str, tmp_path: Path) -> None:
    documents = write_topics(tmp_path / "documents", 1)
    async with model_server(topics_script(1)) as server:
        waits = await _research(server, documents, storage_url, approve=("plan",))
        documents.rename(tmp_path / "elsewhere")
        with pytest.raises(InputError, match="documents"):
            await resume("r", model=server.chat_model(), answers="yes", db=storage_url)
        record = await store.runs.get("r")
        assert record is not None
        assert (record.status, record.result["status"], len(record.questions)) == ("interrupted", "interrupted", len(waits.questions))
        (tmp_path / "elsewhere").rename(documents)
        done = await resume("r", model=server.chat_model(), db=storage_url)
    assert done.status == "complete"


async def test_a_run_at_its_budget_goes_on_with_more_and_asks_nothing_twice(store: Storage, storage_url: str, tmp_path: Path) -> None:
    documents = write_topics(tmp_path / "topics", 4)
    async with model_server(topics_script(4)) as server:
        limited = await _research(server, documents, storage_url, max_calls=6)
        assert limited.status == "limited"
        made = len(server.requests)
        same = await resume("r", model={"": server.chat_model()}, db=storage_url)
        assert (same.status, len(server.requests)) == ("limited", made)  # budgets count what all attempts have used
        done = await resume("r", model={"": server.chat_model()}, controls={"max_calls": 40}, db=storage_url)
        assert (done.status, len(done.output["findings"])) == ("complete", 4)
        assert len(set(_told(server))) == len(server.requests) == done.usage["model_calls"]
    assert done.seconds > limited.seconds


def _failing_for(topic: int, right: Responder) -> tuple[dict[str, bool], Responder]:
    """Answers that refuse to go into one topic as long as `on` is set."""
    fault = {"on": True}

    def reply(request: Mapping[str, Any]) -> Any:
        if fault["on"] and f"topic {topic}?" in str(request["messages"][1]["content"])[:200]:
            return {"findings": [], "missing": ""} | {"findings": "none"}
        return right(dict(request))

    return fault, reply


async def test_a_partial_run_is_done_unless_it_is_to_be_tried_again(store: Storage, storage_url: str, tmp_path: Path) -> None:
    documents = write_topics(tmp_path / "topics", 3)
    fault, reply = _failing_for(1, topics_script(3))
    async with model_server(reply) as server:
        partial = await _research(server, documents, storage_url)
        assert (partial.status, [branch["status"] for branch in partial.branches]) == ("partial", ["ok", "failed", "ok"])
        fault["on"], made = False, len(server.requests)
        stored = await resume("r", db=storage_url)
        assert (stored, len(server.requests)) == (partial, made)
        done = await resume("r", model={"": server.chat_model()}, retry=True, db=storage_url)
        assert (done.status, len(done.output["findings"])) == ("complete", 3)
        kept = [told for told in _told(server)[:made] if "topic 0?" in told[:1500] or "topic 2?" in told[:1500]]
        assert not set(kept) & set(_told(server)[made:])


async def test_of_a_branch_whose_call_failed_that_call_alone_is_made_again(store: Storage, storage_url: str, tmp_path: Path) -> None:
    documents, right = write_topics(tmp_path / "topics", 3), topics_script(3)
    refused = {"on": True}

    def reply(request: dict[str, Any]) -> Any:
        if refused["on"] and answer_for(request) == "Judgement" and "topic 1 " in str(request["messages"]):
            return Reply.error(400, "no")
        return right(request)

    async with model_server(reply) as server:
        partial = await _research(server, documents, storage_url)
        assert [branch["status"] for branch in partial.branches] == ["ok", "failed", "ok"]
        refused["on"], made = False, len(server.requests)
        done = await resume("r", model={"": server.chat_model()}, retry=True, db=storage_url)
        assert (done.status, len(done.output["findings"])) == ("complete", 3)
        answered = {told for told, request in zip(_told(server)[:made], server.requests, strict=False) if request.reply.status == 200}
        assert not answered & set(_told(server)[made:])


async def test_what_is_given_goes_over_what_the_run_was_started_with(store: Storage, storage_url: str) -> None:
    steps = Steps("b")
    controls = {"max_tokens": 1_000, "branch_budget": {"max_calls": 3, "max_tokens": 500}, "deadline": 60}
    await run(steps.workflow, {"number": 1}, model="offline", controls=controls, run_id="r", db=storage_url)
    steps.broken.clear()
    given = {"max_calls": 9, "branch_budget": {"max_calls": 4}}
    await resume("r", workflow=steps.workflow, model={"b": "offline"}, controls=given, db=storage_url)
    record = await store.runs.get("r")
    assert record is not None
    assert record.models == {"": ["offline"], "b": ["offline"]}
    kept = Controls.model_validate(record.controls)
    assert (kept.deadline, kept.budget) == (60, Budget(max_calls=9, max_tokens=1_000))
    assert kept.branch_budget == Budget(max_calls=4, max_tokens=500)


async def test_the_round_that_was_under_way_goes_on_under_its_join_policy(store: Storage, storage_url: str, tmp_path: Path) -> None:
    """Two branches were done when the process was to end: a third is enough for first:3."""
    documents, held = write_topics(tmp_path / "topics", 5), asyncio.Event()
    right = topics_script(5)

    def reply(request: dict[str, Any]) -> Any:
        answer = right(request)
        findings = sum(answer_for(told.body) == "Findings" for told in server.requests)
        if answer_for(request) == "Findings" and findings == 3 and not held.is_set():
            loop.call_soon_threadsafe(held.set)
            return Reply(value=answer, delay=60)
        return answer

    loop = asyncio.get_running_loop()
    async with model_server(reply) as server:
        given = {"question": "What is said of every topic?", "documents": [str(documents)]}
        controls = {"join": "first:3", "max_concurrency": 1}
        events = stream("research", given, model={"": server.chat_model()}, controls=controls, run_id="r", db=storage_url)
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(_read(events))
            await held.wait()
            reading.cancel()
        record = await store.runs.get("r")
        assert record is not None
        assert (record.status, record.done) == ("cancelled", 2)
        seen = list[Event]()
        async for event in stream_resume("r", model={"": server.chat_model()}, db=storage_url):
            seen.append(event)
        finished = [event.branch for event in seen if event.kind == "branch_finished" and event.fields["status"] == "ok"]
        assert len(finished) == 3
        assert [event.fields["attempt"] for event in seen if event.kind == "run_started"] == [2]
        assert (seen[-1].fields["status"], len(seen[-1].fields["output"]["findings"])) == ("complete", 3)


@pytest.mark.parametrize("rounds", [1, 2])
async def test_a_run_that_ended_in_its_report_tells_that_its_branches_are_done(
    store: Storage, storage_url: str, tmp_path: Path, rounds: int
) -> None:
    documents, held, right = write_topics(tmp_path / "topics", 3), asyncio.Event(), topics_script(3)

    def reply(request: dict[str, Any]) -> Any:
        if answer_for(request) == "Draft" and not held.is_set():
            loop.call_soon_threadsafe(held.set)
            return Reply(value=right(request), delay=60)
        return right(request)

    loop = asyncio.get_running_loop()
    agents = create_planner(), create_researcher(), create_verifier(), create_writer()
    workflow = Workflow(create_supervisor(*agents, max_rounds=rounds), name="rounds")
    async with model_server(reply) as server:
        given = {"question": "What is said of every topic?", "documents": [str(documents)]}
        async with asyncio.TaskGroup() as group:
            events = stream(workflow, given, model=server.chat_model(), run_id="r", db=storage_url)
            reading = group.create_task(_read(events))
            await held.wait()
            reading.cancel()
        made = len(server.requests)
        seen = [event async for event in stream_resume("r", workflow=workflow, model=server.chat_model(), db=storage_url)]
        told = [event.kind for event in seen if event.kind in ("plan", "branch_finished", "step_started")]
        assert told == ["plan", *["branch_finished"] * 3, "step_started"]
        assert (seen[-1].fields["status"], len(server.requests)) == ("complete", made + 1)
        record = await store.runs.get("r")
        assert record is not None
        assert (record.planned, record.done) == (3, 3)


async def _read(events: AsyncGenerator[Event, None]) -> None:
    async with contextlib.aclosing(events):
        async for _ in events:
            pass


async def test_a_deadline_is_of_one_attempt(store: Storage, storage_url: str) -> None:
    async def slow(state: State) -> dict[str, list[str]]:
        await asyncio.sleep(0.4)
        return {"done": ["slow"]}

    graph = StateGraph(State)
    for name in ("first", "second", "third"):
        graph.add_node(name, slow)
    graph.add_edge(START, "first").add_edge("first", "second").add_edge("second", "third").add_edge("third", END)
    workflow = Workflow(graph, name="slow")
    late = await run(workflow, {"number": 1}, model="offline", controls={"deadline": 1.0}, run_id="r", db=storage_url)
    assert (late.status, 1 <= len(late.output["done"]) <= 2) == ("limited", True)
    done = await resume("r", workflow=workflow, db=storage_url)
    assert (done.status, len(done.output["done"])) == ("complete", 3)
    assert done.seconds > late.seconds + 0.4


async def test_a_store_that_cannot_be_used_is_refused_before_anything_starts(tmp_path: Path) -> None:
    steps = Steps()
    for url in ("mysql://host/db", f"sqlite:///{tmp_path}"):
        with pytest.raises(InputError) as refused:
            await run(steps.workflow, {"number": 1}, model="offline", db=url)
        assert refused.value.remedy.endswith("to keep nothing of the run: --db memory://")
    assert steps.made == []
