"""One question from several viewpoints at once, and what they agree and disagree on, side by side, each statement with its citations."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.runtime import Runtime
from pydantic import BaseModel, ConfigDict, Field, field_validator
from typing_extensions import TypedDict

from orchestrator.context import RunContext
from orchestrator.errors import GraphError, InputError
from orchestrator.graphs.branches import Agent, call_agent
from orchestrator.graphs.report import cited, holds, markdown_table, plain_markdown
from orchestrator.graphs.supervisor import SupervisorInput, SupervisorOutput, SupervisorState, add_research, check_documents
from orchestrator.spans import HIDDEN
from orchestrator.state import BranchResult, Finding, Sentence

__all__ = ["PerspectivesInput", "PerspectivesOutput", "PerspectivesState", "Statement", "create_perspectives"]


class PerspectivesInput(SupervisorInput):
    """What a research run is asked that looks from several viewpoints."""

    perspectives: list[str] = Field(
        default=[], description="the viewpoints, such as 'as a regulator'; without, the planner's model thinks of some", max_length=12
    )

    @field_validator("perspectives")
    @classmethod
    def _several(cls, perspectives: list[str]) -> list[str]:
        views = {" ".join(view.split()).casefold() for view in perspectives}
        if perspectives and (len(views) < 2 or "" in views):
            raise ValueError("state two viewpoints or more, none of them blank")
        return perspectives


class Statement(BaseModel):
    """A sentence of the comparison, the viewpoints that found what it rests on, and that: positions in the output's findings, from 1."""

    model_config = ConfigDict(frozen=True)

    text: str
    perspectives: list[str]
    findings: list[int]


class PerspectivesOutput(SupervisorOutput):
    """The report, the viewpoints, and what they agree and disagree on: a contradiction is what its sides say, two or more."""

    perspectives: list[str]
    agreements: list[Statement]
    contradictions: list[list[Statement]]


class PerspectivesState(SupervisorState, PerspectivesOutput):
    """The supervisor's state, and the comparison."""


def create_perspectives(
    viewpoints: Agent, researcher: Agent, verifier: Agent, comparer: Agent, *, max_repairs: int = 1
) -> StateGraph[Any, Any, Any, Any]:
    """A graph PerspectivesInput -> PerspectivesOutput, ready to compile: a supervisor of one round with a branch a viewpoint.

    `viewpoints` is a planner (`question`, `perspectives` -> `questions`, `perspectives`), `comparer` takes `question`, `findings` and
    `found_by`, the viewpoints of each finding, and answers `answer`, `agreed` and `contradicted`. Of these only what holds is kept: a
    sentence needs supported findings that have its numbers, dates and names, an agreement findings of two viewpoints, a contradiction two
    sides that rest on different findings, of two viewpoints. Raises GraphError when an agent's schemas do not fit.
    """
    problems = [f"the planner of viewpoints answers no {key!r}" for key in sorted({"perspectives"} - {*viewpoints.output_channels})]
    problems += [f"the comparer answers no {key!r}" for key in sorted({"answer", "agreed", "contradicted"} - {*comparer.output_channels})]
    if problems:
        raise GraphError("the viewpoints cannot be compared", problems)
    graph = StateGraph(PerspectivesState, input_schema=PerspectivesInput, output_schema=PerspectivesOutput, context_schema=RunContext)
    add_research(graph, viewpoints, researcher, verifier, _comparison(comparer), max_rounds=1, max_repairs=max_repairs, check=_check)
    graph.add_edge(START, "plan")
    return graph


async def _check(given: Mapping[str, Any], context: RunContext) -> None:
    """Refuse documents that cannot be read, and viewpoints that nobody states or can think of."""
    await check_documents(given, context)
    if not given.get("perspectives") and (await context.model("planner"))._llm_type == "offline":
        remedy = 'state them (--perspectives "as a regulator" "as an investor"), or name a language model: --model openai:NAME'
        raise InputError("no perspective is stated, and the offline model can think of none", remedy=remedy)


class _Given(TypedDict):
    question: str
    findings: list[Finding]
    branches: list[BranchResult]
    perspectives: list[str]


class _Came(TypedDict):
    answer: list[Sentence]
    agreements: list[Statement]
    contradictions: list[list[Statement]]
    sections: list[str]


class _State(_Given, _Came):
    """What the comparison's one node reads and writes."""


def _comparison(comparer: Agent) -> CompiledStateGraph[Any, Any, Any, Any]:
    """A writer: what the comparer says, as far as it holds."""

    async def compare(state: _State, runtime: Runtime[RunContext]) -> dict[str, Any]:
        findings = state["findings"]
        found_by = _found_by(findings, state["branches"], state.get("perspectives") or [])
        given = {"question": state["question"], "findings": findings, "found_by": found_by}
        came = await call_agent(comparer, given, RunContext.of(runtime))
        agreements = [said for said in _stated(came["agreed"], findings, found_by) if len(said.perspectives) > 1]
        contradictions = [sides for each in came["contradicted"] if _contradicts(sides := [*_stated(each, findings, found_by)])]
        sections = [_agreed(agreements, findings), _contradicted(contradictions, findings)]
        return {"answer": came["answer"], "agreements": agreements, "contradictions": contradictions, "sections": sections}

    graph = StateGraph(_State, input_schema=_Given, output_schema=_Came, context_schema=RunContext)
    graph.add_node("compare", compare, metadata={"runs": 1, "trace": {"compare": HIDDEN}})
    graph.add_edge(START, "compare")
    graph.add_edge("compare", END)
    return graph.compile(name="writer", checkpointer=False if comparer.checkpointer is False else None)


def _found_by(findings: Sequence[Finding], branches: Sequence[BranchResult], perspectives: Sequence[str]) -> list[list[str]]:
    """The viewpoints of each finding: the same one may have been found by several branches."""

    def view(question: str) -> str:
        return next((view for view in perspectives if question.casefold().startswith(f"{view.casefold()}:")), question)

    found: dict[tuple[Any, ...], dict[str, None]] = {}
    for result in branches:
        for finding in result.findings:
            found.setdefault((finding.claim, *finding.citations), {})[view(result.task.question)] = None
    return [[*found.get((finding.claim, *finding.citations), {})] for finding in findings]


def _stated(sentences: Sequence[Sentence], findings: Sequence[Finding], found_by: Sequence[Sequence[str]]) -> Iterator[Statement]:
    """The sentences that hold, with their viewpoints."""
    for sentence in sentences:
        if holds(sentence, findings):
            views = dict.fromkeys(view for number in sentence.findings for view in found_by[number - 1])
            yield Statement(text=sentence.text, perspectives=[*views], findings=sentence.findings)


def _contradicts(sides: Sequence[Statement]) -> bool:
    """Whether the sides are two or more, of two viewpoints or more, and none rests on what another one rests on."""
    numbers = [number for side in sides for number in {*side.findings}]
    return len(sides) > 1 and len({*numbers}) == len(numbers) and len({view for side in sides for view in side.perspectives}) > 1


def _agreed(agreements: Sequence[Statement], findings: Sequence[Finding]) -> str:
    lines = [f"- {_whole(said, findings)}" for said in agreements]
    return "\n".join(["## Agreements", "", *(lines or ["No agreement was found between the viewpoints."])])


def _contradicted(contradictions: Sequence[Sequence[Statement]], findings: Sequence[Finding]) -> str:
    """A row a contradiction, a column a side: several viewpoints may have found the same side, and one viewpoint several."""
    if not contradictions:
        return "## Contradictions\n\nNo contradiction was found between the viewpoints."
    sides = max(map(len, contradictions))
    rows = [[_whole(side, findings) for side in each] + [""] * (sides - len(each)) for each in contradictions]
    return "## Contradictions\n\n" + markdown_table([f"side {at}" for at in range(1, sides + 1)], rows)


def _whole(said: Statement, findings: Sequence[Finding]) -> str:
    (marked,) = cited([Sentence(text=said.text, findings=said.findings)], findings)
    return f"{marked} ({plain_markdown('; '.join(said.perspectives))})"
