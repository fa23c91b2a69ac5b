"""What the refusals of an endpoint (429, 503) teach: how long everybody waits, how many calls at once, how many a second."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.admission.rates import Entry, Window

__all__ = ["Adaptive", "Passage"]

_SHRINK = 0.7  # of what was in flight
_ALIKE = 0.25  # two numbers in flight that differ by less, as a share, are about the same
_CUT = 0.95  # of the rate that was accepted when the endpoint refused
_PLATEAU = 0.985  # of it: where the pace stays for a while
_CURVE = 0.0002  # a second cubed: how soon the pace leaves the plateau
_SOON = 0.85  # of the pace, where the endpoint refuses within 1.5 s: it was learned too high
_SOON_SECONDS = 1.5
_SEEN = 10.0  # seconds that a refusal may take and still tell what was accepted before it
_SLOWEST_CUT = 0.7  # of the pace before, at one refusal
_CREDIT = 0.02  # seconds that a timer may be late without loss to the pace; half an interval where that is more
_PATIENCE = 0.25  # seconds without a refusal after which a probe went through; twice as long as a refusal took, where that is more
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 4.0
_PROBES = 5  # refused in a row, then the endpoint refuses everything
_MEMORY = 60.0  # seconds without a refusal after which all is forgotten


@dataclass(slots=True, eq=False)
class Passage:
    """A call that was let in `at` a time, after so many episodes."""

    at: float
    episode: int
    sent: Entry


@dataclass(slots=True)
class _Pace:
    """Requests a second: CUBIC (RFC 9438, section 4.2) around the rate at which the endpoint refused, in shares of it."""

    plateau: float
    since: float

    def rate(self, now: float) -> float:
        late = now - self.since - math.cbrt((1 - _CUT / _PLATEAU) / _CURVE)
        return self.plateau * (1 + _CURVE * late * late * late)


@dataclass(slots=True)
class _Evidence:
    """Of a refusal: what was `sent` in the second before, less what was refused; calls in flight, and those of them that were `accepted`.

    `before`: the pace, 0 without one; `held`: for how many seconds it had been kept up with.
    """

    sent: list[Entry]
    in_flight: int
    accepted: int
    before: float
    held: float


class Adaptive:
    """One endpoint's state: open, paused, or probing, when one call at a time finds out whether the pause was long enough.

    Additive increase, multiplicative decrease of the calls in flight (Chiu and Jain 1989), and a pace, as a number of calls in flight does
    not hold a rate against quick answers. Times are seconds of the loop's clock; `draw` gives random numbers from 0 to 1.
    """

    def __init__(self, draw: Callable[[], float]) -> None:
        self._draw = draw
        self.episode = 0
        self.paused_until: float | None = None
        self.asked: float | None = None  # what Retry-After said last
        self.refusals = 0  # since the endpoint last answered
        self.refused_since = 0.0
        self.closed = False  # it refused everything
        self._window: float | None = None
        self._pace: _Pace | None = None
        self._next = 0.0
        self._probe: Passage | None = None
        self._probe_ends = 0.0
        self._streak = -1  # probes refused since a call was answered
        self._quickest = 0.0
        self._sent = Window(_SEEN)
        self._evidence: _Evidence | None = None
        self._knee = 0  # calls in flight at the refusal before
        self._forget_at: float | None = None

    def limit(self, now: float, most: int) -> int:
        """How many calls may be in flight, `most` without a refusal."""
        if self._forget_at is not None and now >= self._forget_at:
            self._forget()
        return most if self._window is None else min(most, int(self._window))

    def ready(self, now: float) -> float:
        """When the next call may go: `now`, or a later time."""
        if self.paused_until is not None:
            if now < self.paused_until:
                return self.paused_until
            if self._probe is None:
                return now
            if now < self._probe_ends:
                return self._probe_ends
            self._open(now, self._probe.at)
        return now if self._pace is None else max(now, self._next)

    def let_in(self, now: float) -> Passage:
        """Counts a call that goes now."""
        passage = Passage(now, self.episode, self._sent.add(now, 1))
        if self.paused_until is not None:
            self._probe = passage
            self._probe_ends = now + max(_PATIENCE, 2 * self._quickest)
        elif self._pace is not None:
            interval = 1 / self._pace.rate(now)
            self._next = max(self._next, now - max(_CREDIT, interval / 2)) + interval
        return passage

    def answered(self, passage: Passage, now: float) -> None:
        """A call was answered."""
        self._streak, self.refusals = -1, 0
        if passage.episode != self.episode:
            return
        if self.paused_until is not None:
            self._open(now, passage.at)
        if self._window is not None:
            self._window += 1 / self._window

    def failed(self, passage: Passage) -> None:
        """A call ended in a way that says nothing."""
        self._sent.change(passage.sent, -1)
        if self._probe is passage:
            self._probe = None

    def refused(self, passage: Passage, now: float, retry_after: float | None, in_flight: int) -> bool:
        """A call was refused, one of `in_flight`. Returns whether that begins an episode."""
        self._sent.change(passage.sent, -1)
        self.refusals += 1
        if self.refusals == 1:
            self.refused_since = now
        self.asked = retry_after if retry_after is not None and 0 < retry_after < math.inf else None
        if passage.episode != self.episode:
            self._quickest = min(self._quickest, now - passage.at)
            if self._evidence is not None:
                self._evidence.accepted -= 1
            self._extend(now)
            return False
        self.episode += 1
        self._streak += 1
        if self.paused_until is None:
            self._cut(now, passage.at, in_flight)
        self._quickest = now - passage.at
        self._probe = None
        self.closed = self.closed or (self._streak >= _PROBES and in_flight == 1)  # what is in flight may yet be answered
        self.paused_until = now if self.closed else now + self._pause()
        self._forget_at = self.paused_until + _MEMORY
        return True

    def probes(self, passage: Passage) -> bool:
        """Whether this call finds out for all the others whether the pause was long enough."""
        return self._probe is passage

    def remembers(self, now: float) -> bool:
        """Whether anything of a refusal still counts."""
        return self._forget_at is not None and now < self._forget_at

    def _pause(self) -> float:
        if self._streak == 0:
            return self.asked or _FIRST_PAUSE * (1 + self._draw() / 4)
        return max(self.asked or 0.0, min(_LONGEST_PAUSE, _FIRST_PAUSE * (1 << min(self._streak, 8))) * (1 - self._draw() / 4))

    def _extend(self, now: float) -> None:
        if self.asked is None or self.closed or now + self.asked <= (self.paused_until or 0.0):
            return
        self.paused_until = now + self.asked
        self._forget_at = self.paused_until + _MEMORY

    def _cut(self, now: float, at: float, in_flight: int) -> None:
        """The evidence for the pace is kept, to be read when the other refusals of the episode are known, too.

        The first refusal tells nothing of what is limited, calls at once or calls a second: the pace answers both as long as answers take
        their time. One that comes soon after, at as many in flight, tells of calls at once; one that comes late, above the old rate, does
        not.
        """
        sent = [entry for entry in self._sent.entries if at - 1 < entry.first <= at]
        before = 0.0 if self._pace is None else self._pace.rate(now)
        held = math.inf if self._pace is None else at - self._pace.since
        if self._pace is not None and before < self._pace.plateau and abs(in_flight - 1 - self._knee) <= _ALIKE * self._knee:
            self._window = max(1.0, in_flight * _SHRINK)
        self._evidence = _Evidence(sent, in_flight, in_flight - 1, before, held)

    def _open(self, now: float, since: float) -> None:
        """The probe went through: everybody goes on, at the pace that the endpoint kept up with before it refused."""
        evidence, self._evidence = self._evidence, None
        self.paused_until = self._probe = None
        if self.closed:
            self._forget()
        elif evidence is not None:
            self._knee = evidence.accepted
            rate = float(sum(entry.amount for entry in evidence.sent))
            if evidence.before:
                least = _SOON if evidence.held < _SOON_SECONDS else min(1.0, max(_SLOWEST_CUT, rate / evidence.before))
                rate = evidence.before * least
            if rate > 0:
                self._pace = _Pace(rate * _PLATEAU, since)
                self._next = max(now, since + 1 / self._pace.rate(now))
            else:
                self._window = max(1.0, evidence.in_flight * _SHRINK)

    def _forget(self) -> None:
        self._window = self._pace = self._evidence = self.paused_until = self._probe = self._forget_at = None
        self._streak, self.refusals = -1, 0
        self.closed = False
