"""Answer from documents in one pass: search, one answer with quotes, checks. The small sibling of the supervisor."""

from collections.abc import Mapping
from typing import Any

from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime
from pydantic import BaseModel, Field, field_validator

from orchestrator.context import RunContext
from orchestrator.events import tell
from orchestrator.graphs.branches import Agent, create_attempt, run_branches
from orchestrator.graphs.report import distinct_findings, lapses, write_report
from orchestrator.graphs.supervisor import SupervisorOutput, not_blank
from orchestrator.state import BranchResult, Failure, Task

__all__ = ["AnswerInput", "AnswerState", "create_answer"]

_UNJUDGED = "Checked without a model: each quote is in its source, with the numbers, dates and names of its sentence. Not judged by one."


class AnswerInput(BaseModel):
    """What is asked, and of which documents."""

    question: str = Field(description="what the documents are asked", min_length=1, max_length=20_000)
    documents: list[str] = Field(default=["docs"], description="files, folders and globs to search")
    verify: bool = Field(default=True, description="have a model judge whether the quotes support each sentence")

    _not_blank = field_validator("question")(not_blank)


class AnswerState(SupervisorOutput):
    """The question, its one branch and the report; `asked` are the kinds of model that were asked."""

    question: str
    documents: list[str]
    verify: bool
    branches: list[BranchResult]
    failures: list[Failure]
    asked: list[str]


def create_answer(researcher: Agent, verifier: Agent) -> StateGraph[Any, Any, Any, Any]:
    """A graph AnswerInput -> SupervisorOutput, ready to compile; both are agents as the supervisor takes them.

    The researcher answers once, from what it finds; there is no plan, no second round and no repair. The verifier is told by `judges`
    in its input whether a model is to judge, as `verify` has it. The findings that are supported are the answer, in their order.
    """
    attempt = create_attempt(researcher, verifier)

    async def check(state: Mapping[str, Any], context: RunContext) -> list[str]:
        documents: list[str] = state.get("documents") or AnswerInput.model_fields["documents"].default
        await context.library(documents)  # before the first model call: documents that cannot be read cost nothing
        return documents

    async def answer(state: AnswerState, runtime: Runtime[RunContext]) -> dict[str, Any]:
        context, task = RunContext.of(runtime), Task(id="t1", question=state["question"])
        documents = await check(state, context)
        context.join.begin([task.id])
        given: Any = {"tasks": [task], "documents": documents, "allow_hosts": [], "judges": state.get("verify", True)}
        results, kinds = await run_branches(attempt, given, context, max_repairs=0)
        return {"documents": documents, "branches": results, "asked": sorted(kinds)}

    async def report(state: AnswerState, runtime: Runtime[RunContext]) -> dict[str, Any]:
        return await _report(state, RunContext.of(runtime))

    graph = StateGraph(AnswerState, input_schema=AnswerInput, output_schema=SupervisorOutput, context_schema=RunContext)
    graph.add_node("answer", answer, input_schema=AnswerState, metadata={"runs": 1, "check": check, "trace": {"answer": "branch round"}})
    graph.add_node("report", report, input_schema=AnswerState, metadata={"asks": 0})
    graph.add_edge(START, "answer")
    graph.add_edge("answer", "report")
    graph.add_edge("report", END)
    return graph


async def _report(state: AnswerState, context: RunContext) -> dict[str, Any]:
    branches, library = state["branches"], await context.library(state["documents"])
    findings, failures = distinct_findings(branches), lapses(library)
    if not findings and branches[0].status == "ok" and not context.stopping:
        failures.append(Failure(role="answer", status="failed", error="nothing in the documents answers the question"))
    notes = [] if state.get("verify", True) or not findings else [_UNJUDGED]
    offline = state["asked"] == ["offline"]
    written = await write_report(state["question"], branches, findings, [], failures, context, library, offline=offline, notes=notes)
    tell("report", characters=len(written.markdown), findings=len(written.findings), gaps=len(written.gaps))
    output = {"report": written.markdown, "findings": written.findings, "gaps": written.gaps, "sources": written.sources}
    return {**output, "failures": failures}
