"""Runs of more branches than nodes: several in one node, and each is as if it were alone."""

import asyncio
from collections.abc import Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import HumanMessage
from langgraph.graph import END, START, StateGraph
from langgraph.pregel import Pregel
from langgraph.runtime import Runtime
from person_made import repeated
from pydantic import BaseModel
from research_made import research, topics_script, write_topics
from typing_extensions import TypedDict

from orchestrator import Result, Workflow, create_supervisor, run, stream
from orchestrator.asking import question
from orchestrator.context import RunContext
from orchestrator.graphs.inner import inner_of
from orchestrator.resuming import resume
from orchestrator.state import Citation, Finding, Sentence, Verdict
from orchestrator.testing import Reply, answer_for, model_server

QUOTE = "The depth of a resume is limited by the journal."


class Asked(TypedDict, total=False):
    question: str
    task_id: str
    documents: list[str]


class Planned(TypedDict):
    questions: list[str]


class Found(TypedDict):
    findings: list[Finding]


class Written(TypedDict):
    answer: list[Sentence]


class Everything(Asked, Planned, Found, Written, total=False):
    pass


class Claim(BaseModel):
    """What the model is asked for."""

    claim: str


def agent(name: str, own: Any, output: type[Any], checkpointer: Any = False) -> Any:
    """A graph of one node."""
    graph = StateGraph(Everything, output_schema=output)
    graph.add_node("own", own)
    graph.add_edge(START, "own")
    graph.add_edge("own", END)
    return graph.compile(name=name, checkpointer=checkpointer)


def finding(state: Mapping[str, Any], claim: str) -> dict[str, list[Finding]]:
    source = f"{state['documents'][0]}/resume.md"
    return {"findings": [Finding(claim=claim, citations=[Citation(source=source, quote=QUOTE, start=10, end=10 + len(QUOTE))])]}


def supervised(researching: Any, branches: int, checkpointer: Any = False) -> Workflow:
    """A run of so many branches, whose researcher is this node; nobody else asks a model."""
    left = [[f"question {number}" for number in range(1, branches + 1)]]

    async def plan(state: Mapping[str, Any]) -> dict[str, Any]:
        return {"questions": left.pop() if left else []}

    async def verify(state: Mapping[str, Any]) -> dict[str, Any]:
        verdict = Verdict(label="supported", reason="as told")
        return {"findings": [found.model_copy(update={"verdict": verdict}) for found in state["findings"]]}

    async def write(state: Mapping[str, Any]) -> dict[str, Any]:
        return {"answer": [Sentence(text=found.claim, findings=[number]) for number, found in enumerate(state["findings"], start=1)]}

    planner, writer = agent("planner", plan, Planned), agent("writer", write, Written)
    researcher, verifier = agent("researcher", researching, Found, checkpointer), agent("verifier", verify, Found, checkpointer)
    assert (inner_of(researcher) is not None) is (checkpointer is False)
    return Workflow(create_supervisor(planner, researcher, verifier, writer), name="many")


def given(documents: Path) -> dict[str, Any]:
    return {"question": "All of it?", "documents": [str(documents)]}


def told(result: Result) -> list[tuple[str, str]]:
    return [(branch["task"], branch["status"]) for branch in result.branches]


def all_ok(count: int) -> list[tuple[str, str]]:
    return [(f"question {number}", "ok") for number in range(1, count + 1)]


async def claims(state: Mapping[str, Any]) -> dict[str, Any]:
    return finding(state, f"{state['question']} holds.")


async def asks_the_model(state: Mapping[str, Any], runtime: Runtime[RunContext]) -> dict[str, Any]:
    answer = await RunContext.of(runtime).answer("researcher", [HumanMessage(state["question"])], Claim)
    return finding(state, answer.claim)


def claiming(delay: float = 0.0) -> Any:
    """Answers each question with a claim of its own."""
    return lambda body: Reply(value={"claim": f"{body['messages'][-1]['content']} holds."}, delay=delay)


async def test_a_hundred_branches_are_in_the_order_of_the_plan_and_every_call_is_one_request(tmp_path: Path) -> None:
    documents = write_topics(tmp_path / "topics", 100)
    async with model_server(topics_script(100)) as server:
        result = await research(server, documents, max_branches=100)
        asked = [str(answer_for(request.body)) for request in server.requests]
    assert (result.status, result.error) == ("complete", None)
    assert told(result) == [(f"What is said of topic {number}?", "ok") for number in range(100)]
    claimed = [found["claim"] for found in result.output["findings"]]
    assert claimed == [f"Of topic {number} it is said that it is one of many." for number in range(100)]
    assert {name: asked.count(name) for name in sorted({*asked})} == {"Draft": 1, "Findings": 100, "Judgement": 100, "Plan": 2}
    assert (result.usage["model_calls"], repeated(server)) == (203, [])


async def test_no_more_branches_are_under_way_than_max_concurrency(documents: Path) -> None:
    under_way: list[str] = []
    peaks: list[int] = []

    async def own(state: Mapping[str, Any]) -> dict[str, Any]:
        under_way.append(state["task_id"])
        peaks.append(len(under_way))
        await asyncio.sleep(0.005)
        under_way.remove(state["task_id"])
        return finding(state, f"{state['question']} holds.")

    result = await run(supervised(own, 70), given(documents), model="offline", controls={"max_concurrency": 5})
    assert told(result) == all_ok(70)
    assert (max(peaks), len(peaks)) == (5, 70)


async def test_a_branch_that_fails_does_not_touch_those_in_its_node(documents: Path) -> None:
    """Of 70 tasks in 16 nodes the first node has t1, t33 and t65, too."""
    cut = asyncio.Event()

    async def own(state: Mapping[str, Any]) -> dict[str, Any]:
        if state["task_id"] == "t33":
            cut.set()
            raise KeyError("t33")
        if state["task_id"] in ("t1", "t65"):
            await cut.wait()
            await asyncio.sleep(0.02)
        return finding(state, f"{state['question']} holds.")

    result = await run(supervised(own, 70), given(documents), model="offline")
    expected = [(task, "failed" if task == "question 33" else "ok") for task, _ in all_ok(70)]
    assert (result.status, told(result)) == ("partial", expected)
    assert [branch["error"] for branch in result.branches if branch["error"]] == ["KeyError: 't33'"]
    assert len(result.output["findings"]) == 69


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the graphs that LangGraph's own loop has begun."""
    names: list[str] = []
    astream = Pregel.astream

    def noted(self: Any, *args: Any, **options: Any) -> Any:
        names.append(self.name)
        return astream(self, *args, **options)

    monkeypatch.setattr(Pregel, "astream", noted)
    return names


@pytest.mark.parametrize(("checkpointer", "loops"), [(False, 0), (None, 40)])
async def test_agents_with_and_without_checkpoints_of_their_own_come_to_the_same(
    checkpointer: Any, loops: int, documents: Path, begun: list[str]
) -> None:
    async with model_server(claiming()) as server:
        workflow = supervised(asks_the_model, 40, checkpointer)
        result = await run(workflow, given(documents), model=server.chat_model())
    assert (result.status, told(result)) == ("complete", all_ok(40))
    assert [found["claim"] for found in result.output["findings"]] == [f"question {number} holds." for number in range(1, 41)]
    assert (len(server.requests), repeated(server)) == (40, [])
    assert [begun.count(name) for name in ("many", "attempt", "researcher")] == [1, loops, loops]


@pytest.mark.parametrize("checkpointer", [False, None])
async def test_a_branch_among_many_asks_a_person_and_no_answered_call_is_made_again(documents: Path, checkpointer: Any) -> None:
    async def own(state: Mapping[str, Any], runtime: Runtime[RunContext]) -> dict[str, Any]:
        found = await asks_the_model(state, runtime)
        if state["task_id"] != "t40":
            return found
        said = await RunContext.of(runtime).consult(question("custom", "Is it so?", branch="t40"))
        return finding(state, f"question 40 holds: {said}.")

    workflow = supervised(own, 50, checkpointer)
    async with model_server(claiming()) as server:
        first = await run(workflow, given(documents), model=server.chat_model(), run_id="r")
        assert (first.status, [(asked.text, asked.branch) for asked in first.questions]) == ("interrupted", [("Is it so?", "t40")])
        assert len(server.requests) == 50  # every other branch has ended before the run waits
        last = await resume("r", workflow=workflow, model=server.chat_model(), answers={first.questions[0].id: "surely"})
    assert (last.status, told(last)) == ("complete", all_ok(50))
    assert last.output["findings"][39]["claim"] == "question 40 holds: surely."
    assert (len(server.requests), repeated(server), last.usage["model_calls"]) == (50, [], 50)


async def test_two_branches_of_one_node_ask_at_once(documents: Path) -> None:
    """Of 40 tasks in 16 nodes the first node has t1 and t33, too."""

    async def own(state: Mapping[str, Any], runtime: Runtime[RunContext]) -> dict[str, Any]:
        task = state["task_id"]
        if task not in ("t1", "t33"):
            return await claims(state)
        said = await RunContext.of(runtime).consult(question("custom", f"What of {task}?", branch=task))
        return finding(state, f"{task}: {said}.")

    workflow = supervised(own, 40)
    first = await run(workflow, given(documents), model="offline", run_id="r")
    assert sorted(asked.text for asked in first.questions) == ["What of t1?", "What of t33?"]
    answers = {asked.id: f"for {asked.branch}" for asked in first.questions}
    last = await resume("r", workflow=workflow, model="offline", answers=answers)
    found = [last.output["findings"][at]["claim"] for at in (0, 32)]
    assert (last.status, told(last), found) == ("complete", all_ok(40), ["t1: for t1.", "t33: for t33."])


def left_over(before: set[Any]) -> set[Any]:
    return {task for task in asyncio.all_tasks() - before if not task.done()}


async def test_a_run_that_is_stopped_half_way_ends_its_calls_and_leaves_no_task(documents: Path) -> None:
    stop = asyncio.Event()

    async def own(state: Mapping[str, Any], runtime: Runtime[RunContext]) -> dict[str, Any]:
        found = await asks_the_model(state, runtime)
        if state["task_id"] == "t20":
            stop.set()
        return found

    before = asyncio.all_tasks()
    async with model_server(claiming(0.02)) as server:
        workflow = supervised(own, 50)
        result = await run(workflow, given(documents), model=server.chat_model(), controls={"max_concurrency": 8}, stop=stop)
        left = left_over(before)
    statuses = [status for _, status in told(result)]
    assert (result.status, len(statuses), {*statuses}, left) == ("cancelled", 50, {"ok", "skipped"}, set())
    assert statuses.count("ok") == len(server.requests) < 50
    assert (server.in_flight, server.abandoned) == (0, 0)


def hanging(ended: list[str], begun: asyncio.Barrier) -> Any:
    """A researcher that never ends by itself."""

    async def own(state: Mapping[str, Any]) -> dict[str, Any]:
        try:
            await begun.wait()
            await asyncio.sleep(3_600)
        finally:
            ended.append(state["task_id"])
        return {"findings": []}

    return own


async def test_branches_that_hang_are_cut_when_a_run_is_stopped_and_its_grace_is_over(
    documents: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.driving.GRACE", 2.5)
    ended, begun, stop, before = list[str](), asyncio.Barrier(51), asyncio.Event(), asyncio.all_tasks()
    running = asyncio.create_task(run(supervised(hanging(ended, begun), 50), given(documents), model="offline", stop=stop))
    await begun.wait()
    stop.set()
    result = await running
    assert (result.status, {branch["status"] for branch in result.branches}) == ("cancelled", {"timed_out"})
    assert {str(branch["error"]).partition(":")[0] for branch in result.branches} == {"stopped"}
    assert (sorted(ended), left_over(before)) == (sorted(f"t{number}" for number in range(1, 51)), set())


async def test_branches_that_hang_are_cut_when_whoever_reads_the_run_leaves(documents: Path) -> None:
    ended, before, started = list[str](), asyncio.all_tasks(), 0
    async with aclosing(stream(supervised(hanging(ended, asyncio.Barrier(50)), 50), given(documents), model="offline")) as events:
        async for event in events:
            started += event.kind == "branch_started"
            if started == 50:
                break
    assert (sorted(ended), left_over(before)) == (sorted(f"t{number}" for number in range(1, 51)), set())
