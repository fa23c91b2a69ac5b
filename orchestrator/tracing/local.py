"""The trace that is always kept: spans on their way into the store, many at a time."""

import asyncio
import contextlib
import sys
import threading
from collections.abc import Mapping
from typing import Any
from weakref import WeakSet

from orchestrator.errors import StorageError
from orchestrator.spans import Span
from orchestrator.storage import Fence
from orchestrator.storage.trace import TraceTable

__all__ = ["FIELDS", "LocalTrace"]

_FIRST, _EVERY = 0.1, 1.0  # seconds to the first write, and between two: what a killed process loses beside what the journal has
_MANY = 100  # attempts at once, from which on each waits longer: a process writes so often in _EVERY
_SETTLED = 0.25  # second after its end in which the journal has told a span its row
_AT_ONCE = 500  # spans of one row
_NOTES = 50  # of one span
_SHOWN = (4, 20, 400)  # of a node's input and output: how deep, how many items, how many characters of a text

FIELDS = (
    "id",
    "parent",
    "kind",
    "name",
    "began",
    "role",
    "branch",
    "model",
    "attempt",
    "sent",
    "first",
    "ended",
    "state",
    "error",
    "input_tokens",
    "output_tokens",
    "row",
    "notes",
    "given",
    "came",
)
"""What is kept of a span, in this order."""

_under_way: WeakSet["LocalTrace"] = WeakSet()


class LocalTrace:
    """The spans of one attempt, on the event loop that it is made on. What cannot be stored ends no run: `failed` says why."""

    takes_content = False

    def __init__(self, table: TraceTable, run: int, attempt: int, fence: Fence) -> None:
        self._table = table
        self._run, self._attempt, self._fence = run, attempt, fence
        self._part = 0
        self._waiting: dict[int, tuple[Span, float]] = {}  # with when it ended, on the loop's clock
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._timer: asyncio.TimerHandle | None = None
        self._due = False
        self._writing: set[asyncio.Future[Any]] = set()
        self.failed: str | None = None
        _under_way.add(self)

    def began(self, span: Span, ended: float = 0.0) -> None:
        """What goes on is kept, too: a process may die in it."""
        self._waiting[span.id] = span, ended
        if not self._due:
            self._due = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: what a thread left behind does there belongs to no run
                if threading.get_ident() == self._thread:
                    self._set()
                else:
                    self._loop.call_soon_threadsafe(self._set)

    sent = began

    def ended(self, span: Span) -> None:
        """A span in its last state."""
        self.began(span, self._loop.time())

    def _set(self) -> None:
        seconds = (_EVERY if self._part else _FIRST) * max(1, len(_under_way) / _MANY)
        self._timer = self._loop.call_later(seconds, self._write)

    def _write(self, *, all_of_it: bool = False) -> None:
        """Hand over what is settled; nobody waits for it."""
        self._due, self._timer = False, None
        settled = float("inf") if all_of_it else self._loop.time() - _SETTLED
        ripe = [span for span, ended in self._waiting.values() if span.ended is None or span.row is not None or ended < settled]
        for span in ripe:
            del self._waiting[span.id]
        for start in range(0, len(ripe), _AT_ONCE):
            self._append([_record(span) for span in ripe[start : start + _AT_ONCE]])
        if self._waiting and not self._due:
            self._due = True
            self._set()

    def _append(self, records: list[list[Any]]) -> None:
        try:
            written = self._table.append(self._run, self._attempt, self._part, records, self._fence)
        except StorageError as error:
            self.failed = str(error)
            return
        self._part += 1
        self._writing.add(written)
        written.add_done_callback(self._written)

    def _written(self, written: "asyncio.Future[Any]") -> None:
        self._writing.discard(written)
        if not written.cancelled() and (error := written.exception()) is not None:
            self.failed = str(error)

    def hand_over(self) -> None:
        """Begin to write what is left: it is durable before what is handed to the database after it."""
        _under_way.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        self._write(all_of_it=True)

    async def aclose(self) -> None:
        """Write what is left, and wait for it."""
        self.hand_over()
        try:
            if self._writing:
                await asyncio.wait(self._writing)
        except asyncio.CancelledError:  # the run has no more time: the database need not wait for whoever holds it up
            for written in self._writing:
                written.cancel()
            raise


def _record(span: Span) -> list[Any]:
    """A span as plain data, in the order of FIELDS."""
    of_node = span.kind == "node"
    return [
        span.id,
        None if span.parent is None else span.parent.id,
        span.kind,
        span.name,
        span.began,
        span.role,
        span.branch,
        span.model,
        span.attempt,
        span.sent,
        span.first,
        span.ended,
        span.state,
        span.error,
        *span.usage,
        span.row,
        [list(note) for note in span.notes[:_NOTES]] if span.notes else [],
        shortened(span.given) if of_node else None,
        shortened(span.came) if of_node else None,
    ]


def shortened(value: Any, depth: int = _SHOWN[0]) -> Any:
    """A value as plain data that is short, whatever it holds."""
    _, items, characters = _SHOWN
    if value is None or isinstance(value, bool | int | float):
        return value if not isinstance(value, int) or abs(value) < sys.maxsize else str(value)
    if isinstance(value, str):
        return value if len(value) <= characters else f"{value[:characters]}…"
    if depth and isinstance(value, Mapping):
        return {str(key)[:characters]: shortened(item, depth - 1) for key, item in list(value.items())[:items]}
    if depth and isinstance(value, list | tuple | set | frozenset):
        return [shortened(item, depth - 1) for item in list(value)[:items]]
    fields = getattr(type(value), "model_fields", None)
    if depth and fields:
        return {name: shortened(getattr(value, name, None), depth - 1) for name in list(fields)[:items]}
    return f"<{type(value).__name__}>"
