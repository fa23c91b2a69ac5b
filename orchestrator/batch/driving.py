"""A batch at work: so many runs at once under one set of limits, each input's result written once, however often the process is killed."""

import asyncio
import contextlib
import hashlib
import json
import time
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from orchestrator.batch.outcomes import put_back, result_of
from orchestrator.batch.reading import Inputs, Item, Survey, bad_lines
from orchestrator.batch.spent import known_runs, spent
from orchestrator.batch.suspects import DIED, clear, is_suspect, try_alone
from orchestrator.batch.writing import Output, add_usage, failed_result, result_line
from orchestrator.choices import ModelSpec, check_controls, choose_models, merged_controls
from orchestrator.controls import Controls
from orchestrator.driving import Attempt
from orchestrator.errors import InputError, LostRunError, StorageError, StorageTypeError, said
from orchestrator.keeping import attempt_events, create_run, record_of
from orchestrator.resuming import stream_resume
from orchestrator.runner import Graph, checked_workflow, prepare
from orchestrator.storage import RunRecord, Storage, open_storage
from orchestrator.terms import Shared
from orchestrator.workflow import Workflow

__all__ = ["RUNS", "Batch", "BatchView", "Held", "open_batch", "run_batch"]

RUNS = 8
"""Runs at once, where nothing else is asked for."""

Changed = Literal["refuse", "accept", "restart"]
_NAME = "the batch"
_OF_THE_BATCH = (f"the budget of {_NAME} has no room", "the budget of role ")
_AT_ONCE = 64  # inputs that are read ahead
_FINAL = ("complete", "partial", "failed", "limited")


@dataclass(frozen=True, slots=True)
class Held:
    """An input that has no result yet: it waits for a person, the batch's budget was used up, it was stopped, others work on it, or
    what was begun cannot go on as it is.
    """

    line: int
    id: str | int
    run_id: str
    why: Literal["interrupted", "limited", "cancelled", "running", "refused"]
    said: str = ""


@dataclass
class BatchView:
    """How far a batch is: `done` of `total` inputs have their result, `before` of them had it when this process began.

    `used` is the usage of all results, those of earlier processes too. `limited`: the batch's budget is used up.
    """

    batch: str
    workflow: str
    output: str
    model: str = ""
    reason: str = ""
    notes: tuple[str, ...] = ()
    total: int = 0
    before: int = 0
    stored: int = 0  # results that were in the store already, and lacked their line
    statuses: dict[str, int] = field(default_factory=dict)
    used: dict[str, Any] = field(default_factory=dict)
    held: list[Held] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    limited: bool = False
    under_way: int = 0
    began: float = field(default_factory=time.monotonic)

    @property
    def done(self) -> int:
        """Inputs that have their result."""
        return sum(self.statuses.values())

    @property
    def seconds(self) -> float:
        """Since this process began."""
        return time.monotonic() - self.began

    @property
    def exit_code(self) -> int:
        """4 where the budget ended it, 5 where inputs wait for a person, 1 where all failed, 3 where some are not complete, else 0."""
        waiting = {held.why for held in self.held}
        if self.limited and self.done < self.total:
            return 4
        if "interrupted" in waiting:
            return 5
        if self.done and self.statuses.get("failed", 0) == self.total:
            return 1
        return 0 if self.statuses.get("complete", 0) == self.total else 3


class Batch:
    """The runs of a file of inputs. `stop`: once it is set no further input is begun, and what is under way ends as a run does."""

    def __init__(
        self,
        workflow: Workflow,
        inputs: Inputs,
        output: Output,
        *,
        controls: Controls,
        model: ModelSpec | None,
        runs: int,
        db: str | None,
        changed: Changed,
    ) -> None:
        self.stop = asyncio.Event()
        self.view = BatchView(output.batch, workflow.name, str(output.path))
        self._workflow, self._inputs, self._output = workflow, inputs, output
        self._controls, self._model, self._runs, self._db = controls, model, runs, db
        self._changed = changed
        self._shared = Shared.of(controls, _NAME)
        self._ahead: deque[Item] = deque()
        self._items: Iterator[Item] = iter(())
        self._begun_before: set[str] = set()
        self._suspects: list[Item] = []
        self._turn = asyncio.Lock()

    def look(self, *, strict: bool) -> None:
        """Check all the inputs, and what is there of their results; nothing is written. Raises InputError."""
        with contextlib.ExitStack() as stack:
            stack.callback(self._output.close)
            self._output.look()
            survey = self._inputs.survey(self._output.written)
            if strict and survey.bad:
                raise bad_lines(survey, self._inputs.name)
            stack.pop_all()
        self._begin_view(survey)
        self._shared.pool.count(self._output.used)

    def close(self) -> None:
        """Let others write the output: for a batch whose results nobody asked for."""
        self._output.close()

    async def results(self) -> AsyncGenerator[dict[str, Any], None]:
        """Each result once its line is written, in the order in which they come. Raises OutputError, StorageError, InputError."""
        found: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue(self._runs)
        try:
            async with open_storage(self._db) as storage:
                await asyncio.to_thread(self._output.begin)
                self._items = self._inputs.items()
                self._begun_before = await known_runs(storage, self.view.batch) - self._output.written.keys()
                self._shared.pool.count(await spent(storage, self.view.batch, self._begun_before))
                working = [asyncio.create_task(self._work(storage, found), name=f"batch worker {n}") for n in range(self._runs)]
                ending = asyncio.create_task(self._end(working, storage, found), name="end of the batch")
                try:
                    while (line := await found.get()) is not None:
                        yield line
                    for task in (*working, ending):
                        task.result()
                finally:
                    await _cancel([*working, ending])
        finally:
            await asyncio.to_thread(self._output.close)

    async def _work(self, storage: Storage, found: "asyncio.Queue[dict[str, Any] | None]") -> None:
        """One input after the other, until there is none or the batch is to stop."""
        try:
            while (item := await self._next()) is not None:
                await self._do(item, storage, found)
        except BaseException:
            self.stop.set()  # what others have under way is kept, and goes on at the next start
            raise

    async def _end(self, working: "list[asyncio.Task[None]]", storage: Storage, found: "asyncio.Queue[dict[str, Any] | None]") -> None:
        """When everything else is done: the inputs that ended the process before, one at a time."""
        try:
            await asyncio.wait(working)
            for item in self._suspects:
                if not self.stop.is_set():
                    await self._do(item, storage, found, alone=True)
        finally:
            await found.put(None)

    async def _do(self, item: Item, storage: Storage, found: "asyncio.Queue[dict[str, Any] | None]", *, alone: bool = False) -> None:
        self.view.under_way += 1
        try:
            line = await self._line(item, storage, alone)
        finally:
            self.view.under_way -= 1
        if line is not None:
            await found.put(line)

    async def _next(self) -> Item | None:
        async with self._turn:
            while not self._ahead and not self.stop.is_set():
                self._ahead.extend(await asyncio.to_thread(self._read_ahead))
                if not self._ahead:
                    return None
            return None if self.stop.is_set() else self._ahead.popleft()

    def _used_up(self) -> bool:
        """Whether nothing may be called any more: what is finished in the store gets its line, and nothing is begun."""
        self.view.limited = self.view.limited or self._shared.pool.used_up()
        return self.view.limited

    def _read_ahead(self) -> list[Item]:
        """The next inputs that have no result; few where they are large."""
        items, size = list[Item](), 0
        for item in self._items:
            if item.run_id not in self._output.written:
                items.append(item)
                size += len(str(item.values))
            if len(items) >= _AT_ONCE or size > 1_000_000:
                break
        return items

    async def _line(self, item: Item, storage: Storage, alone: bool) -> dict[str, Any] | None:
        """The line of an input, written; None where there is no result yet."""
        if item.error:
            result: dict[str, Any] | Held | None = failed_result(self._workflow.name, item.error)
        else:
            result = await self._result(item, storage, alone)
        if isinstance(result, Held):
            self.view.held.append(result)
        if result is None or isinstance(result, Held):
            return None
        line = result_line(item, result)
        await asyncio.to_thread(self._output.write, line)
        if alone:
            await clear(storage, item.run_id)
        self._count(line)
        return line

    async def _result(self, item: Item, storage: Storage, alone: bool) -> dict[str, Any] | Held | None:
        """What the run of an input comes to: begun, gone on with, or found in the store; None where it was not begun."""
        record = await storage.runs.get(item.run_id) if item.run_id in self._begun_before else None
        if record is not None and (found := self._stored(item, record)) is not None:
            return found
        if self._used_up():
            return None if record is None else Held(item.line, item.id, item.run_id, "limited", record.error or "")
        if record is not None and not alone and await is_suspect(storage, record):
            self._suspects.append(item)
            return None
        with self._shared.run(counted=record is not None) as own:
            try:
                if alone and record is not None and not await try_alone(storage, record):
                    return failed_result(self._workflow.name, DIED)
                result = await (self._begun(item, storage) if record is None else self._resumed(record, alone))
            except LostRunError as error:
                return Held(item.line, item.id, item.run_id, "running", str(error))
            except StorageError as error:
                if isinstance(error, StorageTypeError):  # what it stores is its own
                    return await self._refused(item, storage, error)
                await put_back(storage, item.run_id, said(error))
                raise
            except Exception as error:  # noqa: BLE001 - whatever ends one run is its result, and no other's
                return await self._refused(item, storage, error)
            refused = any(terms.ledger.refused for terms in own.terms)
        if result["status"] == "limited" and refused:
            self.view.limited = True
            return Held(item.line, item.id, item.run_id, "limited", str(result["error"] or ""))
        return self._kept(item, result)

    def _stored(self, item: Item, record: RunRecord) -> dict[str, Any] | Held | None:
        """What the store knows of a run that need not go on; None for one that does."""
        if record.status == "running":
            where = record.owner.said(record.since) if record.owner else ""
            return Held(item.line, item.id, item.run_id, "running", where)
        if record.status == "interrupted":
            return self._kept(item, record.result or {"status": "interrupted", "error": record.error})
        broken = record.status == "failed" and record.result is None  # by what is no fault of the input, as far as anybody knows
        if record.status not in _FINAL or broken or _is_of_the_batch(record.status, record.error):
            return None
        result = record.result or failed_result(self._workflow.name, record.error or "the run failed")
        self.view.stored += 1
        return {**result}

    async def _refused(self, item: Item, storage: Storage, error: Exception) -> dict[str, Any] | Held:
        """What an error comes to that ended a run before it had a result: final where the run itself has failed."""
        record = await storage.runs.get(item.run_id)
        if record is None or record.status == "failed":
            return failed_result(self._workflow.name, said(error))
        return Held(item.line, item.id, item.run_id, "running" if record.status == "running" else "refused", said(error))

    def _kept(self, item: Item, result: Mapping[str, Any]) -> dict[str, Any] | Held:
        """A result that is final, or that there is none yet."""
        status, error = result["status"], str(result.get("error") or "")
        if status in ("interrupted", "cancelled") or _is_of_the_batch(status, error):
            return Held(item.line, item.id, item.run_id, status, error)
        return dict(result)

    async def _begun(self, item: Item, storage: Storage) -> dict[str, Any]:
        attempt, new = await asyncio.to_thread(self._prepared, item)
        record, fence = await create_run(storage, attempt, new)
        return await result_of(attempt_events(attempt, storage, record, fence))

    def _prepared(self, item: Item) -> tuple[Attempt, RunRecord]:
        attempt = prepare(self._workflow, item.values or {}, model=self._model, controls=self._controls, run_id=item.run_id)
        attempt.stop = self.stop
        return attempt, record_of(attempt, batch=self.view.batch)

    async def _resumed(self, record: RunRecord, alone: bool) -> dict[str, Any]:
        events = stream_resume(
            record.run_id,
            db=self._db,
            workflow=self._workflow,
            model=self._model,
            controls=self._controls,
            accept_changes=self._changed == "accept",
            restart=self._changed == "restart",
            retry=alone or record.status == "failed",
            stop=self.stop,
        )
        return await result_of(events)

    def _begin_view(self, survey: Survey) -> None:
        view = self.view
        view.total, view.before, view.statuses = survey.total, survey.there, {**survey.statuses}
        view.used = json.loads(json.dumps(self._output.used))

    def _count(self, line: Mapping[str, Any]) -> None:
        view, status = self.view, line["status"]
        view.statuses[status] = view.statuses.get(status, 0) + 1
        add_usage(view.used, line["usage"])
        if status != "complete" and len(view.failures) < 10:
            view.failures.append(f"line {line['line']}{_named(line)}: {status}: {line['error']}")


def _named(line: Mapping[str, Any]) -> str:
    return "" if line["id"] == line["line"] else f", id {line['id']}"


def _is_of_the_batch(status: str, error: str | None) -> bool:
    """Whether a run ended for a budget of the whole batch: it goes on where there is more of it."""
    return status == "limited" and any(said in (error or "") for said in _OF_THE_BATCH)


async def _cancel(tasks: "list[asyncio.Task[None]]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def open_batch(
    workflow: str | Workflow | Graph,
    inputs: Path | str,
    output: Path | str,
    *,
    common: Mapping[str, Any] | None = None,
    runs: int = RUNS,
    model: ModelSpec | None = None,
    controls: Mapping[str, Any] | Controls | None = None,
    db: str | None = None,
    strict: bool = False,
    append: bool = False,
    changed: Changed = "refuse",
) -> Batch:
    """A batch whose inputs were checked, and whose output is this process's own from now on. Blocks; raises InputError.

    `common`: fields of every input that does not give its own. `runs` at once; `controls` hold over all of them, but for `deadline`,
    the clocks and what is said of branches, which are each run's. `changed`: what becomes of a run that was begun with other code.
    """
    if not 1 <= runs <= 1000:
        raise InputError(f"runs is a whole number from 1 to 1,000, not {runs}")
    loaded = checked_workflow(workflow)
    limits = merged_controls(loaded, controls)
    given = set(controls.model_fields_set if isinstance(controls, Controls) else controls or ())
    limits = limits if "ask" in given else limits.merged({"ask": "never"})
    models = choose_models(model, loaded)
    check_controls(limits, models, loaded)
    named = (loaded.name, str(loaded.path or ""), str(Path(inputs).resolve()), str(Path(output).resolve()))
    batch = f"batch-{hashlib.sha256(json.dumps(named).encode()).hexdigest()[:10]}"
    items = Inputs(inputs, loaded, batch, common)
    results = Output(Path(output), batch, append=append)
    if Path(inputs).exists() and items.same_file(results.path):
        raise InputError("the output is the file of the inputs", where=str(output), remedy="name another --output")
    opened = Batch(loaded, items, results, controls=limits, model=model, runs=runs, db=db, changed=changed)
    opened.view.model, opened.view.reason, opened.view.notes = models.said, models.reason, (*loaded.notes, *models.notes)
    opened.look(strict=strict)
    return opened


async def run_batch(
    workflow: str | Workflow | Graph, inputs: Path | str, output: Path | str, *, stop: asyncio.Event | None = None, **options: Any
) -> AsyncGenerator[dict[str, Any], None]:
    """Run a workflow on every line of `inputs` and append the results to `output`; yields each as its line is written.

    Started again it does what is missing and nothing else. `options` are those of `open_batch`. Raises InputError before anything
    started, OutputError and StorageError where what is done can no longer be kept.
    """
    batch = await asyncio.to_thread(open_batch, workflow, inputs, output, **options)
    batch.stop = stop or batch.stop
    async with contextlib.aclosing(batch.results()) as lines:
        async for line in lines:
            yield line
