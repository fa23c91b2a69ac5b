"""Places for the branches of a run that may be under way."""

import asyncio
from typing import Literal

__all__ = ["Window"]

_TOGETHER = 8  # branches that begin at once
_TURNS = 14  # of the event loop until the next ones begin: about as many as a branch takes to its first request


class Window(asyncio.Semaphore):
    """A semaphore whose places are taken a few at a time.

    Branches that all begin at once reach their first request all at once, after the work of every one of them. A few at a time, the
    endpoint has the first requests while the others are prepared, and answers do not come all in one moment either.
    """

    def __init__(self, places: int) -> None:
        super().__init__(places)
        self._turn = asyncio.Lock()
        self._taken = 0

    async def acquire(self) -> Literal[True]:
        """Wait for a turn, then for a place."""
        async with self._turn:
            self._taken += 1
            if self._taken % _TOGETHER == 0:
                for _ in range(_TURNS):
                    await asyncio.sleep(0)
        return await super().acquire()
