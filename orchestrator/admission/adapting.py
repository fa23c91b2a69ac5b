"""What the refusals of an endpoint (429, 503) teach: how long everybody waits, how many calls at once, how many a second."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from orchestrator.admission.rates import Entry, Window

__all__ = ["Adaptive", "Passage"]

_SHRINK = 0.7  # of what was in flight, where nothing was accepted before
_ALIKE = 0.25  # two numbers in flight that differ by less, as a share, are about the same
_CUT = 0.95  # of the rate that was accepted when the endpoint refused
_PLATEAU = 0.985  # of it: where the pace stays for a while
_CURVE = 0.0002  # a second cubed: how soon the pace leaves the plateau
_SOON = 0.85  # of the pace, where the endpoint refuses within 1.5 s: it was learned too high
_SOON_SECONDS = 1.5
_SEEN = 10.0  # seconds that a refusal may take and still tell what was accepted before it
_SLOWEST_CUT = 0.7  # of the pace before, at one refusal
_CREDIT = 0.02  # seconds that a timer may be late without loss to the pace; half an interval where that is more
_PATIENCE = 0.25  # seconds without a refusal after which a probe went through; 1.25 times as long as a refusal took, where that is more
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 4.0
_SURE = 2  # probes refused in a row while others are under way, or refusals at as many in flight, then that is what it has room for
_PROBES = 5  # refused in a row, then the endpoint refuses everything
_MEMORY = 60.0  # seconds without a refusal after which all is forgotten


@dataclass(slots=True, eq=False)
class Passage:
    """A call that was let in `at` a time, after so many episodes, as one of so many in flight."""

    at: float
    episode: int
    in_flight: int
    sent: Entry


@dataclass(slots=True)
class _Curve:
    """Requests a second, or calls in flight: CUBIC (RFC 9438, section 4.2) around what the endpoint accepted, in shares of it."""

    plateau: float
    since: float

    def at(self, now: float) -> float:
        late = now - self.since - math.cbrt((1 - _CUT / _PLATEAU) / _CURVE)
        return self.plateau * (1 + _CURVE * late * late * late)


@dataclass(slots=True)
class _Evidence:
    """For the pace: what was `sent` in the second before the first refusal, less what was refused, and the most calls in flight.

    `before`: the pace, 0 without one; `held`: for how many seconds it had been kept up with.
    """

    sent: list[Entry]
    in_flight: int
    before: float
    held: float


class Adaptive:
    """One endpoint's state: open, paused, or probing, when one call at a time finds out whether the pause was long enough.

    The refusals of the calls that are in flight at the first are one episode. They tell of places where the endpoint says that it is
    overloaded (503) and others were accepted, or where it twice refuses probes while others are under way, or twice at as many in flight as
    before, though slower: from then on as many are in flight as it accepted, and the next goes when one of those is answered. Otherwise all
    pause, and go on at the rate that it accepted; so they do where none of the places was accepted, or a probe without a place. Both
    numbers grow with time. Times are seconds of the loop's clock; `draw` gives random numbers from 0 to 1.
    """

    def __init__(self, draw: Callable[[], float]) -> None:
        self._draw = draw
        self.episode = 0
        self.paused_until: float | None = None
        self.asked: float | None = None  # what Retry-After said last
        self._asked_until = 0.0
        self.refusals = 0  # since the endpoint last answered
        self.refused_since = 0.0
        self.closed = False  # it refused everything
        self._limits: Literal["places", "rate"] | None = None  # calls at once, or in a time; None: nobody knows
        self._sure = False  # of how many places there are
        self._window: _Curve | None = None
        self._pace: _Curve | None = None
        self._next = 0.0
        self._probe: Passage | None = None
        self._probe_ends = 0.0
        self._streak = -1  # probes refused since a call was answered
        self._quickest = 0.0
        self._sent = Window(_SEEN)
        self._evidence: _Evidence | None = None
        self._most = 0  # calls in flight, when one that was refused in the episode was let in
        self._refused = 0  # in the episode
        self._alike = 0  # episodes in a row that began at as many in flight as the one before, though slower
        self._forget_at: float | None = None

    def limit(self, now: float, most: int) -> int:
        """How many calls may be in flight, `most` without a refusal."""
        if self._forget_at is not None and now >= self._forget_at:
            self._forget()
        if self._window is None:
            return most
        if self.paused_until is not None and self._limits == "places" and not self._sure:
            return min(most, self._accepted + 1)  # a probe more than there are places: where it is accepted, they are not what is limited
        return min(most, max(1, int(self._window.at(now))))

    def ready(self, now: float) -> float:
        """When the next call may go: `now`, or a later time."""
        if self.paused_until is not None:
            if now < self.paused_until:
                return self.paused_until
            if self._probe is None:
                return now
            if now < self._probe_ends:
                return self._probe_ends
            self._open(now, self._probe)
        return now if self._pace is None else max(now, self._next)

    def let_in(self, now: float, in_flight: int) -> Passage:
        """Counts a call that goes now, as one of so many in flight."""
        passage = Passage(now, self.episode, in_flight, self._sent.add(now, 1))
        if self.paused_until is not None:
            self._probe = passage
            self._probe_ends = now + max(_PATIENCE, 1.25 * self._quickest)
        elif self._pace is not None:
            interval = 1 / self._pace.at(now)
            self._next = max(self._next, now - max(_CREDIT, interval / 2)) + interval
        return passage

    def answered(self, passage: Passage, now: float) -> None:
        """A call was answered."""
        self._streak, self.refusals = -1, 0
        if self.paused_until is None:
            return
        if passage.episode == self.episode:
            self._open(now, passage)
        elif self._limits == "places" and now >= self._asked_until:
            self.paused_until = self._probe = None  # its place is free

    def failed(self, passage: Passage) -> None:
        """A call ended in a way that says nothing."""
        self._sent.change(passage.sent, -1)
        if self._probe is passage:
            self._probe = None

    def refused(self, passage: Passage, now: float, retry_after: float | None, overloaded: bool) -> bool:
        """A call was refused. Returns whether that begins an episode."""
        self._sent.change(passage.sent, -1)
        self.refusals += 1
        if self.refusals == 1:
            self.refused_since = now
        self.asked = retry_after if retry_after is not None and 0 < retry_after < math.inf else None
        begins = passage.episode == self.episode
        if begins:
            self._begin(passage, now, overloaded)
        self._quickest = min(self._quickest, now - passage.at)
        self._most = max(self._most, passage.in_flight)
        self._refused += 1
        if self._evidence is not None:
            self._evidence.in_flight = max(self._evidence.in_flight, self._most)
        accepted, pause = self._accepted, self.asked or 0.0
        self._asked_until = max(self._asked_until, now + pause)
        mistaken = self._limits == "places" and accepted <= 0
        if mistaken:
            self._limits, self._sure, self._window = "rate", False, None
        elif self._limits == "places":
            self._window, self._pace = _Curve(accepted + 0.75, now), None
        if mistaken or (begins and not self._sure):
            pause = self._pause()
        self.closed = self.closed or (self._streak >= _PROBES and accepted <= 0)  # what is in flight may yet be answered
        if self.closed:
            self.paused_until = now
        elif pause and now + pause > (self.paused_until or 0.0):
            self.paused_until = now + pause
        self._forget_at = max(now, self.paused_until or 0.0) + _MEMORY
        return begins

    def probes(self, passage: Passage) -> bool:
        """Whether this call finds out for all the others whether the pause was long enough."""
        return self._probe is passage

    def remembers(self, now: float) -> bool:
        """Whether anything of a refusal still counts."""
        return self._forget_at is not None and now < self._forget_at

    @property
    def _accepted(self) -> int:
        return self._most - self._refused

    def _begin(self, passage: Passage, now: float, overloaded: bool) -> None:
        """An episode. What it tells of the pace is read when its other refusals are known, too."""
        self.episode += 1
        self._streak += 1
        knee, accepted = self._accepted, passage.in_flight - 1
        if self.paused_until is None:
            sent = [entry for entry in self._sent.entries if passage.at - 1 < entry.first <= passage.at]
            before = 0.0 if self._pace is None else self._pace.at(now)
            held = math.inf if self._pace is None else passage.at - self._pace.since
            self._evidence = _Evidence(sent, passage.in_flight, before, held)
            slower = self._pace is not None and before < self._pace.plateau
            self._alike = self._alike + 1 if slower and abs(accepted - knee) <= _ALIKE * knee else 0
        if self._streak >= _SURE or self._alike >= _SURE or (overloaded and self._limits is None):
            self._limits = "places"
        self._sure = self._sure or (self._limits == "places" and self._streak > 0)
        self._quickest = now - passage.at
        self._most = self._refused = 0
        self.paused_until = self._probe = None

    def _pause(self) -> float:
        if self._streak == 0:
            return self.asked or _FIRST_PAUSE * (1 + self._draw() / 8)
        return max(self.asked or 0.0, min(_LONGEST_PAUSE, _FIRST_PAUSE * (1 << min(self._streak, 8))) * (1 - self._draw() / 4))

    def _open(self, now: float, probe: Passage) -> None:
        """The probe went through: everybody goes on, in as many places, or at the pace that the endpoint kept up with before it refused."""
        evidence, self._evidence = self._evidence, None
        self.paused_until = self._probe = None
        if self._limits == "places" and probe.in_flight > self._accepted:
            self._limits, self._window = "rate", None
        if self.closed:
            self._forget()
        elif evidence is not None and self._limits != "places":
            self._learn(evidence, now, probe.at)

    def _learn(self, evidence: _Evidence, now: float, since: float) -> None:
        """A pace from what was accepted."""
        rate = float(sum(entry.amount for entry in evidence.sent))
        if evidence.before:
            least = _SOON if evidence.held < _SOON_SECONDS else min(1.0, max(_SLOWEST_CUT, rate / evidence.before))
            rate = evidence.before * least
        if rate > 0:
            self._pace = _Curve(rate * _PLATEAU, since)
            self._next = max(now, since + 1 / self._pace.at(now))
        else:
            self._limits, self._window = None, _Curve(evidence.in_flight * _SHRINK, now)

    def _forget(self) -> None:
        self._window = self._pace = self._evidence = self.paused_until = self._probe = self._forget_at = None
        self._streak, self.refusals, self._alike = -1, 0, 0
        self._limits = None
        self.closed = self._sure = False
