"""The runs: one row each, written before the first node, claimed by one process at a time."""

import asyncio
import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from orchestrator.errors import InputError, OrchestratorError
from orchestrator.storage.codec import Codec, Packed, unpack_all
from orchestrator.storage.database import Database, Fence, Row, Statement
from orchestrator.storage.owner import Owner, drop, is_living, new_owner
from orchestrator.text import nearest, one_line, secrets_of, without

__all__ = ["CRASHES", "ONE_AT_A_TIME", "RunRecord", "RunsTable"]

CRASHES = 3
"""Attempts in a row that may die at the same place: after so many the run has failed."""

_PACKED = ("input", "result", "questions", "answers")
_JSON = ("models", "controls", "usage")
_OWNER = ("owner", "pid", "born", "host", "space")


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """A run as it is stored. Times are seconds since the epoch; `number` is its key in other tables, 0 before it is stored.

    `status` is what the row says, `crashed` where that is `running` and nobody works for it. `owner` is who works for it, or last did.
    `input`, `result`, `questions` and `answers` are JSON-able values, `models`, `controls` and `usage` JSON objects.
    `mark`: what was finished when it was last claimed, as a count that only grows.
    """

    run_id: str
    workflow: str
    spec: str = ""
    folder: str = ""
    input: Any = None
    models: Any = None
    controls: Any = None
    fingerprint: str = ""
    boundary: str = ""
    generation: int = 0
    thread: str | None = None
    parent: str | None = None
    parent_step: str | None = None
    batch: str | None = None
    status: str = "running"
    error: str | None = None
    result: Any = None
    questions: Any = None
    answers: Any = None
    planned: int = 0
    done: int = 0
    usage: Any = None
    owner: Owner | None = None
    since: float | None = None
    heartbeat: float | None = None
    attempts: int = 0
    crashes: int = 0
    mark: int = 0
    created: float = 0.0
    updated: float = 0.0
    number: int = 0

    @property
    def thread_id(self) -> str:
        """LangGraph's: the run's id with the generation from the second on, or the conversation's; no run's id has a colon."""
        if self.thread is not None:
            return f"thread:{self.thread}"
        return f"{self.run_id}:{self.generation}" if self.generation else self.run_id


_Records = list[RunRecord]
_NAMES = [field.name for field in fields(RunRecord) if field.name != "owner"]
_COLUMNS = [*_NAMES, *_OWNER]
_STORED = [name for name in _COLUMNS if name != "number"]
_SELECT = f"SELECT {', '.join(_COLUMNS)} FROM runs WHERE status <> 'deleting'"  # noqa: S608 - names of ours
_HEADS = f"SELECT {', '.join('NULL' if name in _PACKED else name for name in _COLUMNS)} FROM runs WHERE status <> 'deleting'"  # noqa: S608 - ours
_INSERT = f"INSERT INTO runs({', '.join(_STORED)})"
_MARKS = ", ".join("?" * len(_STORED))
ONE_AT_A_TIME = Statement("INSERT INTO meta(key, value) VALUES('threads', '') ON CONFLICT(key) DO UPDATE SET value = excluded.value")
"""What looks at the conversations of runs and then writes begins with it: whoever does so now is waited for."""

_UNFINISHED = "status IN ('running', 'interrupted')"
_FREE = f"NOT EXISTS (SELECT 1 FROM runs AS other WHERE other.thread = ? AND other.run_id <> ? AND other.{_UNFINISHED})"  # noqa: S608 - of ours
_UNCHANGED = "run_id = ? AND status = ? AND coalesce(owner, '') = ? AND coalesce(heartbeat, 0) = ?"


class RunsTable:
    """The runs of a database."""

    def __init__(self, database: Database, codec: Codec) -> None:
        self.database = database
        self.codec = codec

    async def create(self, record: RunRecord) -> tuple[RunRecord, Fence]:
        """Stores a new run as running, claimed by this process, and gives its record with its number.

        Raises InputError where its id or its conversation is taken.
        """
        with _held(await new_owner()) as owner:
            await self._check_thread(record)
            now = time.time()
            new = replace(record, status="running", owner=owner, since=now, heartbeat=now, attempts=1, created=now, updated=now)
            own = Statement("SELECT number FROM runs WHERE run_id = ? AND owner = ?", (record.run_id, owner.token))
            found = (await self.database.run(*self._insert(new), own))[-1]
            if found:
                return replace(new, number=int(found[0][0])), Fence(record.run_id, owner.token)
            await self._check_thread(record)
            raise _taken(await self.get(record.run_id), record)

    async def claim(self, run_id: str, *, retry: bool = False) -> tuple[RunRecord, Fence]:
        """Takes the run for this process: of several that try at once exactly one does. The record is as it was found, its number too.

        Raises InputError where there is no such run, somebody works for it, or its conversation is in use; OrchestratorError where
        its process died CRASHES times in a row at the same place, unless `retry`.
        """
        with _held(await new_owner()) as owner:
            while True:
                found = await self._claimable(run_id)
                crashes, mark = await self._crashes(found)
                if crashes >= CRASHES and not retry:
                    raise await self._given_up(found, crashes)
                if await self._taken_over(found, owner, 0 if retry else crashes, mark):
                    return found, Fence(run_id, owner.token)

    async def beat(self, runs: Mapping[Fence, Mapping[str, int]]) -> set[Fence]:
        """Says of each of `runs` that it goes on, and how far it is (`planned`, `done`); gives those that another process has not taken."""
        now = time.time()
        sets = "heartbeat = ?, updated = ?, planned = coalesce(?, planned), done = coalesce(?, done)"
        update = f"UPDATE runs SET {sets} WHERE run_id = ? AND owner = ? RETURNING run_id"  # noqa: S608 - of ours
        beats = [Statement(update, (now, now, told.get("planned"), told.get("done"), *fence)) for fence, told in runs.items()]
        return {fence for fence, rows in zip(runs, await self.database.run(*beats), strict=True) if rows}

    async def change(self, fence: Fence, *, generation: int, models: Any, controls: Any, fingerprint: str) -> None:
        """Stores how the run goes on, where that is another way than it was started; raises LostRunError."""
        values = (generation, _dumped(models), _dumped(controls), fingerprint, time.time(), *fence)
        update = "UPDATE runs SET generation = ?, models = ?, controls = ?, fingerprint = ?, updated = ? WHERE run_id = ? AND owner = ?"
        await self.database.run(Statement(update, values), fence=fence)

    async def finish(
        self,
        fence: Fence,
        status: str,
        *,
        error: str | None = None,
        result: Any = None,
        questions: Any = None,
        planned: int | None = None,
        done: int | None = None,
    ) -> None:
        """Stores what the run came to; it may be claimed from then on. A result's `usage` is the run's; `planned`, `done`: how far it came.

        Raises LostRunError where another process has taken it.
        """
        packed = [self._packed(result), self._packed(questions)]
        usage = result.get("usage") if isinstance(result, Mapping) else None
        used = None if usage is None else _dumped(usage)
        now = time.time()
        values = (status, _clean(error), *(part and part.blob for part in packed), used, planned, done, now, now, *fence)
        sets = (
            "status = ?, error = ?, result = ?, questions = ?, usage = coalesce(?, usage), planned = coalesce(?, planned), "
            "done = coalesce(?, done), crashes = 0, heartbeat = ?, updated = ?"
        )
        update = f"UPDATE runs SET {sets} WHERE run_id = ? AND owner = ?"  # noqa: S608 - of ours
        try:
            await self.database.run(*_texts(fence.run_id, *packed), Statement(update, values), fence=fence)
        finally:
            drop(fence.owner)

    async def get(self, run_id: str) -> RunRecord | None:
        """The run, None where there is none."""
        records = await self._records((await self.database.run(Statement(f"{_SELECT} AND run_id = ?", (run_id,))))[0])
        return records[0] if records else None

    async def list(
        self,
        *,
        limit: int | None = 20,
        status: str | None = None,
        workflow: str | None = None,
        batch: str | None = None,
        parent: str | None = None,
    ) -> _Records:
        """The newest runs first, without their input, result, questions and answers: those are None."""
        wanted = {"status": "running" if status == "crashed" else status, "workflow": workflow, "batch": batch, "parent": parent}
        given = {name: value for name, value in wanted.items() if value is not None}
        where = "".join(f" AND {name} = ?" for name in given)
        within = f" LIMIT {limit}" if limit is not None and status not in ("running", "crashed") else ""
        select = Statement(f"{_HEADS}{where} ORDER BY created DESC, number DESC{within}", tuple(given.values()))
        records = await self._records((await self.database.run(select))[0])
        return [record for record in records if status is None or record.status == status][:limit]

    async def answer(self, run_id: str, answers: Mapping[str, Any]) -> RunRecord:
        """Adds answers of a person, by the id of their question, to those that the run has; raises InputError for an unknown run."""
        while True:
            found = await self.get(run_id)
            if found is None:
                raise await self.unknown(run_id)
            known = {**(found.answers or {}), **answers}
            packed = self._packed(known)
            values = (packed and packed.blob, max(time.time(), found.updated + 1e-6), run_id, found.updated)
            update = Statement("UPDATE runs SET answers = ?, updated = ? WHERE run_id = ? AND updated = ? RETURNING run_id", values)
            if (await self.database.run(*_texts(run_id, packed), update))[-1]:
                return replace(found, answers=known)

    async def cancel(self, run_id: str) -> RunRecord:
        """Marks a run that nobody works for as cancelled, and gives it as it was found; one that goes on, or has ended, is left as it is.

        Raises InputError for an unknown run.
        """
        while True:
            found = await self.get(run_id)
            if found is None:
                raise await self.unknown(run_id)
            if found.status not in ("interrupted", "crashed"):
                return found
            sets = "status = 'cancelled', error = ?, questions = NULL, updated = ?, owner = NULL"
            values = ("cancelled by a person while nobody worked for it", time.time(), *_unchanged(found))
            update = Statement(f"UPDATE runs SET {sets} WHERE {_UNCHANGED} RETURNING run_id", values)  # noqa: S608 - of ours
            if (await self.database.run(update))[0]:
                return found

    async def unknown(self, run_id: str) -> InputError:
        """The error for an id that no run has."""
        ids = [record.run_id for record in await self.list(limit=1000)]
        near = nearest(run_id, ids)
        there = f"the latest: {', '.join(ids[:3])}" if ids else "there is none at all"
        remedy = "python -m orchestrator runs lists them" if ids else "start one, or name another --db"
        what = f"no run {one_line(run_id, 80)!r} in {self.database.url.removeprefix('sqlite:///')}"
        return InputError(what, where=there, remedy=f"did you mean {near}?" if near else remedy)

    async def _claimable(self, run_id: str) -> RunRecord:
        found = await self.get(run_id)
        if found is None:
            raise await self.unknown(run_id)
        if found.status == "running":
            raise _running(found)
        await self._check_thread(found)
        return found

    async def _records(self, rows: Sequence[Row]) -> _Records:
        places = [_COLUMNS.index(name) for name in _PACKED]
        where = f"in the table runs: {', '.join(row[_COLUMNS.index('run_id')] for row in rows)}"
        values = iter(await unpack_all(self.database, self.codec, [row[place] for row in rows for place in places], where))
        records = [_record(row, {name: next(values) for name in _PACKED}) for row in rows]
        looked = [record for record in records if record.status == "running"]
        if not looked:
            return records
        living = await asyncio.to_thread(lambda: {record.run_id for record in looked if is_living(record.owner, record.heartbeat)})
        crashed = {record.run_id for record in looked} - living
        return [replace(record, status="crashed") if record.run_id in crashed else record for record in records]

    async def _check_thread(self, record: RunRecord) -> None:
        """Raises InputError where another run is not done with the same conversation, or it went on after this one."""
        if record.thread is None:
            return
        later = "SELECT run_id FROM runs WHERE thread = ? AND number > ? AND status <> 'deleting' ORDER BY number DESC LIMIT 1"
        after = (await self.database.run(Statement(later, (record.thread, record.number))))[0] if record.number else []
        if after:
            raise InputError(
                f"conversation {record.thread!r} has gone on without run {record.run_id}: its last run is {after[0][0]}",
                remedy=f"ask again in the conversation: --thread {record.thread}",
            )
        where = f"AND thread = ? AND run_id <> ? AND {_UNFINISHED}"
        rows = (await self.database.run(Statement(f"{_SELECT} {where}", (record.thread, record.run_id))))[0]
        for other in await self._records(rows):
            if other.status == "running":
                said = other.owner.said(other.since) if other.owner else ""
                raise InputError(f"conversation {record.thread!r} is in use by run {other.run_id}", where=said, remedy="wait for its end")
            raise InputError(
                f"conversation {record.thread!r} has a run that is not done: {other.run_id} ({other.status})",
                remedy=f"python -m orchestrator resume {other.run_id}, or: python -m orchestrator cancel {other.run_id}",
            )

    async def _crashes(self, found: RunRecord) -> tuple[int, int]:
        """How often its process died at this place, and how far it had come: calls and checkpoints that are stored."""
        done = Statement("SELECT count(*) FROM journal WHERE run = ? AND state = 'ok'", (found.number,))
        steps = Statement("SELECT count(*) FROM checkpoints WHERE thread = ?", (found.thread_id,))
        rows = await self.database.run(done, steps)
        mark = int(rows[0][0][0]) + int(rows[1][0][0])
        if found.status != "crashed":
            return found.crashes, mark
        return (found.crashes + 1 if mark <= found.mark else 1), mark

    async def _given_up(self, found: RunRecord, crashes: int) -> OrchestratorError:
        error = f"the process died in {CRASHES} attempts in a row at the same place"
        if found.status == "crashed":
            update = f"UPDATE runs SET status = 'failed', error = ?, crashes = ?, updated = ? WHERE {_UNCHANGED}"  # noqa: S608 - of ours
            await self.database.run(Statement(update, (error, crashes, time.time(), *_unchanged(found))))
        where = f"the last of them: {found.owner.said(found.since)}" if found.owner else ""
        again = f"python -m orchestrator resume {found.run_id} --retry"
        return OrchestratorError(f"run {found.run_id!r} has failed: {error}", where=where, remedy=f"mend what ends it, then: {again}")

    async def _taken_over(self, found: RunRecord, owner: Owner, crashes: int, mark: int) -> bool:
        now = time.time()
        sets = "status = 'running', owner = ?, pid = ?, born = ?, host = ?, space = ?, since = ?, heartbeat = ?, updated = ?, mark = ?"
        values = (owner.token, owner.pid, owner.born, owner.host, owner.space, now, now, now, mark, crashes, *_unchanged(found))
        free, ahead = "", list[Statement]()
        if found.thread is not None:
            ahead, free = [ONE_AT_A_TIME], f" AND {_FREE}"
            values = (*values, found.thread, found.run_id)
        update = f"UPDATE runs SET {sets}, attempts = attempts + 1, crashes = ? WHERE {_UNCHANGED}{free}"  # noqa: S608 - of ours
        await self.database.run(*ahead, Statement(update, values))
        now_found = await self.get(found.run_id)  # not what the update returns: it may have been run again after a lost connection
        return now_found is not None and now_found.owner == owner

    def _insert(self, record: RunRecord) -> Sequence[Statement]:
        packed = {name: self._packed(getattr(record, name)) for name in _PACKED}
        blobs = {name: part and part.blob for name, part in packed.items()}
        values = tuple(blobs[name] if name in blobs else _value(record, name) for name in _STORED)
        texts = _texts(record.run_id, *packed.values())
        if record.thread is None:
            return [Statement(f"{_INSERT} VALUES({_MARKS}) ON CONFLICT DO NOTHING", values), *texts]
        insert = f"{_INSERT} SELECT {_MARKS} WHERE {_FREE} ON CONFLICT DO NOTHING"
        return [ONE_AT_A_TIME, Statement(insert, (*values, record.thread, record.run_id)), *texts]

    def _packed(self, value: Any) -> Packed | None:
        return None if value is None else self.codec.pack(value)


def _record(row: Row, packed: Mapping[str, Any]) -> RunRecord:
    values = {**dict(zip(_COLUMNS, row, strict=True)), **packed}
    token, pid, born, host, space = (values.pop(name) for name in _OWNER)
    for name in _JSON:
        values[name] = None if values[name] is None else json.loads(values[name])
    owner = None if token is None else Owner(token, pid or 0, born or "", host or "", space or "")
    return RunRecord(**values, owner=owner)


def _value(record: RunRecord, name: str) -> Any:
    if name in _OWNER:
        return None if record.owner is None else getattr(record.owner, "token" if name == "owner" else name)
    value = getattr(record, name)
    if name in _JSON and value is not None:
        return _dumped(value)
    return _clean(value) if isinstance(value, str) else value


def _texts(run_id: str, *packed: Packed | None) -> list[Statement]:
    """What stores the texts of values of a run whose number is not known here."""
    statements = []
    uses = "INSERT INTO uses(run, hash) SELECT number, ? FROM runs WHERE run_id = ? ON CONFLICT DO NOTHING"
    for digest, content in ((digest, content) for part in packed if part for digest, content in sorted(part.texts.items())):
        statements.append(Statement("INSERT INTO texts(hash, content) VALUES(?, ?) ON CONFLICT DO NOTHING", (digest, content)))
        statements.append(Statement(uses, (digest, run_id)))
    return statements


def _clean(text: str | None) -> str | None:
    """`text` as it is stored: without the values of secret environment variables."""
    return text and without(secrets_of(os.environ).values(), text, "[key]")


def _taken(found: RunRecord | None, wanted: RunRecord) -> InputError:
    if found is None:
        return InputError(f"run {wanted.run_id!r} is being deleted", remedy="give another --run-id")
    if found.status == "running":
        return _running(found)
    again = f"python -m orchestrator resume {found.run_id}"
    return InputError(f"there is a run {found.run_id!r} already: {found.status}", remedy=f"{again}, or give another --run-id")


@contextlib.contextmanager
def _held(owner: Owner) -> Iterator[Owner]:
    """A claim that is dropped where what is inside does not come to take the run."""
    try:
        yield owner
    except BaseException:
        drop(owner.token)
        raise


def _unchanged(found: RunRecord) -> tuple[Any, ...]:
    status = "running" if found.status == "crashed" else found.status
    return found.run_id, status, found.owner.token if found.owner else "", found.heartbeat or 0


def _running(found: RunRecord) -> InputError:
    return InputError(
        f"run {found.run_id!r} is already running",
        where=found.owner.said(found.since) if found.owner else "",
        remedy=f"wait for it, or: python -m orchestrator cancel {found.run_id}",
    )


def _dumped(value: Any) -> str:
    return _clean(json.dumps(value, ensure_ascii=False)) or ""
