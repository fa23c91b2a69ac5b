"""What is no longer needed goes: runs by age, count and size, with everything that belongs to them alone."""

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from orchestrator.errors import StorageError
from orchestrator.events import tell
from orchestrator.storage.database import Database, Statement
from orchestrator.storage.owner import Owner, is_living
from orchestrator.storage.runs import ONE_AT_A_TIME

__all__ = ["DAY", "MAX_SIZE", "OLDER_THAN", "UNFINISHED", "Freed", "collect", "collect_daily"]

DAY = 86400.0
OLDER_THAN = 30 * DAY
"""Seconds after its last change for which a run that ended is kept."""

UNFINISHED = 90 * DAY
"""The same of a run that waits for a person or whose process died: as long at the least, whatever else is asked for."""

MAX_SIZE = 10**9
"""Bytes that the store may have."""

_AT_ONCE = 25  # runs erased in one transaction
_TEXTS = 500  # texts looked at in one query
_CHECKPOINTS = ("checkpoints", "values_", "writes")
_ROW = 100  # bytes of a row beside its bulk
_BULK = {
    "runs": ("input", "result", "questions", "answers"),
    "journal": ("request", "response"),
    "trace": ("content",),
    "texts": ("content",),
    "uses": ("hash",),
    "checkpoints": ("checkpoint", "metadata"),
    "values_": ("content",),
    "writes": ("content",),
    "facts": ("value",),
}
_LOOK = 600.0  # seconds between two looks at whether a clean-up is due
_looked: dict[str, float] = {}
_A_DAY = 1000  # runs that one background clean-up erases
_LIVE = "status IN ('running', 'interrupted')"
_LOCK = Statement("LOCK TABLE texts, uses IN SHARE ROW EXCLUSIVE MODE")


class Freed(NamedTuple):
    """What a clean-up came to, or would: how many runs of how many, and the store's bytes before and after (estimated if it was dry)."""

    runs: int
    of: int
    before: int
    after: int


@dataclass(frozen=True)
class _Head:
    number: int
    run_id: str
    status: str
    updated: float
    owner: str
    heartbeat: float


async def collect(
    database: Database,
    *,
    older_than: float | None = OLDER_THAN,
    keep: int | None = None,
    max_size: float | None = MAX_SIZE,
    dry_run: bool = False,
    most: int | None = None,
) -> Freed:
    """Erases what ended over `older_than` seconds ago, all but the newest `keep`, and the oldest while the store has over `max_size` bytes.

    A run that goes on stays; one that is interrupted or crashed until it is UNFINISHED old. `most`: runs that are erased at most.
    Raises StorageError; what was erased until then is erased.
    """
    before = await _size(database)
    if not dry_run:
        await _sweep(database)
    ended, old, total = await _heads(database)
    limit = time.time() - older_than if older_than is not None else -math.inf
    kept = len(ended) if keep is None else keep
    doomed = [*old, *(head for place, head in enumerate(ended) if place >= kept or head.updated < limit)][:most]
    gone = set(doomed)
    rest = [head for head in ended if head not in gone]
    if dry_run:
        return _forecast(len(doomed), len(rest), total, before, max_size)
    for start in range(0, len(doomed), _AT_ONCE):
        await _erase(database, doomed[start : start + _AT_ONCE])
    await _texts_erased(database)
    room = len(rest) if most is None else most - len(doomed)
    erased = len(doomed) + (await _to_size(database, rest[::-1][:room], max_size) if max_size is not None else 0)
    if erased:
        await database.shrink()
    return Freed(erased, total, before, await _size(database))


async def collect_daily(database: Database) -> None:
    """The clean-up with its defaults where none was made for a day, a bounded part at a time; what fails is told in the log alone."""
    now = time.monotonic()
    if database.url == "memory://" or now - _looked.get(database.url, -math.inf) < _LOOK:
        return
    _looked[database.url] = now
    try:
        if await _taken(database, now=time.time()):
            freed = await collect(database, most=_A_DAY)
            await database.run(Statement("UPDATE meta SET value = ? WHERE key = 'clean-up'", (str(time.time() + DAY - _LOOK),)))
            tell("log", level="debug", message=f"clean-up of the store: {freed.runs} of {freed.of} runs erased")
    except StorageError as error:
        tell("log", level="warning", message=f"the store was not cleaned up: {error}")


async def _taken(database: Database, now: float) -> bool:
    """Whether a clean-up is due, and this process is to make it: another one may go on with it _LOOK seconds later, where this one ends."""
    begin = Statement("INSERT INTO meta(key, value) VALUES('clean-up', '0') ON CONFLICT(key) DO NOTHING")
    take = "UPDATE meta SET value = ? WHERE key = 'clean-up' AND CAST(value AS DOUBLE PRECISION) < ? RETURNING key"
    return bool((await database.run(begin, Statement(take, (str(now), now - _LOOK))))[1])


async def _size(database: Database) -> int:
    """Bytes of what is stored. Postgres counts room that it keeps for later as well: there it is the sum of the values."""
    if not database.url.startswith("postgres"):
        return await database.size()
    summed = {table: " + ".join(f"coalesce(length({name}), 0)" for name in names) for table, names in _BULK.items()}
    parts = [f"(SELECT coalesce(sum({each} + {_ROW}), 0) FROM {table})" for table, each in summed.items()]  # noqa: S608 - names of ours
    return int((await database.run(Statement(f"SELECT {' + '.join(parts)}")))[0][0][0])


async def _heads(database: Database) -> tuple[list[_Head], list[_Head], int]:
    """The runs that ended, the newest first; those that never did and are old; and how many there are in all."""
    ended = await _select(database, "status NOT IN ('running', 'interrupted', 'deleting')")
    old = await _select(database, f"{_LIVE} AND updated < ?", time.time() - UNFINISHED)
    total = (await database.run(Statement("SELECT count(*) FROM runs WHERE status <> 'deleting'")))[0][0][0]
    return ended, old, int(total)


async def _select(database: Database, where: str, *values: object) -> list[_Head]:
    columns = "number, run_id, status, updated, coalesce(owner, ''), coalesce(heartbeat, 0), pid, born, host, space"
    select = f"SELECT {columns} FROM runs WHERE {where} ORDER BY updated DESC, number DESC"  # noqa: S608 - conditions of ours
    rows = (await database.run(Statement(select, values)))[0]
    return await asyncio.to_thread(lambda: [_Head(*row[:6]) for row in rows if row[2] != "running" or not _goes_on(row)])


def _goes_on(row: Sequence[object]) -> bool:
    heartbeat, (pid, born, host, space) = row[5], row[6:]
    owner = Owner(str(row[4]), int(str(pid or 0)), str(born or ""), str(host or ""), str(space or ""))
    return is_living(owner if row[4] else None, float(str(heartbeat)))


def _forecast(doomed: int, rest: int, total: int, before: int, max_size: float | None) -> Freed:
    each = before / max(total, 1)
    after = before - doomed * each
    if max_size is not None and after > max_size:
        more = min(rest, math.ceil((after - max_size) / max(each, 1)))
        doomed, after = doomed + more, after - more * each
    return Freed(doomed, total, before, round(after))


async def _to_size(database: Database, oldest: Sequence[_Head], max_size: float) -> int:
    """Erases until the store is small enough: half of what seems to be needed at a time, as runs are not of one size."""
    erased = 0
    while erased < len(oldest) and (size := await _size(database)) > max_size:
        needed = (1 - max_size / size) * (len(oldest) - erased) / 2
        part = oldest[erased : erased + max(1, min(_AT_ONCE, int(needed)))]
        await _erase(database, part)
        await _texts_erased(database)
        erased += len(part)
    return erased


async def _erase(database: Database, heads: Sequence[_Head]) -> int:
    """First they are nobody's and in no list, so that no process takes them while their parts go; the row goes with the last of these."""
    mark = "UPDATE runs SET status = 'deleting', owner = NULL WHERE number = ? AND status = ? AND coalesce(owner, '') = ?"
    unchanged = "AND coalesce(heartbeat, 0) = ? RETURNING number"
    marks = [Statement(f"{mark} {unchanged}", (head.number, head.status, head.owner, head.heartbeat)) for head in heads]
    marked = sum(len(rows) for rows in await database.run(*marks))
    await _sweep(database)
    return marked


async def _sweep(database: Database) -> None:
    """Erases what is marked, by this process or by one that died over it."""
    select = "SELECT number, run_id, generation, thread FROM runs WHERE status = 'deleting' ORDER BY number LIMIT ?"
    while rows := (await database.run(Statement(select, (_AT_ONCE,))))[0]:
        own = [thread for _, run_id, generation, name in rows if name is None for thread in _threads_of(run_id, generation)]
        shared = sorted({name for _, _, _, name in rows if name is not None})
        ahead = [ONE_AT_A_TIME] if shared else []
        await database.run(*ahead, *_threads_erased(own), *_conversations_erased(shared), *_rows_erased([row[0] for row in rows]))


def _threads_of(run_id: str, generation: int) -> list[str]:
    return [run_id, *(f"{run_id}:{number}" for number in range(1, generation + 1))]


def _threads_erased(threads: Sequence[str]) -> list[Statement]:
    """LangGraph's threads, and what they say of the texts that their checkpoints refer to."""
    from orchestrator.storage.checkpoints import thread_number

    deletes = [Statement(f"DELETE FROM {table} WHERE thread = ?", (thread,)) for thread in threads for table in _CHECKPOINTS]  # noqa: S608
    return [*deletes, *(Statement("DELETE FROM uses WHERE run = ?", (thread_number(thread),)) for thread in threads)]


def _conversations_erased(names: Sequence[str]) -> list[Statement]:
    """The threads of conversations that no run is left of."""
    left = " AND NOT EXISTS (SELECT 1 FROM runs WHERE runs.thread = ? AND runs.status <> 'deleting')"
    erased = [(delete, name) for name in names for delete in _threads_erased([f"thread:{name}"])]
    return [Statement(delete.sql + left, (*delete.values, name)) for delete, name in erased]


def _rows_erased(numbers: Sequence[int]) -> list[Statement]:
    runs = f"IN ({', '.join('?' * len(numbers))})"
    return [
        Statement(f"DELETE FROM uses WHERE run {runs}", tuple(numbers)),  # noqa: S608 - question marks
        Statement(f"DELETE FROM journal WHERE run {runs}", tuple(numbers)),  # noqa: S608 - question marks
        Statement(f"DELETE FROM trace WHERE run {runs}", tuple(numbers)),  # noqa: S608 - question marks
        Statement(f"DELETE FROM runs WHERE number {runs} AND status = 'deleting'", tuple(numbers)),  # noqa: S608 - question marks
    ]


async def _texts_erased(database: Database) -> None:
    """Erases the texts that nothing refers to. In Postgres nobody stores one meanwhile: what is there is not stored again, and would go."""
    used = "EXISTS (SELECT 1 FROM uses WHERE uses.hash = texts.hash)"
    select = f"SELECT hash, {used} FROM texts WHERE hash > ? ORDER BY hash LIMIT {_TEXTS}"  # noqa: S608 - of ours
    ahead = [_LOCK] if database.url.startswith("postgres") else []
    last = b""
    while rows := (await database.run(Statement(select, (last,))))[0]:
        last = bytes(rows[-1][0])
        unused = tuple(bytes(digest) for digest, is_used in rows if not is_used)
        if unused:
            delete = f"DELETE FROM texts WHERE hash IN ({', '.join('?' * len(unused))}) AND NOT {used}"  # noqa: S608 - question marks
            await database.run(*ahead, Statement(delete, unused))
