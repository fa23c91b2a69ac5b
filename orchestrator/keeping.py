"""An attempt of a run in the store: its row, its claim, its heartbeat, its journal and its checkpoints, for as long as it lasts."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Sequence
from copy import copy
from typing import Any

from langgraph.graph.state import CompiledStateGraph
from pydantic_core import PydanticSerializationError, to_jsonable_python

from orchestrator.consulting import answered, tell_questions
from orchestrator.conversing import begin_turn
from orchestrator.delivery import Delivery, unheard
from orchestrator.driving import GRACE, Attempt
from orchestrator.errors import InputError, LostRunError, OrchestratorError, StorageError, said
from orchestrator.events import Event
from orchestrator.journal import Journal, JournalMode
from orchestrator.outcome import Result
from orchestrator.storage import Fence, RunRecord, Storage, kept
from orchestrator.tracing.recording import RunTrace, open_trace

__all__ = ["attempt_events", "checkpointed", "create_run", "folded", "give_back", "record_of"]

STORING = 0.3
"""Seconds after its grace for which a run that was asked to stop waits for its store; then what it came to is delivered all the same."""


def record_of(attempt: Attempt, *, thread: str | None = None, batch: str | None = None) -> RunRecord:
    """The row of a new run: all that is needed to go on with it in another process."""
    workflow = attempt.workflow
    return RunRecord(
        run_id=attempt.run_id,
        workflow=workflow.name,
        spec=workflow.spec,
        folder=attempt.folder,
        input=_plain(attempt.values),
        models=attempt.models.specs,
        controls=attempt.controls.model_dump(mode="json"),
        fingerprint=attempt.fingerprint,
        boundary=attempt.boundary,
        thread=thread,
        batch=batch,
    )


def _plain(values: dict[str, Any]) -> dict[str, Any] | None:
    """The input as JSON holds it; None where it does not: then the run goes on from its checkpoints, and cannot begin once more."""
    try:
        plain: dict[str, Any] = to_jsonable_python(values)
    except PydanticSerializationError:
        return None
    return plain


async def create_run(storage: Storage, attempt: Attempt, record: RunRecord) -> tuple[RunRecord, Fence]:
    """Store a new run, claimed by this process; raises InputError where its id is taken, StorageError."""
    stored, fence = await storage.runs.create(record)
    attempt.thread = stored.thread_id
    attempt.given = attempt.values
    return stored, fence


def checkpointed(graph: CompiledStateGraph[Any, Any, Any, Any], saver: Any, memory: Any = None) -> CompiledStateGraph[Any, Any, Any, Any]:
    """The graph with the store's checkpoints, whatever it was compiled with: a run has one place where it is kept.

    Its long-term memory is the store's too, unless it was compiled with one of its own.
    """
    other = copy(graph)
    other.checkpointer = saver
    other.store = other.store if other.store is not None else memory
    return other


async def attempt_events(
    attempt: Attempt,
    storage: Storage,
    record: RunRecord,
    fence: Fence,
    *,
    mode: JournalMode = "record",
    sources: Sequence[int] = (),
) -> AsyncGenerator[Event, None]:
    """Drive an attempt of a run that this process has claimed and yield its events; the last is `result`, and the row has it by then.

    Only where a run was asked to stop and its store is held up, or fails, the result says that it is not stored.
    """
    delivery = Delivery()
    async with open_trace(storage, record, fence, attempt.number, attempt.values) as trace:
        driving = asyncio.create_task(_kept(attempt, storage, record, fence, mode, sources, trace, delivery), name=f"run {attempt.run_id}")
        driving.add_done_callback(lambda _: delivery.end())
        try:
            async for event in delivery:
                yield event
            yield Event("result", (await driving).told())
        finally:
            driving.cancel()
            await _over(driving)


async def _kept(
    attempt: Attempt,
    storage: Storage,
    record: RunRecord,
    fence: Fence,
    mode: JournalMode,
    sources: Sequence[int],
    trace: RunTrace,
    delivery: Delivery,
) -> Result:
    """Drive the attempt while its run's heart beats, and store what it came to."""
    now = attempt  # a question that is answered while the run goes on begins another one
    result: Result | None = None
    async with kept(storage.runs, fence, lambda: now.progress()):
        try:
            async with _in_time(attempt.stop, lambda: storage.database.leave(fence)):
                new = mode == "record" and record.thread is None
                now.graph = checkpointed(now.graph, storage.checkpoints(fence, now.graph, new=new), storage.memory(fence))
                if record.thread is not None and now.given is now.values:
                    await begin_turn(now)
                while True:
                    async with contextlib.aclosing(
                        await Journal.open(storage.journal, record.number, fence, mode=mode, sources=sources)
                    ) as journal:
                        await now.record_in(journal, trace.tracer)
                        with trace.around(now.graph):
                            result = await now.drive(delivery)
                    tell_questions(result.questions, delivery)
                    following = await answered(now, result, storage.runs, delivery)
                    if following is None:
                        break
                    now, mode, result = following, "resume", None
                result = await trace.finished(result)
                await _finish(storage, fence, now, result)
                await trace.aclose()
        except BaseException as error:
            if attempt.stop is not None and attempt.stop.is_set():
                if result is None and isinstance(error, TimeoutError):  # it was cut while it still ended: what is known by now counts
                    result = await now.stopped()
                unkept = _unkept(result, error)
                if unkept is not None:
                    return unkept
            with contextlib.suppress(OrchestratorError, TimeoutError):  # what is raised says what is wrong
                async with asyncio.timeout(GRACE):
                    await trace.broken_off(error)
                    await _break_off(storage, record, fence, now, result, error)
            raise
    return result


@contextlib.asynccontextmanager
async def _in_time(stop: asyncio.Event | None, leave: Callable[[], None]) -> AsyncGenerator[None, None]:
    """Around what a run does: asked to stop it waits for its store until its grace is nearly over, and STORING seconds after that it
    is cancelled, which raises TimeoutError.
    """

    async def watch(stop: asyncio.Event, clock: asyncio.Timeout) -> None:
        await stop.wait()
        end = asyncio.get_running_loop().time() + GRACE
        clock.reschedule(end + STORING)
        await asyncio.sleep(GRACE - STORING)
        leave()

    async with asyncio.timeout(None) as clock:
        watching = None if stop is None else asyncio.create_task(watch(stop, clock), name="end of the grace")
        try:
            yield
        finally:
            if watching is not None:
                watching.cancel()


def _unkept(result: Result | None, error: BaseException) -> Result | None:
    """What a stopped run came to though its store failed or was held up; None where it came to nothing, or something else failed."""
    if result is None or isinstance(error, LostRunError) or not isinstance(error, StorageError | TimeoutError):
        return None
    why = said(error) if isinstance(error, StorageError) else "the store did not answer"
    return result.model_copy(update={"error": "; ".join(part for part in (result.error, f"this is not stored: {why}") if part)})


async def _finish(storage: Storage, fence: Fence, attempt: Attempt, result: Result) -> None:
    told, progress = result.told(), attempt.progress()
    await storage.runs.finish(fence, result.status, error=result.error, result=told, questions=told.get("questions", []), **progress)


async def _break_off(
    storage: Storage, record: RunRecord, fence: Fence, attempt: Attempt, result: Result | None, error: BaseException
) -> None:
    """Store how far an attempt came that `error` ended. A run that waits for a person goes on waiting, whatever became of who was asked;
    one that had a result before, and cannot go on with what it was given, keeps that.
    """
    if result is not None and result.questions:
        await _finish(storage, fence, attempt, result)
    elif isinstance(error, InputError) and record.result is not None:
        await give_back(storage, record, fence)
    else:
        ended = ("failed", said(error)) if isinstance(error, Exception) else ("cancelled", "whoever started it went away")
        await storage.runs.finish(fence, ended[0], error=ended[1], **attempt.progress())


async def give_back(storage: Storage, found: RunRecord, fence: Fence) -> None:
    """Leave a run as it was found; nobody works for it, so one whose process died counts as cancelled."""
    status = "cancelled" if found.status == "crashed" else found.status
    await storage.runs.finish(fence, status, error=found.error, result=found.result, questions=found.questions)


async def folded(events: AsyncGenerator[Event, None]) -> Result:
    """The result that a run's events end with."""
    last = None
    token = unheard.set("events")
    try:
        async with contextlib.aclosing(events):
            async for event in events:
                last = event
    finally:
        unheard.reset(token)
    if last is None or last.kind != "result":
        raise OrchestratorError("the run ended without a result")
    return Result.model_validate(last.fields)


async def _over(task: "asyncio.Task[Any]") -> None:
    """Wait for the end of a task whose result nobody wants, however often whoever waits is cancelled meanwhile."""
    again: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            again = error
    if not task.cancelled():
        task.exception()  # the row has it; else asyncio would complain that nobody looked
    if again is not None:
        raise again
