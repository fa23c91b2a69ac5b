"""Gates: one for each endpoint, with the calls that wait there and those that are in flight."""

import asyncio
import heapq
import math
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Literal

from orchestrator.admission.adapting import Adaptive, Passage
from orchestrator.admission.rates import Entry, Meter
from orchestrator.admission.serial import Serial
from orchestrator.errors import OrchestratorError, QueueFull, StopRequested, ThrottledError
from orchestrator.events import tell

__all__ = ["Gate", "Line", "Party", "Ticket"]

_GROWN = 1.0  # seconds until one looks again whether more calls may be in flight
_turns = count()  # who came first, of the calls of a line and of the lines of a gate


@dataclass(eq=False, kw_only=True)
class Party:
    """One run, or one tool of a run, at the door. `in_flight` counts its calls over all endpoints; it is kept by Admission."""

    name: str
    max_concurrency: int = 64
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_queue: int = 10_000
    in_flight: int = 0
    _parked: "list[Line]" = field(default_factory=list, init=False, repr=False)  # lines that wait for the party's own limit


class Ticket:
    """A call that was let in; exactly one of `leave`, `fail` and `throttled` ends it, further ones do nothing.

    `waited`: seconds. Each of the three may be called from any thread.
    """

    __slots__ = (
        "_charge",
        "_error",
        "_gives_way",
        "_line",
        "_order",
        "_passage",
        "_serial",
        "_since",
        "_state",
        "_tokens",
        "_until",
        "_woken",
        "waited",
    )

    _line: "Line"
    _order: int
    _gives_way: bool

    def __init__(self, serial: Serial, tokens: int, until: float | None, again: "Ticket | None") -> None:
        self._serial = serial
        self._woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tokens, self._until = max(0, tokens), until
        # A probe that was refused gives way, and so does who was refused twice: it may be that call alone which the endpoint does not take.
        self._order = next(_turns) if again is None or again._gives_way else again._order
        self._gives_way = again is not None
        self._since = self._now()
        self._state: Literal["waiting", "in", "over"] = "waiting"
        self._error: OrchestratorError | None = None
        self._charge: tuple[Entry, Entry] | None = None
        self._passage: Passage | None = None
        self.waited = 0.0

    def leave(self, *, tokens: int | None = None) -> None:
        """The call was answered; `tokens` settles the estimate (None: it stands)."""
        self._serial.do(self._line.gate.leave, self, self._now(), tokens)

    def fail(self) -> None:
        """The call failed or was cancelled: says nothing about the limit."""
        self._serial.do(self._fails, self._now())  # it may not have come to its line yet

    def throttled(self, retry_after: float | None, *, overloaded: bool = False) -> bool:
        """The endpoint refused the call, and said to come again in `retry_after` seconds (None: it did not say).

        `overloaded`: it said that it has no room now (503, 529), not that there were too many requests (429). Returns False where asking
        again is of no use: this endpoint refused everything several times in a row.
        """
        gate = self._line.gate
        again, pause = self._serial.call(gate.throttled, self, self._now(), retry_after, overloaded)
        if pause is not None:
            tell("throttled", host=gate.host, seconds=round(pause[0], 3), in_flight=pause[1])
        return again

    def _fails(self, now: float) -> None:
        self._line.gate.fail(self, now)

    def _now(self) -> float:
        return self._woken.get_loop().time()

    def _wake(self, here: asyncio.AbstractEventLoop | None) -> bool:
        """Whether its task could still be told."""
        loop = self._woken.get_loop()
        if loop is here:
            _settle(self._woken)
            return True
        try:
            loop.call_soon_threadsafe(_settle, self._woken)
        except RuntimeError:  # its loop was closed, and it with it
            return False
        return True


@dataclass(slots=True, eq=False)
class Line:
    """The calls of one party at one gate: those that wait, by their order, and how many are in flight."""

    gate: "Gate"
    party: Party
    tickets: list[tuple[int, Ticket]] = field(default_factory=list)  # a heap; those that wait no longer are left out when they come up
    waiting: int = 0
    in_flight: int = 0
    turn: int = 0
    queued: bool = False  # among the gate's turns, or parked
    limits: tuple[int | None, int | None] = field(init=False)  # its requests and its tokens a minute

    def __post_init__(self) -> None:
        self.limits = self.party.requests_per_minute, self.party.tokens_per_minute

    def first(self) -> Ticket | None:
        """The next call that waits, if one does."""
        while self.tickets:
            ticket = self.tickets[0][1]
            if ticket._state == "waiting" and not ticket._woken.cancelled():
                return ticket
            heapq.heappop(self.tickets)
            if ticket._state == "waiting":
                self.gate.drop(ticket)
        return None


class Gate:
    """One endpoint. Every method is an operation of `serial`, so that one runs at a time; `now` is the time of the loop that asks."""

    def __init__(self, endpoint: str, serial: Serial, adaptive: Adaptive) -> None:
        self.serial = serial
        self.host = endpoint if endpoint.startswith("tool ") else endpoint.partition(" ")[0]
        self.in_flight = 0
        self.waiting = 0
        self._adaptive = adaptive
        self._meter = Meter()
        self._lines: dict[Party, Line] = {}
        self._turns: list[tuple[int, Line]] = []  # a heap: round robin
        self._most: dict[int, int] = {}  # max_concurrency of the parties that are here, and of how many
        self._limits: dict[tuple[int | None, int | None], int] = {}  # and their rates
        self._loops: dict[asyncio.AbstractEventLoop, int] = {}  # where calls wait, and how many
        self._timers: dict[asyncio.AbstractEventLoop, tuple[float, asyncio.TimerHandle | None]] = {}

    def line(self, party: Party) -> Line:
        """The line of a party."""
        line = self._lines.get(party)
        if line is None:
            line = self._lines[party] = Line(self, party)
            _count(self._most, party.max_concurrency, 1)
            _count(self._limits, line.limits, 1)
        return line

    def blank(self, now: float) -> bool:
        """Whether nobody uses it, and nothing of the past counts."""
        return not self._lines and not self._adaptive.remembers(now) and self._meter.blank(now)

    def arrive(self, ticket: Ticket, party: Party, returns: bool) -> None:
        """A call asks for its turn; one that `returns` was let in before, and finds room in any queue."""
        now = ticket._since
        line = ticket._line = self.line(party)
        if not self._turns and not line.queued and self._has_room(line, ticket, now):  # nobody waits
            self._go(line, ticket, now)
            return
        heapq.heappush(line.tickets, (ticket._order, ticket))
        line.waiting += 1
        self.waiting += 1
        _count(self._loops, ticket._woken.get_loop(), 1)
        if not line.queued:
            self._queue(line, next(_turns))
        self.pump(now)
        if ticket._state != "waiting":
            return
        if ticket._until is not None and (self._adaptive.paused_until or 0.0) > ticket._until:
            self._refuse(ticket, self._too_long(ticket._until, now))
        elif not returns and self.waiting > party.max_queue:
            what = f"{party.max_queue} calls wait for their turn already, as many as max_queue allows"
            self._refuse(ticket, QueueFull(what, where=f"at {self.host}", remedy="raise max_queue (--max-queue), or ask for less at once"))

    def leave(self, ticket: Ticket, now: float, tokens: int | None) -> None:
        """A call was answered."""
        if ticket._state == "in" and ticket._passage is not None:
            if tokens is not None:
                self._meter.settle(ticket._charge, max(0, tokens) - ticket._tokens)
            self._adaptive.answered(ticket._passage, now)
            self._end(ticket, now)

    def fail(self, ticket: Ticket, now: float) -> None:
        """A call failed, or waits no longer."""
        if ticket._state == "waiting":
            self.drop(ticket)
            self.pump(now)
        elif ticket._state == "in" and ticket._passage is not None:
            self._adaptive.failed(ticket._passage)
            self._end(ticket, now)

    def throttled(self, ticket: Ticket, now: float, retry_after: float | None, overloaded: bool) -> tuple[bool, tuple[float, int] | None]:
        """A call was refused: whether to ask again and, at the first of an episode, the pause and how many may be in flight."""
        adaptive = self._adaptive
        if ticket._state != "in" or ticket._passage is None:
            return not adaptive.closed, None
        pause = adaptive.paused_until
        ticket._gives_way = ticket._gives_way or adaptive.probes(ticket._passage)
        begins = adaptive.refused(ticket._passage, now, retry_after, overloaded)
        if adaptive.closed:
            self._refuse_all(now)
        elif adaptive.paused_until != pause:
            self._refuse_late(now)
        self._end(ticket, now)
        if adaptive.closed or not begins:
            return not adaptive.closed, None
        return True, ((adaptive.paused_until or now) - now, adaptive.limit(now, max(self._most, default=1)))

    def pump(self, now: float) -> None:
        """Lets in whoever may go now, and sees to it that somebody looks again when the next may go."""
        if not self._turns:
            return
        adaptive, most = self._adaptive, max(self._most, default=0)
        while self._turns and self.in_flight < most:
            when = adaptive.ready(now)
            if when <= now:
                when = self._serve(now) if self.in_flight < adaptive.limit(now, most) else now + _GROWN
            if when > now:
                self._look_again(when)
                return

    def drop(self, ticket: Ticket) -> None:
        """A call waits no longer."""
        ticket._state = "over"
        self._unwait(ticket)
        line = ticket._line
        if len(line.tickets) > 2 * line.waiting + 16:
            line.tickets = [pair for pair in line.tickets if pair[1]._state == "waiting"]
            heapq.heapify(line.tickets)
        self._tidy(line)

    def dismiss(self, party: Party) -> None:
        """The calls of a party that wait are refused: its run was asked to stop."""
        line = self._lines.get(party)
        for _, ticket in [*line.tickets] if line is not None else []:
            if ticket._state == "waiting":
                self._refuse(ticket, StopRequested("the run was asked to stop", remedy="resume the run"))

    def _serve(self, now: float) -> float:
        """Lets in the next call whose line may go: `now`, else when one may. Lines with the same rates do not overtake one another."""
        held: list[tuple[int, Line]] = []
        limits: set[tuple[int | None, int | None]] = set()
        soonest = math.inf
        while self._turns and len(limits) < len(self._limits):
            turn, line = heapq.heappop(self._turns)
            ticket, party = line.first(), line.party
            if ticket is None:
                line.queued = False
            elif party.in_flight >= party.max_concurrency:
                party._parked.append(line)
            elif line.limits in limits:
                held.append((turn, line))
            else:
                when = self._meter.ready(now, *line.limits, ticket._tokens)
                if when <= now:
                    self._let_in(line, ticket, now)
                    soonest = now
                    break
                held.append((turn, line))
                limits.add(line.limits)
                soonest = min(soonest, when)
        for pair in held:
            heapq.heappush(self._turns, pair)
        return soonest

    def _has_room(self, line: Line, ticket: Ticket, now: float) -> bool:
        """Whether a call may go that no other waits before."""
        party, most = line.party, max(self._most)
        if party.in_flight >= party.max_concurrency or self.in_flight >= most or self._adaptive.ready(now) > now:
            return False
        return self.in_flight < self._adaptive.limit(now, most) and self._meter.ready(now, *line.limits, ticket._tokens) <= now

    def _let_in(self, line: Line, ticket: Ticket, now: float) -> None:
        heapq.heappop(line.tickets)
        self._unwait(ticket)
        line.queued = False
        if line.waiting:
            self._queue(line, next(_turns))
        self._go(line, ticket, now)

    def _go(self, line: Line, ticket: Ticket, now: float) -> None:
        ticket.waited = max(0.0, now - ticket._since)
        ticket._passage = self._adaptive.let_in(now, self.in_flight + 1)
        ticket._charge = self._meter.use(now, ticket._tokens)
        ticket._state = "in"  # the last: its own thread looks at it
        self.in_flight += 1
        line.in_flight += 1
        line.party.in_flight += 1
        if not ticket._wake(_running()):
            self.serial.do(self.fail, ticket, now)

    def _end(self, ticket: Ticket, now: float) -> None:
        ticket._state = "over"
        line, party = ticket._line, ticket._line.party
        self.in_flight -= 1
        line.in_flight -= 1
        party.in_flight -= 1
        gates = [self]
        if party._parked:
            parked, party._parked = sorted(party._parked, key=lambda line: line.turn), []
            gates = [*dict.fromkeys(line.gate for line in parked), self]
            for other in parked:
                other.queued = False
                if other.waiting:
                    other.gate._queue(other, other.turn)
        self._tidy(line)
        for gate in gates:
            gate.pump(now)

    def _queue(self, line: Line, turn: int) -> None:
        line.turn = turn
        line.queued = True
        heapq.heappush(self._turns, (turn, line))

    def _unwait(self, ticket: Ticket) -> None:
        ticket._line.waiting -= 1
        self.waiting -= 1
        loop = ticket._woken.get_loop()
        if not _count(self._loops, loop, -1) and loop in self._timers and loop is _running():
            timer = self._timers.pop(loop)[1]
            if timer is not None:
                timer.cancel()

    def _tidy(self, line: Line) -> None:
        """A party that neither waits nor is in flight is not here."""
        if line.waiting or line.in_flight or self._lines.get(line.party) is not line:
            return
        del self._lines[line.party]
        if len(self._turns) > 2 * len(self._lines) + 16:
            self._turns = [pair for pair in self._turns if pair[1].waiting]
            heapq.heapify(self._turns)
        _count(self._most, line.party.max_concurrency, -1)
        _count(self._limits, line.limits, -1)

    def _look_again(self, when: float) -> None:
        """Every loop where calls wait looks again then: none of them relies on another, which may close."""
        if when == math.inf:
            return
        here = _running()
        for loop in list(self._loops):
            planned = self._timers.get(loop)
            if planned is not None and planned[0] <= when:
                continue
            if loop is here:
                if planned is not None and planned[1] is not None:
                    planned[1].cancel()
                self._timers[loop] = (when, loop.call_at(when, self._looked, loop))
                continue
            try:
                loop.call_soon_threadsafe(self._looked, loop)
                self._timers[loop] = (when, None)
            except RuntimeError:  # it is closed, and who waited there waits no longer
                self._timers.pop(loop, None)

    def _looked(self, loop: asyncio.AbstractEventLoop) -> None:
        self.serial.do(self._look, loop, loop.time())

    def _look(self, loop: asyncio.AbstractEventLoop, now: float) -> None:
        self._timers.pop(loop, None)
        self.pump(now)

    def _refuse(self, ticket: Ticket, error: OrchestratorError) -> None:
        ticket._error = error
        self.drop(ticket)
        ticket._wake(_running())

    def _everybody(self) -> list[Ticket]:
        return [ticket for line in self._lines.values() for _, ticket in line.tickets if ticket._state == "waiting"]

    def _refuse_all(self, now: float) -> None:
        adaptive = self._adaptive
        asked = "without Retry-After" if adaptive.asked is None else f"with Retry-After {adaptive.asked:g}"
        seconds = now - adaptive.refused_since
        what = f"the endpoint refused everything: {adaptive.refusals} requests in {seconds:.0f} s, the last {asked}"
        for ticket in self._everybody():
            error = ThrottledError(what, where=f"at {self.host}", remedy="ask again later, or use another model or key")
            error.retry, error.retry_after = False, adaptive.asked
            self._refuse(ticket, error)

    def _refuse_late(self, now: float) -> None:
        for ticket in self._everybody():
            if ticket._until is not None and (self._adaptive.paused_until or 0.0) > ticket._until:
                self._refuse(ticket, self._too_long(ticket._until, now))

    def _too_long(self, until: float, now: float) -> ThrottledError:
        asked, pause = self._adaptive.asked, (self._adaptive.paused_until or now) - now
        said = f"the endpoint asks to wait {asked:g} s" if asked is not None else f"the endpoint refuses calls, a pause of {pause:.1f} s"
        what = f"{said}, and {max(0.0, until - now):.0f} s are left"
        error = ThrottledError(what, where=f"at {self.host}", remedy="raise deadline (--deadline), or use another model or key")
        error.retry, error.retry_after = False, pause
        return error


def _count(counts: dict[Any, int], one: Any, more: int) -> int:
    """How many there are now; one of which there is none is not among them."""
    now = counts.get(one, 0) + more
    if now:
        counts[one] = now
    else:
        del counts[one]
    return now


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _running() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:  # a thread without a loop, or the garbage collector's
        return None
