from dataclasses import FrozenInstanceError
from typing import Any, TypedDict

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.func import entrypoint
from langgraph.graph import END, START, StateGraph

from orchestrator.controls import Controls
from orchestrator.errors import GraphError, WorkflowLoadError
from orchestrator.workflow import Workflow

# A workflow as a value


class State(TypedDict):
    text: str


async def double(state: State) -> dict[str, Any]:
    return {"text": state["text"] * 2}


def simple() -> StateGraph[Any, Any, Any, Any]:
    return StateGraph(State).add_node("double", double).add_edge(START, "double").add_edge("double", END)


def test_a_workflow_is_a_frozen_value_with_default_controls() -> None:
    workflow = Workflow(simple())
    assert (workflow.name, workflow.description, workflow.path, workflow.notes) == ("", "", None, ())
    assert workflow.controls == Controls()
    with pytest.raises(FrozenInstanceError):
        workflow.name = "other"  # type: ignore[misc]  # that it is refused is the point


async def test_what_compile_gives_runs_streams_and_batches() -> None:
    graph = Workflow(simple(), name="twice").compile()
    assert graph.name == "twice"
    assert await graph.ainvoke({"text": "a"}) == {"text": "aa"}
    assert [part async for part in graph.astream({"text": "b"})] == [{"double": {"text": "bb"}}]
    assert await graph.abatch([{"text": "c"}, {"text": "d"}]) == [{"text": "cc"}, {"text": "dd"}]


def test_a_compiled_graph_is_itself_as_long_as_nothing_changes() -> None:
    graph = simple().compile(name="twice")
    assert Workflow(graph).compile() is graph
    assert Workflow(graph, name="twice").compile() is graph


async def test_a_compiled_graph_is_copied_for_a_checkpointer_and_keeps_its_own_options() -> None:
    graph = simple().compile(name="twice", interrupt_before=["double"])
    saver = InMemorySaver()
    copy = Workflow(graph, name="copy").compile(checkpointer=saver)
    assert (copy.checkpointer, copy.name, graph.checkpointer, graph.name) == (saver, "copy", None, "twice")
    await copy.ainvoke({"text": "a"}, {"configurable": {"thread_id": "1"}})
    assert (await copy.aget_state({"configurable": {"thread_id": "1"}})).next == ("double",)
    free = Workflow(graph).compile(interrupt_before=[])
    assert await free.ainvoke({"text": "a"}) == {"text": "aa"}


def test_a_graph_with_a_default_error_handler_compiles_more_than_once() -> None:
    async def rescue(state: State) -> dict[str, Any]:
        return {"text": "rescued"}

    workflow = Workflow(simple().set_node_defaults(error_handler=rescue))
    assert [set(workflow.compile().nodes), set(workflow.compile().nodes)] == [{"__start__", "double", "__default_error_handler__"}] * 2


def test_what_is_no_graph_is_refused_at_once() -> None:
    @entrypoint()
    async def functional(text: str) -> str:
        return text

    with pytest.raises(WorkflowLoadError) as caught:
        Workflow(functional)  # type: ignore[arg-type]  # the functional API gives another kind of graph
    assert caught.value.lines() == [
        "A Workflow takes a StateGraph or a compiled one, not Pregel",
        "A graph of the functional API has no state schema: make it a node of a StateGraph",
    ]
    with pytest.raises(WorkflowLoadError, match="not function"):
        Workflow(double)  # type: ignore[arg-type]  # that it is refused is the point


def test_a_graph_that_cannot_be_compiled_says_why() -> None:
    with pytest.raises(GraphError) as caught:
        Workflow(StateGraph(State).add_node("double", double), name="broken").compile()
    assert caught.value.problems == ["Graph must have an entrypoint: add at least one edge from START to another node"]
