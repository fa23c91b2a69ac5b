"""The one admission controller of the process: every model call, and every tool that declares a limit, asks here for its turn."""

import asyncio
from collections import deque
from dataclasses import dataclass, field

from orchestrator.clocks import waiting

__all__ = ["ADMISSION", "Admission", "Party", "Ticket"]


@dataclass(eq=False, kw_only=True)
class Party:
    """One run, or one tool of a run, at the door."""

    name: str
    max_concurrency: int = 64
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_queue: int = 10_000
    in_flight: int = 0
    _queue: deque[asyncio.Future[None]] = field(default_factory=deque, init=False, repr=False)


class Ticket:
    """A call that was let in; exactly one of the three ends it, further ones do nothing."""

    def __init__(self, party: Party, waited: float) -> None:
        self.party = party
        self.waited = waited
        self._open = True

    def leave(self, *, tokens: int | None = None) -> None:
        """The call was answered; `tokens` settles the estimate (None: it stands)."""
        self._end()

    def fail(self) -> None:
        """The call failed or was cancelled: says nothing about the limit."""
        self._end()

    def throttled(self, retry_after: float | None) -> bool:
        """The endpoint refused the call (429, 503); False: no use in asking again."""
        self._end()
        return True

    def _end(self) -> None:
        if not self._open:
            return
        self._open = False
        self.party.in_flight -= 1
        while self.party._queue:
            future = self.party._queue.popleft()
            if not future.done():
                future.set_result(None)
                return


class Admission:
    """Gates by endpoint, for the whole process."""

    async def enter(
        self, endpoint: str, party: Party, *, tokens: int = 0, until: float | None = None, again: Ticket | None = None
    ) -> Ticket:
        """Waits its turn; raises QueueFull, ThrottledError."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        while party.in_flight >= party.max_concurrency:
            future = loop.create_future()
            party._queue.append(future)
            with waiting():
                await future
        party.in_flight += 1
        return Ticket(party, loop.time() - began)


ADMISSION = Admission()
