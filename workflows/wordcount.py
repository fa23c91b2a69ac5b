"""Count the words of several texts at once: plain LangGraph, nothing of this project in it."""

import operator
from typing import Annotated

from langgraph.graph import END, START, StateGraph
from langgraph.types import Send
from typing_extensions import TypedDict


class State(TypedDict):
    """The texts that are given, and how many words each has."""

    texts: list[str]
    counts: Annotated[list[int], operator.add]


class Text(TypedDict):
    """What one branch is sent."""

    text: str


async def count(state: Text) -> dict[str, list[int]]:
    """The words of one text."""
    return {"counts": [len(state["text"].split())]}


def each_text(state: State) -> list[Send]:
    """A branch for every text."""
    return [Send("count", {"text": text}) for text in state["texts"]]


builder = StateGraph(State)
builder.add_node("count", count)
builder.add_conditional_edges(START, each_text, ["count"])
builder.add_edge("count", END)
graph = builder.compile()
