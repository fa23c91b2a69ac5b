"""Postgres: one connection per database, what waits goes as one transaction in one round trip, and a lost connection is made anew.

There is no pool: with one transaction at a time a second connection would have nothing to do. Nor is a connection checked before use: the
statements are idempotent, so that a transaction whose connection was lost is simply run again.
"""

import asyncio
import re
from collections import deque
from collections.abc import Sequence
from decimal import Decimal
from functools import lru_cache
from itertools import groupby
from operator import attrgetter
from typing import Any
from urllib.parse import unquote

import psycopg
from psycopg import AsyncConnection, AsyncCursor, AsyncRawCursor, errors
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.types.numeric import NumericBinaryLoader, NumericLoader

from orchestrator.errors import DatabaseOpenError, StorageError
from orchestrator.storage.database import Fence, Row, Statement, url_shown
from orchestrator.storage.jobs import Job, Outcome, lost, new_job, settle
from orchestrator.storage.schema import VERSION_SQL, current_version, for_postgres, refuse_newer, steps_from
from orchestrator.text import without

__all__ = ["PostgresDatabase", "open_postgres"]

_PATIENCE = 20.0  # seconds that a server may be away before a transaction is given up
_ANSWER = 60.0  # seconds for one transaction, locks of others included
_LEAVE, _UNWAITED = 5.0, 0.2  # seconds that a database which is being closed waits for the server, and where nobody waits for the rows
_BATCH = 500  # jobs of one transaction
_SCHEMA = "orchestrator"
_LOCK = 0x6F726368  # of the set-up: any number that others do not take
_DEFAULTS = {"connect_timeout": 10, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3, "client_encoding": "utf8"}
_PLACEHOLDER = re.compile(r"'[^']*'|\"[^\"]*\"|\?")
_HELD = "SELECT 1 FROM runs WHERE run_id = $1 AND owner = $2 FOR NO KEY UPDATE"  # the lock keeps it so until the commit
_FENCE = f"SELECT 1 / (SELECT count(*) FROM ({_HELD}) AS held)"  # noqa: S608 - ends the transaction where there is no row
# What is acknowledged survives a crash of the server, also of one that is set up to be faster than that.
_SESSION = """SELECT set_config('search_path', $1, false),
    CASE current_setting('synchronous_commit') WHEN 'off' THEN set_config('synchronous_commit', 'on', false) END"""
_HAS_META = "SELECT 1 FROM pg_catalog.pg_tables WHERE schemaname = $1 AND tablename = 'meta'"
_SIZE = "SELECT sum(pg_total_relation_size(relid)) FROM pg_stat_user_tables WHERE schemaname = ?"
_AWAY = (
    errors.AdminShutdown,
    errors.CrashShutdown,
    errors.CannotConnectNow,
    errors.TooManyConnections,
    errors.DeadlockDetected,
    errors.SerializationFailure,
    errors.ReadOnlySqlTransaction,  # the other server took over: the next connection finds it
    errors.IdleSessionTimeout,
)
_SOON = ("too many", "connection slots", "starting up", "shutting down", "recovery mode", "not yet accepting")

Connection = AsyncConnection[tuple[Any, ...]]
Cursor = AsyncCursor[tuple[Any, ...]]


async def open_postgres(url: str, *, patience: float = _PATIENCE, limit: float = _ANSWER) -> "PostgresDatabase":
    """The database of a `postgresql://` URL, its tables in the schema `orchestrator`. Raises DatabaseOpenError.

    `patience`: seconds that the server may be away; `limit`: seconds of one transaction.
    """
    until = asyncio.get_running_loop().time() + patience
    while True:
        try:
            connection = await _connected(url)
            break
        except (psycopg.Error, OSError) as error:
            text = _masked(error, url)
            if asyncio.get_running_loop().time() > until or not any(word in text for word in _SOON):
                raise _unopened(url, text) from None
            await asyncio.sleep(0.2)
    try:
        await _set_up(connection, url_shown(url))
    except psycopg.Error as error:
        await connection.close()
        raise _unopened(url, _masked(error, url)) from None
    except BaseException:
        await connection.close()
        raise
    return PostgresDatabase(url, connection, patience, limit)


class PostgresDatabase:
    """A Postgres database over one connection; `Database` says what it does."""

    def __init__(self, url: str, connection: Connection, patience: float, limit: float) -> None:
        self.url = url_shown(url)
        self._address = url
        self._connection: Connection | None = connection
        self._patience = patience
        self._limit = limit
        self._jobs: deque[Job] = deque()
        self._taken: list[Job] = []  # those that the worker is at
        self._left: set[str] = set()  # claims whose runs have no time to wait for the server
        self._given_up = False  # the server was away for too long: until it is back, nothing is waited for
        self._worker: asyncio.Task[None] | None = None  # there is one while jobs wait
        self._closed = False

    def submit(self, *statements: Statement, fence: Fence | None = None) -> asyncio.Future[list[list[Row]]]:
        """See `Database.submit`."""
        return self._handed_over(new_job(statements, fence))

    async def run(self, *statements: Statement, fence: Fence | None = None) -> list[list[Row]]:
        """See `Database.run`."""
        return await self.submit(*statements, fence=fence)

    def leave(self, fence: Fence) -> None:
        """See `Database.leave`."""
        self._left.add(fence.owner)

    async def size(self) -> int:
        """See `Database.size`; the server counts room that it will use again as well."""
        return int((await self.run(Statement(_SIZE, (_SCHEMA,))))[0][0][0] or 0)

    async def shrink(self) -> None:
        """See `Database.shrink`: what was deleted is made room for what comes."""
        tables = await self.run(Statement("SELECT tablename FROM pg_tables WHERE schemaname = ?", (_SCHEMA,)))
        names = ", ".join(f"{_SCHEMA}.{name}" for (name,) in tables[0])
        await self._handed_over(new_job((Statement(f"VACUUM {names}"),), alone=True))

    async def aclose(self) -> None:
        """See `Database.aclose`."""
        self._closed = True
        began = asyncio.get_running_loop().time()
        while self._worker is not None:
            await asyncio.wait([self._worker], timeout=0.05)
            waited = [job for job in (*self._taken, *self._jobs) if not job.rows.done()]
            if self._worker is not None and asyncio.get_running_loop().time() - began > (_LEAVE if waited else _UNWAITED):
                settle(zip(waited, self._failures("it was closed before the server answered", len(waited)), strict=True))
                self._worker.cancel()
        await self._disconnect()

    def _handed_over(self, job: Job) -> asyncio.Future[list[list[Row]]]:
        if self._closed:
            raise StorageError(f"The database {self.url} is closed")
        self._jobs.append(job)
        if self._worker is None:
            self._worker = asyncio.create_task(self._serve(), name="orchestrator-postgres")
        return job.rows

    async def _serve(self) -> None:
        try:
            while self._jobs:
                self._taken = [self._jobs.popleft() for _ in range(min(len(self._jobs), _BATCH))]
                for alone, group in groupby(self._taken, attrgetter("alone")):
                    for batch in [[job] for job in group] if alone else [[*group]]:
                        settle(zip(batch, await self._outcomes(batch), strict=True))
        finally:
            self._worker = None
            for job in (*self._taken, *self._jobs):  # it was cancelled, the whole loop ends: nobody waits in vain
                job.rows.cancel()
            self._taken = []
            self._jobs.clear()

    async def _outcomes(self, jobs: Sequence[Job]) -> Sequence[Outcome]:
        """What came of each job. Where one fails it is found by halves, so that it takes no other with it."""
        until = asyncio.get_running_loop().time() + (0 if self._given_up else self._patience)
        exact = False
        while True:
            try:
                async with asyncio.timeout(self._limit):
                    outcomes = await self._transaction(jobs, exact)
            except TimeoutError:
                return self._failures(f"no answer within {self._limit:g} seconds", len(jobs))
            except Exception as error:  # noqa: BLE001 - whatever it is, its caller waits for it, and the others go on
                if _is_away(error):
                    late = asyncio.get_running_loop().time() > until
                    self._given_up = self._given_up or late
                    if late or all(job.fence is not None and job.fence.owner in self._left for job in jobs):
                        return self._failures(_masked(error, self._address), len(jobs))
                    await asyncio.sleep(0.1)
                elif exact or len(jobs) > 1:
                    return await self._parted(jobs, error)
                exact = True
            else:
                self._given_up = False
                return outcomes

    async def _parted(self, jobs: Sequence[Job], error: Exception) -> Sequence[Outcome]:
        if len(jobs) == 1 or isinstance(error, errors.DiskFull | errors.OutOfMemory):  # no job is at fault
            return self._failures(_masked(error, self._address), len(jobs))
        half = len(jobs) // 2
        return [*await self._outcomes(jobs[:half]), *await self._outcomes(jobs[half:])]

    def _failures(self, text: str, number: int) -> list[StorageError]:
        what, remedy = f"The database {self.url} failed: {text}", "What was acknowledged is stored; resume when the server is well"
        return [StorageError(what, remedy=remedy) for _ in range(number)]  # one each: every caller adds its own traceback

    async def _transaction(self, jobs: Sequence[Job], exact: bool) -> list[Outcome]:
        connection = self._connection
        if connection is None or connection.closed:
            connection = self._connection = await _connected(self._address)
        try:
            if jobs[0].alone:
                return [[await _rows(await _sent(connection, statement)) for statement in jobs[0].statements]]
            if len(jobs) > 1 or not exact:
                return await _committed(connection, jobs)
            return [await _exact(connection, jobs[0])]
        except BaseException:
            # Also after an error of one job, which is rare: what psycopg believes to have prepared is not there after a failed pipeline.
            await self._disconnect()
            raise

    async def _disconnect(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            await connection.close()


async def _committed(connection: Connection, jobs: Sequence[Job]) -> list[Outcome]:
    """All jobs in one transaction and one round trip; the rows of each."""
    failure: Exception | None = None
    cursors: list[list[Cursor]] = []
    try:
        async with connection.pipeline() as pipeline:
            try:
                cursors = await _all_sent(connection, jobs)
                await pipeline.sync()
            except Exception as error:  # noqa: BLE001 - it is raised below: leaving a pipeline with an error writes to the log
                failure = error
    except psycopg.Error as error:
        failure = failure or error
    if failure is not None:
        raise failure
    return [[await _rows(cursor) for cursor in mine] for mine in cursors]


async def _all_sent(connection: Connection, jobs: Sequence[Job]) -> list[list[Cursor]]:
    await connection.execute("BEGIN")
    cursors = []
    held: Fence | None = None
    for job in jobs:
        if job.fence is not None and job.fence != held:
            await connection.execute(_FENCE, job.fence)
        held = None if any("runs" in sql for sql, _ in job.statements) else job.fence  # those may change the owner
        cursors.append([await _sent(connection, statement) for statement in job.statements])
    await connection.execute("COMMIT")
    return cursors


async def _exact(connection: Connection, job: Job) -> Outcome:
    """One job, a statement at a time: what fails is known for what it is, which the errors of a pipeline do not tell."""
    await connection.execute("BEGIN")
    if job.fence is not None and not await _rows(await connection.execute(_HELD, job.fence)):
        await connection.execute("ROLLBACK")
        return lost(job.fence)
    found = [await _rows(await _sent(connection, statement)) for statement in job.statements]
    await connection.execute("COMMIT")
    return found


async def _sent(connection: Connection, statement: Statement) -> Cursor:
    cursor = AsyncRawCursor(connection)
    return await cursor.execute(_numbered(statement.sql), statement.values, binary=True)


async def _rows(cursor: Cursor) -> list[Row]:
    return await cursor.fetchall() if cursor.description else []


@lru_cache(1024)
def _numbered(sql: str) -> str:
    """`?` as Postgres numbers it: `$1`, `$2`; not in what is quoted."""
    parts = iter(range(1, sql.count("?") + 1))
    return _PLACEHOLDER.sub(lambda match: f"${next(parts)}" if match[0] == "?" else match[0], sql)


async def _connected(url: str) -> Connection:
    given = conninfo_to_dict(url)
    missing: dict[str, Any] = {name: value for name, value in _DEFAULTS.items() if name not in given}
    connection = await AsyncConnection.connect(make_conninfo(url, **missing), autocommit=True, cursor_factory=AsyncRawCursor)
    connection.adapters.register_loader("numeric", _Number)
    connection.adapters.register_loader("numeric", _BinaryNumber)
    await connection.execute(_SESSION, (_SCHEMA,))
    return connection


async def _set_up(connection: Connection, shown: str) -> None:
    """Creates or migrates the tables; those who come at the same time wait for one another."""
    if await _version(connection, shown) == current_version():
        return
    await connection.execute("BEGIN")  # where it fails the connection is closed
    await connection.execute("SELECT pg_advisory_xact_lock($1)", (_LOCK,))
    version = await _version(connection, shown)
    if not version:
        await connection.execute(f"CREATE SCHEMA IF NOT EXISTS {_SCHEMA}")
    for statement in steps_from(version) if version < current_version() else ():
        await connection.execute(for_postgres(statement))
    await connection.execute("COMMIT")


async def _version(connection: Connection, shown: str) -> int:
    if await (await connection.execute(_HAS_META, (_SCHEMA,))).fetchone() is None:
        return 0
    row = await (await connection.execute(VERSION_SQL)).fetchone()
    version = int(row[0]) if row else 0
    refuse_newer(version, shown)
    return version


def _is_away(error: Exception) -> bool:
    """The server or the connection is gone, or it is busy with itself: the same transaction may do later."""
    if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
        return isinstance(error, _AWAY) or error.sqlstate is None or error.sqlstate.startswith("08")
    return isinstance(error, (OSError, *_AWAY))


def _unopened(url: str, text: str) -> DatabaseOpenError:
    return DatabaseOpenError(
        f"The database {url_shown(url)} cannot be opened: {text}",
        where="It comes from --db, db= or ORCHESTRATOR_DB",
        remedy="Check its host, port, name, user and password, and that the server runs",
    )


def _masked(error: BaseException, url: str) -> str:
    """The text of an error without the password of `url`, nor what a parser may have taken for a host of it."""
    secret = url.partition("://")[2].rpartition("@")[0].partition(":")[2]
    pieces = {piece for piece in (secret, unquote(secret), *re.split(r"[@:/?#]", secret)) if len(piece) > 2}
    return without(pieces, str(error) or type(error).__name__, "***")


def _plain(number: Decimal) -> int | float:
    return int(number) if number == number.to_integral_value() and number.as_tuple().exponent == 0 else float(number)


class _Number(NumericLoader):
    """The sum of integers is an integer, as SQLite has it, and what has a fraction is a float."""

    def load(self, data: Any) -> Any:
        return _plain(super().load(data))


class _BinaryNumber(NumericBinaryLoader):
    """The same of the binary format."""

    def load(self, data: Any) -> Any:
        return _plain(super().load(data))
