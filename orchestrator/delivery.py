"""Events on their way from a run to whoever reads them: a slow reader costs bounded memory, and no state event is lost."""

import asyncio
import contextlib
import threading
from collections import deque
from contextvars import ContextVar
from typing import Literal, Self

from orchestrator.clocks import waiting
from orchestrator.events import Event

__all__ = ["UNREAD", "Delivery", "unheard"]

UNREAD = 1_000
"""Events that may be unread: beyond it the run begins nothing new, and what may be dropped is."""

_DROPPED = {"token", "custom"}

unheard: ContextVar[Literal["", "tokens", "events"]] = ContextVar("unheard", default="")
"""What whoever follows a run here does not read: the tokens of answers, or any event but its result. What nobody reads is not made."""


class Delivery:
    """A queue for one reader, in the order in which events were told; made inside the reader's event loop.

    `put` may be called from any thread. A `dropped` event stands where events were left out.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._unread: deque[Event] = deque()
        self._kept = 0  # how many of them are state events
        self._lost = 0  # token and custom events that were dropped since the last one that was taken in
        self._ended = False
        self._heard = unheard.get() != "events"
        self.tokens_heard = unheard.get() == ""
        self._something = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    def put(self, event: Event) -> None:
        """Take an event in, or drop it where nobody would read it, or not in time."""
        if not self._heard:
            return
        if threading.get_ident() == self._thread:
            self._put(event)
            return
        with contextlib.suppress(RuntimeError):  # a thread that outlives the loop has nobody to tell
            self._loop.call_soon_threadsafe(self._put, event)

    def end(self) -> None:
        """There will be no further event."""
        if self._lost:
            self._take(Event("dropped", {"count": self._lost}))
        self._ended = True
        self._something.set()

    async def room(self) -> None:
        """Wait until the reader has caught up; clocks stand still meanwhile."""
        if not self._room.is_set():
            with waiting():
                await self._room.wait()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while not self._unread:
            if self._ended:
                raise StopAsyncIteration
            self._something.clear()
            await self._something.wait()
        event = self._unread.popleft()
        if event.kind not in _DROPPED:
            self._kept -= 1
            if self._kept < UNREAD:
                self._room.set()
        return event

    def _put(self, event: Event) -> None:
        if event.kind in _DROPPED and len(self._unread) >= UNREAD:
            self._lost += 1
            return
        if self._lost:
            lost, self._lost = self._lost, 0
            self._take(Event("dropped", {"count": lost}))
        self._take(event)

    def _take(self, event: Event) -> None:
        self._unread.append(event)
        if event.kind not in _DROPPED:
            self._kept += 1
            if self._kept >= UNREAD:
                self._room.clear()
        self._something.set()
