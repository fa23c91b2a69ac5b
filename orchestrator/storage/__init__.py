"""What is kept of runs: the database, and on top of it the runs, their journals, their checkpoints and long-term memory."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from orchestrator.storage.codec import Codec, open_codec
from orchestrator.storage.database import Database, Fence, default_url, open_database
from orchestrator.storage.heartbeat import kept
from orchestrator.storage.journal import JournalTable
from orchestrator.storage.runs import RunRecord, RunsTable
from orchestrator.storage.trace import TraceTable

if TYPE_CHECKING:
    from orchestrator.storage.checkpoints import Checkpoints
    from orchestrator.storage.memory import Memory

__all__ = ["Fence", "RunRecord", "Storage", "kept", "open_storage", "scratch_storage"]


@dataclass(frozen=True)
class Storage:
    """An open store: one database, and the tables on it. `codec` is how values become bytes and back."""

    database: Database
    codec: Codec
    runs: RunsTable
    journal: JournalTable
    trace: TraceTable

    def checkpoints(self, fence: Fence | None = None, graph: Any = None, *, new: bool = False) -> "Checkpoints":
        """The checkpoints as LangGraph takes them: what is written carries `fence`, and the types of the compiled `graph` are known.

        `new`: its run is, so that the store has none of its thread.
        """
        from orchestrator.storage.checkpoints import Checkpoints

        return Checkpoints(self.database, self.codec, fence, graph, new=new)

    def memory(self, fence: Fence | None = None) -> "Memory":
        """LangGraph's store of long-term memory; what is written carries `fence`."""
        from orchestrator.storage.memory import Memory

        return Memory(self.database, self.codec, fence)


class _Shared:
    """A store that is open, or being opened, and how many use it."""

    def __init__(self, url: str | None) -> None:
        self.users = 0
        self.opening = asyncio.ensure_future(_open(url))

    async def aclose(self) -> None:
        self.opening.cancel()
        [opened] = await asyncio.gather(self.opening, return_exceptions=True)
        if isinstance(opened, Storage):
            await opened.database.aclose()


_stores: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[str, bool], _Shared]] = WeakKeyDictionary()


@contextlib.asynccontextmanager
async def open_storage(url: str | None = None) -> AsyncGenerator[Storage, None]:
    """The store at `url` (None: ORCHESTRATOR_DB, else the user's own file), shared by all who open it in this event loop.

    It is closed with its last user: what `memory://` holds is gone then. Raises DatabaseOpenError before anything is written.
    """
    stores = _stores.setdefault(asyncio.get_running_loop(), {})
    key = (await asyncio.to_thread(default_url) if url is None else url, url is None)
    shared = stores.get(key)
    if shared is None:
        shared = stores[key] = _Shared(url)
    shared.users += 1
    try:
        yield await asyncio.shield(shared.opening)
    finally:
        shared.users -= 1
        if not shared.users:
            stores.pop(key, None)
            await asyncio.shield(asyncio.ensure_future(shared.aclose()))


@contextlib.asynccontextmanager
async def scratch_storage() -> AsyncGenerator[Storage, None]:
    """A store in memory that nobody else has: `memory://` is shared by all who open it."""
    storage = await _open("memory://")
    try:
        yield storage
    finally:
        await storage.database.aclose()


async def _open(url: str | None) -> Storage:
    database = await open_database(url)
    try:
        codec = await open_codec(database)
    except BaseException:
        await asyncio.shield(asyncio.ensure_future(database.aclose()))
        raise
    return Storage(database, codec, RunsTable(database, codec), JournalTable(database, codec), TraceTable(database, codec))
