"""Hedged requests: one that takes longer than most is made a second time, and the first good answer counts.

After Dean and Barroso, "The Tail at Scale" (2013), where the delay is the 95th percentile of what was observed. With one more request
for a share p of all, the delay that helps most is the (1 - p) quantile: a later one leaves some of the share unused, an earlier one
does not keep to it. On a server whose times are lognormal with sigma 1 and independent, the 99th percentile falls to 1/1.8 at
p = 10 %, to 1/1.5 at 5 %. No way of spending 10 % halves it there: of the calls that would still miss half the 99th percentile a
request saves 0.34 at best, whenever it is made, and 0.41 would be needed.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from functools import cached_property
from typing import Any, ClassVar, TypeVar

from orchestrator.flights import ended, winner

__all__ = ["Hedge", "Watch", "hedged"]

T = TypeVar("T")

_SHARE = 0.1  # of the requests at most are made twice
_QUANTILE = 1 - _SHARE
_LEAST_SEEN = 20  # observations, before anything is known of a tail
_MOST_SEEN = 500
_PATIENCE = 0.1  # of the delay, until a late request that had to do without looks again
_LEAST_PATIENCE = 0.01  # seconds


class Hedge:
    """What was seen of a role's requests to a model at one endpoint, in this process."""

    _known: ClassVar[dict[tuple[str, str, str], "Hedge"]] = {}

    def __init__(self) -> None:
        self.requests = 0
        self.made = 0
        self._seconds: deque[float] = deque(maxlen=_MOST_SEEN)

    @classmethod
    def of(cls, endpoint: str, model: str, role: str) -> "Hedge":
        """The one of these, made where there is none."""
        return cls._known.setdefault((endpoint, model, role), cls())

    def delay(self) -> float | None:
        """Seconds after which a request is late; None while too little was seen."""
        if len(self._seconds) < _LEAST_SEEN:
            return None
        return sorted(self._seconds)[int(_QUANTILE * len(self._seconds))]

    def take(self) -> bool:
        """Whether one more request may be made a second time; if so, it is counted."""
        if self.made + 1 > _SHARE * self.requests:
            return False
        self.made += 1
        return True

    def observe(self, seconds: float) -> None:
        """Count a request that took so long, or that was still unanswered after so long when another one answered."""
        self._seconds.append(seconds)


class Watch:
    """When a request was sent, and when its first token or its answer came."""

    def __init__(self, delay: float | None) -> None:
        self._loop = asyncio.get_running_loop()
        self.delay = delay or 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._sent: float | None = None
        self.seconds: float | None = None

    @cached_property
    def late(self) -> "asyncio.Future[None]":
        """Done when it is late."""
        return self._loop.create_future()

    def sent(self) -> None:
        """It goes out; once more, if the endpoint had no room for it before."""
        self._sent = self._loop.time()
        self._stop()
        if self.delay:
            self._timer = self._loop.call_later(self.delay, self._is_late)

    def answered(self) -> None:
        """Something of an answer is there: it is not late any more."""
        if self._sent is not None and self.seconds is None:
            self.seconds = self._loop.time() - self._sent
        self._stop()

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _is_late(self) -> None:
        if not self.late.done():
            self.late.set_result(None)


async def hedged(hedge: Hedge, make: Callable[[Watch | None], Awaitable[T]]) -> T:
    """What `make` gives, called again (with None) when the first is late; a failure counts where nothing else is under way.

    Whichever is not needed is cancelled, and has ended when this returns.
    """
    hedge.requests += 1
    watch = Watch(hedge.delay())
    first: asyncio.Future[T] = asyncio.ensure_future(make(watch))
    tasks = [first]
    good = False
    try:
        either: set[asyncio.Future[Any]] = {first, watch.late}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        while not first.done():  # where the share is used up, others will earn a request
            if hedge.take():
                tasks.append(asyncio.ensure_future(make(None)))
                break
            await asyncio.wait({first}, timeout=max(_PATIENCE * watch.delay, _LEAST_PATIENCE))
        answer = await winner(tasks, Exception)
        good = not first.done() or first.exception() is None
        return answer
    finally:
        watch.answered()
        await ended(tasks)
        if good and watch.seconds is not None:
            hedge.observe(watch.seconds)
