"""A race: an agent asked with several models at once, or several agents. The first valid answer wins, and the others are cancelled."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Literal, NotRequired

from langchain_core.language_models import BaseChatModel
from langgraph.errors import GraphBubbleUp
from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime
from pydantic import BaseModel, ConfigDict, Field, create_model
from typing_extensions import TypedDict, get_type_hints

from orchestrator.context import RunContext, kinds_asked
from orchestrator.errors import GraphError, InputError, StorageError, said
from orchestrator.events import in_branch, tell
from orchestrator.flights import first_good
from orchestrator.graphs.branches import RESEARCH_SHARE, Agent, call_agent, status_of
from orchestrator.graphs.report import markdown_table, plain_markdown
from orchestrator.joining import RoundOver
from orchestrator.journal import times_recalled
from orchestrator.models.call import model_name
from orchestrator.models.narrowing import asking_only
from orchestrator.state import BranchResult, Task, Usage
from orchestrator.text import counted, one_line

__all__ = ["RaceOutput", "Racer", "create_race"]

_RACER = "racer"  # of several agents, the one that is asked
# Before a racer's name: the id of its task. A run that is resumed with other models has other tasks, which are not taken for the earlier.
_ID = "racer "

Valid = Callable[[Mapping[str, Any]], bool | str]
Told = Callable[[Mapping[str, Any], RunContext], Awaitable[str]]
_FINISHED = ("won", "valid", "invalid", "failed", "refused")  # racers that nothing but themselves has ended
Outcome = Literal["won", "valid", "invalid", "cancelled", "failed", "refused", "timed_out", "limited", "left"]


class Racer(BaseModel):
    """What became of one racer: `won`, `valid` but later, `invalid`, `cancelled` when another had won, or how it failed.

    `left`: an earlier attempt of the run asked it, and it was resumed without it. `seconds` is wall time until it ended, what was answered
    in an earlier attempt included; 0.0 where it has left. `usage` has what it cost in all attempts, where a call was cancelled by an
    estimate of its input.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    status: Outcome
    seconds: float
    usage: Usage
    error: str | None = None


class RaceOutput(TypedDict):
    """What a race hands back beside the keys of the winner's own output, which are left out where nobody won.

    `winner`: the name of the racer, "" where nobody won. `racers`: all of them, in the order they were given, and last
    those that have left. `saved_seconds`: what the
    race saved against asking one racer after the other in that order; exact where it was measured, else at least this much.
    """

    report: str
    winner: str
    racers: list[Racer]
    saved_seconds: float


class _Dropped(Exception):  # noqa: N818 - a racer that is out of the race
    """This racer has no valid answer."""


@dataclass(eq=False)
class _Runner:
    """A racer while it runs; its name is its task's question. `own`: what it alone is given; `model` asks in the place of `models`."""

    task: Task
    agent: Agent
    own: Mapping[str, Any] = field(default_factory=dict)
    model: BaseChatModel | None = None
    models: Sequence[BaseChatModel] = ()
    status: Outcome = "cancelled"
    error: str | None = None
    seconds: float = 0.0
    values: Mapping[str, Any] = field(default_factory=dict)

    async def run(self, given: Mapping[str, Any], context: RunContext, valid: Valid) -> "_Runner":
        """Its valid answer; raises _Dropped where it has none, whatever went wrong in it."""
        began = time.monotonic()
        with in_branch(self.task.id), context.terms.tracer.branch(self.task), self.alone(), times_recalled() as recalled:
            tell("branch_started", question=self.task.question)
            try:
                async with context.join.branch(self.task.id, context.controls.branch_timeout), context.within(RESEARCH_SHARE):
                    context.terms.check()
                    with kinds_asked() as kinds:
                        came = await call_agent(self.agent, {**given, **self.own}, context)
                self.values = {**given, **came, "kinds": sorted(kinds)}
                self._judge(valid(self.values))
            except (GraphBubbleUp, InputError, StorageError):
                raise
            except asyncio.CancelledError:
                self._ended(began, recalled, context)
                raise
            except Exception as error:  # noqa: BLE001 - one racer's failure, whosever code it was, ends none of the others
                ended = status_of(error)
                self.status = "cancelled" if ended == "ok" or ended == "skipped" else ended
                self.error = str(error) if isinstance(error, RoundOver) else said(error)
            self._ended(began, recalled, context)
        if self.status != "valid":
            raise _Dropped
        return self

    def alone(self) -> AbstractContextManager[None]:
        """Inside, its own model is asked in the place of all of them."""
        return nullcontext() if self.model is None else asking_only(self.model, self.models)

    def _judge(self, verdict: bool | str) -> None:
        problem = verdict if isinstance(verdict, str) else "" if verdict else "the answer is not valid"
        self.status, self.error = ("invalid", one_line(problem, 300)) if problem else ("valid", None)

    def _ended(self, began: float, recalled: Sequence[tuple[float, float]], context: RunContext) -> None:
        self.seconds = time.monotonic() - began + _covered(recalled)
        context.ledger.branch_ended(self.task.id)
        told = self.result().model_dump(include={"status", "error", "gap", "attempts", "seconds"})
        found = self.values.get("findings")
        came = {"findings": len(found)} if found else {"note": "answered"}
        tell("branch_finished", **told, **came)

    def result(self) -> BranchResult:
        """The racer as a branch of the run; one that was cancelled because another had won is no loss."""
        needless = self.status == "cancelled" and self.error is None
        status = {"valid": "ok", "won": "ok", "invalid": "failed", "cancelled": "skipped"}.get(self.status, self.status)
        gap = "not needed any more" if needless else None
        return BranchResult(task=self.task, status=status, error=self.error, gap=gap, seconds=round(self.seconds, 3))  # type: ignore[arg-type]  # a BranchStatus


def _covered(times: Iterable[tuple[float, float]]) -> float:
    """The seconds of these spans of time; what was at once counts once."""
    seconds = reached = 0.0
    for began, ended in sorted(times):
        seconds += max(0.0, ended - max(began, reached))
        reached = max(reached, ended)
    return seconds


def create_race(
    agents: Agent | Mapping[str, Agent], *, valid: Valid = lambda _: True, told: Told | None = None
) -> StateGraph[Any, Any, Any, Any]:
    """A graph of the agent's input, and `measure`, to the agent's output and RaceOutput, ready to compile.

    One agent is asked with each of the run's models (`--model A,B,C`), which also serve the roles inside it that have none of their own.
    Several, by name and with the same schemas, are asked as they are. `valid`: whether an answer counts, or what is wrong with it, in
    words; it is given the agent's input and output, and `kinds`, the kinds of model that were asked. `told`, given the same: the winner's
    answer as Markdown; without it, its key `answer`, else all of its output. With
    `measure` the others may finish, so that it is known what the race saves. Where no answer is valid the run has failed.
    """
    names = [*agents] if isinstance(agents, Mapping) else []
    agent = _side_by_side(agents) if isinstance(agents, Mapping) else agents
    builder = agents[names[0]].builder if isinstance(agents, Mapping) else agents.builder
    given_keys, came_keys = [*builder.schemas[builder.input_schema]], [*builder.schemas[builder.output_schema]]

    async def check(given: Mapping[str, Any], context: RunContext) -> None:
        for runner in await _line_up(agent, names, context):
            raced = agents[runner.task.question] if isinstance(agents, Mapping) else agents
            for spec in raced.builder.nodes.values():
                if refuse := (spec.metadata or {}).get("check"):
                    with runner.alone():
                        await refuse(given, context)

    async def race(state: Any, runtime: Runtime[RunContext]) -> dict[str, Any]:
        context, measured = RunContext.of(runtime), bool(state.get("measure"))
        await check(state, context)  # before anybody is asked
        runners = await _line_up(agent, names, context)
        won = await _run(runners, {key: state[key] for key in given_keys if key in state}, context, valid, measure=measured)
        answer, values = ("", {}) if won is None else (await (told or _told)(won.values, context), won.values)
        came = {key: values[key] for key in came_keys if key in values}
        return {**came, **await _came_to(runners, won, answer, context, measured)}

    hints = {key: hint for schema in (builder.input_schema, builder.output_schema) for key, hint in _hints(schema).items()}
    measure = Annotated[bool, Field(default=False, description="let the others finish, too, and see what the race saves")]
    state = _typed("RaceState", {**hints, **_hints(RaceOutput), "measure": measure, "branches": list[BranchResult]})
    output = _typed("RaceOutput", {**_hints(builder.output_schema), **_hints(RaceOutput)})
    graph = StateGraph(state, input_schema=_with_measure(builder.input_schema, measure), output_schema=output, context_schema=RunContext)
    metadata = {"runs": 1, "noun": "racer", "check": check, "trace": {"race": "agent race round"}}
    graph.add_node("race", race, input_schema=state, metadata=metadata)
    graph.add_edge(START, "race")
    graph.add_edge("race", END)
    return graph


def _hints(schema: Any) -> dict[str, Any]:
    return get_type_hints(schema, include_extras=True)


def _typed(name: str, hints: Mapping[str, Any]) -> Any:
    return TypedDict(name, dict(hints), total=False)  # type: ignore[operator]  # a schema made at run time


def _with_measure(schema: Any, measure: Any) -> Any:
    if isinstance(schema, type) and issubclass(schema, BaseModel):
        return create_model("RaceInput", __base__=schema, measure=(measure, False))
    return TypedDict("RaceInput", {**_hints(schema), "measure": NotRequired[measure]})  # type: ignore[operator]


def _side_by_side(agents: Mapping[str, Agent]) -> Agent:
    """Several agents as one graph, in which each racer goes to its own."""
    if len(agents) < 2:
        raise GraphError("the race cannot be built", ["it needs two agents or more"], remedy="give it one agent, or several by name")
    builder = next(iter(agents.values())).builder
    hints = {**_hints(builder.input_schema), _RACER: str}
    state = _typed("FieldState", {**hints, **_hints(builder.output_schema)})
    graph = StateGraph(state, input_schema=_typed("FieldInput", hints), output_schema=builder.output_schema, context_schema=RunContext)

    async def own(given: Mapping[str, Any]) -> str:
        return str(given[_RACER])

    for name, agent in agents.items():
        graph.add_node(name, agent)
        graph.add_edge(name, END)
    graph.add_conditional_edges(START, own, [*agents])
    kept = any(agent.checkpointer is not False for agent in agents.values())
    return graph.compile(name="racers", checkpointer=None if kept else False)


async def _line_up(agent: Agent, names: Sequence[str], context: RunContext) -> list[_Runner]:
    """The racers in the order given: an agent each where there are names, else a model each."""
    if names:
        return [_Runner(Task(id=_ID + name, question=name), agent, {_RACER: name}) for name in names]
    models = await context.models_of("")
    if len(models) < 2:
        raise InputError(
            "a race needs two models or more", where=f"it has {model_name(models[0])}", remedy="name them: --model openai:NAME,openai:OTHER"
        )
    called = [model_name(model) for model in models]
    of_one_name = [called[: at + 1].count(name) for at, name in enumerate(called)]
    unique = [name if number == 1 else f"{name} ({number})" for name, number in zip(called, of_one_name, strict=True)]
    tasks = [Task(id=_ID + name, question=name) for name in unique]
    return [_Runner(task, agent, model=model, models=models) for task, model in zip(tasks, models, strict=True)]


async def _run(runners: Sequence[_Runner], given: Mapping[str, Any], context: RunContext, valid: Valid, *, measure: bool) -> _Runner | None:
    """The winner. All have ended when it is given, cancelled or, where it is measured, by themselves."""
    tell("plan", tasks=[runner.task.model_dump() for runner in runners], round=1, merged=[], noun="racer")
    context.join.begin([runner.task.id for runner in runners])

    async def to_its_end(runner: _Runner) -> None:
        try:
            await runner.run(given, context, valid)
        except _Dropped:
            return

    if measure:
        try:
            async with asyncio.TaskGroup() as group:
                for runner in runners:
                    group.create_task(to_its_end(runner), name=f"racer {runner.task.id}")
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None
        won = min((runner for runner in runners if runner.status == "valid"), key=lambda runner: runner.seconds, default=None)
    else:
        try:
            won = await first_good([partial(runner.run, given, context, valid) for runner in runners], passing=_Dropped)
        except _Dropped:
            won = None
    if won is not None:
        won.status = "won"
    return won


async def _came_to(runners: Sequence[_Runner], won: _Runner | None, answer: str, context: RunContext, measured: bool) -> dict[str, Any]:
    racers = [
        Racer(
            name=runner.task.question,
            status=runner.status,
            seconds=round(runner.seconds, 3),
            usage=await context.ledger.usage(runner.task.id),
            error=runner.error,
        )
        for runner in runners
    ]
    racers += await _left({runner.task.id for runner in runners}, context)
    # What failed beside a winner is told, and no loss: without a winner the run is what its racers are.
    lost = [runner.result() for runner in runners] if won is None else []
    measured = measured and all(runner.status in _FINISHED for runner in runners)  # else one was ended by something else
    saved = 0.0 if won is None else max(0.0, _one_after_the_other(runners) - won.seconds)
    report = "\n\n".join(part for part in (answer.strip(), _table(racers, saved, measured)) if part) + "\n"
    tell("report", characters=len(report), findings=0, gaps=0)
    name = "" if won is None else won.task.question
    return {"report": report, "winner": name, "racers": racers, "saved_seconds": round(saved, 3), "branches": lost}


async def _left(here: Set[str], context: RunContext) -> list[Racer]:
    """The racers that earlier attempts of the run have asked, and this one has not; what they cost is billed."""
    journal = context.terms.journal
    before = dict.fromkeys(branch for _, _, branch, _ in journal.restored()) if journal is not None else {}
    left = [branch for branch in before if branch is not None and branch.startswith(_ID) and branch not in here]
    usages = [(branch.removeprefix(_ID), await context.ledger.usage(branch)) for branch in left]
    return [Racer(name=name, status="left", seconds=0.0, usage=usage) for name, usage in usages if usage.model_calls]


def _one_after_the_other(runners: Sequence[_Runner]) -> float:
    """Seconds until the first valid answer if each had been asked when the one before it had failed; at least, where one was cancelled."""
    seconds = 0.0
    for runner in runners:
        seconds += runner.seconds
        if runner.status in ("won", "valid", "cancelled"):
            break
    return seconds


def _table(racers: Sequence[Racer], saved: float, measured: bool) -> str:
    """Who won, what each took and cost, and what the race saved and cost more."""
    head = ["racer", "result", "seconds", "calls", "tokens in", "tokens out", "cost"]
    rows = [
        [
            *(plain_markdown(racer.name), racer.status.replace("_", " "), _seconds(racer), f"{racer.usage.model_calls}"),
            *(f"{racer.usage.input_tokens:,}", f"{racer.usage.output_tokens:,}", _money([racer.usage])),
        ]
        for racer in racers
    ]
    errors = "\n".join(f"- {plain_markdown(racer.name)}: {plain_markdown(racer.error)}" for racer in racers if racer.error)
    parts = ["## The race", markdown_table(head, rows, numbers=range(2, 7)), errors, " ".join(_summary(racers, saved, measured))]
    return "\n\n".join(part for part in parts if part)


def _seconds(racer: Racer) -> str:
    return "" if racer.status == "left" else f"{racer.seconds:.2f}"


def _summary(racers: Sequence[Racer], saved: float, measured: bool) -> Iterator[str]:
    winner = next((racer for racer in racers if racer.status == "won"), None)
    if winner is None:
        yield "No answer was valid."
        return
    yield f"{plain_markdown(winner.name)} won after {winner.seconds:.2f} s."
    if measured or saved >= 0.005:
        least = "" if measured else "at least "
        yield f"Asked one after the other, in this order, it would have taken {least}{winner.seconds + saved:.2f} s:"
        yield f"the race saved {least}{saved:.2f} s."
    else:
        yield "How long the others would have taken is not known; `--measure` lets them finish."
    left = [plain_markdown(racer.name) for racer in racers if racer.status == "left"]
    if left:
        yield f"Asked before the run was resumed, and no more since: {', '.join(left)}."
    others = [racer.usage for racer in racers if racer is not winner]
    calls, tokens = sum(usage.model_calls for usage in others), sum(usage.input_tokens + usage.output_tokens for usage in others)
    estimated = ", estimated where a call was cancelled" if any(usage.estimated_calls for usage in others) else ""
    yield f"The others cost {counted(calls, 'call')}, {tokens:,} tokens, {_money(others)}{estimated}."


def _money(usages: Sequence[Usage]) -> str:
    costs = [usage.cost_usd for usage in usages if usage.model_calls]
    cost = sum(cost for cost in costs if cost is not None)
    return "cost unknown" if None in costs else f"${cost:.4f}" if cost else "$0"


async def _told(values: Mapping[str, Any], _: RunContext) -> str:
    answer = values.get("answer")
    return answer if isinstance(answer, str) else f"```json\n{json.dumps(values, default=str, ensure_ascii=False, indent=2)}\n```"
