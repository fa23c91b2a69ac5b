"""The heart of the runs that go on: other machines know by it that somebody works for them."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Mapping
from contextvars import Context
from weakref import WeakKeyDictionary

from orchestrator.errors import StorageError
from orchestrator.storage.database import Fence
from orchestrator.storage.gc import collect_daily
from orchestrator.storage.jobs import lost
from orchestrator.storage.owner import drop
from orchestrator.storage.runs import RunsTable

__all__ = ["BEAT", "kept"]

BEAT = 5.0
"""Seconds between two heartbeats of a run."""

CLEANING = 0.5
"""Seconds that a run which is over leaves to a clean-up of the store that has begun; the next run goes on with it."""


Progress = Callable[[], Mapping[str, int]]


class _Heart:
    """One for all runs of a store that go on in an event loop: a thousand of them beat in one transaction."""

    def __init__(self, table: RunsTable) -> None:
        self.runs: dict[Fence, tuple[Progress, Callable[[], None]]] = {}  # how far each is, and what to do where it is lost
        # Not in the context of the run that happens to be the first: the others outlive it.
        self.task = asyncio.create_task(self._beating(table), name="heartbeat", context=Context())

    async def _beating(self, table: RunsTable) -> None:
        while True:
            await asyncio.sleep(BEAT)
            told = {fence: progress() for fence, (progress, _) in self.runs.items()}
            try:
                ours = await table.beat(told)
            except StorageError:  # what the runs themselves write tells of it
                continue
            for fence in told.keys() - ours:
                if fence in self.runs:
                    self.runs[fence][1]()


_hearts: WeakKeyDictionary[RunsTable, _Heart] = WeakKeyDictionary()


@contextlib.asynccontextmanager
async def _beating(table: RunsTable, fence: Fence, progress: Progress, lose: Callable[[], None]) -> AsyncGenerator[None, None]:
    heart = _hearts.get(table)
    if heart is None:
        heart = _hearts[table] = _Heart(table)
    heart.runs[fence] = progress, lose
    try:
        yield
    finally:
        del heart.runs[fence]
        if not heart.runs:
            del _hearts[table]
            heart.task.cancel()
            await asyncio.gather(heart.task, return_exceptions=True)


@contextlib.asynccontextmanager
async def kept(table: RunsTable, fence: Fence, progress: Progress = dict) -> AsyncGenerator[None, None]:
    """Inside, the run's heart beats every BEAT seconds, with what `progress` gives for `beat`; `finish` belongs inside.

    The store is cleaned up meanwhile where that is due. What is inside is cancelled, and LostRunError raised, where another
    process has taken the run.
    """
    is_lost = False

    def lose() -> None:
        nonlocal is_lost
        if not is_lost:
            is_lost = True
            lease.reschedule(asyncio.get_running_loop().time())

    try:
        async with asyncio.timeout(None) as lease, _beating(table, fence, progress, lose):
            cleaning = asyncio.create_task(collect_daily(table.database), name="clean-up of the store")
            try:
                yield
            finally:
                await asyncio.wait({cleaning}, timeout=CLEANING)
                cleaning.cancel()
                await asyncio.gather(cleaning, return_exceptions=True)
    except TimeoutError:
        if is_lost:
            raise lost(fence) from None
        raise
    finally:
        drop(fence.owner)
