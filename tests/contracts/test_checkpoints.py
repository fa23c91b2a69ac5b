"""What the checkpointer does, on memory, a SQLite file and Postgres alike: LangGraph's own suite, and real graphs."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from operator import add
from typing import Annotated, Any

import pytest
from langchain_core.messages import AnyMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.conformance import validate
from langgraph.checkpoint.conformance.initializer import RegisteredCheckpointer
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.types import Command, Send, interrupt
from typing_extensions import TypedDict

from orchestrator.errors import LostRunError, StorageTypeError
from orchestrator.storage.checkpoints import Checkpoints
from orchestrator.storage.codec import Codec
from orchestrator.storage.database import Fence, Statement, open_database


@pytest.fixture
async def checkpoints(storage_url: str) -> AsyncGenerator[Checkpoints, None]:
    database = await open_database(storage_url)
    yield Checkpoints(database, Codec())
    await database.aclose()


async def test_langgraphs_conformance_suite(checkpoints: Checkpoints) -> None:
    async def factory() -> AsyncGenerator[BaseCheckpointSaver[Any], None]:
        yield checkpoints

    report = await validate(RegisteredCheckpointer("orchestrator", factory))
    assert {name: (result.passed, result.failures) for name, result in report.results.items()} == dict.fromkeys(report.results, (True, []))
    assert len(report.results) == 8


@dataclass(frozen=True)
class Found:
    """A type of the graph's own."""

    name: str
    parts: tuple[int, ...]


class Approved(TypedDict, total=False):
    approved: str


class State(Approved, total=False):
    items: list[int]
    found: Annotated[list[Found], add]
    messages: Annotated[list[AnyMessage], add_messages]


def graph_of() -> StateGraph[Any, Any, Any, Any]:
    async def plan(state: State) -> dict[str, Any]:
        return {"items": [1, 2, 3], "messages": [HumanMessage("x" * 700)]}

    async def work(state: dict[str, Any]) -> dict[str, Any]:
        return {"found": [Found(f"n{state['item']}", (state["item"],))]}

    async def ask(state: State) -> dict[str, Any]:
        return {"approved": interrupt({"question": "go on?"})}

    inner = StateGraph(State, output_schema=Approved)
    inner.add_node("ask", ask)
    inner.add_edge(START, "ask")
    inner.add_edge("ask", END)

    graph = StateGraph(State)
    graph.add_node("plan", plan)
    graph.add_node("work", work)
    graph.add_node("approval", inner.compile())
    graph.add_edge(START, "plan")
    graph.add_conditional_edges("plan", lambda state: [Send("work", {"item": item}) for item in state["items"]], ["work"])
    graph.add_edge("work", "approval")
    graph.add_edge("approval", END)
    return graph


async def test_a_graph_pauses_and_goes_on_with_another_process_saver(checkpoints: Checkpoints) -> None:
    config: RunnableConfig = {"configurable": {"thread_id": "t"}}
    graph = graph_of().compile(checkpointer=checkpoints)
    paused = await graph.ainvoke({}, config, durability="sync")
    [question] = paused["__interrupt__"]
    again = graph_of().compile(checkpointer=Checkpoints(checkpoints._database, Codec()))
    state = await again.aget_state(config, subgraphs=True)
    assert state.next == ("approval",)
    assert state.tasks[0].interrupts == (question,)
    done = await again.ainvoke(Command(resume={question.id: "yes"}), config, durability="sync")
    assert done["approved"] == "yes"
    assert done["found"] == [Found("n1", (1,)), Found("n2", (2,)), Found("n3", (3,))]
    assert done["messages"][0].content == "x" * 700
    assert not (await again.aget_state(config)).tasks


async def test_time_travel_leaves_the_first_line_as_it_was(checkpoints: Checkpoints) -> None:
    config: RunnableConfig = {"configurable": {"thread_id": "t"}}
    graph = graph_of().compile(checkpointer=Checkpoints(checkpoints._database, Codec()))
    await graph.ainvoke({}, config, durability="sync")
    done = await graph.ainvoke(Command(resume="yes"), config, durability="sync")
    history = [each async for each in graph.aget_state_history(config)]
    planned = next(each for each in history if each.next == ("work", "work", "work"))
    forked = await graph.aupdate_state(planned.config, {"items": [7]}, as_node="plan")
    await graph.ainvoke(None, forked, durability="sync")
    other = await graph.ainvoke(Command(resume="no"), config, durability="sync")
    assert other["found"] == [Found("n7", (7,))]
    assert other["approved"] == "no"
    kept = await graph.aget_state(history[0].config)
    assert kept.values == done


async def test_a_value_of_an_unknown_type_fails_the_run_and_names_its_key(checkpoints: Checkpoints) -> None:
    class Loose(TypedDict, total=False):
        anything: Any

    async def node(state: Loose) -> Loose:
        return {"anything": Found("a", ())}

    graph = StateGraph(Loose)
    graph.add_node("node", node)
    graph.add_edge(START, "node")
    compiled = graph.compile(checkpointer=checkpoints)
    with pytest.raises(StorageTypeError, match=r"Found cannot be stored.*'anything'.*state schema"):
        await compiled.ainvoke({}, {"configurable": {"thread_id": "t"}}, durability="sync")


async def test_who_lost_the_run_writes_nothing(checkpoints: Checkpoints) -> None:
    await checkpoints._database.run(Statement("INSERT INTO runs(run_id, status, owner) VALUES('r', 'running', 'somebody else')"))
    graph = graph_of().compile(checkpointer=Checkpoints(checkpoints._database, Codec(), Fence("r", "me")))
    config: RunnableConfig = {"configurable": {"thread_id": "r"}}
    with pytest.raises(LostRunError):
        await graph.ainvoke({}, config, durability="sync")
    assert await checkpoints.aget_tuple(config) is None


async def test_a_step_that_is_over_leaves_no_writes(checkpoints: Checkpoints) -> None:
    graph = graph_of().compile()
    graph.checkpointer = Checkpoints(checkpoints._database, Codec(), graph=graph)
    config: RunnableConfig = {"configurable": {"thread_id": "t"}}
    await graph.ainvoke({}, config, durability="sync")
    await graph.ainvoke(Command(resume="yes"), config, durability="sync")
    [left] = await checkpoints._database.run(Statement("SELECT DISTINCT ns FROM writes WHERE thread = 't'"))
    assert [ns for (ns,) in left if not ns] == []
    assert len([each async for each in graph.aget_state_history(config)]) == 5


async def test_a_graph_that_runs_in_a_thread_reaches_the_store(checkpoints: Checkpoints) -> None:
    def double(state: State) -> dict[str, Any]:
        return {"items": [2 * item for item in state["items"]]}

    inner = StateGraph(State)
    inner.add_node("double", double)
    inner.add_edge(START, "double")
    inside = inner.compile()

    def call(state: State) -> dict[str, Any]:
        return {"items": inside.invoke({"items": state["items"]})["items"]}

    outer = StateGraph(State)
    outer.add_node("call", call)
    outer.add_edge(START, "call")
    graph = outer.compile(checkpointer=checkpoints)
    done = await asyncio.wait_for(graph.ainvoke({"items": [4]}, {"configurable": {"thread_id": "t"}}, durability="sync"), 10)
    assert done["items"] == [8]


NESTED = """
import asyncio, sys
{patch}
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph
from typing_extensions import TypedDict

class State(TypedDict):
    x: int

async def node(state):
    return {{"x": state["x"] + 1}}

def sync_node(state):
    return {{"x": state["x"] + 1}}

def build(step):
    inner = StateGraph(State)
    inner.add_node("step", step)
    inner.add_edge(START, "step")
    return inner.compile(checkpointer=False)

within, below = build(node), build(sync_node)

async def asynchronous(state):
    return await within.ainvoke(state)

def synchronous(state):
    return below.invoke(state)

outer = StateGraph(State)
outer.add_node("first", asynchronous)
outer.add_node("second", synchronous)
outer.add_edge(START, "first")
outer.add_edge("first", "second")
graph = outer.compile(checkpointer=InMemorySaver())
print(asyncio.run(graph.ainvoke({{"x": 1}}, {{"configurable": {{"thread_id": "t"}}}}, durability="sync")))
"""


@pytest.mark.parametrize("patched", [True, False])
def test_a_graph_without_checkpoints_inside_one_with_them(patched: bool) -> None:
    """LangGraph 1.2.22 fails here. When the second case passes LangGraph has mended it: take the patch out of storage/checkpoints.py."""
    code = NESTED.format(patch="import orchestrator.storage.checkpoints" if patched else "")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=False)
    if patched:
        assert done.stdout.strip() == "{'x': 3}", done.stderr
    else:
        assert "_put_checkpoint_fut" in done.stderr
