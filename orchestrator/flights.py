"""Identical work in flight is done once, and of several ways to the same answer the first good one counts."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from orchestrator.clocks import Joint

__all__ = ["Flights", "ended", "first_good", "winner"]

T = TypeVar("T")


@dataclass(slots=True)
class _Flight:
    joint: Joint
    waiters: "list[asyncio.Future[None]]" = field(default_factory=list)
    task: "asyncio.Task[Any]" = field(init=False)

    async def fly(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        try:
            return await make()
        finally:
            self.land()

    def land(self) -> None:
        """Wake all who wait: the task is done, or will be before they look."""
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_result(None)


class Flights:
    """Work in flight by its key. It belongs to nobody who waits for it: it ends early only when all of them have left."""

    def __init__(self) -> None:
        self._flying: dict[Hashable, _Flight] = {}

    async def share(
        self, key: Hashable, make: Callable[[], Coroutine[Any, Any, T]], *, own: tuple[type[Exception], ...] = ()
    ) -> tuple[T, bool]:
        """What `make` comes to, and whether it was under way already; its error is raised for everybody who waits.

        One of `own` concerns whoever began the work: who joined begins it anew. While the work waits for its turn, the clocks of all
        who wait for it stand still.
        """
        loop = asyncio.get_running_loop()
        while True:
            flight = self._flying.get(key)
            shared = flight is not None
            if flight is None:
                flight = self._flying[key] = _Flight(Joint())
                flight.task = loop.create_task(flight.fly(make), context=flight.joint.context())
            landed = loop.create_future()
            flight.waiters.append(landed)
            clocks = flight.joint.join()
            try:
                if not flight.task.done():
                    await landed
                return flight.task.result(), shared
            except own:
                if not shared:
                    raise
            finally:
                flight.joint.leave(clocks)
                flight.waiters.remove(landed)
                if (not flight.waiters or flight.task.done()) and self._flying.get(key) is flight:
                    del self._flying[key]
                if not flight.waiters:
                    await ended([flight.task])

    async def aclose(self) -> None:
        """Cancel what is still in flight, and wait for its end."""
        here = asyncio.get_running_loop()
        flights = [flight for flight in self._flying.values() if flight.task.get_loop() is here]
        await ended([flight.task for flight in flights])
        for flight in flights:  # one that was cancelled before it began wakes nobody
            flight.land()


async def first_good(ways: Sequence[Callable[[], Awaitable[T]]], *, passing: type[Exception]) -> T:
    """The first result of `ways`, begun at once; the others are cancelled and have ended when it is given.

    One that raises `passing` drops out; when all did, the first way's error is raised. Any other error ends all.
    """
    tasks = [asyncio.ensure_future(way()) for way in ways]
    try:
        return await winner(tasks, passing)
    finally:
        await ended(tasks)


async def winner(tasks: Sequence["asyncio.Future[T]"], passing: type[Exception]) -> T:
    """What the first task comes to that does not raise `passing`; when all did, the first task's error is raised."""
    running = set(tasks)
    while running:
        done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        for task in (task for task in tasks if task in done):
            if not isinstance(task.exception(), passing):
                return task.result()
    return tasks[0].result()


async def ended(tasks: Sequence["asyncio.Future[Any]"]) -> None:
    """Cancel what still runs, wait for its end, and look at every error, so that none is reported as never looked at."""
    left = [task for task in tasks if not task.done()]
    for task in left:
        task.cancel()
    if left:
        await asyncio.gather(*left, return_exceptions=True)
    for task in tasks:
        if not task.cancelled():
            task.exception()
