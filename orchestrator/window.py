"""The window of a run's branches: how many are under way, and how those begin that could all begin at once."""

import asyncio
from typing import Literal

__all__ = ["Window"]

_LOT = 25  # branches that begin together: what they do alike is done in a row, which costs a tenth less than one branch at a time
_TURNS = 8  # of the event loop, in which a branch comes to its first request, a new connection included


class Window(asyncio.Semaphore):
    """A place for each branch that may be under way.

    Branches that find a place begin in lots: the models of the first ones are at work while the others begin. If all took their
    steps at the same time, the first request would leave when the last branch is ready, and its answer would find nothing done meanwhile.
    """

    def __init__(self, places: int) -> None:
        super().__init__(places)
        self._left = _LOT  # of the lot that begins now
        self._turning = asyncio.Lock()

    async def acquire(self) -> Literal[True]:
        """Wait for one's turn, and for a place; always True."""
        while not self._left:
            async with self._turning:
                if not self._left:
                    for _ in range(_TURNS):
                        await asyncio.sleep(0)
                    self._left = _LOT
        self._left -= 1
        return await super().acquire()
