"""Ask several models at once: the first valid answer wins, the others are cancelled and billed."""

from collections.abc import Mapping
from typing import Any

from langgraph.graph import END, START, StateGraph
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from agents import create_answerer, create_researcher, create_verifier
from orchestrator import Controls, Workflow, create_race
from orchestrator.context import RunContext
from orchestrator.errors import InputError
from orchestrator.graphs.report import distinct_findings, write_report
from orchestrator.state import BranchResult, Finding, Source, Task


class Question(BaseModel):
    """What the models are asked."""

    question: str = Field(description="what to find out", min_length=1, max_length=20_000, pattern=r"\S")
    documents: list[str] = Field(default=[], description="files, folders and globs to answer from; without, from what a model knows")


class Answered(TypedDict, total=False):
    """An answer in words; with documents, the findings that it is made of."""

    answer: str
    findings: list[Finding]
    sources: list[Source]


class Answering(Answered, total=False):
    """The state of one racer."""

    question: str
    documents: list[str]


def way(state: Answering) -> str:
    """A racer researches documents where there are some."""
    return "researcher" if state.get("documents") else "answerer"


async def readable(given: Mapping[str, Any], context: RunContext) -> None:
    """Documents that cannot be read are refused, in `--dry-run` too."""
    if given.get("documents"):
        await context.library(given["documents"])


async def in_words(given: Mapping[str, Any], context: RunContext) -> None:
    """Without documents a racer has to write, which the offline model does not: it is refused, in `--dry-run` too."""
    if not given.get("documents") and (await context.model("answerer"))._llm_type == "offline":
        remedy = "leave it out, or give --documents: it answers with sentences of them"
        raise InputError("the offline model cannot take part: it writes no text", remedy=remedy)


async def result(state: Answering) -> Answered:
    """What the racer has to say: its answer, or the claims that hold, with what they rest on."""
    held = [finding for finding in state.get("findings", []) if finding.verdict and finding.verdict.label == "supported"]
    answer = state.get("answer") or " ".join(finding.claim for finding in held)
    return {"answer": answer, "findings": held, "sources": state.get("sources", [])}


def valid(answered: Mapping[str, Any]) -> bool | str:
    """An answer that fits its schema; with documents, one with a claim that holds."""
    return bool(answered["answer"]) or "no claim is supported by the documents"


async def told(answered: Mapping[str, Any], context: RunContext) -> str:
    """The winner's answer; its findings as a report."""
    if not answered.get("documents"):
        return str(answered["answer"])
    task = Task(id="t1", question=answered["question"])
    branches = [BranchResult(task=task, status="ok", findings=answered["findings"], sources=answered["sources"])]
    library, offline = await context.library(answered["documents"]), answered["kinds"] == ["offline"]
    report = await write_report(task.question, branches, distinct_findings(branches), [], [], context, library, offline=offline)
    return report.markdown


racer = StateGraph(Answering, input_schema=Question, output_schema=Answered)
racer.add_node("answerer", create_answerer(), metadata={"check": in_words})
racer.add_node("researcher", create_researcher(), metadata={"check": readable})
racer.add_node("verifier", create_verifier())
racer.add_conditional_edges(START, way, ["answerer", "researcher"])
racer.add_node("result", result, metadata={"asks": 0})
racer.add_edge("researcher", "verifier")
racer.add_edge("answerer", "result")
racer.add_edge("verifier", "result")
racer.add_edge("result", END)

race = create_race(racer.compile(name="racer", checkpointer=False), valid=valid, told=told)
workflow = Workflow(race, name="race", controls=Controls(race=("*",)))
graph = workflow.compile()
