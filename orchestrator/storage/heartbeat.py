"""The heart of a run that goes on: other machines know by it that somebody works for the run."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

from orchestrator.errors import LostRunError, StorageError
from orchestrator.storage.database import Fence
from orchestrator.storage.gc import collect_daily
from orchestrator.storage.owner import drop
from orchestrator.storage.runs import RunsTable

__all__ = ["BEAT", "kept"]

BEAT = 5.0
"""Seconds between two heartbeats of a run."""

CLEANING = 0.5
"""Seconds that a run which is over leaves to a clean-up of the store that has begun; the next run goes on with it."""


@contextlib.asynccontextmanager
async def kept(table: RunsTable, fence: Fence, progress: Callable[[], Mapping[str, Any]] = dict) -> AsyncGenerator[None, None]:
    """Inside, the run's heart beats every BEAT seconds, with what `progress` gives for `beat`; `finish` belongs inside.

    The store is cleaned up meanwhile where that is due. What is inside is cancelled, and LostRunError raised, where another
    process has taken the run.
    """
    lost: list[LostRunError] = []

    async def beating(lease: asyncio.Timeout) -> None:
        while True:
            await asyncio.sleep(BEAT)
            try:
                await table.beat(fence, **progress())
            except LostRunError as error:
                lost.append(error)
                lease.reschedule(asyncio.get_running_loop().time())
                return
            except StorageError:  # what the run itself writes tells of it
                continue

    try:
        async with asyncio.timeout(None) as lease:
            heart = asyncio.create_task(beating(lease), name=f"heartbeat of {fence.run_id}")
            cleaning = asyncio.create_task(collect_daily(table.database), name="clean-up of the store")
            try:
                yield
            finally:
                heart.cancel()
                await asyncio.wait({cleaning}, timeout=CLEANING)
                cleaning.cancel()
                await asyncio.gather(heart, cleaning, return_exceptions=True)
    except TimeoutError:
        if lost:
            raise lost[0] from None
        raise
    finally:
        drop(fence.owner)
