"""Several plans for one question, drawn up at once and judged by stated criteria; the best one is researched by the supervisor."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from statistics import fmean
from typing import Any

from langchain_core.language_models import BaseChatModel
from langgraph.errors import GraphBubbleUp, GraphInterrupt
from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime
from langgraph.types import Overwrite
from pydantic import BaseModel, ConfigDict, Field, field_validator

from orchestrator.context import RunContext, kinds_asked
from orchestrator.errors import GraphError, InputError, StorageError, said
from orchestrator.events import tell
from orchestrator.graphs.branches import RESEARCH_SHARE, Agent, call_agent, status_of
from orchestrator.graphs.questions import same_question
from orchestrator.graphs.report import markdown_table, plain_markdown
from orchestrator.graphs.supervisor import AFRESH, SupervisorInput, SupervisorOutput, SupervisorState, add_research, check_documents
from orchestrator.interrupts import asked_at_once
from orchestrator.models.call import model_name
from orchestrator.models.narrowing import asking_only
from orchestrator.spans import HIDDEN
from orchestrator.state import Failure, Score
from orchestrator.text import counted, one_line

__all__ = ["CRITERIA", "MANNERS", "PlansInput", "PlansOutput", "PlansState", "RatedPlan", "create_plans"]

CRITERIA = (
    "coverage: together the sub-questions answer the whole question",
    "independence: each can be researched alone, and none asks what another asks",
    "feasibility: the documents of such a collection can be expected to answer them",
    "cost: there are no more of them than the question needs",
)
MANNERS: Mapping[str, str] = {
    "frugal": "with as few sub-questions as can be",
    "thorough": "with every part, term and condition of the question looked at by itself",
    "sceptical": "so that whatever would contradict an easy answer is looked for",
}
"""How further plans of one model are told to differ from its first, by the names that the report has for them."""

_AT_FIRST = 3  # plans of a single model


class PlansInput(SupervisorInput):
    """What a research run is asked that has several plans to choose from."""

    plans: int = Field(default=0, description="how many plans; 0: one of each planner model, three where there is one", ge=0, le=12)
    criteria: list[str] = Field(default=[*CRITERIA], description="what plans are judged by: NAME or 'NAME: MEANING'", max_length=8)
    only_plan: bool = Field(default=False, description="show the plans and what was thought of them, and research nothing")

    @field_validator("criteria")
    @classmethod
    def _names(cls, criteria: list[str]) -> list[str]:
        names = [one_line(criterion).partition(":")[0].strip().casefold() for criterion in criteria]
        if not names or not all(names) or len({*names}) < len(names):
            raise ValueError("each criterion needs a name of its own, and there must be one")
        return criteria


class RatedPlan(BaseModel):
    """A plan: who drew it up (the models, and in which manner), its sub-questions and what the judge thought of it.

    `mean` of the scores, 1 to 5: None where it was not judged, because it is the only one or because the judge failed.
    """

    model_config = ConfigDict(frozen=True)

    number: int
    planners: list[str]
    questions: list[str]
    scores: list[Score] = Field(default_factory=list)
    mean: float | None = None
    verdict: str = ""
    chosen: bool = False


class PlansOutput(SupervisorOutput):
    """The report, and every plan in the order of its planners; the same plan of several planners is one."""

    rated_plans: list[RatedPlan]


class PlansState(SupervisorState, PlansOutput):
    """The supervisor's state, and what the plans are asked for."""

    plans: int
    criteria: list[str]
    only_plan: bool


def create_plans(
    planner: Agent, judge: Agent, researcher: Agent, verifier: Agent, writer: Agent, *, max_rounds: int = 2, max_repairs: int = 1
) -> StateGraph[Any, Any, Any, Any]:
    """A graph PlansInput -> PlansOutput, ready to compile: the supervisor, with a choice of plans before its first round.

    The role `planner`'s models each draw up a plan at the same time, in their order; where more plans are asked for they begin anew,
    each time in another of MANNERS. A judge (`question`, `plan`, `criteria` -> `scores`, `verdict`) scores each by itself. The best mean
    is taken; of equals the plan with fewer questions, then the first. A planner or a judge that fails is named, and the run `partial`;
    where all planners fail the run does. Raises GraphError when an agent's schemas do not fit.
    """
    missing = {"scores", "verdict"} - {*judge.output_channels}
    if missing:
        raise GraphError("the plans cannot be judged", [f"the judge's output has no {key!r}" for key in sorted(missing)])

    async def check(state: Mapping[str, Any], context: RunContext) -> None:
        if not state.get("only_plan"):
            await check_documents(state, context)

    async def plans(state: PlansState, runtime: Runtime[RunContext]) -> dict[str, Any]:
        context, question = RunContext.of(runtime), state["question"]
        await check(state, context)  # before anything is paid for
        with kinds_asked() as kinds:
            async with context.within(RESEARCH_SHARE):
                rated, failures = await _drawn_up(planner, question, state.get("plans") or 0, context)
                rated, more = await _judged(judge, question, rated, state.get("criteria") or [*CRITERIA], context)
        chosen = _chosen(rated)
        failures += more
        told = _section(rated, chosen)
        came: dict[str, Any] = {"first_plan": chosen.questions, "rated_plans": rated, "appendix": [told]}
        if state.get("only_plan"):
            gaps = [f"the {failure.role}: {failure.error}" for failure in failures]
            came |= {"report": _only(question, told, gaps), "gaps": gaps, "findings": [], "sources": []}
        if not state.get("report"):
            return {**came, "failures": failures, "asked": sorted(kinds)}
        # A report is a run's last: this one is the next on its thread.
        return {**AFRESH, **came, "failures": Overwrite(failures), "asked": Overwrite(sorted(kinds))}

    async def after_plans(state: PlansState) -> str:
        return END if state.get("only_plan") else "plan"

    graph = StateGraph(PlansState, input_schema=PlansInput, output_schema=PlansOutput, context_schema=RunContext)
    graph.add_node("plans", plans, metadata={"runs": 12, "trace": {"plans": HIDDEN}})
    add_research(graph, planner, researcher, verifier, writer, max_rounds=max_rounds, max_repairs=max_repairs, check=check)
    for node in ("plan", "branch", "write"):  # none of them is come to where a plan alone is asked for
        graph.nodes[node].metadata = _after_plans(graph.nodes[node].metadata or {})
    graph.add_edge(START, "plans")
    graph.add_conditional_edges("plans", after_plans, ["plan", END])
    return graph


def _after_plans(costs: Mapping[str, Any]) -> dict[str, Any]:
    """What a node of the research costs, for the forecast."""
    visits = costs.get("visits", 1)
    return {**costs, "visits": lambda given, controls: 0 if given.get("only_plan") else visits}


async def _drawn_up(planner: Agent, question: str, count: int, context: RunContext) -> tuple[list[RatedPlan], list[Failure]]:
    """The distinct plans in the order of their planners, and the planners that failed; raises the first one's error where all did."""
    models = await context.models_of("planner")
    count = count or (len(models) if len(models) > 1 else _AT_FIRST)
    turns = [*MANNERS.items()]

    async def draw_up(at: int) -> list[str]:
        turn, place = divmod(at, len(models))
        manner = {"manner": turns[(turn - 1) % len(turns)][1]} if turn else {}
        with _alone(models, models[place]):
            return (await call_agent(planner, {"question": question, **manner}, context))["questions"] or [question]

    names = [_named(at, models, [name for name, _ in turns]) for at in range(count)]
    outcomes = await _side_by_side([draw_up(at) for at in range(count)])
    plans: dict[frozenset[Any], RatedPlan] = {}
    failures = []
    for name, outcome in zip(names, outcomes, strict=True):
        if isinstance(outcome, Exception):
            failures.append(Failure(role=f"planner {name}", status=status_of(outcome), error=said(outcome)))
            continue
        key = frozenset(map(same_question, outcome))
        known = plans.get(key)
        if known is None:
            plans[key] = RatedPlan(number=len(plans) + 1, planners=[name], questions=outcome)
        else:
            plans[key] = known.model_copy(update={"planners": [*known.planners, name]})
    for failed in (outcome for outcome in outcomes if isinstance(outcome, Exception)):
        if not plans:
            raise failed
    return [*plans.values()], failures


async def _judged(
    judge: Agent, question: str, plans: Sequence[RatedPlan], criteria: Sequence[str], context: RunContext
) -> tuple[list[RatedPlan], list[Failure]]:
    """The plans with their scores; the only one needs none."""
    if len(plans) == 1:
        return [*plans], []
    given = [{"question": question, "plan": plan.questions, "criteria": [*criteria]} for plan in plans]
    outcomes = await _side_by_side([call_agent(judge, each, context) for each in given])
    rated, failures = list[RatedPlan](), list[Failure]()
    for plan, outcome in zip(plans, outcomes, strict=True):
        if isinstance(outcome, Exception):
            failures.append(Failure(role=f"judge of plan {plan.number}", status=status_of(outcome), error=said(outcome)))
            rated.append(plan)
            continue
        mean = round(fmean(score.score for score in outcome["scores"]), 2)
        tell("log", level="info", message=f"plan {plan.number} by {', '.join(plan.planners)}: {mean:g} of 5")
        rated.append(plan.model_copy(update={"scores": outcome["scores"], "mean": mean, "verdict": outcome["verdict"]}))
    return rated, failures


async def _side_by_side(works: Sequence[Any]) -> list[Any]:
    """What each comes to, its error as data; what ends a run is raised, and what a person is asked once all have ended."""

    async def outcome(work: Any) -> Any:
        try:
            return await work
        except GraphInterrupt as pause:
            return pause
        except (GraphBubbleUp, InputError, StorageError):
            raise
        except Exception as error:  # noqa: BLE001 - here a failure becomes data, whosever code it was
            return error

    try:
        async with asyncio.TaskGroup() as group:
            made = [group.create_task(outcome(work)) for work in works]
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None
    outcomes = [one.result() for one in made]
    if pauses := [one for one in outcomes if isinstance(one, GraphInterrupt)]:
        raise asked_at_once(pauses)
    return outcomes


def _alone(models: Sequence[BaseChatModel], model: BaseChatModel) -> AbstractContextManager[None]:
    return asking_only(model, models) if len(models) > 1 else nullcontext()


def _named(at: int, models: Sequence[BaseChatModel], manners: Sequence[str]) -> str:
    """A planner's name: its model, and where it has drawn up another plan before the manner of this one."""
    turn, place = divmod(at, len(models))
    manner = manners[(turn - 1) % len(manners)]
    again = f" {(turn - 1) // len(manners) + 1}" if turn > len(manners) else ""
    return f"{model_name(models[place])}, {manner}{again}" if turn else model_name(models[place])


def _chosen(plans: list[RatedPlan]) -> RatedPlan:
    """The best plan, which is marked as such in `plans`."""
    best = min(range(len(plans)), key=lambda at: (-(plans[at].mean or 0), len(plans[at].questions), at))
    plans[best] = plans[best].model_copy(update={"chosen": True})
    return plans[best]


def _section(plans: Sequence[RatedPlan], chosen: RatedPlan) -> str:
    """The plans side by side, then each with its questions and what was thought of it."""
    criteria = next(([score.criterion for score in plan.scores] for plan in plans if plan.scores), [])
    rows = [_row(plan, len(criteria)) for plan in plans]
    head = ["plan", "by", "questions", *map(plain_markdown, criteria), *(["mean"] if criteria else [])]
    parts = ["## Plans", markdown_table(head, rows, numbers=range(2, len(head))), _why(plans, chosen)]
    for plan in plans:
        thought = [f"- {plain_markdown(score.criterion)} {score.score}: {plain_markdown(score.reason)}" for score in plan.scores]
        thought += [f"- {plain_markdown(plan.verdict)}"] if plan.verdict else []
        questions = [f"{at}. {plain_markdown(question)}" for at, question in enumerate(plan.questions, start=1)]
        parts += [f"Plan {plan.number}, by {plain_markdown('; '.join(plan.planners))}:", "\n".join(questions), "\n".join(thought)]
    return "\n\n".join(part for part in parts if part)


def _row(plan: RatedPlan, criteria: int) -> list[str]:
    """The plan's row of the table, without scores where nothing was judged by any criterion."""
    told = [f"**{plan.number}**" if plan.chosen else f"{plan.number}", plain_markdown("; ".join(plan.planners)), f"{len(plan.questions)}"]
    if not criteria:
        return told
    return [*told, *([f"{score.score}" for score in plan.scores] or ["–"] * criteria), "–" if plan.mean is None else f"{plan.mean:.2f}"]


def _why(plans: Sequence[RatedPlan], chosen: RatedPlan) -> str:
    if len(plans) == 1:
        by = len(chosen.planners)
        return f"{counted(by, 'planner')} drew up the same plan: there was nothing to judge." if by > 1 else "There is one plan."
    if chosen.mean is None:
        return f"No plan was judged: plan {chosen.number}, the shortest, was taken."
    equal = [plan for plan in plans if plan.mean == chosen.mean and plan is not chosen]
    if not equal:
        return f"Plan {chosen.number} was taken: it has the best mean."
    why = "has fewer questions" if all(len(chosen.questions) < len(plan.questions) for plan in equal) else "comes first"
    return f"Plan {chosen.number} was taken: of {len(equal) + 1} plans with the best mean it {why}."


def _only(question: str, told: str, gaps: Sequence[str]) -> str:
    lost = "\n".join(["## Not answered", "", *(f"- {plain_markdown(gap)}" for gap in gaps)]) if gaps else ""
    return "\n\n".join(part for part in (f"# {plain_markdown(question)}", told, lost) if part) + "\n"
