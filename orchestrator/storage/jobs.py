"""What waits for a database: the statements of one caller, and the future that gets their rows."""

import asyncio
import contextlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from orchestrator.errors import LostRunError, StorageError
from orchestrator.storage.database import Fence, Row, Statement

__all__ = ["Job", "Outcome", "answer", "lost", "new_job", "settle"]

Outcome = list[list[Row]] | Exception


class Job(NamedTuple):
    """One call of `run`. `alone`: its statements cannot be in a transaction."""

    statements: tuple[Statement, ...]
    fence: Fence | None
    rows: asyncio.Future[list[list[Row]]]
    loop: asyncio.AbstractEventLoop
    alone: bool = False


def new_job(statements: tuple[Statement, ...], fence: Fence | None = None, *, alone: bool = False) -> Job:
    """A job of the running loop. Raises StorageError for text with a NUL character, which Postgres cannot keep."""
    for sql, values in statements:
        for value in values:
            if type(value) is str and "\0" in value:
                raise StorageError("Text with a NUL character cannot be stored", where=f"In: {sql}")
    loop = asyncio.get_running_loop()
    return Job(statements, fence, loop.create_future(), loop, alone)


def lost(fence: Fence) -> LostRunError:
    """The error for a job whose run has another owner."""
    return LostRunError(
        f"Run {fence.run_id!r} is owned by another process by now",
        where="Nothing of this one was written",
        remedy=f"See where it runs: python -m orchestrator show {fence.run_id}",
    )


def answer(jobs: Sequence[Job], outcomes: Sequence[Outcome]) -> None:
    """Hands each job its rows or its error, from a thread that is not its loop's: each loop is woken once."""
    loops: dict[asyncio.AbstractEventLoop, list[tuple[Job, Outcome]]] = {}
    for pair in zip(jobs, outcomes, strict=True):
        loops.setdefault(pair[0].loop, []).append(pair)
    for loop, pairs in loops.items():
        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits
            loop.call_soon_threadsafe(settle, pairs)


def settle(pairs: Iterable[tuple[Job, Outcome]]) -> None:
    """Hands each job its rows or its error, in its own loop."""
    for job, outcome in pairs:
        _settle(job.rows, outcome)


def _settle(rows: asyncio.Future[Any], outcome: Outcome) -> None:
    if rows.done():
        return  # its caller was cancelled
    if isinstance(outcome, Exception):
        rows.set_exception(outcome)
    else:
        rows.set_result(outcome)
