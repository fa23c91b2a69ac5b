import json
import operator
from dataclasses import dataclass
from typing import Annotated, Any, TypedDict

from langgraph.graph import END, START, StateGraph
from langgraph.types import Send
from pydantic import BaseModel, Field

from orchestrator.drawing import describe, draw_mermaid, draw_text
from orchestrator.workflow import Workflow, load_workflow


class Question(BaseModel):
    question: str = Field(description="what to find out")
    depth: int = 2


class Answer(TypedDict):
    answer: str


class State(Answer):
    question: str
    depth: int
    parts: Annotated[list[str], operator.add]


@dataclass
class Part:
    question: str
    parts: list[str]
    depth: int = 1


async def look(state: Part) -> dict[str, Any]:
    return {"parts": [state.question]}


async def check(state: Part) -> dict[str, Any]:
    return {"parts": ["checked"]}


def two_steps() -> Any:
    graph = StateGraph(Part).add_node("look", look).add_node("check", check)
    return graph.add_edge(START, "look").add_edge("look", "check").add_edge("check", END).compile(name="pair")


def workflow() -> Workflow:
    """The supervisor's shape: a node whose function calls a graph of two steps, started once for each Send."""
    pair = two_steps()

    async def plan(state: State) -> dict[str, Any]:
        return {"depth": 1}

    async def branch(state: Part) -> dict[str, Any]:
        return {"parts": (await pair.ainvoke(state))["parts"]}

    async def write(state: State) -> dict[str, Any]:
        return {"answer": " ".join(state["parts"])}

    def fan_out(state: State) -> list[Send] | str:
        return [Send("branch", {"question": part}) for part in state["question"].split()] or "write"

    graph = StateGraph(State, input_schema=Question, output_schema=Answer)
    graph.add_node("plan", plan).add_node("branch", branch).add_node("write", write, defer=True)
    graph.add_edge(START, "plan").add_conditional_edges("plan", fan_out)
    graph.add_edge("branch", "write").add_edge("write", END)
    return Workflow(graph, name="answers", description="Answers questions.", notes=("a note",))


def test_the_text_shows_nodes_ways_fan_outs_and_the_graph_inside_a_function() -> None:
    assert draw_text(workflow()).splitlines() == [
        "answers",
        "  START  ─> plan",
        "  plan   ┄> branch ×N, write",
        "  branch ─> write   ×N ⧉",
        "      ⧉ pair",
        "        START ─> look",
        "        look  ─> check",
        "        check ─> END",
        "  write  ─> END   waits for all",
        "",
        "─> always   ┄> on a condition   ×N once for each Send   ⧉ a graph inside",
    ]


def test_a_joint_edge_a_loop_and_a_way_that_is_not_known_are_shown() -> None:
    async def one(state: State) -> Any:
        return await look(state)  # type: ignore[arg-type]  # it is never run

    async def two(state: State) -> dict[str, Any]:
        return {}

    graph = StateGraph(State).add_node("one", one).add_node("two", two).add_node("three", two).add_node("four", one)
    graph.add_edge(START, "one").add_edge(START, "two").add_edge(["one", "two"], "three")
    graph.add_conditional_edges("three", lambda state: "one" if state["depth"] else "four")
    assert draw_text(Workflow(graph)).splitlines() == [
        "workflow",
        "  START ─> one, two",
        "  one   ─> three (with two)",
        "  three ┄> one, four",
        "  four  ┄> ?",
        "  two   ─> three (with one)",
        "",
        "─> always   ┄> on a condition",
    ]


def test_mermaid_draws_the_graph_inside_as_a_box() -> None:
    assert draw_mermaid(workflow()).splitlines() == [
        "flowchart TD",
        "  START_([START])",
        "  END_([END])",
        '  n_plan["plan"]',
        '  subgraph n_branch["branch"]',
        '    n_branch_0__look["look"]',
        '    n_branch_0__check["check"]',
        "    n_branch_0__look --> n_branch_0__check",
        "  end",
        '  n_write["write"]',
        "  START_ --> n_plan",
        "  n_plan -.->|×N| n_branch",
        "  n_plan -.-> n_write",
        "  n_branch --> n_write",
        "  n_write --> END_",
    ]


def test_mermaid_takes_any_name_of_a_node() -> None:
    graph = StateGraph(State).add_node('a "<b>"', check).add_edge(START, 'a "<b>"')
    assert draw_mermaid(Workflow(graph)).splitlines()[3:] == [
        '  n_a_20__22__3c_b_3e__22_["a &quot;&lt;b>&quot;"]',
        "  START_ --> n_a_20__22__3c_b_3e__22_",
    ]


def test_describe_says_everything_as_json() -> None:
    described = describe(workflow())
    assert json.loads(json.dumps(described)) == described
    assert described.pop("structure") == []
    part = [
        {"name": "question", "type": "str", "required": True},
        {"name": "parts", "type": "list[str]", "required": True},
        {"name": "depth", "type": "int", "required": False},
    ]
    assert described == {
        "name": "answers",
        "description": "Answers questions.",
        "path": None,
        "text_field": "question",
        "input": [
            {"name": "question", "type": "str", "required": True, "description": "what to find out"},
            {"name": "depth", "type": "int", "required": False, "description": "", "default": 2},
        ],
        "output": [{"name": "answer", "type": "str", "required": True}],
        "nodes": [
            {"name": "plan", "to": ["branch", "write"], "many": False, "subgraphs": []},
            {"name": "branch", "to": ["write"], "many": True, "subgraphs": ["pair"]},
            {"name": "write", "to": ["END"], "many": False, "subgraphs": []},
        ],
        "agents": [{"name": "pair", "node": "branch", "input": part, "output": part}],
        "notes": ["a note"],
    }


def test_the_shipped_plain_graph_is_drawn() -> None:
    assert draw_text(load_workflow("wordcount")).splitlines() == [
        "wordcount",
        "  START ┄> count ×N",
        "  count ─> END   ×N",
        "",
        "─> always   ┄> on a condition   ×N once for each Send",
    ]


def test_describe_says_what_a_graph_bounds_by_itself_and_nothing_of_what_is_done_once() -> None:
    rows = [(row["node"], row["value"], row["meaning"]) for row in describe(load_workflow("research"))["structure"]]
    assert rows == [
        ("plan", 2, "times in one run of research, at most"),
        ("branch", 2, "times that it runs the graph inside it, at most"),
        ("branch.researcher.research", 7, "times in one run of researcher, at most"),
        ("branch.researcher.call_tools", 6, "times in one run of researcher, at most"),
    ]
