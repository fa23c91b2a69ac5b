"""The summarizer: texts in, one summary of them out, with its sentiment and its key points."""

from collections.abc import Sequence
from typing import Any, Literal, NotRequired

from langchain_core.language_models import BaseChatModel
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.runtime import Runtime
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from agents.prompts import REDUCER, SUMMARIZER, focus_block, prompt
from orchestrator.context import RunContext

__all__ = ["Named", "Sentiment", "SummarizerInput", "SummarizerOutput", "Summary", "create_summarizer", "told"]

Sentiment = Literal["positive", "negative", "neutral", "mixed"]


class Summary(BaseModel):
    """What a text says."""

    summary: str = Field(description="what the text says, in a few sentences", pattern=r"\S", max_length=20_000)
    sentiment: Sentiment = Field(description="the author's towards what the text is about; neutral where none is expressed")
    key_points: list[str] = Field(description="the points that matter most, a sentence each, most important first", max_length=50)


class Named(TypedDict):
    """A text, and what it is of: `docs/a.md, part 2 of 3`."""

    name: str
    text: str


class SummarizerInput(TypedDict):
    """The text to sum up, or with `summaries` several that were summed up before, as `told` has them; and what to look for."""

    texts: list[Named]
    summaries: NotRequired[bool]
    focus: NotRequired[str]


class SummarizerOutput(TypedDict):
    """One summary of all the texts."""

    summary: Summary


class SummarizerState(SummarizerInput, SummarizerOutput):
    """What the summarizer's one node reads and writes."""


def create_summarizer(model: BaseChatModel | None = None) -> CompiledStateGraph[Any, Any, Any, Any]:
    """An async subgraph SummarizerInput -> SummarizerOutput; `model` overrides the run's `summarizer`, and its `reducer`, which is asked
    to put summaries together. Summary, sentiment and key points come of one call. Raises ModelCallError.
    """

    async def summarize(state: SummarizerState, runtime: Runtime[Any]) -> dict[str, Any]:
        context = RunContext.of(runtime)
        role = "reducer" if state.get("summaries") else "summarizer"
        instructions, tag = (REDUCER, "summary") if state.get("summaries") else (SUMMARIZER, "text")
        blocks = _blocks(tag, state["texts"], context)
        messages = prompt(instructions, focus_block(state.get("focus") or ""), *blocks, boundary=context.boundary)
        return {"summary": await context.answer(role, messages, Summary, model=model)}

    graph = StateGraph(SummarizerState, input_schema=SummarizerInput, output_schema=SummarizerOutput, context_schema=RunContext)
    graph.add_node("summarize", summarize, metadata={"asks": 1, "trace": {"summarize": "hidden"}})
    graph.add_edge(START, "summarize")
    graph.add_edge("summarize", END)
    return graph.compile(name="summarizer", checkpointer=False)


def _blocks(tag: str, texts: Sequence[Named], context: RunContext) -> list[str]:
    return [context.block(tag, named["text"], source=named["name"]) for named in texts]


def told(summary: Summary) -> str:
    """A summary as it is given to whoever puts several together: its sentiment, its text, and its key points as a list."""
    points = [f"- {' '.join(point.split())}" for point in summary.key_points]
    return "\n".join([f"Sentiment: {summary.sentiment}", " ".join(summary.summary.split()), *points])
