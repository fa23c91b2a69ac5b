"""The planner: a question in, independent sub-questions out."""

from typing import Any, NotRequired

from langchain_core.language_models import BaseChatModel
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.runtime import Runtime
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from agents.prompts import PLANNER, prompt, question_block
from orchestrator.context import RunContext
from orchestrator.state import Finding

__all__ = ["Plan", "PlannerInput", "PlannerOutput", "create_planner"]


class PlannerInput(TypedDict):
    """The question; in a later round also what was found and which questions are still open."""

    question: str
    findings: NotRequired[list[Finding]]
    open_questions: NotRequired[list[str]]


class PlannerOutput(TypedDict):
    """Independent sub-questions, most important first; none when nothing is left to ask."""

    questions: list[str]


class PlannerState(PlannerInput, PlannerOutput):
    """What the planner's one node reads and writes."""


class Plan(BaseModel):
    """The plan: sub-questions that can be researched independently."""

    questions: list[str] = Field(description="sub-questions, each understandable on its own; empty when nothing is open", max_length=200)


def create_planner(model: BaseChatModel | None = None) -> CompiledStateGraph[Any, Any, Any, Any]:
    """An async subgraph PlannerInput -> PlannerOutput; `model` overrides the run's planner model. Raises ModelCallError."""

    async def plan(state: PlannerState, runtime: Runtime[Any]) -> dict[str, Any]:
        context = RunContext.of(runtime)
        earlier = [
            context.block("finding", finding.claim, id=str(number)) for number, finding in enumerate(state.get("findings") or [], start=1)
        ]
        still_open = [context.block("open", question) for question in state.get("open_questions") or []]
        messages = prompt(PLANNER, question_block(state["question"]), *earlier, *still_open, boundary=context.boundary)
        drawn_up = await context.answer("planner", messages, Plan, model=model)
        return {"questions": list(dict.fromkeys(question.strip() for question in drawn_up.questions if question.strip()))}

    graph = StateGraph(PlannerState, input_schema=PlannerInput, output_schema=PlannerOutput, context_schema=RunContext)
    graph.add_node("plan", plan, metadata={"asks": 1})
    graph.add_edge(START, "plan")
    graph.add_edge("plan", END)
    return graph.compile(name="planner", checkpointer=False)
