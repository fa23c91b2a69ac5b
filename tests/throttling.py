"""Servers that refuse calls, simulated in virtual time, and runs against them."""

import asyncio
import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from orchestrator.admission import Admission, Party

Accepts = Callable[[float], float | None]  # a request at a time: None, or the seconds after which one may come again


def token_bucket(rate: float, capacity: float) -> Accepts:
    """`rate` requests a second, and `capacity` at once."""
    level, last = capacity, 0.0

    def accept(now: float) -> float | None:
        nonlocal level, last
        level, last = min(capacity, level + (now - last) * rate), now
        if level >= 1:
            level -= 1
            return None
        return (1 - level) / rate

    return accept


def fixed_windows(rate: int, seconds: float = 1.0) -> Accepts:
    """`rate` requests in each window of a clock."""
    window, used = -1, 0

    def accept(now: float) -> float | None:
        nonlocal window, used
        if int(now / seconds) != window:
            window, used = int(now / seconds), 0
        if used < rate:
            used += 1
            return None
        return (window + 1) * seconds - now

    return accept


def sliding_window(rate: int, seconds: float = 1.0) -> Accepts:
    """`rate` requests in any time of that length."""
    taken: deque[float] = deque()

    def accept(now: float) -> float | None:
        while taken and taken[0] + seconds <= now:
            taken.popleft()
        if len(taken) < rate:
            taken.append(now)
            return None
        return taken[0] + seconds - now

    return accept


def never(_: float) -> float | None:
    """Refuses everything."""
    return math.inf


LIMITS: dict[str, Callable[[], Accepts]] = {
    "token bucket": lambda: token_bucket(20, 20),
    "fixed windows": lambda: fixed_windows(20),
    "sliding window": lambda: sliding_window(20),
}


@dataclass
class Server:
    """Answers after `seconds`, refuses at once what `accepts` does not take or what is more than `most` in flight."""

    accepts: Accepts = lambda _: None
    seconds: float = 0.2
    retry_after: bool = False
    most: int | None = None
    overloaded: bool = False  # its refusals are 503, not 429
    sending: float = 0.0  # seconds of the one processor that makes the requests, one after another
    requests: list[float] = field(default_factory=list)
    in_flight: int = 0
    peak: int = 0
    _busy_until: float = 0.0

    async def request(self) -> tuple[bool, float | None]:
        """Whether it was answered, and the Retry-After where it was not: whole seconds, as the header has it."""
        loop = asyncio.get_running_loop()
        if self.sending:
            self._busy_until = max(loop.time(), self._busy_until) + self.sending
            await asyncio.sleep(self._busy_until - loop.time())
        now = loop.time()
        self.requests.append(now)
        wait = self.accepts(now)
        if wait is None and self.most is not None and self.in_flight >= self.most:
            wait = 1.0
        if wait is not None:
            await asyncio.sleep(0)
            return False, (float(max(1, math.ceil(wait))) if self.retry_after and wait < math.inf else None)
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        try:
            await asyncio.sleep(self.seconds)
        finally:
            self.in_flight -= 1
        return True, None


def seeded(seed: int) -> Admission:
    """A door of its own, whose pauses are the same each time."""
    return Admission(random.Random(seed).random)  # noqa: S311 - the same each time


async def ask(admission: Admission, server: Server, party: Party, endpoint: str = "api.test", tokens: int = 0) -> bool:
    """One call, made again as long as that is of use; whether it was answered. Raises what `enter` raises."""
    ticket = None
    while True:
        ticket = await admission.enter(endpoint, party, tokens=tokens, again=ticket)
        answered, retry_after = await server.request()
        if answered:
            ticket.leave()
            return True
        if not ticket.throttled(retry_after, overloaded=server.overloaded):
            return False


@dataclass(frozen=True)
class Outcome:
    """What a run of calls came to: how many were answered, how many requests that took, and how many seconds."""

    answered: int
    requests: int
    seconds: float


async def calls(server: Server, count: int, *, party: Party | None = None, admission: Admission | None = None, seed: int = 0) -> Outcome:
    """So many calls at once."""
    loop = asyncio.get_running_loop()
    admission = admission or seeded(seed)
    party = party or Party(name="run")
    began, before = loop.time(), len(server.requests)
    done = await asyncio.gather(*(ask(admission, server, party) for _ in range(count)), return_exceptions=True)
    return Outcome(done.count(True), len(server.requests) - before, loop.time() - began)


def quiet(admission: Admission) -> bool:
    """Whether nobody waits and nobody is in flight."""
    return all((gate.waiting, gate.in_flight, gate._lines) == (0, 0, {}) for gate in admission._gates.values())


async def settled() -> None:
    """Lets every task go as far as it can without time passing."""
    for _ in range(20):
        await asyncio.sleep(0)
