"""A branch of the supervisor: research, verify, repair. It ends with a result, whatever happens in it."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NotRequired, Required, TypeVar

from langchain_core.runnables import RunnableConfig
from langgraph.config import get_config
from langgraph.errors import GraphBubbleUp, GraphInterrupt, ParentCommand
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from typing_extensions import TypedDict

from orchestrator.context import RunContext, kinds_asked
from orchestrator.errors import BranchTimeoutError, InputError, LimitReached, ModelCallError, StopRequested, StorageError, said
from orchestrator.events import in_branch, tell
from orchestrator.graphs.inner import inner_of
from orchestrator.interrupts import asked_at_once
from orchestrator.joining import NotNeeded, RoundOver
from orchestrator.state import BranchResult, BranchStatus, Failure, Finding, Source, Task

__all__ = ["RESEARCH_SHARE", "Agent", "BranchInput", "call_agent", "create_attempt", "each_branch", "run_branches", "status_of"]

R = TypeVar("R")

Agent = CompiledStateGraph[Any, Any, Any, Any]

RESEARCH_SHARE = 0.8
"""Of a run's deadline, what branches have: the rest is for the report."""


class BranchInput(TypedDict):
    """What a node is sent that runs a branch for each task."""

    tasks: list[Task]
    documents: list[str]
    allow_hosts: list[str]
    judges: NotRequired[bool]


class AttemptInput(TypedDict):
    """What one attempt of a branch is given; `feedback` is what the verifier said of the one before, `judges` whether it asks a model."""

    task_id: str
    question: str
    documents: list[str]
    allow_hosts: list[str]
    feedback: NotRequired[str]
    judges: NotRequired[bool]


class AttemptOutput(TypedDict, total=False):
    """What one attempt of a branch came to; the researcher and the verifier may be the user's own, so only findings are sure."""

    findings: Required[list[Finding]]
    sources: list[Source]
    missing: str
    failures: list[Failure]


class AttemptState(AttemptInput, AttemptOutput):
    """One attempt of a branch: research, then verify."""


def create_attempt(researcher: Agent, verifier: Agent) -> Agent:
    """A graph AttemptInput -> AttemptOutput: the researcher, then the verifier."""
    graph = StateGraph(AttemptState, input_schema=AttemptInput, output_schema=AttemptOutput)
    graph.add_node("researcher", researcher, metadata={"trace": {"researcher": "agent"}})
    graph.add_node("verifier", verifier, metadata={"trace": {"verifier": "agent"}})
    graph.add_edge(START, "researcher")
    graph.add_edge("researcher", "verifier")
    graph.add_edge("verifier", END)
    # What happens in an attempt is in the run's journal; an agent of a user's own may keep its steps.
    return graph.compile(name="attempt", checkpointer=False if researcher.checkpointer is verifier.checkpointer is False else None)


@dataclass
class _Branch:
    """A branch while it lasts: what was supported before a failure is kept."""

    task: Task
    given: dict[str, Any]
    supported: dict[str, Finding] = field(default_factory=dict)
    rejected: list[Finding] = field(default_factory=list)
    sources: dict[str, Source] = field(default_factory=dict)
    attempts: int = 0
    status: BranchStatus = "ok"
    error: str | None = None
    gap: str | None = None

    async def run(self, attempt: Agent, context: RunContext, max_repairs: int) -> None:
        """Attempts until every finding is supported or the repairs are used up."""
        config: RunnableConfig = {"run_name": f"branch {self.task.id}: {self.task.question[:80]}", "metadata": {"branch": self.task.id}}
        feedback: dict[str, str] = {}
        while True:
            self.attempts += 1
            self._keep(await call_agent(attempt, {**self.given, **feedback}, context, config))
            if not self.rejected or self.status != "ok" or self.attempts > max_repairs:
                return
            tell("branch_step", step="repair", detail=f"{len(self.rejected)} claims were rejected")
            reasons = [(finding.claim, finding.verdict.reason) for finding in self.rejected if finding.verdict]
            feedback = {"feedback": "\n".join(f"- {claim!r}: {reason}" for claim, reason in reasons)}

    def _keep(self, state: Mapping[str, Any]) -> None:
        """Take over what an attempt found."""
        judged = [(finding, finding.verdict) for finding in state["findings"] if finding.verdict is not None]
        self.supported |= {finding.claim: finding for finding, verdict in judged if verdict.label == "supported"}
        self.sources |= {source.uri: source for source in state.get("sources") or []}
        reasons = [verdict.reason for _, verdict in judged if verdict.label != "supported"]
        self.rejected = [finding for finding, verdict in judged if verdict.label != "supported"]
        missing = state.get("missing") or "nothing was found in the documents"
        self.gap = None if self.supported else f"no claim held: {reasons[0]}" if reasons else missing
        for failure in state.get("failures") or []:
            self.status, self.error = failure.status, failure.error

    def end(self, error: Exception, kept: Iterable[tuple[Finding, Sequence[Source]]]) -> None:
        """Take over what ended it, and what it had kept; a branch that nobody needs any more has no error, but a gap that says so."""
        for finding, sources in kept:
            self.supported[finding.claim] = finding
            self.sources |= {source.uri: source for source in sources}
        self.status = status_of(error)
        if isinstance(error, NotNeeded):
            self.error, self.gap = None, str(error)
        else:
            self.error = str(error) if isinstance(error, RoundOver) else said(error)


async def call_agent(
    agent: Agent, given: Mapping[str, Any], context: RunContext, config: RunnableConfig | None = None
) -> Mapping[str, Any]:
    """What an agent's graph comes to; in a run of ours it is taken step by step, where it can be."""
    inner = inner_of(agent) if context.terms.driven else None
    if inner is not None:
        try:
            return await inner.run(given, context.terms.tracer, context.consult_now)
        except ParentCommand as up:  # for the graph of the node that calls the agent
            place = str((get_config().get("metadata") or {}).get("langgraph_checkpoint_ns", ""))
            raise ParentCommand(replace(up.args[0], graph=place)) from None
    return await agent.ainvoke(given, config, context=context)


async def run_branches(attempt: Agent, sent: BranchInput, context: RunContext, max_repairs: int) -> tuple[list[BranchResult], set[str]]:
    """Run a branch for each task to its result; and which kinds of model were asked."""
    return await each_branch(sent["tasks"], lambda task: run_branch(attempt, task, sent, context, max_repairs), context)


async def each_branch(tasks: Sequence[Task], run: Callable[[Task], Awaitable[R]], context: RunContext) -> tuple[list[R], set[str]]:
    """What `run` gives for each task, in order, as many at once as the run allows; and which kinds of model were asked.

    What ends no branch alone (bad input, a store that fails, a person who is asked) is raised, where a person is asked once the others
    have ended.
    """
    came: dict[str, R] = {}  # and no asyncio tasks, which would hold more than what came of them
    pauses: dict[str, GraphInterrupt] = {}

    async def branch(task: Task) -> None:
        try:
            with in_branch(task.id), context.terms.tracer.branch(task) as span:
                came[task.id] = result = await run(task)
                span.came = result if context.terms.tracer.takes_content else None
        except GraphInterrupt as pause:
            pauses[task.id] = pause
        finally:
            context.window.release()

    try:
        with kinds_asked() as kinds:
            async with asyncio.TaskGroup() as group:
                for task in tasks:
                    await context.window.acquire()
                    group.create_task(branch(task), name=f"branch {task.id}")
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None
    if pauses:
        raise asked_at_once([pauses[task.id] for task in tasks if task.id in pauses])
    return [came[task.id] for task in tasks], kinds


async def run_branch(attempt: Agent, task: Task, sent: BranchInput, context: RunContext, max_repairs: int) -> BranchResult:
    """Run a branch to its result; whatever it raises becomes data."""
    began = time.monotonic()
    given: dict[str, Any] = {
        "question": task.question,
        "task_id": task.id,
        "documents": sent["documents"],
        "allow_hosts": sent["allow_hosts"],
    }
    if "judges" in sent:
        given["judges"] = sent["judges"]
    branch = _Branch(task, given)
    try:
        async with context.join.branch(task.id, context.controls.branch_timeout), context.within(RESEARCH_SHARE):
            context.terms.check()
            tell("branch_started", question=task.question)
            await branch.run(attempt, context, max_repairs)
    except (GraphBubbleUp, InputError, StorageError):  # what is not kept was not done
        raise
    except Exception as error:  # noqa: BLE001 - here the failure of a branch becomes data, whosever code it was
        branch.end(error, context.join.kept(task.id))
    result = BranchResult(
        task=task,
        status=branch.status,
        findings=list(branch.supported.values()),
        rejected=branch.rejected,
        sources=list(branch.sources.values()),
        error=branch.error,
        gap=branch.gap,
        attempts=branch.attempts,
        seconds=round(time.monotonic() - began, 3),
        usage=await context.ledger.usage(task.id),
    )
    context.ledger.forget(task.id)
    context.join.left(result)
    tell(
        "branch_finished",
        status=result.status,
        error=result.error,
        gap=result.gap,
        attempts=result.attempts,
        seconds=result.seconds,
        findings=len(result.findings),
    )
    return result


def status_of(error: Exception) -> BranchStatus:
    """What a branch or an agent ends as that raised `error`."""
    if isinstance(error, ModelCallError):
        return error.status
    if isinstance(error, NotNeeded | StopRequested):
        return "skipped"
    if isinstance(error, TimeoutError | BranchTimeoutError | RoundOver):
        return "timed_out"
    return "limited" if isinstance(error, LimitReached) else "failed"
