"""One attempt of a run: its graph is driven to its end, every event is told, and what came of it is a result."""

import asyncio
import contextlib
import json
import re
import secrets
import sys
import sysconfig
import time
import traceback
import warnings
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import reduce
from operator import is_
from pathlib import Path
from typing import Any, cast
from weakref import WeakKeyDictionary

from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import var_child_runnable_config
from langgraph.channels.base import BaseChannel
from langgraph.errors import GraphDrained, GraphRecursionError, InvalidUpdateError
from langgraph.graph.state import CompiledStateGraph
from langgraph.runtime import RunControl
from langgraph.types import Interrupt, StateSnapshot, StreamMode
from pydantic import BaseModel

from orchestrator.asking import Person
from orchestrator.checks import unknown_targets
from orchestrator.choices import Choice, inner_graphs
from orchestrator.context import RunContext
from orchestrator.controls import Controls
from orchestrator.delivery import Delivery
from orchestrator.door import guarding
from orchestrator.errors import DeadlineReached, Declined, InputError, LimitReached, LostRunError, OrchestratorError, StopRequested, said
from orchestrator.events import Event, listening, tell
from orchestrator.joining import STOPPED
from orchestrator.journal import Journal
from orchestrator.outcome import Result, Status, branches, outcome, questions_of
from orchestrator.spans import Tracer
from orchestrator.state import BranchResult, Task
from orchestrator.storage.journal import NO_USAGE, JournalUsage
from orchestrator.workflow import Workflow

__all__ = ["GRACE", "Attempt", "grace"]

GRACE = 10.0
"""Seconds that a run which was asked to stop has for what is in flight, and for its report."""

grace: ContextVar[float | None] = ContextVar("grace", default=None)
"""The seconds of runs that are begun here, in the place of GRACE; 0: what is in flight is cancelled at once."""

# LangGraph's own, of branches that wait for max_concurrency and of checkpoints when a run is cut: nobody could do anything about it.
_NEVER_BEGUN = (
    "ignore",
    re.compile(
        "coroutine '(arun_with_retry|AsyncPregelLoop\\._checkpointer_put_after_previous|Checkpoints\\.aput_writes)' was never awaited",
        re.IGNORECASE,
    ),
    RuntimeWarning,
    None,
    0,
)
_CALLS, _QUIET = 0.8, 0.1  # of GRACE: for calls in flight, and without any; the report is written in the rest
_PLAIN = frozenset((str, int, float, bool, type(None)))
_OF_A_BRANCH = {"status", "error", "gap", "rejected", "attempts", "seconds"}


@dataclass
class Attempt:
    """One attempt of a run while it lasts.

    `values` is the run's validated input. `thread`: LangGraph's thread_id, where the graph has a checkpointer. `given`: what the graph
    is started with; None or a Command where it goes on with the tasks that its thread still has. An attempt that is made of another one
    by `dataclasses.replace` begins with nothing of what that one has come to.
    """

    workflow: Workflow
    graph: CompiledStateGraph[Any, Any, Any, Any]
    values: dict[str, Any]
    models: Choice
    controls: Controls
    run_id: str
    boundary: str = field(default_factory=lambda: secrets.token_hex(8))
    thread: str = ""
    given: Any = None
    fingerprint: str = ""
    folder: str = ""  # that the run was started in
    number: int = 1  # of the run's attempts
    answers: dict[str, Any] = field(default_factory=dict)  # of a person, by the question's id
    spoilt: frozenset[str] = frozenset()  # scopes and roles of the journal that failed
    before: float = 0.0  # seconds of wall time that earlier attempts took, as far as they are known
    stop: asyncio.Event | None = None
    person: Person | None = None  # who answers while the run goes on
    goes_on: bool = False  # after a question that this person answered: what was told of the run stays so
    began: float = field(default_factory=time.monotonic)
    known: tuple[list[Task], list[BranchResult]] = field(init=False, default_factory=lambda: ([], []))  # of earlier attempts
    state: dict[str, Any] = field(init=False, default_factory=dict)
    ahead: list[Mapping[str, Any]] = field(init=False, default_factory=list)  # what steps wrote since the state was last told
    earlier: list[Mapping[str, Any]] = field(init=False, default_factory=list)  # and in an earlier attempt, in the step that goes on
    interrupts: list[Interrupt] = field(init=False, default_factory=list)
    planned: dict[str, bool] = field(init=False, default_factory=dict)  # branches, by their tasks' ids, and whether they are done
    lost_step: str = field(init=False, default="")
    steps: dict[str, int] = field(init=False, default_factory=dict)  # that were begun, and how many of each have not ended
    ended: frozenset[str] = field(init=False, default=frozenset())  # tasks of the step that goes on which had ended before, by their ids
    rounds: int = field(init=False, default=0)  # that were begun by earlier attempts
    used: JournalUsage = field(init=False, default=NO_USAGE)  # by earlier attempts

    def __post_init__(self) -> None:
        self.context = RunContext(
            models=self.models.by_role,
            controls=self.controls,
            name=self.run_id,
            boundary=self.boundary,
            began=self.began,
            answers=self.answers,
        )

    async def record_in(self, journal: Journal, tracer: Tracer | None = None) -> None:
        """Keep every finished call in `journal`, and take what earlier attempts were answered and have used from it; `tracer` is told
        what the attempt does.
        """
        self.context.terms.journal = journal
        self.context.terms.tracer = tracer or self.context.terms.tracer
        if self.spoilt:
            journal.forget(self.spoilt)
        before = journal.restored()
        await self.context.ledger.restore(before)
        self.used = reduce(JournalUsage.plus, (usage for *_, usage in before), NO_USAGE)

    def restore(self, snapshot: StateSnapshot) -> None:
        """Go on where the thread stands: its branches count as planned and done, and the round that is under way goes on."""
        ended = {task.id: task.result for task in snapshot.tasks if isinstance(task.result, Mapping)}
        self.earlier, self.ended = [*ended.values()], frozenset(ended)
        values = snapshot.values if isinstance(snapshot.values, Mapping) else {}
        going = any(task.path[0] == "__pregel_push" for task in snapshot.tasks)  # else all branches of the round are done
        tasks = [task for task in values.get("tasks") or () if going and isinstance(task, Task)]
        now = [result for written in self.earlier for result in branches(written)]
        before = [result for result in branches(values) if result.task not in tasks]  # the others are of this round, or asked again in it
        self.known = [*(result.task for result in before), *tasks], [*before, *now]
        self.rounds = int(values.get("round") or 0) if tasks else 0
        self.context.join.begin([task.id for task in tasks], branches(values))
        for result in now:
            self.context.join.left(result)

    def progress(self) -> dict[str, int]:
        """How many branches were planned, and how many of them are done."""
        return {"planned": len(self.planned), "done": sum(self.planned.values())}

    async def drive(self, delivery: Delivery) -> Result:
        """Drive the graph to its end, telling every event; bad input is raised, every other failure is a result."""
        terms = self.context.terms
        terms.room, terms.driven, terms.heard = delivery.room, True, delivery.tokens_heard
        if _NEVER_BEGUN not in warnings.filters:
            warnings.filterwarnings("ignore", _NEVER_BEGUN[1].pattern, RuntimeWarning)

        tracer = self.context.terms.tracer

        def emit(event: Event) -> None:
            self._note(event)
            tracer.told(event)
            if not (self.goes_on and event.kind in ("run_started", "documents")):
                delivery.put(event)

        with _apart(), listening(emit), unknown_targets() as unknown:
            self._tell_start()
            try:
                async with _connected(), contextlib.aclosing(self.context), guarding(self.context.terms):
                    ended = await self._ended(delivery)
            except StopRequested as stopped:
                self.context.stop()
                ended = ("cancelled", said(stopped)) if isinstance(stopped, Declined) else None
            if self.context.stopping:
                return await self._came("cancelled", self._stopped(ended[1] if ended else None))
            if ended is None and unknown:
                named = ", ".join(repr(name) for name in dict.fromkeys(unknown))
                ended = "failed", f"the graph sent work to {named}, and it has no such node: that work was not done"
            return await self._came(*ended or await self._paused() or outcome(self.state, self.interrupts))

    async def _came(self, status: Status, error: str | None) -> Result:
        """The result of an attempt that is over: what it is made of is let go before it is stored, which takes as much again."""
        result = await self.result(status, error)
        self.state, self.ahead, self.earlier = {}, [], []
        self.context.join.begin([])
        return result

    async def _paused(self) -> tuple[Status, str | None] | None:
        """Where a graph that was compiled to pause at a node has done so, which it tells nobody."""
        if self.interrupts or not self.thread or not (self.graph.interrupt_before_nodes or self.graph.interrupt_after_nodes):
            return None
        snapshot = await self.graph.aget_state({"configurable": {"thread_id": self.thread}})
        waiting = ", ".join(dict.fromkeys(repr(task.name) for task in snapshot.tasks))
        return ("interrupted", f"the graph pauses before {waiting}, as it was compiled to; resume goes on") if waiting else None

    async def _ended(self, delivery: Delivery) -> tuple[Status, str | None] | None:
        """Follow the graph; the status and sentence of what ended it early, None where nothing did. Raises StopRequested, InputError."""
        try:
            async with asyncio.timeout(self._left()) as clock, self._stoppable() as control:
                await self._follow(control, delivery)
        except (InputError, StopRequested, LostRunError):
            raise
        except GraphDrained:
            return None
        except TimeoutError as error:
            if self.context.stopping:
                return None
            if not clock.expired():
                return "failed", self._blamed(error)
            late = DeadlineReached(f"the run took longer than its deadline of {self.controls.deadline:g} s", remedy="raise --deadline")
            return "limited", str(late)
        except LimitReached as error:
            return "limited", said(error)
        except GraphRecursionError:
            steps = _steps(self.controls)
            return "limited", f"the graph took more than {steps} steps: it goes round without an end, or --max-branches is too low"
        except Exception as error:  # noqa: BLE001 - a run that fails ends with a result that says so
            tell("log", level="debug", message="the run failed", exception=error)
            return "failed", self._blamed(error)
        return None

    def _left(self) -> float | None:
        """Seconds until the deadline."""
        return None if self.controls.deadline is None else self.began + self.controls.deadline - time.monotonic()

    def _tell_start(self) -> None:
        limits = self.controls.budget.model_dump(exclude_none=True)
        tell(
            "run_started",
            workflow=self.workflow.name,
            model=self.models.said,
            reason=self.models.reason,
            notes=[*self.workflow.notes, *self.models.notes],
            limits=limits if self.controls.deadline is None else {**limits, "deadline": self.controls.deadline},
            attempt=self.number,
            used=self.used._asdict(),
        )
        tasks, results = self.known
        if tasks:
            metadata = (spec.metadata or {} for spec in self.graph.builder.nodes.values())
            nouns = [{"noun": told["noun"]} for told in metadata if "noun" in told]  # what the graph calls a branch
            tell("plan", tasks=[task.model_dump() for task in tasks], round=1, merged=[], **(nouns or [{}])[0])
        for result in results:
            told = result.model_dump(include={"status", "error", "gap", "attempts", "seconds"})
            tell("branch_finished", branch=result.task.id, **told, findings=len(result.findings))

    @contextlib.asynccontextmanager
    async def _stoppable(self) -> AsyncGenerator[RunControl, None]:
        """What is inside drains once `stop` is set, and is cancelled after its grace: that raises TimeoutError."""
        control = RunControl()
        if self.stop is None:
            yield control
            return
        async with asyncio.timeout(None) as clock:
            watching = asyncio.create_task(self._drain(self.stop, control, clock), name=f"stop of {self.run_id}")
            try:
                yield control
            finally:
                watching.cancel()

    async def _drain(self, stop: asyncio.Event, control: RunControl, clock: asyncio.Timeout) -> None:
        await stop.wait()
        self.context.stop()
        if not _ends_itself(self.graph):
            control.request_drain("stopped")
        loop, own = asyncio.get_running_loop(), grace.get()
        seconds = GRACE if own is None else own
        began = last = loop.time()
        clock.reschedule(began + seconds)
        while loop.time() < min(began + _CALLS * seconds, last + _QUIET * seconds):  # calls may wait for a turn that they will never take
            await asyncio.sleep(0.01 * seconds)
            last = loop.time() if self.context.terms.party.in_flight else last
        self.context.join.end(f"{STOPPED}it was not done {loop.time() - began:.1f} s after the run was asked to stop")

    async def _follow(self, control: RunControl, delivery: Delivery) -> None:
        tracer = self.context.terms.tracer
        tracer.rounds = max(0, self.rounds - 1)
        config: RunnableConfig = {
            "run_name": self.workflow.name,
            # Calls are bounded elsewhere; this bounds the branches that are under way, so that the first ones end before the last begin.
            "max_concurrency": self.controls.max_concurrency,
            "recursion_limit": _steps(self.controls),
            "metadata": {"run_id": self.run_id, "workflow": self.workflow.name},
            "tags": [f"workflow:{self.workflow.name}"],
            "callbacks": tracer.callbacks,
        }
        if self.thread:
            config["configurable"] = {"thread_id": self.thread}
        modes: list[StreamMode] = ["values", "tasks", "custom"]
        parts = self.graph.astream(
            self.given,
            config,
            context=self.context,
            stream_mode=modes,
            durability="sync" if self.thread else None,
            subgraphs=True,
            version="v2",
            control=control,
        )
        async with contextlib.aclosing(cast("AsyncGenerator[Any, None]", parts)) as open_parts:
            async for part in open_parts:
                if part["type"] == "tasks":
                    tracer.step(part["ns"], part["data"])
                if part["ns"] and part["type"] != "custom":
                    continue  # of a graph inside: what it comes to is told by the step that it is
                if part["type"] == "values":
                    self.state = part["data"] if isinstance(part["data"], dict) else _fields(part["data"])
                    self.ahead, self.earlier = self.earlier, []
                    self.interrupts.extend(part["interrupts"])
                    await delivery.room()  # between two steps no node runs, so nothing piles up meanwhile
                elif part["type"] == "tasks":
                    self._tell_step(part["data"])
                elif isinstance(part["data"], Event):
                    event = part["data"]
                    tell(event.kind, branch=event.branch, role=event.role, **event.fields)
                else:
                    tell("custom", data=_json(part["data"]))

    def _tell_step(self, task: Mapping[str, Any]) -> None:
        if "result" not in task:
            self.steps[task["name"]] = self.steps.get(task["name"], 0) + (task["id"] not in self.ended)
            tell("step_started", node=task["name"])
            return
        if task["interrupts"]:
            return  # it waits for a person, and begins again with the answer
        if isinstance(task["result"], Mapping):
            self.ahead.append(task["result"])
        error = str(task["error"]) if task["error"] else None
        self.steps[task["name"]] -= error is None
        self.lost_step = task["name"] if error else self.lost_step
        tell("step_finished", node=task["name"], error=error)

    def _blamed(self, error: BaseException) -> str:
        """What failed, in which step, and at which line of the user's own code."""
        line = "" if isinstance(error, OrchestratorError) else _own_line(error)
        where = ", ".join(part for part in (f"in step {self.lost_step!r}" if self.lost_step else "", line) if part)
        return f"{said(error)} ({where})" if where else said(error)

    def _note(self, event: Event) -> None:
        if event.kind == "plan":
            self.planned.update((str(task["id"]), False) for task in event.fields["tasks"] if task["id"] not in self.planned)
        elif event.kind == "branch_finished" and event.branch is not None and event.fields.get("status") == "ok":
            self.planned[event.branch] = True

    def _stopped(self, cause: str | None) -> str:
        took = f"stopped after {time.monotonic() - self.began:.1f} s"
        left = ", ".join(repr(node) for node, going in self.steps.items() if going)
        reached = f"{took}: {sum(self.planned.values()):,} of {len(self.planned):,} branches were done" if self.planned else took
        reached += f" (in step {left})" if left and not self.planned else ""
        return f"{reached}; {cause}" if cause else reached

    def _unfinished(self, status: Status, output: Mapping[str, Any]) -> dict[str, Any]:
        """A report of what there is, in the place of the one that was not written; none where there is nothing yet."""
        if not output:
            return {}
        from orchestrator.graphs.report import unfinished_report

        done = [node for node, going in self.steps.items() if not going]
        return {"report": unfinished_report(status, done, [node for node in self.steps if node not in done], output)}

    async def stopped(self) -> Result:
        """The result of a run that was stopped, as it stands now."""
        return await self.result("cancelled", self._stopped(None))

    async def result(self, status: Status, error: str | None) -> Result:
        """The result as it stands now; steps that had finished count, whatever became of those beside them."""
        self.state.update(_written(self.graph, self.state, self.ahead))
        named, ledger = self.graph.output_channels, self.context.ledger
        keys = [named] if isinstance(named, str) else list(named)
        output = {key: _json(self.state[key]) for key in keys if key in self.state}
        if status in ("cancelled", "limited", "failed") and "report" in keys and not output.get("report"):
            output |= self._unfinished(status, {key: value for key, value in output.items() if value})
        return Result(
            run_id=self.run_id,
            workflow=self.workflow.name,
            status=status,
            output=output,
            branches=[{"task": branch.task.question, **branch.model_dump(include=_OF_A_BRANCH)} for branch in branches(self.state)],
            usage={**(await ledger.usage()).model_dump(), "by_role": await ledger.by_role()},
            seconds=round(self.before + time.monotonic() - self.began, 3),
            model=self.models.said,
            error=error,
            questions=questions_of(self.interrupts) if status == "interrupted" else (),
        )


@contextlib.contextmanager
def _apart() -> Iterator[None]:
    """A run that a node or a tool of another one starts is no part of that one's graph: it has checkpoints and a trace of its own."""
    token = var_child_runnable_config.set(None)
    try:
        yield
    finally:
        var_child_runnable_config.reset(token)


_runs: WeakKeyDictionary[asyncio.AbstractEventLoop, int] = WeakKeyDictionary()


@contextlib.asynccontextmanager
async def _connected() -> AsyncGenerator[None, None]:
    """The connections of models last as long as a run of this event loop does."""
    loop = asyncio.get_running_loop()
    _runs[loop] = _runs.get(loop, 0) + 1
    try:
        yield
    finally:
        _runs[loop] -= 1
        if not _runs[loop] and "orchestrator.models.connection" in sys.modules:  # else nothing was ever connected
            from orchestrator.models.connection import close_connections

            await close_connections()


def _ends_itself(graph: CompiledStateGraph[Any, Any, Any, Any]) -> bool:
    """Whether a graph knows of the run it belongs to: told to stop, it still writes down what was found."""
    return any(each.context_schema is RunContext for each in (graph, *inner_graphs(graph)))


def _written(
    graph: CompiledStateGraph[Any, Any, Any, Any], state: Mapping[str, Any], writes: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The keys of `state` that finished steps have changed, as the graph's own reducers change them."""
    changed = dict[str, Any]()
    for key in dict.fromkeys(key for write in writes for key in write):
        channel = graph.channels.get(key)
        if not isinstance(channel, BaseChannel):
            continue
        values = [value for write in writes if key in write for value in _each(write[key])]
        now = channel.from_checkpoint(state[key]) if key in state else channel.copy()
        with contextlib.suppress(InvalidUpdateError):  # of two steps that write a key which takes one value neither counts
            now.update(values)
            changed[key] = now.get()
    return changed


def _each(written: Any) -> list[Any]:
    """LangGraph tells several writes of one step to one key as {"$writes": [...]}."""
    return list(written["$writes"]) if isinstance(written, Mapping) and "$writes" in written else [written]


def _steps(controls: Controls) -> int:
    """LangGraph's recursion limit: its own default lets a loop go round ten thousand times."""
    return controls.max_branches + 50


def _own_line(error: BaseException) -> str:
    """`file.py:12`, the last line that is neither the standard library's, nor a package's, nor ours."""
    others = (str(Path(__file__).parent), sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), "<")
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(others)]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""


def _fields(state: Any) -> dict[str, Any]:
    """A state that is a dataclass or a model, by key."""
    return {key: value for key, value in vars(state).items() if not key.startswith("_")}


def _json(value: Any) -> Any:
    """As JSON holds it; what is plain already stays the same object, as an output of ten thousand rows would be there twice."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        told = {str(key): _json(item) for key, item in value.items()}
        same = kind is dict and len(told) == len(value) and all(told.get(key, told) is item for key, item in value.items())
        return value if same else told
    if isinstance(value, list | tuple | set | frozenset):
        made = [_json(item) for item in value]
        return value if kind is list and all(map(is_, made, value)) else made
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return str(value)
    return value
