"""The planner of viewpoints: a question in, the same question from each of several viewpoints out."""

from typing import Any, NotRequired

from langchain_core.language_models import BaseChatModel
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.runtime import Runtime
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from agents.prompts import VIEWPOINTS, prompt, question_block
from orchestrator.context import RunContext
from orchestrator.errors import InputError, ModelSpecError

__all__ = ["Viewpoints", "ViewpointsInput", "ViewpointsOutput", "create_viewpoints"]


class ViewpointsInput(TypedDict):
    """The question, and the viewpoints where they are stated."""

    question: str
    perspectives: NotRequired[list[str]]


class ViewpointsOutput(TypedDict):
    """The viewpoints, each once, and the question from each of them."""

    questions: list[str]
    perspectives: list[str]


class ViewpointsState(ViewpointsOutput):
    """What the one node reads and writes."""

    question: str


class Viewpoints(BaseModel):
    """The viewpoints from which the question is to be researched."""

    viewpoints: list[str] = Field(description="short phrases", min_length=2, max_length=4)


def create_viewpoints(model: BaseChatModel | None = None) -> CompiledStateGraph[Any, Any, Any, Any]:
    """An async subgraph ViewpointsInput -> ViewpointsOutput, a planner of a supervisor. Raises ModelCallError.

    No model is asked where viewpoints are stated; else the run's planner model is, or `model`.
    """

    async def plan(state: ViewpointsState, runtime: Runtime[Any]) -> dict[str, Any]:
        stated = state.get("perspectives") or await _think_of(state["question"], RunContext.of(runtime), model)
        each = list({" ".join(view.split()).casefold(): " ".join(view.split()) for view in stated if view.strip()}.values())
        return {"perspectives": each, "questions": [f"{view[0].upper()}{view[1:]}: {state['question']}" for view in each]}

    graph = StateGraph(ViewpointsState, input_schema=ViewpointsInput, output_schema=ViewpointsOutput, context_schema=RunContext)
    graph.add_node("plan", plan, metadata={"asks": 1, "trace": {"plan": "hidden"}})
    graph.add_edge(START, "plan")
    graph.add_edge("plan", END)
    return graph.compile(name="planner", checkpointer=False)


async def _think_of(question: str, context: RunContext, model: BaseChatModel | None) -> list[str]:
    try:
        messages = prompt(VIEWPOINTS, question_block(question), boundary=context.boundary)
        return (await context.answer("planner", messages, Viewpoints, model=model)).viewpoints
    except ModelSpecError as error:
        remedy = 'state them (--perspectives "as a regulator" "as an investor"), or name a language model: --model openai:NAME'
        raise InputError("no perspective is stated, and the model can think of none", where=error.what, remedy=remedy) from error
