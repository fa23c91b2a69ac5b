"""The planner: a question in, independent sub-questions out."""

from collections.abc import Iterator, Sequence
from typing import Any, NotRequired

from langchain_core.language_models import BaseChatModel
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.runtime import Runtime
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from agents.prompts import IN_A_MANNER, IN_CONVERSATION, MAY_ASK, MUST_ASK, PLANNER, clarification_block, prompt, question_block
from orchestrator.asking import question as question_to_person
from orchestrator.context import RunContext
from orchestrator.state import Finding

__all__ = [
    "Clarification",
    "ConversationPlan",
    "ConversationPlanOrQuestion",
    "Plan",
    "PlanOrQuestion",
    "PlannerInput",
    "PlannerOutput",
    "create_planner",
]


class PlannerInput(TypedDict):
    """The question; in a later round also what was found, which questions are still open, and what the user was asked and answered.

    In a conversation its turns before this one, {question, answer}, and the facts that the user told in them. `manner`: how this plan is to
    differ from others of the same question.
    """

    question: str
    findings: NotRequired[list[Finding]]
    open_questions: NotRequired[list[str]]
    clarification: NotRequired[str]
    conversation: NotRequired[list[dict[str, str]]]
    facts: NotRequired[list[str]]
    manner: NotRequired[str]


class PlannerOutput(TypedDict):
    """Independent sub-questions, most important first; none when nothing is left to ask. What the user was asked, for later rounds.

    `remember`: facts that the user told, for later runs of the conversation.
    """

    questions: list[str]
    clarification: NotRequired[str]
    remember: NotRequired[list[str]]


class PlannerState(PlannerInput, PlannerOutput):
    """What the planner's one node reads and writes."""


class Plan(BaseModel):
    """The plan: sub-questions that can be researched independently."""

    questions: list[str] = Field(description="sub-questions, each understandable on its own; empty when nothing is open", max_length=200)


class ConversationPlan(Plan):
    """The plan, and what to remember for the rest of the conversation."""

    remember: list[str] = Field(default=[], description="facts that the user states, one sentence each", max_length=20)


class PlanOrQuestion(Plan):
    """The plan, or the one question to the user that has to come before it."""

    ask: str = Field(default="", description="a question to the user; empty when the plan can be made without one", max_length=500)
    choices: list[str] = Field(default=[], description="likely answers to `ask`, most likely first", max_length=8)


class ConversationPlanOrQuestion(PlanOrQuestion, ConversationPlan):
    """The plan with what to remember, or the question that has to come before it."""


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
    graph.add_node("plan", plan, metadata={"asks": 1, "clarifies": 1, "trace": {"plan": "hidden"}})
    graph.add_edge(START, "plan")
    graph.add_edge("plan", END)
    return graph.compile(name="planner", checkpointer=False)


async def _plan(state: PlannerState, context: RunContext, model: BaseChatModel | None) -> dict[str, Any]:
    earlier = [context.block("finding", finding.claim, id=str(at)) for at, finding in enumerate(state.get("findings") or [], start=1)]
    still_open = [context.block("open", question) for question in state.get("open_questions") or []]
    conversing = "conversation" in state
    known = (*_conversation(state, context), question_block(state["question"]))
    clarification = state.get("clarification") or ""
    instructions = PLANNER + (IN_CONVERSATION if conversing else "") + (IN_A_MANNER.format(state["manner"]) if state.get("manner") else "")
    if context.controls.ask != "never" and not (clarification or earlier or still_open):
        drawn_up = await _ask_first(known, context, model, instructions=instructions, conversing=conversing)
        if isinstance(drawn_up, Plan):
            return _planned(drawn_up)
        clarification = drawn_up
    messages = prompt(instructions, *known, clarification, *earlier, *still_open, boundary=context.boundary)
    drawn_up = await context.answer("planner", messages, ConversationPlan if conversing else Plan, model=model)
    return {**_planned(drawn_up), **({"clarification": clarification} if clarification else {})}


def _conversation(state: PlannerState, context: RunContext) -> Iterator[str]:
    """What was said before the question, as data: the answers rest on what was retrieved."""
    for fact in state.get("facts") or []:
        yield context.block("fact", fact)
    for at, turn in enumerate(state.get("conversation") or [], start=1):
        yield context.block("asked", turn["question"], id=str(at))
        yield context.block("answered", turn["answer"], id=str(at))


async def _ask_first(
    known: Sequence[str], context: RunContext, model: BaseChatModel | None, *, instructions: str, conversing: bool
) -> Plan | str:
    """The plan where the model has nothing to ask, else what the user was asked and answered. Pauses the run until there is an answer."""
    asked: PlanOrQuestion | Clarification
    if context.controls.ask == "always":
        messages = prompt(MUST_ASK, *known, boundary=context.boundary)
        asked = await context.answer("planner", messages, Clarification, model=model)
    else:
        messages = prompt(instructions + MAY_ASK, *known, boundary=context.boundary)
        schema = ConversationPlanOrQuestion if conversing else PlanOrQuestion
        asked = await context.answer("planner", messages, schema, model=model)
        if not asked.ask.strip():
            return asked
    text = " ".join(asked.ask.split())
    choices = list(dict.fromkeys(" ".join(choice.split()) for choice in asked.choices if choice.strip()))
    return clarification_block(text, await context.consult(question_to_person("clarify", text, choices=choices)))


def _planned(plan: Plan) -> dict[str, list[str]]:
    planned = {"questions": _each_once(plan.questions)}
    remember = _each_once(plan.remember) if isinstance(plan, ConversationPlan) else []
    return {**planned, "remember": remember} if remember else planned


def _each_once(lines: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(line.strip() for line in lines if line.strip()))
