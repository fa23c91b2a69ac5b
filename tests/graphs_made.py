"""Nodes and a builder from which the tests of the checks make their graphs."""

import operator
from collections.abc import Callable
from typing import Annotated, Any, TypedDict

from langgraph.graph import START, StateGraph
from langgraph.graph.state import CompiledStateGraph

Graph = StateGraph[Any, Any, Any, Any] | CompiledStateGraph[Any, Any, Any, Any]


class State(TypedDict):
    items: list[str]
    result: str
    found: Annotated[list[str], operator.add]


async def start(state: State) -> dict[str, Any]:
    return {"items": state["items"]}


async def work(state: State) -> dict[str, Any]:
    return {"found": ["x"]}


async def finish(state: State) -> dict[str, Any]:
    return {"result": "done"}


def builder(*nodes: Callable[..., Any], state: Any = State) -> StateGraph[Any, Any, Any, Any]:
    graph = StateGraph(state)
    for node in nodes:
        graph.add_node(node.__name__, node)
    graph.add_edge(START, nodes[0].__name__)
    return graph
