"""A new run that begins at an earlier step of another one: its state edited, its plan or its models changed, the old run untouched."""

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from langchain_core.runnables import RunnableConfig
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import StateSnapshot
from pydantic import TypeAdapter, ValidationError

from orchestrator.asking import Person, carried
from orchestrator.choices import ModelSpec
from orchestrator.consulting import continue_from
from orchestrator.controls import Controls
from orchestrator.driving import Attempt
from orchestrator.errors import InputError
from orchestrator.events import RUN_ID, Event, new_run_id
from orchestrator.graphs.questions import new_tasks
from orchestrator.json_input import parse_json
from orchestrator.keeping import attempt_events, checkpointed, create_run, folded, record_of
from orchestrator.outcome import Result
from orchestrator.resuming import Wish, prepared
from orchestrator.runner import Graph
from orchestrator.starts import begin_at, place_of
from orchestrator.storage import RunRecord, Storage, open_storage
from orchestrator.text import nearest, one_line
from orchestrator.workflow import Workflow

__all__ = ["fork", "parse_edits", "stream_fork"]

_PLAN, _PLANNING = "plan", "plan"  # what is edited, and the node that is taken to have written it
_STEP = re.compile(r"(?P<node>.+?)(?:#(?P<visit>[1-9]\d{0,5}))?\Z", re.DOTALL)
_EDIT = "KEY=VALUE with a value as JSON, or KEY=@FILE"


class _Visit(NamedTuple):
    """The state of a run just before a step of it: `number` counts the visits of its node from 1."""

    node: str
    number: int
    snapshot: StateSnapshot

    @property
    def name(self) -> str:
        """As `--from` takes it: `plan`, or `plan#2` for its second time."""
        return self.node if self.number == 1 else f"{self.node}#{self.number}"


async def stream_fork(
    run_id: str,
    step: str = "",
    *,
    edit: Mapping[str, Any] | None = None,
    db: str | None = None,
    workflow: str | Workflow | Graph | None = None,
    model: ModelSpec | None = None,
    controls: Mapping[str, Any] | Controls | None = None,
    accept_changes: bool = False,
    new_id: str | None = None,
    enter_folder: bool = False,
    person: Person | None = None,
    stop: asyncio.Event | None = None,
) -> AsyncGenerator[Event, None]:
    """Start a new run where `run_id` came to `step`, and yield its events; the last is `result`. The old run stays as it is.

    `step` is a node of the graph: the last time it ran, or `NODE#2` for its second time. `edit`: state keys and what they hold from
    then on; `plan`, of a supervisor, is the list of the questions to research, and the run goes on after the plan. Requests that the
    old run was answered are answered from its journal. The other arguments are those of `stream_resume`. Raises InputError.
    """
    edits = dict(edit or {})
    if not step and _PLAN not in edits:
        remedy = "name one with --from STEP, or edit the plan of a supervisor with --edit plan=@FILE"
        raise InputError("a fork needs the step that it begins at", where=f"--edit {', '.join(edits)}" if edits else "", remedy=remedy)
    if new_id is not None and not RUN_ID.fullmatch(new_id):
        raise InputError(f"{new_id!r} is no run id", remedy="use 1 to 128 letters, digits, dots, dashes and underscores")
    wish = Wish(workflow=workflow, model=model, controls=controls, accept_changes=accept_changes, enter_folder=enter_folder, is_fork=True)
    async with open_storage(db) as storage:
        parent = await storage.runs.get(run_id)
        if parent is None:
            raise await storage.runs.unknown(run_id)
        attempt = replace(await asyncio.to_thread(prepared, parent, wish), run_id=new_id or new_run_id(), before=0.0)
        attempt.stop, attempt.person = stop, person
        attempt.answers.update(carried(parent.answers or {}))
        visit, snapshot = await _branched_off(storage, parent, attempt, step, edits)
        record = replace(record_of(attempt), folder=parent.folder, spec=parent.spec)
        record = replace(record, parent=run_id, parent_step=f"{visit.node}#{visit.number}", answers=parent.answers)
        stored, fence = await create_run(storage, attempt, record)
        await storage.journal.copy(parent.number, stored.number, fence)
        continue_from(attempt, snapshot)
        note = f"a fork of {run_id} at {visit.name}: what that run was answered is not asked again, and costs nothing here"
        attempt.workflow = replace(attempt.workflow, notes=(*attempt.workflow.notes, note))
        async with contextlib.aclosing(attempt_events(attempt, storage, stored, fence, mode="resume")) as events:
            async for event in events:
                yield event


async def fork(
    run_id: str,
    step: str = "",
    *,
    edit: Mapping[str, Any] | None = None,
    db: str | None = None,
    workflow: str | Workflow | Graph | None = None,
    model: ModelSpec | None = None,
    controls: Mapping[str, Any] | Controls | None = None,
    accept_changes: bool = False,
    new_id: str | None = None,
    person: Person | None = None,
    stop: asyncio.Event | None = None,
) -> Result:
    """Start a new run where another one came to `step`, to its end; the arguments are those of `stream_fork`."""
    return await folded(
        stream_fork(
            run_id,
            step,
            edit=edit,
            db=db,
            workflow=workflow,
            model=model,
            controls=controls,
            accept_changes=accept_changes,
            new_id=new_id,
            person=person,
            stop=stop,
        )
    )


def parse_edits(words: Sequence[str]) -> dict[str, Any]:
    """What `--edit KEY=VALUE` and `--edit KEY=@FILE` say; a plan may be a line for each question. Raises InputError."""
    edits: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise InputError(f"--edit {one_line(word, 80)!r} has no value", remedy=f"write --edit {_EDIT}")
        source = f"--edit {key}"
        if text.startswith("@"):
            source, text = text[1:], _file(text[1:])
        is_json = key != _PLAN or text.lstrip().startswith(("[", '"', "{"))
        remedy = f"write --edit {_EDIT}; a text stands in double quotes"
        edits[key] = parse_json(text, source, remedy=remedy) if is_json else [line for line in text.splitlines() if line.strip()]
    return edits


def _file(name: str) -> str:
    try:
        return Path(name).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise InputError(f"the file {one_line(name, 120)!r} cannot be read: {_why(error)}", remedy="name a file of text") from error


def _why(error: Exception) -> str:
    return one_line(getattr(error, "strerror", None) or ("it is not UTF-8" if isinstance(error, UnicodeDecodeError) else error))


async def _branched_off(
    storage: Storage, parent: RunRecord, attempt: Attempt, step: str, edits: dict[str, Any]
) -> tuple[_Visit, StateSnapshot]:
    """Copy the old run's state before the step to the new run's thread, edited; nothing of the new run is stored where that is refused."""
    graph = checkpointed(attempt.graph, storage.checkpoints(None, attempt.graph))
    visits = await _visits(graph, parent)
    visit = _chosen(visits, step, parent)
    plan = edits.pop(_PLAN, None) if _has_plan(graph) else None
    if plan is None and _PLAN in edits and _PLAN not in graph.channels:
        raise InputError(f"workflow {attempt.workflow.name!r} has no plan to edit", remedy="edit a key of its state")
    if plan is not None:
        visit = _planning(visits, visit if step else None, parent)
    values = _checked(graph, edits)
    planned = None if plan is None else _tasks(plan, visit.snapshot.values | values, attempt.controls.max_branches)
    saver: Any = graph.checkpointer
    snapshot = await begin_at(graph, attempt.run_id, await saver.aget_tuple(visit.snapshot.config), attempt.run_id, values)
    if planned is not None:
        await graph.aupdate_state(place_of(attempt.run_id), planned, as_node=_PLANNING)
        snapshot = await graph.aget_state(place_of(attempt.run_id))
    return visit, snapshot


async def _visits(graph: CompiledStateGraph[Any, Any, Any, Any], parent: RunRecord) -> list[_Visit]:
    """Every step of the run, in order, with the state before it."""
    config: RunnableConfig = {"configurable": {"thread_id": parent.thread_id}}
    history = [each async for each in graph.aget_state_history(config)]
    if parent.thread is not None:  # of a conversation: only what this run did
        history = [each for each in history if (each.metadata or {}).get("run_id") == parent.run_id]
    visits, counts = list[_Visit](), dict[str, int]()
    for snapshot in reversed(history):
        for node in dict.fromkeys(snapshot.next):
            if node != "__start__":
                counts[node] = counts.get(node, 0) + 1
                visits.append(_Visit(node, counts[node], snapshot))
    return visits


def _chosen(visits: list[_Visit], step: str, parent: RunRecord) -> _Visit:
    """The visit that is meant: the last of its node, or the one that is numbered; the first step where none is named."""
    if not visits:
        raise InputError(f"run {parent.run_id!r} has no step that is stored", remedy="fork a run that has begun")
    if not step:
        return visits[0]
    named = _STEP.match(step)
    node, number = (step, None) if named is None else (named["node"], named["visit"])
    for visit in visits[::-1]:
        if visit.node in (node, step) and (number is None or visit.node == step or visit.number == int(number)):
            return visit
    ran = [visit.name for visit in visits]
    near = nearest(node, ran)
    raise InputError(
        f"run {parent.run_id!r} has no step {one_line(step, 80)!r}",
        where=f"its steps: {', '.join(ran)}",
        remedy=f"did you mean {near!r}?" if near else "name one of them",
    )


def _has_plan(graph: CompiledStateGraph[Any, Any, Any, Any]) -> bool:
    """Whether it is the graph of a supervisor, whose tasks a plan makes."""
    return _PLANNING in graph.nodes and {"tasks", "started", "round"} <= set(graph.channels) and _PLAN not in graph.channels


def _planning(visits: Sequence[_Visit], before: _Visit | None, parent: RunRecord) -> _Visit:
    """The planning that led to the step `before`; the first one where no step is named."""
    plans = [visit for visit in visits if visit.node == _PLANNING]
    if before is not None:
        until = visits.index(before)
        plans = [visit for visit in visits[: until + 1] if visit.node == _PLANNING][-1:]
    if not plans:
        raise InputError(f"run {parent.run_id!r} had no plan by then", remedy="name a later step, or none")
    return plans[0]


def _tasks(plan: Any, state: Mapping[str, Any], most: int) -> dict[str, Any]:
    """What the planner's step writes for these questions; raises InputError."""
    questions = [plan] if isinstance(plan, str) else plan
    if not isinstance(questions, list) or not questions or not all(isinstance(one, str) and one.strip() for one in questions):
        raise InputError(
            "the edited plan is no list of questions", remedy='write ["first question?", "second question?"], or a line for each'
        )
    branches, started = state.get("branches") or [], state.get("started") or 0
    tasks, skipped, _ = new_tasks([one.strip() for one in questions], branches, started, most)
    if not tasks:
        raise InputError("nothing of the edited plan is left to research", remedy="ask for what was not answered yet")
    documents = {"documents": state["documents"]} if state.get("documents") else {}
    return {"tasks": tasks, "round": (state.get("round") or 0) + 1, "branches": skipped, "started": started + len(tasks), **documents}


def _checked(graph: CompiledStateGraph[Any, Any, Any, Any], edits: Mapping[str, Any]) -> dict[str, Any]:
    """The edited keys with values of the state's own types; raises InputError."""
    try:
        hints = get_type_hints(graph.builder.state_schema, include_extras=True)
    except (NameError, TypeError):
        hints = {}
    known = [key for key in graph.builder.schemas.get(graph.builder.state_schema, ()) if not key.startswith("__")]
    values: dict[str, Any] = {}
    for key, value in edits.items():
        if key not in known:
            near = nearest(key, known)
            remedy = f"did you mean {near!r}?" if near else f"there are: {', '.join(known)}"
            raise InputError(f"the state has no key {one_line(key, 80)!r}", where="--edit", remedy=remedy)
        try:
            values[key] = TypeAdapter(hints.get(key, Any)).validate_python(value)
        except ValidationError as error:
            first = error.errors()[0]
            path = ".".join([key, *map(str, first["loc"])])
            raise InputError(
                f"{path}: {first['msg']}", where=f"--edit {key}", remedy="give a value of the type that the state has"
            ) from None
    return values
