"""The verifier: findings in, the same findings with verdicts out. First checks that no wording can talk round, then a model."""

import asyncio
from typing import Any, NotRequired

from langchain_core.language_models import BaseChatModel
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.runtime import Runtime
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from agents.prompts import VERIFIER, prompt
from orchestrator.context import RunContext
from orchestrator.errors import LimitReached, ModelCallError, StopRequested, said
from orchestrator.events import tell
from orchestrator.state import BranchStatus, Check, Failure, Finding, Source, Verdict, VerdictLabel

__all__ = ["Judgement", "VerifierInput", "VerifierOutput", "create_verifier"]


class VerifierInput(TypedDict):
    """Findings, the sources as they were when they were read, and the documents (paths, folders, globs) that hold them.

    `judges`: whether a model judges what passes the checks; it does unless this is false.
    """

    findings: list[Finding]
    sources: list[Source]
    documents: list[str]
    question: NotRequired[str]
    judges: NotRequired[bool]


class VerifierOutput(TypedDict):
    """The findings with their verdicts, in the order they came; one whose judgement failed has none, and `failures` says why."""

    findings: list[Finding]
    failures: list[Failure]


class VerifierState(VerifierInput, VerifierOutput):
    """What the verifier's one node reads and writes."""


class Judgement(BaseModel):
    """Whether the quotes support the claim."""

    label: VerdictLabel
    reason: str = Field(description="one sentence that names the part in question")


def create_verifier(model: BaseChatModel | None = None) -> CompiledStateGraph[Any, Any, Any, Any]:
    """An async subgraph VerifierInput -> VerifierOutput; findings are judged at the same time. Raises ModelCallError
    or LimitReached when no judgement succeeds.

    Quotes at their offsets, source hashes, numbers, dates and names are checked first, without a model; a finding that fails
    one of them is `unsupported` and no model is asked. Where the input says `judges: false` no model is asked at all: what passes is
    `supported`.
    """

    async def verify(state: VerifierState, runtime: Runtime[Any]) -> dict[str, Any]:
        context = RunContext.of(runtime)
        library = await context.library(state["documents"])
        tell("branch_step", step="verify", detail=_counted(len(state["findings"])))

        async def judged(finding: Finding) -> Finding:
            checks = await context.check_finding(finding, state["sources"], library)
            verdict = _failed(checks) or (await _judge(context, finding, checks, model) if state.get("judges", True) else _unjudged(checks))
            tell("verdict", claim=finding.claim, label=verdict.label, reason=verdict.reason)
            found = finding.model_copy(update={"verdict": verdict})
            if verdict.label == "supported":
                context.join.keep(found, state["sources"])
            return found

        outcomes = await asyncio.gather(*map(judged, state["findings"]), return_exceptions=True)
        errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        for error in errors:
            if len(errors) == len(outcomes) or not isinstance(error, ModelCallError | LimitReached):
                raise error
        return {
            "findings": [
                finding if isinstance(outcome, BaseException) else outcome
                for finding, outcome in zip(state["findings"], outcomes, strict=True)
            ],
            "failures": [_failure(error) for error in errors],
        }

    graph = StateGraph(VerifierState, input_schema=VerifierInput, output_schema=VerifierOutput, context_schema=RunContext)
    graph.add_node("verify", verify, metadata={"asks": "max_agent_calls", "trace": {"verify": "hidden"}})
    graph.add_edge(START, "verify")
    graph.add_edge("verify", END)
    return graph.compile(name="verifier", checkpointer=False)


def _failure(error: BaseException) -> Failure:
    status: BranchStatus = error.status if isinstance(error, ModelCallError) else "limited"
    return Failure(role="verifier", status="skipped" if isinstance(error, StopRequested) else status, error=said(error))


def _counted(findings: int) -> str:
    return "1 finding" if findings == 1 else f"{findings} findings"


def _failed(checks: list[Check]) -> Verdict | None:
    failed = [check for check in checks if not check.passed]
    if not failed:
        return None
    return Verdict(label="unsupported", reason="; ".join(check.detail or check.name for check in failed), checks=checks)


def _unjudged(checks: list[Check]) -> Verdict:
    return Verdict(label="supported", reason="the checks that need no model passed; no model has judged it", checks=checks)


async def _judge(context: RunContext, finding: Finding, checks: list[Check], model: BaseChatModel | None) -> Verdict:
    quotes = [context.block("quote", citation.quote, source=citation.source) for citation in finding.citations]
    messages = prompt(VERIFIER, context.block("claim", finding.claim), *quotes, boundary=context.boundary)
    judgement = await context.answer("verifier", messages, Judgement, model=model)
    return Verdict(label=judgement.label, reason=judgement.reason, checks=checks)
