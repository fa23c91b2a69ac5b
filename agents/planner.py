"""The planner: a question in, independent sub-questions out."""

from typing import Any, NotRequired

from langchain_core.language_models import BaseChatModel
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.runtime import Runtime
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from agents.prompts import MAY_ASK, MUST_ASK, PLANNER, clarification_block, prompt, question_block
from orchestrator.asking import question as question_to_person
from orchestrator.context import RunContext
from orchestrator.state import Finding

__all__ = ["Clarification", "Plan", "PlanOrQuestion", "PlannerInput", "PlannerOutput", "create_planner"]


class PlannerInput(TypedDict):
    """The question; in a later round also what was found, which questions are still open, and what the user was asked and answered."""

    question: str
    findings: NotRequired[list[Finding]]
    open_questions: NotRequired[list[str]]
    clarification: NotRequired[str]


class PlannerOutput(TypedDict):
    """Independent sub-questions, most important first; none when nothing is left to ask. What the user was asked, for later rounds."""

    questions: list[str]
    clarification: NotRequired[str]


class PlannerState(PlannerInput, PlannerOutput):
    """What the planner's one node reads and writes."""


class Plan(BaseModel):
    """The plan: sub-questions that can be researched independently."""

    questions: list[str] = Field(description="sub-questions, each understandable on its own; empty when nothing is open", max_length=200)


class PlanOrQuestion(Plan):
    """The plan, or the one question to the user that has to come before it."""

    ask: str = Field(default="", description="a question to the user; empty when the plan can be made without one", max_length=500)
    choices: list[str] = Field(default=[], description="likely answers to `ask`, most likely first", max_length=8)


class Clarification(BaseModel):
    """One question to the user."""

    ask: str = Field(description="a question to the user", pattern=r"\S", max_length=500)
    choices: list[str] = Field(default=[], description="likely answers, most likely first", max_length=8)


def create_planner(model: BaseChatModel | None = None) -> CompiledStateGraph[Any, Any, Any, Any]:
    """An async subgraph PlannerInput -> PlannerOutput; `model` overrides the run's planner model. Raises ModelCallError.

    Where the run's control `ask` allows it, the user may be asked one question before the first plan.
    """

    async def plan(state: PlannerState, runtime: Runtime[Any]) -> dict[str, Any]:
        return await _plan(state, RunContext.of(runtime), model)

    graph = StateGraph(PlannerState, input_schema=PlannerInput, output_schema=PlannerOutput, context_schema=RunContext)
    graph.add_node("plan", plan, metadata={"asks": 1, "clarifies": 1})
    graph.add_edge(START, "plan")
    graph.add_edge("plan", END)
    return graph.compile(name="planner", checkpointer=False)


async def _plan(state: PlannerState, context: RunContext, model: BaseChatModel | None) -> dict[str, Any]:
    earlier = [context.block("finding", finding.claim, id=str(at)) for at, finding in enumerate(state.get("findings") or [], start=1)]
    still_open = [context.block("open", question) for question in state.get("open_questions") or []]
    clarification = state.get("clarification") or ""
    if context.controls.ask != "never" and not (clarification or earlier or still_open):
        drawn_up = await _ask_first(state["question"], context, model)
        if isinstance(drawn_up, Plan):
            return _planned(drawn_up)
        clarification = drawn_up
    parts = (question_block(state["question"]), clarification, *earlier, *still_open)
    drawn_up = await context.answer("planner", prompt(PLANNER, *parts, boundary=context.boundary), Plan, model=model)
    return {**_planned(drawn_up), **({"clarification": clarification} if clarification else {})}


async def _ask_first(question: str, context: RunContext, model: BaseChatModel | None) -> Plan | str:
    """The plan where the model has nothing to ask, else what the user was asked and answered. Pauses the run until there is an answer."""
    asked: PlanOrQuestion | Clarification
    if context.controls.ask == "always":
        messages = prompt(MUST_ASK, question_block(question), boundary=context.boundary)
        asked = await context.answer("planner", messages, Clarification, model=model)
    else:
        messages = prompt(PLANNER + MAY_ASK, question_block(question), boundary=context.boundary)
        asked = await context.answer("planner", messages, PlanOrQuestion, model=model)
        if not asked.ask.strip():
            return asked
    text = " ".join(asked.ask.split())
    choices = list(dict.fromkeys(" ".join(choice.split()) for choice in asked.choices if choice.strip()))
    return clarification_block(text, await context.consult(question_to_person("clarify", text, choices=choices)))


def _planned(plan: Plan) -> dict[str, list[str]]:
    return {"questions": list(dict.fromkeys(question.strip() for question in plan.questions if question.strip()))}
