"""Run a workflow: `stream()` is the one engine, `run()` folds over it."""

import asyncio
import contextlib
import difflib
import json
import os
import sysconfig
import time
import traceback
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import RunnableConfig
from langgraph.errors import GraphRecursionError
from langgraph.graph import START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Interrupt, StreamMode
from pydantic import BaseModel, ConfigDict, ValidationError

from orchestrator.checks import check_graph, unknown_targets
from orchestrator.context import RunContext
from orchestrator.controls import Controls
from orchestrator.errors import DeadlineReached, InputError, LimitReached, OrchestratorError, said
from orchestrator.events import RUN_ID, Event, listening, new_run_id, tell
from orchestrator.models import choose_model, resolve_model, warnings_for
from orchestrator.outcome import Status, branches, outcome
from orchestrator.usage import Ledger, Observer
from orchestrator.workflow import Workflow, load_workflow

__all__ = ["EXIT_CODES", "Result", "Status", "run", "stream"]

Graph = StateGraph[Any, Any, Any, Any] | CompiledStateGraph[Any, Any, Any, Any]
ModelSpec = str | BaseChatModel | Mapping[str, str | BaseChatModel]

EXIT_CODES: dict[str, int] = {"complete": 0, "failed": 1, "partial": 3, "limited": 4, "interrupted": 5, "cancelled": 130}

_OF_A_BRANCH = {"status", "error", "gap", "rejected", "attempts", "seconds"}
_ROLES = ("planner", "researcher", "verifier", "writer")


class Result(BaseModel):
    """What a run came to; `output` holds the keys of the graph's output schema. `seconds` is wall time."""

    model_config = ConfigDict(frozen=True)

    run_id: str
    workflow: str
    status: Status
    output: dict[str, Any]
    branches: list[dict[str, Any]]
    usage: dict[str, Any]
    seconds: float
    model: str
    trace_url: str | None = None
    error: str | None = None

    @property
    def exit_code(self) -> int:
        """The exit code of the command line for this status."""
        return EXIT_CODES[self.status]


@dataclass(frozen=True)
class _Models:
    by_role: dict[str, BaseChatModel]
    said: str
    reason: str
    notes: tuple[str, ...]


@dataclass
class _Run:
    """One run while it lasts."""

    workflow: Workflow
    graph: CompiledStateGraph[Any, Any, Any, Any]
    values: dict[str, Any]
    models: _Models
    controls: Controls
    run_id: str
    ledger: Ledger = field(default_factory=Ledger)
    began: float = field(default_factory=time.monotonic)
    state: dict[str, Any] = field(default_factory=dict)
    interrupts: list[Interrupt] = field(default_factory=list)
    lost_step: str = ""

    async def drive(self, emit: Callable[[Event], None]) -> Result:
        """Drive the graph to its end, telling every event to `emit`; bad input is raised, every other failure is a result."""
        context = RunContext(models=self.models.by_role, controls=self.controls, ledger=self.ledger)
        with listening(emit), unknown_targets() as unknown:
            notes = [*self.workflow.notes, *self.models.notes]
            tell("run_started", workflow=self.workflow.name, model=self.models.said, reason=self.models.reason, notes=notes)
            try:
                async with asyncio.timeout(self.controls.deadline) as clock:
                    await self._follow(context)
            except (InputError, asyncio.CancelledError):
                raise
            except TimeoutError as error:
                if not clock.expired():
                    return await self.result("failed", self._blamed(error))
                late = DeadlineReached(f"the run took longer than its deadline of {self.controls.deadline:g} s", remedy="raise --deadline")
                return await self.result("limited", str(late))
            except LimitReached as error:
                return await self.result("limited", said(error))
            except GraphRecursionError:
                steps = (
                    f"the graph took more than {_steps(self.controls)} steps: it goes round without an end, or --max-branches is too low"
                )
                return await self.result("limited", steps)
            except Exception as error:  # noqa: BLE001 - a run that fails ends with a result that says so
                tell("log", level="debug", message="the run failed", exception=error)
                return await self.result("failed", self._blamed(error))
            finally:
                await context.aclose()
            if unknown:
                named = ", ".join(repr(name) for name in dict.fromkeys(unknown))
                return await self.result("failed", f"the graph sent work to {named}, and it has no such node: that work was not done")
            return await self.result(*outcome(self.state, self.interrupts))

    async def _follow(self, context: RunContext) -> None:
        config: RunnableConfig = {
            "run_name": self.workflow.name,
            "callbacks": [Observer(self.ledger)],
            "max_concurrency": self.controls.max_concurrency,
            "recursion_limit": _steps(self.controls),
            "metadata": {"run_id": self.run_id, "workflow": self.workflow.name},
            "tags": [f"workflow:{self.workflow.name}"],
        }
        modes: list[StreamMode] = ["values", "tasks", "custom"]
        parts = self.graph.astream(self.values, config, context=context, stream_mode=modes, version="v2")
        async with contextlib.aclosing(cast("AsyncGenerator[Any, None]", parts)) as open_parts:
            async for part in open_parts:
                if part["type"] == "values":
                    self.state = part["data"] if isinstance(part["data"], dict) else _fields(part["data"])
                    self.interrupts.extend(part["interrupts"])
                elif part["type"] == "tasks":
                    self._tell_step(part["data"])
                elif isinstance(part["data"], Event):
                    tell(part["data"].kind, **part["data"].fields)

    def _tell_step(self, task: Mapping[str, Any]) -> None:
        if "result" not in task:
            tell("step_started", node=task["name"])
            return
        error = str(task["error"]) if task["error"] else None
        self.lost_step = task["name"] if error else self.lost_step
        tell("step_finished", node=task["name"], error=error)

    def _blamed(self, error: BaseException) -> str:
        """What failed, in which step, and at which line of the user's own code."""
        line = "" if isinstance(error, OrchestratorError) else _own_line(error)
        where = ", ".join(part for part in (f"in step {self.lost_step!r}" if self.lost_step else "", line) if part)
        return f"{said(error)} ({where})" if where else said(error)

    async def result(self, status: Status, error: str | None) -> Result:
        """The result as it stands now."""
        output = self.graph.output_channels
        return Result(
            run_id=self.run_id,
            workflow=self.workflow.name,
            status=status,
            output={key: _json(self.state[key]) for key in ([output] if isinstance(output, str) else output) if key in self.state},
            branches=[{"task": branch.task.question, **branch.model_dump(include=_OF_A_BRANCH)} for branch in branches(self.state)],
            usage={**(await self.ledger.usage()).model_dump(), "by_role": await self.ledger.by_role()},
            seconds=round(time.monotonic() - self.began, 3),
            model=self.models.said,
            error=error,
        )


async def stream(
    workflow: str | Workflow | Graph,
    input: Mapping[str, Any] | BaseModel,
    *,
    model: ModelSpec | None = None,
    controls: Mapping[str, Any] | Controls | None = None,
    run_id: str | None = None,
) -> AsyncGenerator[Event, None]:
    """Run a workflow and yield its events; the last is `result`, whose fields are the Result. Raises InputError before anything started.

    `model` is a spec or a chat model for every role, or a mapping by role (`""`: every other role). Closing the generator cancels the run.
    """
    prepared = await asyncio.to_thread(prepare, workflow, input, model=model, controls=controls, run_id=run_id)
    async with contextlib.aclosing(_stream(prepared)) as events:
        async for event in events:
            yield event


async def run(
    workflow: str | Workflow | Graph,
    input: Mapping[str, Any] | BaseModel,
    *,
    model: ModelSpec | None = None,
    controls: Mapping[str, Any] | Controls | None = None,
    run_id: str | None = None,
) -> Result:
    """Run a workflow to its end. Raises InputError before anything started; every later failure is the result's status and error."""
    last = None
    async with contextlib.aclosing(stream(workflow, input, model=model, controls=controls, run_id=run_id)) as events:
        async for event in events:
            last = event
    if last is None or last.kind != "result":
        raise OrchestratorError("the run ended without a result")
    return Result.model_validate(last.fields)


def prepare(
    workflow: str | Workflow | Graph,
    values: Mapping[str, Any] | BaseModel,
    *,
    model: ModelSpec | None,
    controls: Mapping[str, Any] | Controls | None,
    run_id: str | None,
) -> _Run:
    """Check everything that can be checked before a run starts; raises InputError."""
    if isinstance(workflow, StateGraph | CompiledStateGraph):
        workflow = Workflow(workflow, name=getattr(workflow, "name", None) or "graph")
    loaded = load_workflow(workflow) if isinstance(workflow, str) else workflow
    if loaded.path is None:  # made in Python: nobody has checked it yet
        loaded = replace(loaded, notes=(*loaded.notes, *check_graph(loaded.graph, loaded.name)))
    if run_id is not None and not RUN_ID.fullmatch(run_id):
        raise InputError(f"{run_id!r} is no run id", remedy="use 1 to 128 letters, digits, dots, dashes and underscores")
    given = values.model_dump(exclude_unset=True) if isinstance(values, BaseModel) else dict(values)
    return _Run(
        workflow=loaded,
        graph=loaded.compile(),
        values=loaded.validate_input(given),
        models=_resolve_models(model, loaded),
        controls=_controls(loaded.controls, controls),
        run_id=run_id or new_run_id(),
    )


async def _stream(prepared: _Run) -> AsyncGenerator[Event, None]:
    events: asyncio.Queue[Event | None] = asyncio.Queue()
    driving = asyncio.create_task(prepared.drive(events.put_nowait), name=f"run {prepared.run_id}")
    driving.add_done_callback(lambda _: events.put_nowait(None))
    try:
        while (event := await events.get()) is not None:
            yield event
        yield Event("result", (await driving).model_dump())
    finally:
        if not driving.done():
            driving.cancel()
            await asyncio.wait({driving})


def _resolve_models(model: ModelSpec | None, workflow: Workflow) -> _Models:
    given = dict(model) if isinstance(model, Mapping) else {"": model}
    _check_roles([role for role in given if role], workflow)
    chosen, said, reason = dict[str, BaseChatModel](), list[str](), "given"
    default = given.pop("", None)
    choice = None if isinstance(default, BaseChatModel) else choose_model(default, os.environ)
    if choice:
        chosen[""], reason = resolve_model(choice.spec), choice.reason
        said.append(choice.spec)
    elif isinstance(default, BaseChatModel):
        chosen[""] = default
        said.append(_name(default))
    for role, spec in given.items():
        chosen[role] = spec if isinstance(spec, BaseChatModel) else resolve_model(str(spec))
        said.append(f"{role}={_name(spec) if isinstance(spec, BaseChatModel) else spec}")
    specs = [spec for spec in (choice.spec if choice else None, *given.values()) if isinstance(spec, str)]
    notes = [note for spec in specs for note in warnings_for(spec, os.environ)]
    return _Models(chosen, ", ".join(said), reason, tuple(dict.fromkeys(notes)))


def _check_roles(roles: Sequence[str], workflow: Workflow) -> None:
    """A role is the name of an agent or of a node somewhere in the graph: a model for anything else would never be asked."""
    if not roles:
        return
    known = {*_ROLES, *(name for graph in (workflow.graph, *_inner(workflow.compile())) for name in graph.nodes)}
    for role in roles:
        if role not in known:
            near = difflib.get_close_matches(role, known, n=1)
            remedy = f"did you mean {near[0]!r}?" if near else f"its roles: {', '.join(sorted(known - {START}))}"
            raise InputError(f"workflow {workflow.name!r} has no role {role!r} that could use a model", remedy=remedy)


def _inner(graph: CompiledStateGraph[Any, Any, Any, Any]) -> list[Any]:
    return [inner for _, inner in graph.get_subgraphs(recurse=True)]


def _name(model: BaseChatModel) -> str:
    return str(getattr(model, "model_name", None) or getattr(model, "model", None) or model.get_name())


def _controls(of_workflow: Controls, given: Mapping[str, Any] | Controls | None) -> Controls:
    if given is None or isinstance(given, Controls):
        return given or of_workflow
    try:
        return Controls.model_validate({**of_workflow.model_dump(), **given})
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}", remedy="see --help for the range") from None


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
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {str(key): _json(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_json(item) for item in value]
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return str(value)
    return value
