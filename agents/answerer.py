"""The answerer: a question in, an answer out, from what its model knows."""

from typing import Any

from langchain_core.language_models import BaseChatModel
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.runtime import Runtime
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from agents.prompts import ANSWERER, prompt, question_block
from orchestrator.context import RunContext

__all__ = ["AnswererInput", "AnswererOutput", "DirectAnswer", "create_answerer"]


class AnswererInput(TypedDict):
    """The question."""

    question: str


class AnswererOutput(TypedDict):
    """The answer, as the model gave it: nothing of it is checked."""

    answer: str


class AnswererState(AnswererInput, AnswererOutput):
    """What the answerer's one node reads and writes."""


class DirectAnswer(BaseModel):
    """The answer to the question."""

    answer: str = Field(description="the answer", pattern=r"\S")


def create_answerer(model: BaseChatModel | None = None) -> CompiledStateGraph[Any, Any, Any, Any]:
    """An async subgraph AnswererInput -> AnswererOutput; `model` overrides the run's answerer model. Raises ModelCallError."""

    async def answer(state: AnswererState, runtime: Runtime[Any]) -> dict[str, Any]:
        context = RunContext.of(runtime)
        messages = prompt(ANSWERER, question_block(state["question"]), boundary=context.boundary)
        return {"answer": (await context.answer("answerer", messages, DirectAnswer, model=model)).answer.strip()}

    graph = StateGraph(AnswererState, input_schema=AnswererInput, output_schema=AnswererOutput, context_schema=RunContext)
    graph.add_node("answer", answer, metadata={"asks": 1, "trace": {"answer": "hidden"}})
    graph.add_edge(START, "answer")
    graph.add_edge("answer", END)
    return graph.compile(name="answerer", checkpointer=False)
