"""Run a workflow: `stream()` is the one engine, `run()` folds over it."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from langgraph.graph import StateGraph
from langgraph.graph.state import CompiledStateGraph
from pydantic import BaseModel

from orchestrator.asking import Person
from orchestrator.choices import ModelSpec, check_controls, choose_models, merged_controls
from orchestrator.controls import Controls
from orchestrator.conversing import check_thread_name
from orchestrator.driving import Attempt
from orchestrator.errors import DatabaseOpenError, InputError
from orchestrator.events import RUN_ID, Event, new_run_id
from orchestrator.fingerprint import fingerprint
from orchestrator.keeping import attempt_events, create_run, folded, record_of
from orchestrator.outcome import Result
from orchestrator.storage import Storage, open_storage
from orchestrator.workflow import Workflow, load_workflow

__all__ = ["Graph", "checked_workflow", "prepare", "run", "stream"]

_ARENA_MAX = -8  # M_ARENA_MAX of malloc.h

Graph = StateGraph[Any, Any, Any, Any] | CompiledStateGraph[Any, Any, Any, Any]


async def stream(
    workflow: str | Workflow | Graph,
    input: Mapping[str, Any] | BaseModel,
    *,
    model: ModelSpec | None = None,
    controls: Mapping[str, Any] | Controls | None = None,
    run_id: str | None = None,
    db: str | None = None,
    thread: str | None = None,
    person: Person | None = None,
    stop: asyncio.Event | None = None,
) -> AsyncGenerator[Event, None]:
    """Run a workflow and yield its events; the last is `result`, whose fields are the Result. Raises InputError before anything started.

    `model` is a spec or a chat model for every role, several of them (the first is asked, the next when it fails), or a mapping by
    role (`""`: every other role). `db` is the URL of the store that keeps the run (None: ORCHESTRATOR_DB, else the user's own file).
    `thread` names the conversation that the run continues or begins: of the runs in one only one goes on at a time.
    `person`, an async function, is given the questions of a run that waits, and gives answers by their ids: then the run goes on.
    Once `stop` is set no new model call begins, and after GRACE the rest is cancelled: the result is `cancelled`, with what was
    found. Closing the generator cancels the run at once. A reader that is slow makes the run wait.
    """
    check_thread_name(thread)
    _spare_address_space()
    attempt = await asyncio.to_thread(prepare, workflow, input, model=model, controls=controls, run_id=run_id)
    attempt.stop, attempt.person = stop, person
    async with _store(db) as storage:
        record, fence = await create_run(storage, attempt, record_of(attempt, thread=thread))
        async with contextlib.aclosing(attempt_events(attempt, storage, record, fence)) as events:
            async for event in events:
                yield event


@cache
def _spare_address_space() -> None:
    """Where a process's address space is limited, its threads share one arena: glibc reserves 64 MB for each (man mallopt)."""
    with contextlib.suppress(ImportError, AttributeError, OSError):  # another system, or another C library
        import ctypes
        import resource

        if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
            ctypes.CDLL(None).mallopt(_ARENA_MAX, 1)


@contextlib.asynccontextmanager
async def _store(db: str | None) -> AsyncGenerator[Storage, None]:
    """The store of a run that is about to begin: where it cannot be used, the run can do without it."""
    async with contextlib.AsyncExitStack() as stack:
        try:
            storage = await stack.enter_async_context(open_storage(db))
        except DatabaseOpenError as error:
            instead = "to keep nothing of the run: --db memory://"
            raise DatabaseOpenError(
                error.what, where=error.where, remedy=f"{error.remedy}; {instead}" if error.remedy else instead
            ) from error
        yield storage


async def run(
    workflow: str | Workflow | Graph,
    input: Mapping[str, Any] | BaseModel,
    *,
    model: ModelSpec | None = None,
    controls: Mapping[str, Any] | Controls | None = None,
    run_id: str | None = None,
    db: str | None = None,
    thread: str | None = None,
    person: Person | None = None,
    stop: asyncio.Event | None = None,
) -> Result:
    """Run a workflow to its end, or until `stop` is set; `orchestrator.resume` goes on with what ended before it was done.

    Raises InputError before anything started; every later failure is the result's status and error.
    """
    return await folded(
        stream(workflow, input, model=model, controls=controls, run_id=run_id, db=db, thread=thread, person=person, stop=stop)
    )


def prepare(
    workflow: str | Workflow | Graph,
    values: Mapping[str, Any] | BaseModel,
    *,
    model: ModelSpec | None,
    controls: Mapping[str, Any] | Controls | None,
    run_id: str | None,
) -> Attempt:
    """Check everything that can be checked before a run starts; raises InputError."""
    loaded = checked_workflow(workflow)
    if run_id is not None and not RUN_ID.fullmatch(run_id):
        raise InputError(f"{run_id!r} is no run id", remedy="use 1 to 128 letters, digits, dots, dashes and underscores")
    given = values.model_dump(exclude_unset=True) if isinstance(values, BaseModel) else dict(values)
    validated, models, limits = loaded.validate_input(given), choose_models(model, loaded), merged_controls(loaded, controls)
    check_controls(limits, models, loaded)
    return Attempt(
        workflow=loaded,
        graph=loaded.ready()[1],
        values=validated,
        models=models,
        controls=limits,
        run_id=run_id or new_run_id(),
        fingerprint=fingerprint(loaded),
        folder=str(Path.cwd()),
    )


def checked_workflow(workflow: str | Workflow | Graph) -> Workflow:
    """The workflow that is meant, its graph checked; raises InputError."""
    if isinstance(workflow, StateGraph | CompiledStateGraph):
        workflow = Workflow(workflow, name=getattr(workflow, "name", None) or "graph")
    loaded = load_workflow(workflow) if isinstance(workflow, str) else workflow
    return loaded.ready()[0]
