"""The judge of plans: a plan and criteria in, a score for each criterion out, with the reason."""

from functools import lru_cache
from typing import Any

from langchain_core.language_models import BaseChatModel
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.runtime import Runtime
from pydantic import BaseModel, Field, create_model
from typing_extensions import TypedDict

from agents.prompts import JUDGE, prompt, question_block
from orchestrator.context import RunContext
from orchestrator.state import Score

__all__ = ["JudgeInput", "JudgeOutput", "PlanVerdict", "create_judge"]


class JudgeInput(TypedDict):
    """The question, the sub-questions of a plan for it, and what it is judged by: `name` or `name: what it means`."""

    question: str
    plan: list[str]
    criteria: list[str]


class JudgeOutput(TypedDict):
    """A score for each criterion, in their order, and the verdict in one sentence."""

    scores: list[Score]
    verdict: str


class JudgeState(JudgeInput, JudgeOutput):
    """What the judge's one node reads and writes."""


class PlanVerdict(BaseModel):
    """How good the plan is."""

    scores: list[Score] = Field(description="one for each criterion, in the order given")
    verdict: str = Field(description="the verdict in one sentence", pattern=r"\S")


def create_judge(model: BaseChatModel | None = None) -> CompiledStateGraph[Any, Any, Any, Any]:
    """An async subgraph JudgeInput -> JudgeOutput; `model` overrides the run's judge model. Raises ModelCallError.

    A plan is judged by itself, so that its place among others changes nothing.
    """

    async def judge(state: JudgeState, runtime: Runtime[Any]) -> dict[str, Any]:
        context, criteria = RunContext.of(runtime), state["criteria"]
        instructions = JUDGE.format("\n".join(f"{at}. {criterion}" for at, criterion in enumerate(criteria, start=1)))
        plan = context.block("plan", "\n".join(f"{at}. {question}" for at, question in enumerate(state["plan"], start=1)))
        messages = prompt(instructions, question_block(state["question"]), plan, boundary=context.boundary)
        verdict = await context.answer("judge", messages, _verdict(len(criteria)), model=model)
        names = [criterion.partition(":")[0].strip() for criterion in criteria]
        scores = [score.model_copy(update={"criterion": name}) for score, name in zip(verdict.scores, names, strict=True)]
        return {"scores": scores, "verdict": verdict.verdict.strip()}

    graph = StateGraph(JudgeState, input_schema=JudgeInput, output_schema=JudgeOutput, context_schema=RunContext)
    graph.add_node("judge", judge, metadata={"asks": 1, "trace": {"judge": "hidden"}})
    graph.add_edge(START, "judge")
    graph.add_edge("judge", END)
    return graph.compile(name="judge", checkpointer=False)


@lru_cache(maxsize=16)
def _verdict(criteria: int) -> type[PlanVerdict]:
    """The schema with exactly so many scores: one too few would otherwise be a plan that one criterion was not held against."""
    scores = (list[Score], Field(description="one for each criterion, in the order given", min_length=criteria, max_length=criteria))
    return create_model("PlanVerdict", __base__=PlanVerdict, __doc__=PlanVerdict.__doc__, scores=scores)
