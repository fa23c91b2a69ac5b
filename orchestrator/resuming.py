"""Go on with a run that ended before it was done: in any process, from the last step that it finished, with every call that it paid for."""

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from langgraph.types import StateSnapshot

from orchestrator.asking import Person, Question, carried, read_answers, read_named, still_open
from orchestrator.choices import Models, ModelSpec, check_controls, choose_models, merged_controls
from orchestrator.consulting import continue_from
from orchestrator.controls import Controls
from orchestrator.driving import Attempt
from orchestrator.errors import InputError, OrchestratorError, WorkflowLoadError
from orchestrator.events import Event
from orchestrator.fingerprint import changes, fingerprint, in_short
from orchestrator.joining import was_stopped
from orchestrator.keeping import attempt_events, checkpointed, folded, give_back
from orchestrator.outcome import Result, branches, failures
from orchestrator.runner import Graph, checked_workflow
from orchestrator.starts import begin_at, start_of
from orchestrator.storage import Fence, RunRecord, Storage, open_storage
from orchestrator.storage.runs import CRASHES
from orchestrator.workflow import Workflow, load_workflow

__all__ = ["Answers", "Wish", "prepared", "resume", "stream_resume"]

Answers = str | Sequence[str] | Mapping[str, Any]
"""What a person says: to the one question that is pending, as `NAME=TEXT`, or by the name or id of each question."""

_NESTED = ("branch_budget", "role_budgets")
_FAILED = ("failed", "refused")  # of what ran out of time, the calls that were answered are good
_AGAIN = "python -m orchestrator resume"


@dataclass(frozen=True, kw_only=True)
class Wish:
    """How a run is to go on, as it was asked for. `enter_folder`: the process may move to the folder that the run was started in.

    `is_attended`: somebody is there to be asked what it asks.
    """

    workflow: str | Workflow | Graph | None = None
    model: ModelSpec | None = None
    controls: Mapping[str, Any] | Controls | None = None
    answers: Answers | None = None
    accept_changes: bool = False
    restart: bool = False
    retry: bool = False
    enter_folder: bool = False
    is_attended: bool = False
    is_fork: bool = False


async def stream_resume(
    run_id: str,
    *,
    db: str | None = None,
    workflow: str | Workflow | Graph | None = None,
    model: ModelSpec | None = None,
    controls: Mapping[str, Any] | Controls | None = None,
    answers: Answers | None = None,
    accept_changes: bool = False,
    restart: bool = False,
    retry: bool = False,
    enter_folder: bool = False,
    person: Person | None = None,
    stop: asyncio.Event | None = None,
) -> AsyncGenerator[Event, None]:
    """Go on with a run and yield its events; the last is `result`. Of a run that is done it is the stored one, and nothing is called.

    What the run was started with holds; `model` (by role) and `controls` go over it, and budgets count what every attempt has used.
    `workflow` is needed for one that was made in Python. `answers`: to the questions of an interrupted run; `person` is asked what is
    asked from now on, as in `run`. `accept_changes`: the code may have changed since it was started; `restart`: begin once more from
    its input, as calls that it has made are not made again; `retry`: also where it ended `partial` or `failed`. `enter_folder`: make
    the folder that it was started in this process's own, as the command line does. Raises InputError where there is no such run,
    where it is running, and where it cannot go on as asked.
    """
    wish = Wish(
        workflow=workflow,
        model=model,
        controls=controls,
        answers=answers,
        accept_changes=accept_changes,
        restart=restart,
        retry=retry,
        enter_folder=enter_folder,
        is_attended=person is not None,
    )
    async with open_storage(db) as storage:
        found = await storage.runs.get(run_id)
        if found is None:
            raise await storage.runs.unknown(run_id)
        _answered(found, answers)  # what does not fit is refused before anything is taken
        if _is_done(found, wish):
            yield Event("result", stored_result(found))
            return
        attempt = await asyncio.to_thread(prepared, found, wish)
        attempt.stop, attempt.person = stop, person
        found, fence = await storage.runs.claim(run_id, retry=retry or restart)
        ready = False
        try:
            ready = await _ready(attempt, storage, found, fence, wish)
        finally:
            if not ready:
                with contextlib.suppress(OrchestratorError):
                    await give_back(storage, found, fence)
        if not ready:
            yield Event("result", stored_result(found))
            return
        async with contextlib.aclosing(attempt_events(attempt, storage, found, fence, mode="resume")) as events:
            async for event in events:
                yield event


async def resume(
    run_id: str,
    *,
    db: str | None = None,
    workflow: str | Workflow | Graph | None = None,
    model: ModelSpec | None = None,
    controls: Mapping[str, Any] | Controls | None = None,
    answers: Answers | None = None,
    accept_changes: bool = False,
    restart: bool = False,
    retry: bool = False,
    person: Person | None = None,
    stop: asyncio.Event | None = None,
) -> Result:
    """Go on with a run to its end, or until `stop` is set; the arguments are those of `stream_resume`."""
    return await folded(
        stream_resume(
            run_id,
            db=db,
            workflow=workflow,
            model=model,
            controls=controls,
            answers=answers,
            accept_changes=accept_changes,
            restart=restart,
            retry=retry,
            person=person,
            stop=stop,
        )
    )


def stored_result(record: RunRecord) -> dict[str, Any]:
    """The result that a run ended with; of one that died too often, what is known of it."""
    if record.result is not None:
        return dict(record.result)
    return Result(
        run_id=record.run_id,
        workflow=record.workflow,
        status="failed",
        output={},
        branches=[],
        usage=record.usage or {},
        seconds=0.0,
        model="",
        error=record.error,
    ).model_dump(mode="json")


def _is_done(record: RunRecord, wish: Wish) -> bool:
    """Whether nothing is left to do of a run, as far as its row says: `_ready` looks at the graph of one that failed."""
    if wish.restart:
        return False
    if record.status == "complete":
        return True
    if record.status == "interrupted":
        waits = record.questions and not (
            wish.is_attended or wish.answers or wish.accept_changes or wish.model is not None or wish.controls
        )
        return bool(waits) and bool(still_open(_questions(record), record.answers or {}))
    return not wish.retry and (record.status == "partial" or (record.status == "failed" and record.crashes >= CRASHES))


def _questions(record: RunRecord) -> list[Question]:
    """What an interrupted run waits for."""
    return [Question.model_validate(question) for question in record.questions or ()]


def prepared(record: RunRecord, wish: Wish) -> Attempt:
    """Everything of the next attempt that can be checked before the run is taken; raises InputError."""
    folder = Path(record.folder)
    if wish.enter_folder:
        _enter(folder, record.run_id)
    workflow = _workflow(record, wish, folder)
    if Path.cwd() != folder:
        note = f"the run was started in {folder}: relative paths of its input mean others here, in {Path.cwd()}"
        workflow = replace(workflow, notes=(*workflow.notes, note))
    now = fingerprint(workflow)
    different = changes(record.fingerprint, now) if record.fingerprint else []
    if different and not (wish.accept_changes or wish.restart):
        remedy = f"{_AGAIN} {record.run_id} --accept-changes goes on with it, --restart begins once more"
        raise InputError(
            f"the code of run {record.run_id!r} has changed since it was started",
            where=in_short(different),
            remedy="add --accept-changes: the new run has the code as it is now" if wish.is_fork else remedy,
        )
    _answered(record, wish.answers)
    models = choose_models(_models(record, wish.model), workflow)
    controls = _controls(record, wish.controls, workflow)
    check_controls(controls, models, workflow)
    values = workflow.validate_input(record.input) if record.input is not None else {}
    return Attempt(
        workflow=workflow,
        graph=workflow.ready()[1],
        values=values,
        models=models,
        controls=controls,
        run_id=record.run_id,
        boundary=record.boundary,
        fingerprint=now,
        folder=record.folder,
        before=float((record.result or {}).get("seconds", 0.0)),
    )


def _enter(folder: Path, run_id: str) -> None:
    try:
        os.chdir(folder)
    except OSError as error:
        what = f"the folder that run {run_id!r} was started in cannot be entered: {error.strerror}"
        raise InputError(what, where=str(folder), remedy="make it again, or start a new run") from error


def _workflow(record: RunRecord, wish: Wish, folder: Path) -> Workflow:
    if wish.workflow is not None:
        return checked_workflow(wish.workflow)
    if not record.spec:
        raise InputError(
            f"the workflow of run {record.run_id!r} was made in Python, so that no other process can make it",
            remedy=f"resume it from Python: await resume({record.run_id!r}, workflow=...)",
        )
    try:
        return load_workflow(record.spec, folder=folder)
    except WorkflowLoadError as error:
        raise InputError(error.what, where=error.where, remedy=error.remedy) from error


def _models(record: RunRecord, given: ModelSpec | None) -> dict[str, Models]:
    """The models of a run by role: those that it was started with, and those that are given now over them."""
    stored: dict[str, list[str | None]] = record.models or {}
    over: dict[str, Models] = dict(given) if isinstance(given, Mapping) else {} if given is None else {"": given}
    for role, specs in stored.items():
        if role not in over and None in specs:
            which = f"the model of role {role!r}" if role else "the model"
            raise InputError(
                f"{which} of run {record.run_id!r} was made in Python, so that no other process can make it",
                remedy=f"give it once more: model={{{role!r}: ...}}, or --model",
            )
    kept: dict[str, Models] = {role: [spec for spec in specs if spec is not None] for role, specs in stored.items() if role not in over}
    return {**kept, **over}


def _controls(record: RunRecord, given: Mapping[str, Any] | Controls | None, workflow: Workflow) -> Controls:
    """The controls that the run was started with, and those that are given now over them: of a budget single limits, too."""
    stored = Controls.model_validate(record.controls)
    if isinstance(given, Mapping):
        dumped = stored.model_dump()
        given = {name: _laid_over(dumped[name], value) if name in _NESTED else value for name, value in given.items()}
    return merged_controls(replace(workflow, controls=stored), given)


def _laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    nested = {key: _laid_over(below.get(key) or {}, value) if isinstance(value, Mapping) else value for key, value in above.items()}
    return {**below, **nested}


async def _ready(attempt: Attempt, storage: Storage, record: RunRecord, fence: Fence, wish: Wish) -> bool:
    """Set the attempt where the run is to go on, and write down how; whether there is anything left to do."""
    if _is_done(record, wish):  # somebody else has done it since it was looked at
        return False
    given = _answered(record, wish.answers)
    if given:
        await storage.runs.answer(record.run_id, given)
    attempt.answers.update({**carried(record.answers or {}), **given})
    graph = checkpointed(attempt.graph, storage.checkpoints(fence, attempt.graph))
    snapshot = await graph.aget_state({"configurable": {"thread_id": record.thread_id}})
    # Of a conversation the last checkpoint may be one of the run before, where this one died before its first.
    begun = bool(snapshot.created_at) and (record.thread is None or (snapshot.metadata or {}).get("run_id") == record.run_id)
    ended = begun and not snapshot.tasks  # what is next says nothing: it may be empty before the end
    if ended and record.status == "failed" and not (wish.retry or wish.restart):
        return False
    again = wish.restart or (ended and record.status != "crashed") or (begun and _was_stopping(snapshot))
    attempt.number = record.attempts + 1
    generation = record.generation + again
    attempt.thread = replace(record, generation=generation).thread_id
    if again or not begun:
        _begin(attempt, record, snapshot.values)
        start = await start_of(storage.checkpoints(fence, attempt.graph), record.run_id) if record.parent else None
        if start is not None:  # of a fork, which does not begin with its input
            continue_from(attempt, await begin_at(graph, attempt.thread, start, record.run_id))
    else:
        continue_from(attempt, snapshot)
    controls = attempt.controls.model_dump(mode="json")
    await storage.runs.change(fence, generation=generation, models=attempt.models.specs, controls=controls, fingerprint=attempt.fingerprint)
    return True


def _was_stopping(snapshot: StateSnapshot) -> bool:
    """Whether the run was asked to stop before it ended: what branches and agents then came to is no result to go on with."""
    states = [state for state in (snapshot.values, *(task.result for task in snapshot.tasks)) if isinstance(state, Mapping)]
    stopped = any(was_stopped(branch) for state in states for branch in branches(state))
    return stopped or any(failure.status == "skipped" for state in states for failure in failures(state))


def _begin(attempt: Attempt, record: RunRecord, state: Any) -> None:
    """Begin once more from the input, where whatever failed as data is asked again from the start."""
    if record.input is None:
        raise InputError(f"run {record.run_id!r} cannot begin once more: its input is not kept", remedy="start a new run")
    attempt.given = attempt.values
    failed = [branch for branch in branches(state) if branch.status in _FAILED] if isinstance(state, Mapping) else []
    roles = [failure.role for failure in failures(state) if failure.status in _FAILED] if isinstance(state, Mapping) else []
    attempt.spoilt = frozenset([*(f"branch {branch.task.id}" for branch in failed), *roles])


def _answered(record: RunRecord, given: Answers | None) -> dict[str, Any]:
    """The answers that are given, as a run keeps them; raises InputError for one that does not fit, or fits nothing."""
    if given is None:
        return {}
    pending = still_open(_questions(record), record.answers or {})
    if not pending:
        again = "; resume it without, and it asks again" if record.status == "cancelled" else ""
        raise InputError("the run asks nothing", where=f"run {record.run_id!r} is {record.status}", remedy=f"leave --answer out{again}")
    if isinstance(given, Mapping):
        return read_named(pending, given)
    return read_answers(pending, [given] if isinstance(given, str) else given)
