"""Summary, sentiment and what tools find in a text, all at once: the smallest example."""

import operator
import re
from typing import Annotated, Any, Literal

from langchain_core.messages import HumanMessage, SystemMessage
from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime
from pydantic import BaseModel, StringConstraints
from typing_extensions import TypedDict

from orchestrator import Workflow
from orchestrator.context import RunContext

DATE = r"\b\d{4}-\d\d-\d\d\b|\b\d{1,2} (?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]* \d{4}\b"
NUMBER = r"\d+(?:[.,]\d+)*"


class Given(TypedDict):
    """The input: a field is an option of the command line, and the first text is what is written without one."""

    text: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=50_000)]


class Made(TypedDict):
    """The output."""

    summary: str
    sentiment: str
    found: Annotated[dict[str, Any], operator.or_]  # several tools write it in the same step, so it says how to put them together
    report: str


class State(Given, Made):
    """What the nodes share."""


class Summary(BaseModel):
    """The form of the first answer that is asked for."""

    summary: str


class Sentiment(BaseModel):
    """The form of the second."""

    sentiment: Literal["positive", "negative", "mixed", "neutral"]


async def summarize(state: State, runtime: Runtime[RunContext]) -> dict[str, str]:
    """One call of the model. While it waits for the answer, everything else goes on."""
    messages = [SystemMessage("Sum up the user's text in one sentence."), HumanMessage(state["text"])]
    answer = await RunContext.of(runtime).answer("summary", messages, Summary)
    return {"summary": answer.summary}


async def judge(state: State, runtime: Runtime[RunContext]) -> dict[str, str]:
    """The other call, made at the same time: both take as long as the slower one, not as long as the two."""
    messages = [SystemMessage("Say which sentiment the user's text has."), HumanMessage(state["text"])]
    answer = await RunContext.of(runtime).answer("sentiment", messages, Sentiment)
    return {"sentiment": answer.sentiment}


def count_words(state: State) -> dict[str, Any]:
    """A plain function runs in a thread, so it may compute, or call a library that blocks, and holds nobody up."""
    return {"found": {"words": len(state["text"].split())}}


async def find_dates(state: State) -> dict[str, Any]:
    """An async function runs on the event loop: it awaits what takes long, such as a service that is asked over HTTP."""
    return {"found": {"dates": re.findall(DATE, state["text"])}}


async def find_numbers(state: State) -> dict[str, Any]:
    """Another tool, only asked where there is something to find."""
    return {"found": {"numbers": re.findall(NUMBER, state["text"])}}


def route(state: State) -> list[str]:
    """What is worth doing for this text: all nodes that are named run side by side."""
    dates = ["find_dates"] if re.search(DATE, state["text"]) else []
    numbers = ["find_numbers"] if re.search(NUMBER, state["text"]) else []
    return ["summarize", "judge", "count_words", *dates, *numbers]


async def join(state: State) -> dict[str, str]:
    """Everything that was started has ended: put it together."""
    found = [f"- {name}: {', '.join(value) if isinstance(value, list) else value}" for name, value in sorted(state["found"].items())]
    return {"report": "\n".join([state["summary"], "", f"- sentiment: {state['sentiment']}", *found])}


builder = StateGraph(State, input_schema=Given, output_schema=Made, context_schema=RunContext)
builder.add_node(summarize, metadata={"asks": 1})  # calls of a model, at most: `--dry-run` tells what a run may cost
builder.add_node(judge, metadata={"asks": 1})
builder.add_node(count_words)
builder.add_node(find_dates)
builder.add_node(find_numbers)
builder.add_node(join, defer=True)  # waits for everything that was started, however many steps it takes
side_by_side = ["summarize", "judge", "count_words", "find_dates", "find_numbers"]
builder.add_conditional_edges(START, route, side_by_side)
for name in side_by_side:
    builder.add_edge(name, "join")
builder.add_edge("join", END)

workflow = Workflow(builder, name="pipeline")
graph = workflow.compile()
