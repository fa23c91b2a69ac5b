"""The trace's table: what an attempt of a run did, many spans to a row, each span in its latest state."""

import asyncio
from collections.abc import Sequence
from typing import Any

from orchestrator.storage.codec import Codec, unpack_of_run
from orchestrator.storage.database import Database, Fence, Statement

__all__ = ["TraceTable"]

_INSERT = "INSERT INTO trace(run, attempt, part, content) VALUES(?, ?, ?, ?) ON CONFLICT(run, attempt, part) DO NOTHING"
_SELECT = "SELECT attempt, content FROM trace WHERE run = ? ORDER BY attempt, part"


class TraceTable:
    """The traces of all runs; a run is named by its number. A span is a list of plain values, the first its number in its attempt."""

    def __init__(self, database: Database, codec: Codec) -> None:
        self._database = database
        self._codec = codec

    def append(self, run: int, attempt: int, part: int, spans: Sequence[Sequence[Any]], fence: Fence) -> asyncio.Future[Any]:
        """Begin to write spans; durable when the future is done. Raises StorageTypeError; the future StorageError or LostRunError."""
        packed = self._codec.pack_plain(spans, whole=True)
        insert = Statement(_INSERT, (run, attempt, part, packed.blob))
        return self._database.submit(insert, fence=fence)

    async def spans(self, run: int) -> dict[int, list[list[Any]]]:
        """The spans of each attempt in the order of their numbers, of each the latest state. Raises StorageError."""
        (rows,) = await self._database.run(Statement(_SELECT, (run,)))
        parts = await unpack_of_run(self._database, self._codec, [bytes(blob) for _, blob in rows], "trace", run)
        found: dict[int, dict[int, list[Any]]] = {}
        for (attempt, _), spans in zip(rows, parts, strict=True):
            found.setdefault(int(attempt), {}).update((span[0], span) for span in spans)
        return {attempt: [spans[number] for number in sorted(spans)] for attempt, spans in found.items()}
