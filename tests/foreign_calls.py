"""Graphs whose nodes call models by themselves, and the terms of a run around them."""

import asyncio
import operator
from collections.abc import Callable
from typing import Annotated, Any

from langchain_core.language_models import BaseChatModel
from langgraph.graph import START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Send
from typing_extensions import TypedDict

from orchestrator.controls import Controls
from orchestrator.door import guarding
from orchestrator.terms import Terms
from orchestrator.testing import Reply

Graph = CompiledStateGraph[Any, Any, Any, Any]


class State(TypedDict):
    found: Annotated[list[str], operator.add]


def slow(delay: float) -> Callable[[Any], Reply]:
    return lambda _: Reply(text="hello", delay=delay)


def terms(**controls: Any) -> Terms:
    return Terms(controls=Controls.model_validate(controls))


def one_node(node: Callable[..., Any], *, loop: bool = False) -> Graph:
    graph = StateGraph(State).add_node("node", node).add_edge(START, "node")
    return (graph.add_edge("node", "node") if loop else graph).compile()


def asks(model: BaseChatModel) -> Callable[..., Any]:
    async def node(state: State) -> dict[str, Any]:
        return {"found": [str((await model.ainvoke("hello")).text)]}

    return node


def fan_out(times: int, inner: Any) -> Graph:
    graph = StateGraph(State).add_node("many", inner)
    return graph.add_conditional_edges(START, lambda _: [Send("many", {"found": []})] * times, ["many"]).compile()


async def invoke(graph: Graph, terms: Terms) -> Any:
    async with guarding(terms):
        return await graph.ainvoke({"found": []})


async def until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110 - nothing tells it
        await asyncio.sleep(0.002)


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)
