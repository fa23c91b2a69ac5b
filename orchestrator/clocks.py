"""Clocks that stand still while work waits for its turn: waiting is the engine's doing, not the work's."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from contextvars import Context, ContextVar, copy_context
from types import TracebackType
from typing import Self

__all__ = ["Clock", "Joint", "before", "waiting"]


class Clock:
    """`async with Clock(seconds)` raises TimeoutError when that much time was spent inside, waits left out; None never ends it.

    `expired` tells whether it was this clock; `end()` ends what is inside at once.
    """

    def __init__(self, seconds: float | None) -> None:
        self._left = seconds
        self._running_since = 0.0
        self._waits = 0
        self._open = False
        self._timeout = asyncio.timeout(None)
        self._outer: Clock | Joint | None = None

    @property
    def expired(self) -> bool:
        """Whether it ran out, or was ended."""
        return self._timeout.expired()

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        await self._timeout.__aenter__()
        self._open = True
        self._start()
        self._outer = _current.get()
        self._token = _current.set(self)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        _current.reset(self._token)
        self._open = False  # a task that outlives it may still wait
        await self._timeout.__aexit__(kind, error, trace)

    def end(self) -> None:
        """End what is inside, as if the time were over."""
        self._open, was_open = False, self._open
        if was_open and not self._timeout.expired():
            _set(self._timeout, self._loop.time())

    def _start(self) -> None:
        self._running_since = self._loop.time()
        if self._open and self._left is not None and not self._timeout.expired():
            _set(self._timeout, self._running_since + self._left)

    def _stop(self) -> None:
        if self._open and self._left is not None and not self._timeout.expired():
            self._left -= self._loop.time() - self._running_since
            _set(self._timeout, None)


def _set(timeout: asyncio.Timeout, when: float | None) -> None:
    """A timer keeps the context that it was set in for as long as it would have run, though it is cancelled long before: the whole state
    of a run that is over. It needs none.
    """
    Context().run(timeout.reschedule, when)


@asynccontextmanager
async def before(ends: float, late: Exception) -> AsyncIterator[None]:
    """What is inside has until `ends`, a time of `time.monotonic()`, waits and all; then `late` is raised."""
    try:
        async with asyncio.timeout(ends - time.monotonic()) as timeout:
            yield
    except TimeoutError:
        if timeout.expired():
            raise late from None
        raise


class Joint:
    """In the place of a clock, for work that several wait for: while the work waits, the clocks of all of them stand still."""

    def __init__(self) -> None:
        self._outer: None = None
        self._waits = 0
        self._chains: list[list[Clock | Joint]] = []

    def context(self) -> Context:
        """A copy of this context for the work: its clocks are those of who awaits it."""
        context = copy_context()
        context.run(_current.set, self)
        return context

    def join(self) -> "list[Clock | Joint]":
        """Who calls this waits for the work, until `leave` is called with what this returns."""
        clocks = _around()
        self._chains.append(clocks)
        if self._waits:
            _hold(clocks)
        return clocks

    def leave(self, clocks: "list[Clock | Joint]") -> None:
        """The end of a wait that `join` began."""
        self._chains = [chain for chain in self._chains if chain is not clocks]
        if self._waits:
            _release(clocks)

    def _stop(self) -> None:
        for clocks in self._chains:
            _hold(clocks)

    def _start(self) -> None:
        for clocks in self._chains:
            _release(clocks)


_current: ContextVar[Clock | Joint | None] = ContextVar("clock", default=None)


class _Wait(AbstractContextManager[None]):
    __slots__ = ("_clocks",)

    def __enter__(self) -> None:
        self._clocks = _around()
        _hold(self._clocks)

    def __exit__(self, *_: object) -> None:
        _release(self._clocks)


def waiting() -> AbstractContextManager[None]:
    """The clocks around stand still as long as anything inside them waits."""
    return _Wait()


def _around() -> list[Clock | Joint]:
    clocks: list[Clock | Joint] = []
    clock = _current.get()
    while clock is not None:
        clocks.append(clock)
        clock = clock._outer
    return clocks


def _hold(clocks: Sequence[Clock | Joint]) -> None:
    for clock in clocks:
        clock._waits += 1
        if clock._waits == 1:
            clock._stop()


def _release(clocks: Sequence[Clock | Joint]) -> None:
    for clock in clocks:
        clock._waits -= 1
        if clock._waits == 0:
            clock._start()
