"""The job as agents under this project's supervisor."""

from typing import Any, TypedDict

from langchain_core.messages import BaseMessage, HumanMessage, SystemMessage
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.runtime import Runtime

from benchmarks.speed.job import Draft, Judged, Plan, Research, asked
from orchestrator import Controls, Workflow, create_supervisor
from orchestrator.context import RunContext
from orchestrator.state import Citation, Finding, Sentence, Source, Verdict

__all__ = ["job_workflow"]

_NOTE = Source(uri="note.md", title="Note", sha256="0" * 64)


class _Question(TypedDict):
    question: str


class _Questions(TypedDict):
    questions: list[str]


class _Found(TypedDict):
    findings: list[Finding]
    sources: list[Source]
    missing: str


class _Findings(TypedDict):
    findings: list[Finding]


class _Written(TypedDict):
    answer: list[Sentence]


def _messages(kind: str, number: int, *texts: str) -> list[BaseMessage]:
    (_, system), (_, user) = asked(kind, number, *texts)
    return [SystemMessage(system), HumanMessage(user)]


async def _plan(state: _Question, runtime: Runtime[Any]) -> _Questions:
    plan = await RunContext.of(runtime).answer("planner", _messages("plan", int(state["question"])), Plan)
    return {"questions": plan.questions}


async def _research(state: _Question, runtime: Runtime[Any]) -> _Found:
    number, _, question = state["question"].partition(" ")
    found = await RunContext.of(runtime).answer("researcher", _messages("research", int(number), question), Research)
    citations = [Citation(source="note.md", quote=quote, start=0, end=len(quote)) for quote in found.quotes]
    return {"findings": [Finding(task_id=number, claim=found.claim, citations=citations)], "sources": [_NOTE], "missing": ""}


async def _verify(state: _Findings, runtime: Runtime[Any]) -> _Findings:
    (finding,) = state["findings"]
    quotes = [citation.quote for citation in finding.citations]
    messages = _messages("verify", int(finding.task_id), finding.claim, *quotes)
    judged = await RunContext.of(runtime).answer("verifier", messages, Judged)
    # What the job's verifier rejects is counted by its reason: a repair would be another job.
    return {"findings": [finding.model_copy(update={"verdict": Verdict(label="supported", reason=judged.label, checks=[])})]}


async def _write(state: _Findings, runtime: Runtime[Any]) -> _Written:
    claims = [finding.claim[:80] for finding in state["findings"]]
    draft = await RunContext.of(runtime).answer("writer", _messages("report", len(claims), *claims), Draft)
    return {"answer": [Sentence(text=f"{text}.", findings=[1]) for text in draft.text.rstrip(".").split(". ")]}


def _agent(name: str, node: Any, given: type, came: type) -> CompiledStateGraph[Any, Any, Any, Any]:
    state: Any = TypedDict("State", {**given.__annotations__, **came.__annotations__})  # type: ignore[misc]
    graph = StateGraph(state, input_schema=given, output_schema=came, context_schema=RunContext)
    graph.add_node(name, node, metadata={"trace": {name: "hidden"}})
    graph.add_edge(START, name)
    graph.add_edge(name, END)
    return graph.compile(name=name, checkpointer=False)


def job_workflow(limit: int, *, streams: bool) -> Workflow:
    """The job's workflow, with so many calls and branches under way at once; it `streams` where a clock for the first token is set."""
    graph = create_supervisor(
        _agent("plan", _plan, _Question, _Questions),
        _agent("research", _research, _Question, _Found),
        _agent("verify", _verify, _Findings, _Findings),
        _agent("write", _write, _Findings, _Written),
        max_rounds=1,
    )
    return Workflow(
        graph, name="speed", controls=Controls(max_concurrency=limit, max_branches=20_000, first_token_timeout=60 if streams else None)
    )
