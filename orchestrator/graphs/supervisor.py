"""The supervisor: plan, fan out with `Send`, research and verify in each branch, join, another round or write."""

from collections.abc import Awaitable, Callable, Mapping, Sequence, Set
from typing import Annotated, Any

from langchain_core.messages import AnyMessage
from langgraph.errors import GraphBubbleUp
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.runtime import Runtime
from langgraph.store.base import BaseStore
from langgraph.types import Overwrite, Send
from pydantic import BaseModel, Field, field_validator
from typing_extensions import TypedDict

from orchestrator.asking import plan_question
from orchestrator.context import RunContext, kinds_asked
from orchestrator.errors import Declined, GraphError, InputError, StorageError, said
from orchestrator.events import tell
from orchestrator.graphs.branches import RESEARCH_SHARE, Agent, BranchInput, call_agent, create_attempt, run_branches, status_of
from orchestrator.graphs.conversation import conversation_of, keep_facts, known_facts, turn, turns
from orchestrator.graphs.questions import new_tasks
from orchestrator.graphs.report import distinct_findings, lapses, write_report
from orchestrator.spans import HIDDEN
from orchestrator.state import BranchResult, Failure, Finding, Sentence, Source, Task
from orchestrator.urls import parse_allowed

__all__ = [
    "AFRESH",
    "Check",
    "SupervisorInput",
    "SupervisorOutput",
    "SupervisorState",
    "add_research",
    "check_documents",
    "create_supervisor",
    "not_blank",
]


def not_blank(question: str) -> str:
    """A question without the space around it; raises ValueError where nothing is left."""
    if not question.strip():
        raise ValueError("the question is blank")
    return question.strip()


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

    _not_blank = field_validator("question")(not_blank)


Check = Callable[[Mapping[str, Any], RunContext], Awaitable[object]]


async def check_documents(given: Mapping[str, Any], context: RunContext) -> None:
    """Raises DocumentsError where the documents of a supervisor's input cannot be read."""
    await context.library(_documents_of(given))


def _documents_of(given: Mapping[str, Any]) -> list[str]:
    documents: list[str] = given.get("documents") or SupervisorInput.model_fields["documents"].default
    return documents


class SupervisorOutput(TypedDict):
    """The report and what it rests on: every finding is supported, `[n]` in the report is the n-th distinct citation."""

    report: str
    findings: list[Finding]
    gaps: list[str]
    sources: list[Source]


def merge_branches(earlier: list[BranchResult], later: list[BranchResult]) -> list[BranchResult]:
    """Results in the order of the tasks (t1, t2, …, t10): one of a task that was run again counts, with what was found before."""
    merged = {result.task.id: result for result in earlier}
    for result in later:
        before = merged.get(result.task.id)
        merged[result.task.id] = result if before is None else _with_earlier(before, result)
    return sorted(merged.values(), key=lambda result: (len(result.task.id), result.task.id))


def _with_earlier(before: BranchResult, result: BranchResult) -> BranchResult:
    found = {finding.claim: finding for finding in (*before.findings, *result.findings)}
    read = {source.uri: source for source in (*before.sources, *result.sources)}
    return result.model_copy(update={"findings": list(found.values()), "sources": list(read.values())})


def extend(earlier: list[Failure], later: list[Failure]) -> list[Failure]:
    """Failures, in order."""
    return [*earlier, *later]


def union(earlier: list[str], later: list[str]) -> list[str]:
    """Each once, in order."""
    return list(dict.fromkeys([*earlier, *later]))


class SupervisorState(SupervisorOutput):
    """The supervisor's own state: `tasks` are the tasks of this round, `asked` the kinds of model that were asked so far.

    `started`: branches in all rounds so far. `over`: no further round is to begin. `clarification`: what the user was asked and answered.
    `messages`: the turns of the conversation, where the run belongs to one. `first_plan`: the questions of the first round, where a node
    before the planner has settled them. `appendix`: Markdown that the report has behind its findings.
    """

    question: str
    documents: list[str]
    allow_hosts: list[str]
    tasks: list[Task]
    round: int
    started: int
    over: bool
    clarification: str
    first_plan: list[str]
    appendix: list[str]
    messages: Annotated[list[AnyMessage], add_messages]
    branches: Annotated[list[BranchResult], merge_branches]
    failures: Annotated[list[Failure], extend]
    asked: Annotated[list[str], union]


AFRESH: Mapping[str, Any] = {
    "tasks": [],
    "round": 0,
    "started": 0,
    "over": False,
    "clarification": "",
    "first_plan": [],
    "appendix": [],
    "report": "",
    "findings": [],
    "gaps": [],
    "sources": [],
    "branches": Overwrite([]),
    "failures": Overwrite([]),
    "asked": Overwrite([]),
}
"""What takes the state of an earlier run off a thread; the turns of the conversation stay."""

_NODES = 16  # of branches, in a round: so many are kept and shown each by itself, as one node runs several where there are more
_WRITING_SHARE = 0.95  # of a run's deadline: the writer ends in time for the report of what was found
_ANSWERED = {"planner": "questions", "researcher": "findings", "verifier": "findings", "writer": "answer"}


def create_supervisor(
    planner: Agent, researcher: Agent, verifier: Agent, writer: Agent, *, max_rounds: int = 2, max_repairs: int = 1
) -> StateGraph[Any, Any, Any, Any]:
    """A graph SupervisorInput -> SupervisorOutput, ready to compile; any of the four agents may be the user's own graph.

    After each round but the last the planner is asked what is still open; `max_rounds` bounds the rounds. In a branch, findings that
    the verifier rejects go back to the researcher with its reasons, at most `max_repairs` times. A branch returns its failure as data.
    Raises GraphError when an agent's schemas do not fit.
    """
    graph = StateGraph(SupervisorState, input_schema=SupervisorInput, output_schema=SupervisorOutput, context_schema=RunContext)
    add_research(graph, planner, researcher, verifier, writer, max_rounds=max_rounds, max_repairs=max_repairs)
    graph.add_edge(START, "plan")
    return graph


def add_research(
    graph: StateGraph[Any, Any, Any, Any],
    planner: Agent,
    researcher: Agent,
    verifier: Agent,
    writer: Agent,
    *,
    max_rounds: int = 2,
    max_repairs: int = 1,
    check: Check | None = None,
) -> None:
    """Add the nodes of a supervisor, from `plan` to the end, to a graph whose state extends SupervisorState; what leads to `plan` is yours.

    Of the keys that the state has beside those of SupervisorState the planner and the writer are given what their inputs name, and what
    their outputs name is kept; the writer may also ask for `branches`, and answer `sections`, Markdown that follows the answer. `check`:
    what the first node refuses, by default documents that cannot be read. Raises GraphError as create_supervisor does.
    """
    agents = {"planner": planner, "researcher": researcher, "verifier": verifier, "writer": writer}
    _check_agents(agents, max_rounds, max_repairs)
    attempt, check = create_attempt(researcher, verifier), check or check_documents
    own = {*graph.channels} - {*SupervisorState.__annotations__}
    afresh = {**AFRESH, **dict.fromkeys(own - {*graph.schemas[graph.input_schema]})}

    async def plan(state: SupervisorState, runtime: Runtime[RunContext]) -> dict[str, Any]:
        after_another = bool(state.get("report"))  # a report is a run's last: this one is the next on its thread
        known: Any = {**state, **afresh, "branches": []} if after_another else state
        await check(known, RunContext.of(runtime))  # before the first model call: what cannot be done costs nothing
        with kinds_asked() as kinds:
            planned = {**await _plan(planner, known, RunContext.of(runtime), runtime.store, own), "asked": sorted(kinds)}
        if not after_another:
            return planned
        return {**afresh, **planned, "branches": Overwrite(planned.get("branches", [])), "asked": Overwrite(planned["asked"])}

    async def branch(state: BranchInput, runtime: Runtime[RunContext]) -> dict[str, Any]:
        results, kinds = await run_branches(attempt, state, RunContext.of(runtime), max_repairs)
        return {"branches": results, "asked": sorted(kinds)}

    async def after_join(state: SupervisorState) -> str:
        return "write" if state["over"] or state["round"] >= max_rounds else "plan"

    async def write(state: SupervisorState, runtime: Runtime[RunContext]) -> dict[str, Any]:
        return await _write(writer, state, RunContext.of(runtime), own)

    shape = graph.state_schema
    # What a visit costs at most, for the forecast of a run.
    rounds = {"runs": 1, "visits": max_rounds, "check": check, "trace": {"plan": "agent planner round"}}
    repeats = {"visits": "max_branches", "runs": 1 + max_repairs, "trace": {"branch": "branch round"}}
    graph.add_node("plan", plan, input_schema=shape, metadata=rounds)
    graph.add_node("branch", branch, input_schema=BranchInput, metadata=repeats)
    graph.add_node("write", write, input_schema=shape, defer=True, metadata={"runs": 1, "trace": {"write": "agent writer"}})
    graph.add_conditional_edges("plan", fan_out, ["branch", "write"])
    graph.add_edge("write", END)
    if max_rounds == 1:  # nothing is to be decided when it is over
        graph.add_edge("branch", "write")
        return
    graph.add_node("join", join, input_schema=shape, defer=True, metadata={"asks": 0, "trace": {"join": HIDDEN}})
    graph.add_edge("branch", "join")
    graph.add_conditional_edges("join", after_join, ["plan", "write"])


def _asked_for(agent: Agent, state: Mapping[str, Any], own: Set[str]) -> dict[str, Any]:
    """What the agent's input names of the keys `own`."""
    named = agent.builder.schemas[agent.builder.input_schema] if own else ()
    return {key: state[key] for key in named if key in own and key in state}


async def _plan(planner: Agent, state: SupervisorState, context: RunContext, store: BaseStore | None, own: Set[str]) -> dict[str, Any]:
    """The tasks of the next round. A planner that fails in a later round ends the rounds: what was found so far is written."""
    number, branches = state.get("round", 0) + 1, state.get("branches", [])
    documents = _documents_of(state)
    asked = {"question": state["question"], "findings": distinct_findings(branches), "open_questions": _open_questions(branches)}
    if state.get("clarification"):
        asked["clarification"] = state["clarification"]
    conversation = conversation_of(context)
    if conversation is not None:
        asked |= {"conversation": turns(state.get("messages", [])), "facts": await known_facts(store, conversation)}
    settled = [] if branches else state.get("first_plan") or []
    try:
        async with context.within(RESEARCH_SHARE):
            asked |= _asked_for(planner, state, own)
            planned = {"questions": settled} if settled else await call_agent(planner, asked, context)
    except (GraphBubbleUp, InputError, StorageError):
        raise
    except Exception as error:
        if not branches:
            raise
        return {"tasks": [], "round": number, "failures": [Failure(role="planner", status=status_of(error), error=said(error))]}
    if conversation is not None:
        await keep_facts(store, conversation, planned.get("remember") or [])
    questions = planned["questions"] or ([] if branches else [state["question"]])
    started, most = state.get("started", 0), context.controls.max_branches
    tasks, skipped, merged = new_tasks(questions, branches, started, most)
    if tasks and "plan" in context.controls.approve:
        tasks, skipped, merged = new_tasks(await _approved(tasks, number, context), branches, started, most)
    tell("plan", tasks=[task.model_dump() for task in tasks], round=number, merged=merged)
    context.join.begin([task.id for task in tasks], branches)
    told = {"clarification": planned["clarification"]} if planned.get("clarification") else {}
    told |= {key: planned[key] for key in own if key in planned}
    return {"tasks": tasks, "round": number, "branches": skipped, "started": started + len(tasks), "documents": documents, **told}


async def _approved(tasks: Sequence[Task], number: int, context: RunContext) -> list[str]:
    """The questions of a round as a person wants them; pauses the run until there is an answer.

    Without a yes a first round is not begun: Declined. In a later one nothing further is asked, and what was found is reported.
    """
    questions = [task.question for task in tasks]
    answer = await context.consult(plan_question(questions, number=number))
    if answer == "no" and number == 1:
        raise Declined("the plan was declined", remedy="resume the run to be asked again, or run it with another question")
    return {"yes": questions, "no": []}[answer] if isinstance(answer, str) else list(answer)


async def fan_out(state: SupervisorState) -> list[Send] | str:
    """A branch a task; many of them in one node, which costs LangGraph as much as one. Without a task the report is written."""
    tasks, shared = state["tasks"], {"documents": state["documents"], "allow_hosts": state.get("allow_hosts", [])}
    # Every so many-th task goes to the same node: the most important ones come first, and all begin with those.
    nodes = min(len(tasks), _NODES)
    return [Send("branch", {"tasks": tasks[at::nodes], **shared}) for at in range(nodes)] or "write"


async def join(state: SupervisorState, runtime: Runtime[RunContext]) -> dict[str, Any]:
    """No further round when all is lost, when a limit was reached, when the join policy has what it wants, and when the run stops."""
    branches, context = state["branches"], RunContext.of(runtime)
    lost = all(result.status != "ok" for result in branches)
    late = any(result.status == "limited" for result in branches)
    return {"tasks": [], "over": lost or late or context.stopping or context.join.ends_rounds(branches)}


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


def _open_questions(branches: Sequence[BranchResult]) -> list[str]:
    return [result.task.question for result in branches if not result.findings]


async def _write(writer: Agent, state: SupervisorState, context: RunContext, own: Set[str]) -> dict[str, Any]:
    """The report. When the writer fails, or is not asked because the run stops or has failed, the findings themselves are the answer."""
    branches, failures = state.get("branches", []), list[Failure]()
    findings = distinct_findings(branches)
    answered, answer = dict[str, Any](), list[Sentence]()
    kinds: set[str] = set()
    why = None if context.stopping else context.join.failure(branches)
    if why is not None:
        failures.append(Failure(role="join", status="failed", error=why))
    elif findings and not context.stopping:
        try:
            with kinds_asked() as kinds:
                async with context.within(_WRITING_SHARE):
                    more = _asked_for(writer, state, own | {"branches"} if own else own)
                    answered = {**await call_agent(writer, {**more, "question": state["question"], "findings": findings}, context)}
            answer = answered["answer"]
        except (GraphBubbleUp, StorageError):
            raise
        except Exception as error:  # noqa: BLE001 - the findings are paid for: they are reported without the writer
            failures.append(Failure(role="writer", status=status_of(error), error=said(error)))
    elif any(result.status == "ok" for result in branches) and not context.stopping:
        failures.append(Failure(role="supervisor", status="failed", error="no finding is supported by the documents"))
    library = await context.library(state["documents"])
    failures += lapses(library)
    all_failures = [*state.get("failures", []), *failures]
    offline = kinds.union(state.get("asked", [])) == {"offline"}
    more_parts = {"sections": answered.get("sections", ()), "appendix": state.get("appendix", ())}
    report = await write_report(
        state["question"], branches, findings, answer, all_failures, context, library, offline=offline, **more_parts
    )
    tell("report", characters=len(report.markdown), findings=len(report.findings), gaps=len(report.gaps))
    written = {"report": report.markdown, "findings": report.findings, "gaps": report.gaps, "sources": report.sources, "failures": failures}
    written |= {key: answered[key] for key in own if key in answered}
    return written if conversation_of(context) is None else {**written, "messages": turn(state["question"], report.markdown)}
