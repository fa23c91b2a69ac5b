"""Agents whose graphs do what is rare, in runs of ours: the same as if LangGraph ran them."""

import asyncio
import gc
import weakref
from collections.abc import Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest
from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime
from langgraph.types import Command, Send, interrupt
from pydantic import BaseModel
from test_many_branches import Everything, Found, agent, all_ok, finding, given, supervised, told

from orchestrator import Workflow, create_supervisor, run
from orchestrator.asking import question
from orchestrator.context import RunContext
from orchestrator.graphs.inner import inner_of
from orchestrator.resuming import resume
from orchestrator.state import Sentence, Verdict

seen: ContextVar[str] = ContextVar("seen", default="unset")


async def claims(state: Mapping[str, Any]) -> dict[str, Any]:
    return finding(state, f"{state['question']} holds.")


async def verify(state: Mapping[str, Any]) -> dict[str, Any]:
    verdict = Verdict(label="supported", reason=seen.get())
    return {"findings": [found.model_copy(update={"verdict": verdict}) for found in state["findings"]]}


async def write(state: Mapping[str, Any]) -> dict[str, Any]:
    return {"answer": [Sentence(text=found.claim, findings=[number]) for number, found in enumerate(state["findings"], start=1)]}


def with_researcher(graph: StateGraph[Any, Any, Any, Any], branches: int, checkpointer: Any) -> Workflow:
    """A run of so many branches, with a researcher of several nodes."""
    left = [[f"question {number}" for number in range(1, branches + 1)]]

    async def plan(state: Mapping[str, Any]) -> dict[str, Any]:
        return {"questions": left.pop() if left else []}

    researcher = graph.compile(name="researcher", checkpointer=checkpointer)
    assert (inner_of(researcher) is not None) is (checkpointer is False)
    agents = (
        agent("planner", plan, Everything),
        researcher,
        agent("verifier", verify, Found, checkpointer),
        agent("writer", write, Everything),
    )
    return Workflow(create_supervisor(*agents), name="edges")


@pytest.mark.parametrize("checkpointer", [False, None])
async def test_work_for_no_node_fails_the_run(tmp_path: Path, checkpointer: Any) -> None:
    async def astray(state: Mapping[str, Any]) -> Any:
        return Command(update=finding(state, "It holds."), goto="no" + "where")

    result = await run(supervised(astray, 2, checkpointer), given(tmp_path_with(tmp_path)), model="offline", db="memory://")
    assert (result.status, "'nowhere'" in str(result.error)) == ("failed", True)


@pytest.mark.parametrize("checkpointer", [False, None])
async def test_an_agent_inside_hands_over_to_the_one_beside_it(tmp_path: Path, checkpointer: Any) -> None:
    async def leave(state: Mapping[str, Any]) -> Any:
        return Command(goto="bob", graph=Command.PARENT)

    inside = StateGraph(Everything)
    inside.add_node("leave", leave)
    inside.add_edge(START, "leave")
    outside = StateGraph(Everything, output_schema=Found)
    outside.add_node("alice", inside.compile(checkpointer=checkpointer), destinations=("bob",))
    outside.add_node("bob", claims)
    outside.add_edge(START, "alice")
    outside.add_edge("bob", END)
    workflow = with_researcher(outside, 3, checkpointer)
    result = await run(workflow, given(tmp_path_with(tmp_path)), model="offline", db="memory://")
    assert (result.status, told(result)) == ("complete", all_ok(3))


class Piece(BaseModel):
    """What a node is sent."""

    number: int


async def test_what_is_sent_arrives_as_it_was_sent(tmp_path: Path) -> None:
    async def take(piece: Piece) -> dict[str, Any]:
        return {"questions": [f"{type(piece).__name__} {piece.number}"]}

    def send(state: Mapping[str, Any]) -> list[Send]:
        return [Send("take", Piece(number=number)) for number in (1, 2)]

    async def tell(state: Mapping[str, Any]) -> dict[str, Any]:
        return finding(state, " ".join(state["questions"]))

    import operator
    from typing import Annotated

    class State(Everything, total=False):
        questions: Annotated[list[str], operator.add]  # type: ignore[misc]

    graph = StateGraph(State, output_schema=Found)
    graph.add_node("take", take, input_schema=Piece)
    graph.add_node("tell", tell)
    graph.add_conditional_edges(START, send, ["take"])
    graph.add_edge("take", "tell")
    graph.add_edge("tell", END)
    result = await run(with_researcher(graph, 1, False), given(tmp_path_with(tmp_path)), model="offline", db="memory://")
    assert [found["claim"] for found in result.output["findings"]] == ["Piece 1 Piece 2"]


async def test_two_nodes_ask_while_a_third_one_ends(tmp_path: Path) -> None:
    ended: list[str] = []

    async def asks(state: Mapping[str, Any], runtime: Runtime[RunContext]) -> None:
        await RunContext.of(runtime).consult(question("custom", "First?", branch=state["task_id"]))

    async def asks_too(state: Mapping[str, Any], runtime: Runtime[RunContext]) -> None:
        await RunContext.of(runtime).consult(question("custom", "Second?", branch=state["task_id"]))

    async def works(state: Mapping[str, Any]) -> None:
        await asyncio.sleep(0.05)
        ended.append(state["task_id"])

    graph = StateGraph(Everything, output_schema=Found)
    for name, node in (("asks", asks), ("asks_too", asks_too), ("works", works), ("claims", claims)):
        graph.add_node(name, node)
    for name in ("asks", "asks_too", "works"):
        graph.add_edge(START, name)
    graph.add_edge(["asks", "asks_too", "works"], "claims")
    result = await run(with_researcher(graph, 1, False), given(tmp_path_with(tmp_path)), model="offline", db="memory://")
    assert (result.status, [asked.text for asked in result.questions], ended) == ("interrupted", ["First?", "Second?"], ["t1"])


@pytest.mark.parametrize("checkpointer", [False, None])
async def test_branches_of_one_node_ask_by_interrupt_and_get_their_own_answers(tmp_path: Path, checkpointer: Any) -> None:
    answered: dict[str, Any] = {}

    async def asks(state: Mapping[str, Any]) -> dict[str, Any]:
        if state["task_id"] in ("t1", "t2", "t33"):
            first = interrupt(f"{state['task_id']} once")
            answered[state["task_id"]] = first, interrupt(f"{state['task_id']} twice")
        return await claims(state)

    workflow = supervised(asks, 40, checkpointer)
    options: dict[str, Any] = {"model": "offline", "db": f"sqlite:///{tmp_path}/runs.db"}
    result = await run(workflow, given(tmp_path_with(tmp_path)), run_id="r", **options)
    for _ in range(2):
        assert (result.status, len(result.questions)) == ("interrupted", 3)
        answers = {asked.id: f"to {asked.text}" for asked in result.questions}
        result = await resume("r", workflow=workflow, answers=answers, **options)
    assert (result.status, told(result)) == ("complete", all_ok(40))
    assert answered == {task: (f"to {task} once", f"to {task} twice") for task in ("t1", "t2", "t33")}


async def test_what_a_node_sets_in_its_context_stays_there(tmp_path: Path) -> None:
    async def sets(state: Mapping[str, Any]) -> dict[str, Any]:
        seen.set("by the researcher")
        return await claims(state)

    result = await run(with_researcher(_one(sets), 2, False), given(tmp_path_with(tmp_path)), model="offline", db="memory://")
    assert {found["verdict"]["reason"] for found in result.output["findings"]} == {"unset"}


async def test_a_node_that_raises_a_cancellation_has_failed(tmp_path: Path) -> None:
    async def raises(state: Mapping[str, Any]) -> dict[str, Any]:
        if state["task_id"] == "t1":
            raise asyncio.CancelledError
        return await claims(state)

    result = await run(with_researcher(_one(raises), 3, False), given(tmp_path_with(tmp_path)), model="offline", db="memory://")
    assert [branch["status"] for branch in result.branches] == ["failed", "ok", "ok"]


def test_a_graph_goes_when_nobody_holds_it() -> None:
    graph = _one(claims).compile(checkpointer=False)
    assert inner_of(graph) is inner_of(graph) is not None
    gone = weakref.ref(graph)
    del graph
    gc.collect()
    assert gone() is None


def _one(node: Any) -> StateGraph[Any, Any, Any, Any]:
    graph = StateGraph(Everything, output_schema=Found)
    graph.add_node("own", node)
    graph.add_edge(START, "own")
    graph.add_edge("own", END)
    return graph


def tmp_path_with(folder: Path) -> Path:
    """A folder with the document that findings cite."""
    documents = folder / "papers"
    documents.mkdir(exist_ok=True)
    (documents / "resume.md").write_text("# Resume\n\nThe depth of a resume is limited by the journal.\n", encoding="utf-8")
    return documents
