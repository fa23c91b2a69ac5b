"""SQLite: one thread per database runs what callers hand over, and all that waits is one transaction."""

import asyncio
import contextlib
import os
import queue
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from orchestrator.errors import DatabaseOpenError, LostRunError, OrchestratorError, StorageError
from orchestrator.storage.database import Fence, Row, Statement
from orchestrator.storage.schema import STEPS, VERSION_SQL, steps_from

__all__ = ["SQLiteDatabase", "open_sqlite"]

_WAIT = 60.0  # seconds for another process that writes
_BATCH = 500  # jobs of one transaction


class _Job(NamedTuple):
    statements: tuple[Statement, ...]
    fence: Fence | None
    answer: asyncio.Future[list[list[Row]]]
    loop: asyncio.AbstractEventLoop


async def open_sqlite(path: Path | None, *, private: bool = False, wait: float = _WAIT) -> "SQLiteDatabase":
    """The database in the file `path`, None: in memory. `private`: its folder is ours, for the user alone. Raises DatabaseOpenError."""
    connection = await asyncio.to_thread(_opened, path, private, wait)
    return SQLiteDatabase(connection, path)


class SQLiteDatabase:
    """A SQLite file, or memory, behind a thread of its own; `Database` says what it does."""

    def __init__(self, connection: sqlite3.Connection, path: Path | None) -> None:
        self.url = f"sqlite:///{path}" if path else "memory://"
        self._connection = connection
        self._path = path
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._closing: asyncio.Future[None] | None = None
        self._thread = threading.Thread(target=self._serve, name="orchestrator-sqlite", daemon=True)
        self._thread.start()

    async def run(self, *statements: Statement, fence: Fence | None = None) -> list[list[Row]]:
        """See `Database.run`."""
        if self._closing is not None:
            raise StorageError(f"{self.url} is closed")
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[list[list[Row]]] = loop.create_future()
        self._jobs.put(_Job(statements, fence, answer, loop))
        return await answer

    async def size(self) -> int:
        """See `Database.size`."""
        select = "SELECT (page_count - freelist_count) * page_size FROM pragma_page_count, pragma_freelist_count, pragma_page_size"
        return int((await self.run(Statement(select)))[0][0][0])

    async def shrink(self) -> None:
        """See `Database.shrink`."""
        await self.run(Statement("PRAGMA incremental_vacuum"))

    async def aclose(self) -> None:
        """See `Database.aclose`."""
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_future()
            self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)

    def _serve(self) -> None:
        while (job := self._jobs.get()) is not None:
            jobs, last = [job], False
            with contextlib.suppress(queue.Empty):
                while len(jobs) < _BATCH:
                    if (more := self._jobs.get_nowait()) is None:
                        last = True
                        break
                    jobs.append(more)
            _answer(jobs, self._outcomes(jobs))
            if last:
                break
        self._connection.close()

    def _outcomes(self, jobs: list[_Job]) -> list[Any]:
        try:
            return self._transaction(jobs)
        except (sqlite3.Error, OrchestratorError) as error:
            if len(jobs) == 1:
                return [StorageError(f"{self.url}: {error}")]
        return [self._outcomes([job])[0] for job in jobs]

    def _transaction(self, jobs: list[_Job]) -> list[Any]:
        execute = self._connection.execute
        execute("BEGIN IMMEDIATE")
        try:
            outcomes = [_done(execute, job) for job in jobs]
            execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                execute("ROLLBACK")
            raise
        return outcomes


def _done(execute: Callable[..., sqlite3.Cursor], job: _Job) -> list[list[Row]] | LostRunError:
    if job.fence is not None and not execute("SELECT 1 FROM runs WHERE run_id = ? AND owner = ?", job.fence).fetchall():
        return LostRunError(f"Run {job.fence.run_id!r} belongs to another process by now")
    return [execute(sql, values).fetchall() for sql, values in job.statements]


def _answer(jobs: list[_Job], outcomes: list[Any]) -> None:
    loops: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Any]]] = {}
    for job, outcome in zip(jobs, outcomes, strict=True):
        loops.setdefault(job.loop, []).append((job.answer, outcome))
    for loop, answers in loops.items():
        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits
            loop.call_soon_threadsafe(_settle, answers)


def _settle(answers: list[tuple[asyncio.Future[Any], Any]]) -> None:
    for future, outcome in answers:
        if future.done():
            continue
        if isinstance(outcome, BaseException):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)


def _opened(path: Path | None, private: bool, wait: float) -> sqlite3.Connection:
    try:
        if path is None:
            return _connected(":memory:", wait)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600))
        return _connected(str(path), wait)
    except (OSError, sqlite3.Error) as error:
        raise DatabaseOpenError(f"The database {str(path)!r} cannot be opened: {error}") from error


def _connected(location: str, wait: float) -> sqlite3.Connection:
    connection = sqlite3.connect(location, timeout=wait, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("BEGIN IMMEDIATE")
    known = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchall()
    version = int(connection.execute(VERSION_SQL).fetchone()[0]) if known else 0
    if version < len(STEPS):
        for statement in steps_from(version):
            connection.execute(statement)
    connection.execute("COMMIT")
    return connection
