"""SQLite: one thread per database runs what callers hand over, and all that waits is one transaction."""

import asyncio
import math
import os
import queue
import sqlite3
import stat
import threading
import time
import weakref
from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

from orchestrator.errors import DatabaseOpenError, StorageError
from orchestrator.storage.database import Fence, Row, Statement
from orchestrator.storage.jobs import Job, Outcome, answer, lost, new_job
from orchestrator.storage.schema import VERSION_SQL, current_version, refuse_newer, steps_from

__all__ = ["SQLiteDatabase", "open_sqlite"]

_WAIT = 60.0  # seconds for another process that writes: one that holds the lock for 30 or 40 seconds is waited for
_SLICE = 0.1  # seconds of that between two looks at whether anybody still waits, and whether the database is being closed
_LEAVE = 5.0  # seconds that a database which is being closed waits for such a process
_GATHERED = 0.005  # seconds for more of what is added from many places at once: each transaction takes the interpreter ten times
_BATCH = 500  # jobs of one transaction
_PAGES = 1000  # freed at a time
_CHECKED = 32 * 1024**2  # bytes of a file that is read through for damage when it is opened
_APPLICATION = 0x6F726368  # "orch", in the header of every file of ours
_SIZE = "SELECT (page_count - freelist_count) * page_size FROM pragma_page_count, pragma_freelist_count, pragma_page_size"
_HELD = "SELECT 1 FROM runs WHERE run_id = ? AND owner = ?"
_ALL = {  # what no job is at fault for: the others of its transaction would fail as well
    sqlite3.SQLITE_BUSY: ("another process holds its write lock", "Wait for that process or end it, then resume"),
    sqlite3.SQLITE_LOCKED: ("another process holds its write lock", "Wait for that process or end it, then resume"),
    sqlite3.SQLITE_FULL: ("its disk is full", "Make room, then resume"),
    sqlite3.SQLITE_IOERR: ("its disk cannot be read or written", "Check the disk, then resume"),
    sqlite3.SQLITE_READONLY: ("it cannot be written", "Give this user the right to write the file and its folder, then resume"),
    sqlite3.SQLITE_CANTOPEN: ("it cannot be written", "Give this user the right to write the file and its folder, then resume"),
    sqlite3.SQLITE_PROTOCOL: ("its locks do not work, as on some network disks", "Name a file on a local disk with --db, or use Postgres"),
    sqlite3.SQLITE_NOTADB: ("it is not a SQLite database", "Name another file with --db"),
}
_DAMAGED = ("it is damaged", "Restore it from a backup, or salvage what can be read: sqlite3 FILE .recover")


async def open_sqlite(path: Path | None, *, private: bool = False, wait: float = _WAIT) -> "SQLiteDatabase":
    """The database in the file `path`, None: in memory. `private`: the folder is this package's own. Raises DatabaseOpenError.

    `wait`: seconds that another process may hold the write lock.
    """
    return SQLiteDatabase(path, await asyncio.to_thread(_opened, path, private, wait), wait)


class SQLiteDatabase:
    """A SQLite file, or memory, behind a thread of its own; `Database` says what it does."""

    def __init__(self, path: Path | None, connection: sqlite3.Connection, wait: float) -> None:
        self.url = f"sqlite:///{path}" if path else "memory://"
        self._writer = _Writer(path, connection, wait)
        self._closing: Job | None = None
        threading.Thread(target=self._writer.serve, name="orchestrator-sqlite", daemon=True).start()
        weakref.finalize(self, self._writer.jobs.put, None).atexit = False  # one that nobody closed ends its thread

    def submit(self, *statements: Statement, fence: Fence | None = None) -> asyncio.Future[list[list[Row]]]:
        """See `Database.submit`."""
        return self._handed_over(new_job(statements, fence))

    async def run(self, *statements: Statement, fence: Fence | None = None) -> list[list[Row]]:
        """See `Database.run`."""
        return await self.submit(*statements, fence=fence)

    def leave(self, fence: Fence) -> None:
        """See `Database.leave`."""
        self._writer.left.add(fence.owner)

    async def size(self) -> int:
        """See `Database.size`."""
        return int((await self.run(Statement(_SIZE)))[0][0][0])

    async def shrink(self) -> None:
        """See `Database.shrink`; a part at a time, so that others write between two of them."""
        free = Statement("SELECT freelist_count FROM pragma_freelist_count")
        before = None
        while (left := (await self.run(free))[0][0][0]) and left != before:
            before = left
            await self._handed_over(new_job((Statement(f"PRAGMA incremental_vacuum({_PAGES})"),), alone=True))
        await self._handed_over(new_job((Statement("PRAGMA wal_checkpoint(TRUNCATE)"),), alone=True))

    async def aclose(self) -> None:
        """See `Database.aclose`; another process that holds the write lock is waited for 5 seconds more, so that an exit is not held up."""
        if self._closing is None:
            self._closing = new_job(())
            self._writer.leave_at = time.monotonic() + _LEAVE
            self._writer.closed = self._closing
            self._writer.jobs.put(None)
        await asyncio.shield(self._closing.rows)

    def _handed_over(self, job: Job) -> asyncio.Future[list[list[Row]]]:
        if self._closing is not None:
            raise StorageError(f"The database {self.url} is closed")
        self._writer.jobs.put(job)
        return job.rows


class _Writer:
    """What the thread works on; it knows nothing of the database before it, so that that one can go."""

    def __init__(self, path: Path | None, connection: sqlite3.Connection, wait: float) -> None:
        self.jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()  # None: the end
        self.closed: Job | None = None
        self.leave_at = math.inf  # when a lock is waited for no longer
        self.left: set[str] = set()  # claims whose runs have no time to wait for one
        self._wait = wait
        self._given_up = False  # another process held the lock for too long: until it is let in, nothing more waits for it
        self._path = path
        self._connection = connection
        self._files: list[tuple[int, int]] = []

    def serve(self) -> None:
        """Runs what waits, a transaction at a time, until it is told that nothing more comes."""
        self._files = _files(self._path) if self._path else []
        more, many = True, False
        while more:
            waiting = [self.jobs.get()]
            if many and waiting[0] is not None and _adds(waiting[0]):
                time.sleep(_GATHERED)
            waiting += [self.jobs.get() for _ in range(min(self.jobs.qsize(), _BATCH - 1))]
            more, many = None not in waiting, len(waiting) > 1
            for alone, group in groupby(filter(None, waiting), attrgetter("alone")):
                jobs = [*group]
                answer(jobs, [self._alone(job) for job in jobs] if alone else self._outcomes(jobs))
        self._connection.close()
        if self.closed is not None:
            answer([self.closed], [[]])

    def _outcomes(self, jobs: Sequence[Job]) -> Sequence[Outcome]:
        """What came of each job. Where one fails it is found by halves, so that it takes no other with it."""
        try:
            outcomes = self._locked(jobs)
        except Exception as error:  # noqa: BLE001 - whatever it is, its caller waits for it, and the thread goes on
            if len(jobs) == 1 or _code(error) in _ALL:
                return [self._failure(error) for _ in jobs]
            half = len(jobs) // 2
            return [*self._outcomes(jobs[:half]), *self._outcomes(jobs[half:])]
        if self._path and _files(self._path) != self._files:
            return [_replaced(self._path) for _ in jobs]
        return outcomes

    def _locked(self, jobs: Sequence[Job]) -> list[Outcome]:
        """The transaction, once other processes let it in."""
        until = time.monotonic() + (0 if self._given_up else self._wait)
        while True:
            try:
                outcomes = self._transaction(jobs)
            except sqlite3.OperationalError as error:
                busy = _code(error) == sqlite3.SQLITE_BUSY
                late = time.monotonic() > min(until, self.leave_at) - _SLICE / 2
                self._given_up = self._given_up or (busy and late)
                if not busy or late or all(map(self._is_left, jobs)):
                    raise
            else:
                self._given_up = self._given_up and all(map(_reads, jobs))  # readers wait for no lock
                return outcomes

    def _is_left(self, job: Job) -> bool:
        """Whether a lock is not worth waiting for: the run has no time, or the database is being closed and nobody wants the rows."""
        return (job.fence is not None and job.fence.owner in self.left) or (self.closed is not None and job.rows.cancelled())

    def _transaction(self, jobs: Sequence[Job]) -> list[Outcome]:
        execute = self._connection.execute
        if len(jobs) == 1 and len(jobs[0].statements) == 1 and jobs[0].fence is None:
            [(sql, values)] = jobs[0].statements
            return [[execute(sql, values).fetchall()]]  # is a transaction by itself
        execute("BEGIN" if all(map(_reads, jobs)) else "BEGIN IMMEDIATE")
        try:
            outcomes = self._each(jobs)
            execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:  # SQLite ends it itself after some errors
                execute("ROLLBACK")
            raise
        return outcomes

    def _each(self, jobs: Sequence[Job]) -> list[Outcome]:
        """What came of each. Who holds a run is looked at once, and again after a job that may have changed it."""
        execute, held, outcomes = self._connection.execute, dict[Fence, bool](), list[Outcome]()
        for job in jobs:
            if job.fence is not None and job.fence not in held:
                held[job.fence] = bool(execute(_HELD, job.fence).fetchall())
            if job.fence is not None and not held[job.fence]:
                outcomes.append(lost(job.fence))
                continue
            outcomes.append([execute(sql, values).fetchall() for sql, values in job.statements])
            if any("runs" in sql for sql, _ in job.statements):
                held.clear()
        return outcomes

    def _alone(self, job: Job) -> Outcome:
        try:
            for sql, _ in job.statements:
                self._connection.executescript(sql)  # `execute` takes one step, and each step of a vacuum frees one page
        except Exception as error:  # noqa: BLE001 - as above
            return self._failure(error)
        return []

    def _failure(self, error: Exception) -> StorageError:
        what, remedy = _said(error)
        return StorageError(f"The database {self._path or 'memory://'} failed: {what}", remedy=remedy)


def _reads(job: Job) -> bool:
    return job.fence is None and all(sql.startswith("SELECT") for sql, _ in job.statements)


def _adds(job: Job) -> bool:
    return all(sql.startswith("INSERT") for sql, _ in job.statements)


def _code(error: Exception) -> int:
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF


def _said(error: Exception) -> tuple[str, str]:
    """What an error means, and the remedy."""
    if _code(error) == sqlite3.SQLITE_CORRUPT:
        meaning, remedy = _DAMAGED
    else:
        meaning, remedy = _ALL.get(_code(error), ("", ""))
    return f"{meaning} ({error})" if meaning else str(error), remedy


def _files(path: Path) -> list[tuple[int, int]]:
    """Which files are there by the names of the database and its log; none where one cannot be found."""
    try:
        found = [os.stat(path), os.stat(f"{path}-wal")]
    except OSError:
        return []
    return [(status.st_dev, status.st_ino) for status in found]


def _replaced(path: Path) -> StorageError:
    return StorageError(
        f"The database {path} was deleted or replaced while it was in use",
        where="What was to be stored last is not in the file of that name",
        remedy="Put the file back, then resume; runs of the file that is there now are not touched",
    )


def _opened(path: Path | None, private: bool, wait: float) -> sqlite3.Connection:
    if path is None:
        return _connected(":memory:", wait)
    try:
        _make_folder(path.parent, private)
        _make_file(path)
        return _connected(str(path), wait)
    except OSError as error:
        raise _unopened(path, error.strerror or str(error), "Name a file that this user can write with --db") from error
    except sqlite3.Error as error:
        raise _unopened(path, *_said(error)) from error


def _unopened(path: Path | str, why: str, remedy: str) -> DatabaseOpenError:
    return DatabaseOpenError(
        f"The database {path} cannot be opened: {why}", where="It comes from --db, db= or ORCHESTRATOR_DB", remedy=remedy
    )


def _make_folder(folder: Path, private: bool) -> None:
    """For this user alone where it is made here, or `private`."""
    if not folder.parent.exists():
        _make_folder(folder.parent, private=False)
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.stat()
    if private and status.st_mode & 0o077 and status.st_uid == os.getuid() and not status.st_mode & stat.S_ISVTX:
        folder.chmod(0o700)


def _make_file(path: Path) -> None:
    """For this user alone, unless it is another program's; SQLite gives the files beside it the same mode."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(0, "It is not a regular file")
        ours = not status.st_size or os.pread(descriptor, 4, 68) == _APPLICATION.to_bytes(4, "big")  # as SQLite's header has it
        if ours and status.st_mode & 0o077 and status.st_uid == os.getuid():
            os.fchmod(descriptor, 0o600)
    finally:
        os.close(descriptor)


def _connected(location: str, wait: float) -> sqlite3.Connection:
    """A connection whose tables are those of this version."""
    if sqlite3.sqlite_version_info < (3, 35):
        raise _unopened(location, f"SQLite {sqlite3.sqlite_version} is too old", "Use a Python with SQLite 3.35 or newer, or Postgres")
    connection = sqlite3.connect(location, timeout=wait, isolation_level=None, check_same_thread=False, cached_statements=256)
    try:
        version = _version(connection, location)  # before anything is written
        connection.execute("PRAGMA trusted_schema = OFF")
        if not version:
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # takes the write lock: who only looks at a store waits for no writer
        _use_log(connection, wait)
        connection.execute("PRAGMA journal_size_limit = 67108864")
        # An acknowledged row survives the loss of power, not only of the process; callers that wait share the cost.
        connection.execute("PRAGMA synchronous = FULL")
        if version < current_version():
            _bring_tables(connection, location)
        else:
            _check(connection)
        connection.execute(f"PRAGMA busy_timeout = {int(1000 * min(wait, _SLICE))}")
    except BaseException:
        connection.close()
        raise
    return connection


def _use_log(connection: sqlite3.Connection, wait: float) -> None:
    """Write-ahead log, so that readers and the writer do not wait for one another."""
    until = time.monotonic() + wait
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            # Where several processes change the mode of a new file at once, SQLite does not wait by itself.
            if _code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            time.sleep(0.02)
        else:
            return


def _version(connection: sqlite3.Connection, location: str) -> int:
    """The version of the tables, 0 where there are none; raises DatabaseOpenError for a newer one and for what is none of ours."""
    if not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        return 0
    if connection.execute("PRAGMA application_id").fetchone()[0] != _APPLICATION:
        raise _unopened(location, "it is a SQLite database of another program", "Name another file with --db")
    version = int(connection.execute(VERSION_SQL).fetchone()[0])
    refuse_newer(version, location)
    return version


def _bring_tables(connection: sqlite3.Connection, location: str) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        version: Any = _version(connection, location)  # another process may have been faster
        if not version:
            connection.execute(f"PRAGMA application_id = {_APPLICATION}")
        if version < current_version():
            for statement in steps_from(version):
                connection.execute(statement)
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise


def _check(connection: sqlite3.Connection) -> None:
    """Raises sqlite3.DatabaseError for a file that is damaged, where it is not too large to be read through."""
    size = connection.execute("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size").fetchone()[0]
    if size <= _CHECKED and (found := connection.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
        error = sqlite3.DatabaseError(found)
        error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        raise error
