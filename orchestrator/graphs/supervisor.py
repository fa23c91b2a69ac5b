"""The supervisor: plan, fan out with `Send`, research and verify in each branch, join, another round or write."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, NotRequired, Required

from langchain_core.runnables import RunnableConfig
from langgraph.errors import GraphBubbleUp
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.runtime import Runtime
from langgraph.types import Send
from pydantic import BaseModel, Field, field_validator
from typing_extensions import TypedDict

from orchestrator.context import RunContext, kinds_asked
from orchestrator.errors import GraphError, InputError, LimitReached, ModelCallError, said
from orchestrator.events import in_branch, tell
from orchestrator.graphs.report import distinct_findings, write_report
from orchestrator.state import BranchResult, BranchStatus, Failure, Finding, Sentence, Source, Task
from orchestrator.urls import parse_allowed

__all__ = ["SupervisorInput", "SupervisorOutput", "SupervisorState", "create_supervisor"]

Agent = CompiledStateGraph[Any, Any, Any, Any]


class SupervisorInput(BaseModel):
    """What a research run is asked."""

    question: str = Field(description="what to find out", min_length=1, max_length=20_000)
    documents: list[str] = Field(default=["docs"], description="files, folders and globs to search")
    allow_hosts: list[str] = Field(default=[], description="hosts that fetch_url may read (*.example.org, or * for any public host)")

    @field_validator("allow_hosts")
    @classmethod
    def _hosts(cls, allow_hosts: list[str]) -> list[str]:
        for entry in allow_hosts:
            try:
                parse_allowed(entry)
            except InputError as error:
                raise ValueError(error.what) from None
        return allow_hosts

    @field_validator("question")
    @classmethod
    def _not_blank(cls, question: str) -> str:
        if not question.strip():
            raise ValueError("the question is blank")
        return question.strip()


class SupervisorOutput(TypedDict):
    """The report and what it rests on: every finding is supported, `[n]` in the report is the n-th distinct citation."""

    report: str
    findings: list[Finding]
    gaps: list[str]
    sources: list[Source]


def merge_branches(earlier: list[BranchResult], later: list[BranchResult]) -> list[BranchResult]:
    """Results in the order of the tasks (t1, t2, …, t10): a task that is run again replaces its earlier result."""
    merged = {result.task.id: result for result in earlier}
    merged.update({result.task.id: result for result in later})
    return sorted(merged.values(), key=lambda result: (len(result.task.id), result.task.id))


def extend(earlier: list[Failure], later: list[Failure]) -> list[Failure]:
    """Failures, in order."""
    return [*earlier, *later]


def union(earlier: list[str], later: list[str]) -> list[str]:
    """Each once, in order."""
    return list(dict.fromkeys([*earlier, *later]))


class SupervisorState(SupervisorOutput):
    """The supervisor's own state: `tasks` are the tasks of this round, `asked` the kinds of model that were asked so far."""

    question: str
    documents: list[str]
    allow_hosts: list[str]
    tasks: list[Task]
    round: int
    branches: Annotated[list[BranchResult], merge_branches]
    failures: Annotated[list[Failure], extend]
    asked: Annotated[list[str], union]


class BranchInput(TypedDict):
    """What a branch is sent."""

    task: Task
    documents: list[str]
    allow_hosts: list[str]


class AttemptInput(TypedDict):
    """What one attempt of a branch is given; `feedback` is what the verifier said of the one before."""

    task_id: str
    question: str
    documents: list[str]
    allow_hosts: list[str]
    feedback: NotRequired[str]


class AttemptOutput(TypedDict, total=False):
    """What one attempt of a branch came to; the researcher and the verifier may be the user's own, so only findings are sure."""

    findings: Required[list[Finding]]
    sources: list[Source]
    missing: str
    failures: list[Failure]


class AttemptState(AttemptInput, AttemptOutput):
    """One attempt of a branch: research, then verify."""


# Of a run's deadline: branches end at the first share, the writer at the second, so that what was found is always reported.
_RESEARCH_SHARE, _WRITING_SHARE = 0.8, 0.95
_ANSWERED = {"planner": "questions", "researcher": "findings", "verifier": "findings", "writer": "answer"}


def create_supervisor(
    planner: Agent, researcher: Agent, verifier: Agent, writer: Agent, *, max_rounds: int = 2, max_repairs: int = 1
) -> StateGraph[Any, Any, Any, Any]:
    """A graph SupervisorInput -> SupervisorOutput, ready to compile; any of the four agents may be the user's own graph.

    After each round but the last the planner is asked what is still open; `max_rounds` bounds the rounds. In a branch, findings that
    the verifier rejects go back to the researcher with its reasons, at most `max_repairs` times. A branch returns its failure as data.
    Raises GraphError when an agent's schemas do not fit.
    """
    agents = {"planner": planner, "researcher": researcher, "verifier": verifier, "writer": writer}
    _check_agents(agents, max_rounds, max_repairs)
    attempt = _attempt(researcher, verifier)

    async def plan(state: SupervisorState, runtime: Runtime[RunContext]) -> dict[str, Any]:
        with kinds_asked() as kinds:
            return {**await _plan(planner, state, RunContext.of(runtime)), "asked": sorted(kinds)}

    async def branch(state: BranchInput, runtime: Runtime[RunContext]) -> dict[str, Any]:
        with in_branch(state["task"].id), kinds_asked() as kinds:
            result = await _run_branch(attempt, state, RunContext.of(runtime), max_repairs)
        return {"branches": [result], "asked": sorted(kinds)}

    def after_join(state: SupervisorState) -> str:
        lost = all(result.status != "ok" for result in state["branches"])
        late = any(result.status == "limited" for result in state["branches"])
        return "write" if lost or late or state["round"] >= max_rounds else "plan"

    async def write(state: SupervisorState, runtime: Runtime[RunContext]) -> dict[str, Any]:
        return await _write(writer, state, RunContext.of(runtime))

    graph = StateGraph(SupervisorState, input_schema=SupervisorInput, output_schema=SupervisorOutput, context_schema=RunContext)
    graph.add_node("plan", plan, input_schema=SupervisorState)
    graph.add_node("branch", branch, input_schema=BranchInput)
    graph.add_node("join", _join, input_schema=SupervisorState, defer=True)
    graph.add_node("write", write, input_schema=SupervisorState)
    graph.add_edge(START, "plan")
    graph.add_conditional_edges("plan", fan_out, ["branch", "write"])
    graph.add_edge("branch", "join")
    graph.add_conditional_edges("join", after_join, ["plan", "write"])
    graph.add_edge("write", END)
    return graph


async def _plan(planner: Agent, state: SupervisorState, context: RunContext) -> dict[str, Any]:
    """The tasks of the next round. A planner that fails in a later round ends the rounds: what was found so far is written."""
    number, branches = state.get("round", 0) + 1, state.get("branches", [])
    documents = state.get("documents") or SupervisorInput.model_fields["documents"].default
    await context.library(documents)  # before the first model call: documents that cannot be read cost nothing
    asked = {"question": state["question"], "findings": distinct_findings(branches), "open_questions": _open_questions(branches)}
    try:
        async with context.within(_RESEARCH_SHARE):
            questions = (await planner.ainvoke(asked))["questions"]
    except (GraphBubbleUp, InputError):
        raise
    except Exception as error:
        if not branches:
            raise
        return {"tasks": [], "round": number, "failures": [Failure(role="planner", status=_status(error), error=said(error))]}
    if not branches:
        questions = questions or [state["question"]]
    tasks, skipped = _new_tasks(questions, branches, context.controls.max_branches)
    tell("plan", tasks=[task.model_dump() for task in tasks], round=number)
    return {"tasks": tasks, "round": number, "branches": skipped, "documents": documents}


def fan_out(state: SupervisorState) -> list[Send] | str:
    """A branch a task; without a task the report is written. Its name stands in traces."""
    shared = {"documents": state["documents"], "allow_hosts": state.get("allow_hosts", [])}
    return [Send("branch", {"task": task, **shared}) for task in state["tasks"]] or "write"


async def _join(state: SupervisorState) -> dict[str, Any]:
    return {"tasks": []}


def _check_agents(agents: Mapping[str, Agent], max_rounds: int, max_repairs: int) -> None:
    problems = []
    for role, graph in agents.items():
        answered = graph.output_channels
        if _ANSWERED[role] not in ([answered] if isinstance(answered, str) else answered):
            problems.append(f"the {role}'s output has no {_ANSWERED[role]!r}")
    if max_rounds < 1:
        problems.append(f"max_rounds is {max_rounds}: it must be 1 or more")
    if max_repairs < 0:
        problems.append(f"max_repairs is {max_repairs}: it must be 0 or more")
    if problems:
        raise GraphError("the supervisor cannot be built", problems, remedy="give its agents the schemas of docs/agents.md")


def _attempt(researcher: Agent, verifier: Agent) -> Agent:
    graph = StateGraph(AttemptState, input_schema=AttemptInput, output_schema=AttemptOutput)
    graph.add_node("researcher", researcher)
    graph.add_node("verifier", verifier)
    graph.add_edge(START, "researcher")
    graph.add_edge("researcher", "verifier")
    graph.add_edge("verifier", END)
    return graph.compile(name="attempt")


def _open_questions(branches: Sequence[BranchResult]) -> list[str]:
    return [result.task.question for result in branches if not result.findings]


def _key(question: str) -> str:
    return " ".join(question.casefold().split()).rstrip("?!. ")


def _new_tasks(questions: Sequence[str], branches: Sequence[BranchResult], limit: int) -> tuple[list[Task], list[BranchResult]]:
    """The tasks of a round: a failed task asked again keeps its id, one already answered is not asked again; beyond `limit` are skipped."""
    known = {_key(result.task.question): result for result in branches}
    tasks: dict[str, Task] = {}
    number = len(branches)
    for question in questions:
        earlier = known.get(_key(question))
        if earlier is None and _key(question) not in tasks:
            number += 1
            tasks[_key(question)] = Task(id=f"t{number}", question=question)
        elif earlier is not None and earlier.status != "ok":
            tasks[_key(question)] = earlier.task
    room = max(0, limit - len(branches))
    planned = list(tasks.values())
    error = f"not started: max_branches is {limit}"
    return planned[:room], [BranchResult(task=task, status="skipped", error=error, attempts=0) for task in planned[room:]]


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

    async def run(self, attempt: Agent, max_repairs: int) -> None:
        """Attempts until every finding is supported or the repairs are used up."""
        config: RunnableConfig = {"run_name": f"branch {self.task.id}: {self.task.question[:80]}", "metadata": {"branch": self.task.id}}
        feedback: dict[str, str] = {}
        while True:
            self.attempts += 1
            self._keep(await attempt.ainvoke({**self.given, **feedback}, config))
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


async def _run_branch(attempt: Agent, sent: BranchInput, context: RunContext, max_repairs: int) -> BranchResult:
    """Run a branch to its result; whatever it raises becomes data."""
    task, began = sent["task"], time.monotonic()
    given = {"question": task.question, "task_id": task.id, "documents": sent["documents"], "allow_hosts": sent["allow_hosts"]}
    branch = _Branch(task, given)
    tell("branch_started", question=task.question)
    try:
        async with context.within(_RESEARCH_SHARE):
            await branch.run(attempt, max_repairs)
    except (GraphBubbleUp, InputError):
        raise
    except Exception as error:  # noqa: BLE001 - here the failure of a branch becomes data, whosever code it was
        branch.status, branch.error = _status(error), said(error)
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
    finished = result.model_dump(include={"status", "error", "attempts", "seconds"})
    tell("branch_finished", **finished, findings=len(result.findings))
    return result


def _status(error: Exception) -> BranchStatus:
    if isinstance(error, ModelCallError):
        return error.status
    if isinstance(error, TimeoutError):
        return "timed_out"
    return "limited" if isinstance(error, LimitReached) else "failed"


async def _write(writer: Agent, state: SupervisorState, context: RunContext) -> dict[str, Any]:
    """The report; when the writer fails the findings themselves are the answer, and the run is partial."""
    branches, failures = state.get("branches", []), list[Failure]()
    findings = distinct_findings(branches)
    answer: list[Sentence] = []
    kinds: set[str] = set()
    if findings:
        try:
            with kinds_asked() as kinds:
                async with context.within(_WRITING_SHARE):
                    answer = (await writer.ainvoke({"question": state["question"], "findings": findings}))["answer"]
        except GraphBubbleUp:
            raise
        except Exception as error:  # noqa: BLE001 - the findings are paid for: they are reported without the writer
            failures.append(Failure(role="writer", status=_status(error), error=said(error)))
    elif any(result.status == "ok" for result in branches):
        failures.append(Failure(role="supervisor", status="failed", error="no finding is supported by the documents"))
    library = await context.library(state["documents"])
    all_failures = [*state.get("failures", []), *failures]
    offline = kinds.union(state.get("asked", [])) == {"offline"}
    report = await write_report(state["question"], branches, findings, answer, all_failures, context, library, offline=offline)
    tell("report", characters=len(report.markdown), findings=len(report.findings), gaps=len(report.gaps))
    return {"report": report.markdown, "findings": report.findings, "gaps": report.gaps, "sources": report.sources, "failures": failures}
