"""Graphs of a user's own in LangSmith: their nodes, chains, retrievers and `@traceable` functions stand in the run's one tree."""

import json
from pathlib import Path
from typing import Any

from command_line import environ, orchestrator, python
from langsmith_receiver import receiving

from orchestrator.testing import model_server

FLOW = '''
"""A graph that knows nothing of this project."""

from typing import TypedDict

from langchain_core.documents import Document
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.graph import START, StateGraph
from langsmith import traceable


class State(TypedDict, total=False):
    text: str
    told: str


class Finds(BaseRetriever):
    def _get_relevant_documents(self, query: str, *, run_manager: object) -> list[Document]:
        return [Document(query)]


@traceable(name="clean up")
async def clean(text: str) -> str:
    return text.strip()


@tool
async def shout(text: str) -> str:
    """Make it loud."""
    return text.upper()


async def ask(state: State) -> State:
    prompt = ChatPromptTemplate.from_messages([("human", "{text}")])
    chain = (prompt | ChatOpenAI(model="m") | StrOutputParser()).with_config(run_name="chain")
    [found] = await Finds().ainvoke(await clean(state["text"]))
    return {"told": await shout.ainvoke({"text": await chain.ainvoke({"text": found.page_content})})}


def route(state: State) -> str:
    return "inside"


async def step(state: State) -> State:
    return {"told": await clean(state["told"])}


async def fail(state: State) -> State:
    raise ValueError("that was nothing")


inner = StateGraph(State).add_node("step", step).add_edge(START, "step").compile(name="inner graph")
graph = StateGraph(State).add_node("ask", ask).add_node("inside", inner).add_node("fail", fail)
graph.add_edge(START, "ask").add_conditional_edges("ask", route, ["inside"]).add_edge("inside", "fail")
'''


def test_one_tree_without_routing_noise_and_without_langchains_own_copy(tmp_path: Path) -> None:
    (tmp_path / "flow.py").write_text(FLOW)
    with receiving() as receiver, model_server(lambda request: "hello") as server:
        words = [str(tmp_path / "flow.py"), " hi ", "--model", "openai:m", "--run-id", "mine", "--json"]
        done = orchestrator(None, *words, env=environ(**receiver.environ(), **server.environ))
    assert done.returncode == 1, done.stderr
    chain = ["chain", ["ChatPromptTemplate"], ["ask model"], ["StrOutputParser"]]
    ask = ["ask", ["clean up"], ["Finds"], chain, ["shout"]]
    assert receiver.tree() == [["flow", ask, ["inside", ["step", ["clean up"]]], ["fail"]]]
    [call] = receiver.named("ask model")
    assert call["outputs"]["messages"] == [{"role": "assistant", "content": "hello"}]
    assert call["extra"]["metadata"]["usage_metadata"]["total_tokens"] > 0
    [retrieved] = receiver.named("Finds")
    assert (retrieved["run_type"], retrieved["inputs"]) == ("retriever", {"query": "hi"})
    [shouted] = receiver.named("shout")
    assert (shouted["run_type"], shouted["inputs"], shouted["outputs"]) == ("tool", {"text": "hello"}, {"value": "HELLO"})
    assert "that was nothing" in receiver.named("fail")[0]["error"]
    assert "that was nothing" in receiver.named("flow")[0]["error"]
    assert {span["name"] for span in receiver.spans.values() if span.get("error")} == {"fail", "flow"}


INSIDE = """
import asyncio, sys
from langsmith import traceable, tracing_context
from orchestrator import run

@traceable(name="outer")
async def outer() -> str:
    with tracing_context(enabled=True, tags=["mine"]):
        result = await run("research", {"question": "What limits the depth of a resume?", "documents": [sys.argv[1]]}, model="offline", db="memory://")
    return result.status

print(asyncio.run(outer()))
"""


def test_a_run_inside_a_traceable_function_is_a_part_of_its_trace(documents: Path, tmp_path: Path) -> None:
    with receiving() as receiver:
        done = python("-c", INSIDE, str(documents), env=environ(**receiver.environ()))
    assert done.stdout == "complete\n", done.stderr
    [outer], [research] = receiver.named("outer"), receiver.named("research")
    assert research["parent_run_id"] == outer["id"]
    assert research["dotted_order"].startswith(f"{outer['dotted_order']}.")
    assert {span["trace_id"] for span in receiver.spans.values()} == {outer["id"]}
    assert "mine" in research["tags"]


NESTED = """
import asyncio, sys
from typing import TypedDict
from langgraph.graph import START, StateGraph
from orchestrator import run

class State(TypedDict, total=False):
    documents: list[str]
    told: str

async def inner(state: State) -> State:
    given = {"question": "What limits the depth of a resume?", "documents": state["documents"]}
    return {"told": (await run("research", given, model="offline", db="memory://")).status}

graph = StateGraph(State).add_node("inner", inner).add_edge(START, "inner")
print(asyncio.run(run(graph, {"documents": [sys.argv[1]]}, db="memory://")).output["told"])
"""


def test_a_run_that_a_node_starts_is_a_part_of_the_run_around(documents: Path) -> None:
    with receiving() as receiver:
        done = python("-c", NESTED, str(documents), env=environ(**receiver.environ()))
    assert (done.stdout, done.stderr) == ("complete\n", "")
    [root] = receiver.tree()
    assert (root[0], root[1][:1], [each[0] for each in root[1][1:]]) == ("graph", ["inner"], ["research"])
    assert [each[0] for each in root[1][1][1:]] == ["round 1", "round 2", "writer"]
    assert len({span["trace_id"] for span in receiver.spans.values()}) == 1


def test_two_attempts_are_one_thread(documents: Path, tmp_path: Path) -> None:
    """What an earlier attempt was answered stands in the later one's tree as what it is: it used nothing."""

    def started(*words: str) -> Any:
        stored = f"sqlite:///{tmp_path / 'runs.db'}"
        done = orchestrator(None, *words, "--db", stored, "--json", env=environ(**receiver.environ()))
        assert done.stdout, done.stderr
        return json.loads(done.stdout)

    asked = ["research", "What limits the depth of a resume?", "--documents", str(documents), "--model", "offline", "--run-id", "twice"]
    with receiving() as receiver:
        assert started(*asked, "--max-calls", "3")["status"] == "limited"
        assert started("resume", "twice", "--max-calls", "50")["status"] == "complete"
    first, second = receiver.named("research")
    assert first["trace_id"] != second["trace_id"]
    assert {root["extra"]["metadata"]["thread_id"] for root in (first, second)} == {"twice"}
    assert [root["extra"]["metadata"]["attempt"] for root in (first, second)] == [1, 2]
    again = [span for span in receiver.spans.values() if "recalled" in span["tags"]]
    assert {span["name"] for span in again} >= {"planner model", "researcher model"}
    assert not any("usage_metadata" in span["extra"]["metadata"] for span in again)
